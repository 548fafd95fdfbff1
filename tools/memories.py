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
from ddpp.experiments.remembering import REPORT
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
# Matching trajectories of two classes: alpha stays. With the smoke profile's alpha_lr it falls to
# zero within a task. The image rate for one per class is the better of 30 and 100 with order 100.
# For ten per class they are those of chapter 13, with teachers that are not too long.
MATCHING = {
    1: {"steps": 40, "alpha_lr": 1e-7, "image_lr": 30.0},
    10: {"steps": 20, "alpha_lr": 1e-7, "image_lr": 300.0, "alpha0": 0.03, "max_start_epoch": 4},
}
TEACHERS = {1: {}, 10: {"count": 2, "epochs": 6}}


def memories() -> Iterator[tuple[str, Recipe, int]]:
    """List name, recipe and order of each memory, an order of all of them after the other."""
    for order in ORDERS:
        for method, sizes in SIZES.items():
            for ipc in sizes:
                made = recipe("smoke", ipc=ipc, method=method)
                made = replace(made, protocol=PROTOCOL, repeats=REPEATS)
                if method in ("mtt", "ddpp"):
                    distill = replace(made.distill, **MATCHING[ipc])
                    teachers = replace(made.teachers, **TEACHERS[ipc])
                    made = replace(made, distill=distill, teachers=teachers)
                made = seeded(made, order)
                yield f"{method}-ipc{ipc}-order{order}", made, order


def command(
    results: Path = Path("results/smoke/memory"), work: Path = Path("runs/memories"), only: str = ""
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
