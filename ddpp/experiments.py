"""The paper's experiments, and the ablation it lacks, as a list of runs: what is missing is run,
what is there is read.

A run is a recipe with a name, EXPERIMENT/NAME; or the evaluation of another run's set in another
network. Its result is two small files in RESULTS/PROFILE/EXPERIMENT: NAME.json, with the
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
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ddpp.data import ImageData, load_data
from ddpp.evaluate import evaluate
from ddpp.foundation import files
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import marks_of
from ddpp.foundation.loop import KIND as CHECKPOINT
from ddpp.foundation.loop import Stopped
from ddpp.methods import METHODS
from ddpp.networks import NetworkConfig
from ddpp.pipeline import beside, clock, commit, provenance, run, stopwatch
from ddpp.recipes import Recipe, from_dict, recipe
from ddpp.results import describe, read_row, read_set, summary, write_set

if TYPE_CHECKING:  # a class that takes no subscript when the program runs
    from multiprocessing.sharedctypes import SynchronizedArray

SEEDS = (0, 1, 2)
MTT, PRUNED = ("none", 0.0), ("signed", 0.1)  # (rule, epsilon) of Table I's two rows
EPSILONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
# students that small come closer, so less is pruned
SMOKE_EPSILONS = (0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)
CONTROLS = ("random", "largest", "smallest")
# where controls prune as many pairs as the paper's rule
CONTROLLED, SMOKE_CONTROLLED = (
    (0.1, 0.3),
    (0.1, 0.7),
)
CHOICES = ("random", "herding", "forgetting")
RIVALS = ("dm", "dsa", "cafe")  # distillation methods of Table I
ARCHITECTURES = ("convnet", "alexnet", "vgg11", "resnet18")  # of Table III
# where choosing takes hours at most
CPU_SETS = (("cifar10", 1), ("cifar10", 10), ("cifar100", 1), ("cifar100", 10))
SETS = (
    ("cifar10", 10),
    ("cifar10", 1),
    ("cifar10", 50),
    ("cifar100", 1),
    ("cifar100", 10),
    ("cifar100", 50),
)


@dataclass(frozen=True)
class Run:
    """One run of the list: its name, EXPERIMENT/NAME, and its settings."""

    name: str
    recipe: Recipe
    # the name of the run whose set is evaluated, in `network`; None: the recipe is run
    of: str | None = None
    network: NetworkConfig | None = None

    def report(self, results: str | Path) -> Path:
        """Where its result is, in the folder `results`."""
        return Path(results) / self.recipe.profile / f"{self.name}.json"


def runs(profile: str) -> list[Run]:
    """All runs of a profile, the most valuable first: one seed of everything, then the next seed.
    (Smoke: of each seed
    the rivals first, as the table of all methods is what this scale is for.)

    table1: the paper's rule, MTT (rule none) and their rivals for each data set and size; on the
    CPU only what takes
    hours there. table2: KIP and its transfer to a wider network. table3: other architectures.
    epsilon: thresholds, readings of the rule and controls, with ten images per class of CIFAR-10
    (smoke: with one). Runs of one seed share teachers, first images, batches and evaluation, so
    that their differences are paired. At smoke scale each seed has teachers of its own; else the
    same teachers serve all seeds, and rivals have one seed.
    """
    smoke = profile == "smoke"
    sets = {"smoke": [("cifar10-sample", n) for n in (1, 10, 50)], "cpu": [("cifar10", 1)]}.get(
        profile, SETS
    )

    def one(name: str, data: str, ipc: int, method: str, seed: int, **settings: object) -> Run:
        base = recipe(profile, data, ipc, method)
        teachers = replace(base.teachers, seed=seed if smoke else 0)
        distill = replace(base.distill, seed=seed, **settings)
        return Run(f"{name}-seed{seed}", replace(base, teachers=teachers, distill=distill))

    def trajectories(name: str, data: str, ipc: int, rule: str, epsilon: float, seed: int) -> Run:
        return one(name, data, ipc, "ddpp", seed, rule=rule, epsilon=epsilon)

    def table1(data: str, ipc: int, seed: int) -> list[Run]:
        both = (MTT, PRUNED)
        return [
            trajectories(f"table1/{data}-ipc{ipc}-{rule}", data, ipc, rule, epsilon, seed)
            for rule, epsilon in both
        ]

    def rivals(methods: Sequence[str], data: str, ipc: int, seed: int) -> list[Run]:
        return [
            one(f"table1/{data}-ipc{ipc}-{method}", data, ipc, method, seed) for method in methods
        ]

    def table2(data: str, ipc: int, seed: int) -> list[Run]:
        kip = one(f"table2/{data}-ipc{ipc}-kip", data, ipc, "kip", seed)
        return [kip, *elsewhere(kip, "table2", [replace(kip.recipe.teachers.network, width=1024)])]

    def ablation(seed: int) -> list[Run]:
        rest = [pair for pair in settings(profile) if pair not in (MTT, PRUNED)]  # those: table 1
        return [
            trajectories(f"epsilon/{rule}-{epsilon:g}", *home(profile), rule, epsilon, seed)
            for rule, epsilon in rest
        ]

    def table3(seed: int) -> list[Run]:
        own = recipe(profile, *home(profile)).teachers.network
        others = [replace(own, name=name) for name in ARCHITECTURES[1:]]
        return [
            run
            for base in table1(*home(profile), seed)
            for run in elsewhere(base, "table3", others)
        ]

    found = []
    for seed in SEEDS:
        blocks = [table1(*which, seed) for which in sets]
        if home(profile) in sets:
            blocks.insert(2, ablation(seed))
            blocks.insert(3, table3(seed))
        if smoke:
            blocks.insert(
                0,
                rivals(
                    ("random", "herding", "dc", *RIVALS, "kip", "iadd", "forgetting"),
                    *home(profile),
                    seed,
                ),
            )
        elif seed == 0:
            blocks += [
                rivals(CHOICES, *which, seed) for which in (CPU_SETS if profile == "cpu" else SETS)
            ]
            if profile != "cpu":
                blocks += [rivals(RIVALS, *which, seed) for which in SETS]
                blocks += [table2(*which, seed) for which in SETS[:2] + SETS[3:5]]
        found += [each for block in blocks for each in block]
    return found


def elsewhere(base: Run, experiment: str, networks: Sequence[NetworkConfig]) -> list[Run]:
    """The evaluation of a run's set in other networks."""
    own = base.recipe.teachers.network
    name, _, seed = base.name.partition("/")[2].rpartition("-seed")
    which = lambda network: network.name if network.name != own.name else f"width{network.width}"
    return [
        Run(f"{experiment}/{name}-{which(each)}-seed{seed}", base.recipe, base.name, each)
        for each in networks
    ]


def home(profile: str) -> tuple[str, int]:
    """The data set and the number of images per class of the ablation."""
    return ("cifar10-sample", 1) if profile == "smoke" else ("cifar10", 10)


def settings(profile: str) -> list[tuple[str, float]]:
    """The ablation's (rule, epsilon), in the order of its table; magnitude at 0 is none, that is
    MTT.
    """
    smoke = profile == "smoke"
    epsilons, controlled = (SMOKE_EPSILONS, SMOKE_CONTROLLED) if smoke else (EPSILONS, CONTROLLED)
    return [
        MTT,
        *(("signed", epsilon) for epsilon in epsilons),
        *(("magnitude", epsilon) for epsilon in epsilons[1:]),
        *((rule, epsilon) for epsilon in controlled for rule in CONTROLS),
    ]


def select(found: Sequence[Run], only: str | None) -> list[Run]:
    """The runs whose names match the pattern `only`, with * for anything; an Error if none does."""
    chosen = [each for each in found if only is None or fnmatchcase(each.name, only)]
    if not chosen:
        some = ", ".join(each.name for each in found[:3])
        raise Error(
            f"no run is named like '{only}': names are {some} ...; * stands for anything, --list "
            "shows all"
        )
    return chosen


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
            claim = beside(_out(each, work), "claim")
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
        elif _out(each, work).exists():
            state = "distilled, not yet evaluated"
        elif (checkpoint := beside(_out(each, work), "checkpoint")).exists():
            state = "begun"
            # it may end at this moment, or not count steps
            with contextlib.suppress(Error, KeyError):
                step = files.Lazy(checkpoint, CHECKPOINT).meta["step"]
                state += f": {step} of {asdict(each.recipe.distill)['steps']} steps"
        lines.append(f"{each.name:{width}} {state}")
    return [*lines, f"{finished} of {len(todo)} runs are finished"]


def _out(each: Run, work: str | Path) -> Path:
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
    row |= _marks(each)
    # of all runs: those of a seed share their real images
    scores = work / f"{each.recipe.profile}-scores.json"
    if base:
        row |= _transfer(each, base, data, work, scores, progress)
        files.write_json(path, row)
        return row
    try:
        distilled, report = run(
            each.recipe,
            _out(each, work),
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
    network = _network(each)
    with clock(_out(each, work)) as seconds, stopwatch(seconds, "evaluate"):
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


def read_result(each: Run, results: str | Path) -> dict | None:
    """A run's result, or None where there is none; an Error for one that is damaged or of other
    settings.
    """
    path = each.report(results)
    if not path.exists():
        return None
    row = read_row(path)
    now = {"recipe": asdict(each.recipe)} | ({"of": each.of} if each.of else {}) | _marks(each)
    try:
        then = {"recipe": asdict(from_dict(row["recipe"]))} | {
            key: row[key] for key in ("of", "custom") if key in row
        }
        other = differences(then, now)
    except (Error, TypeError):
        other = "which this version of ddpp cannot read"
    if other:
        raise Error(
            f"{path} is the result of other settings ({other}): move it away, or choose another "
            "folder for results"
        )
    return row


def _marks(each: Run) -> dict:
    """What its method, settings and network name that is not ddpp's own."""
    return marks_of(each.recipe.method, each.recipe.distill, _network(each).name)


def _network(each: Run) -> NetworkConfig:
    """The network that it evaluates a set in."""
    return each.network or each.recipe.teachers.network


def read(results: str | Path, profile: str, experiment: str) -> list[dict]:
    """The rows (see `read_row`) of an experiment's finished runs. To the ablation belong also those
    of Table I for its
    data and size: MTT, and the paper's rule at the paper's threshold; to Table III, both in the
    network they were distilled with."""

    def belongs(each: Run) -> bool:
        its_home = (each.recipe.data, each.recipe.distill.ipc) == home(profile)
        of_table_1 = each.name.startswith("table1/") and each.recipe.method == "ddpp" and its_home
        return each.name.startswith(f"{experiment}/") or (
            experiment in ("epsilon", "table3") and of_table_1
        )

    rows = [read_result(each, results) for each in runs(profile) if belongs(each)]
    rules, methods = settings(profile), list(METHODS)
    order = lambda row: (
        rules.index((row["rule"], row["epsilon"]))
        if "rule" in row
        else len(rules) + methods.index(row["method"]),
        row["seed"],
    )
    return sorted((row for row in rows if row), key=order)
