"""The loop that all methods share: from a first state, step by step, to the last, always stoppable.

A *Method* knows how to step. A *Run* is what has happened so far. A *Checkpoint* is where that is
kept. The loop knows nothing of data, networks or teachers.
"""

import contextlib
import math
import re
import time
from collections.abc import Callable
from dataclasses import Field, dataclass, field, fields, make_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ddpp.foundation import files, processes
from ddpp.foundation.devices import check_training
from ddpp.foundation.errors import Count, Error, NotNegative, check_bounds, differences
from ddpp.foundation.identity import check_known, of_state

CHECKPOINT = "checkpoint"  # the kind of its file
# what a checkpoint names beside the state: no field of a state has one of these names
TAKEN = {"identity", "made_on", "set", "mean", "std", "matrix", "triangle"}
Iterates = dict[int, tuple[Tensor, Tensor]]  # {step: (images, alpha)}
SHOWN = {"loss": ".3f", "kept": ".1%", "alpha": ".4f"}  # of a record, in the progress bar


class Stopped(Error):
    """The run cannot make another step, because too much is pruned, say. Its checkpoint is kept."""


class State(Protocol):
    """All that a step reads from the steps before it.

    Two more fields are known where a run becomes a set: `labels` (N, classes), float32, are soft
    labels, and `logits` (N, classes) those whose softmax they are. All iterates get the last ones.

    A dataclass of tensors and numbers with at least these fields. One that is None is not there: it
    is in no file, and None must be its default.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def step(self) -> int: ...

    @property
    def images(self) -> Tensor: ...

    @property
    def alpha(self) -> Tensor: ...


S = TypeVar("S", bound=State)


class Beside(NamedTuple):
    """What a checkpoint holds beside the run, so that it can be read as a distilled set."""

    tensors: dict[str, Tensor]
    meta: dict


def milestones(steps: int, iterates: int) -> set[int]:
    """So many steps, evenly spaced, and the last among them."""
    return {math.ceil(steps * (i + 1) / iterates) for i in range(iterates)}


@dataclass(frozen=True)
class Method(Generic[S]):
    """How to distil: the first state, and a function from one state to the next."""

    begin: S
    step: Callable[[S], tuple[S, dict]]  # returns the next state, and what to record of this step
    steps: int
    iterates: int  # how many states along the way are kept, evenly spaced
    advise: Callable[["Run[S]"], str] = lambda run: ""  # what to change, if the run is stuck
    beside: Beside | None = None
    # whether a state is the same whatever `steps` is: then a finished run can be given more steps
    lasting: bool = True

    @property
    def milestones(self) -> set[int]:
        """The steps after which a state is kept."""
        return milestones(self.steps, self.iterates)


@dataclass(frozen=True)
class Run(Generic[S]):
    """What has happened so far. It never changes: `advance` returns another one."""

    state: S
    iterates: Iterates
    history: dict[str, Tensor] = field(default_factory=dict)  # (steps, ...), NaN for future steps
    machines: tuple[dict, ...] = ()  # that the steps were made on, in order
    stopped: bool = False  # by `on_step`, before the last step

    @classmethod
    def of(cls, method: Method[S]) -> "Run[S]":
        """The run before its first step."""
        return cls(method.begin, {0: _kept(method.begin)})

    @property
    def values(self) -> dict[str, Any]:
        """The fields of the state, by name. One that is None is not among them."""
        values = {f.name: getattr(self.state, f.name) for f in fields(self.state)}
        return {name: value for name, value in values.items() if value is not None}

    def on(self, machine: dict) -> "Run[S]":
        """Return the run, about to resume on a machine."""
        known = machine in self.machines
        return self if known else replace(self, machines=(*self.machines, machine))

    def advance(self, method: Method[S]) -> "Run[S]":
        """The run after one more step."""
        after, record = method.step(self.state)
        now = self.state.step
        if after.step != now + 1:
            raise Error(
                f"the step of this method goes from step {now} to step {after.step}: it must "
                "return a state with step=state.step + 1"
            )
        history = {
            name: _recorded(self.history.get(name), method.steps, now, torch.as_tensor(value))
            for name, value in record.items()
        }
        kept = {after.step: _kept(after)} if after.step in method.milestones else {}
        return replace(
            self, state=after, iterates=self.iterates | kept, history=self.history | history
        )

    def stop(self) -> "Run[S]":
        """The run, ended here: this state is kept, and the history ends with it."""
        now = self.state.step
        ended = {now: _kept(self.state)}
        history = {name: column[:now] for name, column in self.history.items()}
        return replace(self, iterates=self.iterates | ended, history=history, stopped=True)

    def copied(self) -> "Run[S]":
        """The run with tensors of its own, which may be changed."""
        values = {k: v.detach().clone() for k, v in self.values.items() if isinstance(v, Tensor)}
        return replace(
            self,
            state=replace(self.state, **values),
            iterates={at: (x.clone(), alpha.clone()) for at, (x, alpha) in self.iterates.items()},
            history={name: column.clone() for name, column in self.history.items()},
        )

    def last(self, name: str) -> float:
        """What the last step recorded under a name."""
        return float(self.history[name][self.state.step - 1])


def _kept(state: State) -> tuple[Tensor, Tensor]:
    """Images and alpha of a state, as copies: a step may work in place."""
    return state.images.detach().clone(), state.alpha.detach().clone()


def _recorded(column: Tensor | None, steps: int, now: int, value: Tensor) -> Tensor:
    """A column of the history (steps, ...) with one more row. The first value decides its shape."""
    if column is None:
        column = torch.full((steps, *value.shape), math.nan, dtype=torch.float32)
    column = column.clone()
    column[now] = value.detach()
    return column


@dataclass(frozen=True)
class Saving:
    """Where and when a run is saved, and who hears of it."""

    checkpoint: str | Path | None = None  # the file; None: nowhere
    save_steps: Count | None = None  # every so many steps,
    save_minutes: NotNegative = 1.0  # and whenever so many minutes have passed
    progress: bool = True  # whether a progress bar is shown
    report: Callable[[str], None] = lambda line: None  # called with what the run does, in words
    # called with a copy of the run after each step; the run stops there if it returns True
    on_step: Callable[[Run], object] | None = None

    def __post_init__(self):
        check_bounds(self)


class Checkpoint(Generic[S]):
    """The file in which a run is kept, and the identity that it must have."""

    def __init__(self, saving: Saving, identity: dict, beside: Beside | None = None):
        self.path, self.every = saving.checkpoint, (saving.save_steps, 60 * saving.save_minutes)
        self.identity, self.beside = identity, beside
        self.saved = time.monotonic()

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Hold the file against other runs, which would write theirs over it."""
        if self.path is None or processes.rank():
            return contextlib.nullcontext()
        files.check_writable(self.path)
        return files.lock(self.path, wait=False)

    def load(self, method: Method[S]) -> Run[S] | None:
        """Read the run that was saved, on the device of its method; None if there is none.

        It may have been saved with fewer steps ahead of it. Raises Error for a damaged file, for a
        run of another identity, and for one that is already further than the method goes.
        """
        if self.path is None or not Path(self.path).exists():
            return None
        tensors, meta = read_checkpoint(self.path, self.identity, method.lasting)
        self._check_iterates(tensors, meta, method)
        begin, device = method.begin, method.begin.images.device
        values = {
            f.name: tensors[f.name].to(device) if f.name in tensors else meta[f.name]
            for f in fields(begin)
            if f.name in tensors or f.name in meta
        }
        state = type(begin)(**values)
        if state.step > method.steps:
            raise Error(
                f"the checkpoint {self.path} is at step {state.step}, beyond the {method.steps} "
                "steps asked for: ask for more, or choose another output"
            )
        iterates, history = unpack(tensors)
        iterates = {at: (x.to(device), alpha.to(device)) for at, (x, alpha) in iterates.items()}
        history = {name: _resized(column, method.steps) for name, column in history.items()}
        return Run(state, iterates, history, tuple(meta["made_on"]))

    def _check_iterates(self, tensors: dict, meta: dict, method: Method[S]) -> None:
        """Raise an Error if this many steps were begun with other iterates, and some are gone."""
        then, now = (of.get("config", {}) for of in (meta["identity"], self.identity))
        kept, _ = unpack(tensors)
        gone = {at for at in method.milestones if at <= meta["step"]} - kept.keys()
        alike = then.get("steps") == now.get("steps")  # else it was extended, and lacks some
        if gone and alike and then.get("iterates") != now.get("iterates"):
            raise Error(
                f"the checkpoint {self.path} was begun with iterates {then.get('iterates')}: the "
                f"state after step {min(gone)} was not kept. Ask for the same again, or choose "
                "another output"
            )

    def save(self, run: Run[S]) -> None:
        """Write the run, all or nothing, and what belongs beside it. Under torchrun rank 0 does."""
        self.saved = time.monotonic()
        if self.path is not None and not processes.rank():
            write_checkpoint(self.path, run, self.identity, self.beside)

    def save_if_due(self, run: Run[S]) -> None:
        """Write the run if enough steps or minutes have passed since the last time."""
        steps, seconds = self.every
        due = bool(steps) and run.state.step % steps == 0
        if due or time.monotonic() - self.saved > seconds:
            self.save(run)


def _resized(column: Tensor, steps: int) -> Tensor:
    """A column of the history for this many steps: NaN for those to come."""
    more = column.new_full((max(0, steps - len(column)), *column.shape[1:]), math.nan)
    return torch.cat([column[:steps], more])


def run(method: Method[S], identity: dict, machine: dict, saving: Saving) -> Run[S]:
    """Make all steps of a method, or those that its checkpoint lacks.

    - method: how to step.
    - identity: what the outcome is a function of. A checkpoint with another one is refused.
    - machine: what the steps are made on. All that a run saw are recorded.
    - saving: the checkpoint, and who hears of the progress.

    Returns the run after the last step, or after the one at which `saving.on_step` returned True.
    Raises Stopped, with advice, if the run is stuck, Busy if another run has this checkpoint, and
    Error for a method that its checkpoint would not recognize. After Ctrl-C or an Error all steps
    so far are in the checkpoint, and the same call resumes from it. With more steps than before,
    the call resumes where the run had ended.
    """
    _check_state(method.begin)
    processes.check_joined()
    check_training()
    if saving.checkpoint is not None:
        check_known(identity)
    checkpoint = Checkpoint[S](saving, identity, method.beside)
    with checkpoint.held():
        return _run(method, checkpoint, machine, saving)


def _run(method: Method[S], checkpoint: Checkpoint[S], machine: dict, saving: Saving) -> Run[S]:
    run = _begun(method, checkpoint, machine, saving)
    quiet = not saving.progress or processes.rank() > 0
    bar = tqdm(
        total=method.steps, initial=run.state.step, desc="distil", unit="step", disable=quiet
    )
    try:
        with bar:
            while run.state.step < method.steps:
                run = run.advance(method)
                shown = {k: f"{run.last(k):{f}}" for k, f in SHOWN.items() if k in run.history}
                bar.set_postfix(shown, refresh=False)
                bar.update()
                stop = saving.on_step(run.copied()) if saving.on_step else None
                _refuse_stuck(method, run)
                if _is_true(stop) and run.state.step < method.steps:
                    saving.report(f"stopped by on_step after step {run.state.step}")
                    break
                checkpoint.save_if_due(run)
    except BaseException:  # Ctrl-C, an Error, or one in on_step: the steps so far are not lost
        checkpoint.save(run)
        raise
    checkpoint.save(run)
    return run if run.state.step == method.steps else run.stop()


def _is_true(answer: object) -> bool:
    """Whether `on_step` has answered True: Python's, NumPy's or PyTorch's, and not a number."""
    if isinstance(answer, Tensor):
        return answer.dtype == torch.bool and answer.numel() == 1 and bool(answer)
    return isinstance(answer, bool | np.bool_) and bool(answer)


def _begun(method: Method[S], checkpoint: Checkpoint[S], machine: dict, saving: Saving) -> Run[S]:
    """Return the run to resume."""
    run = checkpoint.load(method)
    if run is None:
        return Run.of(method).on(machine)
    at = f"step {run.state.step} of {method.steps}"
    saving.report(f"resuming from {at}, saved in {saving.checkpoint}")
    if machine not in run.machines:
        engine = machine.get("engine")
        here = [one["engine"] for one in run.machines if one | {"engine": engine} == machine]
        where = f"by the engine {here[-1]}" if here else "elsewhere"
        alone = f"of {engine}" if here else "on one machine"
        saving.report(
            f"the steps before were made {where}: the bits may differ from a run {alone} alone"
        )
    _refuse_stuck(method, run)
    return run.on(machine)


def _check_state(begin: State) -> None:
    """Raise an Error for a first state that files could not keep."""
    for name in (f.name for f in fields(begin)):
        value, plain = getattr(begin, name), (Tensor, bool, int, float, str, type(None))
        if type(value) not in plain and not isinstance(value, Tensor):
            raise Error(
                f"the field {name} of the state is a {type(value).__name__}: make it a tensor, or "
                "a number of Python"
            )
        if name in ("images", "alpha") and not isinstance(value, Tensor):
            raise Error(f"the field {name} of the state must be a tensor, as torch.tensor({value})")
    if clash := sorted(TAKEN & {f.name for f in fields(begin)}):
        raise Error(
            f"the state has a field {clash[0]}, and files keep something else under this name: "
            "give the field another one"
        )


def _refuse_stuck(method: Method[S], run: Run[S]) -> None:
    if run.state.step and (advice := method.advise(run)):
        raise Stopped(advice)


def write_checkpoint(path: str | Path, run: Run, identity: dict, beside: Beside | None) -> None:
    """Write a run, all or nothing, with its identity and what belongs beside it."""
    tensors = {name: value for name, value in run.values.items() if isinstance(value, Tensor)}
    numbers = {name: value for name, value in run.values.items() if name not in tensors}
    meta = {**numbers, "identity": identity, "made_on": list(run.machines)}
    if beside:
        tensors, meta = beside.tensors | tensors, meta | {"set": beside.meta}
    files.write(path, CHECKPOINT, tensors | pack(run.iterates, run.history), meta)


def run_in(tensors: dict[str, Tensor], meta: dict) -> Run:
    """The run that `write_checkpoint` wrote, of whatever method."""
    values = {k: v for k, v in (tensors | meta).items() if "." not in k and k not in TAKEN}
    return Run(state_of(values), *unpack(tensors), machines=tuple(meta["made_on"]))


def state_of(values: dict[str, Any]) -> State:
    """A state with these fields, of whatever method."""
    return make_dataclass("State", values)(**values)


def read_checkpoint(
    path: str | Path, identity: dict, lasting: bool
) -> tuple[dict[str, Tensor], dict]:
    """A checkpoint's tensors and metadata, or an Error for one of another identity.

    lasting: whether one with another number of steps is of this identity.
    """
    tensors, meta = files.read(path, CHECKPOINT)
    if of_state(meta["identity"], lasting) != of_state(identity, lasting):
        raise Error(
            f"the checkpoint {path} belongs to a run with other settings, data or teachers "
            f"({differences(meta['identity'], identity)}): repeat that run's settings to resume "
            "with it, or choose another output"
        )
    return tensors, meta


def pack(iterates: Iterates, history: dict[str, Tensor]) -> dict[str, Tensor]:
    """Iterates and history as named tensors for a file."""
    tensors = {f"history.{name}": column for name, column in history.items()}
    for step, (images, alpha) in iterates.items():
        tensors |= {f"iterate.{step}.images": images, f"iterate.{step}.alpha": alpha}
    return tensors


def unpack(tensors: dict[str, Tensor]) -> tuple[Iterates, dict[str, Tensor]]:
    """The iterates and the history that `pack` named."""
    names = (re.fullmatch(r"iterate\.(\d+)\.images", name) for name in tensors)
    steps = sorted(int(match[1]) for match in names if match)
    of = lambda step: (tensors[f"iterate.{step}.images"], tensors[f"iterate.{step}.alpha"])
    history = {
        name.removeprefix("history."): column
        for name, column in tensors.items()
        if name.startswith("history.")
    }
    return {step: of(step) for step in steps}, history
