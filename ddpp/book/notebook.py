"""What each chapter starts with: the style, a line on the device, and things computed once."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from ddpp.book import figures
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.experiments.recipes import Recipe
from ddpp.foundation.errors import Error
from ddpp.networks import Flat
from ddpp.teachers import Teachers, train_teachers
from ddpp.unrolling import Updates, update

DRIVE = Path("/content/drive")
COLAB = Path("/content/ddpp/notebooks")  # where the first cell of a notebook goes


def begin(drive: bool = False) -> Path:
    """Set the figures' style, print the device, and return the folder for results.

    - drive: whether results are kept in the reader's Google Drive, which outlives a Colab session.
      Outside Colab they stay in runs/.
    """
    figures.use_style()
    colab = "google.colab" in sys.modules
    if colab and COLAB.is_dir():
        os.chdir(COLAB)  # a restarted session begins elsewhere
    if torch.cuda.is_available():
        print(f"running on a GPU: {torch.cuda.get_device_name()}")
    else:
        hint = " (Runtime > Change runtime type > T4 GPU gives you one)" if colab else ""
        print(f"no GPU found: smallest scale, on the CPU{hint}")
    if not drive:
        return Path("runs")
    if not colab:
        print("Google Drive can be mounted on Colab only: keeping results in runs/")
        return Path("runs")
    from google.colab import drive as google_drive  # pyright: ignore[reportMissingImports]

    google_drive.mount(str(DRIVE))
    return DRIVE / "MyDrive" / "ddpp"


def results() -> Path:
    """Return the project's folder of results: beside the notebook's folder, or in the clone that
    ddpp is imported from. Raise Error where there is none.
    """
    for folder in (Path("../results"), Path(__file__).parents[2] / "results"):
        if folder.is_dir():
            return folder
    raise Error(
        "the stored results are missing: they are in the folder results of the project; open "
        "this notebook in the folder notebooks of a clone, or skip this cell"
    )


def teachers(data: ImageData, recipe: Recipe, runs: Path, count: int | None = None) -> Teachers:
    """Load the recipe's teachers from `runs`, and train those that are missing.

    Prints whether they were loaded or trained.

    - data: the images that they are trained on.
    - recipe: its profile and data set decide the folder, its settings the training.
    - runs: the folder that `begin` returned.
    - count: how many teachers. Default: all of the recipe.
    """
    config = recipe.stored_teachers()
    config = replace(config, count=count or config.count)
    folder = runs / f"teachers-{Path(recipe.data).stem}-{recipe.profile}"
    written = lambda: {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    before, began = written(), time.monotonic()
    trained = train_teachers(data, config, folder)
    what, seconds = "loaded" if written() == before else "trained", time.monotonic() - began
    plural = "" if len(trained) == 1 else "s"
    print(f"{what} {len(trained)} teacher{plural} of {trained.epochs} epochs ({seconds:.0f} s)")
    return trained


def distilled(path: Path, make: Callable[[Path], DistilledDataset]) -> DistilledDataset:
    """Load the set in the file `path`, or distil it and save it there.

    Prints whether it was loaded or distilled.

    - path: of the distilled set.
    - make: distils the set, given the path of a checkpoint that a stopped call resumes from.
    """
    if path.exists():
        print(f"loaded from {path} (delete this file to distil again)")
        return DistilledDataset.load(path)
    checkpoint, began = path.with_suffix(".checkpoint"), time.monotonic()
    result = make(checkpoint)
    result.save(path)
    checkpoint.unlink()
    print(f"distilled in {time.monotonic() - began:.0f} s and written to {path}")
    return result


def student_path(
    network: Flat, start: torch.Tensor, images: DistilledDataset, updates: Updates
) -> torch.Tensor:
    """Train a student by Eq. (2). Returns its parameters before and after each update (J + 1, p).

    - network: the student's.
    - start: its parameters at the start (p,).
    - images: what it is trained on, with their labels and alpha.
    - updates: the batches and augmentations, by `draw_updates`.
    """
    images, path = images.to(start.device).unfolded(), [start.detach()]
    for batch, how in zip(*updates, strict=True):
        x, y = images.images[batch], images.labels[batch]
        path.append(update(network, path[-1], x, y, how, images.alpha))
    return torch.stack(path)
