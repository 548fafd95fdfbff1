"""The command line: the verbs of the API, their options made from the typed configs by tyro."""

import argparse
import contextlib
import os
import sys
from dataclasses import dataclass, field, fields, replace
from functools import reduce
from importlib.metadata import entry_points
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

try:
    import tyro
    from tyro.conf import arg, subcommand
except ModuleNotFoundError:  # where ddpp was installed without its dependencies, as on Colab
    raise SystemExit(
        "the command line needs the package tyro: install it with 'pip install tyro'"
    ) from None

from ddpp import experiments
from ddpp.data import load_data
from ddpp.data.folder import pack_folder
from ddpp.data.sources import SHA256
from ddpp.distilled import DistilledDataset
from ddpp.distilling import DistillConfig
from ddpp.evaluating import Evaluation, Protocol, evaluate, spread
from ddpp.experiments.methods import MethodConfig
from ddpp.experiments.recipes import PROFILES, Recipe, recipe
from ddpp.experiments.run import Experiment, report_path, teachers_in
from ddpp.foundation import files, processes
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.loop import Saving
from ddpp.networks import accuracy
from ddpp.teachers import train_teachers

if TYPE_CHECKING:  # matplotlib takes seconds to import
    from matplotlib.figure import Figure
    from PIL.Image import Image

Config = TypeVar("Config", bound=MethodConfig)


@dataclass(frozen=True)
class Settings(Recipe, Generic[Config]):
    """What the commands that train have in common: a recipe, and where and on what it runs."""

    distill: Annotated[Config, arg(name="")]  # the method's; its options need no prefix
    root: Path = Path("data")  # where cifar10 and cifar100 are looked for, or downloaded to
    device: str | None = None  # cpu or cuda; default: the GPU if there is one

    @property
    def recipe(self) -> Recipe:
        return Recipe(**{field.name: getattr(self, field.name) for field in fields(Recipe)})


@dataclass(frozen=True)
class TeachersCommand(Settings[Config]):
    """Stage A: train the teachers of a recipe, or go on with those in a folder."""

    out: Path = Path("runs")  # the teachers' folder is made in here, named by their configuration

    def __call__(self) -> None:
        config = self.stored_teachers()
        files.check_writable(self.out / "teachers")
        with processes.in_turn():
            data = load_data(
                self.data,
                root=self.root,
                zca=self.zca,
                validation=self.validation,
                device=self.device,
            )
        print(data)
        folder = teachers_in(self.out, config, data)
        teachers = train_teachers(data, config, folder)
        if processes.rank():
            return
        scores = [
            accuracy(teachers.network, teachers.snapshot(k, teachers.epochs), *data.test)
            for k in range(len(teachers))
        ]
        print(f"{len(teachers)} teachers of {teachers.epochs} epochs are in {folder}")
        print(
            f"test accuracy after the last epoch: {sum(scores) / len(scores):.1f} ± "
            f"{spread(scores):.1f} %"
        )


@dataclass(frozen=True)
class DistillCommand(Settings[Config]):
    """All three stages: train the teachers, distil, and compare with as many random real images."""

    out: Path = tyro.MISSING  # the distilled file to write, ending in .safetensors
    # folder of the teachers; default: beside the output, named by their configuration
    teachers_dir: Path | None = None
    save_steps: int | None = None  # save the state every so many distillation steps
    save_minutes: float = 1.0  # and whenever so many minutes have passed
    best_on_test: bool = False  # also report the best iterate on the test set, as papers do

    def __call__(self) -> None:
        saving = Saving(save_steps=self.save_steps, save_minutes=self.save_minutes, report=print)
        distilled, report = Experiment(
            self.recipe,
            self.out,
            root=self.root,
            device=self.device,
            teachers_folder=self.teachers_dir,
            saving=saving,
            best_on_test=self.best_on_test,
        ).run()
        if report:  # on rank 0
            show_report(self.out, distilled, report)


@dataclass
class ReproduceCommand:
    """The paper's experiments, and the ablation of epsilon: do those that are missing, most
    valuable first.
    """

    profile: str = "paper"  # smoke, cpu, colab or paper: the scale
    only: str | None = None  # those with such a name, as 'table1/cifar10-ipc10-*'
    list: bool = False  # show what is finished and what is missing, and do nothing
    minutes: float | None = None  # stop after so many; the same command goes on
    jobs: int = 1  # runs at a time, in processes that divide the cores among them
    results: Path = Path("results")  # where reports and distilled images go
    work: Path = Path("runs/reproduce")  # where teachers and checkpoints are
    root: Path = Path("data")  # where cifar10 and cifar100 are looked for, or downloaded to
    device: str | None = None  # cpu or cuda; default: the GPU if there is one

    def __call__(self) -> None:
        choose("profile", self.profile, PROFILES)
        todo = experiments.select(experiments.runs(self.profile), self.only)
        if self.list:
            print("\n".join(experiments.overview(todo, self.results, self.work)))
            return
        experiments.reproduce(
            todo,
            results=self.results,
            work=self.work,
            root=self.root,
            device=self.device,
            minutes=self.minutes,
            jobs=self.jobs,
        )


@dataclass
class EvaluateCommand:
    """Train fresh networks on a distilled file and test them on real images."""

    file: tyro.conf.Positional[Path]  # the distilled file
    data: str | None = None  # default: the data set that it was distilled from
    root: Path = Path("data")
    device: str | None = None
    # convnet, alexnet, vgg11 or resnet18; default: the one it was distilled with
    architecture: str | None = None
    # of the network, 128 as published; default: the one it was distilled with
    width: int | None = None
    repeats: int = 5  # networks
    seed: int = 0
    best_on_test: bool = False  # also report the best iterate on the test set, as papers do
    protocol: Annotated[Protocol, arg(name="")] = field(default_factory=Protocol)

    def __call__(self) -> None:
        distilled = DistilledDataset.load(self.file).to(find_device(self.device))
        source = distilled.provenance.get("data", {})
        made_from = source.get("name")
        if self.data is None and made_from not in SHA256:
            what = (
                f"was distilled from '{made_from}', a file of your own"
                if made_from
                else "names no data set"
            )
            raise Error(f"{self.file} {what}: say where it is with --data")
        data = load_data(
            self.data or made_from,
            root=self.root,
            validation=source.get("validation", 0.1),
            whitening=distilled.whitening,
            device=self.device,
        )
        print(data)
        result = evaluate(
            distilled,
            data,
            self.architecture,
            self.repeats,
            width=self.width,
            protocol=self.protocol,
            best_on_test=self.best_on_test,
            seed=self.seed,
        )
        print("\n".join(result.lines()))


@dataclass
class ShowCommand:
    """Pictures of a distilled file in natural colours."""

    file: tyro.conf.Positional[Path]  # the distilled file
    out: Path | None = None  # the picture of all images; default: beside the file
    # also a figure of the first image of each class, from the real one to the final one
    progress: Path | None = None
    # also a figure: left the real images, right what became of them
    before_after: Path | None = None
    folder: Path | None = None  # also every image as a PNG of its own, in a folder per class

    def __call__(self) -> None:
        distilled = DistilledDataset.load(self.file)
        out = self.out or self.file.with_suffix(".png")
        save_picture(distilled.picture(), out)
        counts = {len(members) for members in distilled.by_class()}
        each = (
            f"{min(counts)} per class"
            if len(counts) == 1
            else f"{min(counts)} to {max(counts)} per class"
        )
        print(f"{len(distilled)} images, {each}: {out}")
        for name, path in (("progress", self.progress), ("before_after", self.before_after)):
            if path:
                from ddpp.book import figures  # here, as matplotlib takes seconds to import

                figures.use_style()
                save_picture(getattr(figures, name)(distilled), path)
                print(f"from real to distilled: {path}")
        if self.folder:
            print(f"{distilled.export_png(self.folder)} images as PNG files: {self.folder}")


@dataclass
class PackCommand:
    """A folder of your pictures, FOLDER/CLASS/PICTURE, as an .npz file for --data."""

    # the folder of class folders, or of train and test, each with class folders
    folder: tyro.conf.Positional[Path]
    out: Path  # the file to write, ending in .npz
    size: int = 32  # pixels along each side
    # share of each class that becomes test images, if there are no folders train and test
    test: float = 0.2

    def __call__(self) -> None:
        counts = pack_folder(self.folder, self.out, self.size, self.test)
        for name, (train, test) in counts.items():
            print(f"{name}: {train} images to train on, {test} to test on")
        print(f"written: {self.out} ({len(counts)} classes, images of {self.size}x{self.size})")


def show_report(out: Path, distilled: DistilledDataset, report: dict) -> None:
    """The last lines of a run: what was written where, and what it is worth."""
    kept = ""
    if "kept" in distilled.history:
        kept = f", {distilled.history['kept'].nanmean():.1%} of the parameters kept on average"
    print(f"{len(distilled)} images, alpha {distilled.alpha:.4f}{kept}")
    if "skipped" in distilled.history and (skipped := int(distilled.history["skipped"].sum())):
        print(f"{skipped} steps were skipped because their loss, images or alpha were not usable")
    print("\n".join(Evaluation(**report["distilled"]).lines()))
    real = Evaluation(**report["random"])
    print(f"as many random real images: {real.mean:.1f} ± {real.std:.1f} %")
    gain = Evaluation(**report["distilled"]).mean - real.mean
    print(f"distillation gains {gain:+.1f} points of test accuracy")
    print(f"written: {out} (images, alpha, preprocessing) and {report_path(out)} (report)")


def save_picture(picture: "Image | Figure", path: Path) -> None:
    """Save a PIL image or a Figure, with a sentence where that is not possible."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        getattr(picture, "savefig" if hasattr(picture, "savefig") else "save")(path)
    except (OSError, ValueError) as e:  # ValueError: an ending that is no picture's
        raise Error(
            f"cannot write {path}: {getattr(e, 'strerror', None) or e}; choose another place or "
            ".png"
        ) from e


def commands(base: Recipe) -> Any:
    """The command line, a union of the commands, with a recipe's values as the defaults."""
    settings = type(base.distill)
    choices: list[Any] = [
        Annotated[
            TeachersCommand[settings], subcommand("teachers", default=TeachersCommand(**vars(base)))
        ],
        Annotated[
            DistillCommand[settings], subcommand("distill", default=DistillCommand(**vars(base)))
        ],
        Annotated[ReproduceCommand, subcommand("reproduce")],
        Annotated[EvaluateCommand, subcommand("evaluate")],
        Annotated[ShowCommand, subcommand("show")],
        Annotated[PackCommand, subcommand("pack")],
    ]
    choices += [
        Annotated[verb.load(), subcommand(verb.name)] for verb in entry_points(group="ddpp.verbs")
    ]
    return reduce(or_, choices)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 (or what the command says), 1 for an Error, in a sentence,
    130 after Ctrl-C.
    """
    argv = sys.argv[1:] if argv is None else argv
    # these four decide the other options
    chooser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--profile", default="smoke")
    chooser.add_argument("--data")
    chooser.add_argument("--ipc", type=int, default=1)
    chooser.add_argument("--method", default="ddpp")
    try:
        chosen, _ = chooser.parse_known_args(argv)
        base = recipe(chosen.profile, chosen.data, chosen.ipc, chosen.method)
        if isinstance(base.distill, DistillConfig):
            base = replace(
                base,
                distill=replace(base.distill, trajectories=int(os.environ.get("WORLD_SIZE", 1))),
            )
        command = tyro.cli(commands(base), args=argv, prog="ddpp")
        processes.join()
        if processes.size() > 1 and not isinstance(command, TeachersCommand | DistillCommand):
            raise Error(
                "only teachers and distill can be shared out by torchrun: start this command "
                "without it"
            )
        with contextlib.redirect_stdout(None) if processes.rank() else contextlib.nullcontext():
            return command() or 0
    except Error as e:
        print(f"ddpp: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "\nddpp: stopped; what was done is saved. Run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    finally:
        processes.leave()


if __name__ == "__main__":
    sys.exit(main())
