"""Bad input gets a sentence that says what is wrong and what to do, an exit code that is not 0, and
nothing is lost.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch

from ddpp import cli
from ddpp.data import load_data
from ddpp.distilled import DistilledDataset
from ddpp.distilling import MAX_SKIPPED, DistillConfig, distill, step
from ddpp.evaluating import Protocol, evaluate
from ddpp.experiments import run as whole_runs
from ddpp.experiments.recipes import recipe
from ddpp.foundation import files
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error
from ddpp.networks import NetworkConfig
from ddpp.teachers import TeacherConfig, Teachers, train_teachers

NAN, INF = float("nan"), float("inf")
NETWORK = NetworkConfig(width=4, depth=1)
TEACHERS = TeacherConfig(count=2, epochs=3, lr=0.02, batch=6, network=NETWORK)
CONFIG = DistillConfig(
    steps=4, student_steps=2, image_lr=1.0, alpha0=0.02, iterates=2, engine="autograd"
)


def arrays(classes=2, side=8, channels=3):
    rng = np.random.default_rng(0)
    y = {"train": np.repeat(np.arange(classes), 6), "test": np.repeat(np.arange(classes), 3)}
    image = lambda y: np.uint8(
        rng.integers(0, 200, (len(y), side, side, channels)) + 20 * y[:, None, None, None]
    )
    return {f"x_{part}": image(of) for part, of in y.items()} | {
        f"y_{part}": of for part, of in y.items()
    }


X, Y, XT, YT = (arrays()[key] for key in ("x_train", "y_train", "x_test", "y_test"))


def save(path, without=(), **changes):
    np.savez(
        path, **{key: array for key, array in (arrays() | changes).items() if key not in without}
    )
    return path


def load(path, **options):
    return load_data(path, **{"device": "cpu", "zca": False, "validation": 0} | options)


def refused(*words):
    """An Error whose message has these words, in this order."""
    return pytest.raises(Error, match="(?s)" + ".*".join(map(re.escape, words)))


@contextlib.contextmanager
def untouched(*paths):
    before = [path.read_bytes() for path in paths]
    yield
    assert [path.read_bytes() for path in paths] == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module", autouse=True)
def one_thread():  # networks this small are slower on several
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return load(save(tmp_path_factory.mktemp("data") / "mine.npz"))


@pytest.fixture(scope="module")
def teachers(data):
    return train_teachers(data, TEACHERS, progress=False)


@pytest.fixture
def run(data, teachers):
    return lambda data=data, teachers=teachers, checkpoint=None, save_steps=None, **changes: (
        distill(
            data,
            teachers,
            replace(CONFIG, **changes),
            checkpoint=checkpoint,
            save_steps=save_steps,
            progress=False,
        )
    )


@pytest.fixture(scope="module")
def distilled(data, teachers):
    return distill(data, teachers, CONFIG, progress=False)


# names


@pytest.mark.parametrize(
    "asked, near", [("cifar-10", "cifar10"), ("cifar10_sample", "cifar10-sample")]
)
def test_an_unknown_data_set_is_answered_with_the_nearest(asked, near):
    with refused("unknown data set", asked, f"did you mean '{near}'", "a path that ends in .npz"):
        load(asked)


@pytest.mark.parametrize(
    "setting, asked, near", [("rule", "sign", "signed"), ("engine", "adjoin", "adjoint")]
)
def test_an_unknown_rule_or_engine_is_answered_with_the_nearest(run, setting, asked, near):
    with refused(f"unknown {setting} '{asked}'", f"did you mean '{near}'", "the choices are"):
        run(**{setting: asked})


def test_an_unknown_network_is_answered_with_the_nearest(data, distilled):
    with refused("unknown network 'convnets'", "did you mean 'convnet'"):
        train_teachers(
            data, replace(TEACHERS, network=replace(NETWORK, name="convnets")), progress=False
        )
    with refused("unknown network 'convnets'", "did you mean 'convnet'"):
        evaluate(distilled, data, "convnets", progress=False)


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with refused("unknown profile 'papr'", "did you mean 'paper'"):
        recipe("papr")


def test_a_name_like_no_other_gets_the_choices_alone():
    with pytest.raises(Error) as caught:
        load("mnist")
    assert "did you mean" not in str(caught.value)
    assert "cifar10-sample, cifar10, cifar100" in str(caught.value)


# arrays


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"y_train": Y - 1}, ["y_train", "from -1 to 0", "integers from 0 to 1"]),
        ({"y_test": YT + 1}, ["y_test", "from 1 to 2", "2 classes", "integers from 0 to 1"]),
        (
            {"classes": np.array(["a", "b"]), "y_train": Y * 2},
            ["y_train", "from 0 to 2", "2 classes"],
        ),
        ({"y_train": Y * 2, "y_test": YT * 2}, ["from 0 to 2", "2 classes", "without gaps"]),
        # must not make 10**17 names first
        ({"y_train": Y * 10**17}, ["2 classes", "without gaps"]),
        ({"classes": np.array(["a", "b", "c"])}, ["class 2", "no training image", "without gaps"]),
        ({"classes": np.array(["a", "a"])}, ["classes", "different names"]),
        ({"classes": np.array("ab")}, ["classes", "a list"]),
        ({"classes": np.array(["a", "b"], object)}, ["Python objects"]),
        ({"y_train": Y * 0, "y_test": YT * 0}, ["one class only", "at least 2"]),
        ({"y_train": Y * 1.0}, ["y_train", "float64", "labels must be integers"]),
        ({"y_train": Y > 0}, ["y_train", "bool", "labels must be integers"]),
        ({"y_train": Y[:-1]}, ["12 images", "(11,)", "one label per image"]),
        ({"y_train": Y[:, None]}, ["12 images", "(12, 1)", "one label per image"]),
    ],
)
def test_labels_must_number_the_classes(tmp_path, changes, words):
    with refused(*words):
        load(save(tmp_path / "mine.npz", **changes))


def sizes(*images):
    array = np.empty(len(images), object)
    array[:] = images
    return array


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"x_train": X[:, :, :6]}, ["x_train", "(12, 8, 6, 3)", "must be square"]),
        ({"x_train": X.transpose(0, 3, 1, 2)}, ["(12, 3, 8, 8)", "channels last", "transpose"]),
        ({"x_test": XT.reshape(6, -1)}, ["x_test", "(6, 192)", "(N, S, S)"]),
        ({"x_train": np.full(X.shape, NAN)}, ["x_train", "not finite", "drop"]),
        ({"x_test": np.full(XT.shape, INF)}, ["x_test", "not finite", "drop"]),
        ({"x_train": X / 100}, ["x_train", "values from 0 to", "scale the floats"]),
        ({"x_train": X / -255}, ["x_train", "values from -", "scale the floats"]),
        ({"x_train": X.astype(np.int64)}, ["x_train", "int64", "uint8, or floats"]),
        ({"x_train": X.astype(complex)}, ["x_train", "complex128", "uint8, or floats"]),
        ({"x_train": X.astype(str)}, ["x_train", "uint8, or floats"]),
        ({"x_test": XT[:, :6, :6]}, ["(8, 8, 3)", "(6, 6, 3)", "one size"]),
        ({"x_test": XT[..., :1]}, ["(8, 8, 3)", "(8, 8, 1)", "one size"]),
        ({"x_train": sizes(X[0], X[1, :6, :6])}, ["several sizes", "all images of one size"]),
        ({"x_train": X[:0], "y_train": Y[:0]}, ["x_train", "at least one image"]),
        ({"x_test": XT[:0] / 255, "y_test": YT[:0]}, ["x_test", "at least one image"]),
        ({"x_train": X[..., :0], "x_test": XT[..., :0]}, ["without a single pixel"]),
        ({"x_train": X * 0}, ["same value in every training pixel", "drop it"]),
    ],
)
def test_images_must_be_square_finite_and_of_one_size(tmp_path, changes, words):
    with refused(*words):
        load(save(tmp_path / "mine.npz", **changes))


@pytest.mark.parametrize("kind", ["f2", "f4", ">f4", "f8", np.longdouble])
def test_floats_of_every_kind_are_images(tmp_path, data, kind):
    loaded = load(
        save(tmp_path / "mine.npz", x_train=(X / 255).astype(kind), x_test=(XT / 255).astype(kind))
    )
    torch.testing.assert_close(loaded.train.images, data.train.images, rtol=0, atol=5e-3)


@pytest.mark.parametrize("share", [-0.1, 1.0, NAN])
def test_the_validation_share_is_a_share(tmp_path, share):
    with refused("validation share", "at least 0 and below 1"):
        load(save(tmp_path / "mine.npz"), validation=share)


@pytest.mark.parametrize("kept", [0, 8, 700, -30])
def test_a_truncated_npz_is_called_damaged(tmp_path, kept):
    path = save(tmp_path / "mine.npz")
    path.write_bytes(path.read_bytes()[:kept])
    with untouched(path), refused("mine.npz cannot be read", "damaged", "numpy.savez"):
        load(path)


def test_an_altered_npz_is_called_damaged(tmp_path):
    path = save(tmp_path / "mine.npz")
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with untouched(path), refused("mine.npz cannot be read", "damaged", "numpy.savez"):
        load(path)


def test_another_kind_of_file_is_not_an_npz(tmp_path):
    np.save(tmp_path / "images.npy", X)
    (tmp_path / "images.npy").rename(tmp_path / "npy.npz")
    (tmp_path / "text.npz").write_text("images")
    for name in ("npy.npz", "text.npz"):
        with refused(f"{name} cannot be read", "not an .npz", "numpy.savez"):
            load(tmp_path / name)


@pytest.mark.parametrize("lacking", [["y_test"], ["x_train", "x_test"]])
def test_an_npz_must_hold_four_arrays(tmp_path, lacking):
    with refused("lacks", ", ".join(lacking), "it must hold x_train, y_train, x_test, y_test"):
        load(save(tmp_path / "mine.npz", without=lacking))


def test_a_path_that_is_not_there_or_no_npz(tmp_path):
    with refused("there is no file", "nowhere.npz", "check the path"):
        load(tmp_path / "nowhere.npz")
    with refused("there is no file", "check the path"):
        load(tmp_path.with_name(tmp_path.name + ".npz"))
    with refused("cannot be read", "name too long"):
        load("x" * 300 + ".npz")
    (tmp_path / "images.csv").write_text("1,2,3")
    with refused("images.csv", "a path that ends in .npz"):
        load(tmp_path / "images.csv")


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX systems")
def test_a_forbidden_file_is_not_called_damaged(tmp_path):
    npz, ours = save(tmp_path / "mine.npz"), tmp_path / "ours.safetensors"
    files.write(ours, "thing", {}, {})
    for path in (npz, ours):
        path.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:
            os.seteuid(65534)
        with refused("mine.npz cannot be read", "Permission denied"):
            load(npz)
        with refused("cannot read", "ours.safetensors", "Permission denied", "permissions"):
            files.read(ours, "thing")
    finally:
        if root:
            os.seteuid(0)


def test_cifar10_must_be_the_official_arrays(tmp_path):
    path = save(tmp_path / "cifar10.npz")
    with (
        untouched(path),
        refused("x_train of cifar10 is not the official array", "SHA-256", "fetch the data again"),
    ):
        load("cifar10", root=tmp_path)


def test_a_failed_download_says_where_the_arrays_can_go(tmp_path, monkeypatch):
    def offline(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.CIFAR100", offline)
    with refused("cifar100 could not be downloaded", "no route to host", "put cifar100.npz there"):
        load("cifar100", root=tmp_path)


def test_data_that_is_there_is_read_where_nothing_can_be_written(tmp_path, monkeypatch):
    asked = []

    def complete(root, train, download):
        asked.append(download)
        part = "train" if train else "test"
        return SimpleNamespace(data=arrays()[f"x_{part}"], targets=arrays()[f"y_{part}"].tolist())

    monkeypatch.setattr("torchvision.datasets.CIFAR100", complete)
    monkeypatch.setattr(
        "ddpp.data.sources.files.check_writable", lambda path: pytest.fail(f"{path} is asked for")
    )
    # which these are not, but they were read
    with refused("x_train of cifar100 is not the official array"):
        load("cifar100", root=tmp_path)
    assert asked == [False, False]


# settings


@pytest.mark.parametrize(
    "changes, words",
    [
        *[
            ({"epsilon": value}, ["epsilon", "at least 0 and below 1"])
            for value in (-0.1, 1.0, NAN)
        ],
        *[
            ({name: value}, [f"{name} is {value}", "at least 1"])
            for name in (
                "ipc",
                "steps",
                "student_steps",
                "expert_epochs",
                "max_start_epoch",
                "iterates",
                "batch",
            )
            for value in (0, -1)
        ],
        *[
            ({name: value}, [name, "positive"])
            for name in ("image_lr", "alpha0")
            for value in (0.0, -1.0, NAN)
        ],
        ({"ipc": 7}, ["class '0' has 6 training images", "7 images per class", "lower"]),
        (
            {"expert_epochs": 3},
            ["expert_epochs 3", "epoch 4", "stop at 3", "train them longer or lower either"],
        ),
        (
            {"max_start_epoch": 9},
            ["max_start_epoch 9", "epoch 10", "stop at 3", "train them longer or lower either"],
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_step(run, tmp_path, changes, words):
    with refused(*words):
        run(checkpoint=tmp_path / "checkpoint", **changes)
    assert not any(tmp_path.iterdir())


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


def test_images_too_small_for_the_depth_are_told_the_depth_that_fits(tmp_path):
    small = load(save(tmp_path / "mine.npz", **arrays(side=4)))
    with refused("depth 3", "4 x 4 pixels", "larger images or a depth of at most 2"):
        small.network(replace(NETWORK, depth=3))
    small.network(replace(NETWORK, depth=2))


@pytest.mark.parametrize("changes", [{"expert_epochs": 6}, {"max_start_epoch": 6}])
def test_a_recipe_must_reach_its_last_epoch(changes):
    smoke = recipe("smoke")
    with refused("reach epoch 7", "the teachers stop at 6", "train them longer or lower either"):
        replace(smoke, distill=replace(smoke.distill, **changes)).stored_teachers()


def test_an_epoch_that_is_not_stored(teachers):
    with refused("epoch 4 is not stored", "epochs 0 to 3", "train them longer"):
        teachers.snapshot(0, 4)


def test_a_teacher_that_diverges_is_stored_up_to_then(data, tmp_path):
    # the loss is still that of the start
    one_update = replace(TEACHERS, lr=INF, batch=len(data.train.labels))
    with refused("teacher 0 diverged in epoch 1", "lower its learning rate"):
        train_teachers(data, one_update, tmp_path, progress=False)
    assert set(files.read(tmp_path / "teacher_000.safetensors", "teacher")[0]) == {"epoch_000"}


def test_teachers_of_other_data_are_refused(tmp_path, run, teachers):
    for other in (
        load(save(tmp_path / "mine.npz"), zca=True),
        load(save(tmp_path / "3.npz", **arrays(classes=3))),
    ):
        with refused("trained on another data set or preprocessing", "train teachers on this one"):
            run(data=other)


@pytest.mark.parametrize("device", ["gpu", "", "meta", "cpu:7"])
def test_an_unknown_device(device):
    with refused(f"unknown device '{device}'", "use 'cpu' or 'cuda'"):
        find_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_no_gpu_where_one_is_asked_for(device):
    with refused("CUDA was asked for", "no GPU here", "use the device 'cpu'"):
        find_device(device)


def test_no_hundred_gpus():
    with refused("CUDA was asked for", "GPU here", "use the device 'cpu'"):
        find_device("cuda:99")


# files of ours


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "thing.safetensors"
    files.write(
        path, "thing", {"a": torch.arange(3.0), "b": torch.tensor(7)}, {"name": "x", "number": 0.1}
    )
    return path


def test_equal_content_is_equal_bytes(file):
    again = file.with_name("again.safetensors")
    files.write(
        again, "thing", {"b": torch.tensor(7), "a": torch.arange(3.0)}, {"number": 0.1, "name": "x"}
    )
    assert again.read_bytes() == file.read_bytes()


def test_every_truncation_is_noticed(file):
    content = file.read_bytes()
    for kept in range(len(content)):
        file.write_bytes(content[:kept])
        with refused("thing.safetensors", "damaged", "cut short or altered"):
            files.read(file, "thing")


def test_every_flipped_byte_is_noticed(file):
    content = file.read_bytes()
    data_begins = 8 + int.from_bytes(content[:8], "little")
    for at in range(len(content)):
        file.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(Error, match=r"damaged|not written by ddpp") as caught:
            files.read(file, "thing")
        assert at < data_begins or "altered" in str(caught.value)


def test_a_file_of_another_kind_is_named_as_what_it_is(file, run):
    with untouched(file), refused("holds a thing, not a distilled dataset", "choose another file"):
        DistilledDataset.load(file)
    with untouched(file), refused("holds a thing, not a checkpoint", "choose another file"):
        run(checkpoint=file)


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"ddpp": "5"}, {"ddpp": "{}"}])
def test_a_safetensors_file_from_elsewhere_is_refused(file, metadata):
    file.write_bytes(safetensors.torch.save({"a": torch.ones(2)}, metadata))
    with untouched(file), refused("was not written by ddpp", "choose another file"):
        files.read(file, "thing")


def test_another_programs_file_is_not_to_be_deleted(file):
    file.write_bytes(b"a year of measurements")
    with untouched(file), refused("not a file of ddpp", "move it away"):
        files.read(file, "thing")


def test_a_missing_file_is_not_called_damaged(file, tmp_path):
    for path in (file.with_name("nowhere"), tmp_path):
        with refused("there is no file", "check the path"):
            files.read(path, "thing")


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
    monkeypatch.setattr(
        "ddpp.teachers._epoch", lambda *_: pytest.fail("a teacher was trained in vain")
    )
    with untouched(file), refused("cannot write", "choose another place"):
        train_teachers(data, TEACHERS, file, progress=False)


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(run, tmp_path):
    path = tmp_path / "checkpoint"
    run(checkpoint=path)
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        with untouched(path), refused("checkpoint is damaged", "move it away"):
            run(checkpoint=path)


def test_a_checkpoint_of_another_run_is_refused_and_left_as_it_is(run, tmp_path):
    path = tmp_path / "checkpoint"
    run(checkpoint=path)
    for changes in ({"seed": 1}, {"epsilon": 0.2}, {"steps": 5}):
        with (
            untouched(path),
            refused("belongs to a run with other settings", "choose another output"),
        ):
            run(checkpoint=path, **changes)


# distilled files


def test_a_distilled_file_is_for_its_own_classes_and_preprocessing(tmp_path, distilled):
    with refused("2 classes, the data 3", "the data set that it was distilled from"):
        evaluate(distilled, load(save(tmp_path / "3.npz", **arrays(classes=3))), progress=False)
    with refused("or other names", "the data set that it was distilled from"):
        evaluate(
            distilled, load(save(tmp_path / "ab.npz", classes=np.array(["a", "b"]))), progress=False
        )
    with refused("preprocessed in another way", "whitening=distilled.whitening"):
        evaluate(distilled, load(save(tmp_path / "mine.npz"), zca=True), progress=False)
    larger = save(tmp_path / "larger.npz", **arrays(side=12))
    with refused("(3, 12, 12)", "(3, 8, 8)", "use the data set that it belongs to"):
        load(larger, whitening=distilled.whitening)


def test_an_iterate_that_was_not_kept(distilled):
    with refused("step 3 was not kept", "the choices are 0, 2, 4"):
        distilled.at(3)


@pytest.mark.parametrize(
    "name, options", [("repeats", {"repeats": 0}), ("epochs", {"protocol": Protocol(epochs=0)})]
)
def test_an_evaluation_takes_at_least_one(distilled, data, name, options):
    with refused(f"the evaluation's {name} is 0", "at least 1"):
        evaluate(distilled, data, progress=False, **options)


# steps that cannot be taken


def moving(data, *ends, width=4):
    """Teachers whose one epoch takes the start to `end(start)`."""
    network = data.network(replace(NETWORK, width=width))
    start = network.initial(0)
    trajectories = [
        {"epoch_000": start, "epoch_001": end(start), "loss_001": torch.tensor(1.0)} for end in ends
    ]
    return Teachers(
        trajectories, TEACHERS.identity(data), replace(TEACHERS, count=len(ends)), network
    )


SHORT = {"max_start_epoch": 1, "expert_epochs": 1}


def test_a_run_in_which_everything_is_pruned_ends_with_advice(run, data):
    with refused(
        "every parameter was pruned", f"{MAX_SKIPPED + 1} steps in a row", "lower epsilon"
    ):
        run(
            teachers=moving(data, lambda start: -start),
            epsilon=0.999,
            rule="signed",
            steps=30,
            **SHORT,
        )


def test_a_run_whose_alpha_leaves_the_positive_numbers_ends_with_advice(run):
    with refused(f"{MAX_SKIPPED + 1} steps in a row", "lower", "alpha_lr"):
        run(alpha_lr=1e30, steps=30)


def test_a_run_whose_images_leave_the_numbers_ends_with_advice_and_keeps_its_steps(run, tmp_path):
    path, taken = tmp_path / "checkpoint", run(image_lr=1e30, steps=1)
    assert not taken.history["skipped"].any()
    with refused("the loss was not finite", f"{MAX_SKIPPED + 1} steps in a row", "lower image_lr"):
        run(image_lr=1e30, steps=30, checkpoint=path, save_steps=1)
    tensors, meta = files.read(path, "checkpoint")
    skipped = tensors["history.skipped"]
    assert meta["step"] >= MAX_SKIPPED
    assert skipped[0] == 0 and skipped[1 : meta["step"]].all()
    assert torch.equal(tensors["images"], taken.images)
    # the advice followed, the old steps still stay
    with untouched(path), refused("other settings"):
        run(image_lr=1.0, steps=30, checkpoint=path)


def test_a_run_whose_steps_were_all_skipped_is_no_result(run, data, tmp_path):
    path = tmp_path / "checkpoint"
    for _ in range(2):  # the second time from the checkpoint
        with refused(f"in {MAX_SKIPPED} steps in a row", "lower alpha_lr"):
            run(alpha_lr=1e30, steps=MAX_SKIPPED, checkpoint=path)
    tensors, _ = files.read(path, "checkpoint")
    assert tensors["history.skipped"].sum() == MAX_SKIPPED
    assert torch.equal(tensors["images"], data.draw(CONFIG.ipc, CONFIG.seed).images)
    assert tensors["alpha"] == torch.tensor(CONFIG.alpha0)


def test_a_teacher_that_stands_still_costs_its_own_steps_only(run, data):
    still, goes = lambda start: start, lambda start: 1.1 * start
    history = run(teachers=moving(data, still, goes), steps=30, **SHORT).history
    assert 0 < history["skipped"].sum() < 30
    assert torch.equal(history["skipped"], (history["teacher"] == 0).float())


# the command line


def words(*settings):
    return [
        str(word)
        for setting in settings
        for word in (setting if isinstance(setting, tuple) else (setting,))
    ]


def command(npz, out, *more, verb="distill"):
    small = words(
        *(
            verb,
            ("--data", npz),
            ("--out", out),
            ("--device", "cpu"),
            ("--validation", 0),
            ("--repeats", 1),
        ),
        *(
            ("--teachers.count", 1),
            ("--teachers.epochs", 3),
            ("--teachers.batch", 6),
            ("--protocol.epochs", 2),
        ),
        *(
            ("--teachers.network.width", 4),
            ("--teachers.network.depth", 1),
            ("--engine", "autograd"),
        ),
        *(("--steps", 4), ("--student-steps", 2), ("--iterates", 2)),
    )
    return small + words(*more)


@pytest.fixture
def said(capsys):
    """Runs a command that must fail; returns the last line of its standard error, which must be a
    sentence of ours.
    """

    def call(argv):
        capsys.readouterr()
        assert cli.main(argv) == 1
        err = capsys.readouterr().err
        assert "Traceback" not in err
        assert err.endswith("\n")
        last = err.splitlines()[-1]
        assert last.startswith("ddpp: ")
        return last

    return call


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The data and the result of a whole run."""
    folder = tmp_path_factory.mktemp("finished")
    npz, out = save(folder / "mine.npz"), folder / "out.safetensors"
    assert cli.main(command(npz, out)) == 0
    return npz, out


@pytest.mark.parametrize(
    "more, telling",
    [
        (["--profile", "smok"], "did you mean 'smoke'"),
        (["--data", "cifar-10"], "did you mean 'cifar10'"),
        (["--data", "nowhere.npz"], "there is no file"),
        (["--rule", "sign"], "did you mean 'signed'"),
        (["--teachers.network.name", "convnets"], "did you mean 'convnet'"),
        (["--teachers.network.depth", "4"], "a depth of at most 3"),
        (["--epsilon", "1"], "below 1"),
        (["--ipc", "7"], "fewer than the 7 images per class"),
        (["--student-steps", "0"], "at least 1"),
        (["--expert-epochs", "3"], "the teachers stop at 3"),
        (["--teachers.lr", "0"], "must be positive"),
        (["--device", "tpu"], "use 'cpu' or 'cuda'"),
        (["--validation", "1"], "below 1"),
    ],
)
def test_the_command_line_answers_in_one_line_and_writes_nothing(tmp_path, capsys, more, telling):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "out.safetensors"
    assert cli.main([*command(npz, out), *more]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ddpp: ") and err.endswith("\n") and err.count("\n") == 1
    assert telling in err
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [npz]


def test_words_that_are_no_command_exit_with_2(capsys):
    for argv in ([], ["distil"], ["distill"], ["distill", "--ipc", "two"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(argv)
        assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["out", "out.npz", "out.safetensors.bak"])
def test_the_output_must_end_in_safetensors(tmp_path, said, name):
    assert "must end in .safetensors" in said(command(save(tmp_path / "mine.npz"), tmp_path / name))


@pytest.mark.parametrize("verb", ["distill", "teachers"])
def test_an_output_that_cannot_be_written_is_noticed_before_training(
    tmp_path, said, monkeypatch, verb
):
    npz = save(tmp_path / "mine.npz")
    for module in (cli, whole_runs):
        monkeypatch.setattr(
            module, "train_teachers", lambda *_: pytest.fail("teachers were trained in vain")
        )
    with untouched(npz):
        line = said(command(npz, npz / "out.safetensors", verb=verb))
        assert "cannot write" in line and "choose another place" in line


@pytest.mark.parametrize("changes", [("--seed", 1), ("--teachers.lr", 0.5), ("--epsilon", 0.2)])
def test_the_output_of_another_run_is_refused_and_left_as_it_is(finished, said, changes):
    before = contents(finished[1].parent)
    line = said(command(*finished, changes))
    assert "holds the result of another run" in line and "choose another output" in line
    assert contents(finished[1].parent) == before


def test_a_file_at_the_output_that_is_not_ours_is_left_as_it_is(tmp_path, said):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "out.safetensors"
    for content in (b"a year of measurements", safetensors.torch.save({"a": torch.ones(2)})):
        out.write_bytes(content)
        with untouched(npz, out):
            assert "ddpp" in said(command(npz, out))


def test_a_distilled_file_is_evaluated_on_its_own_data_only(finished, tmp_path, said):
    other = save(tmp_path / "3.npz", **arrays(classes=3))
    larger = save(tmp_path / "larger.npz", **arrays(side=12))
    evaluated_on = lambda npz, file=finished[1]: said(
        words("evaluate", file, ("--data", npz), ("--device", "cpu"))
    )
    assert "the data set that it was distilled from" in evaluated_on(other)
    assert "use the data set that it belongs to" in evaluated_on(larger)
    with untouched(other):
        assert "not a file of ddpp" in evaluated_on(other, other)


def test_pictures_go_where_they_can(finished, said):
    npz, file = finished
    with untouched(npz, file):
        assert "cannot write" in said(words("show", file, ("--out", npz / "pictures.png")))
        assert "choose another folder" in said(words("show", file, ("--folder", npz)))


# full disks


@contextlib.contextmanager
def limited(folder):
    """A folder, and a way to let no file grow beyond 100 bytes for a while, as with a disk of that
    size.
    """
    resource = pytest.importorskip("resource")

    @contextlib.contextmanager
    def full():
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that the write fails instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            signal.signal(signal.SIGXFSZ, before)

    folder.mkdir()
    yield full


@contextlib.contextmanager
def mounted(folder):
    """A disk of 200 kB, and a way to fill it to the last byte for a while."""

    @contextlib.contextmanager
    def full():
        filler = folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        yield
        filler.unlink()

    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield full
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("disk", [limited, mounted])
def test_a_full_disk_costs_nothing(tmp_path, monkeypatch, capsys, said, disk):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "disk" / "out.safetensors"

    def until_ctrl_c(state, *rest):
        if state.step == 2:
            raise KeyboardInterrupt
        return step(state, *rest)

    with disk(out.parent) as full:
        with monkeypatch.context() as patch:
            patch.setitem(distill.__globals__, "step", until_ctrl_c)
            assert cli.main(command(npz, out)) == 130
        clock = out.with_name(f"{out.name}.seconds")  # of no value by itself
        clock.unlink(missing_ok=True)
        before = contents(out.parent)
        assert {path.suffix for path in before} == {".checkpoint", ".safetensors"}
        with full():
            for argv in (
                command(npz, out),
                command(npz, out.parent, ("--teachers.seed", 1), verb="teachers"),
            ):
                line = said(argv)
                assert (
                    "cannot write" in line
                    and "what was there before is unchanged. Make room" in line
                )
                left = {
                    path: content
                    for path, content in contents(out.parent).items()
                    if path.name not in ("filler", clock.name)
                }
                assert left == before  # the checkpoint and the teachers to the byte, and no .part
        assert cli.main(command(npz, out)) == 0
        assert "going on from step 2" in capsys.readouterr().out


def test_a_temporary_folder_without_room_is_named(data, tmp_path, run):
    wide = moving(data, lambda start: 1.1 * start, width=64)
    with (
        limited(tmp_path / "disk") as full,
        full(),
        refused("no room for the student's path", "make room"),
    ):
        run(teachers=wide, engine="adjoint", **SHORT)
