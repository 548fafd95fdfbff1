"""Do the runs of a list that have no result yet, alone or side by side."""

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddpp.data import ImageData
from ddpp.experiments.lists import Run
from ddpp.experiments.side_by_side import side_by_side
from ddpp.experiments.worker import Worker
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error
from ddpp.foundation.spawning import all_spawn

if TYPE_CHECKING:
    from ddpp.experiments.worker import Marks


def reproduce(
    todo: Sequence[Run],
    *,
    results: str | Path = "results",
    work: str | Path = "runs/reproduce",
    root: str | Path = "data",
    device: str | None = None,
    given: ImageData | None = None,
    minutes: float | None = None,
    jobs: int = 1,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Do the runs of `todo` that have no result yet, for `minutes` or until all are done.

    - todo: runs, see `runs` and `select`.
    - results: the folder of reports and distilled images.
    - work: the folder of teachers, checkpoints and whole distilled files. With it a stopped call
      resumes, here or on another machine.
    - root, device: as in load_data.
    - given: the data of all runs, if they are loaded already.
    - minutes: stop after so many; None: never.
    - jobs: runs at a time. They are processes that divide the cores among them: small networks keep
      one core busy, but not two.
    - progress: whether progress bars are shown. Several jobs show none.
    - say: takes each line of output. Several jobs print their lines themselves.

    Returns the rows (see `read_row`) of the finished runs.

    Several calls may work at one list at the same time: each skips the runs that another is doing.
    A script that calls this with several jobs needs the line `if __name__ == "__main__":`, because
    each process imports it. Rules, networks, augmentations and methods of your own must be in a
    module, or in the script above that line. What a notebook defines works with one job only.

    Raises Error at once for a result that is damaged or belongs to other settings, for what another
    process cannot import, and for folders that cannot be written. If single runs fail, perhaps for
    lack of their data, the others are still done. Then an Error names those that failed.
    """
    worker = Worker(tuple(todo), Path(results), Path(work), root, device, given, progress, say)
    _check_jobs(jobs)
    worker.check_images()
    say(f"{len(worker.finished())} of {len(worker.todo)} runs are finished")
    ends = time.monotonic() + 60 * (minutes or math.inf)
    failed: Marks = bytearray(len(worker.todo))
    try:
        with _time_limit(minutes):
            if jobs > 1:
                side_by_side(jobs, worker, failed)
            else:
                worker.work(failed)
            worker.say_what_is_left(failed)
    except KeyboardInterrupt:
        if time.monotonic() < ends:
            raise
        say(
            f"\nthe {minutes:g} minutes are over; what was done is saved. To resume, run the same "
            "command again"
        )
    rows = worker.finished()
    say(f"\n{len(rows)} of {len(worker.todo)} runs are finished")
    if names := ", ".join(run.name for run, bad in zip(worker.todo, failed[:], strict=True) if bad):
        raise Error(f"failed, for the reasons above: {names}")
    return rows


def usual_jobs(device: str | None) -> int:
    """Return how many runs at a time are fast on a device: two on a CPU with several cores.

    One where other processes may be unable to import a rule, say, of the user's own.
    """
    several = hasattr(os, "setsid") and torch.get_num_threads() > 1
    return 2 if find_device(device).type == "cpu" and several and all_spawn() else 1


def _check_jobs(jobs: int) -> None:
    if jobs < 1:
        raise Error(f"jobs is {jobs}: it must be at least 1")
    if jobs > 1 and not hasattr(os, "setsid"):
        raise Error("several jobs at a time are not possible on this system: leave jobs out")


@contextlib.contextmanager
def _time_limit(minutes: float | None) -> Iterator[None]:
    """Interrupt the block, as Ctrl-C does, after so many minutes; None: never."""
    if minutes is None:
        yield
        return
    if not 0 < minutes < 1e6:
        raise Error(f"minutes is {minutes}: it must be positive and below a million")
    if not hasattr(signal, "setitimer"):
        raise Error(
            "a limit in minutes is not possible on this system: leave it out, and stop with Ctrl-C"
        )
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    # again each minute, as an interrupt may be lost in a destructor
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
