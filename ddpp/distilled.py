"""A distilled dataset: what stage C produces, in one file that is enough to train on and to test correctly."""

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddpp import store
from ddpp.errors import Error
from ddpp.whitening import Whitening

KIND = "distilled dataset"


@dataclass(repr=False)
class DistilledDataset(Dataset):
    """Distilled images with all that belongs to them. As a torch Dataset it yields (image, label), preprocessed.

    images (N, C, H, W), preprocessed as `whitening` says, class by class; labels (N,) int64, or learned ones (N,
    classes) float32, targets of a regression; alpha: the learned learning rate, a positive scalar; network: the
    NetworkConfig it was distilled with, as a dict.
    iterates: {step: (images, alpha)} along the way: step 0, the real images it started from, to the final one.
    history: per distillation step, see `distill`; provenance: config, data, versions, device.
    """

    images: Tensor
    labels: Tensor
    alpha: Tensor
    whitening: Whitening
    classes: tuple[str, ...]
    network: dict
    iterates: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    history: dict[str, Tensor] = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

    def __repr__(self) -> str:
        shape, alpha = "x".join(map(str, self.images.shape[1:])), float(self.alpha)
        return f"{len(self)} distilled images of {len(self.classes)} classes, {shape}; alpha {alpha:.4f}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        label = self.labels[index]
        return self.images[index], label if self.labels.is_floating_point() else int(label)

    @property
    def ipc(self) -> int:
        """Images per class."""
        return len(self.images) // len(self.classes)

    def at(self, step: int) -> "DistilledDataset":
        """The set as it was after `step` distillation steps, one of `iterates`."""
        if step not in self.iterates:
            raise Error(f"step {step} was not kept: the choices are {', '.join(map(str, self.iterates))}")
        images, alpha = self.iterates[step]
        until = {at: iterate for at, iterate in self.iterates.items() if at <= step}  # later ones are not its past
        return dataclasses.replace(self, images=images, alpha=alpha, iterates=until)

    def to(self, device) -> "DistilledDataset":
        moved = {name: getattr(self, name).to(device) for name in ("images", "labels", "alpha", "whitening")}
        iterates = {step: (images.to(device), alpha.to(device)) for step, (images, alpha) in self.iterates.items()}
        return dataclasses.replace(self, iterates=iterates, **moved)

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file, all or nothing. Equal sets give equal bytes: no clock time is in it."""
        tensors = {"images": self.images, "labels": self.labels, "alpha": self.alpha} | self.whitening.tensors()
        tensors |= pack(self.iterates, self.history)
        meta = {"classes": list(self.classes), "network": self.network, "provenance": self.provenance}
        store.write(path, KIND, tensors, meta)

    @staticmethod
    def load(path: str | Path) -> "DistilledDataset":
        """Read a file written by `save`; a damaged one, or one of another kind, is refused with an Error."""
        tensors, meta = store.read(path, KIND)
        iterates, history = unpack(tensors)
        return DistilledDataset(
            images=tensors["images"],
            labels=tensors["labels"],
            alpha=tensors["alpha"],
            whitening=Whitening.from_tensors(tensors),
            classes=tuple(meta["classes"]),
            network=meta["network"],
            iterates=iterates,
            history=history,
            provenance=meta["provenance"],
        )

    def natural(self) -> Tensor:
        """The images in natural colours (N, C, H, W): preprocessing undone, cut to [0, 1]."""
        return self.whitening.invert(self.images).clamp(0, 1).cpu()

    def picture(self, zoom: int = 3) -> Image.Image:
        """All images in natural colours as one picture: the first of every class, the second ...; at most 20 a row."""
        from torchvision.utils import make_grid  # here, as importing torchvision takes seconds

        by_rank = self.natural().unflatten(0, (len(self.classes), self.ipc)).transpose(0, 1).flatten(0, 1)
        big = by_rank.repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        return _pil(make_grid(big, nrow=min(len(self.classes), 20), padding=zoom, pad_value=1))

    def _repr_png_(self) -> bytes:
        return self.picture()._repr_png_()

    def export_png(self, folder: str | Path) -> int:
        """Write every image in natural colours as FOLDER/LABEL_CLASS/NUMBER.png; returns how many."""
        for i, image in enumerate(self.natural()):
            label = i // self.ipc
            name = re.sub(r"[^\w.-]", "_", self.classes[label])
            path = Path(folder) / f"{label}_{name}" / f"{i % self.ipc:03d}.png"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                _pil(image).save(path)
            except OSError as e:
                raise Error(f"cannot write {path}: {e.strerror}; choose another folder") from e
        return len(self)


def pack(iterates: dict[int, tuple[Tensor, Tensor]], history: dict[str, Tensor]) -> dict[str, Tensor]:
    """Iterates and history as named tensors for a file."""
    tensors = {f"history.{name}": column for name, column in history.items()}
    for step, (images, alpha) in iterates.items():
        tensors |= {f"iterate.{step}.images": images, f"iterate.{step}.alpha": alpha}
    return tensors


def unpack(tensors: dict[str, Tensor]) -> tuple[dict[int, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """The iterates and the history that `pack` named."""
    steps = sorted(int(m[1]) for name in tensors if (m := re.fullmatch(r"iterate\.(\d+)\.images", name)))
    iterates = {step: (tensors[f"iterate.{step}.images"], tensors[f"iterate.{step}.alpha"]) for step in steps}
    prefix = "history."
    return iterates, {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}


def _pil(image: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] -> a PIL image: grey, RGB, or the first three channels."""
    pixels = (image[:3] if len(image) >= 3 else image[:1]).mul(255).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().squeeze()))
