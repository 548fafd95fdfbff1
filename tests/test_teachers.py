"""Teachers: settings and files that they cannot be made from are refused, and nothing stored is
lost.
"""

from dataclasses import replace

import pytest
from small import NAN, NETWORK, TEACHERS, X, load, refused, save, untouched

from ddpp.foundation import files
from ddpp.networks import Flat
from ddpp.teachers import train_teachers


@pytest.mark.parametrize(
    "changes, words",
    [
        *[({name: 0}, [f"{name} is 0", "at least 1"]) for name in ("count", "epochs", "batch")],
        *[({"lr": value}, ["lr", "positive"]) for value in (0.0, -1.0, NAN)],
        *[
            ({"network": replace(NETWORK, **{name: 0})}, [f"{name} is 0", "1"])
            for name in ("width", "depth")
        ],
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


def test_an_epoch_that_is_not_stored(teachers):
    with refused("epoch 4 is not stored", "epochs 0 to 3", "train them longer"):
        teachers.snapshot(0, 4)


def test_a_teacher_that_diverges_is_stored_up_to_then(data, tmp_path):
    # the loss of the first epoch is still that of the start
    one_update = replace(TEACHERS, lr=1e30, batch=len(data.train.labels))
    with refused("teacher 0 diverged in epoch 2", "lower its learning rate"):
        train_teachers(data, one_update, tmp_path, progress=False)
    kept = set(files.read(tmp_path / "teacher_000.safetensors", "teacher")[0])
    assert kept == {"epoch_000", "epoch_001", "loss_001"}


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
