"""CAFE, aligning features (Wang et al., CVPR 2022).

Distilled and real images of a class should have the same mean features after every block of a
network, and distilled class centres should classify real images. A network trains on the distilled
images in between. Its accuracy on real images decides when each of the two loops ends.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ddpp.baselines import common, dsa
from ddpp.baselines.common import Problem, State
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.foundation.errors import Count, Error, Positive
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig, accuracy


@dataclass(frozen=True)
class CAFEConfig(common.BatchConfig):
    """The settings of CAFE, as in the published code."""

    steps: Count = 2000
    augment: bool = False
    init: str = "noise"
    discrimination: float = 0.01  # weight of the discrimination loss
    # of the losses of the features after each ReLU, and of the last features
    weights: tuple[float, ...] = (0.1, 0.1, 1.0, 2.0)
    network_lr: Positive = 0.01  # of the network, plain SGD
    batch: Count = 256  # distilled images per update of the network
    inner: Count = 1  # epochs of the network between two looks at its accuracy
    queries: Count = 128  # real images per class for such a look
    window: Count = 10  # looks that are compared
    # the image updates with a network end when its accuracies lie within this share,
    saturated: float = 0.04
    # and its training between two image updates when they spread over more than this
    changed: float = 0.03
    # looks after which either loop ends in any case (the published code has no such limit)
    most: Count = 100
    lasting: ClassVar[bool] = False  # the learning rate drops at shares of the steps


def distill(
    data: ImageData, network: NetworkConfig, config: CAFEConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` by aligning features, in a fresh network at each step.

    - data: the images to distil, preprocessed.
    - network: the kind of network whose features are compared.
    - config: steps, learning rates and weights (see CAFEConfig).
    - saving: checkpoints and progress bar.

    Raises Error if `config.weights` has another length than the network has layers of features.
    Source: Wang et al., CVPR 2022.
    """
    network_of = data.network(network)
    network_of.check_company(config.queries, "queries")
    layers = len(network_of.activations(network_of.initial(0), data.train.images[:2]))
    if len(config.weights) != layers:
        raise Error(
            f"there are {len(config.weights)} weights, but this network has {layers} layers of "
            f"features: give {layers}"
        )
    return common.distill("cafe", step, data, network, config, saving)


def step(state: State, problem: Problem[CAFEConfig]) -> tuple[State, dict]:
    """Update the images with one network until its accuracy saturates, and record the mean loss."""
    config = problem.config
    rng = generator(config.seed, "cafe", state.step)
    theta = problem.network.initial(derive(config.seed, "cafe", state.step))
    rate = config.image_lr * 0.5 ** sum(
        state.step >= share * config.steps for share in (0.6, 0.8, 0.9)
    )
    losses, looks = [], deque(maxlen=config.window)
    while len(losses) < config.most:
        loss, gradient = align(theta, state.images, problem, rng)
        state = common.descend(state, gradient, replace(config, image_lr=rate))
        losses.append(loss)
        looks.append(look(theta, problem, rng))
        if len(looks) == config.window and max(looks) - min(looks) < config.saturated:
            break
        theta = train_until_changed(theta, state.images, problem, rng)
    return replace(state, step=state.step + 1), {"loss": torch.stack(losses).mean()}


def align(
    theta: Tensor, images: Tensor, problem: Problem[CAFEConfig], rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Compute the loss of features and discrimination, and its gradient for the images."""
    images = images.detach().requires_grad_()
    pairs = [problem.pair(images, label, rng) for label in range(len(problem.members))]
    counts = [len(real) for real, _ in pairs]
    means, last = _real(theta, [real for real, _ in pairs], problem.network)
    mine = problem.network.activations(theta, torch.cat([distilled for _, distilled in pairs]))
    centres = [layer.unflatten(0, (len(counts), -1)).mean(1) for layer in mine]
    labels = torch.arange(len(counts), device=images.device).repeat_interleave(
        torch.tensor(counts, device=images.device)
    )
    loss = feature_loss(means, centres, problem.config.weights)
    loss = loss + problem.config.discrimination * discrimination_loss(last, labels, centres[-1])
    return loss.detach(), torch.autograd.grad(loss, images)[0]


@torch.no_grad()
def _real(theta: Tensor, images: list[Tensor], network: Flat) -> tuple[list[Tensor], Tensor]:
    """Compute the class means (classes, ...) of each layer, and the last features (n, d) of all.

    - images: of each class. Only one class is in the network at a time, unless it mixes a batch.
    """
    if network.mixes:
        whole = network.activations(theta, torch.cat(images))
        of_class = zip(*(layer.split([*map(len, images)]) for layer in whole), strict=True)
    else:
        of_class = (network.activations(theta, some) for some in images)
    found = [([layer.mean(0) for layer in layers], layers[-1]) for layers in of_class]
    means = zip(*(means for means, _ in found), strict=True)
    return [*map(torch.stack, means)], torch.cat([last for _, last in found])


def feature_loss(real: list[Tensor], centres: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    """Sum the weighted squared distances between class means (classes, ...) of each layer."""
    parts = (w * (a - b).square().sum() for w, a, b in zip(weights, real, centres, strict=True))
    return sum(parts, centres[0].new_zeros(()))


def discrimination_loss(features: Tensor, labels: Tensor, centres: Tensor) -> Tensor:
    """Sum the cross-entropy of real features (n, d), with distilled centres as the classifier.

    The logits are the inner products with the centres (classes, d).
    """
    return F.cross_entropy(features @ centres.T, labels, reduction="sum")


def look(theta: Tensor, problem: Problem[CAFEConfig], rng: torch.Generator) -> float:
    """Return the network's accuracy, in [0, 1], on equally many real images of each class."""
    queries = problem.config.queries
    real = [problem.real(label, queries, rng) for label in range(len(problem.members))]
    labels = torch.repeat_interleave(torch.tensor([len(images) for images in real]))
    images = torch.cat(real)
    return accuracy(problem.network, theta, images, labels.to(images.device), queries) / 100


def train_until_changed(
    theta: Tensor, images: Tensor, problem: Problem[CAFEConfig], rng: torch.Generator
) -> Tensor:
    """Train the network on the distilled images until its accuracy changes, or `most` looks."""
    config, looks = problem.config, deque(maxlen=problem.config.window)
    for _ in range(config.most):
        theta = dsa.train(theta, images, problem, rng)
        looks.append(look(theta, problem, rng))
        if len(looks) == config.window and max(looks) - min(looks) > config.changed:
            break
    return theta
