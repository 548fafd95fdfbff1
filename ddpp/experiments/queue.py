"""Do the runs of a list that have no result yet.

The result of a run is two small files in RESULTS/PROFILE/EXPERIMENT: NAME.json, with the
accuracies, the settings, what it cost and on what it was made, and, of a recipe, NAME.safetensors,
the distilled images. The report is written last, so a run is finished exactly if its report is
there.
"""

import contextlib
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddpp.data import ImageData, load_data
from ddpp.evaluating import evaluate
from ddpp.experiments.lists import CHOICES, Run
from ddpp.experiments.results import (
    describe,
    marks_of_run,
    network_of,
    read_result,
    read_set,
    summary,
    write_set,
)
from ddpp.experiments.run import beside, clock, commit, provenance, run, stopwatch
from ddpp.foundation import files
from ddpp.foundation.errors import Error
from ddpp.foundation.loop import KIND as CHECKPOINT
from ddpp.foundation.loop import Stopped

if TYPE_CHECKING:  # a class that takes no subscript when the program runs
    from multiprocessing.sharedctypes import SynchronizedArray


def reproduce(
    todo: Sequence[Run],
    *,
    results: str | Path = "results",
    work: str | Path = "runs/reproduce",
    root: str | Path = "data",
    device: str | None = None,
    minutes: float | None = None,
    jobs: int = 1,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Do the runs of `todo` that have no result yet, for `minutes` or until all are done; returns
    the rows (see
    `read_row`) of those that are finished.

    One after the other, or `jobs` at a time, in processes that divide the cores among them; small
    networks keep one core busy, but not two. Several calls may work at one list: what one of them
    is at, the others leave to it. Teachers, checkpoints and whole distilled files are in `work`;
    with it, a stopped call goes on where it was, here or on another machine. Of several jobs at a
    time there are no progress bars, and they print what they do themselves; a script that calls
    this needs the line `if __name__ == "__main__":`, as each process imports it. A run that fails
    says why and leaves the others to go on; in the end there is an Error with the names of such
    runs. Raises Error at once for a result that is damaged or belongs to other settings, and for
    what would stop all runs.
    """
    if jobs < 1:
        raise Error(f"jobs is {jobs}: it must be at least 1")
    if jobs > 1 and not hasattr(os, "setsid"):
        raise Error("several jobs at a time are not possible on this system: leave jobs out")
    todo = list(todo)
    finished = lambda: [row for each in todo if (row := read_result(each, results))]
    say(f"{len(finished())} of {len(todo)} runs are finished")
    options = {"results": Path(results), "work": Path(work), "root": root, "device": device}
    ends = time.monotonic() + 60 * (minutes or math.inf)
    try:
        with time_limit(minutes):
            failed = bytearray(len(todo))
            if jobs > 1:
                failed = _side_by_side(jobs, todo, options)
            else:
                _one_by_one(todo, failed, **options, progress=progress, say=say)
            for each, bad in zip(todo, failed, strict=True):
                if bad or read_result(each, results):
                    continue
                if each.of and not _base(each, results):
                    why = (
                        "has no images in"
                        if read_result(_origin(each), results)
                        else "has no result yet in"
                    )
                    say(f"\n{each.name}: left out, as {each.of} {why} {results}")
                else:
                    say(f"\n{each.name}: another process is at it")
    except KeyboardInterrupt:
        if time.monotonic() < ends:
            raise
        say(
            f"\nthe {minutes:g} minutes are over; what was done is saved. Run the same command "
            "again to go on"
        )
    rows = finished()
    say(f"\n{len(rows)} of {len(todo)} runs are finished")
    if names := ", ".join(each.name for each, bad in zip(todo, failed, strict=True) if bad):
        raise Error(f"failed, for the reasons above: {names}")
    return rows


def _one_by_one(
    todo: list[Run],
    failed: "bytearray | SynchronizedArray[int]",
    results: Path,
    work: Path,
    root: str | Path,
    device: str | None,
    progress: bool,
    say: Callable[[str], None],
) -> None:
    """Do what has no result and no other process is at, until there is no more of it; mark in
    `failed`, an array that
    the processes share, the runs whose own fault stopped them."""
    load = lru_cache(1)(
        lambda *which: load_data(
            which[0], root=root, zca=which[1], validation=which[2], device=device
        )
    )
    commit()
    missing, before = list(enumerate(todo)), None
    while missing != before:
        before, missing = missing, []
        for i, each in before:
            if failed[i] or read_result(each, results):
                continue
            missing.append((i, each))
            base = _base(each, results)
            if each.of and not base:  # perhaps in the next round
                continue
            claim = beside(out_of(each, work), "claim")
            files.check_writable(claim)
            with contextlib.suppress(files.Busy), files.lock(claim, wait=False):
                # else another process was faster
                if not failed[i] and not read_result(each, results):
                    say(f"\n{each.name}")
                    files.check_writable(each.report(results))
                    data = load(each.recipe.data, each.recipe.zca, each.recipe.validation)
                    try:
                        row = _do(
                            each,
                            base,
                            data,
                            results,
                            work,
                            progress,
                            say if progress else lambda line: None,
                        )
                        say(f"{each.name}: {describe(row)}")
                    except Error as e:
                        failed[i] = 1
                        say(f"{each.name} failed: {e}")
                missing.pop()


def _side_by_side(jobs: int, todo: list[Run], options: dict) -> Sequence[int]:
    """`_one_by_one` in so many processes; returns which runs failed. Ctrl-C stops them as it stops
    one: what was done
    is saved."""
    spawn = multiprocessing.get_context("spawn")
    failed, processes = spawn.Array("b", len(todo)), []
    # also where the list is shorter: they decide the bits
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        for _ in range(min(jobs, len(todo))):
            process = spawn.Process(target=_job, args=(threads, todo, failed, options))
            with _interrupts_blocked():  # in the child, too, until it can take one
                process.start()
                processes.append(process)
        for each in processes:
            each.join()
    except BaseException:
        while alive := [each for each in processes if each.is_alive()]:
            # of an impatient user, or of the time limit, each minute
            with contextlib.suppress(KeyboardInterrupt):
                for each in alive:
                    os.kill(each.pid, signal.SIGINT)
                for each in alive:
                    each.join(60)
        raise
    if any(each.exitcode for each in processes):
        raise Error(
            "not all processes came to the end; the reasons are above, and what was done is saved"
        )
    return failed[:]


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])


def _job(threads: int, todo: list[Run], failed: "SynchronizedArray[int]", options: dict) -> None:
    # also where a shell in the background has it ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()  # a Ctrl-C at the terminal is its parent's, who passes it on, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    line_by_line = lambda line: print(f"{line.strip()}\n", end="", flush=True)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
        _one_by_one(todo, failed, **options, progress=False, say=line_by_line)
    except KeyboardInterrupt:
        sys.exit(130)
    except Error as e:
        print(f"ddpp: {e}", file=sys.stderr)
        sys.exit(1)


def _end_with_parent() -> None:
    if parent := multiprocessing.parent_process():
        parent.join()
        while True:  # until one of them is not lost
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)


def overview(todo: Sequence[Run], results: str | Path, work: str | Path) -> list[str]:
    """One line per run: what came out, how far it is, or that it is missing; and a last one with
    their numbers.
    """
    lines, finished, width = [], 0, max((len(each.name) for each in todo), default=0)
    for each in todo:
        row, state = read_result(each, results), "missing"
        if row:
            finished, state = finished + 1, describe(row)
        elif out_of(each, work).exists():
            state = "distilled, not yet evaluated"
        elif (checkpoint := beside(out_of(each, work), "checkpoint")).exists():
            state = "begun"
            # it may end at this moment, or not count steps
            with contextlib.suppress(Error, KeyError):
                step = files.Lazy(checkpoint, CHECKPOINT).meta["step"]
                state += f": {step} of {asdict(each.recipe.distill)['steps']} steps"
        lines.append(f"{each.name:{width}} {state}")
    return [*lines, f"{finished} of {len(todo)} runs are finished"]


def out_of(each: Run, work: str | Path) -> Path:
    """The whole distilled file of a run, with its checkpoint and its teachers beside it."""
    return Path(work) / f"{each.recipe.profile}-{each.name.replace('/', '-')}.safetensors"


@contextlib.contextmanager
def time_limit(minutes: float | None) -> Iterator[None]:
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
    # again each minute, should one be lost in a destructor
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _do(
    each: Run,
    base: tuple[Path, dict] | None,
    data: ImageData,
    results: Path,
    work: Path,
    progress: bool,
    say: Callable[[str], None],
) -> dict:
    """Run it, and write its result; `base`: see `_base`."""
    path, distill = each.report(results), each.recipe.distill
    row = {"name": each.name, "method": each.recipe.method, "seed": distill.seed, "error": None}
    row |= {
        key: getattr(distill, key)
        for key in ("rule", "epsilon")
        if each.recipe.method in ("ddpp", "mtt")
    }
    row |= marks_of_run(each)
    # of all runs: those of a seed share their real images
    scores = work / f"{each.recipe.profile}-scores.json"
    if base:
        row |= _transfer(each, base, data, work, scores, progress)
        files.write_json(path, row)
        return row
    try:
        distilled, report = run(
            each.recipe,
            out_of(each, work),
            data=data,
            scores=scores,
            best_on_test=each.recipe.profile != "smoke",
            save_minutes=0.5,
            progress=progress,
            say=say,
        )
    except Stopped as e:  # pruning too much is a result, too
        row |= {"error": str(e), "recipe": asdict(each.recipe)} | provenance(data.device)
        distilled, report = None, {}
    if done := read_result(each, results):
        return done
    if distilled:
        row |= summary(distilled, report) | {
            key: report[key] for key in report if key not in ("file", "asked")
        }
        chosen = each.recipe.method in CHOICES  # real images, which may not be ours to pass on
        row["set"] = None if chosen else write_set(path.with_suffix(".safetensors"), distilled)
    files.write_json(path, row)
    return row


def _transfer(
    each: Run, base: tuple[Path, dict], data: ImageData, work: Path, scores: Path, progress: bool
) -> dict:
    """The evaluation of another run's set in each.network."""
    network = network_of(each)
    with clock(out_of(each, work)) as seconds, stopwatch(seconds, "evaluate"):
        found = evaluate(
            read_set(*base, data),
            data,
            network.name,
            each.recipe.repeats,
            width=network.width,
            protocol=each.recipe.protocol,
            seed=each.recipe.distill.seed,
            scores=scores,
            progress=progress,
        )
    return {
        "of": each.of,
        "network": asdict(network),
        "accuracy": found.mean,
        "distilled": found.to_dict(),
        "recipe": asdict(each.recipe),
        "seconds": seconds,
    } | provenance(data.device)


def _base(each: Run, results: str | Path) -> tuple[Path, dict] | None:
    """The path and the report of the run each.of, if there is one, it is finished, and its images
    are there.
    """
    if not each.of:
        return None
    base = _origin(each)
    row = read_result(base, results)
    return (base.report(results), row) if row and row.get("set") else None


def _origin(each: Run) -> Run:
    """The run each.of."""
    return replace(each, name=each.of, of=None, network=None)
