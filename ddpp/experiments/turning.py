"""What a mask does to a distillation step: how far it turns the gradient of the images.

Two masks may prune as many parameters and act quite differently. The gradient of the images tells
how: its angle to the gradient of MTT, which prunes nothing, and its length beside it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpp.data import ImageData, Split
from ddpp.distilling import DistillConfig, draw_piece
from ddpp.foundation.errors import Error
from ddpp.pruning import Rule, keep_mask, keep_parts, masked_loss
from ddpp.teachers import Teachers
from ddpp.unrolling import unroll

Mask = Callable[[Tensor, Tensor], Tensor]  # of student and teacher (p,): what is kept (p,), bool


@dataclass(frozen=True)
class Turn:
    """What one mask did to one step."""

    kept: float  # share of the parameters
    angle: float  # degrees between the gradients of the images with and without the mask
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
    alpha: float | None = None,
    epoch: int = 0,
    teacher: int = 0,
    step: int = 0,
) -> dict[str, Turn]:
    """Measure what masks do to the gradient of the images in one step.

    - data, teachers, config: of the step, as in `distill`; the rule is left aside.
    - masks: by name, see `mask_of`.
    - start_set: the distilled images and labels. Default: real images, at which a run starts.
    - alpha: the student's learning rate. Default: config.alpha0.
    - epoch, teacher: where student and teacher start, and which teacher, from 0.
    - step: its index, which decides batches and augmentations.

    Raises Error for an epoch that the teachers do not reach.
    """
    images, labels = start_set or data.draw(config.ipc, config.seed)
    if not 0 <= teacher < len(teachers):
        raise Error(f"teacher {teacher} is not there: choose 0 to {len(teachers) - 1}")
    *_, updates = draw_piece(step, len(labels), teachers, replace(config, max_start_epoch=1))
    start = teachers.snapshot(teacher, epoch)
    goal = teachers.snapshot(teacher, epoch + config.expert_epochs)
    rate = torch.tensor(alpha or config.alpha0, dtype=images.dtype, device=images.device)

    def gradient(mask: Mask) -> tuple[Tensor, Tensor]:
        loss = lambda student: masked_loss(student, goal, start, mask(student.detach(), goal))
        network = teachers.network
        out = unroll(network, start, images, labels, rate, updates, loss, "adjoint")
        return out.grad_images, out.student

    base, student = gradient(lambda student, teacher: torch.ones_like(student, dtype=torch.bool))
    error = (student - goal).square()
    found = {}
    for name, mask in masks.items():
        keep = mask(student, goal)
        found[name] = _turn(keep, gradient(mask)[0], base, error, student * goal < 0)
    return found


def _turn(keep: Tensor, turned: Tensor, base: Tensor, error: Tensor, opposite: Tensor) -> Turn:
    turned, base = turned.flatten().double(), base.flatten().double()
    cosine = float(turned @ base / (turned.norm() * base.norm()))
    pruned = int((~keep).sum())
    return Turn(
        kept=float(keep.double().mean()),
        angle=math.degrees(math.acos(max(-1.0, min(1.0, cosine)))),
        length=float(turned.norm() / base.norm()),
        loss=float(error[~keep].double().sum() / error.double().sum()),
        opposite=float(opposite[~keep].double().mean()) if pruned else math.nan,
    )


def mask_of(rule: Rule, epsilon: float) -> Mask:
    """Return the mask of a pruning rule."""
    return lambda student, teacher: keep_mask(student, teacher, epsilon, rule)


def masks_by_part(teachers: Teachers, kinds: Mapping[str, Sequence[str]]) -> dict[str, Mask]:
    """Return masks that leave out whole parts of the network.

    - teachers: of the network.
    - kinds: {name: parts}, as {"scales": ["1.weight"]}; see `keep_parts` in ddpp/pruning.py.
    """

    def without(names: Sequence[str]) -> Mask:
        keep = keep_parts(teachers.network.shapes, names).to(teachers.network.device)
        return lambda student, teacher: keep

    return {name: without(names) for name, names in kinds.items()}
