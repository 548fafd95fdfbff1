"""Checks of assignment 4: a rule of one's own, one run, the paired difference with its error, and a
small study.

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
from ddpp_course.checks import Checks, ask, close, describe, tensor

Setting = tuple[str, float]  # rule, epsilon
# points by which a stored accuracy may differ from its repetition: it may be rounded to one decimal
CLOSE = 0.06
# Student's t, two-sided, by degrees of freedom
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)

here = Checks("assignment4")


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
        raise here.wrong("rule_epsilon", found=describe(epsilon))
    # these two are the study's own
    keep = _mask(my_rule, epsilon, student.clone(), teacher.clone())
    if keep.all():
        raise here.wrong("rule_prunes_nothing", epsilon=epsilon)
    if not keep.any():
        raise here.wrong("rule_keeps_nothing", epsilon=epsilon)
    half = len(student) // 2
    # another network is as good
    _mask(my_rule, epsilon, student[:half].clone(), teacher[:half].clone())
    _mask(my_rule, epsilon, student[:7].clone(), teacher[:7].clone())
    here.good("rule", kept=keep.float().mean())


def _mask(my_rule: Callable, epsilon: float, student: Tensor, teacher: Tensor) -> Tensor:
    """What a rule keeps, if it is a mask and the same one when asked again."""
    keep, again = (
        tensor(ask(my_rule, student, teacher, epsilon, forbid=(pruning,)), student.shape, "my_rule")
        for _ in range(2)
    )
    if keep.dtype != torch.bool:
        raise here.wrong("rule_mask", found=keep.dtype)
    if not torch.equal(keep, again):
        raise here.wrong("rule_two_masks")
    return keep


def run_once(
    run_once: Callable, data: ImageData, teachers: Teachers, recipe: Recipe, seed: int = 0
) -> None:
    """A run is a function of its arguments; compared with runs at a much shorter scale than the
    study's.
    """
    short = _shortened(recipe)

    def call(setting: Setting, seed: int) -> float:
        value = ask(run_once, setting, seed, data, teachers, short)
        if isinstance(value, Evaluation):
            raise here.wrong("run_once_evaluation")
        return _number(value, "`run_once`")

    one = 11 + seed
    first, again, unpaired = (call(("none", epsilon), one) for epsilon in (0.0, 0.0, 0.7))
    if first != again:
        raise here.wrong("run_once_unlike", first=first, again=again)
    if first != unpaired:
        no_rule = _run((str(_settings(short).rule), 0.7), short, one, data, teachers)
        if close(unpaired, no_rule):
            raise here.wrong("run_once_no_rule")
        raise here.wrong("run_once_unpaired", first=first, again=unpaired)
    for setting, number in (
        (("none", 0.0), one),
        (("signed", 0.95), one),
        (("largest", 0.8), 21 + 3 * seed),
    ):
        value, right = call(setting, number), _run(setting, short, number, data, teachers)

        def run(solution, given=(setting, number, data, teachers, short)) -> float:
            solution.run_once.__globals__["recipe"] = recipe  # the notebook's
            return solution.run_once(*given)

        words = {"setting": setting, "seed": number, "found": value, "right": right}
        here.compare("run-once", value, right, run, "run_once_otherwise", **words)
    here.good("run_once")


def _shortened(recipe: Recipe) -> Recipe:
    """The recipe at a much smaller scale, with other settings."""
    settings = {"rule": "magnitude", "epsilon": 0.3, "seed": 50}
    distill = replace(_settings(recipe), steps=2, student_steps=3, **settings)
    return replace(recipe, distill=distill, protocol=replace(recipe.protocol, epochs=4))


def _run(setting: Setting, recipe: Recipe, seed: int, data: ImageData, teachers: Teachers) -> float:
    """The accuracy of one run."""
    config = replace(_settings(recipe), rule=setting[0], epsilon=setting[1], seed=seed)
    distilled = distill(data, teachers, config, progress=False)
    how = {"repeats": recipe.repeats, "protocol": recipe.protocol}
    return evaluate(distilled, data, seed=seed, progress=False, **how).mean


def paired(paired: Callable, seed: int = 0) -> None:
    """The mean difference and its standard error."""
    rng = generator(seed, "paired")
    normal = lambda n: torch.randn(n, generator=rng, dtype=torch.float64)
    for n in (5, 3, 8 + seed):
        b = 25 + 2 * normal(n)
        a = b + 0.8 + 0.5 * normal(n)
        d = a - b
        mean, error = _ask_pairs(paired, a, b)
        right = d.std() / n**0.5
        if close(mean, right) and close(error, d.mean()):
            raise here.wrong("paired_order")
        given = a.tolist(), b.tolist()
        run = lambda i, given=given: lambda s: s.paired(*given)[i]
        words = {"found": mean, "right": float(d.mean())}
        here.compare("mean", mean, d.mean(), run(0), "mean_otherwise", **words)
        words = {"found": error, "right": float(right)}
        here.compare("error", error, right, run(1), "error_otherwise", **words)
    b = 25 + 2 * normal(4)
    mean, error = _ask_pairs(paired, b - 0.5, b)
    if abs(mean + 0.5) > 1e-4 or abs(error) > 1e-4:
        raise here.wrong("paired_constant", mean=mean, error=error)
    here.good("paired")


def _ask_pairs(paired: Callable, a: Tensor, b: Tensor) -> tuple[float, float]:
    lists = a.tolist(), b.tolist()
    answer = _two(ask(paired, *lists, forbid=(tables,)), "paired", "mean_and_error")
    if lists != (a.tolist(), b.tolist()):
        raise here.wrong("paired_changes")
    return answer


def interval(interval: Callable, seed: int = 0) -> None:
    """The 95 % interval by Student's t."""
    rng = generator(seed, "interval")
    for n in (5, 3, 2, 9):
        mean, error = (torch.rand(2, generator=rng, dtype=torch.float64) + 0.2).tolist()
        low, high = _two(
            ask(interval, mean, error, n, forbid=(tables,)), "interval", "low_and_high"
        )
        half = T_95[n - 2] * error
        value, right = (torch.tensor(x).double() for x in ([low, high], [mean - half, mean + half]))
        run = lambda s, given=(mean, error, n): torch.tensor(s.interval(*given)).double()
        words = {"mean": mean, "error": error, "n": n, "low": low, "high": high}
        words |= {"right_low": mean - half, "right_high": mean + half}
        here.compare("interval", value, right, run, "interval_otherwise", 1e-3, **words)
    here.good("interval")


def verdict(verdict: Callable, seed: int = 0) -> None:
    """What an interval allows one to say."""
    x = 1 + seed / 4
    cases = [
        (1.2, 0.5, 1.9, "better", "verdict_above"),
        (-1.2, -1.9, -0.5, "worse", "verdict_below"),
        (0.8, -0.1, 1.7, "cannot tell", "verdict_either"),
        (-0.8, -1.7, 0.1, "cannot tell", "verdict_either"),
    ]
    if seed:
        cases += [
            (0.5, 0.0, 1.0, "cannot tell", "verdict_end"),
            (-0.5, -1.0, 0.0, "cannot tell", "verdict_end"),
            (0.0, 0.0, 0.0, "cannot tell", "verdict_no_difference"),
            (0.02, 0.01, 0.03, "better", "verdict_little_above"),
            (-0.02, -0.03, -0.01, "worse", "verdict_little_below"),
        ]
    for mean, low, high, right, why in cases:
        numbers = {"mean": mean * x, "low": low * x, "high": high * x}
        said = ask(verdict, *numbers.values())
        if not isinstance(said, str):
            raise here.wrong("verdict_no_word", found=describe(said))
        if said not in ("better", "worse", "cannot tell"):
            raise here.wrong("verdict_other_word", found=said)
        if said != right:
            raise here.wrong("verdict_wrong", found=said, right=right, why=here.say(why), **numbers)
    here.good("verdict")


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
    _judge_results(results, seeds)
    base = [setting for setting in results if setting[0] == "none" or setting == ("magnitude", 0)]
    others = [setting for setting in results if setting not in base]
    if not base:
        raise here.wrong("study_no_baseline")
    if not others:
        raise here.wrong("study_baseline_alone")
    settings = [*others, *base]
    setting, i = settings[which % len(settings)], (which - 1) % len(seeds)
    again = _number(ask(run_once, setting, seeds[i], data, teachers, recipe), "`run_once`")
    stored = float(results[setting][i])
    words = {"setting": setting, "seed": seeds[i], "again": again}
    if abs(again - stored) > CLOSE:
        raise here.wrong("study_other", stored=stored, **words)
    here.good("study", settings=len(results), seeds=len(seeds), **words)


def _judge_results(results: dict, seeds: Sequence[int]) -> None:
    """Whether each setting has one accuracy for each seed."""
    if not isinstance(results, dict):
        raise here.wrong("study_no_dict", found=describe(results))
    if not isinstance(seeds, (list, tuple, range)) or not all(type(seed) is int for seed in seeds):
        raise here.wrong("study_seeds")
    if not seeds and not results:
        raise here.wrong("study_unwritten")
    if len(seeds) > 13:
        raise here.wrong("study_many_seeds", found=len(seeds))
    if len(set(seeds)) < max(3, len(seeds)):
        raise here.wrong("study_few_seeds", different=len(set(seeds)), found=len(seeds))
    for setting, values in results.items():
        _check_setting(setting)
        text = isinstance(values, (str, dict)) or not hasattr(values, "__len__")
        if text or len(values) != len(seeds):
            raise here.wrong("study_list", setting=setting, seeds=len(seeds))
        for value in values:
            if not 0 <= _number(value, f"{setting}") <= 100:
                raise here.wrong("study_percent", setting=setting, found=float(value))


def _check_setting(setting) -> None:
    if not (isinstance(setting, tuple) and len(setting) == 2 and isinstance(setting[0], str)):
        raise here.wrong("study_setting", found=setting)
    if setting[0] not in pruning.RULES:
        raise here.wrong("study_rule", found=setting[0])


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
            raise here.wrong("figure_none", found=describe(drawn))
        if not any(axis.get_xlabel() and axis.get_ylabel() for axis in drawn.axes):
            raise here.wrong("figure_labels")
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
        raise here.wrong("figure_other")
    if not (each or bars):
        raise here.wrong("figure_no_scatter")
    here.good("figure")


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
        raise here.wrong("number", name=name, found=describe(value))
    try:
        value = float(value)
    except (TypeError, ValueError):
        raise here.wrong("number", name=name, found=describe(value)) from None
    if not math.isfinite(value):
        raise here.wrong("finite", name=name, found=value)
    return value


def _two(values, name: str, what: str) -> tuple[float, float]:
    """Two finite numbers. what: the key of what they are."""
    if not hasattr(values, "__len__") or isinstance(values, (str, dict)) or len(values) != 2:
        raise here.wrong("two", name=name, what=here.say(what), found=describe(values))
    one, two = values
    return _number(one, f"`{name}`"), _number(two, f"`{name}`")
