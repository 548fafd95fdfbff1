"""The loop that all methods share: from real images, step by step, to a distilled dataset.
Stoppable at any moment.

A method brings the state it begins with and a function from one state to the next. A state is a
dataclass with the fields `step` (int), `images` and `alpha`, and whatever else a step reads from
the steps before it: tensors and numbers.
"""

import json
import math
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import Field, asdict, dataclass, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpp import ranks, store
from ddpp.data import ImageData
from ddpp.distilled import SQUARED_ERROR, DistilledDataset, pack, unpack
from ddpp.errors import Error, differences
from ddpp.identity import TABLES, marks
from ddpp.networks import NetworkConfig
from ddpp.teachers import TeacherConfig

KIND = "checkpoint"
Iterates = dict[int, tuple[Tensor, Tensor]]  # {step: (images, alpha)}
# of what a step records, in the progress bar
SHOWN = {"loss": ".3f", "kept": ".1%", "alpha": ".4f"}


class Stopped(Error):
    """A run that can make no more steps: of pruning too much, say. Its checkpoint and settings are
    in order.
    """


class MethodConfig(Protocol):
    """The settings of a method: a frozen dataclass with at least these."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def ipc(self) -> int: ...

    @property
    def seed(self) -> int: ...


class GivenTeachers(MethodConfig, Protocol):
    """The settings of a method that is given teachers."""

    @property
    def teacher_epochs(self) -> int: ...  # the last epoch of theirs that it needs


class State(Protocol):
    """Where a run is, a dataclass with at least these: all that a step reads from the steps before
    it.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def step(self) -> int: ...

    @property
    def images(self) -> Tensor: ...

    @property
    def alpha(self) -> Tensor: ...


S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Saving:
    """When a run's state is saved, and whether its progress is shown."""

    checkpoint: str | Path | None = None  # the file; None: nowhere
    save_steps: int | None = None  # every so many steps,
    save_minutes: float = 1.0  # and whenever so many minutes have passed
    progress: bool = True
    report: Callable[[str], None] = lambda line: None  # hears what the run does


def run(
    data: ImageData,
    labels: Tensor,
    state: S,
    step: Callable[[S], tuple[S, dict]],
    *,
    steps: int,
    iterates: int,
    columns: Mapping[str, tuple[int, ...]],
    identity: dict,
    network: dict,
    saving: Saving,
    here: dict,
    check: Callable[[S, dict], None] = lambda state, history: None,
) -> DistilledDataset:
    """Take `steps` steps from `state`, or go on from the checkpoint, and keep `iterates` states
    along the way.

    labels (N,), class by class; columns: the shape of each value that a step records; identity:
    what the outcome is a function of; network: a NetworkConfig as a dict; here: what the steps are
    made on, see `made_on`; `check` may raise Stopped after a step. Raises Error for a checkpoint of
    another identity.
    """
    milestones = {math.ceil(steps * (i + 1) / iterates) for i in range(iterates)} | {steps}
    history = {
        name: torch.full((steps, *shape), math.nan, dtype=torch.float32)
        for name, shape in columns.items()
    }
    kept, machines = {0: (state.images, state.alpha)}, []
    path, report = saving.checkpoint, saving.report
    if path is not None and Path(path).exists():
        state, kept, history, machines = _load(path, identity, state, data.device)
        report(f"going on from step {state.step} of {steps}, saved in {path}")
        if here not in machines:
            report(
                "the steps before were made elsewhere: the bits may differ from a run on one "
                "machine alone"
            )
    machines += [here] if here not in machines else []
    check(state, history)

    def save() -> None:
        if path is not None and ranks.rank() == 0:
            _save(path, identity, machines, state, kept, history)

    saved = time.monotonic()
    quiet = not saving.progress or ranks.rank() > 0
    with tqdm(total=steps, initial=state.step, desc="distil", unit="step", disable=quiet) as bar:
        try:
            while state.step < steps:
                after, record = step(state)
                if after.step in milestones:
                    kept = kept | {after.step: (after.images, after.alpha)}
                for name, value in record.items():
                    history[name][state.step] = value
                state = after
                shown = {
                    name: f"{record[name]:{form}}" for name, form in SHOWN.items() if name in record
                }
                bar.set_postfix(shown, refresh=False)
                bar.update()
                check(state, history)
                due = saving.save_steps and state.step % saving.save_steps == 0
                if due or time.monotonic() - saved > 60 * saving.save_minutes:
                    save()
                    saved = time.monotonic()
        except (KeyboardInterrupt, Error):  # the steps made so far are not lost
            save()
            raise
    save()
    return DistilledDataset(
        images=state.images,
        labels=getattr(state, "labels", labels),
        loss=SQUARED_ERROR
        if getattr(state, "labels", labels).is_floating_point()
        else None,  # learned by KIP
        alpha=state.alpha,
        whitening=data.whitening,
        classes=data.classes,
        network=network,
        iterates=kept,
        history=history,
        provenance=identity | data.provenance | {"made_on": machines},
    )


def identity(
    method: str, config: MethodConfig, source: TeacherConfig | NetworkConfig, data: ImageData
) -> dict:
    """What a run's outcome is a function of; its checkpoint and its result carry it. config: the
    method's settings;
    source: the teachers', for a method that has them, else the kind of network."""
    if isinstance(source, TeacherConfig):
        made_from, network = (
            {"teachers": source.identity(data), "teacher_count": source.count},
            source.network,
        )
    else:
        made_from, network = {"network": asdict(source), "images": data.identity}, source
    made_from |= marks_of(method, config, network)
    # as files give it back
    return json.loads(json.dumps({"method": method, "config": asdict(config)} | made_from))


def marks_of(method: str, config: MethodConfig, network: NetworkConfig) -> dict:
    """What a method, its settings and a network name that is not ddpp's own, see `marks`."""
    named = {
        field.name: getattr(config, field.name) for field in fields(config) if field.name in TABLES
    }
    return marks(
        method=method, network=network.name, augmentation=getattr(config, "augment", True), **named
    )


def made_on(device: torch.device) -> dict:
    """The device and the versions that a run depends on."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else platform.processor() or platform.machine()
    )
    return {
        "device": f"{device.type}: {name}",
        "versions": {
            "ddpp": version("ddpp"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def _save(
    path: str | Path,
    identity: dict,
    machines: list[dict],
    state: State,
    kept: Iterates,
    history: dict[str, Tensor],
) -> None:
    values = {field.name: getattr(state, field.name) for field in fields(state)}
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in values.items() if name not in tensors}
    meta = {"identity": identity, **numbers, "made_on": machines}
    store.write(path, KIND, tensors | pack(kept, history), meta)


def read_checkpoint(path: str | Path, identity: dict) -> tuple[dict[str, Tensor], dict]:
    """A checkpoint's tensors and metadata; an Error for one of another identity."""
    tensors, meta = store.read(path, KIND)
    if meta["identity"] != identity:
        raise Error(
            f"the checkpoint {path} belongs to a run with other settings, data or teachers "
            f"({differences(meta['identity'], identity)}): repeat that run's settings to go on "
            "with it, or choose "
            "another output"
        )
    return tensors, meta


def _load(
    path: str | Path, identity: dict, begin: S, device: torch.device
) -> tuple[S, Iterates, dict[str, Tensor], list[dict]]:
    """What `_save` wrote: the state, as one of the kind of `begin`, the iterates, the history and
    the machines.
    """
    tensors, meta = read_checkpoint(path, identity)
    values = {
        f.name: tensors[f.name].to(device) if f.name in tensors else meta[f.name]
        for f in fields(begin)
    }
    kept, history = unpack(tensors)
    kept = {at: (images.to(device), alpha.to(device)) for at, (images, alpha) in kept.items()}
    return type(begin)(**values), kept, history, meta["made_on"]
