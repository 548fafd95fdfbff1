"""Stage A: train teachers on the original data and keep their snapshots theta_0, theta_1, ..., one
per epoch.

Plain SGD, so that epoch e + 1 is a function of snapshot e and of the seed: a stopped teacher goes
on from its last snapshot to the same bits, and a stored teacher can be given more epochs later.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.data import ImageData
from ddpp.data.augmentation import augment, draw
from ddpp.foundation import files, processes
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import marks
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig

KIND = "teacher"
SAVE_SECONDS = 30  # a teacher in training is saved at the first end of an epoch after so long


@dataclass(frozen=True)
class TeacherConfig:
    """How teachers are trained; defaults are MTT's, with the paper's number of teachers."""

    count: int = 200  # N
    epochs: int = 50  # the paper's I; only epochs up to I+ - 1 + K are ever used
    lr: float = 0.01  # plain SGD: no momentum, no weight decay, no schedule
    batch: int = 256  # images per update
    augment: bool = True  # the differentiable augmentation A
    seed: int = 0
    network: NetworkConfig = field(default_factory=NetworkConfig)

    def identity(self, data: ImageData) -> dict:
        """What makes a teacher what it is. Not count and epochs: more of either only adds to what
        is there.
        """
        own = {k: v for k, v in asdict(self).items() if k not in ("count", "epochs")} | {
            "data": data.identity
        }
        return own | marks(network=self.network.name, augmentation=self.augment)

    def made_from(self, data: ImageData) -> dict:
        """What a run with these teachers is made from, for its identity."""
        return {"teachers": self.identity(data), "teacher_count": self.count}


class Teachers:
    """Trained teachers. `snapshot(k, e)` is theta_e of teacher k as a vector (p,); e = 0 is the
    initialization.
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
    def epochs(self) -> int:
        """Epochs that every teacher has."""
        # epoch_0, then epoch_e and loss_e
        return min(len(trajectory) for trajectory in self.trajectories) // 2

    def snapshot(self, teacher: int, epoch: int) -> Tensor:
        """theta_epoch of one teacher, (p,), on the network's device; read from disk when asked
        for.
        """
        if not 0 <= epoch <= self.epochs:
            raise Error(
                f"epoch {epoch} is not stored: these teachers have epochs 0 to {self.epochs}; "
                "train them longer"
            )
        return self.trajectories[teacher][f"epoch_{epoch:03d}"].to(self.network.device)

    def train_loss(self) -> Tensor:
        """Mean training loss (teachers, epochs), augmentation included."""
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
    """Train `config.count` teachers for `config.epochs` epochs, or take what `folder` holds of them
    already.

    With a folder, each teacher is a file there, memory-mapped afterwards; a stopped call goes on
    where it was. Under torchrun every rank trains its share, into a folder that all ranks see.
    Raises Error for a file that is damaged or belongs to another configuration.
    """
    for name in ("count", "epochs", "batch"):
        if getattr(config, name) < 1:
            raise Error(f"the teachers' {name} is {getattr(config, name)}: it must be at least 1")
    if not config.lr > 0:
        raise Error(f"the teachers' lr is {config.lr}: it must be positive")
    if folder is None and processes.size() > 1:
        raise Error("several processes share their teachers through a folder: say which")
    network, identity = data.network(config.network), config.identity(data)
    paths = [
        None if folder is None else Path(folder) / f"teacher_{k:03d}.safetensors"
        for k in range(config.count)
    ]
    trained = {}
    mine = processes.share(config.count)
    bar = tqdm(
        total=len(mine) * config.epochs,
        desc="teachers",
        unit="epoch",
        disable=not progress or processes.rank() > 0,
    )
    with bar:
        # runs side by side share them:
        for k, wait in [(k, False) for k in mine] + [(k, True) for k in mine]:
            # first those that no other run is at, then the others' when they are done
            if k in trained:
                continue
            path = paths[k]
            if path:
                files.check_writable(path)
            with (
                contextlib.suppress(files.Busy),
                files.lock(path, wait) if path else contextlib.nullcontext(),
            ):
                trained[k] = _train(network, data, config, identity, k, path, bar)
    processes.wait()
    others = {
        k: _open(paths[k], _meta(identity, k)) for k in range(config.count) if k not in trained
    }
    if not all(others.values()):
        raise Error(
            f"the teachers of other processes are not in {folder}: all processes must see one "
            "folder"
        )
    trajectories = [(trained | others)[k] for k in range(config.count)]
    return Teachers(trajectories, identity, config, network)


def _meta(identity: dict, k: int) -> dict:
    return {"identity": identity, "teacher": k}


def _train(
    network: Flat,
    data: ImageData,
    config: TeacherConfig,
    identity: dict,
    k: int,
    path: Path | None,
    bar: tqdm,
) -> Mapping[str, Tensor]:
    """One teacher's snapshots and losses, from the file at `path` as far as it goes."""
    meta = _meta(identity, k)
    stored = _open(path, meta)
    done = len(stored) // 2
    bar.update(min(done, config.epochs))
    if done >= config.epochs:
        return stored

    trajectory = dict(stored) or {
        "epoch_000": network.initial(derive(config.seed, "teacher", k)).cpu()
    }
    theta = trajectory[f"epoch_{done:03d}"].to(network.device)
    saved = time.monotonic()
    try:
        for epoch in range(done + 1, config.epochs + 1):
            theta, loss = _epoch(
                network, theta, data, config, generator(config.seed, "teacher", k, epoch)
            )
            if not (torch.isfinite(loss) and torch.isfinite(theta).all()):
                raise Error(
                    f"teacher {k} diverged in epoch {epoch}: lower its learning rate (lr "
                    f"{config.lr})"
                )
            trajectory |= {
                f"epoch_{epoch:03d}": theta.cpu().clone(),
                f"loss_{epoch:03d}": loss.cpu(),
            }
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            if path and time.monotonic() - saved > SAVE_SECONDS:
                files.write(path, KIND, trajectory, meta)
                saved = time.monotonic()
    finally:  # finished, Ctrl-C, or an error: no whole epoch is lost
        if path and len(trajectory) > len(stored):
            files.write(path, KIND, trajectory, meta)
    return trajectory if path is None else files.Lazy(path, KIND)


def _open(path: Path | None, meta: dict) -> Mapping[str, Tensor]:
    if path is None or not path.exists():
        return {}
    stored = files.Lazy(path, KIND)
    if stored.meta != meta:
        raise Error(
            f"{path} belongs to a teacher of another configuration or data set "
            f"({differences(stored.meta, meta)}): "
            "choose another folder"
        )
    return stored


def _epoch(network, theta, data, config, rng) -> tuple[Tensor, Tensor]:
    """One pass over the training images in random order; returns the new parameters and the mean
    loss.
    """
    images, labels = data.train
    order = torch.randperm(len(labels), generator=rng).to(data.device)
    total = images.new_zeros(())
    theta = theta.clone()
    for index in order.split(config.batch):
        x = images[index]
        if config.augment:
            x = augment(x, draw(len(index), rng))
        loss = F.cross_entropy(network(theta.requires_grad_(), x), labels[index])
        (gradient,) = torch.autograd.grad(loss, theta)
        theta = theta.detach() - config.lr * gradient
        total += loss.detach() * len(index)
    return theta, total / len(labels)
