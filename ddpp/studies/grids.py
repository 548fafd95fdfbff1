"""A grid of small ConvNets, and choices from it that are fair to every factor.

Source: the grid of DC (Zhao et al., ICLR 2021), without batch normalization: there the output for
an image depends on the other images of its batch.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn

from ddpp.data import ImageData
from ddpp.foundation.errors import Count, Error, as_texts, check_bounds, choose
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, check

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda width: nn.Identity(),
    "instance": lambda width: nn.GroupNorm(width, width),  # the ConvNet's
    "layer": lambda width: nn.GroupNorm(1, width),
    "group": lambda width: nn.GroupNorm(4, width),
}
ACTIVATIONS = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leaky": nn.LeakyReLU}
POOLINGS = {"none": nn.Identity, "max": lambda: nn.MaxPool2d(2), "average": lambda: nn.AvgPool2d(2)}


@dataclass(frozen=True)
class Candidate:
    """A ConvNet whose parts can be chosen. With the last three at their defaults it is ours.

    >>> from ddpp.studies.grids import Candidate
    >>> str(Candidate(16, 2, norm="group"))
    '16 x 2, group, relu, average'
    """

    width: Count = 128  # channels of each block
    depth: Count = 3  # blocks
    norm: str = "instance"  # of NORMS
    activation: str = "relu"  # of ACTIVATIONS
    pooling: str = "average"  # of POOLINGS

    def __post_init__(self):
        check_bounds(self, "the candidate's ")

    def __str__(self) -> str:
        return f"{self.width} x {self.depth}, {self.norm}, {self.activation}, {self.pooling}"

    def module(self, channels: int, classes: int, image_size: int) -> nn.Module:
        """Make the module, freshly initialized. Raise Error for images that are too small."""
        side = image_size if self.pooling == "none" else image_size // 2**self.depth
        if side < 1:
            raise Error(
                f"a network of depth {self.depth} halves the image {self.depth} times, which "
                f"{image_size} x {image_size} pixels do not allow: leave that depth out"
            )
        blocks = []
        for i in range(self.depth):
            before = self.width if i else channels
            convolution = nn.Conv2d(before, self.width, kernel_size=3, padding=1)
            activation, pooling = ACTIVATIONS[self.activation](), POOLINGS[self.pooling]()
            blocks += [convolution, NORMS[self.norm](self.width), activation, pooling]
        return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(self.width * side**2, classes))

    def network(self, data: ImageData) -> Flat:
        """Build the network for these images and classes, on their device."""
        channels, side, _ = data.shape
        classes = len(data.classes)
        flat = Flat(lambda: self.module(channels, classes, side), data.device, str(self))
        check(flat, data.shape, classes)
        return flat


@dataclass(frozen=True)
class Grid:
    """The values of each factor. The grid is all their combinations."""

    width: tuple[int, ...] = (8, 16)  # channels of each block
    depth: tuple[int, ...] = (1, 2, 3)  # blocks
    norm: tuple[str, ...] = tuple(NORMS)  # normalization after each convolution
    activation: tuple[str, ...] = tuple(ACTIVATIONS)  # after each normalization
    pooling: tuple[str, ...] = ("max", "average")  # or none, which takes several times as long

    def __post_init__(self):
        for name in ("norm", "activation", "pooling"):
            object.__setattr__(self, name, as_texts(getattr(self, name), f"the grid's {name}"))
        check_bounds(self, "the grid's ")
        for name, table in (("norm", NORMS), ("activation", ACTIVATIONS), ("pooling", POOLINGS)):
            for value in getattr(self, name):
                choose(name, value, table)
        for field in fields(self):
            values = getattr(self, field.name)
            if not values:
                raise Error(f"the grid is empty: give {field.name} at least one value")
            if len(set(values)) < len(values):
                raise Error(f"the grid names a {field.name} twice: name each once")
        for name in ("width", "depth"):
            if min(getattr(self, name)) < 1:
                raise Error(f"the grid has a {name} below 1: each must be at least 1")

    def candidates(self) -> list[Candidate]:
        """All networks of the grid."""
        values = [getattr(self, field.name) for field in fields(self)]
        return [Candidate(*parts) for parts in itertools.product(*values)]


def stratified(candidates: Sequence[Candidate], count: int, seed: int = 0) -> list[Candidate]:
    """Draw networks of a grid so that each value of each factor appears equally often.

    - candidates: of a whole grid.
    - count: of networks, a multiple of each factor's number of values.
    - seed: equal seeds draw equal networks.

    Raises Error for a count with which that is not possible.

    >>> from ddpp.studies.grids import Grid, stratified
    >>> grid = Grid(width=(8, 16), depth=(1, 2), norm=("none",), activation=("relu",))
    >>> for one in stratified(grid.candidates(), count=2):
    ...     print(one)
    8 x 2, none, relu, average
    16 x 1, none, relu, max
    """
    values = [{getattr(one, field.name) for one in candidates} for field in fields(Candidate)]
    if len({*candidates}) != math.prod(map(len, values)) or len({*candidates}) < len(candidates):
        raise Error(
            f"these {len(candidates)} networks are no whole grid, from which each value could be "
            "drawn equally often: give all candidates() of a Grid"
        )
    unit = math.lcm(*map(len, values))
    if count not in range(unit, len(candidates) + 1, unit):
        raise Error(
            f"{count} networks of this grid cannot have each value equally often: choose a "
            f"multiple of {unit} up to {len(candidates)}"
        )
    rng = generator(seed, "networks")
    order = torch.randperm(len(candidates), generator=rng).tolist()
    chosen, others = order[:count], order[count:]
    missing = imbalance([candidates[at] for at in chosen], values)
    while missing:  # exchange two at random, unless that makes it worse
        i = int(torch.randint(len(chosen), (), generator=rng))
        k = int(torch.randint(len(others), (), generator=rng))
        tried = [*chosen[:i], others[k], *chosen[i + 1 :]]
        after = imbalance([candidates[at] for at in tried], values)
        if after <= missing:
            chosen, others[k], missing = tried, chosen[i], after
    return [candidates[at] for at in sorted(chosen)]


def imbalance(chosen: Sequence[Candidate], values: Sequence[Iterable]) -> int:
    """Sum over the values of all factors how far each is from appearing equally often.

    - chosen: networks.
    - values: of each factor, in the order of the fields of Candidate.
    """
    total = 0
    for field, options in zip(fields(Candidate), map(list, values), strict=True):
        found = [getattr(one, field.name) for one in chosen]
        total += sum(abs(found.count(option) - len(found) // len(options)) for option in options)
    return total
