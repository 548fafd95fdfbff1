"""The tables of the book, made of rows of results (see `experiments.read`)."""

import statistics
from collections.abc import Sequence

from ddpp.evaluate import spread

TABLE_1 = {  # the paper's Table I: test accuracy of MTT and of the paper's method, mean and deviation of five networks
    ("cifar10", 1): {"none": (46.3, 0.8), "signed": (46.4, 0.6)},
    ("cifar10", 10): {"none": (65.3, 0.7), "signed": (65.5, 0.3)},
    ("cifar10", 50): {"none": (71.6, 0.2), "signed": (71.9, 0.2)},
    ("cifar100", 1): {"none": (24.3, 0.3), "signed": (24.6, 0.1)},
    ("cifar100", 10): {"none": (40.1, 0.4), "signed": (43.1, 0.3)},
    ("cifar100", 50): {"none": (47.7, 0.2), "signed": (48.4, 0.3)},
}
T_95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)  # Student's t, two-sided, by degrees of freedom
NAMES = {"none": "MTT", "signed": "pruned"}


def table_1(rows: Sequence[dict], sets: Sequence[tuple[str, int]] = tuple(TABLE_1)) -> str:
    """The paper's Table I in Markdown, its numbers beside those of the rows; a dash where nothing has been run.

    Of one seed: mean and deviation of its networks. Of more: mean and deviation over seeds of the networks' mean.
    """
    head = ("data, images per class", "method", "paper", "final", "selected", "best on test", "seeds")
    lines = [head, ["---"] * len(head)]
    for data, ipc in sets:
        for rule, (mean, std) in TABLE_1[data, ipc].items():
            group = [row["distilled"] for row in rows if not row["error"] and _key(row) == (data, ipc, rule)]
            ours = [_accuracy([each[which] for each in group]) for which in ("final", "selected", "best_on_test")]
            lines.append([_name(data, ipc), NAMES[rule], f"{mean} ± {std}", *ours, str(len(group) or "–")])
    return _markdown(lines)


def costs(rows: Sequence[dict]) -> str:
    """What each run took, in Markdown: hours of its stages (teachers: the run that trained them), on what, when."""
    head = ("run", "teachers", "distillation", "evaluation", "device", "torch", "commit", "finished")
    lines = [head, ["---"] * len(head)]
    for row in rows:
        spent = [
            f"{row.get('seconds', {}).get(stage, 0) / 3600:.2f} h" for stage in ("teachers", "distill", "evaluate")
        ]
        made = [row["device"], row["versions"]["torch"], row["commit"], row["finished"]]
        lines.append([row["name"].partition("/")[2], *spent, *map(str, made)])
    return _markdown(lines) if rows else "No run is finished."


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(data: str, ipc: int) -> str:
    return f"{data.upper().replace('CIFAR', 'CIFAR-')}, {ipc}"


def _key(row: dict) -> tuple[str, int, str]:
    return row["recipe"]["data"], row["recipe"]["distill"]["ipc"], row["rule"]


def _accuracy(seeds: list[list[float] | None]) -> str:
    """Mean and deviation, as text, of the accuracies of each seed's networks."""
    if not seeds or None in seeds:
        return "–"
    values = seeds[0] if len(seeds) == 1 else [statistics.fmean(networks) for networks in seeds]
    return _show(statistics.fmean(values), spread(values))


def _show(value: float | None, error: float | None, sign: str = "", missing: str = "") -> str:
    """A number with its error, as text; `missing` where there is none."""
    return missing if value is None else f"{value:{sign}.1f}" + ("" if error is None else f" ± {error:.1f}")


def paired(rows: Sequence[dict], value: str = "accuracy") -> tuple[float | None, float | None, int]:
    """How much better the paper's rule is than MTT, over the seeds that have both: the mean difference of `value`, half
    the width of its 95 % confidence interval (None for fewer than two seeds), and the number of these seeds; rows of
    one data set and size."""
    by = {(row["rule"], row["seed"]): row[value] for row in rows if not row["error"]}
    gains = [by["signed", seed] - by["none", seed] for rule, seed in by if rule == "signed" and ("none", seed) in by]
    if not gains:
        return None, None, 0
    if len(gains) == 1:
        return gains[0], None, 1
    half = T_95[min(len(gains), 10) - 2] * spread(gains) / len(gains) ** 0.5
    return statistics.fmean(gains), half, len(gains)


def differences(rows: Sequence[dict], sets: Sequence[tuple[str, int]] = tuple(TABLE_1)) -> str:
    """`paired` for each data set and size of Table I, in Markdown, beside the paper's difference."""
    head = ("data, images per class", "paper", "final", "selected", "seeds")
    lines = [head, ["---"] * len(head)]
    for data, ipc in sets:
        paper = TABLE_1[data, ipc]
        group = [row for row in rows if _key(row)[:2] == (data, ipc)]
        *final, seeds = paired(group)
        ours = [_show(*gain, "+", "–") for gain in (final, paired(group, "selected")[:2])]
        lines.append([_name(data, ipc), f"{paper['signed'][0] - paper['none'][0]:+.1f}", *ours, str(seeds or "–")])
    return _markdown(lines)


def summarize(rows: Sequence[dict], value: str = "accuracy") -> list[dict]:
    """One line per (rule, epsilon), in the order of the rows: mean of `value` over seeds and its deviation (None for
    one seed), the mean share kept, the number of runs and of those that stopped, and the paired difference to rule
    none: its mean and standard error."""
    lines = []
    base = {row["seed"]: row[value] for row in rows if row["rule"] == "none" and not row["error"]}
    for rule, epsilon in dict.fromkeys((row["rule"], row["epsilon"]) for row in rows):
        group = {row["seed"]: row for row in rows if (row["rule"], row["epsilon"]) == (rule, epsilon)}
        finished = {seed: row for seed, row in group.items() if not row["error"]}
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
    kept = "" if line["kept"] is None else f"{line['kept']:.1%}"
    numbers = _show(line["mean"], line["std"]), _show(line["gain"], line["error"], "+")
    return [line["rule"], f"{line['epsilon']:g}", str(line["runs"]), kept, *numbers]
