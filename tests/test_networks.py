"""The other architectures of the paper's Table III: built as the field builds them, usable wherever
the ConvNet is.
"""

import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace

import pytest
import torch
from small import CONFIG, NETWORK, TEACHERS, arrays, load, refused, save
from torch import nn
from torchvision.models import resnet18
from torchvision.models.vgg import cfgs, make_layers

from ddpp import (
    VGG11,
    AlexNet,
    ConvNet,
    Error,
    NetworkConfig,
    Protocol,
    ResNet18,
    TeacherConfig,
    distill,
    evaluate,
    load_data,
    train_teachers,
)
from ddpp.baselines import selection
from ddpp.cli import main
from ddpp.foundation.seeds import generator
from ddpp.networks import ARCHITECTURES, Flat, accuracy
from ddpp.pruning import matching_loss
from ddpp.unrolling import ENGINES, compiled, draw_updates, unroll

OTHERS = ("alexnet", "vgg11", "resnet18")


def build(name, channels=3, classes=3, size=32, width=8):
    return NetworkConfig(name, width).build(channels, classes, size)


def instance_norm(channels):
    return nn.GroupNorm(channels, channels)


# As published


@pytest.mark.parametrize(
    "name, classes, parameters",  # as counted in MTT's networks.py for 3 x 32 x 32
    [
        # convolutions 9,728 + 614,592 + 442,624 + 442,560 + 331,968, linear layer 192 * 4 * 4 *
        # classes + classes
        ("alexnet", 10, 1_872_202),
        ("alexnet", 100, 2_148_772),
        # kernels 9,217,728, bias, scale and shift of 2,752 channels, linear layer 512 * classes +
        # classes
        ("vgg11", 10, 9_231_114),
        ("vgg11", 100, 9_277_284),
        ("resnet18", 10, 11_173_962),
        ("resnet18", 100, 11_220_132),
    ],
)
def test_the_networks_have_the_size_of_the_fields(name, classes, parameters):
    module = ARCHITECTURES[name](classes=classes)
    assert sum(p.numel() for p in module.parameters()) == parameters
    assert not list(module.buffers())  # all there is to a network is in theta
    assert NetworkConfig(name).build(3, classes, 32).size == parameters
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, classes)


def same_logits(ours, reference):
    """Both networks with random parameters, in the order in which they name them."""
    theta = nn.utils.parameters_to_vector(ours.parameters())
    # also scales and shifts
    theta = theta + 0.01 * torch.randn(theta.shape, generator=generator(0))
    for module in (ours, reference):
        nn.utils.vector_to_parameters(theta, module.parameters())
    x = torch.randn(4, 3, 32, 32, generator=generator(1))
    with torch.no_grad():
        return torch.allclose(ours(x), reference(x), atol=1e-4)


def test_the_resnet18_is_torchvisions_with_a_stem_for_small_images():
    reference = resnet18(num_classes=10, norm_layer=instance_norm)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    assert same_logits(ResNet18(), reference)


def test_the_vgg11_is_torchvisions_with_one_linear_layer():
    layers = make_layers(cfgs["A"], batch_norm=True)
    layers = [instance_norm(m.num_features) if isinstance(m, nn.BatchNorm2d) else m for m in layers]
    assert same_logits(VGG11(), nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 10)))


def test_the_alexnet_pools_after_its_first_second_and_last_convolution():
    kinds = [type(layer).__name__.removesuffix("2d") for layer in AlexNet()]
    assert (
        " ".join(kinds)
        == "Conv ReLU MaxPool Conv ReLU MaxPool Conv ReLU Conv ReLU Conv ReLU MaxPool Flatten "
        "Linear"
    )


# Widths and sizes


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_width_of_32_is_a_quarter_of_every_layer(name):
    published, quarter = (NetworkConfig(name, width).build(3, 10, 32).shapes for width in (128, 32))
    assert list(published) == list(quarter)
    *layers, _, _ = published  # without the linear layer's weight and bias
    assert all(quarter[layer][0] == published[layer][0] / 4 for layer in layers)
    assert NetworkConfig(name, 1).build(3, 10, 32).size > 0  # at least one channel each


@pytest.mark.parametrize(
    "name, sizes",
    [
        ("alexnet", [(3, 8), (1, 28), (3, 64)]),
        ("vgg11", [(1, 32), (3, 45), (3, 64)]),
        ("resnet18", [(3, 9), (1, 28), (3, 64)]),
    ],
)
def test_from_its_smallest_size_on_a_network_tells_images_apart(name, sizes):
    for channels, size in sizes:
        network = build(name, channels, classes=8, size=size)
        logits = network(
            network.initial(0), torch.randn(2, channels, size, size, generator=generator(2))
        )
        assert logits.shape == (2, 8)
        assert not torch.allclose(*logits)


@pytest.mark.parametrize(
    "name, size, least",
    [("alexnet", 7, 8), ("vgg11", 28, 32), ("vgg11", 31, 32), ("resnet18", 8, 9)],
)
def test_images_too_small_are_refused_before_any_work(name, size, least, npz, tmp_path):
    data = load_data(npz(size=size), device="cpu", zca=False)
    words = f"in images of {size} x {size}: use images of at least {least} x {least} pixels"
    with pytest.raises(Error, match=re.escape(words)):
        train_teachers(
            data, TeacherConfig(count=1, network=NetworkConfig(name)), tmp_path / "teachers"
        )
    assert not (tmp_path / "teachers").exists()
    with pytest.raises(Error, match=re.escape(words)):
        evaluate(selection.random(data, 1, asdict(NetworkConfig()), 0), data, name)


# Where the ConvNet is used


@pytest.mark.slow
@pytest.mark.parametrize("name, size", [("alexnet", 16), ("vgg11", 32), ("resnet18", 16)])
def test_the_engines_agree_on_every_architecture(name, size, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it takes minutes
    # anew, not the one of another test
    monkeypatch.setattr(compiled, "student", compiled.student.__wrapped__)
    network, rng = build(name, size=size), generator(0, "problem")
    start = network.initial(0).double()
    teacher = start + 0.02 * torch.randn(start.shape, generator=rng, dtype=torch.float64)
    images, labels = (
        torch.randn(3, 3, size, size, generator=rng, dtype=torch.float64),
        torch.arange(3),
    )
    updates, alpha = (
        draw_updates(3, 2, 2, generator(1, "updates")),
        torch.tensor(0.02, dtype=torch.float64),
    )
    loss = lambda student: matching_loss(student, teacher, start, 0.1)
    solve = lambda engine: unroll(network, start, images, labels, alpha, updates, loss, engine)
    expected, *others = (solve(engine) for engine in ENGINES)
    assert expected.grad_images.abs().max() > 0
    for result in others:
        for a, b in zip(result, expected, strict=True):
            assert float((a - b).norm() / b.norm()) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_every_architecture_learns_from_a_set_made_with_the_convnet(name, npz):
    data = load_data(npz(size=32), device="cpu", zca=False)
    real = selection.random(data, 4, asdict(NetworkConfig(width=16, depth=2)), 0)
    real.alpha.fill_(0.05)
    result = evaluate(
        real, data, name, repeats=1, protocol=Protocol(epochs=30, augment=False), progress=False
    )
    assert result.mean > 60  # guessing gets 33 %


def test_a_set_is_tested_on_its_own_network_unless_another_is_named(npz, monkeypatch):
    data, asked = load_data(npz(size=32), device="cpu", zca=False), []
    real = selection.random(data, 1, asdict(NetworkConfig("alexnet", 4, depth=2)), 0)
    network = data.network
    monkeypatch.setattr(
        type(data), "network", lambda _, config: asked.append(config) or network(config)
    )
    for options in (
        {},
        {"width": 8},
        {"architecture": "convnet"},
        {"architecture": "vgg11", "width": 2},
    ):
        evaluate(real, data, repeats=1, protocol=Protocol(epochs=1), progress=False, **options)
    widths = [("alexnet", 4), ("alexnet", 8), ("convnet", 4), ("vgg11", 2)]
    assert asked == [NetworkConfig(name, width, depth=2) for name, width in widths]
    with pytest.raises(Error, match="width is 0"):
        evaluate(real, data, width=0, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_command_line_takes_every_architecture(name, npz, tmp_path, capsys):
    data, out = str(npz(size=32, per_class=4)), tmp_path / "out.safetensors"
    common = [
        "--data",
        data,
        "--device",
        "cpu",
        "--teachers.network.name",
        name,
        "--teachers.network.width",
        "4",
    ]
    common += "--teachers.count 1 --teachers.epochs 3 --teachers.batch 9".split()
    assert main(["teachers", *common, "--out", str(tmp_path)]) == 0
    steps = "--steps 1 --student-steps 2 --protocol.epochs 2 --repeats 1".split()
    assert main(["distill", *common, *steps, "--out", str(out)]) == 0
    transfer = [
        "--architecture",
        "vgg11",
        "--width",
        "6",
        "--repeats",
        "1",
        "--protocol.epochs",
        "2",
    ]
    assert main(["evaluate", str(out), "--data", data, "--device", "cpu", *transfer]) == 0
    assert "final iterate:" in capsys.readouterr().out


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


def test_an_accuracy_needs_one_label_for_each_image():
    """A column of labels was compared with each of them: accuracies of up to 2000 %."""
    network = NetworkConfig(width=4, depth=2).build(3, 5, 8)
    theta, x = network.initial(0), torch.rand(6, 3, 8, 8, generator=generator(10))
    y = network(theta, x).argmax(1)
    assert accuracy(network, theta, x, y) == 100
    for labels in (y[:, None], y[:1], y[:5], torch.eye(5)[y]):
        with refused("labels of the shape", "for 6 images: give (N,)"):
            accuracy(network, theta, x, labels)
    with refused("for 0 images", "at least one"):
        accuracy(network, theta, x[:0], y[:0])


def test_an_unknown_network_is_answered_with_the_nearest(data, distilled):
    with refused("unknown network 'convnets'", "did you mean 'convnet'"):
        train_teachers(
            data, replace(TEACHERS, network=replace(NETWORK, name="convnets")), progress=False
        )
    for sizes in ({}, {"width": 8}):
        with refused("unknown network 'convnets'", "did you mean 'convnet'"):
            evaluate(distilled, data, "convnets", **sizes, progress=False)
    assert TeacherConfig(network="resnet18").network == NetworkConfig("resnet18")


def test_images_too_small_for_the_depth_are_told_the_depth_that_fits(tmp_path):
    small = load(save(tmp_path / "mine.npz", **arrays(side=4)))
    with refused("depth 3", "4 x 4 pixels", "larger images or a depth of at most 2"):
        small.network(replace(NETWORK, depth=3))
    small.network(replace(NETWORK, depth=2))


# A module of the user's own


def test_a_module_that_is_always_the_same_one_stays_as_it_is(data):
    mine = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 2))
    before = [p.clone() for p in mine.parameters()]

    def pretrained():
        return mine

    config = replace(TEACHERS, network=NetworkConfig(pretrained))
    with pytest.warns(UserWarning, match="the same parameters whatever the seed"):
        teachers = train_teachers(data, config, progress=False)
    made = distill(data, teachers, CONFIG, progress=False)
    evaluate(made, data, pretrained, repeats=1, protocol=Protocol(epochs=1), progress=False)
    for p, was in zip(mine.parameters(), before, strict=True):
        assert isinstance(p, nn.Parameter) and torch.equal(p, was)


def test_a_module_that_cannot_be_copied_has_to_be_made_anew():
    class Keeps(nn.Sequential):
        def __deepcopy__(self, memo):
            raise TypeError("not me")

    mine = Keeps(nn.Flatten(), nn.Linear(192, 2))
    with refused(
        "the same module each time it is made, or has the same inside, and cannot be copied (Type"
    ):
        Flat(lambda: mine).initial(0)


# In threads


class Pausing(nn.Module):
    """Lets other threads go on, within its forward pass and when it is made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        time.sleep(0.001)
        self.head = nn.Linear(144, 2)

    def forward(self, x):
        x = self.conv(x).relu()
        time.sleep(0.001)
        return self.head(x.flatten(1))


def in_threads(call, things):
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(call, things))


def test_threads_that_share_a_network_compute_what_one_does():
    network, images = Flat(Pausing), torch.randn(4, 3, 8, 8, generator=generator(0))

    def compute(seed):
        theta = network.initial(seed)
        parts = network.activations(theta, images + seed, (nn.Conv2d,))
        return [theta, network(theta, images), *parts]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    for one, other in zip(map(compute, range(12)), in_threads(compute, range(12)), strict=True):
        assert len(one) == len(other)
        assert all(map(torch.equal, one, other))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_that_share_a_network_unroll_it_as_one_does(engine, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it takes minutes
    network, rng = Flat(Pausing), generator(0)
    images, labels = torch.randn(2, 3, 8, 8, generator=rng), torch.arange(2)
    updates, alpha = draw_updates(2, None, 3, rng), torch.tensor(0.1)

    def solve(seed):
        problem = (network, network.initial(seed), images, labels, alpha, updates)
        return unroll(*problem, lambda student: student.square().sum(), engine)

    alone = [solve(seed) for seed in range(6)]
    for one, other in zip(alone, in_threads(solve, range(6)), strict=True):
        assert all(map(torch.equal, one, other))


def test_teachers_sets_and_accuracies_are_the_same_in_threads(data):
    config = replace(TEACHERS, count=1, network=NetworkConfig(Pausing))

    def run(seed):
        teachers = train_teachers(data, replace(config, seed=seed), progress=False)
        made = distill(data, teachers, replace(CONFIG, seed=seed), progress=False)
        how = {"protocol": Protocol(epochs=5), "seed": seed, "progress": False}
        return teachers.snapshot(0, 3), made.images, evaluate(made, data, repeats=2, **how).final

    alone = [run(seed) for seed in range(4)]
    for one, other in zip(alone, in_threads(run, range(4)), strict=True):
        assert torch.equal(one[0], other[0]) and torch.equal(one[1], other[1])
        assert one[2] == other[2]
