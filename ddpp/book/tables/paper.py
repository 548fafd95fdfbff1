"""The paper's Tables I to III, beside the best results there are (see `experiments.read`)."""

from collections.abc import Iterator, Mapping, Sequence

from ddpp.book.tables.parts import NAMES, accuracy_of, key_of, markdown, name_of, show

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
SCALES = {  # from the largest on, as the tables call them
    "paper": "as the paper",
    "colab": "full data, 1,000 steps",
    "cpu": "full data, on CPU cores",
    "smoke": "smallest: the sample, width 32",
}


def table_2() -> str:
    """Return the paper's Table II in Markdown: KIP in two widths, and the paper's method."""
    head = ["data, images per class", "KIP-1024", "KIP-128", NAMES["signed"]]
    lines = [head]
    for (data, ipc), accuracies in TABLE_2.items():
        if None not in accuracies:
            lines.append([name_of(data, ipc), *(f"{accuracy}" for accuracy in accuracies)])
    return markdown(lines)


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
    return markdown(_lines_3(groups, "ours"))


def _lines_3(groups: Mapping[str, Sequence[dict]], here: str) -> list[list[str]]:
    """Lay out Table III: the paper's accuracies, and those of the rows of each architecture."""
    methods = ("signed", "none")
    lines = [["architecture", *(f"{NAMES[m]}, {who}" for m in methods for who in ("paper", here))]]
    for architecture, rows in groups.items():
        lines.append([NAMES[architecture]])
        for method in methods:
            mine = [row for row in rows if key_of(row)[2] == method and not row["error"]]
            group = [row["distilled"]["final"] for row in mine]
            lines[-1] += [show(*TABLE_3[architecture][method]), accuracy_of(group)]
    return lines


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
                made = (accuracy_of(group), str(len(group)), _length(found[0]))
                cell = (name_of(data, ipc), NAMES[method], f"{mean} ± {std}")
                lines.append((*cell, *made, SCALES[_scale(found[0])]))
    told = [len({line[i] for line in lines[1:]}) > 1 for i in (5, 6)]
    columns = [*range(5), *(i for i, several in zip((5, 6), told, strict=True) if several)]
    return markdown([[line[i] for i in columns] for line in lines])


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
            lines.append(f"- {name_of(data, ipc)}: {', '.join(names)}. {command}")
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
    return markdown([[*line, scale] for line, scale in lines])


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
        chosen = [
            row for row in here if _scale(row) == scale and key_of(row) == (name, ipc, method)
        ]
        if chosen:
            most = max(map(length, chosen))
            return [row for row in chosen if length(row) == most]
    return []
