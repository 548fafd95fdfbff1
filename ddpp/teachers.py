"""Stage A: train teachers on the original data and store a snapshot of each epoch.

The optimizer is plain SGD, so that epoch e + 1 is a function of snapshot e and of the seed. So a
stopped teacher resumes from its last snapshot to the same bits, and a stored teacher can be given
more epochs later.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.data import ImageData
from ddpp.data.augmentation import (
    Augmentation,
    as_augmentation,
    augment,
    check_operations,
    draw_epoch,
)
from ddpp.foundation import files, processes
from ddpp.foundation.devices import check_training
from ddpp.foundation.errors import (
    Count,
    Error,
    NotNegative,
    Positive,
    check_bounds,
    check_kind,
    differences,
)
from ddpp.foundation.identity import as_in_files, marks, settings
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig

KIND = "teacher"
SAVE_SECONDS = 30  # after so long a teacher in training is saved, at the end of its epoch


@dataclass(frozen=True)
class TeacherConfig:
    """How teachers are trained. The defaults are MTT's, with the paper's number of teachers.

    A number that cannot work raises an Error.

    >>> import ddpp
    >>> ddpp.TeacherConfig(count=2, epochs=3, network=ddpp.NetworkConfig(width=32)).lr
    0.01
    """

    count: Count = 200  # N
    epochs: Count = 50  # the paper's I; only epochs up to I+ - 1 + K are ever used
    lr: Positive = 0.01  # plain SGD: no momentum, no weight decay, no schedule
    batch: Count = 256  # images per update
    augment: Augmentation = True  # A: all operations, none (False), or some: ("color", "crop")
    seed: int = 0  # of everything random in their training
    network: NetworkConfig = field(default_factory=NetworkConfig)
    # length of the step uphill before each update, so that trajectories are flat; 0: plain SGD
    rho: NotNegative = field(default=0.0, metadata={"since": 3})

    def __post_init__(self):
        check_bounds(self, "the teachers' ")
        if not isinstance(self.network, NetworkConfig):  # a name, or a class of one's own
            object.__setattr__(self, "network", NetworkConfig(self.network))
        object.__setattr__(self, "augment", as_augmentation(self.augment))

    def identity(self, data: ImageData) -> dict:
        """All that one teacher depends on. Not count and epochs: more of either only adds."""
        own = {k: v for k, v in settings(self).items() if k not in ("count", "epochs")}
        custom = marks(network=self.network.name, augmentation=self.augment)
        return as_in_files(own | {"data": data.identity} | custom)

    def made_from(self, data: ImageData) -> dict:
        """The identity's account of a run with these teachers."""
        return {"teachers": self.identity(data), "teacher_count": self.count}


class Teachers:
    """Trained teachers, made by `train_teachers`; `len` is their count.

    >>> import ddpp
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> config = ddpp.TeacherConfig(count=1, epochs=1, network=ddpp.NetworkConfig(width=1))
    >>> teachers = ddpp.train_teachers(data, config, progress=False)
    >>> teachers.snapshot(teacher=0, epoch=1).shape, teachers.train_loss().shape
    (torch.Size([224]), torch.Size([1, 1]))
    """

    def __init__(
        self,
        trajectories: list[Mapping[str, Tensor]],
        identity: dict,
        config: TeacherConfig,
        network: Flat,
    ):
        self.trajectories = trajectories
        self.identity = identity
        self.config = config
        self.network = network

    def __len__(self) -> int:
        return len(self.trajectories)

    @property
    def made_from(self) -> dict:
        """The identity's account of a run with these teachers."""
        return {"teachers": self.identity, "teacher_count": len(self)}

    @property
    def epochs(self) -> int:
        """The number of epochs that every teacher has."""
        # each holds epoch_000, then an epoch_e and a loss_e per epoch
        return min(len(trajectory) for trajectory in self.trajectories) // 2

    def snapshot(self, teacher: int, epoch: int) -> Tensor:
        """Read one teacher's parameters after an epoch, (p,), on the network's device.

        - teacher: index, from 0.
        - epoch: from 0, the initialization, to `epochs`.

        Raises Error for a teacher or an epoch that is not there.
        """
        if not 0 <= teacher < len(self):
            raise Error(f"teacher {teacher} is not there: choose 0 to {len(self) - 1}")
        if not 0 <= epoch <= self.epochs:
            raise Error(
                f"epoch {epoch} is not stored: these teachers have epochs 0 to {self.epochs}; "
                "train them longer"
            )
        stored = self.trajectories[teacher][f"epoch_{epoch:03d}"]
        return stored.to(self.network.device, copy=True)  # the caller's own, also to work in place

    def check_data(self, data: ImageData) -> None:
        """Raise an Error unless they were trained on these images."""
        if self.identity["data"] != data.identity:
            raise Error(
                "these teachers were trained on another data set or preprocessing: train teachers "
                "on this one"
            )

    def train_loss(self) -> Tensor:
        """Read the mean training loss of each epoch, (teachers, epochs), on augmented images."""
        names = [f"loss_{e:03d}" for e in range(1, self.epochs + 1)]
        return torch.stack(
            [torch.stack([trajectory[name] for name in names]) for trajectory in self.trajectories]
        )


def train_teachers(
    data: ImageData,
    config: TeacherConfig,
    folder: str | Path | None = None,
    *,
    progress: bool = True,
) -> Teachers:
    """Train teachers, or read those that a folder holds already, and train missing epochs only.

    - data: trained on data.train.
    - config: how many teachers, for how many epochs, and how.
    - folder: where each teacher is a file, memory-mapped afterwards. A stopped call resumes there.
      Default: teachers are kept in memory alone.
    - progress: whether a progress bar is shown.

    Raises Error for settings that cannot work, a teacher that diverges, and a file that is damaged
    or belongs to another configuration. Under torchrun every rank trains its share, into a folder
    that all ranks see. Source: the teacher trajectories of MTT (Cazenavette et al., CVPR 2022).

    >>> import ddpp
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> config = ddpp.TeacherConfig(count=1, epochs=1, network=ddpp.NetworkConfig(width=1))
    >>> teachers = ddpp.train_teachers(data, config, "teachers", progress=False)
    >>> len(teachers), teachers.epochs
    (1, 1)
    """
    check_kind("data", data, ImageData)
    check_kind("config", config, TeacherConfig)
    processes.check_joined()
    check_training()
    if folder is None and processes.size() > 1:
        raise Error("several processes share their teachers through a folder: say which")
    check_operations(config.augment, data.shape, data.device)
    network = data.network(config.network)
    network.check_batches(len(data.train.labels), config.batch)
    training = _Training(
        data,
        config,
        network=network,
        folder=None if folder is None else Path(folder),
        identity=config.identity(data),
    )
    trained = _train_share(training, progress)
    processes.wait()
    others = {k: training.stored(k) for k in range(config.count) if k not in trained}
    if not all(others.values()):
        raise Error(
            f"the teachers of other processes are not in {folder}: all processes must see one "
            "folder"
        )
    trajectories = [(trained | others)[k] for k in range(config.count)]
    return Teachers(trajectories, training.identity, config, training.network)


def read_snapshot(folder: str | Path, identity: dict, teacher: int, epoch: int) -> Tensor | None:
    """Read the parameters (p,) of one stored teacher after an epoch. None if they are not there, or
    if another teacher is.

    - folder: of `train_teachers`. Nothing is trained, and no other process is waited for.
    - identity: of the teachers, see `TeacherConfig.identity`.
    - teacher, epoch: as in `Teachers.snapshot`.
    """
    path = _path(Path(folder), teacher)
    if not files.exists(path):
        return None
    stored = files.Lazy(path, KIND)
    return stored.get(f"epoch_{epoch:03d}") if stored.meta == _meta(identity, teacher) else None


def _path(folder: Path, k: int) -> Path:
    """The file of teacher k."""
    return folder / f"teacher_{k:03d}.safetensors"


def _meta(identity: dict, k: int) -> dict:
    """The metadata of that file."""
    return {"identity": identity, "teacher": k}


@dataclass(frozen=True)
class _Training:
    """What all teachers of one call share."""

    data: ImageData
    config: TeacherConfig
    network: Flat
    folder: Path | None
    identity: dict

    def path(self, k: int) -> Path | None:
        """The file of teacher k."""
        return self.folder and _path(self.folder, k)

    def meta(self, k: int) -> dict:
        """The metadata of that file."""
        return _meta(self.identity, k)

    def stored(self, k: int) -> Mapping[str, Tensor]:
        """Open the file of teacher k. Empty if there is none. Raise Error if it is another's."""
        path, meta = self.path(k), self.meta(k)
        if path is None or not files.exists(path):
            return {}
        stored = files.Lazy(path, KIND)
        if stored.meta != meta:
            raise Error(
                f"{path} belongs to a teacher of another configuration or data set "
                f"({differences(stored.meta, meta)}): choose another folder"
            )
        return stored

    def finished(self, k: int) -> Mapping[str, Tensor] | None:
        """Open the file of teacher k, if it has all epochs."""
        stored = self.stored(k)
        return stored if len(stored) // 2 >= self.config.epochs else None


def _train_share(training: _Training, progress: bool) -> dict[int, Mapping[str, Tensor]]:
    """Train the teachers in this rank's share, by their index.

    Runs side by side divide the teachers: first those are trained that no other run is training,
    then, when the other run is done, the others are read or trained.
    """
    trained = {}
    mine = processes.share(training.config.count)
    total, quiet = len(mine) * training.config.epochs, not progress or processes.rank() > 0
    with tqdm(total=total, desc="teachers", unit="epoch", disable=quiet) as bar:
        for k, wait in [(k, False) for k in mine] + [(k, True) for k in mine]:
            if k in trained:
                continue
            if done := training.finished(k):  # also where nothing can be written
                trained[k] = done
                bar.update(training.config.epochs)
                continue
            path = training.path(k)
            if path:
                files.check_writable(path)
            with (
                contextlib.suppress(files.Busy),
                files.lock(path, wait) if path else contextlib.nullcontext(),
            ):
                trained[k] = _train(training, k, bar)
    return trained


def _train(training: _Training, k: int, bar: tqdm) -> Mapping[str, Tensor]:
    """Train teacher k from its last stored epoch on, and return its snapshots and losses."""
    config, network, path = training.config, training.network, training.path(k)
    stored = training.stored(k)
    known, done = len(stored), len(stored) // 2
    bar.update(min(done, config.epochs))
    if done >= config.epochs:
        return stored

    trajectory = {name: tensor.clone() for name, tensor in stored.items()}
    del stored  # an open file cannot be replaced on Windows
    trajectory = trajectory or {
        "epoch_000": network.initial(derive(config.seed, "teacher", k)).cpu()
    }
    theta = trajectory[f"epoch_{done:03d}"].to(network.device)
    saved = time.monotonic()
    try:
        for epoch in range(done + 1, config.epochs + 1):
            rng = generator(config.seed, "teacher", k, epoch)
            theta, loss = one_epoch(network, theta, training.data, config, rng)
            if not (torch.isfinite(loss) and torch.isfinite(theta).all()):
                raise Error(
                    f"teacher {k} diverged in epoch {epoch}: lower its learning rate (lr "
                    f"{config.lr})"
                )
            trajectory[f"epoch_{epoch:03d}"] = theta.cpu().clone()
            trajectory[f"loss_{epoch:03d}"] = loss.cpu()
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            if path and time.monotonic() - saved > SAVE_SECONDS:
                files.write(path, KIND, trajectory, training.meta(k))
                saved = time.monotonic()
    finally:  # finished, Ctrl-C, or an error: no whole epoch is lost
        if path and len(trajectory) > known:
            files.write(path, KIND, trajectory, training.meta(k))
    return trajectory if path is None else files.Lazy(path, KIND)


def one_epoch(
    network: Flat, theta: Tensor, data: ImageData, config: TeacherConfig, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Train for one epoch: pass over the training images in random order.

    Returns the new parameters (p,) and the mean loss.
    """
    images, labels = data.train
    order = torch.randperm(len(labels), generator=rng).to(data.device)
    total = images.new_zeros(())
    batches = order.split(config.batch)
    draws = draw_epoch(batches, rng, config.augment, images)
    for index, how in zip(batches, draws, strict=True):
        x, y = images[index], labels[index]
        if how:
            x = augment(x, how)
        loss, gradient = slope(network, theta, x, y)
        if config.rho:
            gradient = uphill(network, theta, gradient, config.rho, x, y)
        theta = theta - config.lr * gradient
        total += loss * len(index)
    return theta, total / len(labels)


def slope(network: Flat, theta: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Compute the cross-entropy of a batch, and its gradient (p,)."""
    theta = theta.detach().requires_grad_()
    loss = F.cross_entropy(network(theta, x), y)
    return loss.detach(), torch.autograd.grad(loss, theta)[0]


def uphill(
    network: Flat, theta: Tensor, gradient: Tensor, rho: float, x: Tensor, y: Tensor
) -> Tensor:
    """Compute the gradient (p,) at theta + rho g / |g|, where g is the gradient at theta.

    So flat minima are found, from which a student's errors lead less far. Source: sharpness-aware
    minimization (Foret et al., ICLR 2021), as FTD (Du et al., CVPR 2023) trains its teachers, with
    rho = 0.01. Its variant also follows a part of g, which is left out here.
    """
    up = theta + rho * gradient / (gradient.norm() + 1e-12)  # g may be 0
    return slope(network, up, x, y)[1]
