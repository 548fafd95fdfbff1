"""What the methods that compare distilled images with real batches have in common."""

from collections.abc import Callable
from dataclasses import Field, dataclass, fields, replace
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch
from torch import Tensor

from ddpp.baselines.selection import LEARNING_RATE
from ddpp.data import ImageData, Split
from ddpp.data.augmentation import Draw, augment, draw
from ddpp.distilled import DistilledDataset
from ddpp.foundation import loop, processes
from ddpp.foundation.devices import made_on
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import of_run
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, NetworkConfig


@dataclass(frozen=True)
class BatchConfig:
    """Settings of every method that compares distilled images with batches of real ones."""

    ipc: int = 1  # images per class
    steps: int = 1000  # each with a fresh network
    image_lr: float = 0.1  # learning rate of the images
    momentum: float = 0.5  # of the images
    batch_real: int = 256  # real images per class
    augment: bool = True  # the same random augmentation for both sides (DSA)
    init: str = "real"  # the images start as real ones, or as noise
    iterates: int = 5  # how many states along the way are kept, evenly spaced, to choose from
    seed: int = 0


class Started(Protocol):
    """Settings that say what the images start from: a dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def seed(self) -> int: ...

    @property
    def init(self) -> str: ...


@dataclass
class State:
    """Where a run is: all that a step reads from the steps before it."""

    step: int
    images: Tensor  # (classes * ipc, C, H, W), class by class
    alpha: Tensor
    velocity: Tensor


Config = TypeVar("Config", bound=BatchConfig)


class Problem(Generic[Config]):
    """What every step of a run has before it: the data by class, the network, and the settings."""

    def __init__(self, data: ImageData, network: NetworkConfig, config: Config):
        self.data, self.config = data, config
        self.network: Flat = data.network(network)
        labels = data.train.labels
        self.members = [(labels == label).nonzero().flatten() for label in range(len(data.classes))]
        self.labels = torch.arange(len(self.members), device=data.device).repeat_interleave(
            config.ipc
        )

    def real(self, label: int, n: int, rng: torch.Generator) -> Tensor:
        """At most n random real images of one class, (n, C, H, W), without replacement."""
        members = self.members[label]
        some = torch.randperm(len(members), generator=rng)[:n].to(members.device)
        return self.data.train.images[members[some]]

    def pair(self, images: Tensor, label: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """A real batch of a class and its distilled images, under the same augmentation where one
        is asked for.
        """
        real, mine = self.real(label, self.config.batch_real, rng), images[self.labels == label]
        if not self.config.augment:
            return real, mine
        operation, u = draw(1, rng)  # one strength for all images of both: "siamese"
        vary = lambda x: augment(x, Draw(operation, u.expand(len(x), -1)))
        return vary(real), vary(mine)


def descend(state: State, gradient: Tensor, config: BatchConfig) -> State:
    """SGD with momentum on the images; the step's number stays. Raises Stopped where the images
    leave the numbers.
    """
    velocity = config.momentum * state.velocity + gradient
    images = state.images - config.image_lr * velocity
    if not torch.isfinite(images).all():
        raise loop.Stopped(f"the images left the numbers in step {state.step + 1}: lower image_lr")
    return replace(state, images=images, velocity=velocity)


def adam(
    x: Tensor, gradient: Tensor, moments: Tensor, lr: float, step: int
) -> tuple[Tensor, Tensor]:
    """Step number `step` (from 0) of Adam with its usual constants (Kingma & Ba, 2015): x and the
    moments after it.
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
    network: NetworkConfig,
    config: Config,
    saving: loop.Saving,
) -> DistilledDataset:
    """Run the method `name` on the data: `step` takes a state to the next, and says what there is
    to record.
    """
    check(config)
    problem, start = Problem(data, network, config), data.draw(config.ipc, config.seed)
    images = begin(start, config)
    state = State(0, images, alpha(data), torch.zeros_like(images))
    method = loop.Method(state, lambda at: step(at, problem), config.steps, config.iterates)
    identity = of_run(name, config, data.made_from(network), network.name)
    run = loop.run(method, identity, made_on(data.device), saving)
    return DistilledDataset.from_run(run, data, start.labels, network, identity)


def begin(start: Split, config: Started) -> Tensor:
    """The images that a run starts from: real ones, or noise."""
    if config.init == "real":
        return start.images.clone()
    return torch.randn(
        start.images.shape, generator=generator(config.seed, "noise"), dtype=start.images.dtype
    ).to(start.images)


def alpha(data: ImageData) -> Tensor:
    """The rate that goes with the images of a method that learns none."""
    return torch.tensor(LEARNING_RATE, dtype=torch.float32, device=data.device)


def check(config: Started) -> None:
    """Raise an Error for settings that cannot work; also for settings of a method that are made
    like BatchConfig.
    """
    if processes.size() > 1:
        raise Error(
            "only the matching of trajectories can be shared out by torchrun: start without it"
        )
    for field in fields(config):
        value = getattr(config, field.name)
        if field.type is int and field.name != "seed" and value < 1:
            raise Error(f"{field.name} is {value}: it must be at least 1")
        if field.name.endswith("_lr") and not 0 < value < float("inf"):
            raise Error(f"{field.name} is {value}: it must be positive")
    momentum = getattr(config, "momentum", 0)
    if not 0 <= momentum < 1:
        raise Error(f"momentum is {momentum}: it must be at least 0 and below 1")
    choose("init", config.init, ("real", "noise"))
