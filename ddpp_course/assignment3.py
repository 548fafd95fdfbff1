"""The checks of assignment 3: the pruning rule, Eq. (8) with it, what it prunes, and a student that
slips away.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Size, Tensor

from ddpp import pruning
from ddpp.foundation.seeds import generator
from ddpp.pruning import magnitude, masked_loss, matching_loss, signed
from ddpp_course.checks import Mistake, ask, close, compare, describe, good, tensor


def similarity(similarity: Callable, seed: int = 0) -> None:
    """The right ratio with its sign, at zeros, and at sizes whose squares float32 does not have."""
    s, t = _pairs(seed)
    a, b, right = s / t, t / s, pruning.similarity(s, t)
    value = tensor(ask(similarity, s.float(), t.float(), forbid=(pruning,)), s.shape, "similarity")
    wrong = {
        "your similarity has no sign: it should be negative where the signs differ": right.abs(),
        "your similarity is student / teacher throughout: the "
        "smaller size belongs above the line": a,
        "your similarity is teacher / student throughout: the "
        "smaller size belongs above the line": b,
        "your similarity is the lower ratio: of opposite "
        "signs, that is the one below -1": torch.minimum(a, b),
    }
    compare(value, right, wrong, f"your similarity is wrong: {_example(value, right, s, t)}")

    x = 2.0 ** (seed % 5)
    s, t, right = torch.tensor(
        [(0, 0, 1), (0, x, 0), (x, 0, 0), (0, -x, 0), (-x, 0, 0), (x, x, 1), (-x, x, -1)]
    ).T
    value = tensor(ask(similarity, s, t), s.shape, "similarity")
    if not close(value, right):
        raise Mistake(f"zeros need care: {_example(value, right, s, t)}")

    square = (
        "do you square the entries, or multiply the two? In float32 that gives {}: compare "
        "sizes, and signs"
    )
    constant = "do you add a constant to what you divide by? To a pair so small it means everything"
    s, t, right = torch.tensor([(1, 1, 1), (1, 0.5, 0.5), (-0.25, -1, 0.25), (1, -0.125, -0.125)]).T
    for size, why in (
        (1e-12, constant),
        (1e-30, square.format(0)),
        (1e30, square.format("infinity")),
    ):
        value = ask(similarity, s * size, t * size)
        if not (isinstance(value, Tensor) and close(value, right)):
            raise Mistake(
                f"your similarity changes when both of a pair are multiplied by {size:g}: {why}"
            )
    good("one number for each pair, with its sign, free of NaN, the same at every scale")


def rules(keep_signed: Callable, keep_magnitude: Callable, seed: int = 0) -> None:
    """Both readings, on pairs of all kinds but the edges."""
    s, t = _pairs(seed)
    literally = (
        "compares sizes only: read literally, opposite signs have a negative ratio, "
        "below every epsilon"
    )
    by_size = "prunes pairs for their opposite signs: in this reading only the sizes count"
    readings = (
        ("keep_signed", keep_signed, signed, s / t, t / s, {literally: magnitude}),
        (
            "keep_magnitude",
            keep_magnitude,
            magnitude,
            (s / t).abs(),
            (t / s).abs(),
            {by_size: signed},
        ),
    )
    for name, function, rule, a, b, other in readings:
        for epsilon in (0.1, 0.3 + 0.1 * (seed % 6)):
            value = _mask(ask(function, s, t, epsilon, forbid=(pruning,)), s, name)
            keep = rule(s, t, epsilon)
            wrong = {sentence: reading(s, t, epsilon) for sentence, reading in other.items()} | {
                "is the wrong way round: True means kept, False pruned": ~keep,
                "tests student / teacher only: teacher / student is to be tested as well": a
                >= epsilon,
                "tests teacher / student only: student / teacher is to be tested as well": b
                >= epsilon,
                "prunes where both ratios are below epsilon: one is enough (`or`)": (a >= epsilon)
                | (b >= epsilon),
                f"takes no notice of epsilon: at {epsilon:g} it prunes what it prunes at 0.1": rule(
                    s, t, 0.1
                ),
            }
            otherwise = (
                f"`{name}` is wrong at epsilon {epsilon:g} (True: kept): "
                f"{_example(value, keep, s, t)}"
            )
            compare(
                value,
                keep,
                {f"`{name}` {sentence}": mask for sentence, mask in wrong.items()},
                otherwise,
            )
    good("both readings of the rule, True for kept")


def edges(keep_signed: Callable, keep_magnitude: Callable, seed: int = 0) -> None:
    """Both readings at zeros, at the threshold, at every size, and where everything is pruned."""
    # powers of two: they and their ratios are exact
    x, e = (
        2.0 ** (seed % 7 - 3),
        2.0 ** -(1 + seed % 3),
    )
    sizes = x, 2.0**-100, 2.0**100  # float32 has the last two, but not their squares
    zero = "a pair 0, 0 is equal and kept"
    alone = "0 beside something else is pruned for every epsilon above 0"
    still = "at epsilon 0, zero beside something else is kept, whatever the other's sign"
    equal = "equals are kept, whatever their size and sign"
    at = "a ratio of exactly epsilon is not below epsilon"
    scale = (
        "only the ratio counts, not how large the two are (do you square them, or add a constant?)"
    )
    apart = "opposite signs are pruned if read literally; by magnitude, only the sizes count"
    beside = (0, x), (x, 0), (0, -x), (-x, 0)
    cases = [  # student, teacher, epsilon, kept if signed, kept by magnitude, why
        *((0, 0, epsilon, True, True, zero) for epsilon in (e, 0)),
        *((*pair, e, False, False, alone) for pair in beside),
        *((*pair, 0, True, True, still) for pair in beside),
        *((y, y, epsilon, True, True, equal) for y in (*sizes, -x) for epsilon in (e, 0)),
        *(
            (*pair, e, True, True, at)
            for pair in ((x, x * e), (x * e, x), (-x, -x * e), (-x * e, -x))
        ),
        *((y, y * e / 2, e, False, False, scale) for y in sizes),
        *((-y * e * 1.5, -y, e, True, True, scale) for y in sizes),
        *((x, -x * e, epsilon, False, True, apart) for epsilon in (e, 0)),
        *((y, -y, epsilon, False, True, apart) for y in sizes for epsilon in (e, 0)),
    ]
    for name, function, column in (
        ("keep_signed", keep_signed, 3),
        ("keep_magnitude", keep_magnitude, 4),
    ):
        for epsilon in (e, 0):
            here = [case for case in cases if case[2] == epsilon]
            s, t = torch.tensor([case[:2] for case in here]).T
            value = _mask(ask(function, s, t, epsilon), s, name)
            for kept, case in zip(value.tolist(), here, strict=True):
                if kept != case[column]:
                    did = "keeps" if kept else "prunes"
                    raise Mistake(
                        f"`{name}` {did} the pair {_pair(*case[:2])} at epsilon {epsilon:g}: "
                        f"{case[5]}"
                    )
    s = torch.tensor([x, -x])
    if _mask(ask(keep_signed, s, -s, e), s, "keep_signed").any():
        raise Mistake("where all pairs have opposite signs, the literal reading keeps none")
    good("zeros, thresholds and all sizes are treated as the rule says")


def loss(pruned_loss: Callable, seed: int = 0) -> None:
    """The value of Eq. (8)."""
    for epsilon in (0.1, 0.3 + 0.1 * (seed % 3)):
        s, t, start = _triple(seed, epsilon)
        value = _number(
            ask(pruned_loss, s, t, start, epsilon, forbid=(masked_loss, matching_loss)), "the loss"
        )
        k = signed(s, t, epsilon)
        error, way, right = (s - t).square(), (start - t).square(), masked_loss(s, t, start, k)
        top, below, own, all_ = (
            (error * k).sum(),
            (way * k).sum(),
            ((start - s).square() * k).sum(),
            torch.ones_like(k),
        )
        wrong = {
            "takes the pruned pairs out of the error only, not out of the teacher's way": top
            / way.sum(),
            "takes the pruned pairs out of the teacher's way "
            "only, not out of the error": error.sum() / below,
            "prunes nothing: where does it use the mask?": error.sum() / way.sum(),
            "counts the pruned pairs and leaves out the kept ones: True means kept": masked_loss(
                s, t, start, ~k
            ),
            "prunes by magnitude: the literal reading is asked for": matching_loss(
                s, t, start, epsilon, "magnitude"
            ),
            f"takes no notice of epsilon: at {epsilon:g} it is what it is at 0.1": matching_loss(
                s, t, start, 0.1
            ),
            "is not divided by the teacher's way": top,
            "is a mean over the kept pairs: divide by the teacher's way on them, not by their "
            "number": top / k.sum(),
            "is a mean of one ratio per pair: add up error and way first, divide then": (
                error / way
            )[k].mean(),
            "is divided by the student's way: it is the teacher's, from the start": top / own,
            "divides lengths: Eq. (8) divides their squares": right.sqrt(),
            "has the wrong sign": -right,
            "prunes the teacher alone, so that pruned pairs count as differences": masked_loss(
                s, t * k, start, all_
            ),
            "prunes all but the teacher, so that pruned pairs count as differences": masked_loss(
                s * k, t, start * k, all_
            ),
        }
        otherwise = (
            f"is {value:.4g} where Eq. (8) gives {float(right):.4g}: is every pair "
            "either kept or pruned, and "
        )
        otherwise += "are error and way sums of squares over the kept ones?"
        wrong = {f"your loss {sentence}": answer for sentence, answer in wrong.items()}
        compare(value, right, wrong, f"your loss {otherwise}", 1e-3)

    value = _number(ask(pruned_loss, -t, t, start, epsilon), "the loss", finite=False)
    if math.isfinite(value):
        raise Mistake(
            f"every pair is pruned here, and your loss is {value:.3g}, as if all were well. Eq. "
            "(8) is 0/0 then: leave "
            "it NaN, so that the distillation sees it and skips the step"
        )
    good("Eq. (8), with error and way on the kept pairs alone")


def gradient(pruned_loss: Callable, seed: int = 0) -> None:
    """The gradient is that of the loss's own value with the mask held fixed, and goes to the
    student's kept entries.
    """
    epsilon, h, names = 0.3, 1e-3, ("student", "teacher", "start")
    s, t, start = _triple(seed, epsilon, 40, torch.float64)
    asking = [x.clone().requires_grad_() for x in (s, t, start)]
    value = ask(pruned_loss, *asking, epsilon, forbid=(masked_loss, matching_loss))
    if not isinstance(value, Tensor) or value.numel() != 1:
        raise Mistake(
            f"the loss should be a tensor with one number, not {describe(value)}: it is to be "
            "differentiated"
        )
    try:
        reached = (
            torch.autograd.grad(value.sum(), asking, allow_unused=True)
            if value.requires_grad
            else [None] * 3
        )
    except RuntimeError as e:
        raise Mistake(f"your loss cannot be differentiated: {e}") from e
    got = {
        name: torch.zeros_like(s) if g is None else g
        for name, g in zip(names, reached, strict=True)
    }
    if not got["student"].any():
        raise Mistake(
            "no gradient reaches the student: was it detached, made a float, or used under "
            "torch.no_grad()?"
        )

    def moved(i: int, by: float) -> float:
        student = s.clone()
        student[i] += by
        return _number(ask(pruned_loss, student, t, start, epsilon), "the loss")

    right = torch.tensor([(moved(i, h) - moved(i, -h)) / (2 * h) for i in range(len(s))])
    pulled = ~signed(s, t, epsilon) & (got["student"].abs() > 1e-3 * got["student"].abs().max())
    if (pulled & (right == 0)).any():
        raise Mistake(
            "pairs that do not count in your loss have a gradient: it runs through the mask. The "
            "mask is a constant of "
            "the step, a comparison, which has no gradient"
        )
    if pulled.any():
        raise Mistake(
            "pruned pairs have a gradient, because they count in your loss: only kept ones should"
        )
    if not close(got["student"], right, 1e-2):
        raise Mistake(
            "move an entry of the student a little, and your loss changes by something else than "
            "its gradient says: is "
            "the student detached somewhere in it, or the mask no comparison?"
        )
    for name in names[1:]:
        if got[name].any():
            raise Mistake(
                f"a gradient reaches the {name}: for this loss it is a constant, so `detach()` it"
            )
    good("the gradient goes to the kept entries of the student, and nowhere else")


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
        raise Mistake(
            f"`pruned_by_layer` should return a dict with the names {list(shapes)}, not {found}"
        )
    value = torch.tensor([_number(value[name], f"the share of {name}") for name in shapes])
    parts = (~keep).split(sizes.tolist())
    pruned = torch.stack([part.sum() for part in parts])
    right, first = 100 * pruned / sizes, [100 * (~keep[:size]).double().mean() for size in sizes]
    wrong = {
        "are fractions: percent are asked for": right / 100,
        "are of what is kept: what is pruned is asked for": 100 - right,
        "are of all parameters: each should be of the parameters of its layer": 100
        * pruned
        / len(keep),
        "are of all that is pruned: each should be of the parameters of its layer": 100
        * pruned
        / pruned.sum(),
        "are numbers of parameters: percent are asked for": pruned,
        "all seem to be read from the beginning of the mask: where one layer ends, the next "
        "begins": torch.stack(first),
    }
    lists = [", ".join(f"{v:.1f}" for v in x.tolist()) for x in (value, right)]
    otherwise = (
        f"your shares of {', '.join(shapes)} are {lists[0]}, but {lists[1]} percent of "
        "them are pruned"
    )
    compare(
        value,
        right,
        {f"your shares {sentence}": answer for sentence, answer in wrong.items()},
        otherwise,
    )
    good("the share of each layer that is pruned")


def opposite(opposite_share: Callable, seed: int = 0) -> None:
    """Percent of the pruned pairs that have opposite signs."""
    s, t = _pairs(seed)
    rng = generator(seed, "opposite")
    s[torch.rand(len(s), generator=rng) < 0.2] = 0
    keep = torch.rand(len(s), generator=rng) < 0.6
    value = _number(ask(opposite_share, s, t, keep), "your share")
    apart, share = s * t < 0, lambda which, among: 100 * which[among].double().mean()
    right = share(apart, ~keep)
    wrong = {
        "is a fraction: percent are asked for": right / 100,
        "is of all pairs: it should be of the pruned ones": share(apart & ~keep, keep | ~keep),
        "is of the kept pairs: it should be of the pruned ones": share(apart, keep),
        "takes no notice of the mask: it should be of the pruned pairs": share(apart, keep | ~keep),
        "counts pairs with a zero, which has no sign": share(s * t <= 0, ~keep),
        "is that of equal signs": share(s * t > 0, ~keep),
        "is how many of the pairs of opposite signs are pruned: the question is the other way "
        "round": share(~keep, apart),
    }
    otherwise = (
        f"{float(right):.1f} percent of the pruned pairs have opposite signs, not {value:.1f}"
    )
    compare(
        value,
        right,
        {f"your share {sentence}": answer for sentence, answer in wrong.items()},
        otherwise,
    )
    none = _number(ask(opposite_share, s, t, keep | ~keep), "where nothing is pruned, your share")
    if none != 0:
        raise Mistake(f"where nothing is pruned, the share should be 0, not {none:g}")
    good("how many of the pruned pairs have opposite signs")


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
        raise Mistake(f"`escape` should return the parameters of a student, not {new.dtype}")
    keep = signed(new, t, epsilon)
    changed = keep & ((new - s).abs() > 1e-5 * s.abs())
    if changed.any():
        i = int(changed.nonzero()[0])
        raise Mistake(
            f"your student has moved {int(changed.sum())} entries that are still kept, one from "
            f"{float(s[i]):.3g} to "
            f"{float(new[i]):.3g} (teacher {float(t[i]):.3g}): only entries that are pruned then "
            "may move"
        )
    if keep.sum() < p / 2:
        raise Mistake(
            f"your student keeps {100 * float(keep.float().mean()):.0f} % of its pairs: at least "
            "half are asked for"
        )
    before, after = (float(matching_loss(x, t, start, epsilon)) for x in (s, new))
    if not after <= before / 2:
        raise Mistake(
            f"Eq. (8) goes from {before:.2f} to {after:.2f} only: it should be halved. A pruned "
            "pair leaves the error "
            "and the teacher's way: which pairs have much of the one, and little of the other?"
        )
    before, after = (float(matching_loss(x, t, start, 0.0, "none")) for x in (s, new))
    if not after > before:
        raise Mistake(
            f"over all parameters the loss goes from {before:.2f} to {after:.2f}: it should "
            "become worse"
        )
    good("Eq. (8) is at most half of what it was, and the student is farther away than before")


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
        raise Mistake(f"`{name}` should return True and False (torch.bool), not {value.dtype}")
    return value


def _number(value, what: str, finite: bool = True) -> float:
    try:
        number = float(value.detach() if isinstance(value, Tensor) else value)
    except (TypeError, ValueError, RuntimeError):
        raise Mistake(f"{what} should be one number, not {describe(value)}") from None
    if finite and not math.isfinite(number):
        raise Mistake(
            f"{what} is {number}: is something divided by zero, or a mean taken of nothing?"
        )
    return number


def _example(value: Tensor, right: Tensor, s: Tensor, t: Tensor) -> str:
    """The pair at which the answer is most wrong."""
    i = int((value.detach().double() - right.double()).abs().argmax())
    said, true = (
        x[i].item() if x.dtype == torch.bool else f"{float(x[i]):.3g}" for x in (value, right)
    )
    return f"for the pair {_pair(s[i], t[i])} it should be {true}, not {said}"


def _pair(student, teacher) -> str:
    return f"({float(student):.3g}, {float(teacher):.3g})"
