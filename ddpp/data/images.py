"""A data set as whole tensors on one device."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ddpp.data.whitening import Whitening
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, NetworkConfig

STARTS = ("real", "noise")  # what distilled images can start from


class Split(NamedTuple):
    """Images with their labels."""

    images: Tensor  # (N, C, H, W), float32, preprocessed
    labels: Tensor  # (N,), int64

    def to(self, device: torch.device | str) -> "Split":
        """Move both to a device."""
        return Split(self.images.to(device), self.labels.to(device))

    def as_noise(self, seed: int) -> "Split":
        """Replace each image by standard normal values: four times the scale of whitened ones."""
        rng, like = generator(seed, "noise"), self.images
        noise = torch.randn(like.shape, generator=rng, dtype=like.dtype)
        return Split(noise.to(like), self.labels)

    def started(self, init: str, seed: int) -> "Split":
        """Return what distilled images start from: these (`real`), or noise (`noise`)."""
        return self if init == "real" else self.as_noise(seed)


@dataclass(frozen=True, repr=False)
class ImageData:
    """A data set, preprocessed, on one device, made by `load_data`.

    >>> import ddpp
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> data.shape, len(data.train.labels), data.classes[:2]
    ((3, 32, 32), 4500, ('airplane', 'automobile'))
    >>> data.draw(ipc=2, seed=0).images.shape
    torch.Size([20, 3, 32, 32])
    """

    name: str
    classes: tuple[str, ...]  # names, in the order of the labels
    train: Split
    validation: Split | None  # held out: neither teachers nor the ZCA see these images
    test: Split
    whitening: Whitening
    held_out: float  # the share of each class's training images that became `validation`
    sha256: str  # of the raw arrays, so equal for the same data from another source
    given: str = ""  # numbers of a whitening that was given, and is not the one of these images
    # the splits as they were loaded, by which others that took their place are noticed
    loaded: Mapping[str, Split | None] = field(default_factory=dict, compare=False)

    def __repr__(self) -> str:
        held_out = f", {len(self.validation.labels):,} held out" if self.validation else ""
        kinds = {"zca": "ZCA whitening", "channels": "mean and deviation per channel"}
        return (
            f"{self.name}: {len(self.train.labels):,} images to train on{held_out}, "
            f"{len(self.test.labels):,} to test on, {len(self.classes)} classes, "
            f"{'x'.join(map(str, self.shape))}; {kinds[self.whitening.kind]}; "
            f"on {self.device.type}"
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, H, W) of one image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width

    @property
    def device(self) -> torch.device:
        """The device that all tensors are on."""
        return self.train.images.device

    @property
    def identity(self) -> dict:
        """What a file derived from this data records, and is checked against."""
        return {
            "sha256": self.sha256,
            "whitening": self.whitening.kind,
            "validation": self.held_out,
            **({"given": self.given} if self.given else {}),
            **self.replaced,
        }

    @cached_property
    def replaced(self) -> dict[str, str]:
        """The hashes of splits that `dataclasses.replace` put in the place of the loaded ones."""
        found = {}
        for part, split in self.loaded.items():
            now = getattr(self, part)
            if now is not None and now is not split:
                here = " ".join(map(files.fingerprint, now))
                if split is None or here != " ".join(map(files.fingerprint, split)):
                    found[f"replaced {part}"] = here
        return found

    @property
    def provenance(self) -> dict:
        """What a distilled file says about its data."""
        return {"data": {"name": self.name, **self.identity}}

    def made_from(self, network: NetworkConfig) -> dict:
        """The identity's account of a run on this data without teachers."""
        return {"network": asdict(network), "images": self.identity}

    def network(self, config: NetworkConfig) -> Flat:
        """Build the network of a NetworkConfig for these images and classes, on their device."""
        return config.build(self.shape[0], len(self.classes), self.shape[1], self.device)

    def draw(self, ipc: int | Sequence[int], seed: int) -> Split:
        """Draw random training images of each class, class by class.

        - ipc: images per class, at least 1; or one number for each class, which may be 0.
        - seed: equal seeds draw equal images.

        Returns a Split of all that are asked for. Raises Error if a class has fewer.
        """
        counts = list(ipc) if isinstance(ipc, Sequence) else [ipc] * len(self.classes)
        if len(counts) != len(self.classes):
            raise Error(
                f"{len(counts)} numbers are given for {len(self.classes)} classes: give one for "
                "each class, or one number for all"
            )
        if max(counts) < 1 or min(counts) < 0:
            raise Error(f"{ipc} images per class cannot be drawn: ask for at least 1")
        rng, picks = generator(seed, "draw", max(counts)), []
        for label, (name, count) in enumerate(zip(self.classes, counts, strict=True)):
            members = (self.train.labels == label).nonzero().flatten().cpu()
            if len(members) < count:
                raise Error(
                    f"class '{name}' has {len(members)} training images, fewer than the {count} "
                    "images per class asked for: lower the images per class"
                )
            picks.append(members[torch.randperm(len(members), generator=rng)[:count]])
        index = torch.cat(picks).to(self.device)
        return Split(self.train.images[index], self.train.labels[index])
