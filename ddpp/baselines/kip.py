"""KIP, Kernel Inducing Points (Nguyen, Chen & Lee, ICLR 2021; Nguyen, Novak, Xiao & Lee, NeurIPS 2021).

The distilled images are the support of a kernel ridge regression with the neural tangent kernel of an infinitely wide
network: they are learned so that the regression on them predicts the labels of real images, the target. No network is
trained.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.errors import Error, choose
from ddpp.ntk import KERNELS, bytes_needed

BLOCK = 500  # images per part of a prediction: bounds its memory, not the result
REG = 1e-6  # as KIP


def centred(labels: Tensor, classes: int) -> Tensor:
    """Labels (N,) as vectors (N, classes) to regress on: one-hot less 1 / classes."""
    return F.one_hot(labels, classes) - 1 / classes


def ridge(kernel: Tensor, labels: Tensor, reg: float = REG) -> Tensor:
    """(K + reg tr(K) / n I)^-1 y for the support's kernel (n, n) and labels (n, classes): coefficients (n, classes)."""
    penalty = reg * kernel.diagonal().mean() * torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    factor, failed = torch.linalg.cholesky_ex(kernel + penalty)
    if failed:
        raise Error("the kernel of the distilled images is not positive definite: raise reg or lower the learning rate")
    return torch.cholesky_solve(labels, factor)


def predict(
    support_x: Tensor, support_y: Tensor, x: Tensor, kernel: str = "fc", depth: int = 1, reg: float = REG
) -> Tensor:
    """The regression on the support, images (n, C, H, W) and labels (n, classes), at images x: (m, classes).

    The support's own kernel is computed and solved in float64, whatever the images are: float32 rounds it by about as
    much as reg adds, and the inverse enlarges that.
    """
    function = KERNELS[choose("kernel", kernel, KERNELS)]
    own = function(support_x.double(), support_x.double(), depth)
    coefficients = ridge(own, support_y.double(), reg).to(x.dtype)
    return torch.cat([function(support_x, part, depth).T @ coefficients for part in x.split(BLOCK)])


def loss(
    support_x: Tensor,
    support_y: Tensor,
    target_x: Tensor,
    target_y: Tensor,
    kernel: str = "fc",
    depth: int = 1,
    reg: float = REG,
) -> Tensor:
    """KIP's loss: half the mean square of what the regression on the support misses at the target. A scalar.

    The mean is over target images and classes. Differentiable in the support's images and labels.
    """
    return 0.5 * (target_y - predict(support_x, support_y, target_x, kernel, depth, reg)).square().mean()


def memory(support: int, target: int, shape: tuple[int, int, int], kernel: str, depth: int) -> int:
    """Bytes at the peak of the loss and its gradient, for so many images of shape (C, H, W)."""
    return bytes_needed(kernel, support, target, shape, depth) + bytes_needed(
        kernel, support, support, shape, depth, itemsize=8
    )
