"""Preprocessing: an affine map fitted on the training images, and its exact inverse for display.

ZCA is as in MTT (Cazenavette et al., CVPR 2022), which the paper uses "with default parameters".
The covariance of the images in [0, 1] is regularized by eps = 0.1, and its inverse square root is
applied to every flattened image.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpp.foundation.errors import Error
from ddpp.foundation.seeds import generator

CHUNK = 5_000  # images per matrix product: bounds the memory, not the result


@dataclass(frozen=True, eq=False)
class Whitening:
    """A preprocessing: (x - mean) @ matrix on flattened images, or (x - mean) / std per channel.

    Images have values in [0, 1] before `apply`.
    """

    kind: str  # "zca" or "channels"
    mean: Tensor  # (C, H, W)
    matrix: Tensor | None = None  # of kind "zca": (D, D), with D = C*H*W; ZCA's is symmetric
    std: Tensor | None = None  # of kind "channels": (C, 1, 1)

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images (N, C, H, W). Raises Error for images of another shape."""
        if images.shape[1:] != self.mean.shape:
            raise Error(
                f"the images are {tuple(images.shape[1:])} but this preprocessing was fitted on "
                f"{tuple(self.mean.shape)}: use the data set that it belongs to"
            )
        if self.kind == "channels":
            return (images - self.mean) / self.tensors()["std"]
        return self._product(images - self.mean, self.tensors()["matrix"])

    def invert(self, images: Tensor) -> Tensor:
        """Undo `apply`, into natural colours. Learned images may have values outside [0, 1]."""
        if self.kind == "channels":
            return images * self.tensors()["std"] + self.mean
        return self._product(images, self.inverse) + self.mean

    @cached_property
    def inverse(self) -> Tensor:
        """matrix^-1 (D, D). It is well conditioned, because eps bounds the smallest eigenvalue."""
        matrix = self.tensors()["matrix"]
        return torch.linalg.inv(matrix.double()).to(matrix)

    def _product(self, images: Tensor, matrix: Tensor) -> Tensor:
        return torch.cat([(part.flatten(1) @ matrix).view_as(part) for part in images.split(CHUNK)])

    def equals(self, other: "Whitening") -> bool:
        """Tell whether both are the same, up to the rounding of fits on different machines, and of
        a compact file. Means are compared in units of what they are divided by.
        """
        a, b = self.tensors(), other.tensors()
        if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
            return False
        if self.kind == "channels":
            unit = a["std"]
            alike = torch.allclose(unit, b["std"], rtol=1e-3, atol=0)
        else:
            unit = 1 / a["matrix"].abs().max()
            alike = torch.allclose(a["matrix"], b["matrix"], atol=1e-3 / float(unit))
        apart = (self.mean - other.mean).abs()
        return alike and bool((apart <= 1e-3 * unit + 1e-5 * self.mean.abs()).all())

    def fits(self, images: Tensor, eps: float = 0.1) -> bool:
        """Tell whether `fit_zca` or `fit_channels` find this on images (N, C, H, W), up to
        rounding.
        """
        if self.mean.shape != images.shape[1:]:
            return False
        if self.matrix is None:
            own = fit_channels(images)
            return self.equals(own) and torch.allclose(self.mean, own.mean, atol=1e-5)
        mean = images.mean(0)
        if not torch.allclose(self.mean, mean, atol=1e-5):
            return False
        # matrix (C + eps) matrix = 1, with the covariance C. One vector tells, without another fit
        vector = torch.randn(mean.numel(), generator=generator(0, "fits")).to(images)
        there = self.matrix @ vector
        back = eps * there
        for part in images.split(CHUNK):
            centred = (part - mean).flatten(1)
            back += centred.T @ (centred @ there) / (len(images) - 1)
        return bool((self.matrix @ back - vector).norm() < 0.01 * vector.norm())

    @property
    def numbers(self) -> str:
        """Numbers that identify it, rounded, so that they are equal on all machines: means, and
        products with fixed random vectors, in which it counts where each value stands.
        """
        exact = lambda tensor: tensor.detach().cpu().double()
        vectors = lambda name, size: torch.randn(
            2, size, generator=generator(0, "numbers", name), dtype=torch.float64
        )
        mean = exact(self.mean).flatten()
        if self.kind == "channels":
            scale = products = exact(self.tensors()["std"]).flatten()  # of so few, each
        else:
            matrix = self.tensors()["matrix"]
            scale = exact(matrix).diagonal()
            # as rounded as in a compact file, so that both forms of a file have the same numbers
            left, right = vectors("left", len(scale)), vectors("right", len(scale))
            products = ((left @ exact(matrix.half())) * right).sum(1)
        values = mean.mean(), mean.std(correction=0), scale.mean()
        products = *(vectors("mean", len(mean)) @ mean), *products
        return " ".join(f"{float(value):.3g}" for value in (*values, *products))

    def to(self, device: torch.device | str) -> "Whitening":
        """Move all tensors to a device. Where they are there, this keeps its inverse, too."""
        if self.mean.to(device) is self.mean:
            return self
        return Whitening.from_tensors({name: t.to(device) for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Name what a file needs to rebuild this: mean with matrix, or mean with std."""
        second = {"matrix": self.matrix} if self.kind == "zca" else {"std": self.std}
        named = {"mean": self.mean} | second
        return {name: t for name, t in named.items() if t is not None}

    def compact_tensors(self) -> dict[str, Tensor]:
        """As `tensors`, in a quarter of the bytes: half of a symmetric matrix, as float16.

        Whitened values change by about 5e-4 of their size, natural colours by 1e-4. A matrix that
        is not symmetric, as of a PCA, stays whole.
        """
        if self.matrix is None or not torch.allclose(self.matrix, self.matrix.T, atol=1e-4):
            return self.tensors()
        rows, columns = torch.triu_indices(*self.matrix.shape)
        return {"mean": self.mean, "triangle": self.matrix[rows, columns].half()}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> "Whitening":
        """Rebuild what `tensors` or `compact_tensors` named. Other names are ignored."""
        if "triangle" in tensors:
            dimension = tensors["mean"].numel()
            matrix = tensors["mean"].new_empty(dimension, dimension)
            rows, columns = torch.triu_indices(dimension, dimension)
            matrix[rows, columns] = matrix[columns, rows] = tensors["triangle"].to(matrix)
            return Whitening("zca", tensors["mean"], matrix=matrix)
        kind = "zca" if "matrix" in tensors else "channels"
        return Whitening(kind, tensors["mean"], tensors.get("matrix"), tensors.get("std"))


def fit_zca(images: Tensor, eps: float = 0.1) -> Whitening:
    """Fit ZCA: matrix = U (S + eps)^-1/2 U^T, where U S U^T is the covariance of the images.

    - images: (N, C, H, W) in [0, 1], N at least 2.
    - eps: added to each eigenvalue of the covariance; 0.1 is MTT's.

    Returns a Whitening with a matrix (D, D), D = C*H*W. Memory grows as D^2, time as D^3.

    >>> import torch
    >>> from ddpp.data.whitening import fit_zca
    >>> images = torch.tensor([0.0, 1.0, 0.0, 1.0]).view(4, 1, 1, 1)  # of variance 1/3
    >>> white = fit_zca(images, eps=0.1).apply(images)
    >>> [round(x, 3) for x in white.flatten().tolist()]  # -0.5 / sqrt(1/3 + 0.1), ...
    [-0.76, 0.76, -0.76, 0.76]
    """
    mean = images.mean(0)
    dimension = mean.numel()
    covariance = torch.zeros(dimension, dimension, dtype=torch.float64, device=images.device)
    for part in images.split(CHUNK):
        centred = (part - mean).flatten(1)
        covariance += centred.T @ centred
    eigenvalues, vectors = torch.linalg.eigh(covariance / (len(images) - 1))
    matrix = (vectors * (eigenvalues.clamp(min=0) + eps).rsqrt()) @ vectors.T
    return Whitening("zca", mean, matrix=matrix.to(images))


def fit_channels(images: Tensor) -> Whitening:
    """Fit the mean and standard deviation of each channel, for runs without ZCA.

    - images: (N, C, H, W) in [0, 1]. Raises Error if a channel is constant.
    """
    mean = images.mean((0, 2, 3)).view(-1, 1, 1).expand(images.shape[1:]).contiguous()
    std = images.transpose(0, 1).flatten(1).std(1).view(-1, 1, 1)
    if not (std > 0).all():
        raise Error(
            "a channel has the same value in every training pixel, which carries no information: "
            "drop it"
        )
    return Whitening("channels", mean, std=std)
