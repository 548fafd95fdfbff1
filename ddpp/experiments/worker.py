"""One process that does the runs of a list which have no result yet.

The result of a run is two small files in RESULTS/PROFILE/EXPERIMENT: NAME.json, with the
accuracies, the settings, what it cost and on what it was made, and, of a recipe, NAME.safetensors,
the distilled images. The report is written last: a run is finished exactly if its report is there.
"""

import contextlib
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from ddpp.data import ImageData, load_data
from ddpp.data.sources import SHA256, of_arrays
from ddpp.distilled import DistilledDataset
from ddpp.distilled.bare import write_set
from ddpp.evaluating import evaluate
from ddpp.experiments.clock import Clock
from ddpp.experiments.lists import CHOICES, Run
from ddpp.experiments.places import out_of, working_file
from ddpp.experiments.recipes import Recipe
from ddpp.experiments.results import (
    describe,
    marks_of_run,
    network_of,
    read_result,
    read_set,
    summary,
)
from ddpp.experiments.run import Experiment
from ddpp.foundation import files
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error, first_line
from ddpp.foundation.identity import as_in_files
from ddpp.foundation.loop import Saving, Stopped
from ddpp.foundation.provenance import commit, provenance

if TYPE_CHECKING:  # a class that takes no subscript when the program runs
    from multiprocessing.sharedctypes import SynchronizedArray

    Marks = bytearray | SynchronizedArray[int]  # for each run of a list, whether it has failed


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

    def check_images(self) -> None:
        """Raise an Error for a result of other images than those that a run has now.

        The images of CIFAR are always the same. A file of one's own may have changed.
        """
        load = lru_cache(1)(self._load)
        for run in self.todo:
            row = read_result(run, self.results)
            if row and "images" in row and row["images"] != self._images(run.recipe, load):
                raise Error(
                    f"{run.report_path(self.results)} is the result of other images, or of another "
                    "preprocessing: move it away, or choose another folder for results"
                )

    def _images(self, recipe: Recipe, load: Callable[..., ImageData]) -> dict:
        """The identity of the images that a run has now, of CIFAR without loading them."""
        if self.given or recipe.data not in SHA256:
            return load(recipe.data, recipe.zca, recipe.validation).identity
        kind = "channels" if recipe.zca is False else "zca"
        known = {"sha256": of_arrays(SHA256[recipe.data]), "whitening": kind}
        return known | {"validation": recipe.validation}

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
                claim = working_file(out_of(run, self.work_folder), "claim")
                files.check_writable(claim)
                with contextlib.suppress(files.Busy), files.lock(claim, wait=False):
                    # another process may have been faster
                    if not failed[i] and not read_result(run, self.results):
                        self.say(f"\n{run.name}")
                        files.check_writable(run.report_path(self.results))
                        failed[i] = not self._attempt(run, base, load)
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
            find_device(self.given.device)  # sets up a process that has just started
            return self.given
        return load_data(data, root=self.root, zca=zca, validation=validation, device=self.device)

    def _attempt(
        self, run: Run, base: tuple[Path, dict] | None, load: Callable[..., ImageData]
    ) -> bool:
        """Do a run and print what came out. Return False if it failed."""
        try:
            data = load(run.recipe.data, run.recipe.zca, run.recipe.validation)
            row = self._transferred(run, base, data) if run.of else self._distilled(run, data)
        except Exception as e:  # of a rule or network of one's own, say: the others are done
            if not isinstance(e, Error):
                traceback.print_exc()
            self.say(f"{run.name} failed: {e if isinstance(e, Error) else first_line(e)}")
            return False
        self.say(f"{run.name}: {describe(row)}")
        return True

    def _distilled(self, run: Run, data: ImageData) -> dict:
        """Run the recipe, and write its result."""
        path, row = run.report_path(self.results), self._begun(run, data)
        saving = Saving(save_minutes=0.5, progress=self.progress, report=self._details)
        experiment = Experiment(
            run.recipe,
            out_of(run, self.work_folder),
            given=data,
            saving=saving,
            best_on_test=run.recipe.profile != "smoke",
            choosing=not run.continues,  # the run before has kept its iterates only in `work`
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
        files.write_json(path, as_in_files(row))
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
        row = self._begun(run, data) | {
            "of": run.of,
            "of_sha256": base[1]["set"]["sha256"],
            "network": asdict(network),
            "accuracy": found.mean,
            "distilled": found.to_dict(),
            "recipe": asdict(recipe),
            "seconds": clock.seconds,
        }
        row |= provenance(data.device)
        files.write_json(run.report_path(self.results), as_in_files(row))
        return row

    def _begun(self, run: Run, data: ImageData) -> dict:
        """Return the entries that a row has whatever comes out."""
        recipe = run.recipe
        row = {"name": run.name, "method": recipe.method, "seed": recipe.distill.seed}
        row |= {"error": None, "images": data.identity}
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
        return (base.report_path(self.results), row) if row and row.get("set") else None

    def _origin(self, run: Run) -> Run:
        """Return the run whose set this one evaluates, or resumes."""
        return run.continues or replace(run, name=str(run.of), of=None, network=None)
