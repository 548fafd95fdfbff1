"""The smallest data, networks and settings with which everything runs, and what bad input is tested
with: an Error of these words, files that stay untouched, a disk that is full.
"""

import contextlib
import copy
import re
import shutil
import signal
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import torch

from ddpp.data import Split, load_data
from ddpp.distilling import DistillConfig
from ddpp.evaluating import Protocol
from ddpp.experiments import read_queue, runs
from ddpp.experiments.recipes import PROFILES, recipe
from ddpp.foundation.errors import Error
from ddpp.networks import NetworkConfig
from ddpp.teachers import TeacherConfig, Teachers

NAN, INF = float("nan"), float("inf")
NETWORK = NetworkConfig(width=4, depth=1)
TEACHERS = TeacherConfig(count=2, epochs=3, lr=0.02, batch=6, network=NETWORK)
CONFIG = DistillConfig(
    steps=4, student_steps=2, image_lr=1.0, alpha0=0.02, iterates=2, engine="autograd"
)

# where only the distillation has an operation of one's own, which is not what is tested
UNLIKE = pytest.mark.filterwarnings("ignore:the set was made with the operations")


def listed(results):
    """All runs of the lists, and of the queues in a folder of results."""
    queued = [run for path in results.glob("*/*.toml") for run in read_queue(path)]
    return [run for profile in PROFILES for run in runs(profile)] + queued


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


def in_double(data):
    """Data whose training images are float64, for comparisons to more digits: ImageData refuses
    those of a user, as networks are float32.
    """
    wide, (images, labels) = copy.copy(data), data.train
    object.__setattr__(wide, "train", Split(images.double(), labels))
    return wide


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


def small_recipe(path, method, ipc, repeats, **settings):
    """A recipe of seconds: one teacher of three epochs, networks of four, nothing whitened."""
    base = recipe("smoke", str(path), method=method)
    teachers = replace(base.teachers, count=1, epochs=3, batch=8, network=NETWORK)
    if method in ("ddpp", "mtt"):
        settings = {"steps": 3, "student_steps": 2, "iterates": 1} | settings
    distill = replace(base.distill, **{"ipc": ipc} | settings)
    how = {"protocol": Protocol(epochs=4), "repeats": repeats, "zca": False}
    return replace(base, teachers=teachers, distill=distill, **how)


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
    """A disk of 600 kB, and a way to fill it to the last byte for a while."""

    @contextlib.contextmanager
    def full():
        filler = folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(512)):
                pass
        yield
        filler.unlink()

    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a disk cannot be mounted here")
    try:
        yield full
    finally:
        subprocess.run(["umount", folder], check=True)
