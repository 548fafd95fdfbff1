"""Any network is computed as it is, or refused with a sentence; and no convolution sees
channels-last images.
"""

import functools
import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import refused
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ddpp import (
    DistillConfig,
    Error,
    NetworkConfig,
    Protocol,
    TeacherConfig,
    custom,
    evaluate,
    load_data,
    networks,
    train_teachers,
)
from ddpp.baselines import bptt, cafe, common, dm, dsa, selection
from ddpp.data.augmentation import OPERATIONS, Draw
from ddpp.experiments.methods import METHODS
from ddpp.foundation.seeds import generator
from ddpp.networks import ARCHITECTURES, Flat, accuracy, check, plain
from ddpp.unrolling import ENGINES, Updates, compiled, draw_updates, unroll

SHAPE, CLASSES = (3, 8, 8), 4


class PreActivation(nn.Module):
    """A block that uses what its ReLU was given once more, as pre-activation networks do."""

    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 6, 3, padding=1), nn.ReLU()
        self.conv, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, CLASSES)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.conv(self.act(x))
        return self.head(x.mean((2, 3)))


class Shared(nn.Module):
    """One layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = (
            nn.Conv2d(3, 6, 1),
            nn.Conv2d(6, 6, 3, padding=1),
            nn.Linear(6, CLASSES),
        )

    def forward(self, x):
        return self.head(self.block(F.relu(self.block(F.relu(self.stem(x))))).mean((2, 3)))


class Tied(nn.Module):
    """Two layers that share one parameter under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3),
            nn.Linear(3, CLASSES),
        )
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.head(self.second(F.gelu(self.first(x))).mean((2, 3)))


class InPlace(nn.Module):
    """Operations in place on values of its own."""

    def __init__(self):
        super().__init__()
        self.conv, self.act, self.head = (
            nn.Conv2d(3, 6, 3),
            nn.ReLU(inplace=True),
            nn.Linear(6, CLASSES),
        )

    def forward(self, x):
        x = self.act(self.conv(x).add_(1)).clone().mul_(2)
        return self.head(x.mean((2, 3)))


class Constants(nn.Module):
    """A buffer that is drawn at random once, and a matrix of parameters without a layer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("features", torch.randn(192, 32))
        self.weight = nn.Parameter(torch.randn(32, CLASSES) / 6)

    def forward(self, x):
        return (x.flatten(1) @ self.features).cos() @ self.weight


def constants_in_float64():
    """For parameters in float64, the buffer has to be in float64, too."""
    module = Constants()
    module.features = module.features.double()
    return module


class BatchStatistics(nn.Sequential):
    """Normalized by the statistics of the batch, without running ones."""

    def __init__(self):
        norm = nn.BatchNorm2d(6, track_running_stats=False)
        super().__init__(nn.Conv2d(3, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(216, CLASSES))


class RunningAverages(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Flatten(), nn.Linear(216, CLASSES)
        )


class WithDropout(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Dropout(0.1), nn.Linear(192, CLASSES))


class FunctionalDropout(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES))

    def forward(self, x):
        return super().forward(F.dropout(x, 0.2))


class SleepingDropout(nn.Sequential):
    """Dropout in a network that is made for evaluation: it does nothing."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Dropout(0.5), nn.Linear(192, CLASSES))
        self.eval()


class Frozen(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 8), nn.ReLU(), nn.Linear(8, CLASSES))
        self[1].weight.requires_grad_(False)


class Two(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES))

    def forward(self, x):
        return super().forward(x), x


class OtherSize(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(3 * 16 * 16, CLASSES))


class OtherClasses(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, 10))


class Nothing(nn.Flatten):
    pass


class ChangesItsInput(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES))

    def forward(self, x):
        x -= x.mean()
        return super().forward(x)


class Counts(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class Lazy(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.LazyLinear(CLASSES))


class Double(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES, dtype=torch.float64))


class Fails(nn.Sequential):
    def __init__(self):
        raise KeyError("depth")


class KeepsItsWeights(nn.Sequential):
    """Normalizes them once, when it is called first."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES))
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = F.normalize(self[1].weight.detach())
        return F.linear(x.flatten(1), self.kept, self[1].bias)


class KeepsASize(PreActivation):
    """What it keeps depends on the images' size alone."""

    kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.linspace(0, 1, x.shape[-1])
        return super().forward(x + self.kept)


class KeepsALength(PreActivation):
    """What it keeps is a number."""

    length = None

    def forward(self, x):
        self.length = self.length or x.shape[-1]
        return super().forward(x / self.length)


class ShowsItsFeatures(PreActivation):
    """It leaves what it computed last where others may read it, and never reads it."""

    features, sizes = None, ()

    def forward(self, x):
        self.features, self.sizes = self.stem(x), [len(x), {"side": x.shape[-1]}]
        return super().forward(x)


class Attention(nn.Module):
    """PyTorch's layers that keep lists and flags of their own."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.recurrent, self.head = nn.GRU(8, 8, batch_first=True), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = x.flatten(1, 2)
        x, _ = self.attention(x, x, x)
        return self.head(self.recurrent(x)[0].mean(1))


class SpectrallyNormed(nn.Sequential):
    """Its weight is computed from a parameter, and its power iteration is at rest."""

    def __init__(self):
        norm = nn.utils.parametrizations.spectral_norm(nn.Linear(192, CLASSES))
        super().__init__(nn.Flatten(), norm)
        self.eval()


class LayerOfTwoNames(nn.Sequential):
    """One layer that stands at two places."""

    def __init__(self):
        act = nn.PReLU()
        super().__init__(nn.Conv2d(3, 3, 3, padding=1), act, nn.Conv2d(3, 3, 3, padding=1), act)
        self.extend([nn.Flatten(), nn.Linear(192, CLASSES)])


class BlockOfTwoNames(nn.Sequential):
    """One block that stands at two places, with a parameter that is tied to another one."""

    def __init__(self):
        block = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.GELU())
        super().__init__(block, Tied(), block)
        self[1].first.weight = self[0][0].weight
        self[1].second.weight = self[0][0].weight

    def forward(self, x):
        return self[1](self[2](self[0](x)))


class Bounded(PreActivation):
    """Its scale has to be above 0, which a random step may break."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((64,), 0.01))

    def forward(self, x):
        if not (self.scale > 0).all():
            raise ValueError("a scale is not above 0")
        return super().forward(x * self.scale.mean())


class StandardizesByTheFirst(PreActivation):
    """By the standard deviation of the first images that it sees."""

    std = None

    def forward(self, x):
        if self.std is None:
            self.std = x.std((0, 2, 3), keepdim=True)
        return super().forward(x / self.std)


class StandardizesByABuffer(PreActivation):
    def forward(self, x):
        if not hasattr(self, "std"):
            self.register_buffer("std", x.std((0, 2, 3), keepdim=True))
        return super().forward(x / self.std)


class CountsInAList(PreActivation):
    """After five calls it is another network."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def forward(self, x):
        self.calls.append(len(x))
        return super().forward(x if len(self.calls) < 5 else -x)


class CountsInATensor(CountsInAList):
    def __init__(self):
        super().__init__()
        self.calls = {"count": torch.zeros(())}

    def forward(self, x):
        self.calls["count"] += 1
        return PreActivation.forward(self, x if self.calls["count"] < 5 else -x)


class Clamps(nn.Sequential):
    limit = 0.01

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(192, CLASSES))

    def forward(self, x):
        self[1].weight.data.clamp_(-self.limit, self.limit)
        return super().forward(x)


class ClampsRarely(Clamps):
    def forward(self, x):
        with torch.no_grad():
            self[1].weight.clamp_(-9, 9)
        return nn.Sequential.forward(self, x)


class Parallel(nn.DataParallel):
    def __init__(self):
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES)))


COMPUTED = (
    PreActivation,
    Shared,
    Tied,
    InPlace,
    Constants,
    BatchStatistics,
    SleepingDropout,
    KeepsASize,
    KeepsALength,
    ShowsItsFeatures,
    Attention,
    SpectrallyNormed,
    LayerOfTwoNames,
    BlockOfTwoNames,
    Bounded,
)
REFUSED = {
    RunningAverages: "keeps running averages, 1: use GroupNorm",
    WithDropout: "has dropout, 1",
    FunctionalDropout: "other logits each time",
    Frozen: "has a frozen parameter, 1.weight",
    Two: "returns a tuple: it must return its logits alone",
    OtherSize: "cannot take images of 3 x 8 x 8: RuntimeError",
    OtherClasses: "returns the shape (2, 10) for 2 images of 4 classes",
    Nothing: "has no parameters: there is nothing to train",
    ChangesItsInput: "changes the images that it is given",
    Counts: "changes its buffers",
    Lazy: "whose size is not known yet, 1.weight",
    Double: "of the type torch.float64, 1.weight",
    Fails: "cannot be made: KeyError: 'depth'",
    KeepsItsWeights: "gives other logits than one that is made anew",
    StandardizesByTheFirst: "gives other logits than one that is made anew",
    StandardizesByABuffer: "changes its buffers",
    CountsInAList: "changes an attribute when it is called",
    CountsInATensor: "changes an attribute when it is called",
    Clamps: "changes its parameters when it is called",
    ClampsRarely: "cannot be called where a gradient is wanted (RuntimeError",
    Parallel: "cannot be called with other parameters than its own (RuntimeError",
}


@pytest.fixture
def register(monkeypatch):
    """Puts a class among the architectures, as a user does, and gives its config."""

    def put(kind, name="mine"):
        monkeypatch.setitem(ARCHITECTURES, name, lambda **sizes: kind())
        return NetworkConfig(name)

    return put


@pytest.mark.parametrize("kind", COMPUTED)
def test_a_network_is_computed_as_it_is(kind, register):
    network = register(kind).build(SHAPE[0], CLASSES, SHAPE[1])
    theta, x = network.initial(3), torch.randn(5, *SHAPE, generator=generator(0))
    torch.manual_seed(0)
    module = kind()  # its buffers are the network's: those of the seed 0
    nn.utils.vector_to_parameters(theta, module.parameters())
    assert torch.equal(network(theta, x), module(x))
    wanted = torch.autograd.grad(
        F.cross_entropy(module(x), torch.arange(5) % CLASSES), list(module.parameters())
    )
    theta.requires_grad_()
    (found,) = torch.autograd.grad(
        F.cross_entropy(network(theta, x), torch.arange(5) % CLASSES), theta
    )
    assert torch.equal(found, torch.cat([g.flatten() for g in wanted]))


@pytest.mark.parametrize(
    "kind", [*(kind for kind in COMPUTED if kind is not KeepsALength), nn.ReLU]
)
def test_no_flag_of_a_module_is_changed(kind):
    def flags(module):
        return [
            {k: v for k, v in vars(m).items() if isinstance(v, (bool, int, float, str))}
            for m in module.modules()
        ]

    made = (
        nn.Sequential(nn.Flatten(), nn.Linear(192, CLASSES), nn.ReLU())
        if kind is nn.ReLU
        else kind()
    )
    before = flags(made)
    network = Flat(lambda: made)
    check(network, SHAPE, CLASSES)
    assert flags(made) == before


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_no_function_of_its_parameters_is_refused(kind, register, npz, tmp_path):
    data = load_data(npz(classes=CLASSES, size=8, channels=3), device="cpu", zca=False)
    config = TeacherConfig(count=1, epochs=1, network=register(kind))
    with pytest.raises(Error, match=f"the network 'mine' .*{re.escape(REFUSED[kind])}"):
        train_teachers(data, config, tmp_path / "teachers", progress=False)
    assert not (tmp_path / "teachers").exists()


@pytest.mark.parametrize("kind", [PreActivation, Tied, Constants, LayerOfTwoNames, BlockOfTwoNames])
def test_the_engines_agree_on_networks_of_ones_own(kind, register, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)  # it takes minutes
    # anew, not the one of another test
    monkeypatch.setattr(compiled, "student", compiled.student.__wrapped__)
    network, rng = register(kind).build(SHAPE[0], CLASSES, SHAPE[1]), generator(0)
    if kind is Constants:
        network = Flat(constants_in_float64)
    start = network.initial(0).double()
    target = start + 0.1 * torch.randn(start.shape, generator=rng, dtype=torch.float64)
    images = torch.randn(CLASSES, *SHAPE, generator=rng, dtype=torch.float64)
    problem = (
        network,
        start,
        images,
        torch.arange(CLASSES),
        torch.tensor(0.1, dtype=torch.float64),
    )
    updates, loss = (
        draw_updates(CLASSES, None, 3, rng),
        lambda student: (student - target).square().sum(),
    )
    one, *others = (unroll(*problem, updates, loss, engine) for engine in ENGINES)
    assert one.grad_images.abs().max() > 0
    for other in others:
        for a, b in zip(one, other, strict=True):
            assert float((a - b).norm() / b.norm()) < 1e-10


@pytest.fixture
def mixing(register, npz):
    """Data in the order of its classes, a network that normalizes over its batch, and parameters
    with which it tells them apart.
    """
    data = load_data(
        npz(classes=CLASSES, size=8, channels=3, per_class=40), device="cpu", zca=False
    )
    config = register(BatchStatistics)
    network = data.network(config)
    theta, (images, labels) = network.initial(0), data.train
    for _ in range(60):
        theta.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(theta, images), labels), theta)
        theta = (theta - 0.1 * gradient).detach()
    return data, config, theta


class FromZero(BatchStatistics):
    """Its logits are all 0 at first, whatever else is in the batch."""

    def __init__(self):
        super().__init__()
        nn.init.zeros_(self[-1].weight)


def test_batch_statistics_are_seen_behind_a_last_layer_that_begins_at_zero(mixing, register):
    data, *_ = mixing
    assert data.network(register(FromZero, "from zero")).mixes


@pytest.mark.parametrize("kind", ["sorted", "take turns", "shuffled"])
def test_batch_statistics_are_taken_over_images_of_all_classes(kind, register, npz):
    """A test set in the order of its classes, or one in which they take turns, would have batches
    of one class: their statistics would take away what tells the classes apart.
    """
    data = load_data(npz(classes=CLASSES, size=8, channels=3), device="cpu", zca=False)
    network, rng = data.network(register(BatchStatistics)), generator(0)
    assert network.mixes
    assert not data.network(NetworkConfig(width=4, depth=2)).mixes
    labels = torch.arange(160) // 40
    colour = torch.tensor([[2.0, 0, 0], [0, 2, 0], [0, 0, 2], [0, 0, 0]])
    images = colour[labels][:, :, None, None] + torch.randn(160, *SHAPE, generator=rng)
    theta = network.initial(0)
    for _ in range(60):
        theta.requires_grad_()
        (gradient,) = torch.autograd.grad(F.cross_entropy(network(theta, images), labels), theta)
        theta = (theta - 0.1 * gradient).detach()
    order = {
        "sorted": torch.arange(160),
        "take turns": torch.arange(160).view(CLASSES, 40).T.flatten(),
        "shuffled": torch.randperm(160, generator=rng),
    }[kind]
    assert accuracy(network, theta, images[order], labels[order], batch=40) > 90
    one_class = images[:40], labels[:40]
    assert accuracy(network, theta, *one_class, batch=40) < 60


def test_distilled_and_real_features_are_normalized_over_all_classes(register):
    network = register(BatchStatistics).build(SHAPE[0], CLASSES, SHAPE[1])
    check(network, SHAPE, CLASSES)
    theta, rng = network.initial(0), generator(0)
    # each class has a mean of its own, which the statistics of a batch of one class would remove
    real = [3 * label + torch.randn(5, *SHAPE, generator=rng) for label in range(CLASSES)]
    same = [(images, images) for images in real]
    assert float(dm.feature_distance(network, theta, same)) < 1e-8
    other = [(images, images.flip(0) + 1) for images in real]
    by_hand = [network.features(theta, torch.cat(side)) for side in zip(*other, strict=True)]
    means = [each.unflatten(0, (CLASSES, 5)).mean(1) for each in by_hand]
    expected = float((means[0] - means[1]).square().sum())
    assert float(dm.feature_distance(network, theta, other)) == pytest.approx(expected, rel=1e-5)


def test_cafe_looks_at_images_of_all_classes_at_once(mixing):
    data, config, theta = mixing
    problem = common.Problem(data, config, cafe.CAFEConfig(queries=20))
    assert cafe.look(theta, problem, generator(0)) > 0.9


def test_the_module_that_computes_is_the_one_that_is_checked(monkeypatch):
    made = []

    def make(**sizes):
        made.append(PreActivation())
        return made[-1]

    monkeypatch.setitem(ARCHITECTURES, "mine", custom(make, version=1))  # as `made` changes
    network = NetworkConfig("mine").build(SHAPE[0], CLASSES, SHAPE[1])
    called = []
    for module in made:
        module.register_forward_hook(lambda module, *_: called.append(module))
    network(network.initial(0), torch.zeros(1, *SHAPE))
    assert called == [made[0]]


@pytest.mark.parametrize("kind", ["buffer", "parameter"])
def test_a_network_that_is_another_one_each_time_it_is_made_is_refused(register, kind):
    class Drawn(nn.Module):
        def __init__(self):
            super().__init__()
            drawn = torch.tensor(np.random.default_rng().normal(size=SHAPE), dtype=torch.float32)
            if kind == "buffer":
                self.register_buffer("drawn", drawn)
            else:
                self.drawn = nn.Parameter(drawn)
            self.head = nn.Linear(math.prod(SHAPE), CLASSES)

        def forward(self, x):
            return self.head((x * self.drawn).flatten(1))

    with refused("draws drawn anew each time it is made", "draw from torch"):
        register(Drawn).build(SHAPE[0], CLASSES, SHAPE[1])


def test_one_network_is_made_once_and_another_of_its_name_anew(register):
    one = register(PreActivation).build(SHAPE[0], CLASSES, SHAPE[1])
    assert NetworkConfig(width=4).build(1, 2, 8) is NetworkConfig(width=4).build(1, 2, 8)
    assert register(Shared).build(SHAPE[0], CLASSES, SHAPE[1]).shapes != one.shapes


ACTIVATION = nn.ReLU


def test_a_network_whose_globals_changed_is_made_anew(monkeypatch, register):
    def mine():
        return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), ACTIVATION(), nn.Linear(5, CLASSES))

    config = register(mine)
    one = config.build(SHAPE[0], CLASSES, SHAPE[1])
    assert config.build(SHAPE[0], CLASSES, SHAPE[1]) is one
    monkeypatch.setitem(globals(), "ACTIVATION", nn.Tanh)
    theta, images = one.initial(0), torch.randn(2, *SHAPE, generator=generator(0))
    other = config.build(SHAPE[0], CLASSES, SHAPE[1])
    assert not torch.equal(other(theta, images), one(theta, images))


def test_settings_that_a_partial_fixes_are_kept():
    network = NetworkConfig(functools.partial(networks.ConvNet, depth=2), width=4)
    assert len(network.build(3, 10, 32).shapes) == 2 * 4 + 2
    network = NetworkConfig(functools.partial(networks.ConvNet, width=8), width=4)
    assert network.build(3, 10, 32).shapes["0.weight"] == (8, 3, 3, 3)


class Features(nn.Sequential):
    """Normalizes features, of which a single image has no statistics."""

    def __init__(self):
        norm = nn.BatchNorm1d(5, track_running_stats=False)
        super().__init__(nn.Flatten(), nn.Linear(192, 5), norm, nn.ReLU(), nn.Linear(5, CLASSES))


def test_a_network_that_cannot_take_a_single_image_trains_unless_a_batch_has_one(register, npz):
    data = load_data(
        npz(classes=CLASSES, size=8, channels=3, per_class=10), device="cpu", zca=False
    )
    config, count = register(Features), len(data.train.labels)
    assert data.network(config).mixes
    teachers = TeacherConfig(count=1, epochs=1, batch=count - 2, network=config)
    assert len(train_teachers(data, teachers, progress=False)) == 1
    with refused("leave a single one", "choose another batch size"):
        train_teachers(data, replace(teachers, batch=count - 1), progress=False)
    real = selection.random(data, 1, asdict(config))
    with refused("4 images in batches of 3 leave a single one"):
        evaluate(real, data, protocol=Protocol(epochs=1, batch=3), progress=False)
    with refused("batch is 1", "cannot take the statistics of a single image: choose 2 or more"):
        METHODS["ddpp"].fits(data, config, DistillConfig(batch=1))
    with refused("batch is 1", "cannot take the statistics of a single image"):
        bptt.distill(data, config, bptt.BPTTConfig(ipc=2, batch=1))
    with refused("ipc is 1", "cannot take the statistics of a single image"):
        dsa.distill(data, config, dsa.DSAConfig(ipc=1))
    with refused("batch_real is 1", "cannot take the statistics of a single image"):
        dsa.distill(data, config, dsa.DSAConfig(ipc=2, batch_real=1))
    with refused("there are 4 weights, but this network has"):
        cafe.distill(data, config, cafe.CAFEConfig(ipc=2))


def test_a_number_without_bounds_must_be_finite():
    with refused("discrimination is nan", "a finite number"):
        cafe.CAFEConfig(discrimination=float("nan"))
    with refused("saturated is inf", "a finite number"):
        cafe.CAFEConfig(saturated=float("inf"))
    with refused("seed is nan", "a finite number"):
        DistillConfig(seed=float("nan"))


@pytest.mark.parametrize("size", [2.5, "4", 0, float("nan")])
def test_a_size_that_is_no_count_is_refused(size):
    for name in ("width", "depth"):
        with refused(f"the network's {name} is", "it must be"):
            NetworkConfig(**{name: size})
    with refused("ipc is", "it must be"):
        DistillConfig(ipc=size)


def test_numbers_of_numpy_are_as_good_as_pythons():
    config = DistillConfig(ipc=np.int64(2), seed=np.int64(3), epsilon=np.float64(0.1))
    assert json.dumps(asdict(config)) == json.dumps(asdict(DistillConfig(ipc=2, seed=3)))
    with refused("seed is 1.5: it must be a whole number"):
        DistillConfig(seed=1.5)


@pytest.mark.parametrize("kind, name", [(Protocol, "batch"), (DistillConfig, "ipc")])
def test_nothing_is_no_number_where_one_is_needed(kind, name):
    with refused(f"{name} is None: it must be a whole number"):
        kind(**{name: None})
    assert DistillConfig(batch=None, clip=None).batch is None


# How images lie in memory


class Strides(TorchDispatchMode):
    """Notes what convolutions are given, forwards and backwards, that lies in memory channel by
    channel of a pixel.
    """

    def __init__(self):
        super().__init__()
        self.convolutions, self.odd = 0, []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "convolution" in str(function):
            self.convolutions += 1
            given = [a for a in args if isinstance(a, torch.Tensor) and a.ndim == 4]
            last = [
                a
                for a in given
                if a.is_contiguous(memory_format=torch.channels_last) and plain(a) is not a
            ]
            self.odd += [(str(function), tuple(a.shape), a.stride()) for a in last]
        return function(*args, **(kwargs or {}))


def watched(name, channels, size=32):
    """The strides that reach convolutions in a step of the student and back, for each
    augmentation.
    """
    network, watch, rng = NetworkConfig(name, 8).build(channels, 2, size), Strides(), generator(0)
    start, labels, alpha = network.initial(0), torch.arange(2), torch.tensor(0.01)
    images = torch.randn(2, channels, size, size, generator=rng)
    last = torch.randn(2, size, size, channels, generator=rng).permute(0, 3, 1, 2)
    with watch:
        for operation in (None, *OPERATIONS):
            how = None if operation is None else Draw(operation, torch.rand(2, 3, generator=rng))
            for x in (images, last):
                one = (start, x, labels, alpha, Updates([torch.arange(2)] * 2, [how] * 2))
                for engine in ("autograd", "adjoint"):
                    unroll(network, *one, lambda student: student.square().sum(), engine)
        accuracy(network, start, last, labels)
    return watch


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_no_convolution_sees_channels_last_images(name, channels):
    watch = watched(name, channels)
    assert watch.convolutions > 100
    assert watch.odd == []


def test_without_the_guard_they_would(monkeypatch):
    monkeypatch.setattr(networks.flat, "plain", lambda images: images)
    assert watched("convnet", 3).odd  # not the ResNet18: its shortcut is what must never see them


def test_plain_images_are_passed_on_and_others_are_copied():
    images = torch.randn(4, 3, 5, 5)
    assert plain(images) is images
    assert plain(images[1:2]).data_ptr() == images[1:2].data_ptr()
    one = torch.randn(4, 5, 5, 1).permute(0, 3, 1, 2)
    assert one.is_contiguous() and one.is_contiguous(memory_format=torch.channels_last)
    assert plain(one).stride() == (25, 25, 5, 1)
    assert torch.equal(plain(one), one)
    x = images.permute(0, 1, 3, 2).requires_grad_()
    plain(x).square().sum().backward()
    assert torch.equal(x.grad, 2 * x)


@pytest.mark.parametrize("channels", [1, 3])
def test_loaded_images_lie_in_memory_as_new_ones_do(channels, npz):
    for zca in (True, False):
        data = load_data(npz(size=8, channels=channels), device="cpu", zca=zca)
        for split in (data.train, data.validation, data.test):
            assert split.images.stride() == (channels * 64, 64, 8, 1)
    real = selection.random(data, 1, {"name": "convnet", "width": 4, "depth": 1}, 0)
    assert real.images.stride() == (channels * 64, 64, 8, 1)
    with Strides() as watch:  # and augmentations leave some otherwise
        evaluate(real, data, repeats=1, protocol=Protocol(epochs=20), progress=False)
    assert watch.convolutions > 20
    assert watch.odd == []
