"""A distilled dataset: the result of stage C, in one file with all that training on it needs."""

import dataclasses
import re
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddpp.data import ImageData
from ddpp.data.whitening import Whitening
from ddpp.foundation import files
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.loop import KIND as CHECKPOINT
from ddpp.foundation.loop import Beside, Run, pack, unpack
from ddpp.networks import NetworkConfig

KIND = "distilled dataset"
BRIGHTEST = 8  # raw pixels above this are not learned ones that leave 0 to 1, but 0 to 255
CROSS_ENTROPY, SQUARED_ERROR = "cross-entropy", "squared error"  # losses to train with


@dataclass(repr=False)
class DistilledDataset(Dataset):
    """Distilled images with all that belongs to them.

    As a torch Dataset it yields pairs (image, label), preprocessed. `distill` and `load` make one.
    Making one by hand works, too. Raises Error for shapes, types and values that do not fit.

    >>> import ddpp, torch
    >>> from ddpp.data.whitening import fit_channels
    >>> images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    >>> ddpp.DistilledDataset(
    ...     images=images,
    ...     labels=torch.tensor([0, 0, 1, 1]),
    ...     alpha=torch.tensor(0.01),
    ...     whitening=fit_channels(images),
    ...     classes=("cat", "dog"),
    ...     network=ddpp.NetworkConfig(width=4, depth=2),
    ... )
    4 distilled images of 2 classes, 1x8x8; alpha 0.0100
    """

    images: Tensor  # (N, C, H, W), float32, preprocessed by `whitening`
    labels: Tensor  # (N,), int64, classes; or (N, classes), float32, soft labels or targets
    alpha: Tensor  # the learned learning rate, a positive scalar; a number becomes a tensor
    whitening: Whitening  # the preprocessing of the images
    classes: tuple[str, ...]  # names, in the order of the labels
    network: dict  # the NetworkConfig that the set was distilled with; may be given as one
    # {step: (images, alpha)}, from step 0, the real images at the start, to the final step
    iterates: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    history: dict[str, Tensor] = field(default_factory=dict)  # per distillation step, see `distill`
    provenance: dict = field(default_factory=dict)  # settings, data, versions, device
    # "cross-entropy" or "squared error". None: cross-entropy, which needs labels (N, classes) to be
    # distributions
    loss: str | None = None
    # n: each image holds n x n smaller pictures, which `unfolded` enlarges to train on them
    formation: int = 1
    # what the next step would read beside images, labels and alpha; {} if no run left it
    state: dict[str, Tensor | int] = field(default_factory=dict)

    def __post_init__(self):
        self.classes = tuple(self.classes)
        if isinstance(self.alpha, (int, float)):
            self.alpha = torch.tensor(float(self.alpha), dtype=torch.float32)
        if dataclasses.is_dataclass(self.network):
            self.network = dataclasses.asdict(self.network)
        _check_images(self.images, self.whitening)
        check_formation(self.formation, self.images)
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
    def from_run(cls, run: Run, beside: Beside, identity: dict) -> "DistilledDataset":
        """Make the set from a run.

        - run: finished, or stopped on its way.
        - beside: what belongs to the set and not to the run, see `beside`.
        - identity: of the run.
        """
        whitening = Whitening.from_tensors(beside.tensors)
        values = {f.name: getattr(run.state, f.name) for f in dataclasses.fields(run.state)}
        stopped = {"stopped_at": run.state.step} if run.stopped else {}
        made_on = {"made_on": list(run.machines)}
        return cls(
            **_parts(values, beside, whitening),
            iterates=run.iterates,
            history=run.history,
            provenance=identity | beside.meta["data"] | made_on | stopped,
        )

    @classmethod
    def from_tensors(
        cls,
        images: Tensor,
        labels: Tensor,
        alpha: float | Tensor,
        data: ImageData,
        *,
        network: NetworkConfig | None = None,
        raw: bool = False,
        loss: str | None = None,
    ) -> "DistilledDataset":
        """Make a set of images, labels and a learning rate from anywhere.

        - images: (N, C, H, W), preprocessed as `data` is, or raw ones. Whole numbers are raw.
        - labels: classes (N,), or soft labels (N, classes).
        - alpha: the learning rate to train with, positive.
        - data: what the set stands for. It gives the preprocessing and the names of the classes.
        - network: to train on it. Default: the ConvNet.
        - raw: whether the images are pixels, uint8 or floats in [0, 1], yet to be preprocessed.
          Learned pixels may leave [0, 1] a little.
        - loss: see the field `loss`.

        Raises Error for shapes, types and values that do not fit.

        >>> import ddpp
        >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
        >>> real = data.draw(ipc=1, seed=0)
        >>> ddpp.DistilledDataset.from_tensors(*real, 0.02, data)
        10 distilled images of 10 classes, 3x32x32; alpha 0.0200
        """
        raw = raw or not images.is_floating_point()
        if images.dtype == torch.uint8:
            images = images.float() / 255
        images = images.detach().to(data.device, torch.float32).contiguous()
        if raw:
            images = data.whitening.apply(_checked_pixels(images))
        return cls(
            images=images,
            labels=labels.to(data.device),
            alpha=torch.as_tensor(alpha, dtype=torch.float32).to(data.device),
            whitening=data.whitening,
            classes=data.classes,
            network=dataclasses.asdict(network or NetworkConfig()),
            provenance=dict(data.provenance),
            loss=loss,
        )

    def __repr__(self) -> str:
        shape, alpha = "x".join(map(str, self.images.shape[1:])), float(self.alpha)
        kind = f"{len(self)} distilled images of {len(self.classes)} classes, {shape}"
        if self.formation > 1:
            kind += f", each of {self.formation**2} pictures"
        return f"{kind}; alpha {alpha:.4f}"

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        if self.formation > 1:
            raise Error(
                f"each image of this set holds {self.formation**2} pictures, and networks train on "
                "those: take unfolded() of the set"
            )
        label = self.labels[index]
        return self.images[index], label if self.labels.is_floating_point() else int(label)

    @property
    def ipc(self) -> int:
        """The number of images per class, rounded up where classes differ."""
        return -(-len(self.images) // len(self.classes))

    @property
    def hard_labels(self) -> Tensor:
        """The class of each image, (N,): its label, or the largest entry of its soft label."""
        return self.labels.argmax(1) if self.labels.is_floating_point() else self.labels

    def by_class(self) -> list[list[int]]:
        """List, for each class, the indices of its images in their order."""
        members: list[list[int]] = [[] for _ in self.classes]
        for i, label in enumerate(self.hard_labels.tolist()):
            members[label].append(i)
        return members

    def unfolded(self) -> "DistilledDataset":
        """Return a set of the pictures in the images, enlarged: N formation^2 of the same size.

        A set whose images are pictures themselves is returned as it is.
        """
        n = self.formation
        if n == 1:
            return self
        iterates = self.iterates.items()
        return dataclasses.replace(
            self,
            images=unfold(self.images, n),
            labels=self.labels.repeat_interleave(n * n, dim=0),
            iterates={step: (unfold(images, n), alpha) for step, (images, alpha) in iterates},
            formation=1,
            state={},
        )

    def at(self, step: int) -> "DistilledDataset":
        """Return the set as it was after a distillation step, as of a run that was stopped there.

        - step: one of `iterates`, else Error. Step 0 has the real images at the start.

        No run can resume from an earlier step than the last one, as what the next step would read
        is not kept. Learned labels stay those of the last step.

        >>> import ddpp, torch
        >>> from ddpp.data.whitening import fit_channels
        >>> images, alpha = torch.rand(2, 1, 8, 8), torch.tensor(0.01)
        >>> distilled = ddpp.DistilledDataset(
        ...     images=images, labels=torch.tensor([0, 1]), alpha=alpha,
        ...     whitening=fit_channels(images), classes=("cat", "dog"),
        ...     network=ddpp.NetworkConfig(width=4, depth=2),
        ...     iterates={0: (torch.zeros(2, 1, 8, 8), alpha), 80: (images, alpha)},
        ... )
        >>> distilled.at(step=0).images.abs().max()
        tensor(0.)
        """
        if step not in self.iterates:
            raise Error(
                f"step {step} was not kept: the choices are {', '.join(map(str, self.iterates))}"
            )
        images, alpha = self.iterates[step]
        until = {at: iterate for at, iterate in self.iterates.items() if at <= step}
        then = dataclasses.replace(self, images=images, alpha=alpha, iterates=until)
        if step == max(self.iterates):
            return then
        return dataclasses.replace(
            then,
            history={name: column[:step] for name, column in self.history.items()},
            provenance=self.provenance | {"stopped_at": step},
            state={},
        )

    def to(self, device: torch.device | str) -> "DistilledDataset":
        """Move all tensors but the history to a device."""
        iterates = self.iterates.items()
        return dataclasses.replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            alpha=self.alpha.to(device),
            whitening=self.whitening.to(device),
            state={k: v.to(device) if isinstance(v, Tensor) else v for k, v in self.state.items()},
            iterates={step: (x.to(device), alpha.to(device)) for step, (x, alpha) in iterates},
        )

    def save(self, path: str | Path, compact: bool = False) -> None:
        """Write the set to one .safetensors file, all or nothing.

        - path: the file. An existing one is replaced. Raises Error if it cannot be written.
        - compact: whether the whitening matrix, nearly all of the bytes, is stored in half
          precision: 10 instead of 38 MB for images of 3 x 32 x 32. Images and alpha stay exact.

        Equal sets give equal bytes: the file contains no time of day.

        >>> import ddpp, torch
        >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
        >>> real, network = data.draw(ipc=1, seed=0), ddpp.NetworkConfig(width=8)
        >>> distilled = ddpp.DistilledDataset(
        ...     *real, torch.tensor(0.01), data.whitening, data.classes, network
        ... )
        >>> distilled.save("real.safetensors")
        >>> torch.equal(ddpp.DistilledDataset.load("real.safetensors").images, real.images)
        True
        """
        tensors = {"images": self.images, "labels": self.labels, "alpha": self.alpha}
        tensors |= self.whitening.compact_tensors() if compact else self.whitening.tensors()
        tensors |= pack(self.iterates, self.history)
        meta = {
            "classes": list(self.classes),
            "network": self.network,
            "provenance": self.provenance,
        }
        state, numbers = state_parts(self)
        files.write(path, KIND, tensors | state, meta | how_to_read(self) | numbers)

    def save_checkpoint(self, path: str | Path, identity: dict) -> None:
        """Write a finished set as the checkpoint of its run, which can then be given more steps.

        - path: the file.
        - identity: of the run.

        Raises Error for a set without `state`, as earlier versions wrote them.
        """
        if not self.state:
            raise Error(
                "this set does not hold what its next step needs: it was not made by a run, it is "
                "an earlier step of one, or an earlier version of ddpp made it. Run all steps "
                "anew, into another output"
            )
        about = {"data": {"data": self.provenance["data"]}, "network": self.network}
        meta = {k: v for k, v in self.state.items() if not isinstance(v, Tensor)}
        meta |= {"identity": identity, "made_on": self.provenance["made_on"]}
        about |= {"formation": self.formation} if self.formation > 1 else {}
        meta |= {"set": about | {"classes": list(self.classes)}}
        tensors = {k: v for k, v in self.state.items() if isinstance(v, Tensor)}
        tensors |= {"images": self.images, "labels": self.labels, "alpha": self.alpha}
        tensors |= self.whitening.tensors() | pack(self.iterates, self.history)
        files.write(path, CHECKPOINT, tensors, meta)

    @staticmethod
    def load(path: str | Path) -> "DistilledDataset":
        """Read a set from a file written by `save`, or the current set from a checkpoint.

        - path: the file. Raises Error if it is missing, damaged or of another kind.

        Every byte is checked. Tensors are on the CPU, see `to`.

        >>> import ddpp, torch
        >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
        >>> real, network = data.draw(ipc=1, seed=0), ddpp.NetworkConfig(width=8)
        >>> distilled = ddpp.DistilledDataset(
        ...     *real, torch.tensor(0.01), data.whitening, data.classes, network
        ... )
        >>> distilled.save("real.safetensors")
        >>> ddpp.DistilledDataset.load("real.safetensors")
        10 distilled images of 10 classes, 3x32x32; alpha 0.0100
        """
        file = files.Lazy(path, KIND, CHECKPOINT)
        tensors, meta = dict(file), file.meta
        if file.kind == CHECKPOINT:
            return _from_checkpoint(tensors, meta, path)
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
            formation=meta.get("formation", 1),
            state=state_in(tensors, meta),
        )

    def natural(self) -> Tensor:
        """Undo the preprocessing: the images in natural colours, (N, C, H, W), clamped to [0, 1].

        >>> import ddpp, torch
        >>> from ddpp.data.whitening import fit_channels
        >>> colours = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> whitening, labels = fit_channels(colours), torch.tensor([0, 1])
        >>> distilled = ddpp.DistilledDataset(
        ...     whitening.apply(colours), labels, torch.tensor(0.01), whitening, ("cat", "dog"), {}
        ... )
        >>> torch.allclose(distilled.natural(), colours, atol=1e-6)
        True
        """
        return self.whitening.invert(self.images).clamp(0, 1).cpu()

    def picture(self, zoom: int = 3) -> Image.Image:
        """Draw all images in natural colours as one picture.

        - zoom: side of an image's pixel, in pixels of the picture. White lines are as wide.

        The order is the first image of every class, the second of every class, and so on. A row has
        as many images as there are classes, at most 20.

        >>> import ddpp, torch
        >>> from ddpp.data.whitening import fit_channels
        >>> images, labels = torch.rand(4, 3, 8, 8), torch.tensor([0, 0, 1, 1])
        >>> distilled = ddpp.DistilledDataset(
        ...     images, labels, torch.tensor(0.01), fit_channels(images), ("cat", "dog"), {}
        ... )
        >>> distilled.picture(zoom=1).size  # (width, height)
        (19, 19)
        """
        ranks = zip_longest(*self.by_class())
        by_rank = [i for rank in ranks for i in rank if i is not None]
        big = self.natural()[by_rank].repeat_interleave(zoom, 2).repeat_interleave(zoom, 3)
        return _pil(_grid(big, columns=min(len(self.classes), 20), line=zoom))

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()

    def export_png(self, folder: str | Path) -> int:
        """Write every image in natural colours as FOLDER/LABEL_CLASS/INDEX.png.

        - folder: made if it is missing. Raises Error if it cannot be written.

        Returns the number of images.
        """
        images = self.natural()
        for label, members in enumerate(self.by_class()):
            name = as_folder(self.classes[label])
            for rank, i in enumerate(members):
                path = Path(folder) / f"{label}_{name}" / f"{rank:03d}.png"
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    _pil(images[i]).save(path)
                except OSError as e:
                    raise Error(f"cannot write {path}: {e.strerror}; choose another folder") from e
        return len(self)


def as_folder(name: str) -> str:
    """Write the name of a class as a folder may be called."""
    return re.sub(r"[^\w.-]", "_", name)


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

    They stand in the order of rows. Source: multi-formation (Kim et al., ICML 2022).

    >>> import torch
    >>> from ddpp.distilled import fold, unfold
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


def beside(data: ImageData, labels: Tensor, network: NetworkConfig, formation: int = 1) -> Beside:
    """Return what belongs to a set and does not change in its run.

    - data: what is distilled.
    - labels: (N,), of the images.
    - network: of the run.
    - formation: of the set.
    """
    tensors = {"labels": labels} | data.whitening.tensors()
    meta = {"classes": list(data.classes), "network": dataclasses.asdict(network)}
    meta |= {"formation": formation} if formation > 1 else {}
    return Beside(tensors, meta | {"data": data.provenance})


def _parts(values: dict, beside: Beside, whitening: Whitening) -> dict[str, Any]:
    """Return what a set is made of, from the values of a state and what belongs beside it."""
    own = {"images", "labels", "alpha"}
    labels = values.get("labels", beside.tensors["labels"])
    loss = SQUARED_ERROR if labels.is_floating_point() else None
    if (logits := values.get("logits")) is not None:
        labels, loss = logits.softmax(1), CROSS_ENTROPY
    return {
        "images": values["images"],
        "labels": labels,
        "loss": loss,
        "alpha": values["alpha"],
        "whitening": whitening,
        "classes": tuple(beside.meta["classes"]),
        "network": beside.meta["network"],
        "formation": beside.meta.get("formation", 1),
        "state": {k: v for k, v in values.items() if k not in own and v is not None},
    }


def _from_checkpoint(tensors: dict, meta: dict, path: str | Path) -> DistilledDataset:
    """Make the set of a checkpoint, as it stands."""
    if "set" not in meta:
        raise Error(
            f"{path} is a checkpoint that does not say what its images are: it is of an earlier "
            "version of ddpp, or of a choice of real images. Resume its run for a step first"
        )
    about, whitening = Beside(tensors, meta["set"]), Whitening.from_tensors(tensors)
    iterates, history = unpack(tensors)
    now = meta["step"]
    values = {k: v for k, v in tensors.items() if "." not in k and k not in whitening.tensors()}
    values |= {k: v for k, v in meta.items() if k not in ("identity", "made_on", "set")}
    provenance = meta["identity"] | about.meta["data"] | {"made_on": meta["made_on"]}
    return DistilledDataset(
        **_parts(values, about, whitening),
        iterates=iterates | {now: (values["images"], values["alpha"])},
        history={name: column[:now] for name, column in history.items()},
        provenance=provenance | {"stopped_at": now},
    )


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
        raise Error("the images hold values that are not finite: the run has no result")
    if images.shape[1:] != whitening.mean.shape:
        raise Error(
            f"the images are {tuple(images.shape[1:])}, but the preprocessing is for "
            f"{tuple(whitening.mean.shape)}: give the whitening of the data that the images "
            "belong to"
        )


def _checked_pixels(images: Tensor) -> Tensor:
    if images.numel() and (high := float(images.max())) > BRIGHTEST:
        raise Error(
            f"the raw images go up to {high:g}: give floats from 0 to 1, or bytes from 0 to 255 as "
            "uint8"
        )
    return images


def _check_labels(
    labels: Tensor, images: Tensor, classes: tuple[str, ...], loss: str | None
) -> str:
    """Choose the loss that goes with the labels, or raise an Error if the labels cannot be used."""
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
            f"the labels {what}: for {n} images of {soft[1]} classes give (N,) = ({n},), or "
            "(N, classes)"
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


def _check_alpha(alpha: Tensor, name: str) -> None:
    if not isinstance(alpha, Tensor) or alpha.numel() != 1 or not 0 < float(alpha) < float("inf"):
        raise Error(
            f"{name} is {alpha}: it must be one positive number, the learning rate to train with"
        )


def how_to_read(distilled: DistilledDataset) -> dict:
    """Name for a file what its images and labels mean, where it is not the usual."""
    meta: dict[str, Any] = {"loss": distilled.loss} if distilled.labels.is_floating_point() else {}
    return meta | ({"formation": distilled.formation} if distilled.formation > 1 else {})


def state_parts(distilled: DistilledDataset) -> tuple[dict[str, Tensor], dict]:
    """Name the tensors of a set's state for a file, and its numbers for the metadata."""
    state = distilled.state.items()
    numbers = {name: value for name, value in state if not isinstance(value, Tensor)}
    tensors = {f"state.{name}": value for name, value in state if isinstance(value, Tensor)}
    return tensors, {"state": numbers} if numbers else {}


def state_in(tensors: dict[str, Tensor], meta: dict) -> dict[str, Tensor | int]:
    """Read the state that `state_parts` named. It is empty in files of earlier versions."""
    named = {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}
    return named | meta.get("state", {})


def loss_in(tensors: dict[str, Tensor], meta: dict) -> str:
    """Read the loss that goes with a file's labels.

    The first files did not name it. Their learned labels are all targets of regressions.
    """
    learned = tensors["labels"].is_floating_point()
    return meta.get("loss", SQUARED_ERROR if learned else CROSS_ENTROPY)


def _grid(images: Tensor, columns: int, line: int) -> Tensor:
    """Lay images (N, C, H, W) in rows with white lines around each. A single image gets none.

    Grey images become RGB.
    """
    images = images.expand(-1, 3, -1, -1) if images.shape[1] == 1 else images
    n, channels, height, width = images.shape
    if n == 1:
        return images[0]
    columns = min(columns, n)
    rows = -(-n // columns)
    tall, wide = height + line, width + line
    grid = images.new_ones(channels, rows * tall + line, columns * wide + line)
    for i, image in enumerate(images):
        top, left = i // columns * tall + line, i % columns * wide + line
        grid[:, top : top + height, left : left + width] = image
    return grid


def _pil(image: Tensor) -> Image.Image:
    """Make a PIL image of (C, H, W) in [0, 1]: grey, RGB, or the first three channels."""
    pixels = (image[:3] if len(image) >= 3 else image[:1]).mul(255).round().byte()
    return Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy().squeeze()))
