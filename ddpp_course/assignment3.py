"""Checks of assignment 3: the pruning rule, Eq. (8) with it, what it prunes, and a student that
lowers Eq. (8) by leaving the teacher.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Size, Tensor

from ddpp import pruning
from ddpp.foundation.seeds import generator
from ddpp.pruning import magnitude, masked_loss, matching_loss, signed
from ddpp_course.checks import Checks, ask, ask_each, close, describe, tensor

here = Checks("assignment3")


def similarity(similarity: Callable, seed: int = 0) -> None:
    """The right ratio with its sign, at zeros, and at sizes whose squares float32 does not have."""
    s, t = _pairs(seed)
    right = pruning.similarity(s, t)
    value = tensor(ask(similarity, s.float(), t.float(), forbid=(pruning,)), s.shape, "similarity")
    run = lambda solution: solution.similarity(s.float(), t.float())
    words = {"example": _example(value, right, s, t)}
    here.compare("similarity", value, right, run, "similarity_otherwise", **words)

    x = 2.0 ** (seed % 5)
    s, t, right = torch.tensor(
        [(0, 0, 1), (0, x, 0), (x, 0, 0), (0, -x, 0), (-x, 0, 0), (x, x, 1), (-x, x, -1)]
    ).T
    value = tensor(ask(similarity, s, t), s.shape, "similarity")
    if not close(value, right):
        raise here.wrong("similarity_zeros", example=_example(value, right, s, t))

    s, t, right = torch.tensor([(1, 1, 1), (1, 0.5, 0.5), (-0.25, -1, 0.25), (1, -0.125, -0.125)]).T
    for size, why in (
        (1e-12, "similarity_constant"),
        (1e-30, "similarity_square_zero"),
        (1e30, "similarity_square_infinity"),
    ):
        value = ask(similarity, s * size, t * size)
        if not (isinstance(value, Tensor) and close(value, right)):
            raise here.wrong("similarity_scale", size=size, why=here.say(why))
    here.good("similarity")


def rules(keep_signed: Callable, keep_magnitude: Callable, seed: int = 0) -> None:
    """Both readings, on pairs of all kinds but the edges."""
    s, t = _pairs(seed)
    for name, function, rule in (
        ("keep_signed", keep_signed, signed),
        ("keep_magnitude", keep_magnitude, magnitude),
    ):
        for epsilon in (0.1, 0.3 + 0.1 * (seed % 6)):
            value = _mask(ask(function, s, t, epsilon, forbid=(pruning,)), s, name)
            keep = rule(s, t, epsilon)
            run = lambda s_, name=name, given=(s, t, epsilon): vars(s_)[name](*given)
            words = {"name": name, "epsilon": epsilon, "example": _example(value, keep, s, t)}
            here.compare(name, value, keep, run, "rules_otherwise", **words)
    here.good("rules")


def zeros(keep_signed: Callable, keep_magnitude: Callable, seed: int = 0) -> None:
    """Both readings where one of a pair is 0, or both are."""
    x, e = _exact(seed)
    beside = (0, x), (x, 0), (0, -x), (-x, 0)
    cases = [(0, 0, epsilon, True, True, "edge_zero") for epsilon in (e, 0)]
    cases += [(*pair, e, False, False, "edge_alone") for pair in beside]
    cases += [(*pair, 0, True, True, "edge_still") for pair in beside]
    _edges(keep_signed, keep_magnitude, cases)
    here.good("zeros")


def threshold(keep_signed: Callable, keep_magnitude: Callable, seed: int = 0) -> None:
    """Both readings at ratios of exactly 1, epsilon and -epsilon, and at epsilon 0."""
    x, e = _exact(seed)
    at = (x, x * e), (x * e, x), (-x, -x * e), (-x * e, -x)
    cases = [(y, y, epsilon, True, True, "edge_equal") for y in (x, -x) for epsilon in (e, 0)]
    cases += [(*pair, e, True, True, "edge_at") for pair in at]
    cases += [(x, -x * e, epsilon, False, True, "edge_apart") for epsilon in (e, 0)]
    cases += [(x, -x, epsilon, False, True, "edge_apart") for epsilon in (e, 0)]
    _edges(keep_signed, keep_magnitude, cases)
    s = torch.tensor([x, -x])
    if _mask(ask(keep_signed, s, -s, e), s, "keep_signed").any():
        raise here.wrong("edges_all_apart")
    here.good("threshold")


def sizes(keep_signed: Callable, keep_magnitude: Callable, seed: int = 0) -> None:
    """Both readings at sizes that float32 has, but not their squares."""
    x, e = _exact(seed)
    far = x, 2.0**-100, 2.0**100
    cases = [(y, y, epsilon, True, True, "edge_equal") for y in far for epsilon in (e, 0)]
    cases += [(y, y * e / 2, e, False, False, "edge_scale") for y in far]
    cases += [(-y * e * 1.5, -y, e, True, True, "edge_scale") for y in far]
    cases += [(y, -y, epsilon, False, True, "edge_apart") for y in far for epsilon in (e, 0)]
    _edges(keep_signed, keep_magnitude, cases)
    here.good("sizes")


def _exact(seed: int) -> tuple[float, float]:
    """A size and an epsilon: powers of two, so that they and their ratios are exact."""
    return 2.0 ** (seed % 7 - 3), 2.0 ** -(1 + seed % 3)


def _edges(keep_signed: Callable, keep_magnitude: Callable, cases: list[tuple]) -> None:
    """Raise a Mistake for the first case that a function treats otherwise.

    - cases: student, teacher, epsilon, kept if signed, kept by magnitude, key of the reason.
    """
    for name, function, column in (
        ("keep_signed", keep_signed, 3),
        ("keep_magnitude", keep_magnitude, 4),
    ):
        for epsilon in dict.fromkeys(case[2] for case in cases):
            some = [case for case in cases if case[2] == epsilon]
            s, t = torch.tensor([case[:2] for case in some]).T
            value = _mask(ask(function, s, t, epsilon), s, name)
            for kept, case in zip(value.tolist(), some, strict=True):
                if kept != case[column]:
                    words = {"name": name, "pair": _pair(*case[:2]), "epsilon": epsilon}
                    did = "edges_keeps" if kept else "edges_prunes"
                    raise here.wrong(did, why=here.say(case[5]), **words)


def loss(pruned_loss: Callable, seed: int = 0) -> None:
    """The value of Eq. (8)."""
    for epsilon in (0.1, 0.3 + 0.1 * (seed % 3)):
        given = s, t, start = _triple(seed, epsilon)
        forbid = masked_loss, matching_loss
        value = _number(ask(pruned_loss, *given, epsilon, forbid=forbid), here.say("the_loss"))
        right = masked_loss(s, t, start, signed(s, t, epsilon))
        run = lambda solution, given=(*given, epsilon): solution.pruned_loss(*given)
        words = {"epsilon": epsilon, "found": value, "right": float(right)}
        here.compare("loss", value, right, run, "loss_otherwise", 1e-3, **words)

    value = _number(ask(pruned_loss, -t, t, start, epsilon), here.say("the_loss"), finite=False)
    if math.isfinite(value):
        raise here.wrong("loss_all_pruned", found=value)
    here.good("loss")


def gradient(pruned_loss: Callable, seed: int = 0) -> None:
    """The gradient belongs to the loss's own value with the mask held fixed, and goes to the
    student's kept entries.
    """
    epsilon, h, names = 0.3, 1e-3, ("student", "teacher", "start")
    s, t, start = _triple(seed, epsilon, 40, torch.float64)
    asking = [x.clone().requires_grad_() for x in (s, t, start)]
    value = ask(pruned_loss, *asking, epsilon, forbid=(masked_loss, matching_loss))
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise here.wrong("gradient_of_number", found=describe(value))
    got = dict(zip(names, _gradients(value, asking), strict=True))
    if not got["student"].any():
        raise here.wrong("gradient_none")

    moved = [s + by * entry for by in (h, -h) for entry in torch.eye(len(s), dtype=s.dtype)]
    values = ask_each(pruned_loss, [(student, t, start, epsilon) for student in moved])
    values = [_number(value, here.say("the_loss")) for value in values]
    up, down = torch.tensor(values, dtype=s.dtype).view(2, len(s))
    right = (up - down) / (2 * h)
    pulled = ~signed(s, t, epsilon) & (got["student"].abs() > 1e-3 * got["student"].abs().max())
    if (pulled & (right == 0)).any():
        raise here.wrong("gradient_through_mask")
    if pulled.any():
        raise here.wrong("gradient_of_pruned")
    if not close(got["student"], right, 1e-2):
        raise here.wrong("gradient_other")
    for name in names[1:]:
        if got[name].any():
            raise here.wrong("gradient_reaches", name=name)
    here.good("gradient")


def _gradients(value: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """The gradient of a student's loss in each input, 0 where none reaches it."""
    if not value.requires_grad:
        return [torch.zeros_like(x) for x in inputs]
    try:
        found = torch.autograd.grad(value.sum(), inputs, allow_unused=True)
    except RuntimeError as e:
        raise here.wrong("gradient_stops", error=e) from e
    return [torch.zeros_like(x) if g is None else g for x, g in zip(inputs, found, strict=True)]


def layers(pruned_by_layer: Callable, seed: int = 0) -> None:
    """Percent pruned of each layer."""
    rng = generator(seed, "layers")
    n, m = torch.randint(4, 9, (2,), generator=rng).tolist()
    shapes = {
        "0.weight": Size((n, 3, 3, 3)),
        "0.bias": Size((n,)),
        "2.weight": Size((m, n)),
        "2.bias": Size((m,)),
    }
    sizes = torch.tensor([shape.numel() for shape in shapes.values()])
    often = torch.rand(4, generator=rng).repeat_interleave(sizes)
    keep = torch.rand(len(often), generator=rng) > often
    value = ask(pruned_by_layer, keep, shapes)
    if not isinstance(value, Mapping) or set(value) != set(shapes):
        found = list(value) if isinstance(value, Mapping) else describe(value)
        raise here.wrong("layers_names", right=list(shapes), found=found)
    numbers = [_number(value[name], here.say("share_of", name=name)) for name in shapes]
    parts = (~keep).split(sizes.tolist())
    right = 100 * torch.stack([part.sum() for part in parts]) / sizes
    run = lambda s: [float(s.pruned_by_layer(keep, shapes)[name]) for name in shapes]
    listed = lambda x: ", ".join(f"{v:.1f}" for v in x)
    words = {"names": ", ".join(shapes), "found": listed(numbers), "right": listed(right.tolist())}
    here.compare("layers", numbers, right, run, "layers_otherwise", **words)
    here.good("layers")


def opposite(opposite_share: Callable, seed: int = 0) -> None:
    """Percent of the pruned pairs that have opposite signs."""
    s, t = _pairs(seed)
    rng = generator(seed, "opposite")
    for zeros in (s, t):
        zeros[torch.rand(len(s), generator=rng) < 0.2] = 0
    keep = torch.rand(len(s), generator=rng) < 0.6
    value = _number(ask(opposite_share, s, t, keep), here.say("your_share"))
    right = 100 * (s * t < 0)[~keep].double().mean()
    run = lambda solution: solution.opposite_share(s, t, keep)
    words = {"right": float(right), "found": value}
    here.compare("opposite", value, right, run, "opposite_otherwise", **words)
    none = _number(ask(opposite_share, s, t, keep | ~keep), here.say("your_share_of_none"))
    if none != 0:
        raise here.wrong("opposite_none", found=none)
    here.good("opposite")


def escape(escape: Callable, seed: int = 0) -> None:
    """By what it achieves: there are many good answers."""
    rng, p, epsilon = generator(seed, "escape"), 4000, (0.1, 0.2)[seed % 2]
    normal = lambda: torch.randn(p, generator=rng)
    t, way, astray = (
        normal(),
        0.02 * normal() * torch.exp(0.6 * normal()),
        torch.rand(p, generator=rng) < 0.4,
    )
    # so that the largest errors are not the ones that weigh most in the loss
    way = torch.where(astray, way, 3.5 * way)
    start, s = t + way, t + way * torch.where(astray, 2.9, 0.5) * normal().sign()
    new = tensor(ask(escape, s, t, start, epsilon), (p,), "escape").detach()
    if not new.is_floating_point():
        raise here.wrong("escape_real", found=new.dtype)
    keep = signed(new, t, epsilon)
    changed = keep & ((new - s).abs() > 1e-5 * s.abs())
    if changed.any():
        i = int(changed.nonzero()[0])
        one = {"before": float(s[i]), "after": float(new[i]), "teacher": float(t[i])}
        raise here.wrong("escape_kept", count=int(changed.sum()), **one)
    if keep.sum() < p / 2:
        raise here.wrong("escape_half", found=100 * float(keep.float().mean()))
    before, after = (float(matching_loss(x, t, start, epsilon)) for x in (s, new))
    if not after <= before / 2:
        raise here.wrong("escape_not_halved", before=before, after=after)
    before, after = (float(matching_loss(x, t, start, 0.0, "none")) for x in (s, new))
    if not after > before:
        raise here.wrong("escape_closer", before=before, after=after)
    here.good("escape")


def _pairs(seed: int, p: int = 400) -> tuple[Tensor, Tensor]:
    """Pairs of all sizes and signs, whose similarity is never close to a multiple of 0.1;
    float64.
    """
    rng = generator(seed, "pairs")
    sign = lambda: torch.randn(p, generator=rng).sign().double()
    larger = 10 ** (2 * torch.rand(p, generator=rng) - 1.5) * sign()
    smaller = larger * (torch.randint(0, 40, (p,), generator=rng) + 0.5) / 40 * sign()
    swap = torch.rand(p, generator=rng) < 0.5
    return torch.where(swap, smaller, larger), torch.where(swap, larger, smaller)


def _triple(seed: int, epsilon: float, p: int = 300, dtype=torch.float32) -> list[Tensor]:
    """Student, teacher and start: many pairs are pruned, and none is close to the threshold."""
    rng = generator(seed, "triple")
    t, way, error = torch.randn(3, 2 * p, generator=rng, dtype=torch.float64) * torch.tensor(
        [[1], [0.3], [0.6]]
    )
    s, start = t + error, t + way + 0.1
    clear = ((pruning.similarity(s, t) - epsilon).abs() > 0.02) & ((s * t).abs() > 0.02)
    return [x[clear][:p].to(dtype) for x in (s, t, start)]


def _mask(value, like: Tensor, name: str) -> Tensor:
    value = tensor(value, like.shape, name)
    if value.dtype != torch.bool:
        raise here.wrong("mask", name=name, found=value.dtype)
    return value


def _number(value, what: str, finite: bool = True) -> float:
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise here.wrong("number", what=what, found=describe(value)) from None
    if finite and not math.isfinite(number):
        raise here.wrong("finite", what=what, found=number)
    return number


def _example(value: Tensor, right: Tensor, s: Tensor, t: Tensor) -> str:
    """The pair at which the answer is most wrong."""
    i = int((value.detach().double() - right.double()).abs().argmax())
    said, true = (
        x[i].item() if x.dtype == torch.bool else f"{float(x[i]):.3g}" for x in (value, right)
    )
    return here.say("example", pair=_pair(s[i], t[i]), right=true, found=said)


def _pair(student, teacher) -> str:
    return f"({float(student):.3g}, {float(teacher):.3g})"
