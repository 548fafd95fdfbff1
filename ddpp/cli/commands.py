"""The commands: functions whose options tyro makes from their signatures."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from ddpp import evaluating, experiments, judging, studies
from ddpp.baselines import selection
from ddpp.cli.options import DATA, OWN_NAME, Device, Root, Settings, listing
from ddpp.cli.showing import check_replaceable, read_report, save_figure, save_picture, show_report
from ddpp.data.folder import pack_folder
from ddpp.evaluating import Protocol
from ddpp.experiments.comparing import parse_setting
from ddpp.experiments.places import teachers_in
from ddpp.experiments.recipes import PROFILES
from ddpp.experiments.reproducing import usual_jobs
from ddpp.experiments.run import Experiment
from ddpp.foundation import files, processes
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error
from ddpp.foundation.loop import Saving
from ddpp.foundation.text import show_mean
from ddpp.judging.opening import SPACES, load_set, open_own
from ddpp.networks import ARCHITECTURES, accuracy
from ddpp.pruning import RULES
from ddpp.studies.auditing import REPORT as AUDIT
from ddpp.studies.auditing import Design
from ddpp.studies.choosing import Search
from ddpp.studies.grids import Grid
from ddpp.teachers import train_teachers

Command = Callable[..., int | None]


def teachers(
    recipe: Settings, root: Root = Path("data"), device: Device = None, out: Path = Path("runs")
) -> None:
    """Train the teachers of a recipe (stage A), or resume them.

    Args:
        out: the teachers' folder is made in here, named by their configuration
    """
    config = recipe.stored_teachers()
    files.check_writable(out / "teachers.safetensors")
    with processes.in_turn():
        data = recipe.load(root, device)
    print(data)
    folder = teachers_in(out, config, data)
    trained = train_teachers(data, config, folder)
    if processes.rank():
        return
    last = [trained.snapshot(k, trained.epochs) for k in range(len(trained))]
    scores = [accuracy(trained.network, theta, *data.test) for theta in last]
    print(f"{len(trained)} teachers of {trained.epochs} epochs are in {folder}")
    print(f"test accuracy after the last epoch: {show_mean(scores)} %")


def distill(
    recipe: Settings,
    out: Path,
    root: Root = Path("data"),
    teachers_dir: Path | None = None,
    device: Device = None,
    save_steps: int | None = None,
    save_minutes: float = 1.0,
    best_on_test: bool = False,
) -> None:
    """Train teachers, distil, and compare with random real images.

    All three stages, then the evaluation, also of random real images.

    Args:
        out: the distilled file to write, ending in .safetensors
        teachers_dir: folder of the teachers; None: beside the output, named by their configuration
        save_steps: also save the state every so many distillation steps
        save_minutes: save the state every so many minutes
        best_on_test: also report the best iterate on the test set, as papers do
    """
    distilled, report = Experiment(
        recipe,
        out,
        root=root,
        device=device,
        teachers_folder=teachers_dir,
        saving=Saving(save_steps=save_steps, save_minutes=save_minutes, report=print),
        best_on_test=best_on_test,
    ).run()
    if report:  # on rank 0
        show_report(out, distilled, report)


def reproduce(
    profile: Annotated[str | None, listing(PROFILES)] = None,
    queue: Path | None = None,
    only: str | None = None,
    list: bool = False,
    minutes: float | None = None,
    jobs: int | None = None,
    results: Path = Path("results"),
    work: Path = Path("runs/reproduce"),
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Do the missing runs of the paper's experiments and the ablation.

    The most valuable come first. Another call resumes where one stopped.

    Args:
        profile: the scale; None: paper
        queue: a TOML file with a list of runs of your own, instead of the profile's
        only: the runs whose names match, as 'table1/cifar10-ipc10-*'
        list: show what is finished and what is missing, and do nothing
        minutes: stop after so many
        jobs: runs at a time, in processes that divide the cores among them; None: 2 on a CPU
        results: where reports and distilled images go
        work: where teachers and checkpoints are
    """
    if profile and queue:
        raise Error("each run of a queue has its own profile: leave --profile out")
    runs = experiments.read_queue(queue) if queue else experiments.runs(profile or "paper")
    todo = experiments.select(runs, only)
    if list:
        print("\n".join(experiments.overview(todo, results, work)))
        return
    jobs = usual_jobs(device) if jobs is None else jobs
    experiments.reproduce(
        todo, results=results, work=work, root=root, device=device, minutes=minutes, jobs=jobs
    )


def compare(
    recipe: Settings,
    rules: Annotated[
        tuple[str, ...], arg(metavar="{" + ",".join([*RULES, OWN_NAME]) + "}[@EPSILON] ...")
    ] = ("signed",),
    base: str = "none",
    seeds: int = 5,
    out: Path = Path("runs/compare"),
    root: Root = Path("data"),
    device: Device = None,
    minutes: float | None = None,
    jobs: int | None = None,
) -> None:
    """Compare pruning rules in paired runs, and test their differences.

    Another call resumes where one stopped. Writes a table and a figure.

    Args:
        rules: one or more, or --rule once for each. signed@0.3 has an epsilon of its own
        base: what they are compared with; none is MTT
        seeds: paired runs of each rule: they share all but the rule
        out: folder of results, teachers and checkpoints, and of the table and the figure
        minutes: stop after so many
        jobs: runs at a time, in processes that divide the cores among them; None: 2 on a CPU
    """
    found = experiments.compare(
        *map(parse_setting, rules),
        base=parse_setting(base),
        seeds=seeds,
        recipe=recipe,
        folder=out,
        root=root,
        device=device,
        minutes=minutes,
        jobs=usual_jobs(device) if jobs is None else jobs,
    )
    print(f"\n{found}")
    files.write_text(out / "table.md", found.markdown() + "\n")
    if found.differences:
        save_figure("comparison", found, out / "differences.png")
        print(f"written: {out / 'table.md'} and {out / 'differences.png'}")


def evaluate(
    file: Path,
    /,
    protocol: Annotated[Protocol, arg(help="how a network is trained; the learning rate is alpha")],
    data: Annotated[str | None, listing(DATA)] = None,
    root: Root = Path("data"),
    device: Device = None,
    architecture: Annotated[str | None, listing(ARCHITECTURES)] = None,
    width: int | None = None,
    repeats: int = 5,
    seed: int = 0,
    best_on_test: bool = False,
) -> None:
    """Train fresh networks on a distilled file, test on real images.

    Args:
        file: the distilled file, a checkpoint, or a result under results/
        data: None: the data set that it was distilled from
        architecture: None: the one it was distilled with
        width: of the network, 128 as published; None: the one it was distilled with
        repeats: networks
        seed: of the networks
        best_on_test: also report the best iterate on the test set, as papers do
    """
    opened = open_own(file, data, root=root, device=device)
    print(opened.data)
    result = evaluating.evaluate(
        opened.distilled,
        opened.data,
        architecture,
        repeats,
        width=width,
        protocol=protocol,
        best_on_test=best_on_test,
        seed=seed,
    )
    print("\n".join(result.lines()))


def judge(
    paths: tuple[Path, ...],
    /,
    protocol: Annotated[Protocol, arg(help="how a network is trained; the learning rate is alpha")],
    data: Annotated[str | None, listing(DATA)] = None,
    space: Annotated[str | None, listing(SPACES)] = None,
    architectures: Annotated[
        tuple[str, ...], arg(metavar="{" + ",".join([*ARCHITECTURES, OWN_NAME]) + "} ...")
    ] = ("convnet",),
    width: int | None = None,
    repeats: int = 5,
    out: Path = Path("runs/judge"),
    root: Root = Path("data"),
    device: Device = None,
    seed: int = 0,
) -> None:
    """Test anybody's distilled sets under one protocol.

    Files of ddpp, .pt files of other code, .npz files, and folders of pictures.

    Args:
        paths: files and folders of distilled sets
        data: the data they stand for; None: as the files of ddpp say
        space: what the pixels are; None: recognized from their statistics
        architectures: networks to train
        width: of the networks; None: 128, or as a file of ddpp says
        repeats: networks per set and architecture
        out: folder of the table, as CSV and JSON, of a picture, and of what a stopped call resumes
        seed: of the networks and of the random real images
    """
    # resolved here, as "package.module:name" gets into the table
    names = [ARCHITECTURES.name_of(name) for name in architectures]
    judging.refuse_loss(paths, out, names, repeats, protocol, width, seed)
    judged = judging.judge(
        *paths,
        data=data,
        space=space,
        architectures=names,
        width=width,
        repeats=repeats,
        protocol=protocol,
        folder=out,
        root=root,
        device=device,
        seed=seed,
    )
    print(f"\n{judging.report(judged, out, find_device(device))}")
    save_figure("judged", judged, out / "judged.png")
    print(f"written: {out / 'judged.csv'}, {out / 'judged.json'} and {out / 'judged.png'}")


def show(
    file: Path,
    /,
    out: Path | None = None,
    progress: Path | None = None,
    before_after: Path | None = None,
    folder: Path | None = None,
    card: Path | None = None,
    data: Annotated[str | None, listing(DATA)] = None,
    root: Root = Path("data"),
) -> None:
    """Write pictures of a distilled file in natural colours.

    Args:
        file: the distilled file, a checkpoint, or a result under results/
        out: the picture of all images; None: beside the file
        progress: also a figure of the first image of each class, at every kept step
        before_after: also a figure: left the images at the start, right what became of them
        folder: also every image as a PNG of its own, in a folder per class
        card: also a page about the set, in Markdown, as for the Hugging Face Hub
        data: for a file without its preprocessing. None: the data set that it was distilled from
    """
    distilled = load_set(file, data, root=root)
    usual = file.with_suffix(".png")
    written = [path for path in (out or usual, progress, before_after, card) if path]
    places = {path.resolve() for path in written}
    if file.resolve() in places:
        raise Error(f"{file} is the set itself: choose another place for what is made of it")
    if len(places) < len(written):
        raise Error("two of the files to write are one: give each a place of its own")
    for path in (None if out else usual, card):
        if path:
            check_replaceable(path)
    out = out or usual
    save_picture(distilled.picture(), out)
    counts = {len(members) for members in distilled.by_class()}
    each = f"{min(counts)}" if len(counts) == 1 else f"{min(counts)} to {max(counts)}"
    print(f"{len(distilled)} images, {each} per class: {out}")
    for name, path in (("progress", progress), ("before_after", before_after)):
        if path:
            save_figure(name, distilled, path)
            print(f"from the first images to the distilled ones: {path}")
    if folder:
        print(f"{distilled.export_png(folder)} images as PNG files: {folder}")
    if card:
        known = read_report(file)
        text = judging.card(distilled, known, file.name, os.path.relpath(out, card.parent))
        files.write_text(card, text)
        print(f"a page about the set: {card}")


def remember(
    recipe: Settings,
    tasks: int = 5,
    order: int = 0,
    rate: float | None = None,
    out: Path = Path("runs/memory"),
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Let classes arrive in tasks, with a memory of a few images each.

    After each task networks train on the memory, and are tested on all classes.

    Args:
        tasks: how many. They have equal numbers of classes, and each uses its own data alone
        order: seed of the order of the classes, and of the evaluation
        rate: learning rate of the networks trained on the memory; None: the sets' own alpha
        out: folder of the memory, of its teachers and of the report
    """
    found = studies.remember(
        recipe,
        out,
        tasks=tasks,
        order=order,
        rate=rate,
        root=root,
        device=device,
        saving=Saving(report=print),
    )
    last = found[-1].accuracies
    print(f"in the end: {show_mean(last)} %")
    print(f"written: {out} (the memory, task by task, and its report)")


def audit(
    recipe: Settings,
    design: Annotated[Design, arg(name="")],
    out: Path = Path("runs/audit"),
    teachers_dir: Path | None = None,
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Attack sets and networks: who was in the data?

    Makes many sets, each from a random half of some images, and attacks them.

    Args:
        out: folder of the sets, of what the attacks saw, and of the report
        teachers_dir: folder in which the teachers are, for audits to share; None: the output
    """
    found = studies.audit(
        recipe,
        out,
        design,
        teachers=teachers_dir,
        root=root,
        device=device,
        saving=Saving(report=print),
    )
    print("\n".join(found.lines()))
    print(f"written: {out / AUDIT}")


def rank(
    paths: tuple[Path, ...],
    /,
    grid: Annotated[Grid, arg(name="")],
    search: Annotated[Search, arg(name="")],
    networks: int = 48,
    draws: int = 3,
    data: Annotated[str | None, listing(DATA)] = None,
    out: Path = Path("runs/rank"),
    root: Root = Path("data"),
    device: Device = None,
) -> None:
    """Rank networks by training on small sets, and compare with all data.

    Another call resumes where one stopped. Writes a report and a figure.

    Args:
        paths: distilled files, or results under results/; NAME-seed0 and NAME-seed1 are one row
        networks: drawn from the grid, so that each value of each factor appears equally often
        draws: of the same number of random real images, which are always among the sets
        data: None: the data set that they were distilled from
        out: folder of the report, of the figure, and of what a stopped call resumes
    """
    chosen = studies.stratified(grid.candidates(), networks, search.seed)
    opened = [open_own(path, data, root=root, device=device) for path in paths]
    if not opened or draws < 1:
        raise Error("there is nothing to compare: name a distilled file, and at least one draw")
    images, sets = opened[0].data, {}
    rows = [path.with_name(re.sub(r"-seed\d+$", "", path.stem)) for path in paths]
    for row, one in zip(rows, opened, strict=True):
        alone = {each for each in rows if each.name == row.name} == {row}
        sets.setdefault(row.name if alone else str(row), []).append(one.distilled)
    for ipc in sorted({one.distilled.ipc for one in opened}):
        real = [selection.random(images, ipc, {}, seed) for seed in range(draws)]
        sets[f"random, {ipc} per class"] = real
    print(images)
    found = studies.rank(chosen, sets, images, out, search)
    print(f"\n{found}")
    save_figure("ranking", found, out / "ranking.png")
    print(f"written: {out / 'ranking.json'} and {out / 'ranking.png'}")


def export(
    file: Path,
    /,
    kind: Annotated[str, arg(name="for", metavar="KIND")],
    out: Path | None = None,
    data: Annotated[str | None, listing(DATA)] = None,
    root: Root = Path("data"),
) -> None:
    """Write a distilled file in a form that other code reads.

    Args:
        file: the distilled file, a checkpoint, or a result under results/
        kind: pt (tensors), beard or eccv (for this benchmark and this challenge), hf (for the
            Hugging Face Hub), compact (a smaller file), or webp (one picture, no whitening)
        out: the folder, in which nothing is replaced; None: beside the file
        data: for a file without its preprocessing. None: the data set that it was distilled from
    """
    out = out or file.with_name(f"{file.stem}-{kind}")
    distilled = load_set(file, data, root=root)
    written, notes = judging.export(distilled, kind, out, read_report(file))
    for path in written:
        print(path)
    for note in notes:
        print(f"note: {note}")


def pack(folder: Path, /, out: Path, size: int = 32, test: float = 0.2) -> None:
    """Make an .npz file, for --data, of a folder of your pictures.

    They are in FOLDER/CLASS/PICTURE or FOLDER/{train,test}/CLASS/PICTURE.

    Args:
        folder: the folder with the pictures
        out: the file to write, ending in .npz
        size: pixels along each side
        test: share of each class that becomes test images, if there are no folders train and test
    """
    counts = pack_folder(folder, out, size, test)
    for name, (to_train, to_test) in counts.items():
        print(f"{name}: {to_train} images to train on, {to_test} to test on")
    print(f"written: {out} ({len(counts)} classes, images of {size}x{size})")


SHARED = (teachers, distill)  # the commands that torchrun can share out
OTHERS = (compare, reproduce, remember, rank, audit, evaluate, judge, show, export, pack)
COMMANDS: dict[str, Command] = {command.__name__: command for command in (*SHARED, *OTHERS)}
