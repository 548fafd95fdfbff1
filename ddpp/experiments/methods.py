"""Every method that `ddpp distill --method NAME` knows, one line each."""

from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field
from functools import partial
from typing import Any, ClassVar, Protocol

from ddpp.baselines import bptt, cafe, common, dm, dsa, iadd, kip, selection, tgdd
from ddpp.baselines.selection import SelectionConfig
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.distilling import DistillConfig, check_config, fits, match_trajectories
from ddpp.foundation.errors import Error
from ddpp.foundation.identity import Table
from ddpp.foundation.loop import Saving
from ddpp.networks import NetworkConfig


class MethodConfig(Protocol):
    """The settings of a method: a frozen dataclass with at least these.

    One with `lasting = False` is of a method whose steps depend on their number: a finished run of
    it cannot be given more.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def ipc(self) -> int: ...

    @property
    def seed(self) -> int: ...


class GivenTeachers(MethodConfig, Protocol):
    """The settings of a method that is given teachers."""

    @property
    def teacher_epochs(self) -> int: ...  # the last epoch of theirs that it needs


class WithSteps(MethodConfig, Protocol):
    """The settings of a method that makes steps."""

    @property
    def steps(self) -> int: ...

    @property
    def iterates(self) -> int: ...


def enough_images(data: ImageData, network: NetworkConfig, config: MethodConfig) -> None:
    """Raise an Error if a class has fewer images than the distilled set."""
    data.draw(config.ipc, config.seed)


def _with_features(data: ImageData, network: NetworkConfig, config: MethodConfig) -> None:
    """Raise an Error for a class with too few images, or a network without features."""
    enough_images(data, network, config)
    data.network(network).check_features(data.train.images[:2])


@dataclass(frozen=True)
class Method:
    """A method that turns a data set into a few images per class."""

    matches: str  # in words, what is made equal
    config: type  # its settings, a dataclass with at least ipc and seed
    # of teachers or a NetworkConfig, and a config. Its files carry the method's name in METHODS
    run: Callable[[ImageData, Any, Any, Saving], DistilledDataset]
    check: Callable[[Any], None]  # raises an Error for settings that cannot work
    teachers: bool = False  # whether it is given trained teachers, or only the kind of network
    first: bool = False  # whether the first teacher is all it needs
    reach: tuple[str, ...] = ()  # the settings that decide how many epochs the teachers need
    # where they are not the config's defaults
    settings: Mapping[str, object] = field(default_factory=dict)
    # raises an Error for data or a network that the settings do not fit, before teachers are
    # trained
    fits: Callable[[ImageData, NetworkConfig, Any], None] = enough_images


_trajectories = partial(
    Method,
    config=DistillConfig,
    run=match_trajectories,
    check=check_config,
    teachers=True,
    reach=("max_start_epoch", "expert_epochs"),
    fits=fits,
)
_gradients = partial(Method, config=dsa.DSAConfig, run=dsa.distill, check=common.check)
_choice = partial(Method, config=SelectionConfig, check=common.check_one_process)
_one_teacher = partial(_choice, teachers=True, first=True, reach=("epochs",))
# settings that define the method; with another value it would be another method
FIXED = {
    "mtt": {"rule": "none", "leave_out": ()},
    "dc": {"augment": False},
    "dsa": {"augment": True},
}
UNUSED = {"random": ("epochs",)}  # settings that a method has, as its relatives do, and never reads

METHODS = Table(
    "method",
    {
        "ddpp": _trajectories(
            "training trajectories, without the parameters that are difficult to match"
        ),
        "mtt": _trajectories(
            "training trajectories",
            run=partial(match_trajectories, name="mtt"),
            settings=FIXED["mtt"],
        ),
        "iadd": _trajectories(
            "training trajectories, with a learned weight for each parameter",
            config=iadd.IADDConfig,
            run=iadd.distill,
            check=iadd.check,
        ),
        "dc": _gradients("gradients", settings=FIXED["dc"] | {"init": "noise"}),
        "dsa": _gradients("gradients, under the same augmentation"),
        "dm": Method("mean features in random networks", dm.DMConfig, dm.distill, common.check),
        "cafe": Method(
            "mean features after each layer, and class centres",
            cafe.CAFEConfig,
            cafe.distill,
            common.check,
        ),
        "tgdd": Method(
            "mean features along the teachers' trajectories, and their predictions",
            tgdd.TGDDConfig,
            tgdd.distill,
            common.check,
            teachers=True,
            reach=("epochs",),
            fits=tgdd.fits,
        ),
        "kip": Method(
            "the labels that a kernel regression predicts", kip.KIPConfig, kip.distill, kip.check
        ),
        "bptt": Method(
            "the labels that networks in training predict",
            bptt.BPTTConfig,
            bptt.distill,
            bptt.check,
        ),
        "random": _choice("nothing: random real images", run=selection.choose_random),
        "herding": _one_teacher(
            "mean features, by choosing real images", run=selection.herding, fits=_with_features
        ),
        "forgetting": _one_teacher("nothing: images often forgotten", run=selection.forgetting),
    },
)


def check_settings(name: str, config: MethodConfig) -> None:
    """Raise an Error for settings with which a method cannot work, or would be another one."""
    METHODS[name].check(config)
    for key in UNUSED.get(name, ()):
        if getattr(config, key) != getattr(METHODS[name].config, key):
            raise Error(f"{name} makes no use of {key}: leave it out")
    for key, value in FIXED.get(name, {}).items():
        if getattr(config, key) != value:
            raise Error(
                f"{key} is {getattr(config, key)}, but {name} has {value}, or it would be another "
                "method: leave it out, or choose the method that has it"
            )
