"""Stage B, the paper's contribution: which parameters are difficult to match, and the loss without
them, Eqs. (3)-(8).

Everything here works on flat vectors of p parameters: the student after its J updates, the teacher
K epochs on, and the start that both left from. A rule says which pairs are effective, that is,
kept; it is one function and one line in RULES. The mask is a constant of the distillation step:
comparisons carry no gradient.

The last three rules are controls: each prunes as many pairs as the paper's rule would, but others.
"""

import torch
from torch import Tensor

from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import Table
from ddpp.foundation.seeds import generator


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """How alike each pair is, in [-1, 1]: the smaller magnitude over the larger, negative where the
    signs differ.

    The paper's test, student/teacher < epsilon or teacher/student < epsilon, is similarity <
    epsilon for every epsilon in [0, 1). A pair 0, 0 counts as equal (1).
    """
    larger = torch.maximum(student.square(), teacher.square())
    return torch.where(larger > 0, student * teacher / larger, 1.0)


def signed(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """The paper's rule read literally: a pair of opposite signs has a negative ratio, so it is
    always pruned.
    """
    return ~(student * teacher < epsilon * torch.maximum(student.square(), teacher.square()))


def magnitude(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """The other reading: only the sizes are compared. With epsilon = 0 it prunes nothing."""
    return ~(
        (student * teacher).abs() < epsilon * torch.maximum(student.square(), teacher.square())
    )


def none(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Prune nothing: matching training trajectories (MTT)."""
    return torch.ones_like(student, dtype=torch.bool)


def random(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Control: prunes pairs drawn at random, anew for each student and teacher."""
    # a step can be replayed
    rng = generator(0, "random rule", float(student.sum()), float(teacher.sum()))
    order = torch.randperm(len(student), generator=rng).to(student.device)
    return _prune_first(order, student, teacher, epsilon)


def largest(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Control: prunes the largest differences, difficult in the sense of Cao et al. (ACML 2025)."""
    order = (student - teacher).abs().argsort(descending=True)
    return _prune_first(order, student, teacher, epsilon)


def smallest(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Control: prunes the smallest differences, the easiest pairs, as PAD and EDF do (2024)."""
    order = (student - teacher).abs().argsort()
    return _prune_first(order, student, teacher, epsilon)


def _prune_first(order: Tensor, student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Prune the first pairs of `order`, as many as the paper's rule prunes."""
    keep = signed(student, teacher, epsilon)
    return torch.ones_like(keep).index_fill(0, order[: int((~keep).sum())], False)


RULES = Table("rule", {f.__name__: f for f in (signed, magnitude, none, random, largest, smallest)})


def keep_mask(student: Tensor, teacher: Tensor, epsilon: float, rule: str = "signed") -> Tensor:
    """True for the effective parameters of Eqs. (5)-(7), False for the difficult-to-match ones;
    shape (p,), bool.

    Division-free, so that zeros need no special case: a pair 0, 0 is kept, a pair 0, x is pruned
    when epsilon > 0.
    """
    if not 0 <= epsilon < 1:
        raise Error(f"epsilon is {epsilon}: it must be at least 0 and below 1 (the paper uses 0.1)")
    return RULES[choose("rule", rule, RULES)](student.detach(), teacher.detach(), epsilon)


def masked_loss(student: Tensor, teacher: Tensor, start: Tensor, keep: Tensor) -> Tensor:
    """Eq. (8) for a given mask: squared distance to the teacher over the teacher's own way,
    effective entries only.
    """
    return ((student - teacher).square() * keep).sum() / ((start - teacher).square() * keep).sum()


def matching_loss(
    student: Tensor, teacher: Tensor, start: Tensor, epsilon: float, rule: str = "signed"
) -> Tensor:
    """Eqs. (3)-(8): prune the difficult-to-match parameters, then compare what remains.

    A scalar. Not finite where nothing is left or the teacher has not moved: `distill` skips such a
    step and counts it.
    """
    return masked_loss(student, teacher, start, keep_mask(student, teacher, epsilon, rule))
