"""The ground floor: whitening, augmentation, the ConvNet, the bundled data, random numbers."""

import hashlib

import pytest
import torch

from ddpp import ConvNet, load_data
from ddpp.data.augmentation import OPERATIONS, Draw, augment, draw
from ddpp.data.sources import SHA256
from ddpp.data.whitening import Whitening, fit_channels, fit_zca
from ddpp.foundation.seeds import derive, generator
from ddpp.networks import NetworkConfig


@pytest.fixture(scope="module")
def sample():
    return load_data(device="cpu", zca=False)


def test_the_sample_is_real_cifar10_balanced(sample):
    assert sample.train.images.shape == (4500, 3, 32, 32)
    assert sample.train.labels.bincount().tolist() == [450] * 10
    assert sample.validation.labels.bincount().tolist() == [50] * 10
    assert sample.test.labels.bincount().tolist() == [100] * 10
    assert sample.classes[3] == "cat"
    assert len(SHA256["cifar10-sample"]) == 4  # checked on every load


def test_zca_makes_the_covariance_nearly_white_and_inverts():
    # neighbours depend on one another
    images = torch.rand(400, 3, 6, 6, generator=generator(0)).cumsum(3) / 6
    zca = fit_zca(images, eps=1e-6)
    white = zca.apply(images)
    covariance = torch.cov(white.flatten(1).T)
    assert torch.allclose(covariance, torch.eye(len(covariance)), atol=0.02)
    assert torch.allclose(zca.invert(white), images, atol=1e-3)
    assert torch.allclose(zca.matrix, zca.matrix.T, atol=1e-4)


def test_zca_follows_its_definition():
    images = torch.rand(300, 1, 5, 5, generator=generator(1))
    flat = images.flatten(1).double()
    u, s, _ = torch.linalg.svd(torch.cov(flat.T))
    expected = (u * (s + 0.1).rsqrt()) @ u.T
    assert torch.allclose(fit_zca(images).matrix.double(), expected, atol=1e-5)


@pytest.mark.parametrize("fit", [fit_zca, fit_channels])
def test_whitening_survives_a_file(fit):
    images = torch.rand(50, 3, 4, 4, generator=generator(2))
    whitening = fit(images)
    again = Whitening.from_tensors(whitening.tensors())
    assert torch.equal(again.apply(images), whitening.apply(images))
    assert torch.allclose(again.invert(again.apply(images)), images, atol=1e-5)


def test_channels_are_standardized():
    white = fit_channels(images := 3 * torch.rand(60, 2, 4, 4, generator=generator(3))).apply(
        images
    )
    assert torch.allclose(white.mean((0, 2, 3)), torch.zeros(2), atol=1e-5)
    assert torch.allclose(white.std((0, 2, 3)), torch.ones(2), atol=1e-2)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_augmentation_is_a_function_of_its_draw(operation):
    images = torch.rand(5, 3, 8, 8, generator=generator(4))
    how = Draw(operation, torch.rand(5, 3, generator=generator(5), dtype=torch.float64))
    out = augment(images, how)
    assert out.shape == images.shape
    assert torch.equal(out, augment(images, how))
    assert not torch.equal(out, images)
    each = torch.cat(
        [augment(images[i : i + 1], Draw(operation, how.u[i : i + 1])) for i in range(5)]
    )
    # an image's result depends on its own numbers alone
    assert torch.allclose(out, each, atol=1e-6)


def test_augmentations_differentiate():
    images = torch.rand(2, 3, 6, 6, generator=generator(6), dtype=torch.float64, requires_grad=True)
    u = torch.rand(2, 3, generator=generator(7), dtype=torch.float64)
    for operation in OPERATIONS:
        assert torch.autograd.gradcheck(lambda x, op=operation: augment(x, Draw(op, u)), images)


def test_augmentations_do_what_their_names_say():
    x = torch.rand(1, 3, 32, 32, generator=generator(8))
    at = lambda *u: torch.tensor([u], dtype=torch.float64)
    assert torch.equal(augment(x, Draw("flip", at(0.4, 0, 0))), x.flip(3))
    assert torch.equal(augment(x, Draw("flip", at(0.6, 0, 0))), x)
    middle = 4.5 / 9  # of the nine shifts -4 ... 4, the one that leaves the image where it is
    assert torch.equal(augment(x, Draw("crop", at(middle, middle, 0))), x)
    moved = augment(x, Draw("crop", at(0.99, middle, 0)))
    assert torch.equal(moved[:, :, :-4], x[:, :, 4:])
    assert (moved[:, :, -4:] == 0).all()
    holed = augment(x, Draw("cutout", at(0.5, 0.5, 0)))
    assert int((holed[0, 0] == 0).sum()) == 16 * 16
    assert torch.allclose(augment(x, Draw("rotate", at(0.5, 0, 0))), x, atol=1e-4)
    one = (1 - 1 / 1.2) / (1.2 - 1 / 1.2)
    assert torch.allclose(augment(x, Draw("scale", at(one, one, 0))), x, atol=1e-4)
    assert torch.allclose(augment(x, Draw("color", at(0.5, 0.5, 0.5))), x, atol=1e-6)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_number_that_rounds_to_one_is_no_shift_out_of_the_image(operation):
    almost = torch.full((1, 3), 1 - 2**-26, dtype=torch.float64)
    assert almost.float().eq(1).all()
    x = torch.rand(1, 3, 32, 32, generator=generator(11))
    assert augment(x, Draw(operation, almost)).isfinite().all()


def test_every_operation_is_drawn():
    rng = generator(9)
    assert {draw(2, rng).operation for _ in range(100)} == set(OPERATIONS)


@pytest.mark.parametrize("classes, parameters", [(10, 320_010), (100, 504_420)])
def test_the_convnet_has_the_papers_size(classes, parameters):
    assert sum(p.numel() for p in ConvNet(classes=classes).parameters()) == parameters
    assert NetworkConfig().build(3, classes, 32).size == parameters


@pytest.mark.parametrize("size", [28, 32, 64])
def test_the_convnet_takes_any_size_its_depth_can_pool(size):
    network = NetworkConfig(width=4).build(1, 8, size)
    assert network(network.initial(0), torch.zeros(2, 1, size, size)).shape == (2, 8)


def test_a_flat_network_is_the_module():
    config = NetworkConfig(width=4, depth=2)
    network, x = config.build(3, 5, 8), torch.rand(3, 3, 8, 8, generator=generator(10))
    module = ConvNet(3, 5, 4, 2, 8)
    torch.nn.utils.vector_to_parameters(network.initial(7), module.parameters())
    assert torch.allclose(module(x), network(network.initial(7), x))
    assert not torch.equal(network.initial(7), network.initial(8))


def test_random_numbers_depend_on_seed_and_path_alone():
    first = torch.rand(3, generator=generator(0, "step", 1))
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3, generator=generator(0, "step", 1)))
    assert len({derive(s, "step", t) for s in range(10) for t in range(10)}) == 100


def test_the_validation_split_is_disjoint_and_the_same_each_time(sample):
    digest = lambda images: {hashlib.sha256(x.numpy().tobytes()).digest() for x in images}
    train, validation = digest(sample.train.images), digest(sample.validation.images)
    assert len(train & validation) <= 5  # CIFAR-10 itself repeats a few images
    assert load_data(device="cpu", zca=False, validation=0).validation is None
