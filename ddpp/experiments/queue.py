"""Do the runs of a list that have no result yet.

The result of a run is two small files in RESULTS/PROFILE/EXPERIMENT: NAME.json, with the
accuracies, the settings, what it cost and on what it was made, and, of a recipe, NAME.safetensors,
the distilled images. The report is written last: a run is finished exactly if its report is there.
"""

import contextlib
import math
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddpp.data import ImageData, load_data
from ddpp.distilled import DistilledDataset
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
from ddpp.experiments.run import Clock, Experiment, beside, commit, provenance
from ddpp.foundation import files
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error
from ddpp.foundation.loop import KIND as CHECKPOINT
from ddpp.foundation.loop import Saving, Stopped
from ddpp.foundation.spawning import Packed, all_spawn, pack_tables, unpack_tables

if TYPE_CHECKING:  # a class that takes no subscript when the program runs
    from multiprocessing.sharedctypes import SynchronizedArray

    Marks = bytearray | SynchronizedArray[int]  # for each run of a list, whether it has failed

CANNOT_IMPORT = 3  # exit code of a process that cannot import what its runs use


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
    module, or in the script above that line: what stands in a notebook works with one job.

    Raises Error at once for a result that is damaged or belongs to other settings, for what another
    process cannot import, and for whatever would stop all runs. If single runs fail, the others are
    still done. Then an Error names those that failed.
    """
    worker = Worker(tuple(todo), Path(results), Path(work), root, device, given, progress, say)
    _check_jobs(jobs)
    say(f"{len(worker.finished())} of {len(worker.todo)} runs are finished")
    ends = time.monotonic() + 60 * (minutes or math.inf)
    failed: Marks = bytearray(len(worker.todo))
    try:
        with time_limit(minutes):
            if jobs > 1:
                failed = _side_by_side(jobs, worker)
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


@dataclass(frozen=True)
class Worker:
    """One process that works at a list, see `reproduce`."""

    todo: tuple[Run, ...]
    results: Path
    work_folder: Path
    root: str | Path
    device: str | None
    given: ImageData | None
    progress: bool
    say: Callable[[str], None]

    def finished(self) -> list[dict]:
        """Return the rows of the runs that have a result."""
        return [row for run in self.todo if (row := read_result(run, self.results))]

    def work(self, failed: "Marks") -> None:
        """Do what has no result and what no other process is doing, until nothing is left.

        - failed: marks the runs that failed by themselves. The processes share it.
        """
        load = lru_cache(1)(self._load)
        commit()
        missing, before = list(range(len(self.todo))), None
        while missing != before:
            before, missing = missing, []
            for i in before:
                run = self.todo[i]
                if failed[i] or read_result(run, self.results):
                    continue
                missing.append(i)
                base = self._base(run)
                if (run.of or run.continues) and not base:  # perhaps in the next round
                    continue
                claim = beside(out_of(run, self.work_folder), "claim")
                files.check_writable(claim)
                with contextlib.suppress(files.Busy), files.lock(claim, wait=False):
                    # another process may have been faster
                    if not failed[i] and not read_result(run, self.results):
                        self.say(f"\n{run.name}")
                        files.check_writable(run.report(self.results))
                        recipe = run.recipe
                        data = load(recipe.data, recipe.zca, recipe.validation)
                        failed[i] = not self._attempt(run, base, data)
                    missing.pop()

    def say_what_is_left(self, failed: "Marks") -> None:
        """Print one line for each run that is neither finished nor failed."""
        for run, bad in zip(self.todo, failed[:], strict=True):
            if bad or read_result(run, self.results):
                continue
            if (run.of or run.continues) and not self._base(run):
                done = read_result(self._origin(run), self.results)
                why = "has no images in" if done else "has no result yet in"
                needed = self._origin(run).name
                self.say(f"\n{run.name}: left out, as {needed} {why} {self.results}")
            else:
                self.say(f"\n{run.name}: running in another process")

    def _load(self, data: str, zca: bool | None, validation: float) -> ImageData:
        if self.given:
            return self.given
        return load_data(data, root=self.root, zca=zca, validation=validation, device=self.device)

    def _attempt(self, run: Run, base: tuple[Path, dict] | None, data: ImageData) -> bool:
        """Do a run and print what came out. Return False if it failed."""
        try:
            row = self._transferred(run, base, data) if run.of else self._distilled(run, data)
        except Error as e:
            self.say(f"{run.name} failed: {e}")
            return False
        self.say(f"{run.name}: {describe(row)}")
        return True

    def _distilled(self, run: Run, data: ImageData) -> dict:
        """Run the recipe, and write its result."""
        path, row = run.report(self.results), self._begun(run)
        saving = Saving(save_minutes=0.5, progress=self.progress, report=self._details)
        experiment = Experiment(
            run.recipe,
            out_of(run, self.work_folder),
            given=data,
            saving=saving,
            best_on_test=run.recipe.profile != "smoke",
            scores=self._scores(run),
        )
        try:
            if run.continues:
                self._begin_with_shorter(run, run.continues, experiment, data)
            distilled, report = experiment.run()
        except Stopped as e:  # pruning too much is a result, too
            row |= {"error": str(e), "recipe": asdict(run.recipe)} | provenance(data.device)
            distilled, report = None, {}
        if done := read_result(run, self.results):
            return done
        if distilled:
            row |= summary(distilled, report)
            row |= {key: report[key] for key in report if key not in ("file", "asked")}
            chosen = run.recipe.method in CHOICES  # real images, which may not be ours to pass on
            stored = run.sets and not chosen
            row["set"] = write_set(path.with_suffix(".safetensors"), distilled) if stored else None
        files.write_json(path, row)
        return row

    def _begin_with_shorter(
        self, run: Run, before: Run, experiment: Experiment, data: ImageData
    ) -> None:
        """Give a run the state in which the one with fewer steps has ended, if it has none yet."""
        base = self._base(run)
        if experiment.out.exists() or experiment.checkpoint.exists() or not base:
            return
        whole = out_of(before, self.work_folder)
        shorter = DistilledDataset.load(whole) if whole.exists() else read_set(*base, data)
        if not experiment.extends(shorter):
            raise Error(
                f"{before.name} has other settings than fewer steps of {run.name}: it cannot be "
                "continued"
            )
        shorter.save_checkpoint(experiment.checkpoint, experiment.identity)

    def _transferred(self, run: Run, base: tuple[Path, dict] | None, data: ImageData) -> dict:
        """Evaluate another run's set in the network of this one, and write the result."""
        assert base
        network, recipe = network_of(run), run.recipe
        with Clock(out_of(run, self.work_folder)) as clock, clock.stage("evaluate"):
            found = evaluate(
                read_set(*base, data),
                data,
                network,
                recipe.repeats,
                protocol=recipe.protocol,
                seed=recipe.distill.seed,
                scores=self._scores(run),
                progress=self.progress,
            )
        row = self._begun(run) | {
            "of": run.of,
            "network": asdict(network),
            "accuracy": found.mean,
            "distilled": found.to_dict(),
            "recipe": asdict(recipe),
            "seconds": clock.seconds,
        }
        row |= provenance(data.device)
        files.write_json(run.report(self.results), row)
        return row

    def _begun(self, run: Run) -> dict:
        """Return the entries that a row has whatever comes out."""
        recipe = run.recipe
        row = {"name": run.name, "method": recipe.method, "seed": recipe.distill.seed}
        row["error"] = None
        if recipe.method in ("ddpp", "mtt"):
            row |= {key: getattr(recipe.distill, key) for key in ("rule", "epsilon")}
        return row | marks_of_run(run)

    def _scores(self, run: Run) -> Path:
        """Return the file of accuracies of a profile: runs of a seed share their real images."""
        return self.work_folder / f"{run.recipe.profile}-scores.json"

    def _details(self, line: str) -> None:
        if self.progress:
            self.say(line)

    def _base(self, run: Run) -> tuple[Path, dict] | None:
        """Return path and report of the run that this one needs, once its images are there."""
        if not (run.of or run.continues):
            return None
        base = self._origin(run)
        row = read_result(base, self.results)
        return (base.report(self.results), row) if row and row.get("set") else None

    def _origin(self, run: Run) -> Run:
        """Return the run whose set this one evaluates, or resumes."""
        return run.continues or replace(run, name=str(run.of), of=None, network=None)


def _side_by_side(jobs: int, worker: Worker) -> "Marks":
    """Do `Worker.work` in several processes, and return which runs failed.

    Ctrl-C stops them as it stops one: what was done is saved.
    """
    spawn = multiprocessing.get_context("spawn")
    failed, started = spawn.Array("b", len(worker.todo)), []
    todo, count = pack_runs(worker.todo), min(jobs, len(worker.todo))
    worker = replace(worker, todo=(), progress=False, say=_print_at_once)
    # not fewer processes for a shorter list: the number of threads decides the bits
    threads = max(1, torch.get_num_threads() // jobs)
    try:
        for _ in range(count):
            process = spawn.Process(target=_job, args=(threads, worker, todo, failed))
            with _interrupts_blocked():  # in the child, too, until it can take one
                process.start()
                started.append(process)
        for process in started:
            process.join()
    except BaseException:
        _stop(started)
        raise
    codes = {process.exitcode for process in started}
    if CANNOT_IMPORT in codes:
        raise _cannot_import(todo.used)
    if any(codes):
        raise Error(
            "not all processes came to the end; the reasons are above, and what was done is saved"
        )
    return bytearray(failed[:])


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
    if missing := [name for name in packed.used if name not in given]:
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


def _job(threads: int, worker: Worker, todo: PackedRuns, failed: "SynchronizedArray[int]") -> None:
    # also where a shell started it in the background, with Ctrl-C ignored
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.setsid()  # a Ctrl-C at the terminal goes to the parent, which passes it on, once
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
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


def overview(todo: Sequence[Run], results: str | Path, work: str | Path) -> list[str]:
    """Return one line per run, and a last line with the number of finished runs and the time left.

    A line says what the result is, how far the run has come, or that it is missing. The time is
    for one core or GPU, estimated from finished runs that differ in rule, steps or seed alone.

    - todo: runs, see `runs` and `select`.
    - results, work: the folders of `reproduce`.
    """
    width = max((len(run.name) for run in todo), default=0)
    rows = [read_result(run, results) for run in todo]
    lines = [
        f"{run.name:{width}} {describe(row) if row else _progress(run, work)}"
        for run, row in zip(todo, rows, strict=True)
    ]
    done = f"{sum(map(bool, rows))} of {len(todo)} runs are finished"
    return [*lines, done + _left(todo, rows)]


def _left(todo: Sequence[Run], rows: Sequence[dict | None]) -> str:
    """Estimate the time that the missing runs take, in words."""
    total = lambda run: asdict(run.recipe.distill).get("steps") or 1
    # the steps of a run that the run before it has not made
    steps = {run.name: total(run) - (total(run.continues) if run.continues else 0) for run in todo}
    costs: dict[str, tuple[float, float]] = {}  # seconds of a step, and of the evaluation
    missing: list[tuple[str, int]] = []  # kind and steps
    for run, row in zip(todo, rows, strict=True):
        kind, seconds = _kind(run), (row or {}).get("seconds", {})
        if not row:
            missing.append((kind, steps[run.name]))
        elif run.of is None and "distill" in seconds:
            each = seconds["distill"] / max(steps[run.name], 1)
            costs[kind] = (each, seconds.get("evaluate", 0))
    known = [(count, *costs[kind]) for kind, count in missing if kind in costs]
    if not known:
        return ""
    minutes = sum(count * step + evaluation for count, step, evaluation in known) / 60
    time = f"{minutes / 60:.1f} hours" if minutes > 60 else f"{math.ceil(minutes)} minutes"
    rest = len(missing) - len(known)
    more = f", and {rest} of a kind that none is finished of" if rest else ""
    return f"; about {time} are left for {len(known)}{more}"


def _kind(run: Run) -> str:
    """What the cost of a run's steps depends on."""
    settings = asdict(run.recipe.distill)
    for name in ("rule", "epsilon", "steps", "seed", "image_lr", "iterates"):
        settings.pop(name, None)
    network = asdict(run.network or run.recipe.teachers.network)
    return str((run.recipe.data, run.recipe.method, settings, network, run.of is None))


def _progress(run: Run, work: str | Path) -> str:
    """Describe how far a run without a result has come."""
    out = out_of(run, work)
    checkpoint = beside(out, "checkpoint")
    if out.exists():
        return "distilled, not yet evaluated"
    if not checkpoint.exists():
        return "missing"
    try:  # it may end at this moment, or not count steps
        step = files.Lazy(checkpoint, CHECKPOINT).meta["step"]
        return f"begun: {step} of {asdict(run.recipe.distill)['steps']} steps"
    except (Error, KeyError):
        return "begun"


def out_of(run: Run, work: str | Path) -> Path:
    """Return the path of a run's distilled file. Its checkpoint and teachers lie beside it."""
    return Path(work) / f"{run.recipe.profile}-{run.name.replace('/', '-')}.safetensors"


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
    # again each minute, as an interrupt may be lost in a destructor
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 60)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
