"""Training with differential privacy: noise limits what any attack can learn of a single image.

The gradient of each image is shortened to a norm. Their sum gets Gaussian noise in proportion to
this norm, so that it looks nearly the same with and without any one image. Source: DP-SGD of Abadi
et al., CCS 2016.
"""

import math
import warnings
from dataclasses import dataclass
from importlib.metadata import version

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, vmap

from ddpp.data.augmentation import augment, check_alone, check_operations, draw
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol
from ddpp.foundation.devices import check_training
from ddpp.foundation.errors import Count, Error, NotNegative, Positive, check_bounds
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import Flat


@dataclass(frozen=True)
class Noise:
    """What hides an image in a training. A number that cannot work raises an Error."""

    sigma: NotNegative  # standard deviation of the noise, in units of max_norm
    max_norm: Positive  # to which the gradient of an image is shortened
    images: Count  # about how many there are: a public number, equal for neighbouring sets

    def __post_init__(self):
        check_bounds(self, "the noise's ")

    def schedule(self, protocol: Protocol) -> tuple[float, int]:
        """Return the probability of an image to be in a batch, and how many batches there are."""
        batch = min(protocol.batch, self.images)
        return batch / self.images, protocol.epochs * math.ceil(self.images / batch)


def clipped_sum(
    network: Flat, theta: Tensor, images: Tensor, labels: Tensor, max_norm: float
) -> Tensor:
    """Compute the sum of the images' gradients, each shortened to a norm if it is longer, (p,).

    - network, theta: the function and its parameters (p,).
    - images: (n, C, H, W), preprocessed; there may be none.
    - labels: (n,), int64.
    - max_norm: the longest that the gradient of an image may be.

    Without one of the images the sum differs by at most max_norm. The loss is the cross-entropy.
    """

    def loss(theta: Tensor, image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(network(theta, image[None]), label[None])

    if not len(images):
        return torch.zeros_like(theta)
    each = vmap(grad(loss), in_dims=(None, 0, 0))(theta, images, labels)  # (n, p)
    return each.T @ (max_norm / each.norm(dim=1)).clamp(max=1)


def noisy_gradient(
    network: Flat,
    theta: Tensor,
    images: Tensor,
    labels: Tensor,
    noise: Noise,
    batch: float,
    rng: torch.Generator,
) -> Tensor:
    """Compute the mean gradient of a batch, under noise that hides each of its images, (p,).

    - network, theta, images, labels: as in `clipped_sum`.
    - noise: how much, and how long gradients may be.
    - batch: images that are expected in a batch. How many there are is a secret, too.
    - rng: of the noise, on the CPU.
    """
    total = clipped_sum(network, theta, images, labels, noise.max_norm)
    normal = torch.randn(theta.shape, generator=rng, dtype=torch.float32).to(theta)
    return (total + noise.sigma * noise.max_norm * normal) / batch


def train(
    network: Flat,
    distilled: DistilledDataset,
    protocol: Protocol,
    noise: Noise,
    seed: int,
    *path: int | str,
) -> Tensor:
    """Train a fresh network by DP-SGD, and return its parameters (p,).

    - distilled: its images, with classes as labels, and its alpha, the first learning rate.
    - protocol: as in `evaluating.train`. Each image is in a batch or not by a lot of its own, with
      the same probability: `batch` is the mean number.
    - noise: how much, and how long gradients may be.
    - seed, path: what all is drawn from. Anyone who knows them can subtract the noise.

    Raises Error for a network or an operation that cannot be used, see `check`. Source: Algorithm 1
    of Abadi et al., CCS 2016. Momentum and weight decay use nothing but the noisy gradients, so
    they reveal nothing more.
    """
    check_training()
    distilled = distilled.to(network.device).unfolded()
    check(network, protocol, distilled.images.shape[1:])
    images, labels, rate = distilled.images, distilled.labels, distilled.alpha
    share, steps = noise.schedule(protocol)
    theta = network.initial(derive(seed, *path))
    velocity = torch.zeros_like(theta)
    rng = generator(seed, *path, "batches")
    for step in range(steps):
        if step == (steps + 1) // 2:
            rate = rate / 10
        drawn = torch.rand(len(labels), generator=rng, dtype=torch.float32) < share
        drawn = drawn.to(labels.device)
        x, y = images[drawn], labels[drawn]
        if protocol.augment and len(y):
            x = augment(x, draw(len(y), rng, protocol.augment))
        gradient = noisy_gradient(network, theta, x, y, noise, share * noise.images, rng)
        theta, velocity = protocol.update(theta, velocity, gradient, rate)
    return theta


def check(network: Flat, protocol: Protocol, shape: tuple[int, ...]) -> None:
    """Raise an Error for a network, or an operation of one's own, that mixes the images of a batch,
    as batch normalization does. Then nothing holds for each image.

    - shape: of an image, (C, H, W).
    """
    if network.mixes:
        raise Error(
            f"the logits of the network '{network.name}' for one image depend on the other images "
            "of its batch, so it cannot be trained with a guarantee for each image: choose a "
            "normalization that does not mix them"
        )
    check_operations(protocol.augment, shape, network.device)
    check_alone(protocol.augment, shape, network.device)


@dataclass(frozen=True)
class Guarantee:
    """What holds for every attack: true positives are at most e^epsilon false ones, plus delta.

    It is about one image more or less, with any label, and about an attacker who does not know the
    seed. What was tried out on the same images before is not in it.
    """

    epsilon: float
    delta: float
    by: str = ""  # what computed it

    def bound(self, rate: float) -> float:
        """Return the highest rate of true positives at a rate of false ones."""
        return min(1.0, math.exp(min(self.epsilon, 700)) * rate + self.delta)  # e^710 overflows

    def __str__(self) -> str:
        at = f"epsilon {self.epsilon:.2f} at delta {self.delta:.2g}"
        return f"differential privacy of the networks: {at}, for one image more or less"


def guarantee(noise: Noise, protocol: Protocol, delta: float, networks: int = 1) -> Guarantee:
    """Account for the privacy of all noisy sums that networks are trained on.

    - noise, protocol: of each training.
    - delta: at which epsilon is given, in (0, 1): below one over the number of images.
    - networks: trained on the same images, which an attacker sees together.

    Epsilon is an upper bound by Rényi divergences, from the package opacus, for one image more or
    less. Raises Error where opacus is missing. Sources: Mironov, CSF 2017; Mironov, Talwar &
    Zhang, 2019.
    """
    if not 0 < delta < 1:
        raise Error(f"the guarantee's delta is {delta}: it must be above 0 and below 1")
    try:
        from opacus.accountants import RDPAccountant  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise Error("the privacy of noise needs the package opacus: pip install opacus") from None
    share, steps = noise.schedule(protocol)
    accountant, by = RDPAccountant(), f"RDP, opacus {version('opacus')}"
    accountant.history = [(noise.sigma, share, steps * networks)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it says when a bound is looser than it could be
        return Guarantee(float(accountant.get_epsilon(delta)), delta, by)
