"""What all methods share that compare distilled images with batches of real ones."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from ddpp.baselines.selection import LEARNING_RATE
from ddpp.data import STARTS, ImageData, Split
from ddpp.data.augmentation import Draw, augment, draw
from ddpp.distilled import DistilledDataset
from ddpp.distilled.format import beside
from ddpp.distilled.formation import fold
from ddpp.foundation import loop, processes
from ddpp.foundation.devices import check_training, made_on
from ddpp.foundation.errors import Count, Error, Positive, Share, check_bounds, choose
from ddpp.foundation.identity import of_run
from ddpp.networks import Flat, NetworkConfig
from ddpp.teachers import Teachers


@dataclass(frozen=True)
class BatchConfig:
    """Settings of every method that compares distilled images with batches of real ones."""

    ipc: Count = 1  # images per class
    steps: Count = 1000  # each with a fresh network
    image_lr: Positive = 0.1  # learning rate of the images
    momentum: Share = 0.5  # of the images
    batch_real: Count = 256  # real images per class
    augment: bool = True  # the same random augmentation for both sides (DSA)
    init: str = "real"  # the images start as real ones, or as noise
    iterates: Count = 5  # states along the way that are kept, evenly spaced, to choose from
    # of everything random in the distillation; ddpp distill takes it for the evaluation, too
    seed: int = 0
    # learning rate to train with on the images; it goes with the set
    alpha: Positive = field(default=LEARNING_RATE, metadata={"since": 3})
    lasting: ClassVar[bool] = True  # no step depends on the number of steps

    def __post_init__(self):
        check_bounds(self)


@dataclass
class State:
    """All that a step reads from the steps before it."""

    step: int
    images: Tensor  # (classes * ipc, C, H, W), class by class
    alpha: Tensor
    velocity: Tensor


Config = TypeVar("Config", bound=BatchConfig)


class Problem(Generic[Config]):
    """What stays the same in every step of a run: data by class, network, settings."""

    def __init__(self, data: ImageData, network: NetworkConfig, config: Config, formation: int = 1):
        self.data, self.config = data, config
        self.network: Flat = data.network(network)
        labels = data.train.labels
        self.members = [(labels == label).nonzero().flatten() for label in range(len(data.classes))]
        # of the pictures, of which each image holds one or more
        self.labels = torch.arange(len(self.members), device=data.device).repeat_interleave(
            config.ipc * formation**2
        )

    def real(self, label: int, n: int, rng: torch.Generator) -> Tensor:
        """Draw at most n real images of one class, (n, C, H, W), without replacement."""
        members = self.members[label]
        some = torch.randperm(len(members), generator=rng)[:n].to(members.device)
        return self.data.train.images[members[some]]

    def pair(self, images: Tensor, label: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a real batch of a class, and return it with the distilled pictures of that class.

        With `augment`, both get the same augmentation.
        """
        real = self.real(label, self.config.batch_real, rng)
        # class by class; a mask would let a GPU wait
        mine = images.unflatten(0, (len(self.members), -1))[label]
        if not self.config.augment:
            return real, mine
        operation, u = draw(1, rng)  # one strength for all images of both: "siamese"
        u = u.to(real.device)
        real = augment(real, Draw(operation, u.expand(len(real), -1)))
        return real, augment(mine, Draw(operation, u.expand(len(mine), -1)))


def descend(state: State, gradient: Tensor, config: BatchConfig) -> State:
    """Move the images by SGD with momentum. The index of the step stays.

    Raises Stopped if the images become NaN or infinite.
    """
    velocity = config.momentum * state.velocity + gradient
    images = state.images - config.image_lr * velocity
    if not torch.isfinite(images).all():
        raise loop.Stopped(
            f"the images became NaN or infinite in step {state.step + 1}: lower image_lr"
            + (" or network_lr" if hasattr(config, "network_lr") else "")
        )
    return replace(state, images=images, velocity=velocity)


def adam(
    x: Tensor, gradient: Tensor, moments: Tensor, lr: float, step: int
) -> tuple[Tensor, Tensor]:
    """Make one step of Adam with its usual constants. Return x and the moments (2, ...) after it.

    - step: its index, from 0.

    Source: Kingma & Ba, ICLR 2015.
    """
    mean = 0.9 * moments[0] + 0.1 * gradient
    square = 0.999 * moments[1] + 0.001 * gradient.square()
    unbiased = square / (1 - 0.999 ** (step + 1))
    return x - lr * mean / (1 - 0.9 ** (step + 1)) / (unbiased.sqrt() + 1e-8), torch.stack(
        [mean, square]
    )


def distill(
    name: str,
    step: Callable[[State, Problem[Config]], tuple[State, dict]],
    data: ImageData,
    source: NetworkConfig | Teachers,
    config: Config,
    saving: loop.Saving,
    formation: int = 1,
) -> DistilledDataset:
    """Run a method that compares batches, and return the distilled set.

    - name: of the method, for the run's identity.
    - step: takes a state to the next one, and returns that and what to record. If it is your own,
      and the name is not that of a method of your own in METHODS, files know the run by its code.
    - data: the images to distil, preprocessed.
    - source: the kind of network that a step uses, or trained ones.
    - config: the settings of the method.
    - saving: checkpoints and progress bar, see `run` in foundation/loop.py.
    - formation: of the set. Each image then starts from so many squared.

    Raises Error for settings that cannot work.
    """
    check_training()
    check(config)
    trained = isinstance(source, Teachers)
    network = source.config.network if trained else source
    made_from = source.made_from if trained else data.made_from(network)
    problem = Problem(data, network, config, formation)
    pictures = data.draw(config.ipc * formation**2, config.seed)
    start = Split(fold(pictures.images, formation), pictures.labels[:: formation**2])
    images = start.started(config.init, config.seed).images
    state = State(0, images, rate(config.alpha, data), torch.zeros_like(images))
    about = beside(data, start.labels, network, formation)
    advance = lambda at: step(at, problem)
    iterates, lasting = config.iterates, config.lasting
    method = loop.Method(state, advance, config.steps, iterates, beside=about, lasting=lasting)
    identity = of_run(name, config, made_from, network.name, step)
    run = loop.run(method, identity, made_on(data.device), saving)
    return DistilledDataset.from_run(run, about, identity)


def check_one_process(config: object = None) -> None:
    """Raise an Error where torchrun started several processes, which can share out only the
    matching of trajectories.

    - config: of no use here; of methods that have nothing else to check.
    """
    if processes.size() > 1:
        raise Error(
            "only the matching of trajectories can be shared out by torchrun: start without it"
        )


def rate(alpha: float, data: ImageData) -> Tensor:
    """Return the learning rate of a method that learns none, as a tensor on the data's device."""
    return torch.tensor(alpha, dtype=torch.float32, device=data.device)


def check(config: Any) -> None:
    """Raise an Error for settings that cannot work.

    The config needs no more than a field `init`.
    """
    check_one_process()
    choose("init", config.init, STARTS)
