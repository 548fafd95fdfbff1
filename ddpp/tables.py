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


def summarize(rows: Sequence[dict], value: str = "accuracy") -> list[dict]:
    """One line per (rule, epsilon), in the order of the rows: mean of `value` over seeds and its deviation (None for
    one seed), the mean share kept, the number of runs and of those that stopped, and the paired difference to rule
    none: its mean and standard error."""
    lines = []
    for rule, epsilon in dict.fromkeys((row["rule"], row["epsilon"]) for row in rows):
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
