"""The rivals: what they match, by something independent; and all methods through one door."""

import itertools
import json
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from small import NAN, TEACHERS, in_double, refused
from torch import nn

from ddpp import (
    ConvNet,
    DistillConfig,
    DistilledDataset,
    Error,
    NetworkConfig,
    Protocol,
    TeacherConfig,
    load_data,
    train_teachers,
)
from ddpp.baselines import bptt, cafe, common, dm, dsa, iadd, kip, ntk, selection, tgdd
from ddpp.baselines.selection import forgetting_events, herd
from ddpp.cli import main
from ddpp.data.augmentation import augment, draw
from ddpp.distilled.formation import fold
from ddpp.evaluating import train
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import PROFILES, from_dict, recipe
from ddpp.foundation.loop import Saving, Stopped
from ddpp.foundation.seeds import derive, generator
from ddpp.teachers import Teachers

WITHOUT_TEACHERS = [
    name for name, method in METHODS.items() if not method.teachers and name != "random"
]
NETWORK = NetworkConfig(width=8)
SMALL = {
    "dc": {"steps": 4, "outer": 2, "inner": 2, "batch_real": 8, "iterates": 2},
    "dsa": {"steps": 4, "outer": 2, "inner": 2, "batch_real": 8, "iterates": 2},
    "dm": {"steps": 6, "batch_real": 8, "iterates": 2},
    "cafe": {"steps": 4, "batch_real": 8, "queries": 4, "window": 2, "most": 3, "iterates": 2},
    "tgdd": {"steps": 6, "batch_real": 8, "epochs": 3, "iterates": 2},
    "kip": {"steps": 6, "target": 20, "iterates": 2},
    "bptt": {"steps": 6, "window": 2, "max_updates": 4, "target": 9, "iterates": 2},
}


@pytest.fixture
def data(npz):
    return load_data(npz(), device="cpu")


def small(name, **changes):
    method = METHODS[name]
    return method.config(**dict(method.settings) | SMALL.get(name, {}) | changes)


def test_herding_takes_the_image_that_brings_the_mean_closest_each_time():
    features = torch.randn(12, 5, generator=generator(0), dtype=torch.float64)
    chosen = herd(features, 4).tolist()
    assert len(set(chosen)) == 4
    for k in range(4):
        before = chosen[:k]
        distance = {
            i: (features[[*before, i]].mean(0) - features.mean(0)).norm()
            for i in range(12)
            if i not in before
        }
        assert chosen[k] == min(distance, key=distance.get)
    far = [torch.tensor(pair) for pair in itertools.combinations(range(12), 4)]
    ranks = sorted(float((features[pair].mean(0) - features.mean(0)).norm()) for pair in far)
    mine = float((features[chosen].mean(0) - features.mean(0)).norm())
    assert mine <= ranks[len(ranks) // 10]  # greedy, but among the best tenth of all sets
    assert sorted(herd(features, 12).tolist()) == list(range(12))


def test_forgetting_is_counted_from_right_to_wrong():
    # an image each: right (1) or wrong at four looks
    history = ["1111", "1010", "0101", "0011", "0000", "1000"]
    looks = torch.tensor([[sign == "1" for sign in image] for image in history]).T
    assert forgetting_events(looks).tolist() == [0, 2, 1, 0, 4, 1]


@pytest.mark.parametrize("name", ["herding", "forgetting"])
def test_a_choice_is_of_real_images_of_its_class(data, name):
    teachers = recipe("smoke").teachers
    from ddpp import train_teachers

    teachers = train_teachers(
        data, replace(teachers, count=1, epochs=3, batch=8, network=NETWORK), progress=False
    )
    chosen = METHODS[name].run(data, teachers, small(name, ipc=4, epochs=3), Saving())
    for image, label in zip(chosen.images, chosen.labels, strict=True):
        same = (data.train.images == image).flatten(1).all(1)
        assert data.train.labels[same].tolist() == [label]
    assert chosen.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(chosen.images.unique(dim=0)) == 12


@pytest.fixture
def forgetful(data):
    """A teacher of which some images are forgotten and others not."""
    config = TeacherConfig(count=1, epochs=6, lr=0.1, batch=8, network=NETWORK)
    return train_teachers(data, config, progress=False)


def chosen_of(name, data, teachers):
    """For each class: its images' indices, and whether each is chosen."""
    chosen = METHODS[name].run(data, teachers, small(name, ipc=4, epochs=6), Saving(progress=False))
    is_in = lambda image: bool((chosen.images == image).flatten(1).all(1).any())
    for label in range(3):
        members = (data.train.labels == label).nonzero().flatten()
        yield members, torch.tensor([is_in(image) for image in data.train.images[members]])


def test_herding_looks_at_the_features_of_the_last_epoch(data, forgetful):
    network, theta = forgetful.network, forgetful.snapshot(0, 6)
    features = network.features(theta, data.train.images)
    for members, chosen in chosen_of("herding", data, forgetful):
        expected = herd(features[members], 4)
        assert chosen.nonzero().flatten().tolist() == sorted(expected.tolist())


def test_forgetting_takes_what_is_forgotten_most_often(data, forgetful):
    images, labels = data.train
    logits = [forgetful.network(forgetful.snapshot(0, epoch), images) for epoch in range(1, 7)]
    events = forgetting_events(torch.stack([x.argmax(1) == labels for x in logits]))
    gaps = []
    for members, chosen in chosen_of("forgetting", data, forgetful):
        assert chosen.sum() == 4
        least = events[members][chosen].min()
        assert least >= events[members][~chosen].max()
        gaps.append(int(least - events[members][~chosen].min()))
    assert max(gaps) > 0  # else any choice would do


def test_images_move_as_by_torchs_optimizers():
    start, *gradients = torch.randn(5, 3, 1, 4, 4, generator=generator(5), dtype=torch.float64)
    config = small("dm", image_lr=0.3, momentum=0.5)
    state = common.State(0, start, torch.tensor(0.01), torch.zeros_like(start))
    x, moments = start, torch.zeros(2, *start.shape, dtype=torch.float64)
    descended, adapted = (start.clone().requires_grad_() for _ in range(2))
    sgd = torch.optim.SGD([descended], 0.3, momentum=0.5)
    adam = torch.optim.Adam([adapted], 0.3)
    for step, gradient in enumerate(gradients):
        descended.grad, adapted.grad = gradient.clone(), gradient.clone()
        sgd.step()
        adam.step()
        state = common.descend(state, gradient, config)
        x, moments = common.adam(x, gradient, moments, 0.3, step)
        assert torch.allclose(state.images, descended, rtol=1e-10)
        assert torch.allclose(x, adapted, rtol=1e-6)


def test_a_pair_has_one_augmentation_of_one_strength(data, monkeypatch):
    problem = common.Problem(data, NETWORK, small("dsa", ipc=3))
    image = data.train.images[:1]
    monkeypatch.setattr(problem, "real", lambda label, n, rng: image.repeat(5, 1, 1, 1))
    changed = []
    for seed in range(20):
        real, mine = problem.pair(image.repeat(9, 1, 1, 1), 1, generator(seed))
        assert (len(real), len(mine)) == (5, 3)
        assert torch.allclose(real, real[:1].expand_as(real), atol=1e-5)
        assert torch.allclose(mine, real[:3], atol=1e-5)
        changed.append(not torch.allclose(mine[:1], image, atol=1e-2))
    assert sum(changed) > 10  # a flip may leave them


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_the_network_of_dc_trains_between_two_updates_of_the_images(data, name, monkeypatch):
    problem = common.Problem(data, NETWORK, small(name, outer=3, momentum=0.0))
    start = data.draw(1, 0).images
    seen, trained_on = [], []

    def match(theta, images, *_):
        seen.append(theta)
        return torch.tensor(float(len(seen))), torch.ones_like(images)

    def trained(theta, images, *_):
        trained_on.append(images)
        return theta + 1

    monkeypatch.setattr(dsa, "match", match)
    monkeypatch.setattr(dsa, "train", trained)
    state = common.State(0, start, torch.tensor(0.01), torch.zeros_like(start))
    after, record = dsa.step(state, problem)
    assert len(seen) == 3
    assert torch.equal(seen[1], seen[0] + 1) and torch.equal(seen[2], seen[1] + 1)
    moved = [start - problem.config.image_lr * count for count in (1, 2, 3)]
    for found, expected in zip([*trained_on, after.images], moved, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    assert float(record["loss"]) == pytest.approx((1 + 2 + 3) / 3 / 3)  # mean per class


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_the_network_of_dc_is_trained_as_by_torchs_sgd(data, name):
    config = small(name, ipc=2, inner=3, batch=4, network_lr=0.05)
    problem = common.Problem(data, NETWORK, config)
    images, labels = data.draw(2, 0)
    theta = problem.network.initial(7)
    found = dsa.train(theta, images, problem, generator(1))

    module = ConvNet(channels=1, classes=3, width=8, depth=3, image_size=12)
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    optimizer, rng = torch.optim.SGD(module.parameters(), 0.05), generator(1)
    for _ in range(3):
        for index in torch.randperm(6, generator=rng).split(4):
            x = augment(images[index], draw(len(index), rng)) if name == "dsa" else images[index]
            optimizer.zero_grad()
            F.cross_entropy(module(x), labels[index]).backward()
            optimizer.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found, theta, rtol=1e-3, atol=1e-5)


def test_gradient_distance_is_one_minus_the_cosine_of_each_output(data):
    network = data.network(NETWORK)
    a, b = torch.randn(2, network.size, generator=generator(1), dtype=torch.float64)
    expected = 0.0
    for x, y in zip(network.unflatten(a).values(), network.unflatten(b).values(), strict=True):
        if x.dim() > 1:
            for u, v in zip(x, y, strict=True):
                u, v = u.flatten().tolist(), v.flatten().tolist()
                dot = sum(p * q for p, q in zip(u, v, strict=True))
                expected += 1 - dot / math.sqrt(sum(p * p for p in u) * sum(q * q for q in v))
    assert float(dsa.distance(network, a, b)) == pytest.approx(expected, rel=1e-5)
    assert float(dsa.distance(network, a, 3 * a)) == pytest.approx(0, abs=1e-4)


def test_the_step_of_dc_follows_the_slope_of_its_distance(data):
    # more than a class has: all of it, no chance left
    config = small("dc", batch_real=100, init="real")
    problem = common.Problem(data, NETWORK, config)
    wide = lambda x: x.double()
    problem.data = in_double(data)
    theta = wide(problem.network.initial(0))
    images = wide(data.draw(1, 0).images)

    def value(images):
        return float(dsa.match(theta, images, problem, generator(0))[0])

    _, gradient = dsa.match(theta, images, problem, generator(0))
    direction = torch.randn(images.shape, generator=generator(3), dtype=torch.float64)
    step = 1e-5 * direction
    slope = (value(images + step) - value(images - step)) / 2e-5
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=1e-4)


def test_means_of_equal_sets_have_no_distance(data):
    network = data.network(NETWORK)
    theta, images = network.initial(0), data.draw(4, 0).images
    features = network.features(theta, images)
    means = features.unflatten(0, (3, 4)).mean(1)
    assert dm.mean_distance(means, features) == 0
    assert dm.mean_distance(means + 1, features) == pytest.approx(means.numel(), rel=1e-5)
    layers = network.activations(theta, images)
    assert len(layers) == 4
    centres = [layer.unflatten(0, (3, 4)).mean(1) for layer in layers]
    assert cafe.feature_loss(centres, centres, (1.0,) * 4) == 0
    moved = [layer + 1 for layer in centres]
    sizes = [layer.numel() for layer in centres]
    expected = sum(w * n for w, n in zip((0.1, 0.2, 0.3, 0.4), sizes, strict=True))
    assert float(cafe.feature_loss(moved, centres, (0.1, 0.2, 0.3, 0.4))) == pytest.approx(
        expected, rel=1e-4
    )


def test_cafe_aligns_what_follows_each_relu_and_what_the_last_layer_sees(data):
    """Against an ordinary module, layer by layer, in float64."""
    config = small("cafe", ipc=2, batch_real=100, weights=(0.1, 0.2, 0.3, 0.4), discrimination=0.5)
    wide = lambda split: split._replace(images=split.images.double())
    problem = common.Problem(in_double(data), NETWORK, config)
    (real, classes), network = problem.data.train, problem.network
    theta, images = network.initial(3).double(), wide(data.draw(2, 0)).images.requires_grad_()
    module = ConvNet(channels=1, classes=3, width=8, depth=3, image_size=12).double()
    nn.utils.vector_to_parameters(theta, module.parameters())

    def layers(x):
        found = []
        for layer in [*module][:-1]:
            x = layer(x)
            found += [x] if isinstance(layer, nn.ReLU) else []
        return [*found, x]

    theirs, mine = layers(real), layers(images)
    for found, expected in zip(network.activations(theta, real), theirs, strict=True):
        assert torch.allclose(found, expected, rtol=1e-10)
    expected = 0.0
    for weight, a, b in zip(config.weights, theirs, mine, strict=True):
        for label in range(3):
            gap = a[classes == label].detach().mean(0) - b[2 * label : 2 * label + 2].mean(0)
            expected = expected + weight * gap.square().sum()
    centres = mine[-1].view(3, 2, -1).mean(1)
    logits = theirs[-1].detach() @ centres.T
    expected = expected + 0.5 * F.cross_entropy(logits, classes, reduction="sum")
    (toward,) = torch.autograd.grad(expected, images)
    loss, gradient = cafe.align(theta, images, problem, generator(0))
    assert float(loss) == pytest.approx(float(expected.detach()), rel=1e-10)
    assert float((gradient - toward).norm() / toward.norm()) < 1e-10


def test_centres_classify_by_their_inner_product():
    features, centres = torch.randn(2, 6, 5, generator=generator(2))
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = sum(
        -math.log(math.exp(f @ centres[y]) / sum(math.exp(f @ c) for c in centres[:3]))
        for f, y in zip(features, labels.tolist(), strict=True)
    )
    assert float(cafe.discrimination_loss(features, labels, centres[:3])) == pytest.approx(
        expected, rel=1e-4
    )


def test_features_are_what_the_last_layer_sees(data):
    network = data.network(NETWORK)
    theta, images = network.initial(0), data.draw(2, 0).images
    last = network.unflatten(theta)
    weight, bias = list(last.values())[-2:]
    logits = F.linear(network.features(theta, images), weight, bias)
    assert torch.allclose(logits, network(theta, images), atol=1e-6)


class HeadFirst(nn.Module):
    """A network that makes its last layer first."""

    def __init__(self, classes, image_size):
        super().__init__()
        self.head = nn.Linear(5, classes)
        self.body = nn.Linear(image_size**2, 5)

    def forward(self, x):
        return self.head(self.body(x.flatten(1)).relu())


class Headless(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.body = nn.Conv2d(1, classes, 1)

    def forward(self, x):
        return self.body(x).mean((2, 3))


def test_the_last_layer_is_the_one_that_is_called_last(data):
    network = data.network(NetworkConfig(HeadFirst))
    features = network.features(network.initial(0), data.draw(2, 0).images)
    assert features.shape == (6, 5)
    network = data.network(NetworkConfig(Headless))
    with refused("'Headless' has no features", "it calls none: end it with one"):
        network.features(network.initial(0), data.draw(2, 0).images)


@pytest.mark.parametrize("engine", ["autograd", "adjoint", "stored"])
@pytest.mark.parametrize("batch", [None, 2])
def test_a_step_of_bptt_follows_the_gradient_through_its_window(data, engine, batch):
    """Against the whole training as one graph, of an ordinary module, in float64. The images before
    the window are other tensors, of equal values.
    """
    config = small("bptt", window=3, max_updates=6, batch=batch, seed=2)
    network, wide = (
        data.network(NETWORK),
        lambda split: split._replace(images=split.images.double()),
    )
    real, start = wide(data.train), wide(data.draw(1, 0))
    state = bptt.begin(start, config)
    state = replace(state, alpha=torch.tensor(0.05, dtype=torch.float64))
    after, record = bptt.step(state, start.labels, real, network, config, engine)

    rng = generator(config.seed, "bptt", 0)
    batches, draws = bptt.draw_window(3, config, rng)
    x, y = bptt.draw_target(real, config, rng)
    module = ConvNet(channels=1, classes=3, width=8, depth=3, image_size=12).double()
    names = dict(module.named_parameters())
    weights = network.unflatten(network.initial(derive(config.seed, "bptt", 0)).double())
    weights = {name: w.requires_grad_() for name, w in zip(names, weights.values(), strict=True)}
    fixed, moving = start.images.clone(), start.images.clone().requires_grad_()
    assert len(batches) > config.window
    for i, (index, how) in enumerate(zip(batches, draws, strict=True)):
        images = (fixed if i < len(batches) - config.window else moving)[index]
        logits = torch.func.functional_call(module, weights, (augment(images, how),))
        loss = F.cross_entropy(logits, start.labels[index])
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {n: w - 0.05 * g for (n, w), g in zip(weights.items(), slopes, strict=True)}
    loss = F.cross_entropy(torch.func.functional_call(module, weights, (x,)), y)
    (expected,) = torch.autograd.grad(loss, moving)

    mine = after.moments[0] / 0.1  # Adam's mean after one step, whose gradient is not clipped
    assert expected.abs().max() > 0
    assert float((mine - expected).norm() / expected.norm()) < 1e-10
    assert float(record["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10)
    assert float(record["norm"]) == pytest.approx(float(expected.norm()), rel=1e-10)
    moved = config.image_lr * expected / (expected.abs() + 1e-8)  # Adam's first step
    assert torch.allclose(after.images, start.images - moved, rtol=0, atol=1e-12)


def test_a_gradient_is_shortened_to_twice_the_running_mean_of_its_norm():
    mean, means, norms = None, [], []
    for length in (1.0, 1.0, 41.0, 1.0, 0.0):
        clipped, mean = bptt.clip(torch.tensor([[0.6], [0.8]]) * length, mean)
        assert clipped[1] * 0.6 == pytest.approx(float(clipped[0] * 0.8))  # the direction stays
        means.append(float(mean))
        norms.append(float(clipped.norm()))
    # 0.9 * 1 + 0.1 * 41 = 5; 0.9 * 5 + 0.1 * 1 = 4.6; 0.9 * 4.6 = 4.14
    assert means == pytest.approx([1, 1, 5, 4.6, 4.14])
    assert norms == pytest.approx([1, 1, 10, 1, 0])
    assert bptt.clip(torch.zeros(2), None)[0].tolist() == [0, 0]


def test_each_number_of_updates_from_the_window_on_is_drawn_as_often(data):
    config = small("bptt", window=2, max_updates=4)
    drawn = [len(bptt.draw_window(3, config, generator(i)).batches) for i in range(600)]
    assert {*drawn} == {2, 3, 4}
    assert all(150 < drawn.count(n) < 250 for n in (2, 3, 4))
    run = METHODS["bptt"].run(data, NETWORK, small("bptt"), Saving(progress=False))
    assert {*run.history["updates"].tolist()} <= {2, 3, 4}
    x, y = bptt.draw_target(data.train, replace(config, target=10**6, augment=False), generator(0))
    assert len(x) == len(y) == len(data.train.labels)


@pytest.fixture
def teachers(data):
    config = TeacherConfig(count=2, epochs=3, batch=8, network=NETWORK)
    return train_teachers(data, config, progress=False)


def test_a_step_of_tgdd_follows_features_and_predictions_of_snapshots(data, teachers, monkeypatch):
    """Against an ordinary module whose features a hook sees, and all images of each class."""
    config = small("tgdd", batch_real=100, augment=False, constraint=3.0, momentum=0.0, ipc=2)
    wide = lambda split: split._replace(images=split.images.double())
    problem = common.Problem(in_double(data), NETWORK, config)
    start = wide(data.draw(2, 0))
    state = common.State(4, start.images, common.rate(0.01, data), torch.zeros_like(start.images))
    monkeypatch.setattr(teachers, "snapshot", lambda *at: Teachers.snapshot(teachers, *at).double())
    after, record = tgdd.step(state, problem, teachers)

    k, epoch, later = (record[name] for name in ("teacher", "epoch", "later"))
    module = ConvNet(channels=1, classes=3, width=8, depth=3, image_size=12).double()
    seen = []
    module[-1].register_forward_pre_hook(lambda m, x: seen.append(x[0]))
    images = start.images.clone().requires_grad_()
    torch.nn.utils.vector_to_parameters(teachers.snapshot(k, epoch), module.parameters())
    _, _ = module(problem.data.train.images), module(images)
    real, mine = seen
    features = torch.zeros(())
    for label in range(3):
        a = real.detach()[data.train.labels == label].mean(0)
        features = features + (a - mine[2 * label : 2 * label + 2].mean(0)).pow(2).sum()
    (toward,) = torch.autograd.grad(features, images)
    torch.nn.utils.vector_to_parameters(teachers.snapshot(k, later), module.parameters())
    entropy = -module(images).log_softmax(1)[torch.arange(6), start.labels].mean()
    # the sum over classes, of which 3 is the weight
    toward = toward + 3 * 3 * torch.autograd.grad(entropy, images)[0]

    assert 0 <= epoch < later <= 3
    assert float(record["features"]) == pytest.approx(float(features.detach()) / 3, rel=1e-10)
    assert float(record["cross_entropy"]) == pytest.approx(float(entropy.detach()), rel=1e-10)
    assert float(record["loss"]) == pytest.approx(float((features / 3 + 3 * entropy).detach()))
    assert float((after.velocity - toward).norm() / toward.norm()) < 1e-10
    assert torch.allclose(after.images, start.images - toward, rtol=0, atol=1e-12)


def test_tgdd_improves_the_pictures_in_each_image(data, teachers, tmp_path):
    config = small("tgdd", formation=2, ipc=1, augment=False, momentum=0.0)
    run = lambda saving: tgdd.distill(data, teachers, config, saving)
    saving = Saving(tmp_path / "checkpoint", save_steps=1, progress=False)
    made = stop_and_go_on(run, saving)
    whole = run(Saving(progress=False))
    assert torch.equal(made.images, whole.images) and made.formation == 2
    assert DistilledDataset.load(tmp_path / "checkpoint").formation == 2
    photographs = data.draw(4, config.seed)
    assert torch.equal(made.at(0).images, fold(photographs.images, 2))
    assert torch.equal(made.labels, torch.arange(3))
    assert torch.equal(made.unfolded().labels, photographs.labels)

    # a step, with the pictures cut out and enlarged by hand
    images = made.at(0).images.clone().requires_grad_()
    parts = [images[..., y : y + 6, x : x + 6] for y in (0, 6) for x in (0, 6)]
    large = [
        torch.nn.functional.interpolate(part, scale_factor=2, mode="bilinear") for part in parts
    ]
    pictures = torch.stack(large, 1).flatten(0, 1)
    problem = common.Problem(data, NETWORK, config, formation=2)
    k, epoch, later = tgdd.draw_snapshots(2, 3, generator(config.seed, "tgdd", 0))
    rng = generator(config.seed, "tgdd", 0)
    tgdd.draw_snapshots(2, 3, rng)
    real = [problem.real(label, config.batch_real, rng) for label in range(3)]
    pairs = [(real[label], pictures[4 * label : 4 * label + 4]) for label in range(3)]
    network = problem.network
    loss = dm.feature_distance(network, teachers.snapshot(k, epoch), pairs)
    logits = network(teachers.snapshot(k, later), pictures)
    loss = loss + 3 * torch.nn.functional.cross_entropy(logits, photographs.labels)
    (toward,) = torch.autograd.grad(loss, images)
    state = common.State(0, made.at(0).images, made.alpha, torch.zeros_like(images))
    after, _ = tgdd.step(state, problem, teachers)
    assert torch.allclose(after.velocity, toward, rtol=1e-4, atol=1e-6)


def test_noise_has_the_scale_of_images_in_any_formation(data, teachers):
    config = small("tgdd", formation=2, ipc=4, init="noise")
    made = tgdd.distill(data, teachers, config, Saving(progress=False))
    assert float(made.at(0).images.std()) == pytest.approx(1, abs=0.05)


def test_a_later_snapshot_of_the_same_teacher_is_drawn():
    drawn = {tgdd.draw_snapshots(2, 3, generator(i)) for i in range(200)}
    assert drawn == {(k, i, j) for k in range(2) for i in range(3) for j in range(i + 1, 4)}


def test_teachers_of_other_data_or_too_few_epochs_are_refused(data, teachers, npz):
    with pytest.raises(Error, match="trained on another data set or preprocessing"):
        tgdd.distill(load_data(npz(name="other", size=16), device="cpu"), teachers, small("tgdd"))
    with pytest.raises(Error, match="epochs 4 reaches epoch 4, but these teachers stop at 3"):
        tgdd.distill(data, teachers, small("tgdd", epochs=4))


def test_images_are_not_chosen_by_teachers_of_other_data(teachers, npz):
    other = load_data(npz(name="other", size=16), device="cpu")
    for choose in (selection.herding, selection.forgetting):
        with pytest.raises(Error, match="trained on another data set or preprocessing"):
            choose(other, teachers, selection.SelectionConfig(epochs=1))


@pytest.mark.parametrize("name", [*WITHOUT_TEACHERS, "tgdd"])
def test_a_stopped_run_goes_on_to_the_same_bits(data, teachers, name, tmp_path, monkeypatch):
    method, config = METHODS[name], small(name)
    source = teachers if method.teachers else NETWORK
    whole = method.run(data, source, config, Saving(progress=False))
    assert set(whole.iterates) == {0, config.steps // 2, config.steps}
    assert torch.isfinite(whole.history["loss"]).all()
    assert not torch.equal(whole.images, whole.at(0).images)
    saving = Saving(tmp_path / "checkpoint", save_steps=1, progress=False)
    again = stop_and_go_on(lambda saving: method.run(data, source, config, saving), saving)
    assert torch.equal(again.images, whole.images)
    assert torch.equal(again.history["loss"], whole.history["loss"])
    with pytest.raises(Error, match="other settings"):
        method.run(data, source, replace(config, seed=1), saving)


def test_forgetting_goes_on_with_the_next_look(data, tmp_path, monkeypatch):
    teachers = replace(recipe("smoke").teachers, count=1, epochs=4, batch=8, network=NETWORK)
    teachers = train_teachers(data, teachers, progress=False)
    choose = lambda saving: METHODS["forgetting"].run(
        data, teachers, small("forgetting", epochs=4), saving
    )
    whole = choose(Saving(progress=False))
    saving, looks, snapshot = Saving(tmp_path / "checkpoint", progress=False), [], teachers.snapshot

    def look(teacher, epoch):
        looks.append(epoch)
        if len(looks) == 3:
            raise KeyboardInterrupt
        return snapshot(teacher, epoch)

    monkeypatch.setattr(teachers, "snapshot", look)
    with pytest.raises(KeyboardInterrupt):
        choose(saving)
    assert torch.equal(choose(saving).images, whole.images)
    assert looks == [1, 2, 3, 3, 4]
    with pytest.raises(Error, match="other settings"):
        METHODS["forgetting"].run(data, teachers, small("forgetting", epochs=3), saving)


def stop_and_go_on(run, saving):
    """What a run comes to that is stopped after its second step and begun again."""

    def stop(after):
        if after.state.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(replace(saving, on_step=stop))
    said = []
    again = run(replace(saving, report=said.append))
    assert any("resuming from step" in line for line in said)
    return again


def test_learned_weights_leave_what_is_difficult_to_match():
    student, teacher, start = torch.randn(3, 100, generator=generator(3), dtype=torch.float64)
    weights = torch.rand(100, generator=generator(4), dtype=torch.float64) + 0.5
    way = float((start - teacher).square().sum())
    by_hand = (
        sum(float(w * (s - t)) ** 2 for w, s, t in zip(weights, student, teacher, strict=True))
        / way
    )
    assert float(iadd.weighted_loss(student, teacher, start, weights)) == pytest.approx(by_hand)
    weights, losses = torch.ones(100, dtype=torch.float64), []
    for _ in range(20):
        slope = 2 * weights * (student - teacher).square() / way
        weights = iadd.reweigh(weights, slope, 5.0)
        assert weights.mean() == pytest.approx(1)
        assert weights.min() > 0
        losses.append(float(iadd.weighted_loss(student, teacher, start, weights)))
    assert losses == sorted(losses, reverse=True)
    order = (student - teacher).abs().argsort()
    assert weights[order[:10]].min() > 1 > weights[order[-10:]].max()


def test_no_single_step_takes_a_weight_away_for_good():
    weights, shock = torch.ones(100), torch.zeros(100)
    shock[:90] = 1e9  # of a step that went wrong
    weights = iadd.reweigh(weights, shock, 0.01)
    assert weights.mean() == pytest.approx(1)
    assert weights[:90].min() == pytest.approx(float(weights[90:].max()) / 2)


def test_iadd_begins_as_mtt_and_its_weights_are_a_part_of_the_state(data, tmp_path, monkeypatch):
    network = NetworkConfig(width=4)
    teachers = train_teachers(
        data, TeacherConfig(count=1, epochs=3, batch=8, network=network), progress=False
    )
    settings = {"steps": 6, "student_steps": 3, "image_lr": 10.0, "iterates": 2}
    plain, whole = (
        METHODS[name].run(data, teachers, small(name, **settings), Saving(progress=False))
        for name in ("mtt", "iadd")
    )
    first, later = torch.isclose(plain.history["loss"], whole.history["loss"]).split([1, 5])
    assert first.all()
    assert not later.any()
    assert (whole.history["heaviest"].diff() > 0).all()
    run = lambda saving: METHODS["iadd"].run(data, teachers, small("iadd", **settings), saving)
    again = stop_and_go_on(run, Saving(tmp_path / "checkpoint", save_steps=1, progress=False))
    assert torch.equal(again.images, whole.images)
    wrong = {
        "weights_lr": "must be positive",
        "trajectories": "one trajectory per step",
        "rule": "IADD prunes nothing",
    }
    for (name, sentence), value in zip(wrong.items(), (0.0, 2, "signed"), strict=True):
        with pytest.raises(Error, match=sentence):
            METHODS["iadd"].check(small("iadd", **{name: value}))


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_each_method_goes_through_the_same_door(npz, name, tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    shared = (
        "--device cpu --teachers.count 1 --teachers.epochs 3 --teachers.batch 8 "
        "--teachers.network.width 8"
    ).split()
    shared += "--protocol.epochs 5 --repeats 2".split()
    own = ["--steps", "3"] if hasattr(METHODS[name].config, "steps") else []
    own += ["--epochs", "3"] if "epochs" in METHODS[name].reach else []
    own += ["--student-steps", "2"] if issubclass(METHODS[name].config, DistillConfig) else []
    command = ["distill", "--method", name, "--data", str(npz()), *shared, *own, "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    assert "distillation gains" in capsys.readouterr().out
    distilled = DistilledDataset.load(out)
    assert distilled.provenance["method"] == name
    assert distilled.images.shape == (3, 1, 12, 12)
    assert main(command) == 0
    assert "is finished already" in capsys.readouterr().out
    assert (
        main(
            ["evaluate", str(out), "--data", str(npz()), "--repeats", "1", "--protocol.epochs", "2"]
        )
        == 0
    )
    assert main(["show", str(out), "--out", str(tmp_path / "all.png")]) == 0


def test_settings_of_every_method_survive_a_file():
    import json
    from dataclasses import asdict

    for profile, name in itertools.product(PROFILES, METHODS):
        for ipc in (1, 10, 50):
            made = recipe(profile, "cifar100" if profile == "paper" else None, ipc, name)
            made.stored_teachers()
            assert from_dict(json.loads(json.dumps(asdict(made)))) == made


def test_no_more_teachers_are_trained_than_a_method_looks_at():
    stored = {name: recipe("paper", "cifar10", 10, name).stored_teachers() for name in METHODS}
    assert (stored["ddpp"].count, stored["ddpp"].epochs) == (200, 21)
    assert stored["mtt"] == stored["ddpp"]
    assert (stored["herding"].count, stored["herding"].epochs) == (1, 10)
    assert stored["forgetting"] == stored["herding"]


def test_a_new_method_needs_one_line(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", METHODS["dm"])
    assert {recipe(profile, method="mine").distill for profile in PROFILES} == {dm.DMConfig()}


def test_published_loops_of_dc_go_with_the_size():
    loops = {
        ipc: (c := recipe("paper", "cifar10", ipc, "dc").distill) and (c.outer, c.inner)
        for ipc in (1, 5, 10, 50)
    }
    assert loops == {1: (1, 1), 5: (1, 1), 10: (10, 50), 50: (50, 10)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--method", "dream"], "unknown method 'dream'"),
        (["--method", "dm", "--steps", "0"], "steps is 0: it must be at least 1"),
        (["--method", "dm", "--image-lr", "-1"], "image_lr is -1.0: it must be positive"),
        (["--method", "dsa", "--momentum", "1"], "momentum is 1.0"),
        (["--method", "dc", "--init", "ones"], "unknown init 'ones'"),
        (
            ["--method", "bptt", "--window", "50"],
            "window 50 is longer than the 45 updates of a network (max_updates): lower window or",
        ),
        (["--method", "bptt", "--alpha", "0"], "alpha is 0.0: it must be positive"),
        (["--method", "bptt", "--engine", "jax"], "unknown engine 'jax'"),
        (
            ["--method", "herding", "--epochs", "9"],
            "epochs 9 reaches epoch 9, but the teachers stop at 6",
        ),
        (["--method", "forgetting", "--epochs", "0"], "epochs is 0"),
        (
            ["--method", "tgdd", "--epochs", "9"],
            "epochs 9 reaches epoch 9, but the teachers stop at 6",
        ),
        (["--method", "tgdd", "--constraint", "-1"], "constraint is -1.0: it must be at least 0"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_work(
    npz, tmp_path, capsys, options, words
):
    out = tmp_path / "runs" / "set.safetensors"
    assert (
        main(["distill", *options, "--data", str(npz()), "--device", "cpu", "--out", str(out)]) == 1
    )
    assert words in capsys.readouterr().err
    assert not out.parent.exists() or not list(out.parent.iterdir())


@pytest.mark.parametrize("name", ["herding", "tgdd"])
def test_a_network_without_features_is_refused_before_its_teachers_are_trained(npz, name):
    data = load_data(str(npz()), device="cpu")
    with refused("the network 'Pooled' has no features to match"):
        METHODS[name].fits(data, NetworkConfig(Pooled), small(name))


class Pooled(nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.last = nn.Conv2d(channels, classes, 1)

    def forward(self, x):
        return self.last(x).mean((2, 3))


class Places(nn.Module):
    """A linear layer at each place of an image, which is called by keyword."""

    def __init__(self, channels, classes):
        super().__init__()
        self.last = nn.Linear(channels, classes)

    def forward(self, x):
        return self.last(input=x.flatten(2).mT).mean(1)


class Rows(Places):
    """One that is given the places as rows."""

    def forward(self, x):
        rows = x.permute(0, 2, 3, 1).flatten(0, 2)
        return self.last(rows).unflatten(0, (len(x), -1)).mean(1)


def test_features_of_a_layer_at_each_place_are_those_of_all_places(data):
    network = data.network(NetworkConfig(Places))
    images = data.train.images[:5]
    found = network.features(network.initial(0), images)
    assert torch.equal(found, images.flatten(2).mT.flatten(1))
    rows = data.network(NetworkConfig(Rows))
    with refused("is given 720 rows for 5 images", "one row for each image"):
        rows.features(rows.initial(0), images)


@pytest.mark.parametrize("name", ["cafe", "herding"])
def test_methods_of_features_take_a_layer_at_each_place(data, name):
    network = NetworkConfig(Places)
    if name == "herding":
        teachers = train_teachers(data, replace(TEACHERS, network=network), progress=False)
        made = METHODS[name].run(data, teachers, small(name, epochs=3), Saving(progress=False))
    else:
        config = small(name, weights=(1.0,))
        made = METHODS[name].run(data, network, config, Saving(progress=False))
    assert made.images.isfinite().all()


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("iadd", {"epsilon": 0.9}, "epsilon is 0.9, but IADD prunes nothing"),
        ("kip", {"label_lr": 0.5}, "label_lr has no meaning without learn_labels"),
        ("cafe", {"weights": (NAN, 1.0)}, "weights is (nan, 1.0): it must be a list of finite"),
        ("cafe", {"weights": 0.1}, "weights is 0.1: it must be a list of finite numbers"),
    ],
)
def test_settings_without_a_meaning_are_refused(name, changes, words):
    with refused(words):
        METHODS[name].check(small(name, **changes))


def test_a_setting_without_effect_is_refused(tmp_path, capsys):
    line = [
        "distill",
        "--method",
        "random",
        "--epochs",
        "5",
        "--out",
        str(tmp_path / "a.safetensors"),
    ]
    assert main(line) == 1
    assert "random makes no use of epochs: leave it out" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["dm", "bptt"])
def test_images_that_leave_the_numbers_stop_the_run_with_advice(name, data):
    with pytest.raises(Stopped, match="lower image_lr"):
        METHODS[name].run(data, NETWORK, small(name, image_lr=1e39), Saving(progress=False))


def test_cafe_says_how_many_layers_it_has_to_weigh(data):
    with pytest.raises(Error, match="2 weights, but this network has 4 layers of features"):
        METHODS["cafe"].run(
            data, NETWORK, small("cafe", weights=(1.0, 1.0)), Saving(progress=False)
        )


def test_kip_learns_labels_on_which_networks_then_regress(data, tmp_path):
    learned = METHODS["kip"].run(
        data, NETWORK, small("kip", learn_labels=True), Saving(progress=False)
    )
    assert learned.labels.shape == (3, 3)
    start = kip.centred(torch.arange(3), 3)
    assert not torch.allclose(learned.labels, start, atol=0.01)
    assert set(learned.iterates) == {0, 6}
    path = tmp_path / "set.safetensors"
    learned.save(path)
    again = DistilledDataset.load(path)
    assert torch.equal(again.labels, learned.labels)
    assert torch.equal(again[2][1], learned.labels[2])
    once = Protocol(epochs=1, momentum=0.0, weight_decay=0.0, augment=False)
    network = data.network(NETWORK)
    theta = network.initial(derive(0, "a network")).requires_grad_()
    error = F.mse_loss(network(theta, again.images), learned.labels)
    expected = theta - again.alpha * torch.autograd.grad(error, theta)[0]
    assert torch.allclose(train(network, again, once, 0, "a network"), expected, atol=1e-6)
    assert again.export_png(tmp_path / "images") == 3


def test_a_step_of_kip_moves_images_and_labels_by_adam(data):
    # more than there are: all images of each class, no chance left
    config = small("kip", learn_labels=True, target=10**4, image_lr=0.02, label_lr=0.03)
    images, labels = data.draw(1, 0).images, kip.centred(torch.arange(3), 3)
    zeros = [torch.zeros(2, *x.shape) for x in (images, labels)]
    state = kip.State(0, images, labels, torch.tensor(0.01), *zeros)
    after, record = kip.step(state, data, config)

    moving = [x.clone().requires_grad_() for x in (images, labels)]
    y = F.one_hot(data.train.labels, 3) - 1 / 3
    error = ntk.predict(*moving, data.train.images, "fc", 1, config.reg) - y
    loss = error.square().sum() / (2 * error.numel())
    loss.backward()
    assert float(record["loss"]) == pytest.approx(float(loss.detach()), rel=1e-4)
    found = (after.images, after.moments, 0.02), (after.labels, after.label_moments, 0.03)
    for x, (moved, moments, rate) in zip(moving, found, strict=True):
        assert torch.allclose(moments[0], 0.1 * x.grad, rtol=1e-3, atol=1e-7)
        expected = x - rate * x.grad / (x.grad.abs() + 1e-8)  # Adam's first step
        assert torch.allclose(moved, expected, atol=1e-4)


def test_a_kernel_that_does_not_fit_is_refused_before_any_step(data, monkeypatch):
    monkeypatch.setattr(kip, "room", lambda device: 2**20)
    with pytest.raises(
        Error, match=r"takes about .* GiB, and 0.0 are there for this run: lower target or depth"
    ):
        METHODS["kip"].run(
            data, NETWORK, small("kip", kernel="conv", depth=3), Saving(progress=False)
        )


TINY = """--teachers.count 1 --teachers.epochs 3 --teachers.batch 16 --teachers.network.width 4
    --repeats 1 --protocol.epochs 4 --device cpu""".split()
FEW = "--steps 2 --iterates 1".split()
OPTIONS = {
    **{key: [*FEW, "--student-steps", "2"] for key in ("ddpp", "mtt", "iadd")},
    **{key: [*FEW, "--outer", "2", "--inner", "2", "--batch-real", "8"] for key in ("dc", "dsa")},
    "dm": [*FEW, "--batch-real", "8", "--init", "noise"],
    "cafe": [*FEW, *"--batch-real 8 --queries 4 --window 2 --most 2".split()],
    "kip": [*FEW, "--target", "20", "--learn-labels"],
    "tgdd": [*FEW, *"--batch-real 8 --epochs 3".split()],
    "bptt": [*FEW, *"--window 2 --max-updates 3 --target 9".split()],
    "random": [],
    "herding": ["--epochs", "3"],
    "forgetting": ["--epochs", "3"],
}


@pytest.mark.parametrize("name", METHODS)
def test_the_callers_default_type_changes_no_bit(name, npz, tmp_path):
    made, path = [], npz()
    for dtype in (torch.float32, torch.float64):
        out = tmp_path / str(dtype) / "set.safetensors"
        before = torch.get_default_dtype()
        torch.set_default_dtype(dtype)
        try:
            line = [
                "distill",
                "--method",
                name,
                "--data",
                str(path),
                "--out",
                str(out),
                *TINY,
                *OPTIONS[name],
            ]
            assert main(line) == 0
        finally:
            torch.set_default_dtype(before)
        made.append(
            (out.read_bytes(), json.loads(out.with_suffix(".json").read_text())["distilled"])
        )
        teachers = sorted(out.parent.rglob("teacher_*"))
        assert bool(teachers) == METHODS[name].teachers
        made[-1] += tuple(path.read_bytes() for path in teachers)
    assert made[0] == made[1]


@pytest.mark.parametrize(
    "method, option, words",
    [
        (
            "mtt",
            ["--rule", "signed"],
            "rule is signed, but mtt has none, or it would be another method",
        ),
        ("mtt", ["--rule", "random"], "rule is random, but mtt has none"),
        ("dc", ["--augment"], "augment is True, but dc has False"),
        ("dsa", ["--no-augment"], "augment is False, but dsa has True"),
        ("iadd", ["--rule", "signed"], "IADD prunes nothing"),
        ("mtt", ["--leave-out", "vectors"], "leave_out is ('vectors',), but mtt has ()"),
        ("iadd", ["--leave-out", "vectors"], "IADD weighs every parameter"),
    ],
)
def test_a_method_is_not_run_under_the_name_of_another(
    method, option, words, npz, tmp_path, capsys
):
    out = tmp_path / "runs" / "set.safetensors"
    line = ["distill", "--method", method, "--data", str(npz()), "--out", str(out), *TINY, *option]
    assert main(line) == 1
    assert words in capsys.readouterr().err
    assert not out.parent.exists()


@pytest.mark.parametrize("method", ["dm", "tgdd", "bptt"])
def test_names_of_operations_are_refused_where_they_would_not_be_heard(method):
    with refused("augment is ('crop',): it must be True or False"):
        METHODS[method].config(augment=("crop",))


def test_tgdd_draws_every_pair_of_an_epoch_and_a_later_one():
    drawn = {tgdd.draw_snapshots(2, 3, generator(seed, "pairs")) for seed in range(300)}
    pairs = [(epoch, later) for epoch in range(3) for later in range(epoch + 1, 4)]
    assert drawn == {(k, *pair) for k in range(2) for pair in pairs}
