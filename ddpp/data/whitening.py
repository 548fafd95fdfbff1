"""Preprocessing: an affine map fitted on the training images, and its exact inverse for looking at
pictures.

ZCA as in MTT (Cazenavette et al., CVPR 2022), which the paper uses "with default parameters": the
covariance of the images in [0, 1] is regularized by eps = 0.1 and its inverse square root applied
to every flattened image.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ddpp.foundation.errors import Error

KINDS = ("zca", "channels")
CHUNK = 5_000  # images per matrix product: bounds the memory, not the result


@dataclass(frozen=True)
class Whitening:
    """x -> (x - mean) @ matrix on flattened images (kind "zca"), or (x - mean) / std per channel
    (kind "channels").

    mean: (C, H, W); matrix: (D, D) symmetric with D = C*H*W, or std: (C, 1, 1). Images have values
    in [0, 1].
    """

    kind: str
    mean: Tensor
    matrix: Tensor | None = None
    std: Tensor | None = None

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images (N, C, H, W)."""
        if images.shape[1:] != self.mean.shape:
            raise Error(
                f"the images are {tuple(images.shape[1:])} but this preprocessing was fitted on "
                f"{tuple(self.mean.shape)}: use the data set that it belongs to"
            )
        if self.kind == "channels":
            return (images - self.mean) / self.tensors()["std"]
        return self._product(images - self.mean, self.tensors()["matrix"])

    def invert(self, images: Tensor) -> Tensor:
        """Undo `apply`: back to natural colours (values may leave [0, 1] for images that were
        learned).
        """
        if self.kind == "channels":
            return images * self.tensors()["std"] + self.mean
        return self._product(images, self.inverse) + self.mean

    @cached_property
    def inverse(self) -> Tensor:
        """matrix^-1 (D, D); well conditioned, because eps bounds the smallest eigenvalue."""
        matrix = self.tensors()["matrix"]
        return torch.linalg.inv(matrix.double()).to(matrix)

    def _product(self, images: Tensor, matrix: Tensor) -> Tensor:
        return torch.cat([(part.flatten(1) @ matrix).view_as(part) for part in images.split(CHUNK)])

    def equals(self, other: "Whitening") -> bool:
        """The same preprocessing, up to the rounding of fits on different machines."""
        mine, its = self.tensors(), other.tensors()
        alike = mine.keys() == its.keys() and all(mine[key].shape == its[key].shape for key in mine)
        return alike and all(torch.allclose(mine[key], its[key], atol=1e-3) for key in mine)

    def to(self, device: torch.device | str) -> "Whitening":
        return Whitening.from_tensors({name: t.to(device) for name, t in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """What a file needs to rebuild this: mean with matrix, or mean with std."""
        named = {"mean": self.mean} | (
            {"matrix": self.matrix} if self.kind == "zca" else {"std": self.std}
        )
        return {name: t for name, t in named.items() if t is not None}

    @staticmethod
    def from_tensors(tensors: dict[str, Tensor]) -> "Whitening":
        kind = "zca" if "matrix" in tensors else "channels"
        return Whitening(kind, tensors["mean"], tensors.get("matrix"), tensors.get("std"))


def fit_zca(images: Tensor, eps: float = 0.1) -> Whitening:
    """ZCA of images (N, C, H, W) in [0, 1]: matrix = U (S + eps)^-1/2 U^T, with U S U^T their
    covariance.
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
    """Mean and standard deviation per channel, for runs without ZCA."""
    mean = images.mean((0, 2, 3)).view(-1, 1, 1).expand(images.shape[1:]).contiguous()
    std = images.transpose(0, 1).flatten(1).std(1).view(-1, 1, 1)
    if not (std > 0).all():
        raise Error(
            "a channel has the same value in every training pixel: drop it, it carries no "
            "information"
        )
    return Whitening("channels", mean, std=std)
