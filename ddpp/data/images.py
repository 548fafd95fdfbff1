"""A data set as whole tensors on one device."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ddpp.data.whitening import Whitening
from ddpp.foundation import files
from ddpp.foundation.errors import Error, as_whole, described
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, NetworkConfig

STARTS = ("real", "noise")  # what distilled images can start from
PARTS = {"train": "training", "validation": "held-out", "test": "test"}


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


class Watched:
    """A split, by which changes in place are noticed: PyTorch counts those of each tensor.

    - split: None where there is none.
    - changed: whether it has been changed already.
    - before: its hash before it was changed, if that is known.

    It does not notice what PyTorch does not count: changes of `tensor.data`, or of an array of
    NumPy that shares the memory.
    """

    def __init__(self, split: Split | None, changed: bool = False, before: str | None = None):
        self.split, self._changed, self._before = split, changed, before
        self._versions = _versions(split)
        self._known: tuple[tuple[int | None, ...], str] | None = None

    def __reduce__(self):  # a copy counts anew
        return Watched, (self.split, self.changed, self._before)

    @property
    def changed(self) -> bool:
        """Whether the tensors have been changed in place."""
        return self._changed or _versions(self.split) != self._versions

    @property
    def now(self) -> str:
        """The hash of the tensors as they are, which is computed again only after a change."""
        versions = _versions(self.split)
        if self._known is None or self._known[0] != versions:
            self._known = versions, " ".join(map(files.fingerprint, self.split or ()))
        return self._known[1]

    @property
    def before(self) -> str | None:
        """The hash before any change. None where there is no split, or nobody asked in time."""
        if self._before is None and self.split is not None and not self.changed:
            self._before = self.now
        return self._before


def _versions(split: Split | None) -> tuple[int | None, ...]:
    """How often PyTorch has seen each tensor change. None for those of the inference mode."""
    return tuple(None if tensor.is_inference() else tensor._version for tensor in split or ())


@dataclass(frozen=True, repr=False, eq=False)
class ImageData:
    """A data set, preprocessed, on one device, made by `load_data`. Another split may take the
    place of one, as in `dataclasses.replace(data, test=Split(images, labels))`. Raises Error for a
    split that does not fit.

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
    sha256: str  # of the raw arrays, so equal for the same arrays from another source
    given: str = ""  # numbers of a whitening that was given, and is not the one of these images
    # the splits as they were loaded, by which others that took their place are noticed
    loaded: Mapping[str, Watched] = field(default_factory=dict)
    # the hashes of the same arrays with labels of any type, `sha256` among them
    forms: tuple[str, ...] = ()
    _present: dict[str, Watched] = field(default_factory=dict, init=False)

    def __post_init__(self):
        for part, kind in PARTS.items():
            split = getattr(self, part)
            if part != "validation" or split is not None:
                _check_split(kind, split, self.train, len(self.classes))

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

    @property
    def replaced(self) -> dict[str, str]:
        """The hashes of splits that `dataclasses.replace` put in the place of the loaded ones, and
        of those that were changed in place.
        """
        found = {}
        for part, loaded in self.loaded.items():
            split = getattr(self, part)
            if split is None or (split is loaded.split and not loaded.changed):
                continue
            before, now = loaded.before, self._hash(part, split)
            if now != before:
                found[f"replaced {part}"] = now
        return found

    def _hash(self, part: str, split: Split) -> str:
        if part not in self._present or self._present[part].split is not split:
            self._present[part] = Watched(split)
        return self._present[part].now

    def has_images_of(self, sha256: str) -> bool:
        """Tell whether a hash is of the same raw arrays, with labels of whatever type."""
        return sha256 == self.sha256 or {sha256, self.sha256} <= {*self.forms}

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

    def draw(self, ipc: int | Sequence[int] | np.ndarray | Tensor, seed: int) -> Split:
        """Draw random training images of each class, class by class.

        - ipc: images per class, at least 1; or one number for each class, which may be 0.
        - seed: equal seeds draw equal images.

        Returns a Split of all that are asked for. Raises Error if a class has fewer.
        """
        try:
            given = list(ipc)  # pyright: ignore[reportArgumentType]
        except TypeError:  # one number
            given = [ipc] * len(self.classes)
        counts = [as_whole(count, "the number of images per class") for count in given]
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


def _check_split(kind: str, split: object, train: Split, classes: int) -> None:
    """Raise an Error unless a split can be used with the training images, which come first."""
    if not isinstance(split, Split):
        raise Error(
            f"the {kind} images are given as {described(split)}: give a Split(images, labels)"
        )
    x, y = split
    square = isinstance(x, Tensor) and x.ndim == 4 and x.shape[2] == x.shape[3]
    if not square or x.dtype != torch.float32:
        raise Error(
            f"the {kind} images are {described(x)}: they must be a float32 tensor (N, C, S, S)"
        )
    if not len(x):
        raise Error(f"there are no {kind} images: give at least one")
    if x.shape[1:] != train.images.shape[1:]:
        raise Error(
            f"the {kind} images are {tuple(x.shape[1:])}, and the training images "
            f"{tuple(train.images.shape[1:])}: bring all images to one size"
        )
    if not isinstance(y, Tensor) or y.dtype != torch.int64 or y.shape != (len(x),):
        raise Error(
            f"the labels of the {kind} images are {described(y)}: for {len(x)} images they must be "
            f"an int64 tensor ({len(x)},)"
        )
    if {x.device, y.device} != {train.images.device}:
        raise Error(
            f"the {kind} images are on {x.device}, their labels on {y.device}, and the training "
            f"images on {train.images.device}: move all to one device"
        )
    if not y.is_meta and (y.min() < 0 or y.max() >= classes):
        raise Error(
            f"the labels of the {kind} images go from {y.min()} to {y.max()}: there are {classes} "
            "classes, from 0"
        )
