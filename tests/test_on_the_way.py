"""The sets that a long run has kept, and their mean, are scored."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import save

import ddpp
from ddpp.experiments import read_queue, reproduce
from ddpp.experiments.places import out_of
from ddpp.experiments.results import read_set
from ddpp.judging.opening import load_set
from tools import on_the_way, other_teachers
from tools.on_the_way import kept, main

QUEUE = """
[[run]]
name = "long/cifar10-ipc1-signed"
profile = "smoke"
data = "{data}"
steps = 6
every = 1
validation = 0.4
repeats = 2
teachers = {{ count = 1, epochs = 3, batch = 6, network = {{ width = 4, depth = 1 }} }}
distill = {{ rule = "signed", epsilon = 0.1, student_steps = 2, image_lr = 1.0 }}
protocol = {{ epochs = 1 }}
"""
ASKED = ["--steps", "6", "--last", "3"]


@pytest.fixture
def data(tmp_path, monkeypatch):
    """The data of a queue whose run is finished."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "queue.toml"
    path.write_text(QUEUE.format(data=save(tmp_path / "mine.npz")))
    monkeypatch.setattr(other_teachers, "QUEUE", path)
    (one,) = read_queue(path)
    reproduce([one], work="runs/reproduce", device="cpu", progress=False)
    return ddpp.load_data(one.recipe.data, zca=one.recipe.zca, validation=0.4, device="cpu")


def whole():
    return ddpp.DistilledDataset.load(
        out_of(other_teachers.long_run("signed", 6), "runs/reproduce")
    )


def test_the_last_sets_and_their_mean_are_scored(data):
    assert main(ASKED) == 0
    report = json.loads(Path("results/way/signed-4-6.json").read_text())
    assert report["steps"] == [4, 5, 6] and report["of"] == "long/cifar10-ipc1-signed-6-seed0"
    made, recipe = whole(), other_teachers.long_run("signed", 6).recipe
    score = lambda one, how: ddpp.evaluate(one, how, repeats=2, protocol=recipe.protocol).final
    for at, found in zip(report["steps"], report["held_out"], strict=True):
        there = ddpp.evaluate(
            replace(made, iterates={at: made.iterates[at], 9: made.iterates[6]}),
            data,
            repeats=1,
            protocol=recipe.protocol,
        )
        assert there.validation[at] == found
    stored = read_set(Path("results/way/signed-4-6.json"), report, data)
    assert torch.allclose(stored.images, sum(made.iterates[at][0] for at in (4, 5, 6)) / 3)
    assert stored.provenance["mean_of"] == [4, 5, 6]
    assert score(stored, data) == report["mean"]["test"]
    file = Path("results/way/signed-4-6.safetensors")
    assert not load_set(file, Path("mine.npz")).iterates  # a mean is of no step
    scores = [*report["held_out"], report["mean"]["held_out"]]
    assert report["best"]["step"] == [4, 5, 6, "mean"][scores.index(max(scores))]


def test_it_says_what_is_missing(data, capsys):
    with pytest.raises(ddpp.Error, match="of the last 1 steps 1 sets are kept"):
        kept(whole(), 1)
    assert main(["--steps", "6", "--work", "runs/empty"]) == 1
    assert "is not there: first run 'ddpp reproduce --queue" in capsys.readouterr().err
    assert Path("results/cpu/queue.toml") == on_the_way.QUEUE
