"""Kernel ridge regression: the labels of images by those of a support, through a network's neural
tangent kernel.
"""

import torch
from torch import Tensor

from ddpp.foundation.errors import Error, choose
from ddpp.ntk import KERNELS

BLOCK = 500  # images per part of a prediction: bounds its memory, not the result
REG = 1e-6  # as KIP


def predict(
    support_x: Tensor,
    support_y: Tensor,
    x: Tensor,
    kernel: str = "fc",
    depth: int = 1,
    reg: float = REG,
) -> Tensor:
    """The regression on the support, images (n, C, H, W) and labels (n, classes), at images x: (m,
    classes).

    The support's own kernel is computed and solved in float64, whatever the images are: float32
    rounds it by about as much as reg adds, and the inverse enlarges that.
    """
    function = KERNELS[choose("kernel", kernel, KERNELS)]
    own = function(support_x.double(), support_x.double(), depth)
    coefficients = ridge(own, support_y.double(), reg).to(x.dtype)
    return torch.cat([function(support_x, part, depth).T @ coefficients for part in x.split(BLOCK)])


def ridge(kernel: Tensor, labels: Tensor, reg: float = REG) -> Tensor:
    """(K + reg tr(K) / n I)^-1 y for the support's kernel (n, n) and labels (n, classes):
    coefficients (n, classes).
    """
    penalty = (
        reg
        * kernel.diagonal().mean()
        * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    )
    factor, failed = torch.linalg.cholesky_ex(kernel + penalty)
    if failed:
        raise Error(
            "the kernel of the distilled images is not positive definite: raise reg or lower the "
            "learning rate"
        )
    return torch.cholesky_solve(labels, factor)
