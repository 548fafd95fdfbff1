"""Refinements of a step that later methods have brought, each a small function and off by default.

`start_epochs` is the window from which a step draws its start, `logits_of` where soft labels begin,
`limited` what is left of a gradient, and `keep_parts` which parts of a network are matched.
`averaged` takes a step and returns a refined one. (A step takes a state to the next one, and
returns that with what to record.)
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from ddpp.foundation import loop
from ddpp.foundation.errors import Error
from ddpp.networks import Flat
from ddpp.pruning import RULES, Rule, check_mask, find_rule


class State(loop.State, Protocol):
    """The state of a method that matches trajectories, as far as refinements read it."""

    @property
    def moving(self) -> Tensor | None: ...

    @property
    def skipped(self) -> int: ...


S = TypeVar("S", bound=State)
Step = Callable[[S], tuple[S, dict]]


def start_epochs(step: int, least: int, first: int, most: int, steps: int) -> range:
    """Return the epochs that a step may start from: they grow from easy ones to all.

    - step: its index, from 0.
    - least: the earliest epoch.
    - first, most: the bound, itself left out, at the first step and at last. All bounds from one to
      the other have an equal share of `steps`.
    - steps: after so many the bound is `most`.

    Source: DATM (Guo et al., ICLR 2024), whose code reaches the last bound after `steps` only.

    >>> from ddpp.refining import start_epochs
    >>> [start_epochs(step, least=1, first=2, most=4, steps=6) for step in (0, 3, 5, 9)]
    [range(1, 2), range(1, 3), range(1, 4), range(1, 4)]
    """
    return range(least, min(most, first + (most - first + 1) * step // steps))


def logits_of(network: Flat, theta: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """Compute a teacher's logits (N, classes), from which soft labels are learned.

    - network, theta: the teacher, and its parameters (p,).
    - images, labels: the first ones, and their classes (N,).

    Where the teacher is wrong, its largest logit changes places with the logit of the class. DATM
    (Guo et al., ICLR 2024) takes images that the teacher classifies correctly. Here the images are
    the same as in all other runs.
    """
    with torch.no_grad():
        logits = network(theta, images)
    largest, guess = logits.max(1, keepdim=True)
    right = labels.unsqueeze(1)
    return logits.scatter(1, guess, logits.gather(1, right)).scatter(1, right, largest)


def averaged(step: Step[S], decay: float) -> Step[S]:
    """Return a step after which `images` is a moving average, and `moving` what it averages.

    - step: moves the images; it never sees their average.
    - decay: in [0, 1), the weight of the average before the step; 1 / (1 - decay) steps count.

    The average begins at the first images. A skipped step leaves it as it is. Source: FTD (Du et
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


def limited(gradient: Tensor, clip: float | None, normalize: bool) -> Tensor:
    """Return what is left of the gradient of the images: it is normalized, shortened, or itself."""
    if normalize:
        return normalized(gradient)
    return gradient if clip is None else shortened(gradient, clip)


def shortened(gradient: Tensor, most: float | Tensor) -> Tensor:
    """Shorten a gradient to a norm of at most `most`. A shorter one stays as it is.

    Source: gradient clipping (Pascanu et al., ICML 2013).

    >>> import torch
    >>> from ddpp.refining import shortened
    >>> shortened(torch.tensor([30.0, 40.0]), most=25.0)
    tensor([15., 20.])
    """
    norm = gradient.norm()
    # a gradient of 0 stays 0: there the ratio is infinite, and fmin takes the other number
    return gradient * torch.fmin(most / norm, torch.ones_like(norm))


def normalized(gradient: Tensor) -> Tensor:
    """Divide a gradient by its norm, so that its length is 1; 0 stays 0.

    >>> import torch
    >>> from ddpp.refining import normalized
    >>> normalized(torch.tensor([30.0, 40.0]))
    tensor([0.6000, 0.8000])
    """
    norm = gradient.norm()
    return torch.where(norm > 0, gradient / norm, gradient)


KINDS = {"vectors": 1, "matrices": 2, "convolutions": 4}  # of parameters, by their dimensions


def keep_parts(shapes: Mapping[str, torch.Size], names: Iterable[str]) -> Tensor:
    """Mark all parameters but whole parts of a network: layers, or kinds of parameters.

    - shapes: of the parameters by name, as `Flat.shapes`.
    - names: of parameters, what such names begin or end with at a dot ("0" is a layer, "bias" are
      all biases), or kinds in KINDS. Without "vectors", matrices and convolutions are left.

    Returns a mask (p,), bool. Raises Error for a name that no parameter has, and if nothing is
    left. Source: PAD (Li et al., 2024), whose paper leaves out shallow layers.

    >>> import ddpp
    >>> from ddpp.refining import keep_parts
    >>> shapes = ddpp.NetworkConfig(width=2, depth=1).build(1, 2, 8).shapes
    >>> keep_parts(shapes, ["vectors"]).sum()  # 2 filters of 3 x 3, and a matrix of 2 x 32
    tensor(82)
    """
    left = dict.fromkeys(shapes, True)
    for part in names:
        chosen = [n for n, shape in shapes.items() if _is_in(part, n, shape)]
        if not chosen:
            choices = ", ".join([*KINDS, *shapes])
            raise Error(f"no parameter is named {part}: kinds and names are {choices}")
        left |= dict.fromkeys(chosen, False)
    if not any(left.values()):
        raise Error("no parameter is left to match: leave out fewer of them")
    return torch.cat([torch.full((shapes[n].numel(),), keep) for n, keep in left.items()])


def _is_in(part: str, name: str, shape: torch.Size) -> bool:
    """Whether a parameter belongs to a part of the network."""
    within = name == part or name.startswith(f"{part}.") or name.endswith(f".{part}")
    return within or len(shape) == KINDS.get(part)


def leaving_out(rule: Rule, parts: Tensor) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Return a rule that keeps what `rule` keeps, and nothing outside of `parts` (p,), bool.

    A rule of ddpp's sees the parts alone, so that a control prunes as many of them as the paper's
    rule. One of a user's own sees all parameters, as it may know them by their places.
    """
    prune = find_rule(rule)
    own = not isinstance(rule, str) or RULES.is_brought(rule)

    def keep(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
        if own:
            return check_mask(prune(student, teacher, epsilon), student) & parts
        return parts.masked_scatter(parts, prune(student[parts], teacher[parts], epsilon))

    return keep
