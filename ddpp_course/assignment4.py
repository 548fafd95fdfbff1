"""The checks of assignment 4: a rule of one's own, one run, the paired difference with its error,
and a small study.

small_images and pair are not checks: they give the study its data, and the rule something real to
be tried on.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import cast

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from torch import Tensor

from ddpp import pruning
from ddpp.book import tables
from ddpp.data import ImageData, Split, load_data
from ddpp.data.whitening import fit_zca
from ddpp.distilling import DistillConfig, distill
from ddpp.evaluating import Evaluation, evaluate
from ddpp.experiments.recipes import Recipe
from ddpp.foundation.seeds import generator
from ddpp.teachers import Teachers
from ddpp.unrolling import draw_updates, unroll
from ddpp_course.checks import Mistake, ask, close, compare, describe, good, tensor

Setting = tuple[str, float]  # rule, epsilon
NO_RULE = "`run_once` takes no notice of the rule: how does it get into the config?"
# points by which a stored accuracy may differ from its repetition: it may be rounded to one decimal
CLOSE = 0.06


def small_images() -> ImageData:
    """The bundled sample of CIFAR-10 at half its size, 3 x 16 x 16, whitened anew; on the CPU."""
    data = load_data(zca=False, device="cpu")
    half = lambda split: F.avg_pool2d(data.whitening.invert(split.images), 2)
    whitening = fit_zca(half(data.train))
    splits = {name: getattr(data, name) for name in ("train", "validation", "test")}
    small = {
        name: Split(whitening.apply(half(split)), split.labels) for name, split in splits.items()
    }
    return replace(
        data,
        name="cifar10-sample at half size",
        whitening=whitening,
        sha256=f"{data.sha256}/2",
        **small,
    )


def pair(
    data: ImageData, teachers: Teachers, recipe: Recipe, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """A student after its J updates on real images, and its teacher K epochs on: two vectors
    (p,).
    """
    config, rng = _settings(recipe), generator(seed, "pair")
    images, labels = data.draw(config.ipc, seed)
    k, epoch = seed % len(teachers), (seed + 1) % config.max_start_epoch
    start, teacher = (teachers.snapshot(k, e) for e in (epoch, epoch + config.expert_epochs))
    updates = draw_updates(len(labels), config.batch, config.student_steps, rng)
    loss = lambda student: (student - teacher).square().sum()
    alpha = torch.tensor(config.alpha0)
    return unroll(
        teachers.network, start, images, labels, alpha, updates, loss, "autograd"
    ).student.detach(), teacher


def _settings(recipe: Recipe) -> DistillConfig:
    """The settings of a recipe for ddpp."""
    return cast(DistillConfig, recipe.distill)


def rule(my_rule: Callable, epsilon: float, student: Tensor, teacher: Tensor) -> None:
    """What makes a function a rule; which pairs it prunes is free."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, (int, float)) or not 0 <= epsilon < 1:
        raise Mistake(f"`my_epsilon` should be a number from 0 to below 1, not {describe(epsilon)}")
    # these two are the study's own
    keep = _mask(my_rule, epsilon, student.clone(), teacher.clone())
    if keep.all():
        raise Mistake(
            f"`my_rule` prunes nothing of a real pair at epsilon {epsilon:g}: that is the "
            "baseline. Try another "
            "epsilon, or another scale in the rule"
        )
    if not keep.any():
        raise Mistake(
            f"`my_rule` keeps nothing of a real pair at epsilon {epsilon:g}: is True what is kept?"
        )
    half = len(student) // 2
    # another network is as good
    _mask(my_rule, epsilon, student[:half].clone(), teacher[:half].clone())
    _mask(my_rule, epsilon, student[:7].clone(), teacher[:7].clone())
    good(f"a rule: it keeps {keep.float().mean():.1%} of a real pair, and the same ones each time")


def _mask(my_rule: Callable, epsilon: float, student: Tensor, teacher: Tensor) -> Tensor:
    """What a rule keeps, if it is a mask and the same one when asked again."""
    keep, again = (
        tensor(ask(my_rule, student, teacher, epsilon, forbid=(pruning,)), student.shape, "my_rule")
        for _ in range(2)
    )
    if keep.dtype != torch.bool:
        raise Mistake(
            f"`my_rule` returns {keep.dtype}: a mask has the type torch.bool, as a comparison "
            "gives it. Then it is a "
            "constant of the step, and no gradient runs through it"
        )
    if not torch.equal(keep, again):
        raise Mistake(
            "`my_rule` gives two masks for one pair: a step must be repeatable. What it draws "
            "should come from a "
            "generator with a fixed seed, or with one made of the student and the teacher"
        )
    return keep


def run_once(
    run_once: Callable, data: ImageData, teachers: Teachers, recipe: Recipe, seed: int = 0
) -> None:
    """A run is a function of its arguments; compared with runs at a much shorter scale than the
    study's.
    """
    short = replace(
        recipe,
        distill=replace(
            recipe.distill, steps=2, student_steps=3, rule="magnitude", epsilon=0.3, seed=50
        ),
        protocol=replace(recipe.protocol, epochs=4),
    )

    def call(setting: Setting, seed: int) -> float:
        value = ask(run_once, setting, seed, data, teachers, short)
        if isinstance(value, Evaluation):
            raise Mistake(
                "`run_once` returns an Evaluation: the accuracy is asked for, the mean over its "
                "networks"
            )
        return _number(value, "`run_once`")

    one = 11 + seed
    first, again, unpaired = (
        call(("none", 0.0), one),
        call(("none", 0.0), one),
        call(("none", 0.7), one),
    )
    if first != again:
        raise Mistake(
            f"`run_once` gives {first:.2f}, then {again:.2f} for the same arguments: everything "
            "that it draws "
            "should come from `seed`"
        )
    if first != unpaired:
        if close(
            unpaired, _run((_settings(short).rule, 0.7), short, one, one, data, teachers).mean
        ):
            raise Mistake(NO_RULE)
        raise Mistake(
            "the rule none prunes nothing at every epsilon, and yet `run_once` gives "
            f"{first:.2f} and {unpaired:.2f} for two of them with one seed: does your seed "
            "depend on the setting? "
            "Then the runs of one seed are no pairs"
        )
    for setting, number in (
        (("none", 0.0), one),
        (("signed", 0.95), one),
        (("largest", 0.8), 21 + 3 * seed),
    ):
        value, right = call(setting, number), _run(setting, short, number, number, data, teachers)
        if not close(value, right.mean):
            raise Mistake(
                _what_is_wrong(value, right, setting, number, short, recipe, data, teachers)
            )
    good("the same arguments give the same accuracy; setting and seed both arrive")


def _run(
    setting: Setting, recipe: Recipe, seed: int, tested: int, data: ImageData, teachers: Teachers
) -> Evaluation:
    """One run; tested: the seed of its evaluation."""
    config = replace(_settings(recipe), rule=setting[0], epsilon=setting[1], seed=seed)
    distilled = distill(data, teachers, config, progress=False)
    return evaluate(
        distilled,
        data,
        repeats=recipe.repeats,
        protocol=recipe.protocol,
        seed=tested,
        progress=False,
    )


def _what_is_wrong(
    value, right: Evaluation, setting, seed, short: Recipe, whole: Recipe, data, teachers
) -> str:
    """Where a wrong accuracy comes from, as far as making the mistake can tell."""
    if close(value, right.mean / 100):
        return "your accuracy is a fraction: percent are asked for"
    if close(value, right.final[0]):
        return "your accuracy is that of the first network: the mean over all of them is asked for"
    (rule, epsilon), default = setting, _settings(short)
    wrong: dict[str, tuple[Setting, Recipe, int, int]] = {
        NO_RULE: ((default.rule, epsilon), short, seed, seed),
        "`run_once` takes no notice of epsilon: how does it get into the config?": (
            (rule, default.epsilon),
            short,
            seed,
            seed,
        ),
        "`run_once` takes no notice of the setting": (
            (default.rule, default.epsilon),
            short,
            seed,
            seed,
        ),
        "the seed does not reach the distillation: the config has a seed, too": (
            setting,
            short,
            default.seed,
            seed,
        ),
        "the seed does not reach the evaluation: `evaluate` has an argument `seed`": (
            setting,
            short,
            seed,
            0,
        ),
        "the seed reaches neither the distillation nor the evaluation": (
            setting,
            short,
            default.seed,
            0,
        ),
        "`evaluate` trains five networks unless told otherwise: give it the recipe's `repeats`": (
            setting,
            replace(short, repeats=5),
            seed,
            seed,
        ),
        "`run_once` uses the notebook's recipe: it should use the one that it is given": (
            setting,
            whole,
            seed,
            seed,
        ),
    }
    for sentence, (actual, recipe, distilled, tested) in wrong.items():
        if close(value, _run(actual, recipe, distilled, tested, data, teachers).mean):
            return sentence
    return (
        f"`run_once` gives {value:.2f} % for {setting} and seed {seed}, where the recipe gives "
        f"{right.mean:.2f} %: do "
        "config, repeats, protocol and both seeds come from its arguments, and is it the final "
        "iterate that is tested?"
    )


def paired(paired: Callable, seed: int = 0) -> None:
    """The mean difference and its standard error."""
    rng = generator(seed, "paired")
    normal = lambda n: torch.randn(n, generator=rng, dtype=torch.float64)
    for n in (5, 3, 8 + seed):
        b = 25 + 2 * normal(n)
        a = b + 0.8 + 0.5 * normal(n)
        d, root, fewer = a - b, n**0.5, ((n - 1) / n) ** 0.5
        mean, error = _ask_pairs(paired, a, b)
        right = d.std() / root
        if close(mean, right) and close(error, d.mean()):
            raise Mistake("`paired` returns the error first: the mean difference comes first")
        wrong = {
            "the wrong way round: a minus b is asked for, so that a better setting has a "
            "positive one": -d.mean(),
            "a fraction: give points, percent minus percent": d.mean() / 100,
            "relative to the baseline: give points, percent minus percent": 100
            * d.mean()
            / b.mean(),
            "a sum: divide by the number of seeds": d.sum(),
            "the mean of a: take the baseline off": a.mean(),
            "the median of the differences: their mean is asked for": d.median(),
        }
        _compare("mean difference", mean, d.mean(), wrong)
        groups = ((a.var() + b.var()) / n).sqrt()
        take = "take the differences first, seed by seed"
        wrong = {
            f"that of two independent groups: runs of one seed are a pair, so {take}": groups,
            f"that of two independent groups, and with n for n - 1: {take}": groups * fewer,
            f"the deviations of a and b together: {take}": groups * root,
            f"a difference of two errors: {take}": (a.std() - b.std()) / root,
            "the standard deviation of the differences: their mean scatters less, by the root of "
            "n": d.std(),
            "the deviation with n for n - 1, and not divided by the root of n": d.std() * fewer,
            "too small: compute the deviation with n - 1, not with n": right * fewer,
            "too large: n - 1 belongs into the deviation, n under "
            "the root that it is divided by": right / fewer,
            "divided by n: the error of a mean falls with the root of n": right / root,
            "a variance: take its root": right**2,
            "that of a alone: it is the differences that matter": a.std() / root,
            "half of an interval: t comes in the next function": tables.T_95[min(n, 10) - 2]
            * right,
            "a fraction: give points": right / 100,
        }
        _compare("error", error, right, wrong)
    b = 25 + 2 * normal(4)
    mean, error = _ask_pairs(paired, b - 0.5, b)
    if abs(mean + 0.5) > 1e-4 or abs(error) > 1e-4:
        raise Mistake(
            f"where a is b - 0.5 for every seed, you get {mean:.4g} ± {error:.4g}, which should "
            "be -0.5 ± 0"
        )
    good("mean and standard error of the differences, seed by seed")


def _compare(name: str, value: float, right: Tensor, wrong: dict[str, Tensor]) -> None:
    """As `compare`, each sentence begun with what it is about."""
    otherwise = f"your {name} is {value:.4g}, which should be {float(right):.4g}"
    compare(
        value,
        right,
        {f"your {name} is {what}": answer for what, answer in wrong.items()},
        otherwise,
    )


def _ask_pairs(paired: Callable, a: Tensor, b: Tensor) -> tuple[float, float]:
    lists = a.tolist(), b.tolist()
    answer = _two(
        ask(paired, *lists, forbid=(tables,)),
        "paired",
        "the mean difference and its standard error",
    )
    if lists != (a.tolist(), b.tolist()):
        raise Mistake("`paired` changes a list that it is given")
    return answer


def interval(interval: Callable, seed: int = 0) -> None:
    """The 95 % interval by Student's t."""
    rng = generator(seed, "interval")
    for n in (5, 3, 2, 9):
        mean, error = (torch.rand(2, generator=rng, dtype=torch.float64) + 0.2).tolist()
        t_less, t, t_more = (0, *tables.T_95)[n - 2 : n + 1]
        around = lambda half, mean=mean: torch.tensor(
            [mean - half, mean + half], dtype=torch.float64
        )
        low, high = _two(
            ask(interval, mean, error, n, forbid=(tables,)), "interval", "its ends, low and high"
        )
        few = "with few seeds the error itself is uncertain, hence t"
        wrong = {
            "has its ends the wrong way round: the low one comes first": around(-t * error),
            f"is 1.96 errors wide on each side, as of a normal distribution: {few}": around(
                1.96 * error
            ),
            f"is two errors wide on each side: {few}": around(2 * error),
            f"is one error wide on each side: {few}": around(error),
            "takes t for n degrees of freedom: n differences have n - 1": around(t_more * error),
            "takes t for n - 2 degrees of freedom: n differences have n - 1": around(
                t_less * error
            ),
            "is divided by the root of n once more: a standard error is so already": around(
                t * error / n**0.5
            ),
            "lies around 0: it should lie around the mean": around(t * error, 0.0),
            "is half as wide as it should be: t errors on each side": around(t * error / 2),
        }
        right, got = around(t * error), f"{low:.3f} to {high:.3f} for {mean:.3f} ± {error:.3f}"
        otherwise = (
            f"your interval is {got} of {n} seeds, which should be {right[0]:.3f} to {right[1]:.3f}"
        )
        value = torch.tensor([low, high], dtype=torch.float64)
        compare(
            value,
            right,
            {f"your interval {what}": other for what, other in wrong.items()},
            otherwise,
            1e-3,
        )
    good("t standard errors on each side of the mean")


def verdict(verdict: Callable, seed: int = 0) -> None:
    """What an interval allows one to say."""
    x = 1 + seed / 4
    either = "the interval holds 0, so the difference may have either sign, whatever its mean"
    cases = [
        (1.2, 0.5, 1.9, "better", "all of the interval is above 0"),
        (-1.2, -1.9, -0.5, "worse", "all of the interval is below 0"),
        (0.8, -0.1, 1.7, "cannot tell", either),
        (-0.8, -1.7, 0.1, "cannot tell", either),
    ]
    if seed:
        edge = "the interval holds 0, at its end: no difference is not excluded"
        cases += [(0.5, 0.0, 1.0, "cannot tell", edge), (-0.5, -1.0, 0.0, "cannot tell", edge)]
        cases += [
            (0.0, 0.0, 0.0, "cannot tell", "no seed differs"),
            (0.02, 0.01, 0.03, "better", "all of the interval is above 0, however little"),
            (-0.02, -0.03, -0.01, "worse", "all of the interval is below 0, however little"),
        ]
    for mean, low, high, right, why in cases:
        numbers = mean * x, low * x, high * x
        said = ask(verdict, *numbers)
        if not isinstance(said, str):
            raise Mistake(f"`verdict` should return one of three words, not {describe(said)}")
        if said not in ("better", "worse", "cannot tell"):
            raise Mistake(
                f"`verdict` says {said!r}: it should say 'better', 'worse' or 'cannot tell'"
            )
        if said != right:
            raise Mistake(
                f"`verdict` says {said!r} for {numbers[0]:+.2f}, interval {numbers[1]:+.2f} to "
                f"{numbers[2]:+.2f}; "
                f"{right!r} is right: {why}"
            )
    good("the word that the interval allows")


def study(
    results: dict,
    seeds: Sequence[int],
    run_once: Callable,
    data: ImageData,
    teachers: Teachers,
    recipe: Recipe,
    which: int = 0,
) -> None:
    """Complete, and made by run_once: one run is repeated (`which` decides which one)."""
    if not isinstance(results, dict):
        raise Mistake(f"`results` should be a dict, setting -> accuracies, not {describe(results)}")
    if not isinstance(seeds, (list, tuple, range)) or not all(type(seed) is int for seed in seeds):
        raise Mistake("`seeds` should be a list of whole numbers")
    if not seeds and not results:
        raise Mistake("the study is not written yet: `seeds` and `results` are empty")
    if len(seeds) > 13:
        raise Mistake(f"{len(seeds)} seeds are more than the table of t has: take at most 13")
    if len(set(seeds)) < max(3, len(seeds)):
        raise Mistake(
            f"{len(set(seeds))} different seeds out of {len(seeds)}: at least 3 are asked for, "
            "none of them twice"
        )
    for setting, values in results.items():
        _check_setting(setting)
        if (
            isinstance(values, (str, dict))
            or not hasattr(values, "__len__")
            or len(values) != len(seeds)
        ):
            raise Mistake(
                f"{setting} should have a list of {len(seeds)} accuracies, one for each seed, in "
                "their order"
            )
        for value in values:
            if not 0 <= _number(value, f"{setting}") <= 100:
                raise Mistake(
                    f"{setting} has the accuracy {float(value):g}, which is no percentage"
                )
    base = [setting for setting in results if setting[0] == "none" or setting == ("magnitude", 0)]
    others = [setting for setting in results if setting not in base]
    if not base:
        raise Mistake(
            "there is no baseline: a setting that prunes nothing, ('none', 0.0), belongs to the "
            "study"
        )
    if not others:
        raise Mistake("all settings prune nothing: with what is the baseline to be compared?")
    settings = [*others, *base]
    setting, i = settings[which % len(settings)], (which - 1) % len(seeds)
    again = _number(ask(run_once, setting, seeds[i], data, teachers, recipe), "`run_once`")
    stored = float(results[setting][i])
    if abs(again - stored) > CLOSE:
        raise Mistake(
            f"{setting} has {stored:.2f} for seed {seeds[i]}, but `run_once` gives {again:.2f}: "
            "is each list in "
            "the order of `seeds`, the same ones for every setting? If you have changed a rule, "
            "`run_once` or the "
            "seeds since, run the study again"
        )
    good(
        f"{len(results)} settings, {len(seeds)} seeds each; {setting}, seed {seeds[i]}, "
        f"repeated: {again:.2f} %"
    )


def _check_setting(setting) -> None:
    if not (isinstance(setting, tuple) and len(setting) == 2 and isinstance(setting[0], str)):
        raise Mistake(
            f"a setting is a pair (rule, epsilon), such as ('none', 0.0), not {setting!r}"
        )
    if setting[0] not in pruning.RULES:
        raise Mistake(
            f"there is no rule {setting[0]!r}: did the cell run that adds yours to RULES?"
        )


def figure(plot_results: Callable, seed: int = 0) -> None:
    """Means or seeds of the results that it is given, with their scatter, and both axes
    labelled.
    """
    rng, seeds = generator(seed, "figure"), 4 + seed
    settings = [("none", 0.0), ("first", 0.3), ("second", 0.6), ("third", 0.9)][: 3 + seed % 2]
    results = {
        s: (40 + 5 * i + torch.rand(seeds, generator=rng)).tolist() for i, s in enumerate(settings)
    }
    open_before = set(plt.get_fignums())
    try:
        drawn = ask(plot_results, {setting: list(values) for setting, values in results.items()})
        if not isinstance(drawn, Figure):
            raise Mistake(
                f"`plot_results` should return the Figure, not {describe(drawn)}: `fig, axis = "
                "plt.subplots()`"
            )
        if not any(axis.get_xlabel() and axis.get_ylabel() for axis in drawn.axes):
            raise Mistake(
                "your figure does not say what its axes show: give both a label, with the unit"
            )
        numbers, bars = _numbers_in(drawn)
    finally:
        for number in set(plt.get_fignums()) - open_before:
            plt.close(number)
    shown = lambda values: all(
        any(abs(value - number) < 0.01 for number in numbers) for value in values
    )
    means = {setting: sum(values) / seeds for setting, values in results.items()}
    gains = [mean - means["none", 0.0] for setting, mean in means.items() if setting[0] != "none"]
    each = shown(value for values in results.values() for value in values)
    if not (each or shown(means.values()) or shown(gains)):
        raise Mistake(
            "your figure shows neither the seeds nor the means of the results that it is given: "
            "does it draw "
            "`results` of the notebook, or some of the settings only?"
        )
    if not (each or bars):
        raise Mistake(
            "your figure has means without their scatter: add error bars, or a point for each seed"
        )
    good("a figure that shows how far the numbers can be trusted")


def _numbers_in(drawn: Figure) -> tuple[list[float], bool]:
    """All coordinates in a figure, and whether it has error bars, or lines that look like them."""
    found, bars = [], False
    for axis in drawn.axes:
        for line in axis.lines:
            x, y = (np.asarray(values, dtype=float) for values in line.get_data(orig=False))
            found += [*x, *y]
            upright = len(x) > 1 and (np.ptp(x) == 0 < np.ptp(y) or np.ptp(y) == 0 < np.ptp(x))
            bars = bars or (upright and line.get_transform() == axis.transData)  # axhline is none
        for collection in axis.collections:
            found += np.asarray(collection.get_offsets(), dtype=float).flatten().tolist()
        for patch in axis.patches:
            found += (
                patch.get_extents()
                .transformed(axis.transData.inverted())
                .get_points()
                .flatten()
                .tolist()
            )
        bars = bars or any(
            isinstance(c, ErrorbarContainer) and (c.has_yerr or c.has_xerr) for c in axis.containers
        )
    return found, bars


def _number(value, name: str) -> float:
    """A finite number, as a float."""
    if isinstance(value, Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, (bool, str, bytes)) or not hasattr(value, "__float__"):
        raise Mistake(f"{name} should give one number, not {describe(value)}")
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise Mistake(f"{name} should give one number, not {describe(value)}") from None
    if not math.isfinite(value):
        raise Mistake(f"{name} gives {value}: did the run, or a division, go wrong?")
    return value


def _two(values, name: str, what: str) -> tuple[float, float]:
    """Two finite numbers."""
    if not hasattr(values, "__len__") or isinstance(values, (str, dict)) or len(values) != 2:
        raise Mistake(f"`{name}` should return two numbers, {what}, not {describe(values)}")
    one, two = values
    return _number(one, f"`{name}`"), _number(two, f"`{name}`")
