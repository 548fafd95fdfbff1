"""A data set as whole tensors on one device."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpp.data.sources import ARRAYS, check, class_names, find, sha256
from ddpp.data.whitening import Whitening, fit_channels, fit_zca
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, NetworkConfig

# pixels x channels up to which ZCA is fitted unless told otherwise: its cost is cubic
ZCA_LIMIT = 3 * 32 * 32


class Split(NamedTuple):
    """Images (N, C, H, W), preprocessed, float32; labels (N,), int64."""

    images: Tensor
    labels: Tensor

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True, repr=False)
class ImageData:
    """A data set on one device. `validation` is held out from training, and thereby from the
    teachers and the ZCA.
    """

    name: str
    classes: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split
    whitening: Whitening
    held_out: float  # the share of each class's training images that became `validation`
    sha256: str  # of the raw arrays: the same data from another source has the same

    def __repr__(self) -> str:
        held_out = f", {len(self.validation.labels):,} held out" if self.validation else ""
        kind = {"zca": "ZCA whitening", "channels": "mean and deviation per channel"}[
            self.whitening.kind
        ]
        return (
            f"{self.name}: {len(self.train.labels):,} images to train on{held_out}, "
            f"{len(self.test.labels):,} to test on, "
            f"{len(self.classes)} classes, {'x'.join(map(str, self.shape))}; {kind}; on "
            f"{self.device.type}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    @property
    def identity(self) -> dict:
        """What a file derived from this data records, and is checked against."""
        return {
            "sha256": self.sha256,
            "whitening": self.whitening.kind,
            "validation": self.held_out,
        }

    @property
    def provenance(self) -> dict:
        """What a distilled file says of its data."""
        return {"data": {"name": self.name, **self.identity}}

    def made_from(self, network: NetworkConfig) -> dict:
        """What a run on this data without teachers is made from, for its identity."""
        return {"network": asdict(network), "images": self.identity}

    def network(self, config: NetworkConfig) -> Flat:
        """The network of a NetworkConfig, sized for these images and classes."""
        return config.build(self.shape[0], len(self.classes), self.shape[1], self.device)

    def draw(self, ipc: int, seed: int) -> Split:
        """`ipc` random training images of each class, class by class."""
        if ipc < 1:
            raise Error(f"{ipc} images per class cannot be drawn: ask for at least 1")
        rng, picks = generator(seed, "draw", ipc), []
        for label, name in enumerate(self.classes):
            members = (self.train.labels == label).nonzero().flatten().cpu()
            if len(members) < ipc:
                raise Error(
                    f"class '{name}' has {len(members)} training images, fewer than the {ipc} "
                    "images per class asked "
                    "for: lower the images per class"
                )
            picks.append(members[torch.randperm(len(members), generator=rng)[:ipc]])
        index = torch.cat(picks).to(self.device)
        return Split(self.train.images[index], self.train.labels[index])


def load_data(
    name_or_path: str | Path = "cifar10-sample",
    *,
    root: str | Path | None = None,
    zca: bool | None = None,
    validation: float = 0.1,
    whitening: Whitening | None = None,
    device: str | torch.device | None = None,
) -> ImageData:
    """Load and preprocess a data set, all of it, on one device (the GPU if there is one).

    - name_or_path: "cifar10-sample" (bundled: 5,000 + 1,000 images), "cifar10", "cifar100" (from
      ROOT/NAME.npz if that exists, else torchvision's download into ROOT), or an .npz file with
      x_train, y_train, x_test, y_test and optionally `classes`; images (N, S, S) or (N, S, S, C),
      uint8 or floats in [0, 1]; labels integers from 0.
    - zca: ZCA (True) or mean and deviation per channel (False); None: ZCA up to 3 x 32 x 32 values
      an image.
    - validation: the share of each class's training images that is held out, for choosing among
      iterates.
    - whitening: use this preprocessing (of a distilled file, say) instead of fitting one.
    """
    name, arrays = find(name_or_path, Path(root or "data"))
    check(name, arrays)
    classes = class_names(name, arrays)
    if not 0 <= validation < 1:
        raise Error(f"the validation share is {validation}: it must be at least 0 and below 1")

    device = find_device(device)
    images = {key: _pixels(arrays[key]).to(device) for key in ("x_train", "x_test")}
    labels = {
        key: torch.from_numpy(arrays[key].astype(np.int64)).to(device)
        for key in ("y_train", "y_test")
    }
    held_out = _hold_out(labels["y_train"], len(classes), validation)
    if whitening is None:
        use_zca = images["x_train"][0].numel() <= ZCA_LIMIT if zca is None else zca
        whitening = (fit_zca if use_zca else fit_channels)(images["x_train"][~held_out])
    whitening = whitening.to(device)
    train = Split(whitening.apply(images["x_train"]), labels["y_train"])
    return ImageData(
        name=name,
        classes=classes,
        train=Split(train.images[~held_out], train.labels[~held_out]),
        validation=Split(train.images[held_out], train.labels[held_out])
        if held_out.any()
        else None,
        test=Split(whitening.apply(images["x_test"]), labels["y_test"]),
        whitening=whitening,
        held_out=validation,
        sha256=hashlib.sha256("".join(sha256(arrays[key]) for key in ARRAYS).encode()).hexdigest(),
    )


def _pixels(x: np.ndarray) -> Tensor:
    """uint8 or float (N, H, W[, C]) -> float32 (N, C, H, W) in [0, 1]."""
    x = x if x.dtype == np.uint8 else x.astype(np.float32, copy=False)
    images = torch.from_numpy(x if x.ndim == 4 else x[..., None]).permute(0, 3, 1, 2)
    # `contiguous` leaves one channel as it lies there
    images = images.clone(memory_format=torch.contiguous_format)
    return images.float().div_(255) if images.dtype == torch.uint8 else images


def _hold_out(labels: Tensor, classes: int, share: float) -> Tensor:
    """Mark the last `share` of each class, so that the split needs no seed."""
    held_out = torch.zeros_like(labels, dtype=torch.bool)
    for label in range(classes):
        members = (labels == label).nonzero().flatten()
        held_out[members[len(members) - int(len(members) * share) :]] = True
    return held_out
