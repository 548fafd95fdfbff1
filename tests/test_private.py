"""Training with differential privacy: gradients per image against a loop, batches and noise against
their distributions, and epsilon against the library by hand and against closed forms.
"""

import math
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from scipy.stats import binom, kstest, norm
from small import INF, NAN, NETWORK, load, refused, save
from torch import nn

from ddpp import evaluating
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol
from ddpp.networks import NetworkConfig
from ddpp.studies import private
from ddpp.studies.private import Guarantee, Noise, clipped_sum, guarantee

PLAIN = Protocol(epochs=6, batch=12, augment=False)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(save(tmp_path_factory.mktemp("private") / "mine.npz"))


@pytest.fixture(scope="module")
def made(data):
    return DistilledDataset.from_tensors(*data.train, 0.05, data, network=NETWORK)


def recorded(monkeypatch, network, made, protocol, noise, seed=0):
    """The images of each batch, and all that was added to an initialization, where no image has a
    gradient.
    """
    batches = []

    def none(network, theta, images, labels, max_norm):
        batches.append(images)
        return torch.zeros_like(theta)

    monkeypatch.setattr(private, "clipped_sum", none)
    theta = private.train(network, made, protocol, noise, seed, "test")
    return batches, theta - network.initial(private.derive(seed, "test"))


# The gradients


@pytest.mark.parametrize("architecture", ["convnet", "alexnet"])
def test_each_images_gradient_is_clipped_alone_as_in_a_plain_loop(architecture):
    network = NetworkConfig(architecture, width=8, depth=2).build(3, 5, 16)
    rng = torch.Generator().manual_seed(0)
    theta = network.initial(0).double()
    images = torch.randn(9, 3, 16, 16, generator=rng, dtype=torch.float64)
    labels = torch.arange(9) % 5
    each = []
    for image, label in zip(images, labels, strict=True):
        at = theta.clone().requires_grad_()
        loss = F.cross_entropy(network(at, image[None]), label[None])
        each.append(torch.autograd.grad(loss, at)[0])
    norms = sorted(float(one.norm()) for one in each)
    for max_norm in (norms[0] / 2, (norms[3] + norms[4]) / 2, 2 * norms[-1]):
        wanted = torch.zeros_like(theta)
        for one in each:
            wanted += one * min(1.0, max_norm / float(one.norm()))
        found = clipped_sum(network, theta, images, labels, max_norm)
        assert (found - wanted).abs().max() < 1e-10
        for left_out in range(9):  # what differential privacy rests on
            kept = torch.arange(9) != left_out
            less = clipped_sum(network, theta, images[kept], labels[kept], max_norm)
            assert (found - less).norm() <= max_norm * (1 + 1e-9)


def test_no_image_and_an_image_without_a_gradient_add_nothing(data):
    network, theta = data.network(NETWORK), data.network(NETWORK).initial(0)
    images, labels = data.train
    assert not clipped_sum(network, theta, images[:0], labels[:0], 1.0).any()
    # logits of 1000 and 0: the loss is 0 in float32, and its gradient as well
    sure = torch.zeros_like(theta)
    sure[-2] = 1000
    assert not clipped_sum(network, sure, images[:2], torch.tensor([0, 0]), 1.0).any()
    assert clipped_sum(network, sure, images[:2], torch.tensor([1, 1]), 1.0).norm() > 0


@pytest.mark.parametrize("protocol", [PLAIN, replace(PLAIN, momentum=0.0, weight_decay=0.0)])
def test_without_noise_and_clipping_it_is_plain_training_on_full_batches(data, made, protocol):
    network, none = data.network(NETWORK), Noise(sigma=0, max_norm=1e6, images=12)
    assert none.schedule(protocol) == (1.0, 6)
    for epochs in (1, 6):
        how = replace(protocol, epochs=epochs)
        found = private.train(network, made, how, none, 3, "net", 1)
        plain = evaluating.train(network, made, how, 3, "net", 1)
        assert (plain - network.initial(private.derive(3, "net", 1))).norm() > 1e-3
        assert torch.allclose(found, plain, atol=2e-6)


# What is random


def test_each_image_is_in_a_batch_by_a_lot_of_its_own(data, monkeypatch):
    images, labels = (part.repeat(10, *[1] * (part.ndim - 1)) for part in data.train)
    images = images * torch.linspace(0.5, 1.5, 120).view(-1, 1, 1, 1)  # no two are equal
    made = DistilledDataset.from_tensors(images, labels, 0.05, data, network=NETWORK)
    protocol, noise = Protocol(epochs=100, batch=30, augment=False), Noise(1, 1, images=120)
    batches, _ = recorded(monkeypatch, data.network(NETWORK), made, protocol, noise)
    sizes = torch.tensor([len(batch) for batch in batches], dtype=torch.float64)
    assert noise.schedule(protocol) == (0.25, 400) and len(sizes) == 400
    # binomial: mean 30, variance 22.5, where batches of one size would have the variance 0
    assert float(sizes.mean()) == pytest.approx(30, abs=4 * math.sqrt(22.5 / 400))
    assert float(sizes.var()) == pytest.approx(22.5, rel=4 * math.sqrt(2 / 400))
    places = {image.numpy().tobytes(): i for i, image in enumerate(images)}
    inside = torch.zeros(400, 120)
    for step, batch in enumerate(batches):
        for image in batch:
            inside[step, places[image.numpy().tobytes()]] = 1
    assert torch.equal(inside.sum(1), sizes.float())  # none is there twice
    often = inside.sum(0)
    low, high = binom.ppf([1e-5, 1 - 1e-5], 400, 0.25)
    assert (often >= low).all() and (often <= high).all()
    # no two images, and no two batches, go together
    assert torch.corrcoef(inside.T).triu(1).abs().max() < 0.25
    assert torch.corrcoef(inside).triu(1).abs().max() < 0.5


@pytest.mark.parametrize(("sigma", "max_norm"), [(1.0, 1.0), (0.5, 3.0)])
def test_the_noise_is_normal_with_the_deviation_that_was_asked_for(
    data, made, monkeypatch, sigma, max_norm
):
    network = data.network(NetworkConfig(width=32, depth=1))
    how = {"momentum": 0.0, "weight_decay": 0.0, "augment": False}
    protocol, noise = Protocol(epochs=1, batch=6, **how), Noise(sigma, max_norm, images=6)
    _, moved = recorded(monkeypatch, network, made, protocol, noise)
    normal = moved / 0.05 * 6 / (sigma * max_norm)  # one step, divided by the batch
    assert network.size > 1500
    assert float(normal.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * network.size))
    assert kstest(normal.double().numpy(), "norm").pvalue > 1e-3
    # the noises of steps are independent: their sum over 100 steps is ten times as large
    many = replace(protocol, epochs=200)
    _, moved = recorded(monkeypatch, network, made, many, noise)
    steps = math.sqrt(100 + 100 / 10**2)  # the second half at a tenth of the rate
    normal = moved / 0.05 * 6 / (sigma * max_norm) / steps
    assert float(normal.std()) == pytest.approx(1, abs=4 / math.sqrt(2 * network.size))


def test_equal_seeds_give_equal_bits_and_others_give_others(data, made):
    network, noise = data.network(NETWORK), Noise(1.0, 1.0, images=12)
    protocol = Protocol(epochs=3, batch=6)
    train = lambda *seed: private.train(network, made, protocol, noise, *seed)
    first, state = train(0, "a"), torch.random.get_rng_state()
    assert torch.equal(first, train(0, "a")) and first.isfinite().all()
    assert not torch.equal(first, train(1, "a")) and not torch.equal(first, train(0, "b"))
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_batch_may_be_empty(data, made):
    network, protocol = data.network(NETWORK), Protocol(epochs=1, batch=1)
    noise = Noise(1.0, 1.0, images=40)  # 12 images with 1/40 each: most batches have none
    assert private.train(network, made, protocol, noise, 0).isfinite().all()


# The guarantee


def exact(sigma, delta):
    """Epsilon of one release with Gaussian noise (Balle & Wang, ICML 2018, Theorem 8)."""
    one, cdf = 1 / sigma, norm.cdf
    excess = lambda e: cdf(one / 2 - e / one) - math.exp(e) * cdf(-one / 2 - e / one) - delta
    return brentq(excess, 0, 100)


@pytest.mark.parametrize("sigma", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("steps", [1, 16])
def test_epsilon_of_full_batches_lies_between_the_exact_one_and_the_textbooks(sigma, steps):
    pytest.importorskip("opacus")
    # n sums with noise sigma tell as much as one with sigma / sqrt(n)
    noise, delta = Noise(sigma * math.sqrt(steps), 1.0, images=500), 1e-3
    found = guarantee(noise, Protocol(epochs=steps, batch=500), delta)
    textbook = 1 / (2 * sigma**2) + math.sqrt(2 * math.log(1 / delta)) / sigma
    assert exact(sigma, delta) < found.epsilon < textbook
    assert found.delta == delta


def test_epsilon_is_the_librarys_and_near_its_tighter_one():
    accountants = pytest.importorskip("opacus.accountants")
    noise, protocol = Noise(2.0, 0.1, images=500), Protocol(epochs=10, batch=125)
    by_hand, tighter = accountants.RDPAccountant(), accountants.PRVAccountant()
    for _ in range(40):
        by_hand.step(noise_multiplier=2.0, sample_rate=0.25)
        tighter.step(noise_multiplier=2.0, sample_rate=0.25)
    found = guarantee(noise, protocol, 1e-3)
    assert found.epsilon == pytest.approx(by_hand.get_epsilon(1e-3), rel=1e-12)
    assert found.by.startswith("RDP, opacus ")
    assert 0.7 * found.epsilon < tighter.get_epsilon(1e-3) < found.epsilon
    # two networks on the same images are twice the steps
    both = guarantee(noise, protocol, 1e-3, networks=2)
    assert both == guarantee(noise, replace(protocol, epochs=20), 1e-3)
    assert both.epsilon > found.epsilon
    # the last batch of an epoch counts as well, and a batch is not larger than the whole
    assert noise.schedule(Protocol(epochs=3, batch=200)) == (0.4, 9)
    assert noise.schedule(Protocol(epochs=3, batch=900)) == (1.0, 3)


@pytest.mark.parametrize("sigma", [1e-3, 1e3])
def test_epsilon_of_hardly_any_and_of_much_noise_is_a_number(sigma):
    pytest.importorskip("opacus")
    found = guarantee(Noise(sigma, 1.0, images=500), Protocol(epochs=10, batch=125), 1e-3)
    assert math.isfinite(found.epsilon) and (found.epsilon > 1000) == (sigma < 1)
    assert found.bound(0.01) <= 1


def test_what_epsilon_allows():
    found = Guarantee(epsilon=math.log(3), delta=0.001)
    assert found.bound(0.01) == pytest.approx(0.031)
    assert found.bound(0.9) == 1 and found.bound(0) == 0.001
    assert str(found).startswith(
        "differential privacy of the networks: epsilon 1.10 at delta 0.001"
    )


class Batched(nn.Sequential):
    def __init__(self, channels, classes, image_size):
        super().__init__(
            nn.BatchNorm2d(channels, track_running_stats=False),
            nn.Flatten(),
            nn.Linear(channels * image_size**2, classes),
        )


def test_a_network_that_mixes_its_batch_cannot_protect_single_images(data, made):
    network = data.network(NetworkConfig(Batched))
    with refused("'Batched' for one image depend on the other images", "does not mix them"):
        private.train(network, made, PLAIN, Noise(1.0, 1.0, 12), 0)


def mix(images, u):
    return images + images.mean(0, keepdim=True)


def two_at_least(images, u):
    return images + 0 * images[[0, 1]].mean(0)


def running(images, u):
    return images.cumsum(0)


def anew(images, u):
    return images + torch.rand(()) * images


@pytest.mark.parametrize(
    ("operation", "words"),
    [
        (mix, "depend on the others of its batch"),
        (running, "depend on the others of its batch"),
        (two_at_least, "cannot take an image alone"),
        (anew, "another result each time"),
    ],
)
def test_an_operation_that_mixes_its_batch_or_draws_anew_breaks_the_guarantee(
    data, made, operation, words
):
    protocol = replace(PLAIN, augment=("crop", operation))
    with refused(operation.__name__, words):
        private.train(data.network(NETWORK), made, protocol, Noise(1.0, 1.0, 12), 0)


def test_a_missing_accountant_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with refused("needs the package opacus: pip install opacus"):
        guarantee(Noise(1.0, 1.0, images=500), PLAIN, 1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sigma": -1.0}, "the noise's sigma is -1.0: it must be at least 0"),
        ({"sigma": NAN}, "the noise's sigma is nan"),
        ({"max_norm": 0.0}, "the noise's max_norm is 0.0: it must be positive"),
        ({"max_norm": INF}, "the noise's max_norm is inf"),
        ({"images": 0}, "the noise's images is 0: it must be at least 1"),
    ],
)
def test_noise_that_cannot_be_is_refused(changes, words):
    with refused(words):
        replace(Noise(1.0, 1.0, 10), **changes)


@pytest.mark.parametrize("delta", [0.0, 1.0, NAN])
def test_a_delta_that_cannot_be_is_refused(delta):
    with refused("delta is", "it must be above 0 and below 1"):
        guarantee(Noise(1.0, 1.0, images=500), PLAIN, delta)
