"""The paper's experiments, and the ablation it lacks, as a list of runs: what is missing is run, what is there is read.

A run is a recipe with a name, EXPERIMENT/NAME. Its result is two small files in RESULTS/PROFILE/EXPERIMENT: NAME.json,
with the accuracies, the settings, what it cost and on what it was made, and NAME.safetensors, the distilled images.
The report is written last, so a run is finished exactly if its report is there.
"""

import contextlib
import hashlib
import json
import math
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path

from ddpp import store
from ddpp.data import load_data
from ddpp.distill import KIND as CHECKPOINT
from ddpp.distill import Stopped
from ddpp.distilled import DistilledDataset
from ddpp.errors import Error
from ddpp.pipeline import beside, provenance, run
from ddpp.recipes import Recipe, from_dict, recipe

KIND = "result"
SEEDS = (0, 1, 2)
MTT, PRUNED = ("none", 0.0), ("signed", 0.1)  # (rule, epsilon) of Table I's two rows
EPSILONS = (0.0, 0.01, 0.03, 0.1, 0.2, 0.3, 0.5)
SMOKE_EPSILONS = (0.0, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9)  # students that small come closer, so less is pruned
CONTROLS = ("random", "largest", "smallest")
CONTROLLED, SMOKE_CONTROLLED = (0.1, 0.3), (0.1, 0.7)  # where controls prune as many pairs as the paper's rule
SETS = (("cifar10", 10), ("cifar10", 1), ("cifar10", 50), ("cifar100", 1), ("cifar100", 10), ("cifar100", 50))
LAST = 20  # distillation steps over which the final loss is averaged
LARGEST = 16 * 2**20  # bytes of images that a result may hold; larger sets stay where they were distilled


@dataclass(frozen=True)
class Run:
    """One run of the list: its name, EXPERIMENT/NAME, and its settings."""

    name: str
    recipe: Recipe

    def report(self, results: str | Path) -> Path:
        """Where its result is, in the folder `results`."""
        return Path(results) / self.recipe.profile / f"{self.name}.json"


def runs(profile: str) -> list[Run]:
    """All runs of a profile, the most valuable first: one seed of everything, then the next seed.

    table1: MTT (rule none) and the paper's rule for each data set and size; on the CPU only what takes hours there.
    epsilon: thresholds, readings of the rule and controls, with ten images per class of CIFAR-10 (smoke: with one).
    Runs of one seed share teachers, first images, batches and evaluation, so that their differences are paired. At
    smoke scale each seed has teachers of its own; else the same teachers serve all seeds.
    """
    sets = [(data, n) for data, n in SETS if profile != "cpu" or (data, n) == ("cifar10", 1)]
    if profile == "smoke":
        sets = [("cifar10-sample", n) for n in (1, 10, 50)]

    def one(name: str, data: str, ipc: int, rule: str, epsilon: float, seed: int) -> Run:
        base = recipe(profile, data, ipc)
        teachers = replace(base.teachers, seed=seed if profile == "smoke" else 0)
        return Run(
            f"{name}-seed{seed}",
            replace(base, teachers=teachers, distill=replace(base.distill, rule=rule, epsilon=epsilon, seed=seed)),
        )

    def table1(data: str, ipc: int, seed: int) -> list[Run]:
        both = (MTT, PRUNED)
        return [one(f"table1/{data}-ipc{ipc}-{rule}", data, ipc, rule, epsilon, seed) for rule, epsilon in both]

    def ablation(seed: int) -> list[Run]:
        rest = [pair for pair in settings(profile) if pair not in (MTT, PRUNED)]  # those: table 1
        return [one(f"epsilon/{rule}-{epsilon:g}", *home(profile), rule, epsilon, seed) for rule, epsilon in rest]

    found = []
    for seed in SEEDS:
        blocks = [table1(*which, seed) for which in sets]
        if home(profile) in sets:
            blocks.insert(2, ablation(seed))
        found += [each for block in blocks for each in block]
    return found


def home(profile: str) -> tuple[str, int]:
    """The data set and the number of images per class of the ablation."""
    return ("cifar10-sample", 1) if profile == "smoke" else ("cifar10", 10)


def settings(profile: str) -> list[tuple[str, float]]:
    """The ablation's (rule, epsilon), in the order of its table; magnitude at 0 is none, that is MTT."""
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
        raise Error(f"no run is named like '{only}': names are {some} ...; * stands for anything, --list shows all")
    return chosen


def reproduce(
    todo: Sequence[Run],
    *,
    results: str | Path = "results",
    work: str | Path = "runs/reproduce",
    root: str | Path = "data",
    device: str | None = None,
    minutes: float | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> list[dict]:
    """Do the runs of `todo` that have no result yet, one after the other, for `minutes` or until all are done; returns
    the rows (see `read_row`) of those that are finished.

    Teachers, checkpoints and whole distilled files are in `work`; with it, a stopped call goes on where it was, here
    or on another machine. Raises Error for a result that is damaged or belongs to other settings.
    """
    missing = [each for each in todo if read_result(each, results) is None]
    say(f"{len(todo) - len(missing)} of {len(todo)} runs are finished")
    load = lru_cache(1)(lambda *which: load_data(which[0], root=root, zca=which[1], validation=which[2], device=device))
    ends = time.monotonic() + 60 * (minutes or math.inf)
    try:
        with time_limit(minutes):
            for each in missing:
                if read_result(each, results):  # another process was faster
                    continue
                say(f"\n{each.name}")
                store.check_writable(each.report(results))
                data = load(each.recipe.data, each.recipe.zca, each.recipe.validation)
                row = _do(each, data, Path(results), Path(work), progress, say)
                say(f"{each.name}: {describe(row)}")
    except KeyboardInterrupt:
        if time.monotonic() < ends:
            raise
        say(f"\nthe {minutes:g} minutes are over; what was done is saved. Run the same command again to go on")
    rows = [row for each in todo if (row := read_result(each, results))]
    say(f"\n{len(rows)} of {len(todo)} runs are finished")
    return rows


def overview(todo: Sequence[Run], results: str | Path, work: str | Path) -> list[str]:
    """One line per run: what came out, how far it is, or that it is missing; and a last one with their numbers."""
    lines, finished = [], 0
    for each in todo:
        row, state = read_result(each, results), "missing"
        if row:
            finished, state = finished + 1, describe(row)
        elif _out(each, work).exists():
            state = "distilled, not yet evaluated"
        elif (checkpoint := beside(_out(each, work), "checkpoint")).exists():
            state = f"begun: {store.Lazy(checkpoint, CHECKPOINT).meta['step']} of {each.recipe.distill.steps} steps"
        lines.append(f"{each.name:36} {state}")
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
        raise Error("a limit in minutes is not possible on this system: leave it out, and stop with Ctrl-C")
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 60 * minutes, 60)  # again each minute, should one be lost in a destructor
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _do(each: Run, data, results: Path, work: Path, progress: bool, say) -> dict:
    """Run it, and write its result."""
    distill, path = each.recipe.distill, each.report(results)
    row = {"name": each.name, "rule": distill.rule, "epsilon": distill.epsilon, "seed": distill.seed, "error": None}
    try:
        distilled, report = run(
            each.recipe, _out(each, work), data=data, best_on_test=True, save_minutes=0.5, progress=progress, say=say
        )
    except Stopped as e:  # pruning too much is a result, too
        row |= {"error": str(e), "recipe": asdict(each.recipe)} | provenance(data.device)
        distilled, report = None, {}
    if done := read_result(each, results):
        return done
    if distilled:
        row |= _summary(distilled, report) | {key: report[key] for key in report if key not in ("file", "asked")}
        row["set"] = _write_set(path.with_suffix(".safetensors"), distilled)
    store.write_json(path, row)
    return row


def _summary(distilled: DistilledDataset, report: dict) -> dict:
    column, accuracies = distilled.history, report["distilled"]
    taken = column["skipped"] == 0
    return {
        "accuracy": statistics.fmean(accuracies["final"]),
        "selected": statistics.fmean(accuracies["selected"] or accuracies["final"]),
        "kept": float(column["kept"][taken].mean()),
        "unmasked": float(column["unmasked"][taken][-LAST:].mean()),
        "skipped": int(column["skipped"].sum()),
        "alpha": float(distilled.alpha),
    }


def _write_set(path: Path, distilled: DistilledDataset) -> dict | None:
    """Keep the final images, alpha and the history, without the preprocessing, which the data determines."""
    images = distilled.images
    if images.numel() * images.element_size() > LARGEST:
        return None
    tensors = {"images": images, "labels": distilled.labels, "alpha": distilled.alpha}
    tensors |= {f"history.{name}": column for name, column in distilled.history.items()}
    store.write(path, KIND, tensors, {"provenance": distilled.provenance})
    return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def read_result(each: Run, results: str | Path) -> dict | None:
    """A run's result, or None where there is none; an Error for one that is damaged or of other settings."""
    path = each.report(results)
    if not path.exists():
        return None
    row = read_row(path)
    try:
        same = from_dict(row["recipe"]) == each.recipe
    except (Error, TypeError):
        same = False
    if not same:
        raise Error(f"{path} is the result of other settings: move it away, or choose another folder for results")
    return row


def read_row(path: Path) -> dict:
    """The report at `path`: name, rule, epsilon, seed, error, accuracy (percent, mean of the final iterate's networks),
    selected (the same of the iterate chosen on held-out images), kept (share of parameters, mean over steps), unmasked
    (MTT loss, mean of the last steps), skipped (steps), alpha; all of `distilled` and `random` (see Evaluation);
    recipe, seconds, device, versions, commit. Checks it, and the file of images that it names."""
    try:
        row = json.loads(path.read_text())
        needed = {"name", "rule", "epsilon", "seed", "error", "recipe", "device", "versions", "commit", "finished"}
        if not row["error"]:
            needed |= {"accuracy", "selected", "kept", "unmasked", "skipped", "distilled", "seconds"}
        if missing := needed - row.keys():
            raise KeyError(missing)
        kept = row.get("set")
        intact = not kept or hashlib.sha256((path.parent / kept["file"]).read_bytes()).hexdigest() == kept["sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise Error(f"{path}, or the file of images beside it, is not the result of a run: move both away") from None
    if not intact:
        raise Error(f"the images beside {path} are not those that it reports on: move both away, then run it again")
    return row


def read(results: str | Path, profile: str, experiment: str) -> list[dict]:
    """The rows (see `read_row`) of an experiment's finished runs. To the ablation belong also those of Table I for its
    data and size: MTT, and the paper's rule at the paper's threshold."""

    def belongs(each: Run) -> bool:
        its_home = (each.recipe.data, each.recipe.distill.ipc) == home(profile)
        return each.name.startswith(f"{experiment}/") or (experiment == "epsilon" and its_home)

    rows = [read_result(each, results) for each in runs(profile) if belongs(each)]
    order = settings(profile)
    return sorted(
        (row for row in rows if row), key=lambda row: (order.index((row["rule"], row["epsilon"])), row["seed"])
    )


def describe(row: dict) -> str:
    """One row in words."""
    if row["error"]:
        return f"stopped: {row['error']}"
    return f"{row['accuracy']:.1f} %, kept {row['kept']:.1%}, skipped {row['skipped']}"
