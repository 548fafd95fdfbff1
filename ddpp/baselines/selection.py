"""Sets of real images, which a distilled set has to beat: drawn at random, or chosen with a trained
network's help.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.data import ImageData, Split
from ddpp.distilled import DistilledDataset
from ddpp.foundation import files, loop
from ddpp.foundation.errors import Error
from ddpp.foundation.identity import of_run
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.teachers import Teachers

LEARNING_RATE = 0.01  # the field's rate for training on a set that does not bring its own alpha
BATCH = 500  # images at a time through a network


@dataclass(frozen=True)
class SelectionConfig:
    """The settings of Herding and Forgetting."""

    ipc: int = 1  # images per class
    epochs: int = 10  # of the network (the first teacher) that says which images to choose
    seed: int = 0

    @property
    def teacher_epochs(self) -> int:
        return self.epochs


def random(data: ImageData, ipc: int, network: dict, seed: int = 0) -> DistilledDataset:
    """`ipc` random real training images per class; with the same seed, those that distillation
    starts from.
    """
    return _set(
        data,
        data.draw(ipc, seed),
        network,
        {"method": "random real images", "ipc": ipc, "seed": seed},
    )


def herding(data: ImageData, teachers: Teachers, config: SelectionConfig) -> DistilledDataset:
    """The images whose mean stays closest to the mean of their class (Welling, 2009; Chen et al.,
    2010), in features
    of a network that was trained on the data."""
    check_config(config)
    theta = teachers.snapshot(0, config.epochs)
    with torch.no_grad():
        features = torch.cat(
            [teachers.network.features(theta, x) for x in data.train.images.split(BATCH)]
        )
    chosen = _select(data, config, lambda members: herd(features[members], config.ipc))
    return _set(data, chosen, asdict(teachers.config.network), {"method": "herding"})


def forgetting(
    data: ImageData, teachers: Teachers, config: SelectionConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """The images that a network in training forgets most often (Toneva et al., ICLR 2019); those
    that it never learns
    count as forgotten more often than all others, ties are broken at random.

    Forgetting is looked for once per epoch, on all images as they are, and not when an image is in
    a batch. Each look is saved, so that a stopped call goes on with the next one.
    """
    check_config(config)
    history = _looks(data, teachers, config, saving)
    order = torch.randperm(history.shape[1], generator=generator(config.seed, "ties")).to(
        data.device
    )

    def most(members: Tensor) -> Tensor:
        events = forgetting_events(history[:, members])
        return (events * len(order) + order[members]).argsort(descending=True)[: config.ipc]

    chosen = _select(data, config, most)
    return _set(data, chosen, asdict(teachers.config.network), {"method": "forgetting"})


def herd(features: Tensor, n: int) -> Tensor:
    """Indices (n,) of the rows of features (N, d) that, taken one after the other, bring their mean
    closest to that of
    all rows."""
    mean, total, chosen = features.mean(0), torch.zeros_like(features[0]), []
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for k in range(1, n + 1):
        distance = ((total + features) / k - mean).square().sum(1)
        best = int(distance.masked_fill(~free, torch.inf).argmin())
        free[best] = False
        total = total + features[best]
        chosen.append(best)
    return torch.tensor(chosen, device=features.device)


def forgetting_events(history: Tensor) -> Tensor:
    """How often each image was right at one look and wrong at the next; history (looks, N), bool,
    True where right.
    Images that were never right have `looks` events, more than any other can."""
    events = (history[:-1] & ~history[1:]).sum(0)
    return torch.where(history.any(0), events, len(history))


def check_config(config: SelectionConfig) -> None:
    """Raise an Error for settings that cannot work."""
    for name in ("ipc", "epochs"):
        if getattr(config, name) < 1:
            raise Error(f"{name} is {getattr(config, name)}: it must be at least 1")


def _looks(data: ImageData, teachers: Teachers, config: SelectionConfig, saving: Saving) -> Tensor:
    """Which training images the first teacher classifies rightly after each of its epochs: (epochs,
    N).
    """
    path, looks = saving.checkpoint, []
    made_from, network = teachers.config.made_from(data), teachers.config.network.name
    identity = of_run("forgetting", config, made_from, network)
    if path is not None and Path(path).exists():
        tensors, _ = loop.read_checkpoint(path, identity)
        looks = list(tensors["looks"].to(data.device))
    with tqdm(
        total=config.epochs, initial=len(looks), desc="look", disable=not saving.progress
    ) as bar:
        while len(looks) < config.epochs:
            looks.append(_correct(data, teachers, len(looks) + 1))
            bar.update()
            if path is not None:
                files.write(path, loop.KIND, {"looks": torch.stack(looks)}, {"identity": identity})
    return torch.stack(looks)


def _correct(data: ImageData, teachers: Teachers, epoch: int) -> Tensor:
    """Which training images (N,) the first teacher classifies rightly after so many epochs."""
    theta = teachers.snapshot(0, epoch)
    with torch.no_grad():
        parts = zip(data.train.images.split(BATCH), data.train.labels.split(BATCH), strict=True)
        return torch.cat([teachers.network(theta, x).argmax(1) == y for x, y in parts])


def _select(data: ImageData, config: SelectionConfig, best: Callable[[Tensor], Tensor]) -> Split:
    """config.ipc images of each class: of the indices (n,) of its training images, those that
    `best` points at.
    """
    data.draw(config.ipc, config.seed)  # says so where a class has too few
    chosen = []
    for label in range(len(data.classes)):
        members = (data.train.labels == label).nonzero().flatten()
        chosen.append(members[best(members)])
    index = torch.cat(chosen)
    return Split(data.train.images[index], data.train.labels[index])


def _set(data: ImageData, chosen: Split, network: dict, provenance: dict) -> DistilledDataset:
    """Real images as a set to train on."""
    return DistilledDataset(
        images=chosen.images,
        labels=chosen.labels,
        alpha=torch.tensor(LEARNING_RATE, dtype=torch.float32, device=data.device),
        whitening=data.whitening,
        classes=data.classes,
        network=network,
        provenance=data.provenance | provenance,
    )
