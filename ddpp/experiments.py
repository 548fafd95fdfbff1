"""The ablation of epsilon: a list of runs, one small file each. What is missing is run, what is there is read."""

import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from ddpp import store
from ddpp.data import ImageData
from ddpp.distill import distill
from ddpp.distilled import DistilledDataset
from ddpp.errors import Error
from ddpp.evaluate import Evaluation, evaluate, spread
from ddpp.pipeline import provenance, stopwatch, teachers_beside
from ddpp.recipes import Recipe
from ddpp.teachers import train_teachers

EPSILONS = (0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
CONTROLLED = (0.1, 0.7)  # where the controls prune as many pairs as the paper's rule
SETTINGS = (  # (rule, epsilon); magnitude at 0 is none, that is MTT
    ("none", 0.0),
    *(("signed", epsilon) for epsilon in EPSILONS),
    *(("magnitude", epsilon) for epsilon in EPSILONS[1:]),
    *((rule, epsilon) for epsilon in CONTROLLED for rule in ("random", "largest", "smallest")),
)
TABLE_1 = {  # the paper's Table I: test accuracy of MTT and of the paper's method, mean and deviation of five networks
    ("cifar10", 1): {"none": (46.3, 0.8), "signed": (46.4, 0.6)},
    ("cifar10", 10): {"none": (65.3, 0.7), "signed": (65.5, 0.3)},
    ("cifar10", 50): {"none": (71.6, 0.2), "signed": (71.9, 0.2)},
    ("cifar100", 1): {"none": (24.3, 0.3), "signed": (24.6, 0.1)},
    ("cifar100", 10): {"none": (40.1, 0.4), "signed": (43.1, 0.3)},
    ("cifar100", 50): {"none": (47.7, 0.2), "signed": (48.4, 0.3)},
}
LAST = 20  # distillation steps over which the final loss is averaged


def ablate(
    data: ImageData,
    recipe: Recipe,
    folder: str | Path,
    *,
    settings: Sequence[tuple[str, float]] = SETTINGS,
    seeds: int = 3,
    teachers_root: str | Path = "runs",
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Distil and evaluate `recipe` under each (rule, epsilon) with each seed; one row (see `read`) per run.

    Runs with one seed share teachers, first images, batches and evaluation, so that their differences are paired.
    A run is a file in `folder`, written when it is finished; a stopped call goes on with the first that is missing.
    """
    rows = []
    for seed in range(seeds):
        config = replace(recipe.stored_teachers(), seed=seed)
        for rule, epsilon in settings:
            run = replace(
                recipe,
                teachers=replace(recipe.teachers, seed=seed),
                distill=replace(recipe.distill, rule=rule, epsilon=epsilon, seed=seed),
            )
            path = Path(folder) / f"{rule}-{epsilon:g}-seed{seed}.json"
            if path.exists():
                row = _row(path)
                if row["recipe"] != json.loads(json.dumps(asdict(run))):
                    raise Error(f"{path} is the result of other settings: choose another folder, or move it away")
            else:
                where = teachers_beside(Path(teachers_root) / "x", config, data)
                row = _measure(run, data, train_teachers(data, config, where, progress=progress), progress)
                store.write_bytes(path, (json.dumps(row, indent=1) + "\n").encode())
                say(f"{path.stem}: {describe(row)}")
            rows.append(row)
    return rows


def read(folder: str | Path) -> list[dict]:
    """The rows of an ablation, one per run: rule, epsilon, seed, accuracy (percent, mean of the final iterate's
    networks), selected (the same of the iterate chosen on held-out images), kept (share of parameters, mean over
    steps), unmasked (MTT loss, mean of the last steps), skipped (steps), error, and the run's provenance."""
    return [_row(path) for path in sorted(Path(folder).glob("*.json"))]


def summarize(rows: Sequence[dict], value: str = "accuracy") -> list[dict]:
    """One line per (rule, epsilon), in the order of SETTINGS: mean of `value` over seeds and its deviation (None for
    one seed), the mean share kept, the number of runs and of those that stopped, and the paired difference to rule
    none: its mean and standard error."""
    lines = []
    for rule, epsilon in SETTINGS:
        group = {row["seed"]: row for row in rows if (row["rule"], row["epsilon"]) == (rule, epsilon)}
        finished = {seed: row for seed, row in group.items() if not row["error"]}
        if not group:
            continue
        base = {row["seed"]: row[value] for row in rows if row["rule"] == "none" and not row["error"]}
        values = [row[value] for row in finished.values()]
        gains = [row[value] - base[seed] for seed, row in finished.items() if seed in base and rule != "none"]
        lines.append(
            {
                "rule": rule,
                "epsilon": epsilon,
                "runs": len(group),
                "stopped": len(group) - len(finished),
                "mean": statistics.fmean(values) if values else None,
                "std": spread(values) if len(values) > 1 else None,
                "kept": statistics.fmean(row["kept"] for row in finished.values()) if finished else None,
                "unmasked": statistics.fmean(row["unmasked"] for row in finished.values()) if finished else None,
                "gain": statistics.fmean(gains) if gains else None,
                "error": spread(gains) / len(gains) ** 0.5 if len(gains) > 1 else None,
            }
        )
    return lines


def cells(line: dict) -> list[str]:
    """A line of `summarize` as text: rule, epsilon, runs, share kept, accuracy, difference to rule none."""

    def show(value, error, sign=""):
        return "" if value is None else f"{value:{sign}.1f}" + ("" if error is None else f" ± {error:.1f}")

    kept = "" if line["kept"] is None else f"{line['kept']:.1%}"
    numbers = show(line["mean"], line["std"]), show(line["gain"], line["error"], "+")
    return [line["rule"], f"{line['epsilon']:g}", str(line["runs"]), kept, *numbers]


def table_1(folder: str | Path) -> str:
    """The paper's Table I in Markdown, its numbers beside those of the reports FOLDER/DATA-ipcN-RULE.json (see
    `pipeline.run`); a dash where nothing has been run."""

    def ours(name: str, ipc: int, rule: str) -> str:
        path = Path(folder) / f"{name}-ipc{ipc}-{rule}.json"
        if not path.exists():
            return "–"
        final = json.loads(path.read_text())["distilled"]["final"]
        return f"{statistics.fmean(final):.1f} ± {spread(final):.1f}"

    lines = ["| images per class | MTT: paper | MTT: here | pruned: paper | pruned: here |", "|---|---|---|---|---|"]
    for (name, ipc), paper in TABLE_1.items():
        cells = [f"{name.upper().replace('CIFAR', 'CIFAR-')}, {ipc}"]
        for rule, (mean, std) in paper.items():
            cells += [f"{mean} ± {std}", ours(name, ipc, rule)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def describe(row: dict) -> str:
    """One row in words."""
    if row["error"]:
        return f"stopped: {row['error']}"
    return f"{row['accuracy']:.1f} %, kept {row['kept']:.1%}, skipped {row['skipped']}"


def _measure(run: Recipe, data: ImageData, teachers, progress: bool) -> dict:
    seconds = {}
    row = {"rule": run.distill.rule, "epsilon": run.distill.epsilon, "seed": run.distill.seed, "error": None}
    try:
        with stopwatch(seconds, "distill"):
            distilled = distill(data, teachers, run.distill, progress=progress)
    except Error as e:  # pruning too much is a result, too
        return row | {"error": str(e), "recipe": asdict(run), "seconds": seconds} | provenance(data.device)
    with stopwatch(seconds, "evaluate"):
        result = evaluate(
            distilled, data, repeats=run.repeats, protocol=run.protocol, seed=run.distill.seed, progress=progress
        )
    row |= _summary(distilled, result) | {"evaluation": result.to_dict(), "recipe": asdict(run), "seconds": seconds}
    return row | provenance(data.device)


def _summary(distilled: DistilledDataset, result: Evaluation) -> dict:
    column = distilled.history
    return {
        "accuracy": result.mean,
        "selected": statistics.fmean(result.selected or result.final),
        "kept": float(column["kept"].mean()),
        "unmasked": float(column["unmasked"][-LAST:].mean()),
        "skipped": int(column["skipped"].sum()),
        "alpha": float(distilled.alpha),
    }


def _row(path: Path) -> dict:
    try:
        row = json.loads(path.read_text())
        _ = row["rule"], row["epsilon"], row["seed"], row["error"], row["recipe"]
        return row
    except (OSError, ValueError, KeyError, TypeError):
        raise Error(f"{path} is not the result of a run: move it away") from None
