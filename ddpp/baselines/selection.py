"""Sets of real images that a distilled set has to beat: random, or chosen by a trained network."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.data import ImageData, Split
from ddpp.distilled import DistilledDataset
from ddpp.foundation import files, loop
from ddpp.foundation.errors import Count, as_whole, check_bounds
from ddpp.foundation.identity import of_run
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig, in_batches
from ddpp.teachers import Teachers

LEARNING_RATE = 0.01  # the field's rate for training on a set that does not bring its own alpha


@dataclass(frozen=True)
class SelectionConfig:
    """The settings of Herding and Forgetting."""

    ipc: Count = 1  # images per class
    epochs: Count = 10  # of the network (the first teacher) that says which images to choose
    # of everything random in the choice; ddpp distill takes it for the evaluation, too
    seed: int = 0

    def __post_init__(self):
        check_bounds(self)

    @property
    def teacher_epochs(self) -> int:
        """The last epoch of the teachers that is used."""
        return self.epochs


def random(
    data: ImageData, ipc: int | Sequence[int], network: dict, seed: int = 0
) -> DistilledDataset:
    """Draw `ipc` random real training images per class.

    - data: the images to draw from, preprocessed.
    - ipc: images per class, or one number for each class.
    - network: what to train on the set, the fields of a NetworkConfig. Missing ones have their
      defaults.
    - seed: of the draw. With the seed of a run that starts from real images, one picture in each,
      they are these images.

    Raises Error for a class with too few images.

    >>> import ddpp
    >>> from ddpp.baselines import selection
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> selection.random(data, ipc=2, network={"width": 32}).images.shape
    torch.Size([20, 3, 32, 32])
    """
    seed = as_whole(seed, "the seed")
    ipc = ipc if isinstance(ipc, Sequence) else as_whole(ipc, "the images per class")
    made = {"method": "random real images", "ipc": ipc, "seed": seed}
    return _set(data, data.draw(ipc, seed), network, made)


def choose_random(
    data: ImageData, network: NetworkConfig, config: SelectionConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Choose random images, as a method with settings."""
    return random(data, config.ipc, asdict(network), config.seed)


def herding(
    data: ImageData, teachers: Teachers, config: SelectionConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Choose images whose mean feature stays closest to the mean of their class.

    - data: the images to choose from, preprocessed.
    - teachers: trained on them. The features come from the first teacher.
    - config: images per class, and the teacher's epoch.
    - saving: not used, as nothing is saved on the way.

    Source: Welling, 2009; Chen et al., 2010.
    """
    teachers.check_data(data)
    theta = teachers.snapshot(0, config.epochs)
    network = teachers.network
    features = in_batches(network, lambda x: network.features(theta, x), data.train.images)
    chosen = _select(data, config, lambda members: herd(features[members], config.ipc))
    return _set(data, chosen, asdict(teachers.config.network), {"method": "herding"})


def forgetting(
    data: ImageData, teachers: Teachers, config: SelectionConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Choose the images that a network in training forgets most often.

    - data: the images to choose from, preprocessed.
    - teachers: trained on them. Only the first is used.
    - config: images per class, and the teacher's epochs.
    - saving: a checkpoint keeps each test, so that a stopped call resumes with the next one.

    Images that it never learns count as forgotten more often than all others. Ties are broken at
    random. Forgetting is tested once per epoch, on all images without augmentation, and not when an
    image is in a batch. Source: Toneva et al., ICLR 2019.
    """
    teachers.check_data(data)
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
    """Choose n rows of features, each so that the mean of the chosen is closest to that of all.

    - features: (N, d).
    - n: how many rows to choose.

    Returns their indices (n,). Source: Welling, 2009.

    >>> import torch
    >>> from ddpp.baselines import selection
    >>> selection.herd(torch.tensor([[0.0], [1.0], [5.0]]), n=2)
    tensor([1, 2])
    """
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
    """Count how often each image was right at one look and wrong at the next: (N,).

    - history: (looks, N), bool, True where right.

    Images that were never right have `looks` events, more than any other can. Source: Toneva et
    al., ICLR 2019.

    >>> import torch
    >>> from ddpp.baselines import selection
    >>> history = torch.tensor([[True, True, False], [False, True, False], [True, True, False]])
    >>> selection.forgetting_events(history)
    tensor([1, 0, 3])
    """
    events = (history[:-1] & ~history[1:]).sum(0)
    return torch.where(history.any(0), events, len(history))


def _looks(data: ImageData, teachers: Teachers, config: SelectionConfig, saving: Saving) -> Tensor:
    """Test which training images the first teacher gets right after each epoch: (epochs, N)."""
    path, looks = saving.checkpoint, []
    made_from, network = teachers.made_from, teachers.config.network.name
    identity = of_run("forgetting", config, made_from, network)
    if path is not None and Path(path).exists():
        tensors, _ = loop.read_checkpoint(path, identity, lasting=False)
        looks = list(tensors["looks"].to(data.device))
    with tqdm(
        total=config.epochs, initial=len(looks), desc="look", disable=not saving.progress
    ) as bar:
        while len(looks) < config.epochs:
            looks.append(_correct(data, teachers, len(looks) + 1))
            bar.update()
            if path is not None:
                done = {"looks": torch.stack(looks)}
                files.write(path, loop.CHECKPOINT, done, {"identity": identity})
    return torch.stack(looks)


def _correct(data: ImageData, teachers: Teachers, epoch: int) -> Tensor:
    """Test which training images (N,) the first teacher gets right after so many epochs."""
    theta, network, (images, labels) = teachers.snapshot(0, epoch), teachers.network, data.train
    return in_batches(network, lambda x: network(theta, x), images).argmax(1) == labels


def _select(data: ImageData, config: SelectionConfig, best: Callable[[Tensor], Tensor]) -> Split:
    """Take config.ipc images of each class: `best` picks among the indices (n,) of its images."""
    data.draw(config.ipc, config.seed)  # refuses a class with too few images
    chosen = []
    for label in range(len(data.classes)):
        members = (data.train.labels == label).nonzero().flatten()
        chosen.append(members[best(members)])
    index = torch.cat(chosen)
    return Split(data.train.images[index], data.train.labels[index])


def _set(data: ImageData, chosen: Split, network: dict, provenance: dict) -> DistilledDataset:
    """Turn real images into a set to train on."""
    return DistilledDataset(
        images=chosen.images,
        labels=chosen.labels,
        alpha=torch.tensor(LEARNING_RATE, dtype=torch.float32, device=data.device),
        whitening=data.whitening,
        classes=data.classes,
        network=network,
        provenance=data.provenance | provenance,
    )
