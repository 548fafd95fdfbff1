"""Class-incremental learning with a memory of a few images per class.

The classes of a data set arrive in tasks, and all that is left of earlier ones is a memory: for
each class a few images, real or distilled. After each task a fresh network is trained on the whole
memory, and tested on all classes so far. The images of a task are made from that task's data alone.
Source: the protocol of GDumb (Prabhu et al., ECCV 2020) as DM uses it (Zhao & Bilen, WACV 2023).
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from ddpp.data import ImageData, load_data
from ddpp.data.sources import classes_of
from ddpp.distilled import DistilledDataset
from ddpp.distilling import DistillConfig
from ddpp.evaluating import evaluate
from ddpp.experiments.recipes import Recipe, nothing_held_out
from ddpp.experiments.run import Experiment, whole
from ddpp.foundation import files
from ddpp.foundation.errors import Error, as_whole
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.studies.reports import refuse_other, write_report

REPORT = "memory.json"


@dataclass(frozen=True)
class Task:
    """What a task brought, and what is known after it."""

    classes: tuple[str, ...]  # the new ones
    images: int  # in the memory, of all classes so far
    accuracies: tuple[float, ...]  # on the test images of all classes so far, one per network


def class_tasks(classes: int, tasks: int, seed: int) -> list[list[int]]:
    """Divide classes 0 ... classes - 1 into tasks of equal size, in a random order.

    - seed: equal seeds give equal orders.

    Raises Error for a number of tasks that does not divide the classes.

    >>> from ddpp.studies.remembering import class_tasks
    >>> class_tasks(classes=6, tasks=3, seed=0)
    [[3, 4], [0, 2], [1, 5]]
    """
    choices = [n for n in range(1, classes // 2 + 1) if classes % n == 0]
    if tasks not in choices:
        raise Error(
            f"{classes} classes cannot arrive in {tasks} equal tasks of two or more: choose "
            f"{' or '.join(map(str, choices))}"
        )
    order = torch.randperm(classes, generator=generator(seed, "class order")).tolist()
    size = classes // tasks
    return [order[at : at + size] for at in range(0, classes, size)]


def for_tasks(recipe: Recipe) -> Recipe:
    """Return the recipe of a profile with settings that suit tasks of few classes.

    Those of the smoke profile are made for ten classes. With two, its alpha_lr lets alpha fall to
    zero within a task, its image rate is too high, and fewer steps and teachers are enough. The
    rate for one image per class is the better of 30 and 100, tried with order 100.
    """
    if recipe.profile != "smoke" or not isinstance(recipe.distill, DistillConfig):
        return recipe
    changes: dict[str, Any] = {"alpha_lr": 1e-7, "steps": 40, "image_lr": 30.0}
    teachers = recipe.teachers
    if recipe.distill.ipc >= 10:
        changes |= {
            **{"steps": 20, "student_steps": 10, "max_start_epoch": 4},
            **{"image_lr": 300.0, "alpha0": 0.03, "iterates": 2},
        }
        teachers = replace(teachers, count=2, epochs=6)
    return replace(recipe, distill=replace(recipe.distill, **changes), teachers=teachers)


def _arrivals(recipe: Recipe, arrivals: list[list[int]], where: dict[str, Any]) -> list[ImageData]:
    """Load the data of each task, whitened as the first, and refuse settings that do not fit."""
    recipe.stored_teachers()  # refuses settings that cannot work
    parts = [load_data(recipe.data, only=arrivals[0], **where)]
    for labels in arrivals[1:]:
        whitening = parts[0].whitening
        parts.append(load_data(recipe.data, only=labels, whitening=whitening, **where))
    for part in parts:
        recipe.check_fits(part)
    return parts


def remember(
    recipe: Recipe,
    folder: str | Path,
    *,
    tasks: int = 5,
    order: int = 0,
    rate: float | None = None,
    root: str | Path = "data",
    device: str | None = None,
    saving: Saving = Saving(),
) -> list[Task]:
    """Let the classes of a data set arrive in tasks, with a memory made by one method.

    - recipe: the data, the method with its settings (the images per class, too), the teachers,
      and the protocol and repeats of the evaluation. Nothing is held out.
    - folder: of the memory, the teachers and the report. The same call resumes from what is there.
    - tasks: how many, with the same number of classes each.
    - order: seed of the order in which they arrive, and of the evaluation.
    - rate: learning rate of the networks that are trained on the memory, so that several methods
      can be compared with the same one; None: the sets' own alpha.
    - root, device: as in `load_data`.
    - saving: `report` is called with a line after each task.

    The whitening is fitted on the first task, because later images are not seen before they arrive.
    A network needs one learning rate: the mean of the sets' alphas, weighted by their numbers of
    images. Raises Error for settings that cannot work, and for a folder of another run.
    """
    tasks, order = as_whole(tasks, "tasks"), as_whole(order, "order")
    if rate is not None and not 0 < (rate := float(rate)) < math.inf:
        raise Error(f"the rate is {rate}: it must be a positive number")
    recipe, folder = nothing_held_out(recipe, "a memory"), Path(folder)
    learned = [name for name in ("label_lr", "learn_labels") if getattr(recipe.distill, name, None)]
    if learned:  # `union` would refuse them, too, but after the first task
        raise Error(f"a memory needs labels that are classes: leave {learned[0]} out")
    arrivals = class_tasks(len(classes_of(recipe.data, Path(root))), tasks, order)
    asked = {"recipe": asdict(recipe), "tasks": tasks, "order": order} | recipe.marks()
    asked |= {} if rate is None else {"rate": rate}  # as reports were before there was a rate
    files.check_writable(folder / REPORT)
    with files.lock(folder / REPORT, wait=False):
        refuse_other(folder / REPORT, asked, f"{folder} holds the memory", "choose another folder")
        where = {"root": root, "device": device, "validation": 0.0, "zca": recipe.zca}
        parts = _arrivals(recipe, arrivals, where)
        whitening = parts[0].whitening
        found, memory, known = [], [], []
        for number, labels in enumerate(arrivals):
            part, known = parts.pop(0), known + labels  # the memory of the device is for `seen`
            out = folder / f"task{number}.safetensors"
            memory.append(whole(Experiment(recipe, out, given=part, saving=saving).distilled()))
            seen = part
            if number:
                seen = load_data(recipe.data, only=known, whitening=whitening, **where)
            stored = union(memory, seen)
            if rate is not None:
                stored = replace(stored, alpha=torch.tensor(rate, device=seen.device))
            scores = evaluate(
                stored,
                seen,
                repeats=recipe.repeats,
                protocol=recipe.protocol,
                seed=order,
                scores=folder / "memory.scores",
                progress=saving.progress,
            )
            found.append(Task(part.classes, sum(map(len, memory)), tuple(scores.final)))
            saving.report(
                f"task {number + 1} of {tasks}: {', '.join(part.classes)}; {scores.mean:.1f} % on "
                f"{len(seen.classes)} classes, from {found[-1].images} images"
            )
            report = {"asked": asked, "found": [asdict(task) for task in found]}
            write_report(folder / REPORT, report, seen.device)
    return found


def read_memories(folder: str | Path) -> list[dict]:
    """Read the reports of `remember` in a folder as rows for tables and figures.

    - folder: of files METHOD-ipcN-orderK.json, each the `memory.json` of a memory.

    A row has name (METHOD-ipcN-seedK), method, ipc, seed, error (None), and tasks, the list of
    Task. Its accuracy is the mean after the last task. As in the reports of other runs, distilled
    has the accuracies of the networks. Raises Error for another file.
    """
    rows = []
    for path in sorted(Path(folder).glob("*.json")):
        try:
            report = json.loads(path.read_text())
            settings, order = report["asked"]["recipe"], report["asked"]["order"]
            tasks = [Task(**found) for found in report["found"]]
            row = {"method": settings["method"], "ipc": settings["distill"]["ipc"], "seed": order}
            last = list(tasks[-1].accuracies)
        except (OSError, ValueError, LookupError, TypeError):
            raise Error(f"{path} is not the report of a memory: move it away") from None
        row |= {"name": f"{row['method']}-ipc{row['ipc']}-seed{order}", "error": None}
        rows.append(row | {"tasks": tasks, "accuracy": fmean(last), "distilled": {"final": last}})
    return rows


def union(memory: Sequence[DistilledDataset], data: ImageData) -> DistilledDataset:
    """Join sets of different classes into one.

    - memory: the sets, in the order of their classes in `data`.
    - data: of all these classes.

    Raises Error for labels that are not classes, as those have no place for further classes.
    """
    parts = [part.unfolded() for part in memory]
    if any(part.labels.is_floating_point() for part in parts):
        raise Error("a memory needs labels that are classes: leave label_lr or learn_labels out")
    first = [sum(len(part.classes) for part in parts[:i]) for i in range(len(parts))]
    sizes = torch.tensor([float(len(part)) for part in parts])
    alphas = torch.stack([part.alpha.cpu() for part in parts])
    return DistilledDataset(
        images=torch.cat([part.images for part in parts]),
        labels=torch.cat([part.labels + at for part, at in zip(parts, first, strict=True)]),
        alpha=((alphas * sizes).sum() / sizes.sum()).to(data.device),
        whitening=data.whitening,
        classes=data.classes,
        network=parts[0].network,
    )
