"""A distilled dataset: what stage C produces, in one file that is enough to train on and to test
correctly.
"""

import dataclasses
import re
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddpp.data import ImageData
from ddpp.data.whitening import Whitening
from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.loop import Run, pack, unpack
from ddpp.networks import NetworkConfig

KIND = "distilled dataset"
# what networks are trained on the labels with
CROSS_ENTROPY, SQUARED_ERROR = (
    "cross-entropy",
    "squared error",
)


@dataclass(repr=False)
class DistilledDataset(Dataset):
    """Distilled images with all that belongs to them. As a torch Dataset it yields (image, label),
    preprocessed.

    images: (N, C, H, W) float32, preprocessed as `whitening` says.
    labels: (N,) int64, classes; or (N, classes) float32, soft labels or targets of a regression,
    see `loss`.
    alpha: the learned learning rate, a positive scalar.
    classes: their names. network: the NetworkConfig it was distilled with, as a dict.
    iterates: {step: (images, alpha)} along the way: step 0, the real images it started from, to the
    final one.
    history: per distillation step, see `distill`; provenance: config, data, versions, device; both
    may be empty.
    loss: what networks are trained on the labels with, "cross-entropy" or "squared error". None:
    cross-entropy, which needs labels (N, classes) to be distributions.

    Made by hand or read from a file, it is checked: Error for shapes, types and values that do not
    fit.
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
    loss: str | None = None

    def __post_init__(self):
        self.classes = tuple(self.classes)
        if isinstance(self.alpha, (int, float)):
            self.alpha = torch.tensor(float(self.alpha), dtype=torch.float32)
        if dataclasses.is_dataclass(self.network):
            self.network = dataclasses.asdict(self.network)
        _check_images(self.images, self.whitening)
        self.loss = _check_labels(self.labels, self.images, self.classes, self.loss)
        _check_alpha(self.alpha, "alpha")
        for step, (images, alpha) in self.iterates.items():
            if images.shape != self.images.shape or not images.isfinite().all():
                raise Error(
                    f"the images of step {step} have another shape than the last ones, or are "
                    "not all finite"
                )
            _check_alpha(alpha, f"the alpha of step {step}")

    @classmethod
    def from_run(
        cls, run: Run, data: ImageData, labels: Tensor, network: NetworkConfig, identity: dict
    ) -> "DistilledDataset":
        """What a finished run has made of `data`, with `labels` (N,) or learned ones (N, classes).

        network, identity: those of the run.
        """
        learned = labels.is_floating_point()
        return cls(
            images=run.state.images,
            labels=labels,
            loss=SQUARED_ERROR if learned else None,
            alpha=run.state.alpha,
            whitening=data.whitening,
            classes=data.classes,
            network=dataclasses.asdict(network),
            iterates=run.iterates,
            history=run.history,
            provenance=identity | data.provenance | {"made_on": list(run.machines)},
        )

    def __repr__(self) -> str:
        shape, alpha = "x".join(map(str, self.images.shape[1:])), float(self.alpha)
        return (
            f"{len(self)} distilled images of {len(self.classes)} classes, {shape}; alpha "
            f"{alpha:.4f}"
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        label = self.labels[index]
        return self.images[index], label if self.labels.is_floating_point() else int(label)

    @property
    def ipc(self) -> int:
        """Images per class; rounded up where classes have different numbers of them."""
        return -(-len(self.images) // len(self.classes))

    @property
    def hard_labels(self) -> Tensor:
        """The class of each image (N,): its label, or of a label (N, classes) the largest entry."""
        return self.labels.argmax(1) if self.labels.is_floating_point() else self.labels

    def by_class(self) -> list[list[int]]:
        """For each class the indices of its images, in their order."""
        found = self.hard_labels.tolist()
        return [
            [i for i, label in enumerate(found) if label == each]
            for each in range(len(self.classes))
        ]

    def at(self, step: int) -> "DistilledDataset":
        """The set as it was after `step` distillation steps, one of `iterates`."""
        if step not in self.iterates:
            raise Error(
                f"step {step} was not kept: the choices are {', '.join(map(str, self.iterates))}"
            )
        images, alpha = self.iterates[step]
        # later ones are not its past
        until = {at: iterate for at, iterate in self.iterates.items() if at <= step}
        return dataclasses.replace(self, images=images, alpha=alpha, iterates=until)

    def to(self, device: torch.device | str) -> "DistilledDataset":
        moved = {
            name: getattr(self, name).to(device)
            for name in ("images", "labels", "alpha", "whitening")
        }
        iterates = {
            step: (images.to(device), alpha.to(device))
            for step, (images, alpha) in self.iterates.items()
        }
        return dataclasses.replace(self, iterates=iterates, **moved)

    def save(self, path: str | Path) -> None:
        """Write one .safetensors file, all or nothing. Equal sets give equal bytes: no clock time
        is in it.
        """
        tensors = {
            "images": self.images,
            "labels": self.labels,
            "alpha": self.alpha,
        } | self.whitening.tensors()
        tensors |= pack(self.iterates, self.history)
        meta = {
            "classes": list(self.classes),
            "network": self.network,
            "provenance": self.provenance,
        }
        meta |= {"loss": self.loss} if self.labels.is_floating_point() else {}
        files.write(path, KIND, tensors, meta)

    @staticmethod
    def load(path: str | Path) -> "DistilledDataset":
        """Read a file written by `save`; a damaged one, or one of another kind, is refused with an
        Error.
        """
        tensors, meta = files.read(path, KIND)
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
            loss=loss_in(tensors, meta),
        )

    def natural(self) -> Tensor:
        """The images in natural colours (N, C, H, W): preprocessing undone, cut to [0, 1]."""
        return self.whitening.invert(self.images).clamp(0, 1).cpu()

    def picture(self, zoom: int = 3) -> Image.Image:
        """All images in natural colours as one picture: the first of every class, the second ...;
        at most 20 a row.
        """
        from torchvision.utils import make_grid  # here, as importing torchvision takes seconds

        ranks = zip_longest(*self.by_class())
        by_rank = [i for rank in ranks for i in rank if i is not None]
        big = self.natural()[by_rank].repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        return _pil(make_grid(big, nrow=min(len(self.classes), 20), padding=zoom, pad_value=1))

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()

    def export_png(self, folder: str | Path) -> int:
        """Write every image in natural colours as FOLDER/LABEL_CLASS/NUMBER.png; returns how
        many.
        """
        images = self.natural()
        for label, members in enumerate(self.by_class()):
            name = re.sub(r"[^\w.-]", "_", self.classes[label])
            for rank, i in enumerate(members):
                path = Path(folder) / f"{label}_{name}" / f"{rank:03d}.png"
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _pil(images[i]).save(path)
                except OSError as e:
                    raise Error(f"cannot write {path}: {e.strerror}; choose another folder") from e
        return len(self)


def _check_images(images: Tensor, whitening: Whitening) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4 or images.dtype != torch.float32:
        what = (
            f"{images.dtype} {tuple(images.shape)}"
            if isinstance(images, Tensor)
            else f"a {type(images).__name__}"
        )
        raise Error(f"the images are {what}: they must be a float32 tensor (N, C, H, W)")
    if not len(images):
        raise Error("there are no images: a set needs at least one")
    if not images.isfinite().all():
        raise Error("the images hold values that are not finite: a run that ended so has no result")
    if images.shape[1:] != whitening.mean.shape:
        raise Error(
            f"the images are {tuple(images.shape[1:])}, but the preprocessing is for "
            f"{tuple(whitening.mean.shape)}: "
            "give the whitening of the data that the images belong to"
        )


def _check_labels(
    labels: Tensor, images: Tensor, classes: tuple[str, ...], loss: str | None
) -> str:
    """The loss that goes with the labels, if they are right; otherwise an Error."""
    if loss is not None:
        choose("loss", loss, (CROSS_ENTROPY, SQUARED_ERROR))
    n, soft = len(images), (len(images), len(classes))
    if not isinstance(labels, Tensor) or tuple(labels.shape) not in ((n,), soft):
        what = (
            f"have the shape {tuple(labels.shape)}"
            if isinstance(labels, Tensor)
            else f"are {type(labels).__name__}"
        )
        raise Error(
            f"the labels {what}: for {n} images of {soft[1]} classes give (N,) = ({n},), or (N, "
            "classes)"
        )
    if labels.ndim == 1:
        if labels.dtype != torch.int64:
            raise Error(
                f"the labels are {labels.dtype}: classes must be int64, from 0 to {soft[1] - 1}"
            )
        if labels.min() < 0 or labels.max() >= soft[1]:
            raise Error(
                f"the labels go from {labels.min()} to {labels.max()}: there are {soft[1]} "
                "classes, from 0"
            )
        if loss == SQUARED_ERROR:
            raise Error("the squared error needs labels (N, classes), float32: these are classes")
        return CROSS_ENTROPY
    if labels.dtype != torch.float32 or not labels.isfinite().all():
        raise Error("labels (N, classes) must be float32 and finite")
    sums = labels.sum(1)
    distributions = (labels >= 0).all() and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
    if loss != SQUARED_ERROR and not distributions:
        raise Error(
            "the labels (N, classes) are no distributions, as some are negative or do not add up "
            "to 1: take their "
            "softmax for soft labels, or say loss='squared error' for targets of a regression"
        )
    return loss or CROSS_ENTROPY


def _check_alpha(alpha: Tensor, name: str) -> None:
    if not isinstance(alpha, Tensor) or alpha.numel() != 1 or not 0 < float(alpha) < float("inf"):
        raise Error(
            f"{name} is {alpha}: it must be one positive number, the learning rate to train with"
        )


def loss_in(tensors: dict[str, Tensor], meta: dict) -> str:
    """What a file says of its labels; the first files did not, and had learned labels from
    regressions only.
    """
    return meta.get(
        "loss", SQUARED_ERROR if tensors["labels"].is_floating_point() else CROSS_ENTROPY
    )


def _pil(image: Tensor) -> Image.Image:
    """(C, H, W) in [0, 1] -> a PIL image: grey, RGB, or the first three channels."""
    pixels = (image[:3] if len(image) >= 3 else image[:1]).mul(255).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().squeeze()))
