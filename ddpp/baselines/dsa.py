"""DC, gradient matching, and DSA, the same with one augmentation for both sides.

A class's distilled and real images should change a network in the same direction. Sources: Zhao,
Mopuri & Bilen, ICLR 2021 (DC); Zhao & Bilen, ICML 2021 (DSA).
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.baselines import common
from ddpp.baselines.common import Problem, State
from ddpp.data import ImageData
from ddpp.data.augmentation import augment, draw
from ddpp.distilled import DistilledDataset
from ddpp.foundation.errors import Count, Positive
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig
from ddpp.unrolling.checks import check_derivatives

# (outer, inner) as published, by ipc
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}
TINY = 1e-6  # added to the norms, as published


@dataclass(frozen=True)
class DSAConfig(common.BatchConfig):
    """The settings of DSA, as published for one image per class; DC: augment False, init noise."""

    outer: Count = 1  # image updates with one network
    inner: Count = 1  # epochs of the network on the distilled images between them
    network_lr: Positive = 0.01  # of the network, plain SGD
    batch: Count = 256  # distilled images per update of the network


def distill(
    data: ImageData, network: NetworkConfig, config: DSAConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` by matching gradients.

    Each step has a fresh network, which trains on the distilled images.

    - data: the images to distil, preprocessed.
    - network: the kind of network whose gradients are compared.
    - config: steps, loops and learning rates (see DSAConfig). Without `augment` the method is DC.
    - saving: checkpoints and progress bar.

    Raises Error for settings that cannot work. Source: Zhao & Bilen, ICML 2021.
    """
    flat = data.network(network)
    check_derivatives(flat, data.shape, len(data.classes))
    flat.check_company(config.ipc, "ipc")
    flat.check_company(config.batch_real, "batch_real")
    return common.distill("dsa" if config.augment else "dc", step, data, network, config, saving)


def step(state: State, problem: Problem[DSAConfig]) -> tuple[State, dict]:
    """Make `outer` image updates with one network, and record the mean loss per class."""
    config, network = problem.config, problem.network
    rng = generator(config.seed, "dsa", state.step)
    theta = network.initial(derive(config.seed, "dsa", state.step))
    losses = []
    for update in range(config.outer):
        if update:
            theta = train(theta, state.images, problem, rng)
        loss, gradient = match(theta, state.images, problem, rng)
        state = common.descend(state, gradient, config)
        losses.append(loss)
    loss = torch.stack(losses).mean() / len(problem.members)
    return replace(state, step=state.step + 1), {"loss": loss}


def match(
    theta: Tensor, images: Tensor, problem: Problem[DSAConfig], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Compute the distance between gradients over all classes, and its gradient for the images."""
    images, theta = images.detach().requires_grad_(), theta.detach().requires_grad_()
    total, towards = images.new_zeros(()), torch.zeros_like(images)
    for label in range(len(problem.members)):
        real, mine = problem.pair(images, label, rng)
        goal = class_gradient(problem.network, theta, real, label)
        ours = class_gradient(problem.network, theta, mine, label, create_graph=True)
        loss = distance(problem.network, goal, ours)
        towards += torch.autograd.grad(loss, images)[0]
        total += loss.detach()
    return total, towards


def class_gradient(
    network: Flat, theta: Tensor, x: Tensor, label: int, create_graph: bool = False
) -> Tensor:
    """Compute the gradient (p,) of the cross-entropy on images of one class."""
    labels = torch.full((len(x),), label, device=x.device)
    return torch.autograd.grad(
        F.cross_entropy(network(theta, x), labels), theta, create_graph=create_graph
    )[0]


def distance(network: Flat, goal: Tensor, ours: Tensor) -> Tensor:
    """Sum 1 - cos between two gradients (p,) over each output of each layer.

    As in the published code, vectors (biases, and the scales of normalization) have no part in it.
    Source: Eq. (10) of Zhao et al. (2021).
    """
    total = ours.new_zeros(())
    for a, b in zip(
        network.unflatten(goal).values(), network.unflatten(ours).values(), strict=True
    ):
        if a.dim() > 1:
            a, b = a.flatten(1), b.flatten(1)
            total = total + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + TINY)).sum()
    return total


def train(theta: Tensor, images: Tensor, problem: Problem[Any], rng: torch.Generator) -> Tensor:
    """Train a network (p,) for `inner` epochs of plain SGD on the distilled images.

    They are augmented if the method augments. CAFE's settings fit, too.
    """
    config = problem.config
    problem.network.check_batches(len(images), config.batch)
    for _ in range(config.inner):
        order = torch.randperm(len(images), generator=rng).to(images.device)
        for index in order.split(config.batch):
            x = augment(images[index], draw(len(index), rng)) if config.augment else images[index]
            theta = theta.detach().requires_grad_()
            loss = F.cross_entropy(problem.network(theta, x), problem.labels[index])
            theta = theta - config.network_lr * torch.autograd.grad(loss, theta)[0]
    return theta.detach()
