"""Tables of this project's runs, from rows of results (see `experiments.read`)."""

import statistics
from collections.abc import Mapping, Sequence

from ddpp.book.tables.parts import NAMES, accuracy_of, by_seed, key_of, markdown, show
from ddpp.experiments.methods import METHODS
from ddpp.foundation.stats import Difference, holm, spread
from ddpp.foundation.text import show_mean, show_p
from ddpp.studies.auditing import Audit
from ddpp.studies.membership import Leak


def rivals(rows: Sequence[dict]) -> str:
    """Return a table, in Markdown, of all methods on one data set and size.

    It shows what each method matches, its test accuracy over seeds, its gain over the same number
    of random real images of the same seeds, and the seconds that distilling took.

    - rows: of one data set and size. Rows of method random are what the others are compared with.
    """
    gains_head = ("minus random (points)", "least")
    head = ["method", "matches", "accuracy (%)", *gains_head, "seconds", "seeds"]
    lines = [head]
    rows = [row for row in rows if not row["error"]]
    chance = by_seed([row for row in rows if row["method"] == "random"])
    for key in dict.fromkeys(key_of(row)[2] for row in rows):
        group = [row for row in rows if key_of(row)[2] == key]
        name = {"none": "mtt", "signed": "ddpp"}.get(key, key)
        gains = Difference.paired(by_seed(group), chance)
        spent = statistics.fmean(
            row["seconds"].get("teachers", 0) + row["seconds"].get("distill", 0) for row in group
        )
        accuracy = accuracy_of([row["distilled"]["final"] for row in group])
        gain = ["", ""]
        if gains and key != "random":
            mean = show(gains.mean, spread(gains.values) or None, "+")
            gain = [mean, f"{min(gains.values):+.1f}"]
        line = [NAMES.get(key, key), METHODS[name].matches, accuracy, *gain]
        lines.append([*line, f"{spent:.0f}", str(len(group))])
    return markdown(lines)


def against(rows: Sequence[dict], base: str, names: Mapping[str, str]) -> str:
    """Return a table, in Markdown, of paired differences from one of several settings.

    - rows: of runs whose names are SETTING-seedN, as `experiments.read` returns them.
    - base: the setting that the others are compared with.
    - names: {setting: how the table calls it}, in the table's order. Those without runs are left
      out.

    Differences are of equal seeds, with 95 % intervals. Their p is corrected by Holm's procedure.
    The column of seconds has the median time of the distillation, without the teachers. (A run that
    was killed has too few seconds, or none, and a run beside other work has too many.) Without any
    seconds there is no column.
    """
    timed = any("distill" in row.get("seconds", ()) for row in rows)
    timing = ["seconds"] if timed else []
    head = ["", "accuracy (%)", "difference (points)", "p (Holm)", *timing, "seeds"]
    groups = {name: {} for name in names}
    for row in rows:
        setting = row["name"].rpartition("-seed")[0]
        if setting in groups and not row["error"]:
            groups[setting][row["seed"]] = row
    groups = {name: group for name, group in groups.items() if group}
    first = by_seed(groups.get(base, {}).values())
    differences = {
        name: difference
        for name, group in groups.items()
        if name != base and (difference := Difference.paired(by_seed(group.values()), first))
    }
    corrected, lines = holm(differences), [head]
    for name, group in groups.items():
        found, p = differences.get(name), corrected.get(name)
        accuracy = accuracy_of([row["distilled"]["final"] for row in group.values()])
        gain = ["" if found is None else found.text(), "" if p is None else show_p(p)]
        stages = [row.get("seconds", {}) for row in group.values()]
        known = [seconds["distill"] for seconds in stages if "distill" in seconds]
        spent = [f"{statistics.median(known):.0f}" if known else ""] if timed else []
        lines.append([names[name], accuracy, *gain, *spent, str(len(group))])
    return markdown(lines)


def leaks(audits: Mapping[str, Audit], group: str, attacks: Mapping[str, str]) -> str:
    """Return a table, in Markdown, of how well attacks work, with 95 % intervals.

    - audits: by name. Those without this group are left out.
    - group: what the attacks look for: "all", "canaries" or "start", see `Audit`.
    - attacks: {attack: how the table calls it}. A single one has no column.

    True positives are given at 1 % and at 0.1 % of false ones.
    """
    which = ["attack"] if len(attacks) > 1 else []
    lines = [["", "accuracy (%)", *which, "AUC", "at 1 % (%)", "at 0.1 % (%)"]]
    for name, one in audits.items():
        accuracy = show_mean(one.accuracies)
        known = getattr(one, group)
        for attack in [attack for attack in attacks if attack in known]:
            found: Leak = known[attack]
            ends = [found.auc_interval, *found.tpr_intervals]
            area = f"{found.auc:.3f} ({ends[0][0]:.3f} to {ends[0][1]:.3f})"
            rates = [
                f"{100 * rate:.1f} ({100 * low:.1f} to {100 * high:.1f})"
                for rate, (low, high) in zip(found.tpr, ends[1:], strict=True)
            ]
            called = [attacks[attack]] if which else []
            lines.append([name, accuracy, *called, area, *rates])
            name = accuracy = ""
    return markdown(lines)


def forms(rows: Sequence[dict], ipc: int, names: Mapping[str, str]) -> str:
    """Return a table, in Markdown, of what a set takes and is worth in each form of its storage.

    - rows: of `tools/storage.py`.
    - ipc: images per class of the set. Rows of all photographs have 0, and are shown, too.
    - names: {form: how the table calls it}, in the table's order. Those without rows are left out.

    Differences are to the file of the same seed, with 95 % intervals. Bytes and the processor's
    seconds of one training are medians over seeds.
    """
    head = ["", "images", "kB", "accuracy (%)", "difference (points)", "seconds", "seeds"]
    lines, means = [head], {}
    for row in rows:
        if row["ipc"] in (ipc, 0):
            of = means.setdefault(row["form"], {})
            of[row["seed"]] = row | {"mean": statistics.fmean(row["accuracies"])}
    base = by_seed(means.get("file", {}).values(), "mean")
    for form, name in names.items():
        if not (of := means.get(form)):
            continue
        values = by_seed(of.values(), "mean")
        gain = None if form in ("file", "all photographs") else Difference.paired(values, base)
        middle = lambda key, of=of: statistics.median(row[key] for row in of.values())
        spent = f"{middle('seconds'):.0f}" if all("seconds" in row for row in of.values()) else ""
        line = [name, f"{middle('images'):.0f}", f"{middle('bytes') / 1000:,.0f}"]
        line += [
            show_mean([*values.values()]),
            gain.text() if gain else "",
        ]
        lines.append([*line, spent, str(len(of))])
    return markdown(lines)


def costs(rows: Sequence[dict]) -> str:
    """Return a table, in Markdown, of what each run took: hours per stage, device, versions, date.

    The hours of the stage `teachers` include waiting for another process that trains them.

    - rows: of any experiment.
    """
    stages = ("teachers", "distillation", "evaluation")
    head = ["run", *stages, "device", "torch", "commit", "finished"]
    lines = [head]
    for row in rows:
        spent = [
            f"{row.get('seconds', {}).get(stage, 0) / 3600:.2f} h"
            for stage in ("teachers", "distill", "evaluate")
        ]
        made = [row["device"], row["versions"]["torch"], row["commit"], row["finished"][:10]]
        lines.append([row["name"].partition("/")[2], *spent, *map(str, made)])
    return markdown(lines) if rows else "No run is finished."


def paired(rows: Sequence[dict], value: str = "accuracy") -> tuple[float | None, float | None, int]:
    """Compare the paper's rule with MTT, over the seeds that have both.

    - rows: of one data set and size.
    - value: the key of the number that is compared.

    Returns the mean difference of `value`, half the width of its 95 % confidence interval
    (Student's t; None for fewer than two seeds), and the number of these seeds.

    >>> from ddpp.book.tables import paired
    >>> mtt = {"rule": "none", "seed": 0, "accuracy": 46.0, "error": None}
    >>> pruned = {"rule": "signed", "seed": 0, "accuracy": 46.5, "error": None}
    >>> paired([mtt, pruned])
    (0.5, None, 1)
    """
    pruned, mtt = (
        by_seed([row for row in rows if row.get("rule") == rule and not row["error"]], value)
        for rule in ("signed", "none")
    )
    gains = Difference.paired(pruned, mtt)
    return (gains.mean, gains.half, len(gains.values)) if gains else (None, None, 0)


def summarize(rows: Sequence[dict]) -> list[dict]:
    """Summarize the ablation: one line per (rule, epsilon), in the order of the rows.

    - rows: of experiment epsilon, see `experiments.read`.

    A line has the rule and epsilon, the number of runs and of those that stopped, and the mean and
    standard deviation of the accuracy over seeds (`mean`, `std`). It also has the mean share of
    parameters kept (`kept`), the mean final loss of MTT (`unmasked`), and the paired differences to
    rule none, one per seed (`gains`). What cannot be computed is None: a deviation of one seed, for
    example.

    >>> from ddpp.book.tables import summarize
    >>> numbers = {"accuracy": 46.0, "kept": 1.0, "unmasked": 0.8, "error": None}
    >>> (line,) = summarize([{"rule": "none", "epsilon": 0.0, "seed": 0} | numbers])
    >>> line["mean"], line["std"], line["runs"]
    (46.0, None, 1)
    """
    lines = []
    base = by_seed([r for r in rows if r["rule"] == "none" and not r["error"]])
    for rule, epsilon in dict.fromkeys((row["rule"], row["epsilon"]) for row in rows):
        group = [row for row in rows if (row["rule"], row["epsilon"]) == (rule, epsilon)]
        finished = [row for row in group if not row["error"]]
        values = by_seed(finished)
        gains = None if rule == "none" else Difference.paired(values, base)
        lines.append(
            {
                "rule": rule,
                "epsilon": epsilon,
                "runs": len(group),
                "stopped": len(group) - len(finished),
                "mean": _mean([*values.values()]),
                "std": spread([*values.values()]) if len(values) > 1 else None,
                "kept": _mean([row["kept"] for row in finished]),
                "unmasked": _mean([row["unmasked"] for row in finished]),
                "gains": [*gains.values] if gains else [],
            }
        )
    return lines


def _mean(values: list[float]) -> float | None:
    return statistics.fmean(values) if values else None


def cells(line: dict) -> list[str]:
    """Return a line of `summarize` as texts for a table.

    They are rule, epsilon, number of runs, share kept, accuracy, and the mean difference from rule
    none, from three seeds on with its 95 % interval.

    - line: from `summarize`.
    """
    kept = "" if line["kept"] is None else f"{line['kept']:.1%}"
    numbers = (
        show(line["mean"], line["std"]),
        Difference(tuple(line["gains"])).text(1) if line["gains"] else "",
    )
    return [line["rule"], f"{line['epsilon']:g}", str(line["runs"]), kept, *numbers]
