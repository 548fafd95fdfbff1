"""Pruning rules compared on equal terms: paired runs, and what their differences say."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ddpp.data import ImageData
from ddpp.experiments.lists import Run, seeded
from ddpp.experiments.recipes import Recipe
from ddpp.experiments.recipes import recipe as recipe_of
from ddpp.experiments.reproducing import reproduce
from ddpp.foundation.errors import Error, choose, differences
from ddpp.foundation.stats import Difference, holm
from ddpp.foundation.text import AsTable, show_mean, show_p
from ddpp.pruning import RULES, WITHOUT_EPSILON, Rule

Setting = tuple[str, float]  # a rule and its epsilon


@dataclass(frozen=True)
class Comparison(AsTable):
    """What `compare` found: accuracies and paired differences to a base.

    In a notebook it shows itself as a table; `ddpp.book.figures.comparison` draws it.
    """

    base: Setting
    accuracies: dict[Setting, tuple[float, ...]]  # in percent, one per seed, of base and rules
    stopped: dict[Setting, int]  # runs without a result, as too much was pruned

    @property
    def differences(self) -> dict[Setting, Difference]:
        """Of each setting to the base, over the seeds. Empty ones are left out."""
        base = self.accuracies[self.base]
        found = {}
        for setting, values in self.accuracies.items():
            pairs = zip(values, base, strict=True)
            gains = tuple(v - b for v, b in pairs if math.isfinite(v) and math.isfinite(b))
            if setting != self.base and gains:
                found[setting] = Difference(gains)
        return found

    @property
    def corrected(self) -> dict[Setting, float | None]:
        """The p of each difference, corrected for their number by Holm's procedure (1979)."""
        return holm(self.differences)

    @property
    def detectable(self) -> dict[Setting, float | None]:
        """The smallest true difference of each setting that is found in four of five comparisons.

        At 5 % for all differences together, the strictest level of Holm's procedure.
        """
        found = self.differences
        return {s: d.detectable(0.05 / len(found)) for s, d in found.items()}

    def lines(self) -> list[list[str]]:
        """The table as text, its head first."""
        head = ["rule", "epsilon", "accuracy (%)", f"minus {self.base[0]} (points)"]
        lines = [[*head, "95 % interval", "p (Holm)", "seeds"]]
        for setting, values in self.accuracies.items():
            known = [value for value in values if math.isfinite(value)]
            accuracy = show_mean(known) if known else "–"
            line = [setting[0], f"{setting[1]:g}", accuracy, "", "", "", str(len(known))]
            if difference := self.differences.get(setting):
                ends, p = difference.interval, self.corrected[setting]
                line[3] = _signed(difference.mean)
                if ends is not None and p is not None:
                    line[4] = " to ".join(map(_signed, ends))
                    line[5] = show_p(p)
            lines.append(line)
        return lines


def compare(
    *rules: Rule | tuple[Rule, float],
    base: Rule | tuple[Rule, float] = "none",
    seeds: int = 5,
    recipe: Recipe | None = None,
    data: ImageData | None = None,
    folder: str | Path = "runs/compare",
    root: str | Path = "data",
    device: str | None = None,
    minutes: float | None = None,
    jobs: int = 1,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> Comparison:
    """Compare pruning rules with a base in paired runs, and test their differences.

    Runs of one seed share teachers, first images, batches, augmentations and evaluation, so that
    they differ by the rule alone.

    - rules: each a name in RULES, a function of your own, or a pair of that and an epsilon. Default
      of epsilon: the recipe's.
    - base: what they are compared with. Default "none", which is MTT.
    - seeds: how many. Each has teachers of its own in the smoke profile and with `data`, else all
      have the recipe's.
    - recipe: all other settings, see `ddpp.recipe`. Default: the smoke profile's.
    - data: what is distilled, if it is not what recipe.data names.
    - folder: of results, teachers and checkpoints. A stopped call resumes there.
    - root, device: as in `load_data`.
    - minutes: stop after so many.
    - jobs: runs at a time, in processes that divide the cores among them.
    - progress, say: whether progress bars are shown, and what hears every line.

    Returns the comparison of what is finished. Raises Error for settings that cannot work, and for
    results in `folder` of other settings. More parameters than elsewhere: none can be grouped, as
    each is the caller's own choice.
    """
    if seeds < 1:
        raise Error(f"seeds is {seeds}: it must be at least 1")
    recipe = recipe or recipe_of()
    if not hasattr(recipe.distill, "rule"):
        raise Error(f"{recipe.method} has no pruning rule: compare rules with the method ddpp")
    asked, first_made = (
        {"seed": one.distill.seed, "teachers.seed": one.teachers.seed}
        for one in (recipe, seeded(recipe, 0, data is not None))
    )
    for name, seed in asked.items():
        if seed != first_made[name]:
            raise Error(f"{name} is {seed}, but the runs have the seeds 0, 1, ...: choose how many")
    first, *others = (_setting(one, recipe) for one in (base, *rules))
    settings = list(dict.fromkeys([first, *others]))
    if len(settings) < 2:
        raise Error("there is nothing to compare: name a rule beside the base")
    if data is not None:  # under a name of its own, or results of other data would be taken for its
        own = {"zca": data.whitening.kind == "zca", "validation": data.held_out}
        recipe = replace(recipe, data=f"{data.name}-{data.sha256[:8]}", **own)
    todo = [
        _run(recipe, setting, seed, data is not None)
        for seed in range(seeds)
        for setting in settings
    ]
    for run in todo[: len(settings)]:
        run.recipe.stored_teachers()  # refuses settings that cannot work, before any work
    rows = reproduce(
        todo,
        results=folder,
        work=folder,
        root=root,
        device=device,
        given=data,
        minutes=minutes,
        jobs=jobs,
        progress=progress,
        say=say,
    )
    return comparison_of(rows, settings, seeds)


def parse_setting(text: str) -> str | tuple[str, float]:
    """Read "RULE" or "RULE@EPSILON", or raise Error for an epsilon that is no number."""
    rule, at, epsilon = text.rpartition("@")
    if not at:
        return text
    try:
        return rule, float(epsilon)
    except ValueError:
        raise Error(f"{text} is no rule with an epsilon: write signed@0.1, say") from None


def _signed(points: float) -> str:
    return f"{points:+.2f}"  # of an interval's end, -0.00 says on which side of zero it is


def _setting(one: Rule | tuple[Rule, float], recipe: Recipe) -> Setting:
    rule, epsilon = one if isinstance(one, tuple) else (one, None)
    name = choose("rule", RULES.name_of(rule), RULES)
    return _plain(name, getattr(recipe.distill, "epsilon", 0.1) if epsilon is None else epsilon)


def _plain(rule: str, epsilon: float) -> Setting:
    """Return the setting, with an epsilon of 0 for a rule that does not read it."""
    return rule, epsilon if RULES.is_brought(rule) or rule not in WITHOUT_EPSILON else 0.0


def in_name(number: float) -> str:
    """Write a number as short as its value allows, for the name of a run."""
    short = f"{number:g}"
    return short if float(short) == number else repr(number)


def _run(recipe: Recipe, setting: Setting, seed: int, own_teachers: bool) -> Run:
    rule, epsilon = setting
    distill = replace(recipe.distill, rule=rule, epsilon=epsilon)  # pyright: ignore[reportCallIssue]
    made = seeded(replace(recipe, distill=distill), seed, own_teachers)
    name = re.sub(r"[^\w.-]", "-", f"{rule}-{in_name(epsilon)}")
    return Run(f"compare/{name}-seed{seed}", made)


def _setting_of(row: dict) -> Setting:
    """Rule and epsilon of a row, of any method that has them. Runs of a rule that reads no epsilon
    are of one setting.
    """
    config = row["recipe"]["distill"]
    return _plain(config["rule"], config["epsilon"])


def _size_of(row: dict) -> dict:
    """Data, images per class and steps of a row: runs that are compared have these in common."""
    config = row["recipe"]["distill"]
    own = {key: config.get(key) for key in ("ipc", "steps")}
    return own | {"data": row["recipe"].get("data")}


def _by_setting(rows: Sequence[dict]) -> dict[tuple[str, float, int], dict]:
    """Return rows by rule, epsilon and seed. Error for rows that are no fair comparison."""
    found: dict[tuple[str, float, int], dict] = {}
    for row in rows:
        same = found.setdefault((*_setting_of(row), row["seed"]), row)
        if same is not row:
            raise Error(
                f"{same['name']} and {row['name']} have the same rule, epsilon and seed: give one "
                "of them"
            )
        if (then := _size_of(rows[0])) != (now := _size_of(row)):
            raise Error(
                f"{rows[0]['name']} and {row['name']} cannot be compared "
                f"({differences(then, now)}): give rows that differ in rule, epsilon and seed alone"
            )
    return found


def comparison_of(
    rows: Sequence[dict], settings: Sequence[Setting] | None = None, seeds: int | None = None
) -> Comparison:
    """Compare runs that are finished, as they are in results/.

    - rows: of runs that differ in rule, epsilon and seed alone, see `experiments.read`.
    - settings: (rule, epsilon), the base first. Default: the ones in the rows, none first.
    - seeds: of 0, 1, ... how many. Default: all that the rows have.

    Raises Error if there are no rows, and for rows of other data, images per class or steps.
    """
    found = _by_setting(rows)
    if settings is None:
        known = dict.fromkeys((rule, epsilon) for rule, epsilon, _ in found)
        settings = sorted(known, key=lambda setting: setting[0] != "none")
    settings = [_plain(*setting) for setting in settings]
    numbers = sorted({seed for *_, seed in found}) if seeds is None else range(seeds)
    if not settings:
        raise Error("there is nothing to compare: no run is finished")
    accuracies, stopped = {}, {}
    for setting in settings:
        of_seeds = [found.get((*setting, seed)) for seed in numbers]
        accuracies[setting] = tuple(
            math.nan if row is None or row["error"] else row["accuracy"] for row in of_seeds
        )
        stopped[setting] = sum(bool(row and row["error"]) for row in of_seeds)
    return Comparison(settings[0], accuracies, stopped)
