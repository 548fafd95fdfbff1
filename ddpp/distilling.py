"""Stage C: Algorithm 1, line by line. Stoppable at any moment, and proof against steps that cannot
be taken.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

import torch
from torch import Tensor

from ddpp.data import ImageData, Split
from ddpp.distilled import DistilledDataset
from ddpp.foundation import loop, processes
from ddpp.foundation.devices import made_on
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import of_run
from ddpp.foundation.seeds import generator
from ddpp.pruning import RULES, keep_mask, masked_loss
from ddpp.teachers import Teachers
from ddpp.unrolling import ENGINES, Updates, choose_engine, draw_updates, unroll

MAX_SKIPPED = 20  # steps in a row that could not be taken, after which the run stops with advice


@dataclass(frozen=True)
class DistillConfig:
    """The settings of Algorithm 1, with the paper's symbols."""

    ipc: int = 1  # images per class
    steps: int = 5000  # T, distillation steps
    student_steps: int = 50  # J, updates of the student in one step
    expert_epochs: int = 2  # K, epochs of the teacher that J updates are to match
    max_start_epoch: int = 2  # I+, start epochs are drawn from 0 ... I+ - 1
    epsilon: float = 0.1  # similarity below which a parameter is difficult to match
    # how similarity is read: signed or magnitude; none (= MTT); a control (see ddpp/pruning.py)
    rule: str = "signed"
    image_lr: float = 100.0  # learning rate of the images
    alpha0: float = 0.01  # initial learning rate of the student
    alpha_lr: float = 1e-7  # learning rate of alpha
    momentum: float = 0.5  # of both
    batch: int | None = None  # distilled images per student update; None: all of them
    engine: str = "auto"  # auto, autograd, adjoint or compiled
    iterates: int = 5  # how many states along the way are kept, evenly spaced, to choose from
    trajectories: int = 1  # matched in each step, their gradients averaged; shared out over ranks
    seed: int = 0

    @property
    def teacher_epochs(self) -> int:
        """The last epoch that can be drawn, I+ - 1 + K."""
        return self.max_start_epoch - 1 + self.expert_epochs


@dataclass
class State:
    """Where a run is: all that a step reads from the steps before it. Replaced as a whole, never
    half.
    """

    step: int
    images: Tensor
    alpha: Tensor
    images_velocity: Tensor
    alpha_velocity: Tensor
    skipped: int = 0  # in a row


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
    on_step: Callable[[loop.Run], None] = lambda run: None,
) -> DistilledDataset:
    """Distil `data` with its `teachers` into config.ipc images per class.

    With a `checkpoint` path, the state is saved there every `save_steps` steps or `save_minutes`
    minutes, and on Ctrl-C; the same call goes on from it, on one machine's CPU to the same bits as
    a run that was never stopped (on a GPU, sums run in no fixed order). `report` hears which engine
    was taken and why. `on_step` is called with the `Run` after each step. The result's history has,
    per step: start epoch, teacher, loss, the unmasked (MTT) loss, kept fraction, alpha, skipped,
    and the kept fraction of each layer, `layers` (steps, layers); of several trajectories the mean,
    but start epoch and teacher of the first. Under torchrun every rank matches its share of
    config.trajectories, and rank 0 saves. Raises Error for settings that cannot work, a checkpoint
    of another run, and a run that has stopped making steps.
    """
    saving = loop.Saving(checkpoint, save_steps, save_minutes, progress, report, on_step)
    return run(Algorithm("ddpp", begin, step), data, teachers, config, saving)


def run(
    algorithm: Algorithm[Config, S],
    data: ImageData,
    teachers: Teachers,
    config: Config,
    saving: loop.Saving,
) -> DistilledDataset:
    """Distil with Algorithm 1, or with another method that matches trajectories."""
    check(config, data, teachers)
    start_set = data.draw(config.ipc, config.seed)
    engine, why = config.engine, "as asked for"
    if engine == "auto":
        network, batch = teachers.network, config.batch
        engine, why = choose_engine(network, *start_set, batch, config.student_steps)
    saving.report(f"engine: {engine} ({why})")
    step = lambda state: algorithm.step(state, start_set.labels, teachers, config, engine)
    begin, network = algorithm.begin(start_set, config), teachers.config.network
    method = loop.Method(begin, step, config.steps, config.iterates, _advice)
    identity = of_run(algorithm.name, config, teachers.config.made_from(data), network.name)
    done = loop.run(method, identity, made_on(data.device) | {"engine": engine}, saving)  # line 3
    return DistilledDataset.from_run(done, data, start_set.labels, network, identity)


def step(
    state: State, labels: Tensor, teachers: Teachers, config: DistillConfig, engine: str
) -> tuple[State, dict]:
    """Lines 4 to 16 of Algorithm 1: one distillation step. Returns the state after it and what
    there is to record.
    """
    mine = [
        match(state, labels, teachers, config, engine, m)
        for m in processes.share(config.trajectories)
    ]
    mean = processes.average(mine, config.trajectories)
    grads = (mean.pop("grad_images"), mean.pop("grad_alpha"))
    after = descend(state, *grads, mean["loss"], config)  # line 16
    first = {name: mine[0][name] for name in ("epoch", "teacher")}
    skipped = {"alpha": after.alpha, "skipped": 1 if after.skipped else 0}
    return after, mean | first | skipped


def descend(
    state: State, grad_images: Tensor, grad_alpha: Tensor, loss: Tensor, config: DistillConfig
) -> State:
    """Line 16: gradient descent with momentum for the images and alpha; a step that cannot be taken
    is skipped.
    """
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


def draw_piece(
    step: int, size: int, teachers: Teachers, config: DistillConfig, trajectory: int = 0
) -> tuple[Tensor, Tensor, Tensor, Tensor, Updates]:
    """Lines 4, 5 and 7, drawn anew for each step: the start epoch, the number of a teacher, its
    parameters there and K
    epochs on, (p,) each, and the student's updates on a set of `size` images."""
    rng = generator(config.seed, "step", step, *([trajectory] if trajectory else []))
    epoch = torch.randint(config.max_start_epoch, (), generator=rng)  # line 4: i < I+
    k = torch.randint(len(teachers), (), generator=rng)
    start = teachers.snapshot(int(k), int(epoch))  # line 5: theta~_i = theta_i
    teacher = teachers.snapshot(int(k), int(epoch) + config.expert_epochs)  # theta_{i+K}
    updates = (size, config.batch, config.student_steps, rng)
    return epoch, k, start, teacher, draw_updates(*updates)  # line 7


def match(
    state: State,
    labels: Tensor,
    teachers: Teachers,
    config: DistillConfig,
    engine: str,
    trajectory: int = 0,
) -> dict[str, Tensor]:
    """Lines 4 to 15 for one trajectory: the gradients of Eq. (8) for images and alpha, and what
    there is to record.
    """
    epoch, k, start, teacher, updates = draw_piece(
        state.step, len(labels), teachers, config, trajectory
    )

    def loss(student: Tensor) -> Tensor:
        # lines 11 to 13: Eqs. (3)-(7)
        keep = keep_mask(student, teacher, config.epsilon, config.rule)
        return masked_loss(student, teacher, start, keep)  # lines 14, 15: Eq. (8)

    # lines 6 to 10
    out = unroll(teachers.network, start, state.images, labels, state.alpha, updates, loss, engine)

    keep = keep_mask(out.student, teacher, config.epsilon, config.rule)
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


def check(config: DistillConfig, data: ImageData, teachers: Teachers) -> None:
    """Raise an Error for settings that cannot work, before any work is done."""
    check_config(config)
    if config.teacher_epochs > teachers.epochs:
        raise Error(
            f"max_start_epoch {config.max_start_epoch} and expert_epochs {config.expert_epochs} "
            "reach epoch "
            f"{config.teacher_epochs}, but these teachers stop at {teachers.epochs}: train them "
            "longer or lower either"
        )
    if teachers.identity["data"] != data.identity:
        raise Error(
            "these teachers were trained on another data set or preprocessing: train teachers on "
            "this one"
        )


def check_config(config: DistillConfig) -> None:
    """The part of `check` that needs neither data nor teachers."""
    for name in (
        "ipc",
        "steps",
        "student_steps",
        "expert_epochs",
        "max_start_epoch",
        "iterates",
        "trajectories",
    ):
        if getattr(config, name) < 1:
            raise Error(f"{name} is {getattr(config, name)}: it must be at least 1")
    if config.trajectories % processes.size():
        raise Error(
            f"{config.trajectories} trajectories per step cannot be shared evenly by "
            f"{processes.size()} processes: "
            f"choose a multiple of {processes.size()}, or start another number of processes"
        )
    for name in ("image_lr", "alpha0"):
        if not 0 < getattr(config, name) < math.inf:
            raise Error(f"{name} is {getattr(config, name)}: it must be positive")
    if not 0 <= config.alpha_lr < math.inf:
        raise Error(f"alpha_lr is {config.alpha_lr}: it must be at least 0")
    if not 0 <= config.momentum < 1:
        raise Error(f"momentum is {config.momentum}: it must be at least 0 and below 1")
    if config.batch is not None and config.batch < 1:
        raise Error(
            f"batch is {config.batch}: it must be at least 1, or left out for all images at once"
        )
    choose("rule", config.rule, RULES)
    choose("engine", config.engine, ["auto", *ENGINES])
    # says what is wrong with epsilon
    keep_mask(torch.zeros(1), torch.zeros(1), config.epsilon, config.rule)


def begin(start_set: Split, config: DistillConfig) -> State:
    """Lines 1 and 2: real images, and alpha_0."""
    images = start_set.images.clone()
    alpha = torch.tensor(config.alpha0, dtype=torch.float32, device=images.device)
    return State(0, images, alpha, torch.zeros_like(images), torch.zeros_like(alpha))


def _advice(run: loop.Run[State]) -> str:
    """What to change in a run that has stopped making steps; nothing for one that has not."""
    skipped = run.state.skipped
    if skipped <= MAX_SKIPPED and not skipped == run.state.step == len(run.history["loss"]):
        return ""
    if run.last("kept") == 0:
        return f"every parameter was pruned in {skipped} steps in a row: lower epsilon"
    if math.isfinite(run.last("loss")):
        return (
            f"alpha or the images became NaN or infinite, or alpha not positive, in {skipped} "
            f"steps in a row (alpha is {run.state.alpha:.2g}): lower alpha_lr and image_lr"
        )
    return (
        f"the loss was not finite in {skipped} steps in a row: lower image_lr, alpha_lr or alpha0, "
        "or check that the teachers move from epoch to epoch"
    )
