"""Memories of five methods, in five orders of the classes: `python -m tools.memories`.

Chapter 14 shows them. More than an hour of one core; a stopped call resumes, and several may work
side by side.
"""

import contextlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from ddpp.evaluating import Protocol
from ddpp.experiments import remember
from ddpp.experiments.lists import seeded
from ddpp.experiments.recipes import Recipe, recipe
from ddpp.experiments.remembering import REPORT, for_tasks
from ddpp.experiments.run import commit
from ddpp.foundation import files
from ddpp.foundation.loop import Saving
from tools.commands import run

TASKS, ORDERS, REPEATS = 5, range(5), 3
RATE = 0.03  # of all networks that are trained on a memory, whatever made it
PROTOCOL = Protocol(epochs=100)
SIZES = {  # images per class
    "random": (1, 3, 10),
    "herding": (1, 10),
    "dm": (1, 3, 10),
    "mtt": (1,),
    "ddpp": (1, 10),
}


def memories() -> Iterator[tuple[str, Recipe, int]]:
    """List name, recipe and order of each memory, an order of all of them after the other."""
    for order in ORDERS:
        for method, sizes in SIZES.items():
            for ipc in sizes:
                made = for_tasks(recipe("smoke", ipc=ipc, method=method))
                made = seeded(replace(made, protocol=PROTOCOL, repeats=REPEATS), order)
                yield f"{method}-ipc{ipc}-order{order}", made, order


def command(
    results: Path = Path("results/memory"), work: Path = Path("runs/memories"), only: str = ""
) -> None:
    """Make the memories, and write a report of each.

    Args:
        results: folder of the reports; what has one is not made again
        work: folder of the memories
        only: what is in the names, as 'dm-ipc10'; empty: all
    """
    commit()
    for name, settings, order in memories():
        report, folder = results / f"{name}.json", work / name
        if report.exists() or only not in name:
            continue
        with contextlib.suppress(files.Busy):  # another process is making it
            quiet = Saving(progress=False)
            found = remember(settings, folder, tasks=TASKS, order=order, rate=RATE, saving=quiet)
            files.write_bytes(report, (folder / REPORT).read_bytes())
            last = found[-1].accuracies
            print(f"{name}: {sum(last) / len(last):.1f} %", flush=True)


def main(argv: list[str] | None = None) -> int:
    """Make the memories; the exit code is 0, or 1 for an Error, in a sentence."""
    return run(command, "memories", argv)


if __name__ == "__main__":
    sys.exit(main())
