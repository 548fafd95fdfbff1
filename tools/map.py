"""The map of what pruning does to the gradient of the images: `python -m tools.map`.

One setting is varied at a time, around the smoke profile's; each point is the mean over teachers
and draws. Minutes on two cores; a stopped call resumes.
"""

import math
import statistics
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from ddpp.data import ImageData, Split, from_arrays, load_data
from ddpp.distilling import DistillConfig, distill
from ddpp.experiments.recipes import recipe
from ddpp.foundation import files
from ddpp.foundation.identity import settings
from ddpp.foundation.provenance import commit, provenance
from ddpp.networks import NetworkConfig
from ddpp.studies.turning import Mask, Turn, mask_of, masks_by_part, turns
from ddpp.teachers import Teachers, train_teachers
from tools.commands import containing, resumed, run

RULES = (
    ("signed", 0.1),
    ("signed", 0.3),
    ("signed", 0.7),
    ("sign", 0.0),
    ("random", 0.1),
    ("largest", 0.1),
    ("easiest", 0.25),
    ("magnitude", 0.1),
)
REPEATS = 3  # teachers, each with draws of its own
TEACHERS = replace(recipe("smoke").teachers, count=REPEATS, epochs=12)  # elsewhere 2 epochs
EPSILONS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True)
class Point:
    """One setting of the map."""

    factor: str  # what is varied,
    value: float  # and its value here
    student_steps: int = 15  # J
    expert_epochs: int = 2  # K
    epoch: int = 0
    alpha: float = 0.02
    ipc: int = 1
    width: int = 32
    classes: int = 10
    after: int = 0  # distillation steps before this one
    epsilon: float | None = None  # measured alone, for the curve over epsilon
    parts: bool = False  # whole layers and kinds of parameter instead of rules


def points() -> Iterator[Point]:
    """List the map, one factor after the other."""
    for j in (5, 10, 15, 30, 50, 80):
        yield Point("J, student steps", j, student_steps=j)
    for epsilon in EPSILONS:
        yield Point("epsilon", epsilon, epsilon=epsilon)
    for epoch in (0, 1, 2, 4, 8):
        yield Point("start epoch", epoch, epoch=epoch)
    for k in (1, 2, 3, 4):
        yield Point("K, expert epochs", k, expert_epochs=k)
    for alpha in (0.005, 0.01, 0.02, 0.04):
        yield Point("alpha", alpha, alpha=alpha)
    for ipc in (1, 3, 10):
        yield Point("images per class", ipc, ipc=ipc)
    for width in (8, 16, 32, 64):
        yield Point("width", width, width=width)
    for classes in (2, 5, 10):
        yield Point("classes", classes, classes=classes)
    for after in (0, 20, 40, 80):
        yield Point("distillation steps before", after, after=after)
    for epoch in (0, 1):  # the settings of results/smoke/regimes.toml, first and last start epoch
        yield Point("regime long", epoch, student_steps=50, alpha=0.01, epoch=epoch)
    for epoch in (0, 4):
        yield Point("regime fast", epoch, student_steps=20, alpha=0.03, epoch=epoch)
    for epoch in (0, 9):
        yield Point("regime ten", epoch, student_steps=10, epoch=epoch, ipc=10)
    yield Point("parts", 0, parts=True)
    yield Point("parts", 50, student_steps=50, parts=True)


@dataclass
class _Stage:
    """Data, teachers and distilled images, each made once and kept in a folder."""

    folder: Path
    data: dict[int, ImageData] = field(default_factory=dict)

    def of_classes(self, classes: int) -> ImageData:
        if classes not in self.data:
            whole = load_data("cifar10-sample", zca=True, device="cpu")
            self.data[classes] = whole if classes == 10 else _first(classes)
        return self.data[classes]

    def teachers(self, point: Point) -> Teachers:
        config = replace(TEACHERS, network=NetworkConfig(width=point.width))
        if (point.width, point.classes) != (32, 10):
            config = replace(config, epochs=2)
        folder = self.folder / f"teachers-{point.classes}-{point.width}"
        return train_teachers(self.of_classes(point.classes), config, folder)

    def start(
        self, point: Point, teachers: Teachers, data: ImageData
    ) -> tuple[Split | None, float]:
        """The images and alpha that the point's step begins with."""
        if not point.after:
            return None, point.alpha
        config = replace(recipe("smoke").distill, rule="none", steps=80, iterates=4)
        assert isinstance(config, DistillConfig)
        # read from its checkpoint, which is refused if it is of other settings
        made = distill(data, teachers, config, checkpoint=self.folder / "run.checkpoint")
        now = made.at(point.after)
        return Split(now.images, now.labels), float(now.alpha)


def _first(classes: int) -> ImageData:
    """The sample's first classes."""
    whole = load_data("cifar10-sample", zca=False, device="cpu", validation=0)
    parts = []
    for split in (whole.train, whole.test):
        kept = split.labels < classes
        parts += [whole.whitening.invert(split.images[kept]).clamp(0, 1), split.labels[kept]]
    return from_arrays(*parts, classes=whole.classes[:classes], zca=True, device="cpu")


def masks(point: Point, teachers: Teachers) -> dict[str, Mask]:
    """Name what is measured at a point."""
    if point.parts:
        layers = {f"layer {i + 1}": [f"{4 * i}.weight", f"{4 * i}.bias"] for i in range(3)}
        norms = [4 * i + 1 for i in range(3)]
        kinds = {
            "scales": [f"{i}.weight" for i in norms],
            "shifts": [f"{i}.bias" for i in norms],
            "biases": [f"{4 * i}.bias" for i in range(3)],
            "last layer": [n for n in teachers.network.shapes if n.startswith("13.")],
        }
        return masks_by_part(teachers, layers | kinds)
    if point.epsilon is not None:
        names = ("signed", "magnitude", "random", "largest")
        return {f"{rule}@{point.epsilon:g}": mask_of(rule, point.epsilon) for rule in names}
    return {f"{rule}@{epsilon:g}": mask_of(rule, epsilon) for rule, epsilon in RULES}


def measure(point: Point, stage: _Stage) -> list[dict]:
    """Measure all masks at a point, over teachers; return a row for each mask."""
    data, teachers = stage.of_classes(point.classes), stage.teachers(point)
    start_set, alpha = stage.start(point, teachers, data)
    found: dict[str, list[Turn]] = {}
    for k in range(REPEATS):
        config = DistillConfig(
            ipc=point.ipc,
            student_steps=point.student_steps,
            expert_epochs=point.expert_epochs,
            alpha0=alpha,
            seed=k,
        )
        made = turns(
            data, teachers, config, masks(point, teachers),
            start_set=start_set, epoch=point.epoch, teacher=k, step=k,
        )  # fmt: skip
        for name, turn in made.items():
            found.setdefault(name, []).append(turn)
    rows = []
    for name, each in found.items():
        columns = {key: [asdict(turn)[key] for turn in each] for key in asdict(each[0])}
        row = {key: statistics.fmean(values) for key, values in columns.items()}
        row = {key: None if math.isnan(value) else value for key, value in row.items()}
        angles = [angle for angle in columns["angle"] if not math.isnan(angle)]
        spread = statistics.stdev(angles) if len(angles) > 1 else None
        rows.append({"mask": name, "of": len(each), "angle_spread": spread} | row)
    return rows


def command(
    out: Path = Path("results/map/smoke.json"), work: Path = Path("runs/map"), only: str = ""
) -> None:
    """Measure the map, and write it as JSON.

    Args:
        out: the file; points that it has are not measured again
        work: folder of teachers and of a run
        only: a factor, as 'epsilon'; empty: all
    """
    commit()
    stage, about = _Stage(work), {"teachers": settings(TEACHERS)}
    chosen = containing(only, ((point.factor, point) for point in points()), "factor")
    with resumed(out, "points", about) as known:
        there = {(each["factor"], each["value"]) for each in known}
        for point in chosen:
            if (point.factor, point.value) in there:
                continue
            rows = measure(point, stage)
            known.append(asdict(point) | {"rows": rows})
            content = {"points": known} | about
            files.write_json(out, content | provenance(torch.device("cpu")))
            shown = ", ".join(f"{row['mask']} {row['angle']:.1f}" for row in rows[:8])
            print(f"{point.factor} {point.value:g}: {shown}")


main = partial(run, command, "map")

if __name__ == "__main__":
    sys.exit(main())
