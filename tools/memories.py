"""Memories of five methods, in five orders of the classes: `python -m tools.memories`.

Chapter 14 shows them. More than an hour of one core; a stopped call resumes, and several may work
side by side.
"""

import contextlib
import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, NamedTuple

from tyro.conf import arg

from ddpp.evaluating import Protocol
from ddpp.experiments.lists import seeded
from ddpp.experiments.recipes import Recipe, recipe
from ddpp.foundation import files
from ddpp.foundation.loop import Saving
from ddpp.foundation.provenance import commit
from ddpp.studies import remember
from ddpp.studies.remembering import REPORT, for_tasks
from tools.commands import containing, run

ORDERS, REPEATS = range(5), 3
SIZES = {  # images per class
    "random": (1, 3, 10),
    "herding": (1, 10),
    "dm": (1, 3, 10),
    "mtt": (1,),
    "ddpp": (1, 10),
}


class Memory(NamedTuple):
    """A memory to make. All networks are trained on it at `rate`, whatever made it."""

    name: str
    recipe: Recipe
    tasks: int
    order: int
    rate: float


def memories() -> Iterator[Memory]:
    """List the memories of chapter 14, an order of all of them after the other."""
    for order in ORDERS:
        for method, sizes in SIZES.items():
            for ipc in sizes:
                made = for_tasks(recipe("smoke", ipc=ipc, method=method))
                made = replace(made, protocol=Protocol(epochs=100), repeats=REPEATS)
                name = f"{method}-ipc{ipc}-order{order}"
                yield Memory(name, seeded(made, order), 5, order, 0.03)


def memories_of_cifar100() -> Iterator[Memory]:
    """List the memories that papers compare: CIFAR-100 in 5 and 10 tasks, 20 images per class.

    They need a GPU. None has been made yet.
    """
    for order, tasks, method in itertools.product(ORDERS, (5, 10), SIZES):
        made = replace(recipe("colab", "cifar100", 20, method), repeats=REPEATS)
        name = f"cifar100-{tasks}-tasks/{method}-ipc20-order{order}"
        yield Memory(name, seeded(made, order, own_teachers=True), tasks, order, 0.01)


def command(
    results: Path = Path("results/memory"),
    work: Path = Path("runs/memories"),
    root: Path = Path("data"),
    only: str = "",
    cifar100: bool = False,
    show: Annotated[bool, arg(name="list")] = False,
) -> None:
    """Make the memories, and write a report of each.

    Args:
        results: folder of the reports; what has one is not made again
        work: folder of the memories
        root: folder of CIFAR-100, which is downloaded if missing
        only: what is in the names, as 'dm-ipc10'; empty: all
        cifar100: those of CIFAR-100, for a GPU, instead of those of chapter 14
        show: print what is finished and what is missing, and do nothing
    """
    commit()
    known = memories_of_cifar100() if cifar100 else memories()
    for memory in containing(only, ((memory.name, memory) for memory in known), "memory"):
        report, folder = results / f"{memory.name}.json", work / memory.name
        if show:
            print(f"{memory.name}: {'finished' if report.exists() else 'missing'}")
        if show or report.exists():
            continue
        how = {"tasks": memory.tasks, "order": memory.order, "rate": memory.rate}
        with contextlib.suppress(files.Busy):  # another process is making it
            quiet = Saving(progress=False)
            found = remember(memory.recipe, folder, root=root, saving=quiet, **how)
            files.write_bytes(report, (folder / REPORT).read_bytes())
            last = found[-1].accuracies
            print(f"{memory.name}: {sum(last) / len(last):.1f} %", flush=True)


main = partial(run, command, "memories")

if __name__ == "__main__":
    sys.exit(main())
