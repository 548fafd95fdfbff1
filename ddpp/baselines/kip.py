"""KIP, Kernel Inducing Points (Nguyen, Chen & Lee, ICLR 2021; Nguyen, Novak, Xiao & Lee, NeurIPS
2021).

The distilled images are the support of a kernel ridge regression with the neural tangent kernel of
an infinitely wide
network: they are learned so that the regression on them predicts the labels of real images, the
target. No network is trained.
"""

import math
from dataclasses import dataclass, replace

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.baselines import common
from ddpp.baselines.ntk import KERNELS, REG, bytes_needed, predict
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.foundation import loop
from ddpp.foundation.devices import made_on
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import of_run
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig


@dataclass(frozen=True)
class KIPConfig:
    """The settings of KIP. The network that is trained on the result has no part in them."""

    ipc: int = 1  # images per class
    steps: int = 1000  # updates of the images
    kernel: str = "fc"  # fc: fully connected; conv: 3x3 convolutions without pooling
    depth: int = 1  # hidden layers of the kernel's network
    reg: float = REG  # of the regression, in units of its kernel's mean diagonal
    image_lr: float = 0.04  # Adam's
    learn_labels: bool = False  # also learn the labels; networks then regress on them
    label_lr: float = 0.01  # Adam's, for the labels
    target: int = 1000  # real images that are predicted in each step, as many of each class
    init: str = "real"  # the images start as real ones, or as noise
    iterates: int = 5  # how many states along the way are kept; with learned labels only the last
    seed: int = 0


@dataclass
class State:
    """Where a run is: all that a step reads from the steps before it."""

    step: int
    images: Tensor
    labels: Tensor  # (N,) classes, or (N, classes) learned
    alpha: Tensor
    moments: Tensor  # Adam's two for the images (2, N, C, H, W)
    label_moments: Tensor  # and for learned labels (2, N, classes)


def distill(
    data: ImageData, network: NetworkConfig, config: KIPConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` into the support of a kernel regression. Raises Error for a kernel that would
    not fit in memory.
    """
    check(config)
    classes, start = len(data.classes), data.draw(config.ipc, config.seed)
    needed, there = (
        memory(len(start.labels), config.target, data.shape, config.kernel, config.depth),
        room(data.device),
    )
    if needed > there:
        raise Error(
            f"the kernel of {len(start.labels)} distilled and {config.target} real images takes "
            "about "
            f"{needed / 2**30:.1f} GiB, and {there / 2**30:.1f} are there: lower target or "
            "depth, or use the kernel fc"
        )
    images = common.begin(start, config)
    labels = centred(start.labels, classes) if config.learn_labels else start.labels
    moments = lambda x: torch.zeros(2, *x.shape, dtype=torch.float32, device=x.device)
    state = State(0, images, labels, common.alpha(data), moments(images), moments(labels))
    iterates = 1 if config.learn_labels else config.iterates
    method = loop.Method(state, lambda at: step(at, data, config), config.steps, iterates)
    identity = of_run("kip", config, data.made_from(network), network.name)
    run = loop.run(method, identity, made_on(data.device), saving)
    return DistilledDataset.from_run(run, data, run.state.labels, network, identity)


def step(state: State, data: ImageData, config: KIPConfig) -> tuple[State, dict]:
    """One update by Adam, on a random target."""
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
    if not torch.isfinite(after.images).all():
        raise loop.Stopped(f"the images left the numbers in step {after.step}: lower image_lr")
    return after, {"loss": value.detach()}


def room(device: torch.device) -> int:
    """Bytes of memory that the device has."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return psutil.virtual_memory().total


def check(config: KIPConfig) -> None:
    """Raise an Error for settings that cannot work."""
    common.check(config)
    choose("kernel", config.kernel, KERNELS)
    if not 0 < config.reg < math.inf:
        raise Error(f"reg is {config.reg}: it must be positive")


def centred(labels: Tensor, classes: int) -> Tensor:
    """Labels (N,) as vectors (N, classes) to regress on: one-hot less 1 / classes."""
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
    """KIP's loss: half the mean square of what the regression on the support misses at the target.
    A scalar.

    The mean is over target images and classes. Differentiable in the support's images and labels.
    """
    return (
        0.5
        * (target_y - predict(support_x, support_y, target_x, kernel, depth, reg)).square().mean()
    )


def memory(support: int, target: int, shape: tuple[int, int, int], kernel: str, depth: int) -> int:
    """Bytes at the peak of the loss and its gradient, for so many images of shape (C, H, W)."""
    return bytes_needed(kernel, support, target, shape, depth) + bytes_needed(
        kernel, support, support, shape, depth, itemsize=8
    )
