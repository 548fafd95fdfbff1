"""Teachers: settings and files that they cannot be made from are refused, and nothing stored is
lost.
"""

import errno
import pickle
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from small import NAN, NETWORK, TEACHERS, X, in_double, load, refused, save, untouched
from torch import nn

from ddpp.experiments.places import teachers_in
from ddpp.foundation import files
from ddpp.networks import ConvNet, Flat
from ddpp.teachers import one_epoch, read_snapshot, train_teachers


@pytest.mark.parametrize(
    "changes, words",
    [
        *[({name: 0}, [f"{name} is 0", "at least 1"]) for name in ("count", "epochs", "batch")],
        *[({"lr": value}, ["lr", "positive"]) for value in (0.0, -1.0, NAN)],
        *[({"rho": value}, ["rho is", "at least 0"]) for value in (-1.0, NAN)],
        (
            {"network": replace(NETWORK, depth=4)},
            ["depth 4", "8 x 8 pixels", "a depth of at most 3"],
        ),
    ],
)
def test_teachers_that_cannot_be_trained_are_refused(data, tmp_path, changes, words):
    with refused(*words):
        train_teachers(data, replace(TEACHERS, **changes), tmp_path, progress=False)
    assert not any(tmp_path.iterdir())


def test_a_snapshot_is_the_callers_own(data):
    teachers = train_teachers(data, TEACHERS, progress=False)
    before = teachers.snapshot(0, 1)
    teachers.snapshot(0, 1).zero_()
    assert torch.equal(teachers.snapshot(0, 1), before) and before.any()


def test_stored_teachers_can_be_copied(data, trained):
    copy = pickle.loads(pickle.dumps(train_teachers(data, TEACHERS, trained, progress=False)))
    stored = train_teachers(data, TEACHERS, trained, progress=False)
    assert torch.equal(copy.snapshot(1, 2), stored.snapshot(1, 2))


def test_an_epoch_that_is_not_stored(teachers):
    with refused("epoch 4 is not stored", "epochs 0 to 3", "train them longer"):
        teachers.snapshot(0, 4)


@pytest.mark.parametrize("k", [-1, 2])
def test_a_teacher_that_is_not_there(teachers, k):
    with refused(f"teacher {k} is not there", "0 to 1"):
        teachers.snapshot(k, 0)


def test_finished_teachers_are_read_where_nothing_can_be_written(data, trained, monkeypatch):
    def never(*_):
        pytest.fail("finished teachers were to be written")

    monkeypatch.setattr(files, "check_writable", never)
    monkeypatch.setattr(files, "lock", never)
    read = train_teachers(data, replace(TEACHERS, epochs=2), trained, progress=False)
    assert len(read) == TEACHERS.count and read.epochs >= 2


def test_a_teacher_that_diverges_is_stored_up_to_then(data, tmp_path):
    # the loss of the first epoch is still that of the start
    one_update = replace(TEACHERS, lr=1e30, batch=len(data.train.labels))
    with refused("teacher 0 diverged in epoch 2", "lower its learning rate"):
        train_teachers(data, one_update, tmp_path, progress=False)
    kept = set(files.read(tmp_path / "teacher_000.safetensors", "teacher")[0])
    assert kept == {"epoch_000", "epoch_001", "loss_001"}


def test_a_teacher_in_training_is_saved_after_half_a_minute(data, tmp_path, monkeypatch):
    path, seen, clock = tmp_path / "teacher_000.safetensors", [], SimpleNamespace(now=0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("ddpp.teachers.time", clock)

    def look(*of):
        seen.append(sorted(files.read(path, "teacher")[0])[-1] if path.exists() else None)
        clock.now += 20  # seconds that an epoch takes
        return one_epoch(*of)

    monkeypatch.setattr("ddpp.teachers.one_epoch", look)
    train_teachers(data, replace(TEACHERS, count=1, epochs=5), tmp_path, progress=False)
    assert seen == [None, None, "loss_002", "loss_002", "loss_004"]


@pytest.fixture
def trained(data, tmp_path):
    train_teachers(data, TEACHERS, tmp_path / "teachers", progress=False)
    return tmp_path / "teachers"


def test_teachers_of_another_configuration_are_refused(data, trained, tmp_path):
    other = load(save(tmp_path / "other.npz", x_train=255 - X))
    for on, changes in ((data, {"lr": 0.5}), (data, {"seed": 1}), (other, {})):
        with (
            untouched(*trained.iterdir()),
            refused(
                "teacher_000.safetensors belongs to a teacher of another", "choose another folder"
            ),
        ):
            train_teachers(on, replace(TEACHERS, **changes), trained, progress=False)


def test_a_rate_of_one_is_the_same_written_either_way(data, tmp_path):
    whole, real = (replace(TEACHERS, lr=lr) for lr in (1, 1.0))
    assert teachers_in(tmp_path, whole, data) == teachers_in(tmp_path, real, data)
    assert isinstance(whole.batch, int) and isinstance(whole.lr, float)


@pytest.mark.parametrize("cut", [True, False])
def test_damaged_teachers_are_refused_and_left_as_they_are(data, trained, cut):
    path = trained / "teacher_001.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] if cut else content[:-1] + bytes([content[-1] ^ 1]))
    with untouched(path), refused("teacher_001.safetensors is damaged", "move it away"):
        train_teachers(data, replace(TEACHERS, epochs=4), trained, progress=False)


def test_a_folder_that_cannot_be_written_is_noticed_before_training(data, file, monkeypatch):
    monkeypatch.setattr(Flat, "__call__", lambda *_: pytest.fail("a teacher was trained in vain"))
    with untouched(file), refused("cannot write", "choose another place"):
        train_teachers(data, TEACHERS, file, progress=False)


def test_an_epoch_with_rho_is_sharpness_aware_minimization(data):
    """Against SAM written with an ordinary module and optimizer, in float64."""
    config = replace(TEACHERS, rho=0.05, augment=False, batch=5)
    wide = in_double(data)
    network = data.network(NETWORK)
    start = network.initial(0).double()
    theta, loss = one_epoch(network, start, wide, config, torch.Generator().manual_seed(3))

    module = ConvNet(channels=3, classes=2, width=4, depth=1, image_size=8).double()
    nn.utils.vector_to_parameters(start, module.parameters())
    optimizer, losses = torch.optim.SGD(module.parameters(), config.lr), []
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    for index in order.split(5):
        x, y = wide.train.images[index], wide.train.labels[index]
        before = [p.detach().clone() for p in module.parameters()]
        for climb in (True, False):
            optimizer.zero_grad()
            value = F.cross_entropy(module(x), y)
            value.backward()
            if climb:
                losses += [value.item()] * len(index)
                norm = torch.cat([p.grad.flatten() for p in module.parameters()]).norm()
                with torch.no_grad():
                    for p in module.parameters():
                        p += config.rho * p.grad / norm
        with torch.no_grad():
            for p, old in zip(module.parameters(), before, strict=True):
                p.copy_(old)
        optimizer.step()
    expected = nn.utils.parameters_to_vector(module.parameters()).detach()
    assert torch.allclose(theta, expected, rtol=1e-10, atol=1e-12)
    assert float(loss) == pytest.approx(sum(losses) / 12)


def test_flat_teachers_are_others_and_go_on_to_the_same_bits(data, teachers, tmp_path):
    flat = replace(TEACHERS, rho=0.05)
    whole = train_teachers(data, flat, progress=False)
    train_teachers(data, replace(flat, epochs=2), tmp_path, progress=False)
    resumed = train_teachers(data, flat, tmp_path, progress=False)
    for k, epoch in ((0, 2), (1, 3)):
        assert torch.equal(resumed.snapshot(k, epoch), whole.snapshot(k, epoch))
    assert torch.equal(whole.snapshot(0, 0), teachers.snapshot(0, 0))
    assert not torch.equal(whole.snapshot(0, 3), teachers.snapshot(0, 3))
    with refused("belongs to a teacher of another configuration", "rho was 0.05"):
        train_teachers(data, TEACHERS, tmp_path, progress=False)


def test_the_step_uphill_is_as_long_as_rho(data):
    wide = in_double(data)
    network, ends = data.network(NETWORK), []
    for rho in (0.0, 1e-4, 1e-3):
        rng, config = torch.Generator().manual_seed(3), replace(TEACHERS, rho=rho)
        ends.append(one_epoch(network, network.initial(0).double(), wide, config, rng)[0])
    near, far = ((end - ends[0]).norm() for end in ends[1:])
    assert near > 0 and float(far / near) == pytest.approx(10, rel=0.2)


def test_a_folder_that_cannot_be_read_gets_a_sentence(data, monkeypatch, tmp_path):
    stat = Path.stat

    def forbidden(path, **how):
        if path.name.startswith("teacher_"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, **how)

    monkeypatch.setattr(Path, "stat", forbidden)
    with refused(f"cannot read {tmp_path / 'teacher_000.safetensors'}: Permission denied"):
        train_teachers(data, TEACHERS, tmp_path, progress=False)
    with refused("cannot read", "check the path and its permissions"):
        read_snapshot(tmp_path, TEACHERS.identity(data), 0, 0)
