"""Every setting in one table: the paper's runs, with their sources, and the profiles smoke, cpu, colab and paper.

The letter prints epsilon = 0.1, 200 teachers of 50 epochs, T = 5,000 and "ZCA with default parameters", and refers to
MTT for the rest; J, K, I+ and the learning rates below are MTT's published ones for each data set and size.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import get_type_hints

from ddpp.distill import DistillConfig, check_config
from ddpp.errors import Error, choose
from ddpp.evaluate import Protocol, check_protocol
from ddpp.networks import NetworkConfig
from ddpp.teachers import TeacherConfig

PROFILES = ("smoke", "cpu", "colab", "paper")

# (data set, images per class): J, K, I+, image_lr, alpha_lr, alpha_0, distilled images per update
PAPER = {
    ("cifar10", 1): (50, 2, 2, 100.0, 1e-7, 0.01, None),  # MTT's commands as DC-BENCH lists them, for all but:
    ("cifar10", 10): (
        30,
        2,
        20,
        100.0,
        1e-5,
        0.001,
        None,
    ),  # MTT's README says 1e5, 1e-4, 0.01, which diverges (its #31)
    ("cifar10", 50): (30, 2, 20, 100.0, 1e-5, 0.001, None),  # MTT's ZCA run; its best was without ZCA, I+ = 40
    ("cifar100", 1): (20, 3, 20, 1000.0, 1e-5, 0.01, None),
    ("cifar100", 10): (20, 2, 20, 1000.0, 1e-5, 0.01, None),  # MTT's without ZCA; the paper says ZCA
    ("cifar100", 50): (80, 2, 40, 1000.0, 1e-5, 0.01, 125),
}


@dataclass(frozen=True)
class Recipe:
    """A whole run: all three stages and the evaluation."""

    profile: str  # smoke, cpu, colab or paper: where the other defaults come from
    data: str  # cifar10-sample, cifar10, cifar100, or the path of an .npz
    teachers: TeacherConfig
    distill: DistillConfig
    protocol: Protocol
    zca: bool | None = None  # None: wherever it is affordable (see load_data)
    validation: float = 0.1  # share of the training images held out for choosing an iterate
    repeats: int = 5  # networks per evaluation
    all_epochs: bool = False  # train the teachers to the end, also over epochs that the run cannot use

    def stored_teachers(self) -> TeacherConfig:
        """The teachers to train: only up to epoch I+ - 1 + K, the last that can be drawn, unless all are asked for.

        Raises Error where the settings cannot work, before any work is done.
        """
        check_config(self.distill)
        check_protocol(self.protocol, self.repeats)
        used = self.distill.max_start_epoch - 1 + self.distill.expert_epochs
        if used > self.teachers.epochs:
            raise Error(
                f"max_start_epoch {self.distill.max_start_epoch} and expert_epochs {self.distill.expert_epochs} reach "
                f"epoch {used}, but the teachers stop at {self.teachers.epochs}: train them longer or lower either"
            )
        return self.teachers if self.all_epochs else replace(self.teachers, epochs=used)


def recipe(profile: str = "smoke", data: str | None = None, ipc: int = 1) -> Recipe:
    """The settings of a profile for a data set and a number of images per class.

    smoke: minutes on two CPU cores, width 32, the bundled sample unless told otherwise. paper: the paper's settings.
    colab: the paper's with 20 teachers and T = 1,000. cpu: with 3 and 500; for one image per class, hours on two cores.
    Sizes between those of the paper take the next smaller one's settings, data sets of your own those of CIFAR-10.
    """
    choose("recipe", profile, PROFILES)
    if profile == "smoke":
        return Recipe(
            profile=profile,
            data=data or "cifar10-sample",
            teachers=TeacherConfig(count=3, epochs=6, lr=0.02, batch=128, network=NetworkConfig(width=32)),
            distill=DistillConfig(ipc=ipc, steps=80, student_steps=15, alpha0=0.02, alpha_lr=1e-5, iterates=4),
            protocol=Protocol(epochs=200),
        )
    table = "cifar100" if Path(data or "").stem == "cifar100" else "cifar10"
    size = max((n for name, n in PAPER if name == table and n <= ipc), default=1)
    j, k, i, image_lr, alpha_lr, alpha0, batch = PAPER[table, size]
    paper = Recipe(
        profile=profile,
        data=data or "cifar10",
        teachers=TeacherConfig(),
        distill=DistillConfig(
            ipc=ipc,
            student_steps=j,
            expert_epochs=k,
            max_start_epoch=i,
            image_lr=image_lr,
            alpha_lr=alpha_lr,
            alpha0=alpha0,
            batch=batch,
        ),
        protocol=Protocol(),
    )
    count, steps, iterates = {"cpu": (3, 500, 2), "colab": (20, 1000, 5), "paper": (200, 5000, 5)}[profile]
    scale = replace(paper.distill, steps=steps, iterates=iterates)
    return replace(paper, teachers=replace(paper.teachers, count=count), distill=scale)


def from_dict(stored: dict, kind: type = Recipe):
    """The recipe that `asdict` turned into `stored`; settings that are newer than it have their defaults."""
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    if not isinstance(stored, dict) or not stored.keys() <= names:
        raise Error("these are not the settings of a run of this version of ddpp")
    inner = {name: from_dict(value, hints[name]) for name, value in stored.items() if is_dataclass(hints[name])}
    return kind(**stored | inner)
