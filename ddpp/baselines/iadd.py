"""IADD (Li et al., Neural Networks 172, 2024): MTT with a learned weight for each parameter.

    L = ||w * (theta~ - theta_{i+K})||^2 / ||theta_i - theta_{i+K}||^2

The weights w are learned with the images and alpha, by gradient descent on the same loss. There is
no public code, and which constraint keeps all weights from going to 0 is not known to us: here none
is more than halved in a step, and their mean stays 1.
"""

from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from ddpp.data import ImageData, Split
from ddpp.distilled import DistilledDataset
from ddpp.distilling import (
    Algorithm,
    DistillConfig,
    begin,
    check_config,
    descend,
    draw_piece,
    norm_of,
    run,
)
from ddpp.distilling import State as Unweighted
from ddpp.foundation.errors import Error, Positive, Share
from ddpp.foundation.loop import Saving
from ddpp.teachers import Teachers
from ddpp.unrolling import unroll


@dataclass(frozen=True)
class IADDConfig(DistillConfig):
    """The settings of MTT, and of the weights. Nothing is pruned."""

    epsilon: Share = 0.0
    rule: str = "none"
    # of the weights; for the gradient of p L, so that one value fits networks of any size; ours
    weights_lr: Positive = 0.01


@dataclass
class State(Unweighted):
    """The state of Algorithm 1, with weights; None before the first step, when all are 1."""

    weights: Tensor | None = None


def weighted_loss(student: Tensor, teacher: Tensor, start: Tensor, weights: Tensor) -> Tensor:
    """Compute MTT's loss, with a weight for each of the p parameters in the numerator. A scalar."""
    return (weights * (student - teacher)).square().sum() / (start - teacher).square().sum()


def reweigh(weights: Tensor, gradient: Tensor, lr: float) -> Tensor:
    """Make a step of gradient descent for the weights (p,); none is more than halved.

    The weights of pairs that are difficult to match fall, the others rise. Their mean is 1.

    >>> import torch
    >>> from ddpp.baselines import iadd
    >>> iadd.reweigh(torch.ones(2), torch.tensor([1.0, -1.0]), lr=0.5)
    tensor([0.5000, 1.5000])
    """
    weights = torch.maximum(weights - lr * gradient, weights / 2)  # at 0, a weight would stay there
    return weights / weights.mean()


def step(
    state: State, labels: Tensor, teachers: Teachers, config: IADDConfig, engine: str
) -> tuple[State, dict]:
    """Make one step: the student's updates, then descent for images, alpha and weights."""
    epoch, k, start, teacher, updates = draw_piece(state.step, len(labels), teachers, config)
    weights = torch.ones_like(start) if state.weights is None else state.weights
    loss = lambda student: weighted_loss(student, teacher, start, weights)
    out = unroll(teachers.network, start, state.images, labels, state.alpha, updates, loss, engine)
    # `descend` returns a copy of the state, with its weights
    after = cast(State, descend(state, out.grad_images, out.grad_alpha, out.loss, config))
    if not after.skipped:
        varied = weights.clone().requires_grad_()
        (slope,) = torch.autograd.grad(weighted_loss(out.student, teacher, start, varied), varied)
        after = replace(after, weights=reweigh(weights, slope * len(weights), config.weights_lr))
    record = {"epoch": epoch, "teacher": k, "loss": out.loss}
    record |= {"alpha": after.alpha, "skipped": int(after.skipped > 0)}
    record |= norm_of(out.grad_images, config)
    unmasked = weighted_loss(out.student, teacher, start, torch.ones_like(start))
    return after, record | {"unmasked": unmasked, "kept": torch.ones(()), "heaviest": weights.max()}


def distill(
    data: ImageData, teachers: Teachers, config: IADDConfig, saving: Saving
) -> DistilledDataset:
    """Distil `data` with its `teachers`.

    - data: the images that the teachers were trained on.
    - teachers: see `ddpp.train_teachers`.
    - config: the settings of MTT and of the weights (see IADDConfig).
    - saving: checkpoints and progress bar.

    The history is MTT's, without `layers` and with `heaviest`, the largest weight of a step. Raises
    Error for settings that cannot work. Source: Li et al., Neural Networks 172, 2024.
    """
    check(config)
    return run(Algorithm("iadd", _begin, step), data, teachers, config, saving)


def check(config: IADDConfig) -> None:
    """Raise an Error for settings that cannot work."""
    check_config(config)
    for name, value in (("rule", "none"), ("epsilon", 0.0)):
        if getattr(config, name) != value:
            raise Error(f"{name} is {getattr(config, name)}, but IADD prunes nothing: leave it out")
    if config.leave_out:
        raise Error("IADD weighs every parameter: leave leave_out out, or choose another method")
    if config.trajectories > 1:
        raise Error(
            "IADD matches one trajectory per step: leave trajectories out, and start it without "
            "torchrun"
        )


def _begin(start_set: Split, config: IADDConfig) -> State:
    return State(**vars(begin(start_set, config)))
