"""The settings of the paper's runs, with their sources, and the profiles smoke, cpu, colab, paper.

The letter prints epsilon = 0.1, 200 teachers of 50 epochs, T = 5,000 and "ZCA with default
parameters", and refers to MTT for the rest. J, K, I+ and the learning rates below are MTT's
published ones for each data set and size.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, cast, get_type_hints

from ddpp.baselines.dsa import LOOPS
from ddpp.data import ImageData, load_data
from ddpp.distilling import DistillConfig
from ddpp.evaluating import Protocol
from ddpp.experiments.methods import METHODS, GivenTeachers, MethodConfig, check_settings
from ddpp.foundation.errors import Count, Error, check_bounds, choose
from ddpp.foundation.identity import marks, marks_of
from ddpp.networks import ARCHITECTURES, NetworkConfig
from ddpp.teachers import TeacherConfig

PROFILES = ("smoke", "cpu", "colab", "paper")

# profile: teachers, T, iterates
SCALES = {"cpu": (3, 500, 2), "colab": (20, 1000, 5), "paper": (200, 5000, 5)}

# The trajectories' settings (J, K, I+ ...) for (data set, images per class): MTT's commands as
# DC-BENCH lists them, for all but a few.
NAMES = "student_steps expert_epochs max_start_epoch image_lr alpha_lr alpha0 batch".split()
PAPER = {
    ("cifar10", 1): (50, 2, 2, 100.0, 1e-7, 0.01, None),
    # MTT's README says 1e5, 1e-4, 0.01, and diverges (its #31)
    ("cifar10", 10): (30, 2, 20, 100.0, 1e-5, 1e-3, None),
    # MTT's ZCA run; its best was without ZCA, I+ = 40
    ("cifar10", 50): (30, 2, 20, 100.0, 1e-5, 1e-3, None),
    ("cifar100", 1): (20, 3, 20, 1000.0, 1e-5, 0.01, None),
    # MTT's without ZCA; the paper says ZCA
    ("cifar100", 10): (20, 2, 20, 1000.0, 1e-5, 0.01, None),
    ("cifar100", 50): (80, 2, 40, 1000.0, 1e-5, 0.01, 125),
}

# What a method needs at smoke scale, so that it shows its effect in minutes
MATCHING = {"steps": 80, "student_steps": 15, "alpha0": 0.02, "alpha_lr": 1e-5, "iterates": 4}
# Ten images or more per class soon know as much as teachers of three epochs (34 %). With twelve
# epochs, and later ones to match, they reach 41 %, see results/smoke/ipc10.json.
MATCHING_MORE = MATCHING | {
    "steps": 12,
    "student_steps": 20,
    "max_start_epoch": 10,
    "image_lr": 300.0,
    "alpha0": 0.03,
    "alpha_lr": 1e-7,
    "iterates": 1,
}
TGDD_MORE = {"steps": 250, "epochs": 12, "constraint": 10.0, "alpha": 0.03}
MORE = {"ddpp": MATCHING_MORE, "mtt": MATCHING_MORE, "tgdd": TGDD_MORE}  # from ten images on
SMOKE = {
    "ddpp": MATCHING,
    "mtt": MATCHING,
    "iadd": MATCHING | {"iterates": 1},
    "dc": {"steps": 25, "batch_real": 32, "iterates": 1},
    "dsa": {"steps": 25, "batch_real": 32, "iterates": 1},
    "dm": {"steps": 50, "batch_real": 32, "iterates": 1},
    "cafe": {"steps": 6, "batch_real": 32, "queries": 16, "window": 3, "iterates": 1},
    "tgdd": {"steps": 300, "batch_real": 32, "epochs": 6, "iterates": 1},
    "kip": {"kernel": "conv", "depth": 2, "steps": 50, "target": 100, "iterates": 1},
    "bptt": {
        **{"steps": 120, "window": 15, "max_updates": 45, "alpha": 0.02},
        **{"image_lr": 0.2, "target": 256, "iterates": 1},
    },
    "random": {},
    "herding": {"epochs": 6},
    "forgetting": {"epochs": 6},
}


@dataclass(frozen=True)
class Recipe:
    """A whole run: all three stages and the evaluation."""

    profile: str  # smoke, cpu, colab or paper: where the other defaults come from
    data: str  # cifar10-sample, cifar10, cifar100, or the path of an .npz
    teachers: TeacherConfig
    distill: MethodConfig  # the settings of the method
    protocol: Protocol
    method: str = "ddpp"  # the method; it decides which other settings there are
    zca: bool | None = None  # ZCA whitening; None: for images of at most 3 x 32 x 32 values
    validation: float = 0.1  # share of the training images held out for choosing an iterate
    repeats: Count = 5  # networks per evaluation
    # train the teachers to the end, also over epochs that the run cannot use
    all_epochs: bool = False

    def __post_init__(self):
        check_bounds(self, "the evaluation's ")
        object.__setattr__(self, "data", str(self.data))  # perhaps a Path
        if isinstance(self.validation, int | float) and not 0 <= self.validation < 1:
            raise Error(
                f"the validation share is {self.validation}: it must be at least 0 and below 1"
            )

    def marks(self, network: object = None) -> dict:
        """Mark all that it names and that is not ddpp's own, see `marks` in foundation/identity.py.

        - network: the name of the one that is evaluated. Default: the teachers' network.
        """
        own = marks_of(self.method, self.distill, network or self.teachers.network.name)
        found = own.get("custom", {})
        for part in (self.teachers, self.protocol):
            found |= marks(augmentation=part.augment, settings=part).get("custom", {})
        return {"custom": found} if found else {}

    def load(self, root: str | Path = "data", device: str | None = None) -> ImageData:
        """Load its data set, preprocessed as it says; see `load_data`."""
        return load_data(
            self.data, root=root, zca=self.zca, validation=self.validation, device=device
        )

    def stored_teachers(self) -> TeacherConfig:
        """Return the teachers to train: up to epoch I+ - 1 + K, the last that can be drawn.

        With all_epochs, up to their end. Raises Error for settings that cannot work.
        """
        method = METHODS[choose("method", self.method, METHODS)]
        choose("network", self.teachers.network.name, ARCHITECTURES)
        check_settings(self.method, self.distill)
        if not method.teachers:
            return self.teachers
        # as the settings of every method with `teachers` are
        used = cast(GivenTeachers, self.distill).teacher_epochs
        if used > self.teachers.epochs:
            reach = " and ".join(f"{name} {getattr(self.distill, name)}" for name in method.reach)
            many = len(method.reach) > 1
            raise Error(
                f"{reach} reach{'' if many else 'es'} epoch {used}, but the teachers stop at "
                f"{self.teachers.epochs}: train them longer or lower {'either' if many else 'it'}"
            )
        count = 1 if method.first else self.teachers.count
        epochs = self.teachers.epochs if self.all_epochs else used
        return replace(self.teachers, count=count, epochs=epochs)

    def check_fits(self, data: ImageData) -> None:
        """Raise an Error for data that the method's settings, or its network, do not fit."""
        METHODS[self.method].fits(data, self.teachers.network, self.distill)


def nothing_held_out(recipe: Recipe, what: str) -> Recipe:
    """Return the recipe with all training images. Raises Error for a share of them that is not the
    default.

    - what: uses it, for the message.
    """
    if recipe.validation not in (0.0, Recipe.validation):
        raise Error(f"{what} holds no images out: leave the validation share out")
    return replace(recipe, validation=0.0)


def recipe(
    profile: str = "smoke", data: str | Path | None = None, ipc: int = 1, method: str = "ddpp"
) -> Recipe:
    """Look up the settings of a profile for a data set, images per class and a method.

    - profile: smoke, cpu, colab or paper. smoke takes minutes on two CPU cores, with width 32. cpu
      has the paper's settings with 3 teachers and T = 500, which takes hours on two cores with one
      image per class. colab has 20 teachers and T = 1,000.
    - data: cifar10-sample, cifar10, cifar100, or the path of an .npz. Default: the bundled sample
      for smoke, else cifar10. Your own data set gets the settings of CIFAR-10.
    - ipc: images per class. A size that is not in the paper gets the settings of the next smaller
      one.
    - method: a name in METHODS.

    Raises Error for an unknown name.

    >>> recipe("paper", "cifar10", ipc=10).distill.max_start_epoch
    20
    """
    choose("profile", profile, PROFILES)
    data = str(data or ("cifar10-sample" if profile == "smoke" else "cifar10"))
    known = METHODS[choose("method", method, METHODS)]
    if profile == "smoke":
        network = NetworkConfig(width=32)
        teachers = TeacherConfig(count=3, epochs=6, lr=0.02, batch=128, network=network)
        settings = dict(known.settings) | SMOKE.get(method, {})
        protocol = Protocol(epochs=200)
        if ipc >= 10 and method in MORE:
            settings |= MORE[method]
            teachers = replace(teachers, epochs=12)
    else:
        count, steps, iterates = SCALES[profile]
        teachers, protocol = TeacherConfig(count=count), Protocol()
        settings = dict(known.settings) | published(method, data, ipc)
        if issubclass(known.config, DistillConfig):
            settings |= {"steps": steps, "iterates": iterates}
    return Recipe(
        profile=profile,
        data=data,
        teachers=teachers,
        distill=known.config(ipc=ipc, **settings),
        protocol=protocol,
        method=method,
    )


def published(method: str, data: str, ipc: int) -> dict:
    """Look up what a method's paper or code sets for a data set and size.

    Returns only what differs from the defaults of the method's config.
    """
    if issubclass(METHODS[method].config, DistillConfig):
        table = "cifar100" if Path(data).stem == "cifar100" else "cifar10"
        size = _smaller(ipc, [n for name, n in PAPER if name == table])
        return dict(zip(NAMES, PAPER[table, size], strict=True))
    if method in ("dc", "dsa"):
        return dict(zip(("outer", "inner"), LOOPS[_smaller(ipc, LOOPS)], strict=True))
    if method == "cafe":
        return {"augment": True}  # the paper's row has the numbers of CAFE with DSA's augmentation
    return {}


def _smaller(ipc: int, sizes: Iterable[int]) -> int:
    """Return the largest of the sizes that is not above ipc."""
    return max((n for n in sizes if n <= ipc), default=1)


def from_dict(stored: dict, kind: type = Recipe) -> Any:
    """Make the recipe that `asdict` turned into `stored`.

    Settings that are missing there, because they are newer, have their defaults. Raises Error for
    settings that this version does not know.
    """
    hints = get_type_hints(kind)
    names = {f.name for f in fields(kind)}
    if kind is Recipe and isinstance(stored, dict):
        hints["distill"] = METHODS[choose("method", stored.get("method", "ddpp"), METHODS)].config
    if not isinstance(stored, dict) or not stored.keys() <= names:
        raise Error("these are not the settings of a run of this version of ddpp")
    values: dict[str, Any] = dict(stored)
    for name, value in stored.items():
        if is_dataclass(hints[name]):
            values[name] = from_dict(value, hints[name])
        elif isinstance(value, list):
            values[name] = tuple(value)  # JSON has no tuples
    return kind(**values)
