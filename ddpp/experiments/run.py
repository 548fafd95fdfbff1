"""The three stages and the evaluation as one run, from nothing to a distilled file with a report
beside it.
"""

import contextlib
import datetime
import hashlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path

import torch

from ddpp.baselines import selection
from ddpp.data import ImageData, load_data
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import evaluate
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import Recipe
from ddpp.foundation import files, processes
from ddpp.foundation.devices import made_on
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import of_run
from ddpp.foundation.loop import Saving
from ddpp.teachers import TeacherConfig, train_teachers


def run(
    recipe: Recipe,
    out: str | Path,
    *,
    root: str | Path = "data",
    data: ImageData | None = None,
    teachers_folder: str | Path | None = None,
    device: str | None = None,
    save_steps: int | None = None,
    save_minutes: float = 1.0,
    best_on_test: bool = False,
    scores: str | Path | None = None,
    progress: bool = True,
    say: Callable[[str], None] = print,
) -> tuple[DistilledDataset, dict]:
    """Train teachers where the method has them, distil, evaluate: write the distilled file `out`
    and, beside it, a
    report (.json).

    Whatever exists already is taken: teachers in `teachers_folder` (default: a folder beside `out`,
    named by their configuration), the checkpoint `out`.checkpoint, a finished `out`, its report. So
    the same call goes on after any stop. Raises Error where a file belongs to another run; nothing
    is overwritten. Returns the set and the report. `data`: what the recipe names, if it is loaded
    already; `scores`: a file of accuracies that several runs share, for the sets that they have in
    common. Under torchrun all ranks work, rank 0 writes and evaluates; to the others the report is
    empty.
    """
    commit()
    out, method, config = Path(out), METHODS[recipe.method], recipe.stored_teachers()
    if out.suffix != ".safetensors":
        raise Error(f"the output {out} must end in .safetensors")
    if processes.rank():
        say = lambda line: None
    else:
        files.check_writable(out)
    # perhaps: then the rank 0 before this one may still be about to end
    restarted = processes.size() > 1
    with (
        contextlib.nullcontext() if processes.rank() else files.lock(out, wait=restarted),
        clock(out) as seconds,
    ):
        known = _known_report(out)
        with stopwatch(seconds, "data"), processes.in_turn():
            data = data or load_data(
                recipe.data, root=root, zca=recipe.zca, validation=recipe.validation, device=device
            )
        say(str(data))
        # too few images of a class: say so before the teachers
        data.draw(recipe.distill.ipc, recipe.distill.seed)
        folder = Path(teachers_folder) if teachers_folder else teachers_in(out.parent, config, data)
        checkpoint, own_scores = beside(out, "checkpoint"), beside(out, "scores")
        resumed = out.exists() or checkpoint.exists() or (method.teachers and folder.exists())
        source, given = config.network, data.made_from(config.network)
        if method.teachers:
            given = config.made_from(data)
        made_from = of_run(recipe.method, recipe.distill, given, config.network.name)
        distilled = _finished(out, made_from, data)
        if distilled is not None:
            say(f"{out} is finished already, by a run with these settings")
        elif known:
            raise Error(
                f"{report_path(out)} reports on a set that is gone: move it away, or choose "
                "another output"
            )
        else:
            if method.teachers:
                with stopwatch(seconds, "teachers"):
                    source = train_teachers(data, config, folder, progress=progress)
                say(f"{len(source)} teachers of {source.epochs} epochs are in {folder}")
            saving = Saving(checkpoint, save_steps, save_minutes, progress, say)
            with stopwatch(seconds, "distill"):
                distilled = method.run(data, source, recipe.distill, saving)
            distilled = replace(distilled, provenance=distilled.provenance | made_from)
        if processes.rank():
            return distilled, {}
        if not out.exists():
            distilled.save(out)
        checkpoint.unlink(missing_ok=True)

        protocol = {
            "protocol": asdict(recipe.protocol),
            "repeats": recipe.repeats,
            "best_on_test": best_on_test,
        }
        asked = {"sha256": hashlib.sha256(out.read_bytes()).hexdigest(), **protocol}
        if known and known["asked"] != asked:
            raise Error(
                f"{report_path(out)} has another evaluation: move it away for a new one, or use "
                "'ddpp evaluate'"
            )
        if known:
            return distilled, known
        with stopwatch(seconds, "evaluate"):
            accuracies = _accuracies(
                distilled, data, recipe, best_on_test, scores or own_scores, progress
            )
        report = {"file": out.name, "asked": asked, "recipe": asdict(recipe), **accuracies}
        report |= {"seconds": seconds, "resumed": resumed} | provenance(data.device)
        files.write_json(report_path(out), report)
        own_scores.unlink(missing_ok=True)
    return distilled, report


def beside(out: Path, ending: str) -> Path:
    """The file that a run of `out` works with: its checkpoint, scores or seconds."""
    return out.with_name(f"{out.name}.{ending}")


@contextlib.contextmanager
def clock(out: Path) -> Iterator[dict[str, float]]:
    """The seconds of each stage, which a run that is stopped leaves in a file for the run that goes
    on.
    """
    path = beside(out, "seconds")
    seconds = {}
    with contextlib.suppress(OSError, ValueError, TypeError):  # lost or damaged, it is only a clock
        seconds = dict(json.loads(path.read_text()))
    try:
        yield seconds
    except BaseException:
        worked = sum(seconds.values()) - seconds.get("data", 0)
        if worked > 1 and not processes.rank():  # else perhaps nothing was begun
            with contextlib.suppress(Error):
                files.write_json(path, seconds)
        raise
    if not processes.rank():
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def stopwatch(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the seconds that the block takes to seconds[stage]."""
    began = time.monotonic()
    try:
        yield
    finally:
        seconds[stage] = round(seconds.get(stage, 0) + time.monotonic() - began, 1)


def provenance(device: torch.device) -> dict:
    """When, on what, and with which code and versions a run was made."""
    return {
        "finished": f"{datetime.datetime.now(datetime.UTC):%F %R UTC}",
        "commit": commit(),
        **made_on(device),
    }


def teachers_in(folder: Path, config: TeacherConfig, data: ImageData) -> Path:
    """The folder for these teachers in `folder`: runs with equal teachers share it, others never
    meet in it.
    """
    return folder / f"teachers-{files.identity(config.identity(data))[:8]}"


def report_path(out: Path) -> Path:
    return out.with_suffix(".json")


def _finished(out: Path, made_from: dict, data: ImageData) -> DistilledDataset | None:
    """The file at `out` if it is this very run's result; an Error if it is another's."""
    if not out.exists():
        return None
    distilled = DistilledDataset.load(out)
    kept = {
        key: distilled.provenance[key]
        for key in (*made_from, "custom")
        if key in distilled.provenance
    }
    if kept != made_from:
        raise Error(
            f"{out} holds the result of another run ({differences(kept, made_from)}): choose "
            "another output, or move "
            "that file away"
        )
    return distilled.to(data.device)


def _known_report(out: Path) -> dict | None:
    """The report beside `out`, if there is one; an Error if a file of another kind has its name."""
    path = report_path(out)
    if not path.exists():
        return None
    try:
        report = json.loads(path.read_text())
        return {"asked": report["asked"]} | report
    except (OSError, ValueError, KeyError, TypeError):
        raise Error(
            f"{path} is where the report belongs, but is another file: move it away"
        ) from None


def _accuracies(
    distilled: DistilledDataset,
    data: ImageData,
    recipe: Recipe,
    best_on_test: bool,
    scores: str | Path,
    progress: bool,
) -> dict:
    """Of the set, and of the real images that it started from."""
    seed = recipe.distill.seed
    test = partial(
        evaluate,
        data=data,
        repeats=recipe.repeats,
        protocol=recipe.protocol,
        seed=seed,
        scores=scores,
        progress=progress,
    )
    result = test(distilled, best_on_test=best_on_test)
    baseline = test(selection.random(data, distilled.ipc, distilled.network, seed))
    return {"distilled": result.to_dict(), "random": baseline.to_dict()}


@cache
def commit() -> str | None:
    """The commit of this source tree, with + for uncommitted changes; None for an installed copy.
    Asked for when a run
    begins, it is what runs, also where the tree moves on before the run ends."""
    git = lambda *words: subprocess.run(
        ["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=True
    ).stdout.strip()
    try:
        git("ls-files", "--error-unmatch", Path(__file__).name)
        return git("rev-parse", "--short=12", "HEAD") + (
            "+" if git("status", "--porcelain", "--", ".") else ""
        )
    except (OSError, subprocess.CalledProcessError):
        return None
