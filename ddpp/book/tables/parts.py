"""What the tables share: names, cells, and rows by seed."""

import statistics
from collections.abc import Iterable, Sequence

from ddpp.foundation.errors import Error
from ddpp.foundation.text import in_markdown, show_mean

NAMES = {  # as the tables show them
    **{"none": "MTT", "signed": "pruned"},
    **{"random": "Random", "herding": "Herding", "forgetting": "Forgetting"},
    **{"dc": "DC", "dsa": "DSA", "dm": "DM", "cafe": "CAFE", "kip": "KIP", "iadd": "IADD"},
    **{"tgdd": "TGDD", "bptt": "RaT-BPTT"},
    **{"convnet": "ConvNet", "alexnet": "AlexNet", "vgg11": "VGG11", "resnet18": "ResNet18"},
}


def markdown(lines: Sequence[Sequence[str]]) -> str:
    """Lay out a table in Markdown, its head first."""
    text = in_markdown(lines)
    # a number and its error stay on one line
    return text.replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")


def name_of(data: str, ipc: int) -> str:
    """Name a data set with its images per class, as "CIFAR-10, 1"."""
    return f"{data.upper().replace('CIFAR', 'CIFAR-')}, {ipc}"


def key_of(row: dict) -> tuple[str, int, str]:
    """Return data set, images per class, and the method, or for trajectories the rule."""
    return row["recipe"]["data"], row["recipe"]["distill"]["ipc"], row.get("rule") or row["method"]


def accuracy_of(seeds: list[list[float]]) -> str:
    """Return mean and deviation, as text, of the accuracies of each seed's networks."""
    if not seeds:
        return "–"
    values = seeds[0] if len(seeds) == 1 else [statistics.fmean(networks) for networks in seeds]
    return show_mean(values)


def show(value: float | None, error: float | None, sign: str = "") -> str:
    """Return a number with its error, as text. Empty where there is none."""
    if value is None:
        return ""
    return f"{value:{sign}.1f}" + ("" if error is None else f" ± {error:.1f}")


def by_seed(rows: Iterable[dict], value: str = "accuracy") -> dict[int, float]:
    """Return a value of each row, by its seed. Raises Error if two rows have one seed."""
    rows = [*rows]
    found = {row["seed"]: row[value] for row in rows}
    if len(found) < len(rows):
        names = ", ".join(row.get("name", "a run without a name") for row in rows)
        raise Error(f"several runs have one seed, and would be taken for one: {names}")
    return found
