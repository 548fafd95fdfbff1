"""KIP, Kernel Inducing Points (Nguyen et al., ICLR 2021 and NeurIPS 2021).

The distilled images are the support of a kernel ridge regression with the neural tangent kernel of
an infinitely wide network. They are learned so that the regression predicts the labels of real
images, the target. No network is trained.
"""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.baselines import common
from ddpp.baselines.ntk import KERNELS, REG, bytes_needed, predict
from ddpp.baselines.selection import LEARNING_RATE
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.distilled.format import beside
from ddpp.foundation import devices, loop
from ddpp.foundation.errors import Count, Error, Positive, check_bounds, choose
from ddpp.foundation.identity import of_run
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig


@dataclass(frozen=True)
class KIPConfig:
    """The settings of KIP. The network that is trained on the result has no part in them."""

    ipc: Count = 1  # images per class
    steps: Count = 1000  # updates of the images
    kernel: str = "fc"  # fc: fully connected; conv: 3x3 convolutions without pooling
    depth: Count = 1  # hidden layers of the kernel's network
    reg: Positive = REG  # of the regression, in units of its kernel's mean diagonal
    image_lr: Positive = 0.04  # Adam's
    learn_labels: bool = False  # also learn the labels; networks then regress on them
    label_lr: Positive = 0.01  # Adam's, for the labels
    target: Count = 1000  # real images that are predicted in each step, as many of each class
    init: str = "real"  # the images start as real ones, or as noise
    iterates: Count = 5  # how many states along the way are kept; with learned labels only the last
    # of everything random in the distillation; ddpp distill takes it for the evaluation, too
    seed: int = 0

    def __post_init__(self):
        check_bounds(self)

    @property
    def lasting(self) -> bool:
        """Whether a finished run can be given more steps: no iterate on the way has own labels."""
        return not self.learn_labels


@dataclass
class State:
    """All that a step reads from the steps before it."""

    step: int
    images: Tensor
    labels: Tensor  # (N,) classes, or (N, classes) learned
    alpha: Tensor
    moments: Tensor  # Adam's two for the images (2, N, C, H, W)
    label_moments: Tensor  # and for learned labels (2, N, classes)


def distill(
    data: ImageData, network: NetworkConfig, config: KIPConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` into the support of a kernel ridge regression.

    - data: the images to distil, preprocessed.
    - network: the kind of network that will be trained on the result. The kernel does not use it.
    - config: the kernel, steps and learning rates (see KIPConfig).
    - saving: checkpoints and progress bar.

    Raises Error for settings that cannot work, and for a kernel that does not fit in memory.
    Source: Nguyen et al., ICLR 2021 and NeurIPS 2021.
    """
    check(config)
    classes, start = len(data.classes), data.draw(config.ipc, config.seed)
    n = len(start.labels)
    needed = memory(n, config.target, data.shape, config.kernel, config.depth)
    there = room(data.device)
    if needed > there:
        raise Error(
            f"the kernel of {n} distilled and {config.target} real images takes about "
            f"{needed / 2**30:.1f} GiB, and {there / 2**30:.1f} are there for this run: lower "
            f"target or {'ipc' if config.kernel == 'fc' else 'depth, or use the kernel fc'}. (Runs "
            "side by side share the memory: with --jobs 1 a run has all of it)"
        )
    images = start.started(config.init, config.seed).images
    labels = centred(start.labels, classes) if config.learn_labels else start.labels
    state = State(
        0, images, labels, common.rate(LEARNING_RATE, data), _moments(images), _moments(labels)
    )
    iterates, lasting = config.iterates if config.lasting else 1, config.lasting
    about = beside(data, start.labels, network)
    advance = lambda at: step(at, data, config)
    method = loop.Method(state, advance, config.steps, iterates, beside=about, lasting=lasting)
    identity = of_run("kip", config, data.made_from(network), network.name)
    run = loop.run(method, identity, devices.made_on(data.device), saving)
    return DistilledDataset.from_run(run, about, identity)


def _moments(x: Tensor) -> Tensor:
    """Return Adam's two moments of a tensor before its first step."""
    return torch.zeros(2, *x.shape, dtype=torch.float32, device=x.device)


def step(state: State, data: ImageData, config: KIPConfig) -> tuple[State, dict]:
    """Make one update by Adam, on a random target."""
    rng, classes = generator(config.seed, "kip", state.step), len(data.classes)
    order = torch.randperm(len(data.train.labels), generator=rng).to(data.device)
    labels_in_order = data.train.labels[order]
    each = max(1, config.target // classes)
    index = torch.cat([order[labels_in_order == label][:each] for label in range(classes)])
    images, y = state.images.detach().requires_grad_(), centred(data.train.labels[index], classes)
    labels = (
        state.labels.detach().requires_grad_()
        if config.learn_labels
        else centred(state.labels, classes)
    )
    value = loss(
        images, labels, data.train.images[index], y, config.kernel, config.depth, config.reg
    )
    of = torch.autograd.grad(value, [images, labels] if config.learn_labels else [images])
    moved, moments = common.adam(images.detach(), of[0], state.moments, config.image_lr, state.step)
    after = replace(state, step=state.step + 1, images=moved, moments=moments)
    if config.learn_labels:
        learned, moments = common.adam(
            labels.detach(), of[1], state.label_moments, config.label_lr, state.step
        )
        after = replace(after, labels=learned, label_moments=moments)
    for name, values in (("image", after.images), ("label", after.labels)):
        if not torch.isfinite(values).all():
            raise loop.Stopped(
                f"the {name}s became NaN or infinite in step {after.step}: lower {name}_lr"
            )
    return after, {"loss": value.detach()}


def room(device: torch.device) -> int:
    """Return the bytes of memory that a CPU has for this process, or of a GPU those free."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    return devices.memory()


def check(config: KIPConfig) -> None:
    """Raise an Error for settings that cannot work."""
    common.check(config)
    choose("kernel", config.kernel, KERNELS)
    if config.label_lr != KIPConfig.label_lr and not config.learn_labels:
        raise Error("label_lr has no meaning without learn_labels: set that, or leave label_lr out")


def centred(labels: Tensor, classes: int) -> Tensor:
    """Turn labels (N,) into vectors (N, classes) to regress on: one-hot less 1 / classes."""
    return F.one_hot(labels, classes).float() - 1 / classes


def loss(
    support_x: Tensor,
    support_y: Tensor,
    target_x: Tensor,
    target_y: Tensor,
    kernel: str = "fc",
    depth: int = 1,
    reg: float = REG,
) -> Tensor:
    """Compute KIP's loss: half the mean squared error of the regression at the target. A scalar.

    The mean is over target images and classes. Differentiable in the support's images and labels.
    """
    predicted = predict(support_x, support_y, target_x, kernel, depth, reg)
    return 0.5 * (target_y - predicted).square().mean()


def memory(support: int, target: int, shape: tuple[int, int, int], kernel: str, depth: int) -> int:
    """Estimate the peak bytes of the loss and its gradient, for images of shape (C, H, W)."""
    own = bytes_needed(kernel, support, support, shape, depth, itemsize=8)
    return own + bytes_needed(kernel, support, target, shape, depth)
