"""Neural tangent kernels of infinitely wide ReLU networks, differentiable in the images.

NTK parameterization (Jacot et al., 2018): a layer is sqrt(WEIGHTS / fan_in) W h + sqrt(BIASES) b
with standard normal W and b, the last layer too. The kernel of two images is the sum over all
entries of W and b of the product of the two derivatives of an output, in the limit of infinitely
many channels. It has a closed form: the expectations over ReLU units are the arc-cosine kernels
(Cho & Saul, 2009). These are neural-tangents' kernels at W_std = sqrt(2), b_std = 0.1.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import Table

Map = Callable[[Tensor], Tensor]

WEIGHTS, BIASES = 2.0, 0.01  # as KIP's code; its paper of ICLR 2021 says 1e-4 for the biases
BLOCK = 500  # images per part of a prediction: bounds its memory, not the result
REG = 1e-6  # as KIP


def fully_connected(x: Tensor, y: Tensor, depth: int) -> Tensor:
    """Return the NTK (n, m) of a fully connected network.

    - x, y: images (n, C, H, W) and (m, C, H, W).
    - depth: hidden layers.

    Raises Error for images of different shapes, and for a depth below 1.

    >>> import torch
    >>> from ddpp.baselines import ntk
    >>> ntk.fully_connected(torch.rand(2, 3, 8, 8), torch.rand(5, 3, 8, 8), depth=1).shape
    torch.Size([2, 5])
    """
    _check(x, y, depth)
    same = lambda t: t
    return _recursion(x.flatten(1), y.flatten(1), depth, same, same)


def convolutional(x: Tensor, y: Tensor, depth: int) -> Tensor:
    """Return the NTK (n, m) of 3x3 convolutions and a linear layer on all their outputs.

    The convolutions have zero padding and stride 1. Without pooling a pixel meets only the pixels
    of its own place: n m H W numbers. Average pooling would need every pixel against every other:
    n m (H W)^2.

    - x, y: images (n, C, H, W) and (m, C, H, W).
    - depth: convolutions.

    Raises Error for images of different shapes, and for a depth below 1.
    """
    _check(x, y, depth)
    by_place = lambda images: images.permute(2, 3, 0, 1)  # (H, W, n, C)
    return _recursion(by_place(x), by_place(y), depth, _patches, lambda t: t.mean((0, 1)))


KERNELS = Table("kernel", {"fc": fully_connected, "conv": convolutional})


def bytes_needed(
    kind: str, n: int, m: int, shape: tuple[int, int, int], depth: int, itemsize: int = 4
) -> int:
    """Estimate the peak bytes of KERNELS[kind] and its gradient, for n and m images of a shape.

    The shape is (C, H, W). The estimate is the growth of a process that was measured on a CPU: two
    to three times the arrays that it holds, because memory fragments.
    """
    channels, height, width = shape
    places = {"fc": 1}.get(choose("kernel", kind, KERNELS), height * width)
    numbers = n * m * places * (18 * depth + 12) + 2 * (n + m) * channels * height * width
    return itemsize * numbers


def _check(x: Tensor, y: Tensor, depth: int) -> None:
    if x.shape[1:] != y.shape[1:]:
        raise Error(
            f"the images are {tuple(x.shape[1:])} and {tuple(y.shape[1:])}: a kernel needs them "
            "of one shape"
        )
    if depth < 1:
        raise Error(f"the kernel's depth is {depth}: it must be at least 1")


def _recursion(x: Tensor, y: Tensor, depth: int, mix: Map, readout: Map) -> Tensor:
    """Compute the kernel (n, m) from x (..., n, k) and y (..., m, k), k values at each place.

    `mix` averages over the places that a unit of the next layer sees, `readout` over all. At each
    place q and p are the variances at x and at y, and d is the variance of the difference. Carrying
    d, not the covariance, keeps the angle between equal images at 0. A covariance would make it as
    large as the square root of the rounding.
    """
    q, p = x.square().mean(-1)[..., :, None], y.square().mean(-1)[..., None, :]
    d = q + p - 2 / x.shape[-1] * (x @ y.mT)
    # a smaller difference is the rounding error of equal images
    d = torch.where(d > 32 * torch.finfo(d.dtype).eps * (q + p), d, 0)
    kernel = (q + p - d) / 2
    for _ in range(depth):
        q, p = WEIGHTS * mix(q) + BIASES, WEIGHTS * mix(p) + BIASES
        d, kernel = WEIGHTS * mix(d), WEIGHTS * mix(kernel) + BIASES  # biases do not differ
        d, both = _Relu.apply(d, q, p)
        q, p = q / 2, p / 2
        kernel = (q + p - d) / 2 + both * kernel
    return WEIGHTS * readout(kernel) + BIASES


class _Relu(torch.autograd.Function):
    """E (relu u - relu v)^2, and the probability that both are positive, of Gaussians u and v.

    u and v have the variances q and p, and E (u - v)^2 = d. The probability has a cusp at d = 0.
    Its slope there is taken as 0: right where both images move as one, as on a kernel's diagonal,
    and the mean over directions elsewhere.
    """

    @staticmethod
    def forward(ctx: Any, d: Tensor, q: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
        covariance = (q + p - d) / 2
        heron = (d - (q.sqrt() - p.sqrt()).square()) * ((q.sqrt() + p.sqrt()).square() - d)
        # area of the parallelogram of u and v: sqrt(q p) times the sine of their angle
        area = heron.clamp(min=0).sqrt() / 2
        angle = torch.atan2(area, covariance)
        both = 0.5 - angle / (2 * torch.pi)
        ctx.save_for_backward(q, p, covariance, area, both)
        return d / 2 - (area - angle * covariance) / torch.pi, both

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_d: Tensor, of_both: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, p, covariance, area, both = ctx.saved_tensors
        turn = torch.where(area > 0, of_both / (-4 * torch.pi * area), 0)
        shared = of_d * (0.5 - both) - turn
        scaled = turn * covariance - of_d * area / (2 * torch.pi)
        of_q = shared.sum(-1, keepdim=True) + scaled.sum(-1, keepdim=True) / q
        of_p = shared.sum(-2, keepdim=True) + scaled.sum(-2, keepdim=True) / p
        return of_d * both + turn, of_q, of_p


def _patches(t: Tensor) -> Tensor:
    """Average t (H, W, n, m) over 3x3 neighbourhoods, zeros outside.

    Band matrices are faster than pooling here.
    """
    rows, columns = (
        torch.ones(k, k, dtype=t.dtype, device=t.device).tril(1).triu(-1) / 3 for k in t.shape[:2]
    )
    t = (rows @ t.flatten(1)).view_as(t)
    return (columns @ t.flatten(2)).view_as(t)


def predict(
    support_x: Tensor,
    support_y: Tensor,
    x: Tensor,
    kernel: str = "fc",
    depth: int = 1,
    reg: float = REG,
) -> Tensor:
    """Predict labels (m, classes) by a kernel ridge regression on the support.

    - support_x, support_y: images (n, C, H, W) and labels (n, classes).
    - x: images (m, C, H, W) to predict the labels of.
    - kernel: fc or conv, a name in KERNELS.
    - depth: layers of the kernel's network.
    - reg: of the regression, in units of the kernel's mean diagonal.

    The support's own kernel is computed and solved in float64, whatever the images are: float32
    rounds it by about as much as reg adds, and the inverse enlarges that.

    Raises Error for an unknown kernel, and for one that is not positive definite.
    """
    function = KERNELS[choose("kernel", kernel, KERNELS)]
    own = function(support_x.double(), support_x.double(), depth)
    coefficients = ridge(own, support_y.double(), reg).to(x.dtype)
    return torch.cat([function(support_x, part, depth).T @ coefficients for part in x.split(BLOCK)])


def ridge(kernel: Tensor, labels: Tensor, reg: float = REG) -> Tensor:
    """Solve for the coefficients (n, classes) of the regression: (K + reg tr(K) / n I)^-1 y.

    - kernel: K of the support (n, n).
    - labels: y (n, classes).

    Raises Error for a kernel that is not positive definite.
    """
    identity = torch.eye(len(kernel), dtype=kernel.dtype, device=kernel.device)
    penalty = reg * kernel.diagonal().mean() * identity
    factor, failed = torch.linalg.cholesky_ex(kernel + penalty)
    if failed:
        raise Error(
            "the kernel of the distilled images is not positive definite: raise reg or lower the "
            "learning rate"
        )
    return torch.cholesky_solve(labels, factor)
