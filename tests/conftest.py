"""What tests share: which of them are slow or stay in one process, a tiny data set whose three
classes a small network tells apart in seconds, and from it teachers, a run and a set.
"""

import os
import signal
from dataclasses import replace
from functools import partial

# before torch starts: on problems this small, threads only wait for one another
os.environ["OMP_NUM_THREADS"] = "1"
# else it starts processes of its own, which import torch
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
# a script that starts the tests with & has it ignored
signal.signal(signal.SIGINT, signal.default_int_handler)

import matplotlib
import numpy as np
import pytest
import torch
from small import CONFIG, TEACHERS, load, save

from ddpp import evaluating
from ddpp.distilling import distill
from ddpp.foundation import files
from ddpp.foundation.identity import TABLES
from ddpp.teachers import train_teachers

matplotlib.use("Agg")


# tests that ask for one of these take long,
SLOW = {"graded", "handed_in", "course", "mistake", "smoke"}
# and those that start a process for each submission
SLOW_MODULES = {"test_course_attacks", "test_course_files"}


@pytest.hookimpl(tryfirst=True)  # before xdist reads the marks
def pytest_collection_modifyitems(items):
    """Where tests run in several processes, those that share something which is made once stay in
    one of them.
    """
    # not the cells of notebooks
    for item in (item for item in items if isinstance(item, pytest.Function)):
        if SLOW & {*item.fixturenames} or item.module.__name__ in SLOW_MODULES:
            item.add_marker(pytest.mark.slow)
        fixtures = item._fixtureinfo.name2fixturedefs
        shared = [name for name, made in fixtures.items() if made[-1].scope == "module"]
        if "mistake" in item.fixturenames:  # of one assignment, whose solution runs once
            shared = [item.callspec.params["name"]]
        if shared:
            item.add_marker(
                pytest.mark.xdist_group(f"{item.module.__name__}-{'-'.join(sorted(shared))}")
            )


def write_npz(folder, classes=3, size=12, channels=1, per_class=20, name="mine", **changes):
    """An .npz of images that are noise around one pattern per class; returns its path."""
    rng = np.random.default_rng(0)
    patterns = rng.random((classes, size, size, channels))
    arrays = {}
    for part in ("train", "test"):
        y = np.repeat(np.arange(classes), per_class)
        noise = rng.normal(0, 0.3, (len(y), size, size, channels))
        arrays |= {f"x_{part}": np.uint8(255 * np.clip(patterns[y] + noise, 0, 1)), f"y_{part}": y}
    path = folder / f"{name}.npz"
    np.savez(path, **arrays | changes)
    return path


@pytest.fixture(autouse=True)
def tables():
    """Only what ddpp itself has in its tables of rules, networks and the like, in every test."""
    yield
    for table in TABLES.values():
        table.clear()
        table.update(table.built_in)


@pytest.fixture
def npz(tmp_path):
    return partial(write_npz, tmp_path)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve images of two classes to train on, six to test on."""
    return load(save(tmp_path_factory.mktemp("data") / "mine.npz"))


@pytest.fixture(scope="module")
def teachers(data):
    """Two teachers of three epochs."""
    return train_teachers(data, TEACHERS, progress=False)


@pytest.fixture
def run(data, teachers):
    """Distils with CONFIG, changed as asked for."""
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


@pytest.fixture
def trainings(monkeypatch):
    """The networks that evaluations train, each with its set, as they come."""
    seen, train = [], evaluating.train

    def note(network, distilled, *how):
        seen.append((network, distilled))
        return train(network, distilled, *how)

    monkeypatch.setattr(evaluating, "train", note)
    return seen


@pytest.fixture(scope="module")
def distilled(data, teachers):
    """What CONFIG makes of the data; the steps 0, 2 and 4 are kept."""
    return distill(data, teachers, CONFIG, progress=False)


@pytest.fixture
def file(tmp_path):
    """A file of ours, of a kind that nothing else has."""
    path = tmp_path / "thing.safetensors"
    files.write(
        path, "thing", {"a": torch.arange(3.0), "b": torch.tensor(7)}, {"name": "x", "number": 0.1}
    )
    return path
