"""How far a list of runs is, and how long the rest will take."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from ddpp.experiments.lists import Run
from ddpp.experiments.places import out_of, working_file
from ddpp.experiments.results import describe, read_result
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.loop import CHECKPOINT


def overview(todo: Sequence[Run], results: str | Path, work: str | Path) -> list[str]:
    """Return one line per run, and a last line with the number of finished runs and the time left.

    A line says what the result is, how far the run has come, or that it is missing. The time is
    for one core or GPU, estimated from finished runs that differ in rule, steps or seed alone.

    - todo: runs, see `runs` and `select`.
    - results, work: the folders of `reproduce`.
    """
    width = max((len(run.name) for run in todo), default=0)
    rows = [read_result(run, results) for run in todo]
    lines = [
        f"{run.name:{width}} {describe(row) if row else _progress(run, work)}"
        for run, row in zip(todo, rows, strict=True)
    ]
    done = f"{sum(map(bool, rows))} of {len(todo)} runs are finished"
    return [*lines, done + _left(todo, rows)]


def _left(todo: Sequence[Run], rows: Sequence[dict | None]) -> str:
    """Estimate the time that the missing runs take, in words."""
    total = lambda run: asdict(run.recipe.distill).get("steps") or 1
    # the steps of a run that the run before it has not made
    steps = {run.name: total(run) - (total(run.continues) if run.continues else 0) for run in todo}
    costs: dict[str, tuple[float, float]] = {}  # seconds of a step, and of the evaluation
    missing: list[tuple[str, int]] = []  # kind and steps
    for run, row in zip(todo, rows, strict=True):
        kind, seconds = _kind(run), (row or {}).get("seconds", {})
        if not row:
            missing.append((kind, steps[run.name]))
        elif run.of is None and "distill" in seconds:
            each = seconds["distill"] / max(steps[run.name], 1)
            costs[kind] = (each, seconds.get("evaluate", 0))
    known = [(count, *costs[kind]) for kind, count in missing if kind in costs]
    if not known:
        return ""
    minutes = sum(count * step + evaluation for count, step, evaluation in known) / 60
    time = f"{minutes / 60:.1f} hours" if minutes > 60 else f"{math.ceil(minutes)} minutes"
    rest = len(missing) - len(known)
    more = f", and {rest} of a kind that none is finished of" if rest else ""
    return f"; about {time} are left for {len(known)}{more}"


def _kind(run: Run) -> str:
    """What the cost of a run's steps depends on."""
    settings = asdict(run.recipe.distill)
    for name in ("rule", "epsilon", "steps", "seed", "image_lr", "iterates"):
        settings.pop(name, None)
    network = asdict(run.network or run.recipe.teachers.network)
    return str((run.recipe.data, run.recipe.method, settings, network, run.of is None))


def _progress(run: Run, work: str | Path) -> str:
    """Describe how far a run without a result has come."""
    out = out_of(run, work)
    checkpoint = working_file(out, "checkpoint")
    if out.exists():
        return "distilled, not yet evaluated"
    if not checkpoint.exists():
        return "missing"
    try:  # it may end at this moment, or not count steps
        step = files.Lazy(checkpoint, CHECKPOINT).meta["step"]
        return f"begun: {step} of {asdict(run.recipe.distill)['steps']} steps"
    except (Error, KeyError):
        return "begun"
