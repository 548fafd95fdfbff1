"""A distilled dataset: the result of stage C, in one file with all that training on it needs."""

import dataclasses
import warnings
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ddpp.data import ImageData
from ddpp.data.sources import warn_of_darkness
from ddpp.data.whitening import Whitening
from ddpp.distilled.checks import check_alpha, check_images, check_labels, checked_pixels
from ddpp.distilled.format import beside_of, contents, from_file, in_file, parts_in, parts_of
from ddpp.distilled.formation import check_formation, unfold
from ddpp.distilled.pictures import as_folder, grid, pil, shows
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.loop import CHECKPOINT, Beside, Run, run_in, state_of, write_checkpoint
from ddpp.networks import NetworkConfig

KIND = "distilled dataset"


@dataclass(repr=False, eq=False)
class DistilledDataset(Dataset):
    """Distilled images with all that belongs to them.

    As a torch Dataset it yields pairs (image, label), preprocessed. A DataLoader with workers needs
    them on the CPU: give it `to("cpu")` of a set made on a GPU. `distill` and `load` make one.
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
    # {step: (images, alpha)}, from step 0, where the images started, to the final step
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
        if isinstance(self.alpha, (int, float, np.number)):
            self.alpha = torch.tensor(float(self.alpha), dtype=torch.float32)
        if dataclasses.is_dataclass(self.network):
            self.network = dataclasses.asdict(self.network)
        check_images(self.images, self.whitening)
        check_formation(self.formation, self.images)
        self.loss = check_labels(self.labels, self.images, self.classes, self.loss)
        check_alpha(self.alpha, "alpha")
        for step, (images, alpha) in self.iterates.items():
            if images.shape != self.images.shape or not images.isfinite().all():
                raise Error(
                    f"the images of step {step} have another shape than the last ones, or are "
                    "not all finite: leave this iterate out"
                )
            check_alpha(alpha, f"the alpha of step {step}")

    @classmethod
    def from_run(cls, run: Run, beside: Beside, identity: dict) -> "DistilledDataset":
        """Make the set from a run.

        - run: finished, or stopped on its way.
        - beside: what belongs to the set and not to the run, see `beside`.
        - identity: of the run.
        """
        return cls(**parts_of(run, beside, identity))

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
        if not isinstance(images, Tensor) or not isinstance(labels, Tensor):
            raise Error("images and labels must be tensors: make some with torch.from_numpy")
        raw = raw or not images.is_floating_point()
        if images.dtype == torch.uint8:
            if images.numel():
                low, high = int(images.min()), int(images.max())
                warn_of_darkness("the set goes", low, high, stacklevel=3)
            images = images.float() / 255
        images = images.detach().to(data.device, torch.float32, copy=True).contiguous()
        if raw:
            images = data.whitening.apply(checked_pixels(images))
        elif images.numel() and images.min() >= 0 and images.max() <= 1:
            warnings.warn(
                "all values of the images are in 0 to 1, as of raw pixels, and are taken as "
                "preprocessed: if they are raw, give raw=True",
                stacklevel=2,
            )
        return cls(
            images=images,
            labels=labels.detach().to(data.device, copy=True),
            alpha=torch.as_tensor(alpha, dtype=torch.float32).detach().to(data.device, copy=True),
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

        - step: one of `iterates`, else Error. Step 0 has the images at the start.

        No run can resume from an earlier step than the last one, as what the next step would read
        is not kept. Learned labels stay as they are after the last step.

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
        tensors, meta = contents(self)
        tensors |= self.whitening.compact_tensors() if compact else self.whitening.tensors()
        network = in_file(self.network, self.provenance)
        files.write(path, KIND, tensors, meta | {"classes": list(self.classes), "network": network})

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
        state = state_of(self.state | {"images": self.images, "alpha": self.alpha})
        run = Run(state, self.iterates, self.history, tuple(self.provenance["made_on"]))
        write_checkpoint(path, run, identity, beside_of(self))

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
        return DistilledDataset(
            **parts_in(tensors, meta),
            whitening=Whitening.from_tensors(tensors),
            classes=meta["classes"],
            network=from_file(meta["network"], meta["provenance"]),
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
        one image of each class, but at most 20.

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
        return pil(grid(big, columns=min(len(self.classes), 20), line=zoom))

    def _repr_png_(self) -> bytes | None:
        return self.picture()._repr_png_()

    def export_png(self, folder: str | Path) -> int:
        """Write every image in natural colours as FOLDER/LABEL_CLASS/INDEX.png.

        - folder: made if it is missing. Raises Error if it cannot be written, or holds pictures of
          something else.

        Returns the number of images. Where an image holds several pictures, they are enlarged, as
        networks train on them.
        """
        if self.formation > 1:
            return self.unfolded().export_png(folder)
        images, classes = self.natural(), self.by_class()
        digits = max(3, len(str(max(map(len, classes)) - 1)))  # so that names sort as numbers do
        pictures = {
            Path(folder) / f"{label}_{as_folder(self.classes[label])}" / f"{rank:0{digits}d}.png": (
                pil(images[i])
            )
            for label, members in enumerate(classes)
            for rank, i in enumerate(members)
        }
        there = sorted(Path(folder).glob("*/*.png"))
        if other := next((path for path in there if not shows(path, pictures.get(path))), None):
            raise Error(
                f"{folder} has pictures of something else, such as {other}, which would be "
                "taken for this set's or replaced: choose another folder, or move them away"
            )
        for path, picture in pictures.items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                picture.save(path)
            except OSError as e:
                raise Error(f"cannot write {path}: {e.strerror}; choose another folder") from e
        return len(self)


def _from_checkpoint(tensors: dict, meta: dict, path: str | Path) -> DistilledDataset:
    """Make the set of a checkpoint, as it stands."""
    if "set" not in meta:
        raise Error(
            f"{path} is a checkpoint that does not say what its images are: it is of an earlier "
            "version of ddpp, or of a choice of real images. Resume its run for a step first"
        )
    run, beside = run_in(tensors, meta).stop(), Beside(tensors, meta["set"])
    return DistilledDataset.from_run(run, beside, meta["identity"])
