"""What a mask does to a distillation step: how far it turns the gradient of the images.

Two masks may prune the same number of parameters and act quite differently. The gradient of the
images shows how: by its angle to the gradient of MTT, which prunes nothing, and by its length.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor

from ddpp.data import ImageData, Split
from ddpp.distilling import DistillConfig, draw_piece, draw_start
from ddpp.foundation.errors import Error
from ddpp.pruning import Rule, keep_mask, masked_loss
from ddpp.refining import keep_parts
from ddpp.teachers import Teachers
from ddpp.unrolling import unroll

NO_WINDOW = {"first_max_start_epoch": None, "expand_steps": None}
Mask = Callable[[Tensor, Tensor], Tensor]  # of student and teacher (p,): what is kept (p,), bool


@dataclass(frozen=True)
class Turn:
    """What one mask did to one step."""

    kept: float  # share of the parameters
    # degrees between the gradients of the images with and without the mask; NaN if all is pruned
    angle: float
    length: float  # of the gradient with the mask, over that without
    loss: float  # share of MTT's squared error that is in the pruned parameters
    opposite: float  # share of the pruned pairs that differ in sign; NaN if none is pruned


def turns(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    masks: Mapping[str, Mask],
    *,
    start_set: Split | None = None,
    epoch: int = 0,
    teacher: int = 0,
    step: int = 0,
) -> dict[str, Turn]:
    """Measure what masks do to the gradient of the images in one step.

    - data, teachers, config: of the step, as in `distill`. The rule is left aside.
    - masks: by name, see `mask_of`.
    - start_set: the distilled images and labels. Default: those at which a run starts.
    - epoch, teacher: where student and teacher start, and which teacher, from 0.
    - step: its index, which decides batches and augmentations.

    Raises Error for an epoch that the teachers do not reach, and for teachers of other data.
    """
    base, turned, student, goal = _gradients(
        data, teachers, config, masks, step=step, start_set=start_set, epoch=epoch, teacher=teacher
    )
    error, opposite = (student - goal).square(), student * goal < 0
    return {
        name: _turn(mask(student, goal), turned[name], base, error, opposite)
        for name, mask in masks.items()
    }


def average_turns(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    masks: Mapping[str, Mask],
    draws: int = 12,
    *,
    epoch: int = 0,
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Measure how much of a turn remains in the average over steps.

    - data, teachers, config, masks, epoch: as in `turns`.
    - draws: gradients that are averaged, two at least, each with augmentations of its own, by turns
      with each teacher.

    Returns angles in degrees: the mean angle between MTT's gradients of two draws, and for each
    mask two angles between its gradient and MTT's. The first is the mean over the draws. The second
    is the angle between the gradients' averages over the draws.
    """
    if draws < 2:
        raise Error(f"the average is of {draws} draws: give at least 2, to compare them")
    bases, found = [], {name: [] for name in masks}
    for step in range(draws):
        teacher = step % len(teachers)
        base, turned, *_ = _gradients(
            data, teachers, config, masks, epoch=epoch, teacher=teacher, step=step
        )
        bases.append(base)
        for name, gradient in turned.items():
            found[name].append(gradient)
    between = [_angle(a, b) for a, b in combinations(bases, 2)]
    total = lambda gradients: torch.stack(gradients).sum(0)
    angles = {
        name: (statistics.fmean(map(_angle, each, bases)), _angle(total(each), total(bases)))
        for name, each in found.items()
    }
    return statistics.fmean(between), angles


def _gradients(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    masks: Mapping[str, Mask],
    start_set: Split | None = None,
    epoch: int = 0,
    teacher: int = 0,
    step: int = 0,
) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Return the gradients (N*C*H*W,) of MTT and with each mask, and student and goal (p,)."""
    teachers.check_data(data)
    start_set = start_set or draw_start(data, config)
    images, labels = start_set
    # only the updates are drawn: the epoch is given, and whichever the config would draw from
    plain = replace(config, max_start_epoch=1, min_start_epoch=0, **NO_WINDOW)
    *_, updates = draw_piece(step, len(labels), teachers, plain)
    start = teachers.snapshot(teacher, epoch)
    goal = teachers.snapshot(teacher, epoch + config.expert_epochs)
    rate = torch.tensor(config.alpha0, dtype=images.dtype, device=images.device)

    def gradient(mask: Mask) -> tuple[Tensor, Tensor]:
        loss = lambda student: masked_loss(student, goal, start, mask(student.detach(), goal))
        network = teachers.network
        out = unroll(network, start, images, labels, rate, updates, loss, "adjoint")
        return out.grad_images.flatten().double(), out.student

    base, student = gradient(lambda student, teacher: torch.ones_like(student, dtype=torch.bool))
    return base, {name: gradient(mask)[0] for name, mask in masks.items()}, student, goal


def _turn(keep: Tensor, turned: Tensor, base: Tensor, error: Tensor, opposite: Tensor) -> Turn:
    pruned = int((~keep).sum())
    return Turn(
        kept=float(keep.double().mean()),
        angle=_angle(turned, base),
        length=float(turned.norm() / base.norm()),
        loss=float(error[~keep].double().sum() / error.double().sum()),
        opposite=float(opposite[~keep].double().mean()) if pruned else math.nan,
    )


def _angle(a: Tensor, b: Tensor) -> float:
    """Between two vectors, in degrees; NaN where one of them has no direction."""
    cosine = float(a @ b / (a.norm() * b.norm()))
    # in this order, as max and min return their first argument where the other is NaN
    return math.degrees(math.acos(min(max(cosine, -1.0), 1.0)))


def mask_of(rule: Rule, epsilon: float) -> Mask:
    """Return the mask of a pruning rule."""
    return lambda student, teacher: keep_mask(student, teacher, epsilon, rule)


def masks_by_part(teachers: Teachers, kinds: Mapping[str, Sequence[str]]) -> dict[str, Mask]:
    """Return masks that leave out whole parts of the network.

    - teachers: of the network.
    - kinds: {name: parts}, as {"scales": ["1.weight"]}, see `keep_parts` in ddpp/refining.py.
    """

    def without(names: Sequence[str]) -> Mask:
        keep = keep_parts(teachers.network.shapes, names).to(teachers.network.device)
        return lambda student, teacher: keep

    return {name: without(names) for name, names in kinds.items()}
