"""Where the files of a run lie."""

from pathlib import Path

from ddpp.data import ImageData
from ddpp.experiments.lists import Run
from ddpp.foundation import files
from ddpp.teachers import TeacherConfig


def out_of(run: Run, work: str | Path) -> Path:
    """Return the path of a run's distilled file. Its checkpoint and teachers lie beside it."""
    return Path(work) / f"{run.recipe.profile}-{run.name.replace('/', '-')}.safetensors"


def report_path(out: Path) -> Path:
    """The report on a distilled file, beside it."""
    return out.with_suffix(".json")


def working_file(out: Path, ending: str) -> Path:
    """The file that a run of `out` works with: its checkpoint, scores or seconds."""
    return out.with_name(f"{out.name}.{ending}")


def teachers_in(folder: Path, config: TeacherConfig, data: ImageData) -> Path:
    """The folder for these teachers in `folder`: shared by runs with equal teachers, and by no
    others.
    """
    return folder / f"teachers-{files.identity(config.identity(data))[:8]}"
