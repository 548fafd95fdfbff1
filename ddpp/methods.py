"""Every method that `ddpp distill --method NAME` knows, one line each."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

from ddpp import selection
from ddpp.baselines import cafe, common, dm, dsa, iadd, kip
from ddpp.data import ImageData
from ddpp.distill import DistillConfig, check_config, distill
from ddpp.distilled import DistilledDataset
from ddpp.errors import Error
from ddpp.identity import Table
from ddpp.loop import Saving
from ddpp.networks import NetworkConfig
from ddpp.selection import SelectionConfig
from ddpp.teachers import Teachers


@dataclass(frozen=True)
class Method:
    """A way from a data set to a few images per class."""

    matches: str  # in words, what is made equal
    config: type  # its settings, a dataclass with at least ipc and seed
    run: Callable[[ImageData, Teachers | NetworkConfig, object, Saving], DistilledDataset]
    check: Callable[[object], None]  # raises an Error for settings that cannot work
    teachers: bool = False  # whether it is given trained teachers, or only the kind of network
    first: bool = False  # whether the first teacher is all it needs
    reach: tuple[str, ...] = ()  # the settings that decide how many epochs the teachers need
    settings: Mapping[str, object] = field(default_factory=dict)  # where they are not the config's defaults


def _match_trajectories(data, teachers, config, saving):
    return distill(data, teachers, config, **vars(saving))


def _choose_random(data, network, config, saving):
    return selection.random(data, config.ipc, asdict(network), config.seed)


def _herd(data, teachers, config, saving):
    return selection.herding(data, teachers, config)


def _choose_forgotten(data, teachers, config, saving):
    return selection.forgetting(data, teachers, config, saving)


_TRAJECTORIES = {"config": DistillConfig, "run": _match_trajectories, "check": check_config, "teachers": True}
_TRAJECTORIES |= {"reach": ("max_start_epoch", "expert_epochs")}
_IADD = {"config": iadd.IADDConfig, "run": iadd.distill, "check": iadd.check}
_CHOICE = {"config": SelectionConfig, "check": selection.check_config}
_ONE_TEACHER = {"teachers": True, "first": True, "reach": ("epochs",)}
_BATCHES = {"check": common.check}
_GRADIENTS = {"config": dsa.DSAConfig, "run": dsa.distill, **_BATCHES}
FIXED = {"mtt": {"rule": "none"}, "dc": {"augment": False}, "dsa": {"augment": True}}  # or it is another method

METHODS = Table(
    "method",
    {
        "ddpp": Method("training trajectories, without the parameters that are difficult to match", **_TRAJECTORIES),
        "mtt": Method("training trajectories", **_TRAJECTORIES, settings=FIXED["mtt"]),
        "iadd": Method("training trajectories, with a learned weight for each parameter", **_TRAJECTORIES | _IADD),
        "dc": Method("gradients", **_GRADIENTS, settings=FIXED["dc"] | {"init": "noise"}),
        "dsa": Method("gradients, under the same augmentation", **_GRADIENTS),
        "dm": Method("mean features in random networks", dm.DMConfig, dm.distill, **_BATCHES),
        "cafe": Method("mean features after each layer, and class centres", cafe.CAFEConfig, cafe.distill, **_BATCHES),
        "kip": Method("the labels that a kernel regression predicts", kip.KIPConfig, kip.distill, kip.check),
        "random": Method("nothing: random real images", run=_choose_random, **_CHOICE),
        "herding": Method("mean features, by choosing real images", run=_herd, **_CHOICE, **_ONE_TEACHER),
        "forgetting": Method("nothing: images often forgotten", run=_choose_forgotten, **_CHOICE, **_ONE_TEACHER),
    },
)


def check_settings(name: str, config) -> None:
    """Raise an Error for settings with which a method cannot work, or would be another one under its name."""
    METHODS[name].check(config)
    for key, value in FIXED.get(name, {}).items():
        if getattr(config, key) != value:
            raise Error(
                f"{key} is {getattr(config, key)}, but {name} has {value}, or it would be another method: leave it "
                "out, or choose the method that has it"
            )
