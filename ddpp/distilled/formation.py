"""Several pictures in one image. Source: multi-formation (Kim et al., ICML 2022)."""

import torch.nn.functional as F
from torch import Tensor

from ddpp.foundation.errors import Error


def fold(pictures: Tensor, formation: int) -> Tensor:
    """Shrink pictures (N n^2, C, H, W), and put each n^2 of them into one image: (N, C, H, W).

    - formation: n. It must divide H and W, else Error.
    """
    check_formation(formation, pictures)
    if formation == 1:
        return pictures
    n, (height, width) = formation, pictures.shape[2:]
    small = F.avg_pool2d(pictures, n).unflatten(0, (-1, n, n))  # (N, n, n, C, H/n, W/n)
    return small.permute(0, 3, 1, 4, 2, 5).reshape(-1, pictures.shape[1], height, width)


def unfold(images: Tensor, formation: int) -> Tensor:
    """Enlarge the n x n pictures in each image (N, C, H, W), bilinearly: (N n^2, C, H, W).

    They are in the order of rows. Source: multi-formation (Kim et al., ICML 2022).

    >>> import torch
    >>> from ddpp.distilled.formation import fold, unfold
    >>> pictures = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 8, 8)  # each of one grey
    >>> torch.equal(unfold(fold(pictures, 2), 2), pictures)
    True
    """
    if formation == 1:
        return images
    n, size = formation, images.shape[2:]
    tiles = images.unflatten(3, (n, -1)).unflatten(2, (n, -1))  # (N, C, n, H/n, n, W/n)
    tiles = tiles.permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
    return F.interpolate(tiles, size=tuple(size), mode="bilinear", align_corners=False)


def check_formation(formation: int, images: Tensor) -> None:
    """Raise an Error if images (N, C, H, W) cannot be divided into n x n pictures."""
    height, width = images.shape[2:]
    if formation < 1 or height % formation or width % formation:
        raise Error(
            f"formation is {formation}: images of {height} x {width} pixels must be divisible into "
            "so many by so many pictures; 1 leaves them whole"
        )
