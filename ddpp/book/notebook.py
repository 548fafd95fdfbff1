"""What the chapters of the book start with: style, a word on the device, and things computed
once.
"""

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
from ddpp.teachers import Teachers, train_teachers

DRIVE = Path("/content/drive")


def begin(drive: bool = False) -> Path:
    """Set the figures' style and say what this notebook runs on; returns the folder where results
    are kept.

    With `drive`, on Colab, that is a folder in the reader's Google Drive, which outlives the
    session.
    """
    figures.use_style()
    colab = "google.colab" in sys.modules
    if torch.cuda.is_available():
        print(f"running on a GPU: {torch.cuda.get_device_name()}")
    else:
        hint = ": Runtime > Change runtime type > T4 GPU gives you one" if colab else ""
        print(f"running on the CPU, at the smallest scale (no GPU found{hint})")
    if not drive:
        return Path("runs")
    if not colab:
        print("Google Drive can be mounted on Colab only: keeping results in runs/")
        return Path("runs")
    from google.colab import drive as google_drive  # pyright: ignore[reportMissingImports]

    google_drive.mount(str(DRIVE))
    return DRIVE / "MyDrive" / "ddpp"


def teachers(data: ImageData, recipe: Recipe, runs: Path, count: int | None = None) -> Teachers:
    """The recipe's teachers from `runs`, or the first `count` of them, trained as far as they are
    missing; says which
    of the two happened."""
    config = recipe.stored_teachers()
    config = replace(config, count=count or config.count)
    folder = runs / f"teachers-{Path(recipe.data).stem}-{recipe.profile}"
    there, began = folder.exists(), time.monotonic()
    trained = train_teachers(data, config, folder)
    seconds = time.monotonic() - began
    print(
        f"{'loaded' if there else 'trained'} {len(trained)} teachers of {trained.epochs} epochs "
        f"({seconds:.0f} s)"
    )
    return trained


def distilled(path: Path, make: Callable[[Path], DistilledDataset]) -> DistilledDataset:
    """The set in the file `path`, or else make(checkpoint), saved there; says which of the two
    happened.
    """
    if path.exists():
        print(f"loaded from {path}")
        return DistilledDataset.load(path)
    checkpoint, began = path.with_suffix(".checkpoint"), time.monotonic()
    result = make(checkpoint)
    result.save(path)
    checkpoint.unlink()
    print(f"distilled in {time.monotonic() - began:.0f} s and written to {path}")
    return result
