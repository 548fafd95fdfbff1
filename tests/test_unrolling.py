"""Exactness, in float64: the engines agree with each other and with trajectory matching written
plainly.
"""

import pytest
import torch
import torch.nn.functional as F
from small import SHORT, limited, moving, refused
from torch import nn

from ddpp.data.augmentation import OPERATIONS, Draw
from ddpp.foundation import devices
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig
from ddpp.pruning import matching_loss
from ddpp.unrolling import Updates, choose_engine, draw_updates, kept_bytes, unroll

N, CLASSES, SIZE = 6, 3, 8


@pytest.fixture
def problem():
    """A small ConvNet, images, a start and a teacher a step of training away, all float64."""
    network = NetworkConfig(width=8, depth=2).build(3, CLASSES, SIZE)
    rng = generator(0, "problem")
    start = network.initial(0).double()
    move = 0.02 * torch.randn(start.shape, generator=rng, dtype=torch.float64)
    images = torch.randn(N, 3, SIZE, SIZE, generator=rng, dtype=torch.float64)
    labels = torch.arange(N) % CLASSES
    return network, start, start + move, images, labels


def relative(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("steps", [1, 5, 50])
@pytest.mark.parametrize("epsilon", [0.0, 0.1])
@pytest.mark.parametrize("rule", ["signed", "magnitude"])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("engine", ["adjoint", "stored"])
def test_the_engines_agree(problem, steps, epsilon, rule, batch, engine):
    network, start, teacher, images, labels = problem
    alpha = torch.tensor(0.02, dtype=torch.float64)
    updates = draw_updates(N, batch, steps, generator(1, "updates"))
    loss = lambda student: matching_loss(student, teacher, start, epsilon, rule)
    a, b = (
        unroll(network, start, images, labels, alpha, updates, loss, e)
        for e in (engine, "autograd")
    )
    assert b.grad_images.abs().max() > 0
    assert b.grad_alpha != 0
    assert relative(a.student, b.student) < 1e-12
    assert relative(a.loss, b.loss) < 1e-10
    assert relative(a.grad_images, b.grad_images) < 1e-10
    assert relative(a.grad_alpha, b.grad_alpha) < 1e-10


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("engine", ["adjoint", "stored"])
def test_the_engines_agree_through_every_augmentation(problem, operation, engine):
    network, start, teacher, images, labels = problem
    u = torch.rand(N, 3, generator=generator(2), dtype=torch.float64)
    updates = Updates([torch.arange(N)] * 2, [Draw(operation, u)] * 2)
    alpha = torch.tensor(0.05, dtype=torch.float64)
    loss = lambda student: matching_loss(student, teacher, start, 0.1)
    a, b = (
        unroll(network, start, images, labels, alpha, updates, loss, e)
        for e in (engine, "autograd")
    )
    assert relative(a.grad_images, b.grad_images) < 1e-10


def test_stored_makes_the_very_bits_of_adjoint(problem):
    network, start, teacher, images, labels = problem
    given = (network, start.float(), images.float(), labels, torch.tensor(0.02))
    loss = lambda student: matching_loss(student, teacher.float(), start.float(), 0.1)
    updates = draw_updates(N, 4, 5, generator(1, "updates"))
    a, b = (unroll(*given, updates, loss, engine) for engine in ("stored", "adjoint"))
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("rule, epsilon", [("none", 0.1), ("magnitude", 0.0)])
@pytest.mark.parametrize("engine", ["autograd", "adjoint", "stored"])
def test_pruning_nothing_is_trajectory_matching(problem, engine, rule, epsilon):
    """Against MTT written from its definition with an ordinary module, and gradients by central
    differences.
    """
    _, start, teacher, images, labels = problem
    layers = []
    for c in (3, 8):
        layers += [nn.Conv2d(c, 8, 3, padding=1), nn.GroupNorm(8, 8), nn.ReLU(), nn.AvgPool2d(2)]
    net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 4, CLASSES)).double()

    def plain(images, alpha):
        nn.utils.vector_to_parameters(start, net.parameters())
        weights = {name: p.detach().clone() for name, p in net.named_parameters()}
        for _ in range(3):
            weights = {name: w.detach().requires_grad_() for name, w in weights.items()}
            loss = F.cross_entropy(torch.func.functional_call(net, weights, (images,)), labels)
            gradients = torch.autograd.grad(loss, list(weights.values()))
            weights = {
                n: w - alpha * g for (n, w), g in zip(weights.items(), gradients, strict=True)
            }
        student = torch.cat([w.detach().flatten() for w in weights.values()])
        return float(((student - teacher) ** 2).sum() / ((start - teacher) ** 2).sum())

    network, alpha = problem[0], 0.05
    updates = Updates([torch.arange(N)] * 3, [None] * 3)
    loss = lambda student: matching_loss(student, teacher, start, epsilon, rule)
    out = unroll(
        network,
        start,
        images,
        labels,
        torch.tensor(alpha, dtype=torch.float64),
        updates,
        loss,
        engine,
    )
    assert float(out.loss) == pytest.approx(plain(images, alpha), rel=1e-12)

    h = 1e-6
    direction = torch.randn(images.shape, generator=generator(3), dtype=torch.float64)
    slope = (plain(images + h * direction, alpha) - plain(images - h * direction, alpha)) / (2 * h)
    assert float((out.grad_images * direction).sum()) == pytest.approx(slope, rel=1e-5)
    slope = (plain(images, alpha + h) - plain(images, alpha - h)) / (2 * h)
    assert float(out.grad_alpha) == pytest.approx(slope, rel=1e-5)


def test_batches_are_drawn_without_replacement():
    updates = draw_updates(10, 4, 5, generator(0))
    assert all(len(batch) == 4 for batch in updates.batches)
    for first, second in (updates.batches[0:2], updates.batches[2:4]):
        assert len(set(first.tolist()) | set(second.tolist())) == 8
    assert not torch.equal(updates.batches[0], updates.batches[2])
    whole = draw_updates(10, None, 3, generator(0))
    assert all(torch.equal(batch, torch.arange(10)) for batch in whole.batches)


def test_the_engine_is_chosen_by_whether_the_graph_fits(problem, monkeypatch):
    network, _, _, images, labels = problem
    engine, why = choose_engine(network, images.float(), labels, None, 10, 5)
    assert (engine, "MiB" in why) == ("autograd", True)
    whole, stored = (
        10 * kept_bytes(network, images.float(), labels, e) for e in ("autograd", "stored")
    )
    assert whole > 1.5 * stored > 15 * images.numel() * 4  # at least the images themselves
    for total, expected in ((3.1 * whole, "autograd"), (2.9 * whole, "stored")):
        memory = type("Memory", (), {"total": total})
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        assert choose_engine(network, images.float(), labels, None, 10, 5)[0] == expected
    memory = type("Memory", (), {"total": 5 * whole})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    chosen = lambda: choose_engine(network, images.float(), labels, None, 10, 5)[0]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # as torchrun says
    assert chosen() == "stored"
    monkeypatch.delenv("LOCAL_WORLD_SIZE")
    try:
        for jobs, expected in ((1, "autograd"), (2, "stored"), (8, "adjoint")):
            devices.share_memory(jobs)
            assert chosen() == expected
    finally:
        devices.share_memory(1)
    memory = type("Memory", (), {"total": 2.9 * stored})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert choose_engine(network, images.float(), labels, None, 10, 5)[0] == "adjoint"


def test_a_temporary_folder_without_room_is_named(data, tmp_path, run):
    wide = moving(data, lambda start: 1.1 * start, width=64)
    with (
        limited(tmp_path / "disk") as full,
        full(),
        refused("no room for the student's path", "make room", "TMPDIR", "engine stored"),
    ):
        run(teachers=wide, engine="adjoint", **SHORT)
