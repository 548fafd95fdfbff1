"""DM, distribution matching (Zhao & Bilen, WACV 2023).

In a random network, distilled and real images of a class should have the same mean features. No
network is trained, and nothing is differentiated twice.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ddpp.baselines import common
from ddpp.baselines.common import Problem, State
from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset
from ddpp.foundation.errors import Count, Positive
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat, NetworkConfig, in_batches


@dataclass(frozen=True)
class DMConfig(common.BatchConfig):
    """The settings of DM. Defaults as published for up to 50 images per class."""

    steps: Count = 20_000
    image_lr: Positive = 1.0


def distill(
    data: ImageData, network: NetworkConfig, config: DMConfig, saving: Saving = Saving()
) -> DistilledDataset:
    """Distil `data` by matching mean features, in a fresh random network at each step.

    - data: the images to distil, preprocessed.
    - network: the kind of network whose features are compared.
    - config: steps and learning rate (see DMConfig).
    - saving: checkpoints and progress bar.

    Raises Error for settings that cannot work. Source: Zhao & Bilen, WACV 2023.

    >>> import ddpp
    >>> from ddpp.baselines import dm
    >>> from ddpp.foundation.loop import Saving
    >>> data = ddpp.load_data("cifar10-sample", zca=False, device="cpu")
    >>> config = dm.DMConfig(steps=1, batch_real=8)
    >>> distilled = dm.distill(data, ddpp.NetworkConfig(width=1), config, Saving(progress=False))
    >>> distilled.images.shape
    torch.Size([10, 3, 32, 32])
    """
    return common.distill("dm", step, data, network, config, saving)


def step(state: State, problem: Problem) -> tuple[State, dict]:
    """Make one image update; record the mean loss per class."""
    rng = generator(problem.config.seed, "dm", state.step)
    theta = problem.network.initial(derive(problem.config.seed, "dm", state.step))
    images = state.images.detach().requires_grad_()
    pairs = [problem.pair(images, label, rng) for label in range(len(problem.members))]
    loss = feature_distance(problem.network, theta, pairs)
    (gradient,) = torch.autograd.grad(loss, images)
    after = common.descend(state, gradient, problem.config)
    return replace(after, step=state.step + 1), {"loss": loss.detach() / len(pairs)}


def feature_distance(network: Flat, theta: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum the squared distances between the mean features of real and distilled images. A scalar.

    - theta: the network's parameters, (p,).
    - pairs: for each class its real images (n, C, H, W) and its distilled ones (m, C, H, W).

    All classes are in one batch where the network normalizes over it, as in the published code.
    """
    real, mine = [real for real, _ in pairs], [mine for _, mine in pairs]
    counts = [len(images) for images in real]
    features = lambda images: network.features(theta, images)
    batch = sum(counts) if network.mixes else max(counts)
    found = in_batches(network, features, torch.cat(real), batch)
    means = torch.stack([each.mean(0) for each in found.split(counts)])
    return mean_distance(means, features(torch.cat(mine)))


def mean_distance(real: Tensor, features: Tensor) -> Tensor:
    """Sum the squared distances between mean features over classes.

    - real: means (classes, d).
    - features: of the distilled images (classes * ipc, d), class by class.
    """
    return (real - features.unflatten(0, (len(real), -1)).mean(1)).square().sum()
