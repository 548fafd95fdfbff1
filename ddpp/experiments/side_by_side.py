"""Several processes that work at one list, which start anew and import ddpp for themselves."""

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from ddpp.experiments.lists import Run
from ddpp.experiments.results import marks_of_run
from ddpp.experiments.worker import Worker
from ddpp.foundation.devices import share_memory
from ddpp.foundation.errors import Error
from ddpp.foundation.spawning import Packed, pack_tables, unpack_tables

if TYPE_CHECKING:  # a class that takes no subscript when the program runs
    from multiprocessing.sharedctypes import SynchronizedArray

    from ddpp.experiments.worker import Marks

CANNOT_IMPORT = 3  # exit code of a process that cannot import what its runs use


def side_by_side(jobs: int, worker: Worker, failed: "Marks") -> None:
    """Do `Worker.work` in several processes, and mark the runs that failed.

    Ctrl-C stops them as it stops one: what was done is saved, and what failed is marked.
    """
    spawn = multiprocessing.get_context("spawn")
    marks, started = spawn.Array("b", len(worker.todo)), []
    todo, count = pack_runs(worker.todo), min(jobs, len(worker.todo))
    worker = replace(worker, todo=(), progress=False, say=_print_at_once)
    # not fewer processes for a shorter list: the number of threads decides the bits
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        for _ in range(count):
            process = spawn.Process(target=_job, args=(threads, jobs, worker, todo, marks))
            with _interrupts_blocked():  # in the child, too, until it can take one
                process.start()
                started.append(process)
        for process in started:
            process.join()
    except BaseException:
        _stop(started)
        raise
    finally:
        failed[:] = bytearray(marks[:])
    codes = {process.exitcode for process in started}
    if CANNOT_IMPORT in codes:
        raise _cannot_import(todo.used)
    if any(code and code < 0 for code in codes):
        raise Error(
            "a process was ended by the system, perhaps for lack of memory: choose fewer jobs. "
            "What was done is saved"
        )
    if any(codes):
        raise Error(
            "not all processes came to the end; the reasons are above, and what was done is saved"
        )


@dataclass(frozen=True)
class PackedRuns:
    """Runs for another process, with the tables in which it looks up what they name."""

    tables: Packed
    runs: bytes  # pickled: a config of the user's own may be among them
    marks: list[dict]  # of each run, see `marks_of_run`

    @property
    def used(self) -> list[str]:
        """What the runs use that is not ddpp's own, as "KIND NAME"."""
        return sorted({name for marks in self.marks for name in marks.get("custom", {})})

    def unpack(self) -> tuple[Run, ...] | None:
        """Return the runs, or None where this process cannot import just what they use."""
        unpack_tables(self.tables)
        try:
            found = pickle.loads(self.runs)
        except Exception:  # whatever a module of the user's raises
            return None
        return found if [marks_of_run(run) for run in found] == self.marks else None


def pack_runs(todo: tuple[Run, ...]) -> PackedRuns:
    """Pack runs for another process. Raises Error for what it cannot be given."""
    tables, marks = pack_tables(), [marks_of_run(run) for run in todo]
    try:
        packed = PackedRuns(tables, pickle.dumps(todo), marks)
    except Exception:  # of a config of the user's own
        raise _cannot_import(PackedRuns(tables, b"", marks).used) from None
    given = {f"{kind} {name}" for kind, things in tables.items() for name in things}
    # classes of settings are in no table: they come with the runs
    needed = [name for name in packed.used if name.partition(" ")[0] in tables]
    if missing := [name for name in needed if name not in given]:
        raise _cannot_import(missing)
    return packed


def _cannot_import(names: Sequence[str]) -> Error:
    return Error(
        f"another process cannot import what these runs use ({', '.join(names)}): do one run at a "
        "time (--jobs 1, or jobs=1), or write it at the top level of a module, with def or class"
    )


def _stop(started: list) -> None:
    """Interrupt processes until all have ended."""
    while alive := [process for process in started if process.is_alive()]:
        # from an impatient user, or from the time limit, each minute
        with contextlib.suppress(KeyboardInterrupt):
            for process in alive:
                os.kill(process.pid, signal.SIGINT)
            for process in alive:
                process.join(60)


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _job(
    threads: int, jobs: int, worker: Worker, todo: PackedRuns, failed: "SynchronizedArray[int]"
) -> None:
    # also where a shell started it in the background, with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()  # a Ctrl-C at the terminal goes to the parent, which passes it on, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    share_memory(jobs)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        if (runs := todo.unpack()) is None:
            sys.exit(CANNOT_IMPORT)
        replace(worker, todo=runs).work(failed)
    except KeyboardInterrupt:
        sys.exit(130)
    except Error as e:
        print(f"ddpp: {e}", file=sys.stderr)
        sys.exit(1)


def _print_at_once(line: str) -> None:
    print(f"{line.strip()}\n", end="", flush=True)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        while True:  # an interrupt may be lost
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
