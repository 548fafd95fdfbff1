"""Stage C: Algorithm 1. `begin` is lines 1 and 2; `step` is lines 4 to 16.

`step` calls `draw_piece` (4, 5, 7) and `unroll` (6 to 10) through `match` (4 to 15), then `descend`
(16). A run can be stopped at any moment, and skips steps whose result is not finite.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from ddpp.data import STARTS, ImageData, Split
from ddpp.data.augmentation import Augmentation, as_augmentation, check_operations
from ddpp.distilled import DistilledDataset
from ddpp.distilled.format import beside
from ddpp.foundation import loop, processes
from ddpp.foundation.devices import check_training, made_on
from ddpp.foundation.errors import (
    Count,
    Error,
    NotNegative,
    Positive,
    Share,
    Whole,
    as_texts,
    check_bounds,
    check_kind,
    choose,
)
from ddpp.foundation.identity import TABLES, marks_of, of_run
from ddpp.foundation.seeds import generator
from ddpp.networks import Flat, NetworkConfig
from ddpp.pruning import (
    RULES,
    Rule,
    check_rule,
    keep_mask,
    masked_loss,
    matching_loss,
)
from ddpp.refining import (
    Step,
    averaged,
    keep_parts,
    leaving_out,
    limited,
    logits_of,
    start_epochs,
)
from ddpp.teachers import Teachers
from ddpp.unrolling import (
    ENGINES,
    Carried,
    Updates,
    choose_engine,
    draw_updates,
    free_memory,
    unroll,
)
from ddpp.unrolling.checks import check_derivatives

LOOK = 50  # steps between two looks at whether code of one's own has changed
MAX_SKIPPED = 20  # skipped steps in a row, after which the run stops with advice


@dataclass(frozen=True)
class DistillConfig:
    """The settings of Algorithm 1, with the paper's symbols."""

    ipc: Count = 1  # images per class
    steps: Count = 5000  # T, distillation steps
    student_steps: Count = 50  # J, updates of the student in one step
    expert_epochs: Count = 2  # K, epochs of the teacher that J updates are to match
    max_start_epoch: Count = 2  # I+, start epochs are drawn from 0 ... I+ - 1
    epsilon: Share = 0.1  # similarity below which a parameter is difficult to match
    # which parameters are pruned: a name in RULES, such as signed (the paper's), magnitude or none
    # (= MTT); or a function of your own of student, teacher and epsilon
    rule: Rule = "signed"
    image_lr: Positive = 100.0  # learning rate of the images
    alpha0: Positive = 0.01  # initial learning rate of the student
    alpha_lr: NotNegative = 1e-7  # learning rate of alpha
    momentum: Share = 0.5  # of images and alpha
    batch: Count | None = None  # distilled images per student update; None: all of them
    engine: str = "auto"  # auto, autograd, stored, adjoint or compiled
    iterates: Count = 5  # states along the way that are kept, evenly spaced, to choose from
    trajectories: Count = 1  # per step, their gradients averaged; torchrun shares them out
    # of everything random in the distillation; ddpp distill takes it for the evaluation, too
    seed: int = 0
    # A: all operations, none (False), or some: ("color", "crop")
    augment: Augmentation = field(default=True, metadata={"since": 2})
    # decay of a moving average of the images, which is then the result; 0: the images themselves
    ema: Share = field(default=0.0, metadata={"since": 3})
    # largest norm of the gradient of the images, which is shortened to it (with label_lr, of images
    # and logits together, the latter times label_lr / image_lr); None: any
    clip: Positive | None = field(default=None, metadata={"since": 3})
    # whether that gradient is divided by its norm; image_lr is then the length of the first step
    normalize: bool = field(default=False, metadata={"since": 3})
    # start epochs are drawn from here on
    min_start_epoch: Whole = field(default=0, metadata={"since": 3})
    # I+ of the first step, which grows to max_start_epoch; None: it is that from the start
    first_max_start_epoch: Count | None = field(default=None, metadata={"since": 3})
    # after so many steps it is max_start_epoch; None: it grows over all steps of the run
    expand_steps: Count | None = field(default=None, metadata={"since": 3})
    # parts of the network that are not matched, beside what the rule prunes: names of layers or
    # parameters as 0 or 0.bias, endings as bias, or kinds: vectors, matrices, convolutions
    leave_out: tuple[str, ...] = field(default=(), metadata={"since": 3})
    # learning rate of the logits of soft labels, which begin as a teacher's; None: hard labels
    label_lr: Positive | None = field(default=None, metadata={"since": 3})
    # real: the images start as real ones, as in Algorithm 1; noise: as noise
    init: str = field(default="real", metadata={"since": 3})

    def __post_init__(self):
        check_bounds(self)
        object.__setattr__(self, "rule", RULES.name_of(self.rule))
        object.__setattr__(self, "augment", as_augmentation(self.augment))
        object.__setattr__(self, "leave_out", as_texts(self.leave_out, "leave_out"))
        if self.first_max_start_epoch and not self.expand_steps:
            # said once: with more steps later, a step still draws from the same epochs
            object.__setattr__(self, "expand_steps", self.steps)

    @property
    def teacher_epochs(self) -> int:
        """The last epoch that can be drawn, I+ - 1 + K."""
        return self.max_start_epoch - 1 + self.expert_epochs

    @property
    def lasting(self) -> bool:
        """Whether a finished run can be given more steps: no iterate on the way has own labels."""
        return self.label_lr is None

    def start_epochs(self, step: int) -> range:
        """The epochs from which a step draws its start."""
        first, most = self.first_max_start_epoch or self.max_start_epoch, self.max_start_epoch
        return start_epochs(step, self.min_start_epoch, first, most, self.expand_steps or 1)


@dataclass
class State:
    """All that a step reads from the steps before it. It is replaced as a whole."""

    step: int
    images: Tensor
    alpha: Tensor
    images_velocity: Tensor
    alpha_velocity: Tensor
    skipped: int = 0  # in a row
    moving: Tensor | None = None  # the images that move, where `images` is their average
    logits: Tensor | None = None  # of learned labels (N, classes)
    logits_velocity: Tensor | None = None


Config = TypeVar("Config", bound=DistillConfig)
S = TypeVar("S", bound=State)


@dataclass(frozen=True)
class Algorithm(Generic[Config, S]):
    """A method that matches trajectories: its name, its first state, and its step."""

    name: str
    begin: Callable[[Split, Config], S]
    step: Callable[[S, Tensor, Teachers, Config, str], tuple[S, dict]]


def distill(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    *,
    checkpoint: str | Path | None = None,
    save_steps: int | None = None,
    save_minutes: float = 1.0,
    progress: bool = True,
    report: Callable[[str], None] = lambda line: None,
    on_step: Callable[[loop.Run], object] | None = None,
) -> DistilledDataset:
    """Distil `data` with its `teachers` into config.ipc images per class.

    - data: the images to distil. Random ones of each class, drawn by config.seed, are the start,
      or noise, see config.init.
    - teachers: stage A on the same data, with epochs 0 to I+ - 1 + K at least.
    - config: the settings of Algorithm 1.
    - checkpoint: a file for the state, saved every `save_steps` steps, every `save_minutes`
      minutes, and on Ctrl-C. The same call resumes from it: on one machine's CPU to the same bits
      as a run that was never stopped, on a GPU up to the order of sums. With more config.steps it
      continues after the last one. `DistilledDataset.load` reads the current set from it. Default:
      nothing is saved.
    - progress: whether a progress bar is shown.
    - report: called with lines of text: which engine is used, and from which step a run resumes.
    - on_step: called after each step with a copy of the `Run` so far: its `state` (step, images,
      alpha), `iterates` {step: (images, alpha)} and `history`. If it returns True the run stops
      there.

    The result's history has, per step: epoch (the start epoch), teacher, loss, unmasked (MTT's
    loss), kept (a fraction), alpha and skipped. `layers` is the kept fraction of each layer (steps,
    layers). With clip or normalize there is also norm, of the gradient of the images. Of several
    trajectories it has the mean, but epoch and teacher of the first. Under torchrun every rank
    matches its share of the trajectories, and rank 0 saves. The command line does not come in here
    but by `match_trajectories`, which has the signature of all methods.

    Raises Error for settings that cannot work, for a checkpoint of another run, and for a run that
    is stuck, with advice. Source: Algorithm 1 of the paper.
    """
    check_kind("data", data, ImageData)
    check_kind("teachers", teachers, Teachers)
    check_kind("config", config, DistillConfig)
    if config.expand_steps and config.expand_steps > config.steps:
        warnings.warn(
            f"start epochs grow over {config.expand_steps} steps, and this run has {config.steps}, "
            f"so it does not reach max_start_epoch {config.max_start_epoch}: set expand_steps, too",
            stacklevel=2,
        )
    saving = loop.Saving(checkpoint, save_steps, save_minutes, progress, report, on_step)
    return match_trajectories(data, teachers, config, saving)


def match_trajectories(
    data: ImageData,
    teachers: Teachers,
    config: DistillConfig,
    saving: loop.Saving,
    name: str = "ddpp",
) -> DistilledDataset:
    """Run Algorithm 1: `distill`, with the signature that all methods have.

    - name: of the method, which its files carry.
    """
    return run(Algorithm(name, begin, step), data, teachers, config, saving)


def run(
    algorithm: Algorithm[Config, S],
    data: ImageData,
    teachers: Teachers,
    config: Config,
    saving: loop.Saving,
) -> DistilledDataset:
    """Distil with Algorithm 1, or with another method that matches trajectories."""
    check(config, data, teachers)
    start_set = draw_start(data, config)
    engine, why = config.engine, "as asked for"
    if engine == "auto":
        network, batch = teachers.network, config.batch
        steps = config.student_steps, config.steps
        engine, why = choose_engine(network, *start_set, batch, *steps)
    if config.label_lr and engine == "compiled":
        engine, why = "adjoint", "compiled does not learn labels"
    saving.report(f"engine: {engine} ({why})")
    first, labels = algorithm.begin(start_set, config), start_set.labels
    network = teachers.config.network
    advance = lambda state: algorithm.step(state, labels, teachers, config, engine)
    if config.label_lr:
        first, advance = learning(first, start_set, algorithm, teachers, config, engine)
    if config.ema:
        advance = averaged(advance, config.ema)
    if brought := marks_of(algorithm.name, config, network.name):
        advance = constant(advance, brought["custom"], config.steps)
    about = beside(data, start_set.labels, network)
    iterates = config.iterates if config.lasting else 1
    method = loop.Method(first, advance, config.steps, iterates, _advice, about, config.lasting)
    made_from = teachers.made_from
    identity = of_run(algorithm.name, config, made_from, network.name, algorithm.step)
    try:  # line 3
        done = loop.run(method, identity, made_on(data.device) | {"engine": engine}, saving)
    finally:
        free_memory()
    return DistilledDataset.from_run(done, about, identity)


def begin(start_set: Split, config: DistillConfig) -> State:
    """Start from the images of `start_set` and alpha_0, lines 1 and 2."""
    images = start_set.images.clone()
    alpha = torch.tensor(config.alpha0, dtype=torch.float32, device=images.device)
    return State(0, images, alpha, torch.zeros_like(images), torch.zeros_like(alpha))


def step(
    state: State, labels: Tensor, teachers: Teachers, config: DistillConfig, engine: str
) -> tuple[State, dict]:
    """Make one distillation step, lines 4 to 16. Returns the next state and the record."""
    mine = [
        match(state, labels, teachers, config, engine, m)
        for m in processes.share(config.trajectories)
    ]
    mean = processes.average(mine, config.trajectories)
    grad_images, grad_alpha = mean.pop("grad_images"), mean.pop("grad_alpha")
    after = descend(state, grad_images, grad_alpha, mean["loss"], config)  # line 16
    first = {name: mine[0][name] for name in ("epoch", "teacher")}
    own = {"alpha": after.alpha, "skipped": 1 if after.skipped else 0}
    return after, mean | first | own | norm_of(grad_images, config)


def draw_piece(
    step: int, size: int, teachers: Teachers, config: DistillConfig, trajectory: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Updates]:
    """Draw what a step is about, lines 4, 5 and 7.

    Returns the start epoch, the index of a teacher, its parameters there and K epochs on, (p,)
    each, and the student's updates on a set of `size` images.
    """
    rng = generator(config.seed, "step", step, *([trajectory] if trajectory else []))
    window = config.start_epochs(step)
    epoch = window.start + torch.randint(len(window), (), generator=rng)  # line 4: i < I+
    k = torch.randint(len(teachers), (), generator=rng)
    start = teachers.snapshot(int(k), int(epoch))  # line 5: theta~_i = theta_i
    teacher = teachers.snapshot(int(k), int(epoch) + config.expert_epochs)  # theta_{i+K}
    updates = draw_updates(size, config.batch, config.student_steps, rng, config.augment)  # line 7
    return epoch, k, start, teacher, updates


def match(
    state: State,
    labels: Tensor,
    teachers: Teachers,
    config: DistillConfig,
    engine: str,
    trajectory: int = 0,
) -> dict[str, Tensor]:
    """Match one trajectory, lines 4 to 15: the gradients of Eq. (8), and what to record."""
    epoch, k, start, teacher, updates = draw_piece(
        state.step, len(labels), teachers, config, trajectory
    )
    rule = rule_of(config, teachers.network)

    def loss(student: Tensor) -> Tensor:
        # lines 11 to 15: Eqs. (3)-(8)
        return matching_loss(student, teacher, start, config.epsilon, rule)

    # lines 6 to 10
    out = unroll(teachers.network, start, state.images, labels, state.alpha, updates, loss, engine)

    # the same mask again, for the record: an engine returns the loss alone
    keep = keep_mask(out.student, teacher, config.epsilon, rule)
    return {
        "grad_images": out.grad_images,
        "grad_alpha": out.grad_alpha,
        "epoch": epoch,
        "teacher": k,
        "loss": out.loss,
        "unmasked": masked_loss(out.student, teacher, start, torch.ones_like(keep)),
        "kept": keep.float().mean(),
        "layers": torch.stack(
            [part.float().mean() for part in teachers.network.unflatten(keep).values()]
        ),
    }


def rule_of(config: DistillConfig, network: Flat) -> Rule:
    """Return the rule, which also prunes what is left out. Error for a part that is not there."""
    if not config.leave_out:
        return config.rule
    return leaving_out(config.rule, keep_parts(network.shapes, config.leave_out).to(network.device))


def descend(
    state: State, grad_images: Tensor, grad_alpha: Tensor, loss: Tensor, config: DistillConfig
) -> State:
    """Move images and alpha by gradient descent with momentum (line 16), or skip the step."""
    grad_images = limited(grad_images, config.clip, config.normalize)
    images_velocity = config.momentum * state.images_velocity + grad_images
    alpha_velocity = config.momentum * state.alpha_velocity + grad_alpha
    images = state.images - config.image_lr * images_velocity
    alpha = state.alpha - config.alpha_lr * alpha_velocity
    usable = torch.isfinite(loss) & torch.isfinite(images).all()
    usable = usable & torch.isfinite(alpha) & (alpha > 0)
    if not usable:
        return replace(state, step=state.step + 1, skipped=state.skipped + 1)
    return replace(
        state,
        step=state.step + 1,
        images=images,
        alpha=alpha,
        images_velocity=images_velocity,
        alpha_velocity=alpha_velocity,
        skipped=0,
    )


def norm_of(grad_images: Tensor, config: DistillConfig) -> dict[str, Tensor]:
    """Record the norm of a gradient that is limited, as it was before."""
    return {"norm": grad_images.norm()} if config.clip or config.normalize else {}


def constant(advance: Step[S], marks: Mapping[str, str], steps: int) -> Step[S]:
    """Return a step that refuses what is of one's own and not what it was at first.

    - marks: the fingerprints of all of it, see `marks_of`. The rule is looked at in each step, the
      rest now and then, as a network may have large constants on a GPU.
    - steps: of the run.
    """
    why = "reads a value that has changed in this run, so the run could not be resumed"

    def step(state: S) -> tuple[S, dict]:
        due = state.step % LOOK == 0 or state.step == steps - 1
        for name, mark in marks.items():
            kind = name.partition(" ")[0]
            if due or kind == "rule":
                TABLES[kind].check_unchanged({name: mark}, why)
        return advance(state)

    return step


def learning(
    state: S,
    start_set: Split,
    algorithm: Algorithm[Config, S],
    teachers: Teachers,
    config: Config,
    engine: str,
) -> tuple[S, Step[S]]:
    """Return a first state with logits, and a step that moves them behind the images, in rows.

    The logits begin as a random teacher's, at the last epoch that is used. Source: DATM (Guo
    et al., ICLR 2024). There they begin as the mean of all teachers, at the end of their training,
    and have a momentum of their own, 0.9.
    """
    assert config.label_lr
    images = start_set.images
    carried = Carried(len(images), images.shape[1:], config.label_lr / config.image_lr)
    k = int(torch.randint(len(teachers), (), generator=generator(config.seed, "labels")))
    theta = teachers.snapshot(k, config.teacher_epochs)
    logits = logits_of(teachers.network, theta, *start_set)

    def step(state: S) -> tuple[S, dict]:
        assert state.logits is not None and state.logits_velocity is not None
        rows = carried.pack(state.images, state.logits)
        velocity = carried.pack(state.images_velocity, state.logits_velocity)
        state = replace(state, images=rows, images_velocity=velocity)
        # to a step, `Carried` is as good as labels
        after, record = algorithm.step(state, cast(Tensor, carried), teachers, config, engine)
        images, logits = carried.split(after.images)
        images_velocity, logits_velocity = carried.split(after.images_velocity)
        moved = {"images": images, "images_velocity": images_velocity}
        return replace(after, **moved, logits=logits, logits_velocity=logits_velocity), record

    return replace(state, logits=logits, logits_velocity=torch.zeros_like(logits)), step


def draw_start(data: ImageData, config: DistillConfig) -> Split:
    """Draw the images and labels that a run starts from: real ones, or noise."""
    return data.draw(config.ipc, config.seed).started(config.init, config.seed)


def check(config: DistillConfig, data: ImageData, teachers: Teachers) -> None:
    """Raise an Error for settings that cannot work with this data and these teachers."""
    check_config(config)
    if config.teacher_epochs > teachers.epochs:
        raise Error(
            f"max_start_epoch {config.max_start_epoch} and expert_epochs {config.expert_epochs} "
            f"reach epoch {config.teacher_epochs}, but these teachers stop at {teachers.epochs}: "
            "train them longer or lower either"
        )
    teachers.check_data(data)
    _check_own(config, data, teachers.network)


def fits(data: ImageData, network: NetworkConfig, config: DistillConfig) -> None:
    """Raise an Error for settings that the data or the network do not fit.

    This is asked before teachers are trained.
    """
    data.draw(config.ipc, config.seed)
    _check_own(config, data, data.network(network))


def _check_own(config: DistillConfig, data: ImageData, network: Flat) -> None:
    """Raise an Error for a rule, parts or operations that cannot be used with this network here."""
    check_training()
    rule_of(config, network)
    check_rule(str(config.rule), network.size, data.device, config.epsilon)
    check_operations(config.augment, data.shape, data.device)
    check_derivatives(network, data.shape, len(data.classes))
    network.check_company(config.batch, "batch")


def check_config(config: DistillConfig) -> None:
    """Raise an Error for settings that cannot work, whatever the data and teachers are."""
    if config.trajectories % processes.size():
        raise Error(
            f"{config.trajectories} trajectories per step cannot be shared evenly by "
            f"{processes.size()} processes: choose a multiple of {processes.size()}, or start "
            "another number of processes"
        )
    if config.clip and config.normalize:
        raise Error(
            f"clip is {config.clip}, but with normalize the norm of every gradient is 1: leave out "
            "one of them"
        )
    _check_window(config)
    choose("rule", config.rule, RULES)
    choose("init", config.init, STARTS)
    choose("engine", config.engine, ["auto", *ENGINES])


def _check_window(config: DistillConfig) -> None:
    """Raise an Error for a window of start epochs that is empty or does not grow."""
    least, most = config.min_start_epoch, config.max_start_epoch
    first = config.first_max_start_epoch or most
    if first > most:
        raise Error(
            f"first_max_start_epoch {first} is above max_start_epoch {most}, to which it grows: "
            "lower it, or raise max_start_epoch"
        )
    if least >= first:
        which = (
            "max_start_epoch" if config.first_max_start_epoch is None else "first_max_start_epoch"
        )
        raise Error(
            f"min_start_epoch {least} leaves no epoch below {which} {first}: lower it, or raise "
            f"{which}"
        )
    if config.expand_steps and config.first_max_start_epoch is None:
        raise Error(
            "expand_steps says how long start epochs grow from first_max_start_epoch: give that, "
            "too, or leave it out"
        )


def _advice(run: loop.Run[S]) -> str:
    """What to change, if the run is stuck."""
    skipped, steps = run.state.skipped, len(run.history["loss"])  # the history has T rows
    all_skipped = skipped == run.state.step == steps  # in a run shorter than MAX_SKIPPED
    if skipped <= MAX_SKIPPED and not all_skipped:
        return ""
    if run.last("kept") == 0:
        return (
            f"every parameter was pruned in {skipped} steps in a row: lower epsilon, or let a rule "
            "of your own keep more"
        )
    if math.isfinite(run.last("loss")):
        return (
            f"alpha or the images became NaN or infinite, or alpha not positive, in {skipped} "
            f"steps in a row (alpha is {run.state.alpha:.2g}): lower alpha_lr and image_lr"
        )
    return (
        f"the loss was not finite in {skipped} steps in a row: lower image_lr, alpha_lr or alpha0, "
        "or check that the teachers move from epoch to epoch"
    )
