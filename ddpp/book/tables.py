"""Make the tables of the book from rows of results (see `experiments.read`)."""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence

from ddpp.experiments.comparing import Difference, holm
from ddpp.experiments.methods import METHODS
from ddpp.foundation.errors import Error
from ddpp.foundation.stats import spread
from ddpp.foundation.text import in_markdown, show_p
from ddpp.studies.auditing import Audit
from ddpp.studies.membership import Leak

# of Table I; rule none is MTT
_METHODS = ("random", "forgetting", "herding", "dsa", "dm", "cafe", "none", "signed")
_ROWS = {  # of the paper's Table I: test accuracy, mean and deviation of five networks
    ("cifar10", 1): "14.4 2.0 13.5 1.2 21.5 1.2 28.8 0.7 26.0 0.8 31.6 0.8 46.3 0.8 46.4 0.6",
    ("cifar10", 10): "26.0 1.2 23.3 1.0 31.6 0.7 52.1 0.5 48.9 0.6 50.9 0.5 65.3 0.7 65.5 0.3",
    ("cifar10", 50): "43.4 1.0 23.3 1.1 40.4 0.6 60.6 0.5 63.0 0.4 62.3 0.4 71.6 0.2 71.9 0.2",
    ("cifar100", 1): "4.2 0.3 4.5 0.2 8.4 0.3 13.9 0.3 11.4 0.3 14.0 0.3 24.3 0.3 24.6 0.1",
    ("cifar100", 10): "14.6 0.5 15.1 0.3 17.3 0.3 32.3 0.3 29.7 0.3 31.5 0.2 40.1 0.4 43.1 0.3",
    ("cifar100", 50): "30.0 0.4 30.5 0.3 33.7 0.5 42.8 0.4 43.6 0.4 42.9 0.2 47.7 0.2 48.4 0.3",
}


def _pairs(row: str) -> Iterator[tuple[float, float]]:
    """Yield (mean, deviation) of each method in a row."""
    numbers = map(float, row.split())
    return zip(numbers, numbers, strict=True)  # one iterator twice: neighbours


TABLE_1 = {which: dict(zip(_METHODS, _pairs(row), strict=True)) for which, row in _ROWS.items()}
# (data set, images per class): KIP at width 1,024, KIP at 128, the paper's method at 128
TABLE_2 = {
    ("cifar10", 1): (49.9, 38.3, 46.4),
    ("cifar10", 10): (62.7, 57.6, 65.5),
    ("cifar10", 50): (68.6, 65.8, 71.9),
    ("cifar100", 1): (15.7, 18.2, 24.6),
    ("cifar100", 10): (28.3, 32.8, 43.1),
    ("cifar100", 50): (None, None, 48.4),
}
# CIFAR-10, 10 images per class: test accuracy in other architectures, mean and deviation
TABLE_3 = {
    "convnet": {"signed": (65.4, 0.4), "none": (64.3, 0.7), "kip": (47.6, 0.9)},
    "alexnet": {"signed": (35.8, 1.3), "none": (34.2, 2.6), "kip": (24.4, 3.9)},
    "vgg11": {"signed": (52.9, 0.9), "none": (50.3, 0.8), "kip": (42.1, 0.4)},
    "resnet18": {"signed": (51.8, 1.1), "none": (46.4, 0.6), "kip": (36.8, 1.0)},
}
NAMES = {  # as the tables show them
    **{"none": "MTT", "signed": "pruned"},
    **{"random": "Random", "herding": "Herding", "forgetting": "Forgetting"},
    **{"dc": "DC", "dsa": "DSA", "dm": "DM", "cafe": "CAFE", "kip": "KIP", "iadd": "IADD"},
    **{"tgdd": "TGDD", "bptt": "RaT-BPTT"},
    **{"convnet": "ConvNet", "alexnet": "AlexNet", "vgg11": "VGG11", "resnet18": "ResNet18"},
}


def table_2() -> str:
    """Return the paper's Table II in Markdown: KIP in two widths, and the paper's method."""
    head = ["data, images per class", "KIP-1024", "KIP-128", NAMES["signed"]]
    lines = [head]
    for (data, ipc), accuracies in TABLE_2.items():
        if None not in accuracies:
            lines.append([_name(data, ipc), *(f"{accuracy}" for accuracy in accuracies)])
    return _markdown(lines)


def architecture_of(row: dict) -> str:
    """Return the name of the network in which a row's set was evaluated.

    - row: of any experiment. Without an entry `network` its network is the ConvNet.

    >>> from ddpp.book.tables import architecture_of
    >>> architecture_of({"network": {"name": "vgg11"}}), architecture_of({})
    ('vgg11', 'convnet')
    """
    return row.get("network", {"name": "convnet"})["name"]


def table_3(rows: Sequence[dict]) -> str:
    """Return the paper's Table III in Markdown: Table I's sets in other architectures.

    - rows: of experiment table3, see `experiments.read`.
    """
    groups = {name: [row for row in rows if architecture_of(row) == name] for name in TABLE_3}
    return _markdown(_lines_3(groups, "ours"))


def _lines_3(groups: Mapping[str, Sequence[dict]], here: str) -> list[list[str]]:
    """Lay out Table III: the paper's accuracies, and those of the rows of each architecture."""
    methods = ("signed", "none")
    lines = [["architecture", *(f"{NAMES[m]}, {who}" for m in methods for who in ("paper", here))]]
    for architecture, rows in groups.items():
        lines.append([NAMES[architecture]])
        for method in methods:
            mine = [row for row in rows if _key(row)[2] == method and not row["error"]]
            group = [row["distilled"]["final"] for row in mine]
            lines[-1] += [_show(*TABLE_3[architecture][method]), _accuracy(group)]
    return lines


SCALES = {  # from the largest on, as the tables call them
    "paper": "as the paper",
    "colab": "full data, 1,000 steps",
    "cpu": "full data, on CPU cores",
    "smoke": "smallest: the sample, width 32",
}


def best_1(rows: Sequence[dict]) -> str:
    """Return the paper's Table I in Markdown, with the best that there is here for each cell.

    - rows: of experiment table1 at all scales, see `experiments.read`, and of longer runs of its
      cells. Of a cell the largest scale is shown, and there the runs with the most steps. Cells
      that nothing was run for are left out, see `missing_1`.

    The column `run` has teachers and steps where trajectories were matched. A column in which all
    cells are equal is left out.
    """
    head = ("data, images per class", "method", "paper", "here", "seeds", "run", "scale")
    lines: list[tuple[str, ...]] = [head]
    for data, ipc in TABLE_1:
        for method, (mean, std) in TABLE_1[data, ipc].items():
            if found := _largest(rows, data, ipc, method):
                group = [row["distilled"]["final"] for row in found]
                made = (_accuracy(group), str(len(group)), _length(found[0]))
                cell = (_name(data, ipc), NAMES[method], f"{mean} ± {std}")
                lines.append((*cell, *made, SCALES[_scale(found[0])]))
    told = [len({line[i] for line in lines[1:]}) > 1 for i in (5, 6)]
    columns = [*range(5), *(i for i, several in zip((5, 6), told, strict=True) if several)]
    return _markdown([[line[i] for i in columns] for line in lines])


def _length(row: dict) -> str:
    """Describe a run that matched trajectories by its teachers and steps; "" for another."""
    recipe = row["recipe"]
    if "rule" not in row or "steps" not in recipe["distill"]:
        return ""
    return f"{recipe['teachers']['count']} teachers, {recipe['distill']['steps']:,} steps"


def missing_1(rows: Sequence[dict]) -> str:
    """List in Markdown what of Table I nothing was run for, with the command that would.

    - rows: as in `best_1`.
    """
    lines = []
    for data, ipc in TABLE_1:
        names = [
            NAMES[method] for method in TABLE_1[data, ipc] if not _largest(rows, data, ipc, method)
        ]
        if names:
            command = f"`ddpp reproduce --only 'table1/{data}-ipc{ipc}-*'`"
            lines.append(f"- {_name(data, ipc)}: {', '.join(names)}. {command}")
    return "\n".join(lines) or "Nothing: every cell has a number."


def best_3(rows: Sequence[dict]) -> str:
    """Return the paper's Table III in Markdown, with the best that there is here for each cell.

    - rows: of experiment table3 at all scales, see `experiments.read`. The paper has ten images per
      class. The smallest scale has one, and is labelled.
    """
    groups, scales = {}, ["scale"]
    for architecture in TABLE_3:
        mine = [row for row in rows if architecture_of(row) == architecture and not row["error"]]
        profile = next((s for s in SCALES if any(_scale(row) == s for row in mine)), None)
        if profile is not None:
            groups[architecture] = [row for row in mine if _scale(row) == profile]
            scales.append(SCALES[profile] + ", one image per class" * (profile == "smoke"))
    lines = zip(_lines_3(groups, "here"), scales, strict=True)
    return _markdown([[*line, scale] for line, scale in lines])


def _scale(row: dict) -> str:
    return row["recipe"]["profile"]


def _largest(rows: Sequence[dict], data: str, ipc: int, method: str) -> list[dict]:
    """Return the rows of a cell of Table I at the largest scale at which there are any, and of
    these the ones with the most steps and teachers.
    """
    length = lambda row: (
        row["recipe"]["distill"].get("steps", 0),
        row["recipe"].get("teachers", {}).get("count", 0),
    )
    here = [row for row in rows if not row["error"] and "of" not in row]
    for scale in SCALES:
        name = f"{data}-sample" if scale == "smoke" else data
        chosen = [row for row in here if _scale(row) == scale and _key(row) == (name, ipc, method)]
        if chosen:
            most = max(map(length, chosen))
            return [row for row in chosen if length(row) == most]
    return []


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
    chance = _by_seed([row for row in rows if row["method"] == "random"])
    for key in dict.fromkeys(_key(row)[2] for row in rows):
        group = [row for row in rows if _key(row)[2] == key]
        name = {"none": "mtt", "signed": "ddpp"}.get(key, key)
        gains = Difference.paired(_by_seed(group), chance)
        spent = statistics.fmean(
            row["seconds"].get("teachers", 0) + row["seconds"].get("distill", 0) for row in group
        )
        accuracy = _accuracy([row["distilled"]["final"] for row in group])
        gain = ["", ""]
        if gains and key != "random":
            mean = _show(gains.mean, spread(gains.values) or None, "+")
            gain = [mean, f"{min(gains.values):+.1f}"]
        line = [NAMES.get(key, key), METHODS[name].matches, accuracy, *gain]
        lines.append([*line, f"{spent:.0f}", str(len(group))])
    return _markdown(lines)


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
    first = _by_seed(groups.get(base, {}).values())
    differences = {
        name: difference
        for name, group in groups.items()
        if name != base and (difference := Difference.paired(_by_seed(group.values()), first))
    }
    corrected, lines = holm(differences), [head]
    for name, group in groups.items():
        found, p = differences.get(name), corrected.get(name)
        accuracy = _accuracy([row["distilled"]["final"] for row in group.values()])
        gain = ["" if found is None else found.text(), "" if p is None else show_p(p)]
        stages = [row.get("seconds", {}) for row in group.values()]
        known = [seconds["distill"] for seconds in stages if "distill" in seconds]
        spent = [f"{statistics.median(known):.0f}" if known else ""] if timed else []
        lines.append([names[name], accuracy, *gain, *spent, str(len(group))])
    return _markdown(lines)


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
        accuracy = _show(statistics.fmean(one.accuracies), spread(one.accuracies))
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
    return _markdown(lines)


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
    base = _by_seed(means.get("file", {}).values(), "mean")
    for form, name in names.items():
        if not (of := means.get(form)):
            continue
        values = _by_seed(of.values(), "mean")
        gain = None if form in ("file", "all photographs") else Difference.paired(values, base)
        middle = lambda key, of=of: statistics.median(row[key] for row in of.values())
        spent = f"{middle('seconds'):.0f}" if all("seconds" in row for row in of.values()) else ""
        line = [name, f"{middle('images'):.0f}", f"{middle('bytes') / 1000:,.0f}"]
        line += [
            _show(statistics.fmean(values.values()), spread([*values.values()])),
            gain.text() if gain else "",
        ]
        lines.append([*line, spent, str(len(of))])
    return _markdown(lines)


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
    return _markdown(lines) if rows else "No run is finished."


def _markdown(lines: Sequence[Sequence[str]]) -> str:
    text = in_markdown(lines)
    # a number and its error stay on one line
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def _name(data: str, ipc: int) -> str:
    return f"{data.upper().replace('CIFAR', 'CIFAR-')}, {ipc}"


def _key(row: dict) -> tuple[str, int, str]:
    """Return data set, images per class, and the method, or for trajectories the rule."""
    return row["recipe"]["data"], row["recipe"]["distill"]["ipc"], row.get("rule") or row["method"]


def _accuracy(seeds: list[list[float]]) -> str:
    """Return mean and deviation, as text, of the accuracies of each seed's networks."""
    if not seeds:
        return "–"
    values = seeds[0] if len(seeds) == 1 else [statistics.fmean(networks) for networks in seeds]
    return _show(statistics.fmean(values), spread(values))


def _show(value: float | None, error: float | None, sign: str = "", missing: str = "") -> str:
    """Return a number with its error, as text; `missing` where there is none."""
    if value is None:
        return missing
    return f"{value:{sign}.1f}" + ("" if error is None else f" ± {error:.1f}")


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
        _by_seed([row for row in rows if row.get("rule") == rule and not row["error"]], value)
        for rule in ("signed", "none")
    )
    gains = Difference.paired(pruned, mtt)
    return (gains.mean, gains.half, len(gains.values)) if gains else (None, None, 0)


def differences(rows: Sequence[dict], sets: Sequence[tuple[str, int]] = tuple(TABLE_1)) -> str:
    """Return `paired` for each data set and size, in Markdown, beside the paper's difference.

    - rows: of experiment table1, see `experiments.read`.
    - sets: (data set, images per class) to show. Default: all of Table I.
    """
    head = ["data, images per class", "paper", "final", "selected", "seeds"]
    lines = [head]
    for data, ipc in sets:
        paper = TABLE_1[data, ipc]
        group = [row for row in rows if _key(row)[:2] == (data, ipc)]
        final, selected = paired(group), paired(group, "selected")
        ours = [_show(mean, half, "+", "–") for mean, half, _ in (final, selected)]
        published = f"{paper['signed'][0] - paper['none'][0]:+.1f}"
        lines.append([_name(data, ipc), published, *ours, str(final[2] or "–")])
    return _markdown(lines)


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
    base = _by_seed([r for r in rows if r["rule"] == "none" and not r["error"]])
    for rule, epsilon in dict.fromkeys((row["rule"], row["epsilon"]) for row in rows):
        group = [row for row in rows if (row["rule"], row["epsilon"]) == (rule, epsilon)]
        finished = [row for row in group if not row["error"]]
        values = _by_seed(finished)
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


def _by_seed(rows: Iterable[dict], value: str = "accuracy") -> dict[int, float]:
    rows = [*rows]
    found = {row["seed"]: row[value] for row in rows}
    if len(found) < len(rows):
        names = ", ".join(row.get("name", "a run without a name") for row in rows)
        raise Error(f"several runs have one seed, and would be taken for one: {names}")
    return found


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
        _show(line["mean"], line["std"]),
        Difference(tuple(line["gains"])).text(1) if line["gains"] else "",
    )
    return [line["rule"], f"{line['epsilon']:g}", str(line["runs"]), kept, *numbers]
