"""Stage B, the paper's contribution: which parameters are difficult to match, and a loss that
leaves them out, Eqs. (3)-(8).

Everything here works on flat vectors of p parameters: the student after its J updates, the teacher
K epochs later, and the start of both. A rule says which pairs are effective, that is,
kept. Each rule is one function and one entry in RULES. The mask is a constant of the distillation
step: no gradient flows through comparisons.

Three rules are controls: `random`, `largest` and `smallest` prune the same number of pairs as the
paper's rule, but others. `sign` is the part of the paper's rule that has no threshold. `easiest`
prunes what PAD and EDF prune.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddpp.foundation.errors import Error, choose, described, first_line
from ddpp.foundation.identity import Table
from ddpp.foundation.seeds import drawn, generator


def similarity(student: Tensor, teacher: Tensor) -> Tensor:
    """Compare each pair: the smaller magnitude over the larger, negative where the signs differ.

    - student: parameters (p,).
    - teacher: parameters (p,), of the same type and on the same device.

    Returns values in [-1, 1], (p,). A pair 0, 0 counts as equal (1).

    The paper's test in Eqs. (5)-(7), student/teacher < epsilon or teacher/student < epsilon, is
    similarity < epsilon for every epsilon in [0, 1). The rule `signed` tests the same without
    forming it. Below about 1e-22 squares vanish in float32, and such pairs count as equal.

    >>> import ddpp, torch
    >>> student, teacher = torch.tensor([1.0, 4.0, -1.0, 0.0]), torch.tensor([2.0, 2.0, 4.0, 0.0])
    >>> ddpp.similarity(student, teacher).tolist()
    [0.5, 0.5, -0.25, 1.0]
    """
    larger = torch.maximum(student.square(), teacher.square())
    return torch.where(larger > 0, student * teacher / larger, 1.0)


def signed(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Apply the paper's rule as written: a pair of opposite signs has a negative ratio, so it is
    always pruned.
    """
    return ~(student * teacher < epsilon * torch.maximum(student.square(), teacher.square()))


def magnitude(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Apply the other reading: compare the magnitudes only. With epsilon = 0, prune nothing."""
    return ~(
        (student * teacher).abs() < epsilon * torch.maximum(student.square(), teacher.square())
    )


def sign(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Prune opposite signs alone: the part of the paper's rule that has no threshold."""
    return student * teacher >= 0


def none(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Prune nothing: matching training trajectories (MTT)."""
    return torch.ones_like(student, dtype=torch.bool)


def random(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Control: prune pairs drawn at random, anew for each student and teacher."""
    # a function of both vectors alone, so that a step can be repeated
    rng = generator(0, "random rule", float(student.sum()), float(teacher.sum()))
    order = torch.randperm(len(student), generator=rng).to(student.device)
    return _prune_first(order, student, teacher, epsilon)


def largest(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Control: prune the largest differences, difficult in the sense of Cao et al. (ACML 2025)."""
    order = (student - teacher).abs().argsort(descending=True)
    return _prune_first(order, student, teacher, epsilon)


def smallest(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Control: prune the smallest differences, which carry next to nothing of the loss."""
    order = (student - teacher).abs().argsort()
    return _prune_first(order, student, teacher, epsilon)


def easiest(student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Prune the share epsilon with the smallest differences, as PAD (2024) and EDF (2025) do."""
    order = (student - teacher).abs().argsort()
    keep = torch.ones_like(student, dtype=torch.bool)
    return keep.index_fill(0, order[: int(epsilon * len(student))], False)


def _prune_first(order: Tensor, student: Tensor, teacher: Tensor, epsilon: float) -> Tensor:
    """Prune the first pairs of `order`, as many as the paper's rule prunes."""
    keep = signed(student, teacher, epsilon)
    return torch.ones_like(keep).index_fill(0, order[: int((~keep).sum())], False)


Rule = str | Callable[[Tensor, Tensor, float], Tensor]
RULES = Table(
    "rule",
    {f.__name__: f for f in (signed, magnitude, none, random, largest, smallest, sign, easiest)},
)


WITHOUT_EPSILON = ("none", "sign")  # rules that do not read it


def keep_mask(student: Tensor, teacher: Tensor, epsilon: float, rule: Rule = "signed") -> Tensor:
    """Mark the effective parameters of Eqs. (5)-(7); False for the difficult-to-match ones.

    - student: parameters (p,).
    - teacher: parameters (p,).
    - epsilon: the threshold, at least 0 and below 1; the paper uses 0.1.
    - rule: a name in RULES, or a function of your own of (student, teacher, epsilon) that returns
      such a mask. Default "signed", the paper's; "none" keeps all, which is MTT.

    Returns a mask (p,), bool, without a gradient. Raises Error for another epsilon or rule.

    There is no division, so zeros need no special case: a pair 0, 0 is kept, and a pair 0, x is
    pruned when epsilon > 0.

    >>> import ddpp, torch
    >>> student, teacher = torch.tensor([1.0, 1.0, 1.0]), torch.tensor([2.0, 20.0, -1.0])
    >>> ddpp.keep_mask(student, teacher, epsilon=0.1).tolist()
    [True, False, False]
    """
    if not 0 <= epsilon < 1:
        raise Error(f"epsilon is {epsilon}: it must be at least 0 and below 1 (the paper uses 0.1)")
    prune = find_rule(rule)
    # copies, as a rule may work in place
    student, teacher = student.detach().clone(), teacher.detach().clone()
    return check_mask(prune(student, teacher, epsilon), student)


def check_rule(rule: str, size: int, device: torch.device | str, epsilon: float = 0.1) -> None:
    """Raise an Error for a rule of one's own that cannot be used on vectors (size,) on a device.

    It must return a mask, and the same one for equal vectors: a step asks for it more than once.
    """
    if not RULES.is_brought(rule):
        return
    before = RULES.marks(rule)
    rng = generator(0, "probe")
    draw = lambda: torch.randn(size, generator=rng, dtype=torch.float32).to(device)
    student, teacher = draw(), draw()
    teacher[::7], student[::11] = student[::7], 0  # as a rule may draw on ties alone
    try:
        (one, draws), (two, _) = (
            drawn(lambda: keep_mask(student, teacher, epsilon, rule)) for _ in range(2)
        )
    except NotImplementedError:
        raise Error(f"the rule {rule} is still to be written: it raises that it is not") from None
    RULES.check_unchanged(before)
    if draws or not torch.equal(one, two):
        raise Error(
            "the rule gives the same student and teacher another mask each time: take what is "
            "random from the two vectors, as the rule `random` does"
        )


def find_rule(rule: Rule) -> Callable[[Tensor, Tensor, float], Tensor]:
    """Look up a rule. A function is one itself. Raises Error for an unknown name.

    One of a user's own raises Error where it fails. Exceptions are a lack of memory, and a rule
    that is still to be written.
    """
    found = RULES[choose("rule", rule, RULES)] if isinstance(rule, str) else rule
    return found if found in RULES.built_in.values() else partial(_call, found)


def _call(
    rule: Callable[[Tensor, Tensor, float], Tensor],
    student: Tensor,
    teacher: Tensor,
    epsilon: float,
) -> Tensor:
    """Call a rule of a user's own."""
    try:
        keep = rule(student, teacher, epsilon)
        # a mask made under torch.inference_mode cannot take part in a gradient, but its copy can
        return keep.clone() if isinstance(keep, Tensor) and keep.is_inference() else keep
    except (Error, torch.OutOfMemoryError):  # an engine may take less
        raise
    except Exception as e:
        if isinstance(e, NotImplementedError) and not e.args:
            raise
        raise Error(
            f"the rule fails on vectors of {len(student)} parameters at epsilon {epsilon}: "
            f"{first_line(e)}"
        ) from e


def check_mask(keep: Tensor, student: Tensor) -> Tensor:
    """Return what a rule made of a student (p,), if it is a mask. Else raise an Error."""
    if isinstance(keep, Tensor) and keep.dtype == torch.bool and keep.shape == student.shape:
        if keep.device != student.device:
            raise Error(
                f"the rule returns a mask on {keep.device} for vectors on {student.device}: make "
                "it with device=student.device"
            )
        return keep
    raise Error(
        f"the rule returns {described(keep)}: it must return one bool per parameter, "
        f"{len(student)} here, True where it is kept"
    )


def masked_loss(student: Tensor, teacher: Tensor, start: Tensor, keep: Tensor) -> Tensor:
    """Compute Eq. (8) for a given mask: the squared distance between student and teacher over the
    teacher's squared displacement, effective entries only.
    """
    return ((student - teacher).square() * keep).sum() / ((start - teacher).square() * keep).sum()


def matching_loss(
    student: Tensor, teacher: Tensor, start: Tensor, epsilon: float, rule: Rule = "signed"
) -> Tensor:
    """Prune the difficult-to-match parameters, then match the remaining ones: Eqs. (3)-(8).

    - student: parameters (p,) after J updates. The loss is differentiable in them.
    - teacher: parameters (p,), K epochs after the start.
    - start: parameters (p,) that both left from.
    - epsilon: the threshold, at least 0 and below 1; the paper uses 0.1.
    - rule: a name in RULES, or a function, see `keep_mask`. Default "signed", the paper's.

    Returns a scalar. It is not finite where no parameter is kept or the teacher has not moved:
    `distill` skips such a step and counts it. Raises Error for another epsilon or rule.

    >>> import ddpp, torch
    >>> start, teacher = torch.zeros(3), torch.tensor([2.0, 20.0, -1.0])
    >>> student = torch.tensor([1.0, 1.0, 1.0])
    >>> ddpp.matching_loss(student, teacher, start, epsilon=0.1).item()  # of the first pair
    0.25
    """
    return masked_loss(student, teacher, start, keep_mask(student, teacher, epsilon, rule))
