"""Refinements of a step that later methods have brought, each a small function and off by default.

A step takes a state to the next one, and returns that with what to record. `averaged` takes a step
and returns a refined one: the step itself stays Algorithm 1.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Protocol, TypeVar

from torch import Tensor

from ddpp.foundation import loop


class State(loop.State, Protocol):
    """The state of a method that matches trajectories, as far as refinements read it."""

    @property
    def moving(self) -> Tensor | None: ...

    @property
    def skipped(self) -> int: ...


S = TypeVar("S", bound=State)
Step = Callable[[S], tuple[S, dict]]


def averaged(step: Step[S], decay: float) -> Step[S]:
    """Return a step after which `images` is a moving average, and `moving` what it averages.

    - step: moves the images; it never sees their average.
    - decay: in [0, 1), the weight of the average before the step; 1 / (1 - decay) steps count.

    The average begins at the real images. A skipped step leaves it as it is. Source: FTD (Du et
    al., CVPR 2023), whose published code takes 0.999 to 0.9999.
    """

    def refined(state: S) -> tuple[S, dict]:
        images = state.images if state.moving is None else state.moving
        after, record = step(replace(state, images=images, moving=None))
        mean = state.images
        if not after.skipped:
            mean = decay * mean + (1 - decay) * after.images
        return replace(after, images=mean, moving=after.images), record

    return refined
