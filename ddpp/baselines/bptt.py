"""RaT-BPTT, backpropagation through a random window of a training (Feng et al., ICLR 2024).

A network that trains on the distilled images should classify real ones. Each step trains a fresh
network for a random number of updates, and differentiates its loss on real images through the last
of them, the window. No teachers are needed.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.baselines import common
from ddpp.data import ImageData, Split
from ddpp.data.augmentation import augment, draw
from ddpp.distilled import DistilledDataset
from ddpp.distilled.format import beside
from ddpp.foundation import loop
from ddpp.foundation.devices import made_on
from ddpp.foundation.errors import Count, Error, Positive, check_bounds, choose
from ddpp.foundation.identity import of_run
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig
from ddpp.refining import shortened
from ddpp.unrolling import (
    ENGINES,
    Updates,
    choose_engine,
    draw_updates,
    free_memory,
    unroll,
    update,
)
from ddpp.unrolling.checks import check_derivatives

CLIP = 2  # the gradient's norm is at most so many times its running mean, as published
MEMORY = 0.9  # share of the running mean that a step keeps, as published


@dataclass(frozen=True)
class BPTTConfig:
    """The settings of RaT-BPTT. Window, updates and Adam's rate as published for CIFAR-10."""

    ipc: Count = 1  # images per class
    steps: Count = 5000  # updates of the images, each with a fresh network
    window: Count = 60  # W, updates of the network that are differentiated: its last ones
    max_updates: Count = 200  # T: a network makes W to T updates, each number as often
    alpha: Positive = 0.01  # learning rate of the network, plain SGD; it goes with the set
    image_lr: Positive = 0.001  # Adam's
    batch: Count | None = None  # distilled images per update of the network; None: all of them
    target: Count = 1000  # real images, of all classes, that a network is to classify
    augment: bool = True  # distilled images and real ones, each with draws of their own
    init: str = "real"  # the images start as real ones, or as noise
    engine: str = "auto"  # auto, autograd, stored, adjoint or compiled
    iterates: Count = 5  # states along the way that are kept, evenly spaced, to choose from
    # of everything random in the distillation; ddpp distill takes it for the evaluation, too
    seed: int = 0

    def __post_init__(self):
        check_bounds(self)


@dataclass
class State:
    """All that a step reads from the steps before it."""

    step: int
    images: Tensor  # (N, C, H, W), class by class
    alpha: Tensor
    moments: Tensor  # Adam's two for the images (2, N, C, H, W)
    norm: Tensor  # (), running mean of the gradient's norm; 0 before the first step


def distill(
    data: ImageData, network: NetworkConfig, config: BPTTConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` by differentiating through the training of networks.

    - data: the images to distil, preprocessed.
    - network: the kind of network that is trained, a fresh one in each step.
    - config: window, steps and learning rates (see BPTTConfig).
    - saving: checkpoints and progress bar.

    The history has, per step: loss (the cross-entropy on real images, before the images move),
    updates (of the network) and norm (of the gradient, not clipped). Raises Error for settings that
    cannot work. Source: Feng et al., ICLR 2024.
    """
    check(config)
    flat, start = data.network(network), data.draw(config.ipc, config.seed)
    check_derivatives(flat, data.shape, len(data.classes))
    flat.check_company(config.batch, "batch")
    flat.check_company(config.target, "target")
    engine, why = config.engine, "as asked for"
    if engine == "auto":
        engine, why = choose_engine(flat, *start, config.batch, config.window, config.steps)
    saving.report(f"engine: {engine} ({why})")
    state, about = begin(start, config), beside(data, start.labels, network)
    advance = lambda at: step(at, start.labels, data.train, flat, config, engine)
    method = loop.Method(state, advance, config.steps, config.iterates, beside=about)
    identity = of_run("bptt", config, data.made_from(network), network.name)
    try:
        run = loop.run(method, identity, made_on(data.device) | {"engine": engine}, saving)
    finally:
        free_memory()
    return DistilledDataset.from_run(run, about, identity)


def check(config: BPTTConfig) -> None:
    """Raise an Error for settings that cannot work."""
    common.check(config)
    choose("engine", config.engine, ["auto", *ENGINES])
    if config.window > config.max_updates:
        raise Error(
            f"window {config.window} is longer than the {config.max_updates} updates of a network "
            "(max_updates): lower window or raise max_updates"
        )


def begin(start: Split, config: BPTTConfig) -> State:
    """Return the state before the first step."""
    images = start.started(config.init, config.seed).images
    alpha = torch.tensor(config.alpha, dtype=torch.float32, device=images.device)
    moments, norm = torch.zeros_like(torch.stack([images, images])), torch.zeros_like(alpha)
    return State(0, images, alpha, moments, norm)


def step(
    state: State, labels: Tensor, real: Split, network: Flat, config: BPTTConfig, engine: str
) -> tuple[State, dict]:
    """Make one update of the images by Adam, and record loss, updates and the gradient's norm.

    - labels: of the distilled images, (N,).
    - real: the images to distil.
    - network: as a function of its parameters.
    - engine: a name in ENGINES.

    Raises Stopped if the images become NaN or infinite.
    """
    rng = generator(config.seed, "bptt", state.step)
    theta = network.initial(derive(config.seed, "bptt", state.step)).to(state.images)
    updates = draw_window(len(labels), config, rng)
    x, y = draw_target(real, config, rng)
    loss = lambda student: F.cross_entropy(network(student, x), y)
    before, window = split(updates, config.window)
    before = before.to(state.images)  # so that no update waits for the host
    theta = train(network, theta, state.images, labels, state.alpha, before)
    out = unroll(network, theta, state.images, labels, state.alpha, window, loss, engine)
    clipped, norm = clip(out.grad_images, state.norm if state.step else None)
    moved, moments = common.adam(state.images, clipped, state.moments, config.image_lr, state.step)
    if not torch.isfinite(moved).all():
        raise loop.Stopped(
            f"the images became NaN or infinite in step {state.step + 1}: lower image_lr or alpha"
        )
    after = replace(state, step=state.step + 1, images=moved, moments=moments, norm=norm)
    length = {"updates": len(updates.batches), "norm": out.grad_images.norm()}
    return after, {"loss": out.loss} | length


def draw_window(size: int, config: BPTTConfig, rng: torch.Generator) -> Updates:
    """Draw a network's updates on a set of `size` images: W to T of them, the window at the end."""
    several = torch.randint(config.window, config.max_updates + 1, (), generator=rng)
    return draw_updates(size, config.batch, int(several), rng, config.augment)


def draw_target(real: Split, config: BPTTConfig, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw at most `target` real images (n, C, H, W) and their labels (n,), without replacement."""
    index = torch.randperm(len(real.labels), generator=rng)[: config.target].to(real.labels.device)
    x = real.images[index]
    return augment(x, draw(len(x), rng)) if config.augment else x, real.labels[index]


def split(updates: Updates, window: int) -> tuple[Updates, Updates]:
    """Split updates into those before the window, and the last `window` of them."""
    batches, draws = updates
    return Updates(batches[:-window], draws[:-window]), Updates(batches[-window:], draws[-window:])


def train(
    network: Flat, theta: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, updates: Updates
) -> Tensor:
    """Make updates by Eq. (2) that are not differentiated; return the parameters (p,) after them.

    Arguments as in `unroll`, with theta (p,) the parameters before the first update.
    """
    for batch, how in zip(*updates, strict=True):
        theta = update(network, theta, images[batch], labels[batch], how, alpha)
    return theta


def clip(towards: Tensor, mean: Tensor | None) -> tuple[Tensor, Tensor]:
    """Shorten a gradient to CLIP times the running mean of its norm.

    - towards: the gradient, of any shape.
    - mean: the running mean before this step, (); None: there was none.

    Returns the gradient and the running mean, this step's norm included. Source: the published
    code of Feng et al., ICLR 2024.

    >>> import torch
    >>> from ddpp.baselines import bptt
    >>> bptt.clip(torch.tensor([30.0, 40.0]), mean=torch.tensor(10.0))
    (tensor([16.8000, 22.4000]), tensor(14.))
    """
    norm = towards.norm()
    mean = norm if mean is None else MEMORY * mean + (1 - MEMORY) * norm
    return shortened(towards, CLIP * mean), mean
