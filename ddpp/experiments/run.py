"""One run of a recipe, from nothing to a distilled file with a report beside it."""

import contextlib
import json
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import cast

from ddpp.baselines import selection
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Evaluation, evaluate
from ddpp.experiments.clock import Clock
from ddpp.experiments.methods import METHODS, GivenTeachers, Method, WithSteps
from ddpp.experiments.places import report_path, teachers_in, working_file
from ddpp.experiments.recipes import Recipe
from ddpp.foundation import files, processes
from ddpp.foundation.errors import Error, differences
from ddpp.foundation.identity import as_in_files, marks, of_run, of_state
from ddpp.foundation.loop import CHECKPOINT, Saving, milestones, read_checkpoint
from ddpp.foundation.provenance import commit, provenance
from ddpp.foundation.stats import spread
from ddpp.networks import accuracy
from ddpp.teachers import TeacherConfig, Teachers, read_snapshot, train_teachers

CEILING = 5  # teachers that are tested for the report


@dataclass(frozen=True)
class Experiment:
    """A recipe, and the file `out` that it becomes, with a report (.json) beside it.

    - recipe: all settings.
    - out: the distilled file, ending in .safetensors.
    - root, device: where data sets are looked for, and what the run works on (see load_data).
    - given: what the recipe's `data` names, if it is loaded already.
    - teachers_folder: default is a folder beside `out`, named by the teachers' configuration.
    - saving: when the state is saved, and who hears of the progress. The checkpoint is beside `out`
      in any case.
    - best_on_test: whether the report also has the best iterate on the test set, as papers do.
    - choosing: whether an iterate is chosen on held-out images. Else the last is tested alone.
    - scores: a file of accuracies that several runs share, for the sets that they have in common.

    `teachers`, `distilled` and `report` each read what is on disk, or make it; `run` makes all that
    is missing. The same call resumes after any stop. A recipe with more steps than the set in `out`
    resumes from that set, and moves the shorter run's files aside. Error for a file of another run:
    nothing is overwritten.
    """

    recipe: Recipe
    out: Path
    root: str | Path = "data"
    device: str | None = None
    given: ImageData | None = None
    teachers_folder: Path | None = None
    saving: Saving = field(default_factory=Saving)
    best_on_test: bool = False
    choosing: bool = True
    scores: Path | None = None

    def __post_init__(self):
        object.__setattr__(self, "out", Path(self.out))

    def run(self) -> tuple[DistilledDataset, dict]:
        """Train teachers if the method has them, distil, evaluate. Returns the set and the report.

        Under torchrun all ranks work, and rank 0 writes and evaluates. The report is empty on the
        others, and of a run that `saving.on_step` has stopped, which the same call resumes.
        """
        commit()  # remembered now: the source tree may move on in the meantime
        _ = self.teacher_config  # refuses settings that cannot work, before any work
        if self.out.suffix != ".safetensors":
            raise Error(f"the output {self.out} must end in .safetensors")
        if processes.rank():
            with self.clock:
                _ = self.data
                with processes.in_turn():  # rank 0 has made way for this run
                    pass
                return self.distilled(), {}
        try:
            files.check_writable(self.out)
        except Error:
            if not self._is_finished():
                raise
            with processes.in_turn():  # for which the others wait
                distilled = self.distilled()  # reads it, as nothing is to be written
            return distilled, self.report(distilled)
        # after a restart by torchrun, the rank 0 before this one may still be about to end
        restarted = processes.size() > 1
        with files.lock(self.out, wait=restarted), self.clock:
            self._say(str(self.data))
            with processes.in_turn():
                resumed = self._make_way()
            distilled = self.distilled()
            if _stopped(distilled):
                self._say("to resume, run the same command again")
                self.clock.stopped = True
                return distilled, {}
            return distilled, self.report(distilled, resumed)

    def _make_way(self) -> bool:
        """Check what is on disk, and move a shorter run's files aside. Returns whether some of this
        run is there already.
        """
        if self._is_shorter():
            self._begin_extension()
        known = self._known_report()
        self.recipe.check_fits(self.data)  # before teachers are trained
        trained = self.method.teachers and files.exists(self.folder)
        if known and not self.out.exists():
            raise Error(
                f"{report_path(self.out)} reports on a set that is gone: move it away, or choose "
                "another output"
            )
        return self.out.exists() or self.checkpoint.exists() or trained

    @property
    def method(self) -> Method:
        return METHODS[self.recipe.method]

    @cached_property
    def teacher_config(self) -> TeacherConfig:
        """The teachers that the run can use. Error for settings that cannot work."""
        return self.recipe.stored_teachers()

    @cached_property
    def clock(self) -> Clock:
        return Clock(self.out)

    @cached_property
    def data(self) -> ImageData:
        """The data set, loaded when first asked for."""
        with self.clock.stage("data"), processes.in_turn():
            return self.given or self.recipe.load(self.root, self.device)

    @property
    def folder(self) -> Path:
        """The folder of the teachers."""
        return self.teachers_folder or teachers_in(self.out.parent, self.teacher_config, self.data)

    @property
    def checkpoint(self) -> Path:
        return working_file(self.out, "checkpoint")

    @property
    def identity(self) -> dict:
        """What the result is a function of."""
        config, data = self.teacher_config, self.data
        source = config.made_from(data) if self.method.teachers else data.made_from(config.network)
        return of_run(self.recipe.method, self.recipe.distill, source, config.network.name)

    def teachers(self) -> Teachers:
        """The teachers: read, resumed or trained."""
        with self.clock.stage("teachers"):
            progress = self.saving.progress
            teachers = train_teachers(
                self.data, self.teacher_config, self.folder, progress=progress
            )
        self._say(f"{len(teachers)} teachers of {teachers.epochs} epochs are in {self.folder}")
        return teachers

    def distilled(self) -> DistilledDataset:
        """The distilled set: read from `out`, or made and written there."""
        if self.out.exists():
            distilled = self._stored()
            self._say(f"{self.out} is finished already, by a run with these settings")
        else:
            source = self.teachers() if self.method.teachers else self.teacher_config.network
            saving = replace(self.saving, checkpoint=self.checkpoint, report=self._say)
            with self.clock.stage("distill"):
                made = self.method.run(self.data, source, self.recipe.distill, saving)
            # chosen real images come without it
            distilled = replace(made, provenance=made.provenance | self.identity)
        if not processes.rank() and not _stopped(distilled):
            if not self.out.exists():
                distilled.save(self.out)
            self._drop_checkpoint()
        return distilled

    def _drop_checkpoint(self) -> None:
        """Delete the checkpoint of this run, but not one of a run with more steps."""
        if self.checkpoint.exists():
            kept = files.Lazy(self.checkpoint, CHECKPOINT).meta["identity"]
            if kept == self.identity:
                _tidy(self.checkpoint)

    def report(self, distilled: DistilledDataset, resumed: bool = False) -> dict:
        """The report on the set in `out`: read, or made by evaluation and written."""
        known, asked = self._known_report(), self._asked()
        if known and known["asked"] != asked:
            raise Error(
                f"{report_path(self.out)} has another evaluation "
                f"({differences(known['asked'], asked)}): move it away for a new one, or use 'ddpp "
                "evaluate'"
            )
        own_scores = working_file(self.out, "scores")
        if known:
            _tidy(own_scores)  # a kill may have come before it
            return known
        with self.clock.stage("evaluate"):
            accuracies = self._accuracies(distilled, self.scores or own_scores)
            accuracies |= self._ceiling(distilled)
        report = {"file": self.out.name, "asked": asked, "recipe": asdict(self.recipe)}
        report |= accuracies
        report |= {"seconds": self.clock.seconds, "resumed": resumed}
        report |= provenance(self.data.device)
        files.write_json(report_path(self.out), as_in_files(report))
        _tidy(own_scores)
        return report

    def _ceiling(self, distilled: DistilledDataset) -> dict:
        """What a matched set can hope for: the teachers' test accuracies at the last matched epoch.

        Empty where no trajectories were matched, or the teachers are gone.
        """
        if "unmasked" not in distilled.history:
            return {}
        config, data = self.teacher_config, self.data
        network = data.network(config.network)
        epoch = cast(GivenTeachers, self.recipe.distill).teacher_epochs
        identity, first = config.identity(data), range(min(config.count, CEILING))
        stored = [read_snapshot(self.folder, identity, k, epoch) for k in first]
        there = [theta.to(data.device) for theta in stored if theta is not None]
        if not there:
            return {}
        scores = [accuracy(network, theta, *data.test) for theta in there]
        return {"teachers": {"epoch": epoch, "accuracies": scores}}

    def _say(self, line: str) -> None:
        if not processes.rank():
            self.saving.report(line)

    def _is_finished(self) -> bool:
        """Whether the set of this run and its report are there."""
        there = files.exists(self.out) and files.exists(report_path(self.out))
        return there and not self._is_shorter()

    def _is_shorter(self) -> bool:
        """Whether the set in `out` is of this run, but of fewer steps."""
        return self.out.exists() and self.extends(DistilledDataset.load(self.out))

    def extends(self, shorter: DistilledDataset) -> bool:
        """Whether a set is what this run had made after fewer steps."""
        kept, asked = self._kept(shorter), self.identity
        if kept.keys() != asked.keys() or "steps" not in asked["config"]:
            return False
        if not getattr(self.recipe.distill, "lasting", True):
            return False
        same = of_state(kept, lasting=True) == of_state(asked, lasting=True)
        return same and _steps(kept) < _steps(asked)

    def _begin_extension(self) -> None:
        """Make the finished set in `out` the checkpoint of this run, and move its files aside."""
        shorter = DistilledDataset.load(self.out)
        done = _steps(shorter.provenance)
        aside = self.out.with_name(f"{self.out.stem}-{done}-steps{self.out.suffix}")
        # the report first: where it is missing, a kill has come between the two
        moves = [(report_path(self.out), report_path(aside)), (self.out, aside)]
        moves = [(old, new) for old, new in moves if old.exists()]
        for old, new in moves:
            if new.exists() and not _is_same(old, new):
                raise Error(f"{new} is in the way of the set of {done} steps: move it away")
        if self.checkpoint.exists():  # a kill came before the files were moved
            read_checkpoint(self.checkpoint, self.identity, lasting=True)
        else:
            shorter.save_checkpoint(self.checkpoint, self.identity)
        self._say(f"the set of {done} steps is in {aside} now; this run resumes from it")
        for old, new in moves:
            if new.exists():  # the shorter run was made again after a kill
                old.unlink()
            else:
                old.rename(new)

    def _kept(self, distilled: DistilledDataset) -> dict:
        """What a stored set says of what it was made from, of all that this run would say."""
        names = [key for key in (*self.identity, "custom") if key in distilled.provenance]
        return {key: distilled.provenance[key] for key in names}

    def _stored(self) -> DistilledDataset:
        """The file at `out`, if it is this very run's result, or an Error if it is another's."""
        distilled, made_from = DistilledDataset.load(self.out), self.identity
        kept = self._kept(distilled)
        if kept != made_from:
            raise Error(
                f"{self.out} holds the result of another run ({differences(kept, made_from)}): "
                "choose another output, or move that file away"
            )
        if distilled.classes != self.data.classes:
            raise Error(
                f"{self.out} has other names of classes than {self.data.name} has now: move that "
                "file away, and the run makes it anew"
            )
        return distilled.to(self.data.device)

    def _asked(self) -> dict:
        """What the report answers: the evaluation of these bytes in this way."""
        protocol = self.recipe.protocol
        asked = {
            "sha256": files.sha256(self.out),
            "protocol": asdict(protocol),
            "repeats": self.recipe.repeats,
            "best_on_test": self.best_on_test,
        }
        return as_in_files(asked | marks(augmentation=protocol.augment, settings=protocol))

    def _known_report(self) -> dict | None:
        """The report beside `out`, if there is one, or an Error if another file has its name."""
        path = report_path(self.out)
        if not path.exists():
            return None
        try:
            report = json.loads(path.read_text())
            for which in ("distilled", "random"):
                Evaluation(**report[which]).lines()
            if teachers := report.get("teachers"):
                spread([teachers["epoch"], *teachers["accuracies"]])  # of numbers
            return report | {"asked": dict(report["asked"])}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            raise Error(
                f"{path} is where the report belongs, but is another file: move it away"
            ) from None

    def _accuracies(self, distilled: DistilledDataset, scores: Path) -> dict:
        """Of the set, and of the same number of random real images per class."""
        seed = self.recipe.distill.seed
        test = partial(
            evaluate,
            data=self.data,
            repeats=self.recipe.repeats,
            protocol=self.recipe.protocol,
            seed=seed,
            scores=scores,
            progress=self.saving.progress,
        )
        result = test(self._with_own_iterates(distilled), best_on_test=self.best_on_test)
        real = selection.random(self.data, distilled.ipc, distilled.network, seed)
        return {"distilled": result.to_dict(), "random": test(real).to_dict()}

    def _with_own_iterates(self, distilled: DistilledDataset) -> DistilledDataset:
        """The set with the iterates that a run of all steps keeps, to choose from, or with the last
        alone.

        A shorter run, which this one has resumed from, may have kept others, or none.
        """
        config = self.recipe.distill
        if not distilled.iterates or not hasattr(config, "steps"):
            return distilled
        steps = cast(WithSteps, config).steps
        count = cast(WithSteps, config).iterates if getattr(config, "lasting", True) else 1
        own = milestones(steps, count) if self.choosing else {steps}
        if not own <= distilled.iterates.keys():
            self._say("no iterate is chosen: a shorter run, which this one resumed, kept others")
            own = {steps}
        kept = {at: one for at, one in distilled.iterates.items() if at in own or at == 0}
        return replace(distilled, iterates=kept)


def whole(distilled: DistilledDataset) -> DistilledDataset:
    """Return a set that has all its steps. Raises Error for one that `on_step` has stopped."""
    if _stopped(distilled):
        raise Error(
            f"the set was stopped after {distilled.provenance['stopped_at']} steps: the same call "
            "without the stop resumes"
        )
    return distilled


def _stopped(distilled: DistilledDataset) -> bool:
    """Whether `on_step` has ended the run before its last step."""
    return "stopped_at" in distilled.provenance


def _is_same(old: Path, new: Path) -> bool:
    """Whether two files are one set, or reports of one evaluation of one set."""
    if old.suffix == ".safetensors":
        return old.read_bytes() == new.read_bytes()
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        one, other = (json.loads(path.read_text())["asked"] for path in (old, new))
        return one == other
    return False


def _tidy(path: Path) -> None:
    """Delete a file that has served, if it is there, and if files can be deleted there."""
    with contextlib.suppress(OSError):
        path.unlink()


def _steps(identity: dict) -> int:
    return identity["config"].get("steps", 0)
