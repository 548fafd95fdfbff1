"""What a distilled set must be like, and which loss goes with its labels."""

import torch
from torch import Tensor

from ddpp.data.whitening import Whitening
from ddpp.foundation.errors import Error, choose, described

# Raw pixels above the first go from 0 to 255, if they are hardly below 0: learned ones leave 0 to 1
# to both sides, and were found at -6 to 9. Above the second all raw pixels go to 255.
BRIGHTEST, NEVER_LEARNED = 8, 32
CROSS_ENTROPY, SQUARED_ERROR = "cross-entropy", "squared error"  # losses to train with


def check_images(images: Tensor, whitening: Whitening) -> None:
    """Raise an Error unless images are float32 (N, C, H, W), finite, and as the whitening needs."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.float32:
        raise Error(
            f"the images are {described(images)}: they must be a float32 tensor (N, C, H, W)"
        )
    if not len(images):
        raise Error("there are no images: a set needs at least one")
    if not images.isfinite().all():
        raise Error("the images hold values that are not finite: the run has no result")
    if images.shape[1:] != whitening.mean.shape:
        raise Error(
            f"the images are {tuple(images.shape[1:])}, but the preprocessing is for "
            f"{tuple(whitening.mean.shape)}: give the whitening of the data that the images "
            "belong to"
        )


def go_to_255(images: Tensor) -> bool:
    """Tell whether raw images (N, C, H, W) go up to 255, and not to 1."""
    if not images.numel():
        return False
    low, high = float(images.min()), float(images.max())
    return high > NEVER_LEARNED or (high > BRIGHTEST and low > -0.1 * high)


def checked_pixels(images: Tensor) -> Tensor:
    """Return raw images (N, C, H, W). Raises Error where they go up to 255, and not to 1."""
    if go_to_255(images):
        raise Error(
            f"the raw images go up to {float(images.max()):g}: give floats from 0 to 1, or bytes "
            "from 0 to 255 as uint8"
        )
    return images


def check_labels(labels: Tensor, images: Tensor, classes: tuple[str, ...], loss: str | None) -> str:
    """Choose the loss that goes with the labels, or raise an Error if the labels cannot be used."""
    if loss is not None:
        choose("loss", loss, (CROSS_ENTROPY, SQUARED_ERROR))
    n, soft = len(images), (len(images), len(classes))
    if not isinstance(labels, Tensor) or tuple(labels.shape) not in ((n,), soft):
        raise Error(
            f"the labels are {described(labels)}: for {n} images of {soft[1]} classes give "
            f"({n},), or {soft} for soft labels, as a tensor"
        )
    if labels.ndim == 1:
        _check_hard_labels(labels, len(classes), loss)
        return CROSS_ENTROPY
    if labels.dtype != torch.float32 or not labels.isfinite().all():
        raise Error("labels (N, classes) must be float32 and finite")
    sums = labels.sum(1)
    distributions = (labels >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    if loss != SQUARED_ERROR and not distributions:
        raise Error(
            "the labels (N, classes) are no distributions, as some are negative or do not add up "
            "to 1: take their softmax for soft labels, or say loss='squared error' for targets of "
            "a regression"
        )
    return loss or CROSS_ENTROPY


def _check_hard_labels(labels: Tensor, classes: int, loss: str | None) -> None:
    if labels.dtype != torch.int64:
        raise Error(
            f"the labels are {labels.dtype}: classes must be int64, from 0 to {classes - 1}"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise Error(
            f"the labels go from {labels.min()} to {labels.max()}: there are {classes} classes, "
            "from 0"
        )
    if loss == SQUARED_ERROR:
        raise Error("the squared error needs labels (N, classes), float32: these are classes")


def check_alpha(alpha: Tensor, name: str) -> None:
    """Raise an Error unless alpha, called `name` in the message, is one positive number."""
    if not isinstance(alpha, Tensor) or alpha.numel() != 1 or not 0 < float(alpha) < float("inf"):
        raise Error(
            f"{name} is {alpha}: it must be one positive number, the learning rate to train with"
        )
