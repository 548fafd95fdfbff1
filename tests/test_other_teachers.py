"""The long runs' last steps, made again with teachers that the images have not met."""

import json
from pathlib import Path

import pytest
import torch
from small import save

from ddpp.data import load_data
from ddpp.distilling import draw_piece
from ddpp.experiments import read_queue, reproduce
from ddpp.experiments.places import teachers_in
from ddpp.experiments.results import read_set
from ddpp.pruning import masked_loss
from ddpp.teachers import train_teachers
from ddpp.unrolling import unroll
from tools import other_teachers
from tools.other_teachers import long_run, losses, main, mean, read_long

QUEUE = """
[[run]]
name = "long/cifar10-ipc1-{rule}"
profile = "smoke"
data = "{data}"
steps = [1, 2, 4]
validation = 0.4
repeats = 1
teachers = {{ count = 2, epochs = 3, batch = 6, network = {{ width = 4, depth = 1 }} }}
distill = {{ rule = "{rule}", epsilon = 0.1, student_steps = 2, iterates = 1, image_lr = 1.0 }}
protocol = {{ epochs = 1 }}
"""
NUMBERS = {"FROM": 2, "TO": 4, "EVERY": 1, "DRAWS": 3}
OUT = Path("results/others")


@pytest.fixture
def queue(tmp_path, monkeypatch):
    """A queue of both rules, and the tool's numbers fitted to its size."""
    monkeypatch.chdir(tmp_path)
    data = save(tmp_path / "mine.npz")
    path = tmp_path / "queue.toml"
    path.write_text("".join(QUEUE.format(rule=rule, data=data) for rule in ("signed", "none")))
    for name, value in {"QUEUE": path, **NUMBERS}.items():
        monkeypatch.setattr(other_teachers, name, value)
    return path


@pytest.fixture
def long(queue):
    """The queue's data, after its runs are finished."""
    reproduce(read_queue(queue), results="results", work="runs", device="cpu", progress=False)
    recipe = long_run("signed", 4).recipe
    how = {"zca": recipe.zca, "validation": recipe.validation, "device": "cpu"}
    return load_data(recipe.data, **how)


def test_the_steps_go_on_from_the_set_with_other_teachers(long):
    assert main(["--rule", "signed"]) == 0
    report = json.loads((OUT / "signed.json").read_text())
    made = [("own", 2), ("own", 4), ("others", 4)]
    assert [(row["last"], row["steps"]) for row in report["losses"]] == made
    assert {len(row[group]) for row in report["losses"] for group in ("own", "others")} == {3}
    assert report["distilled"]["validation"].keys() == {"3", "4"}

    own, other = read_long("signed", 4, long), read_set(OUT / "signed.json", report, long)
    for name in ("epoch", "teacher"):  # which of the ten: drawn as before
        assert torch.equal(own.history[name], other.history[name])
    same = own.history["loss"] == other.history["loss"]
    assert same.tolist() == [True, True, False, False]
    assert other.provenance["teachers"]["seed"] == own.provenance["teachers"]["seed"] + 1
    assert other.provenance["teachers"]["after"] == report["after"]
    assert report["recipe"]["teachers"]["seed"] == other.provenance["teachers"]["seed"]


def test_the_mean_is_that_of_the_sets_on_the_way(distilled):
    sets = distilled.iterates
    made = mean(distilled)
    assert torch.allclose(made.images, sum(images for images, _ in sets.values()) / len(sets))
    assert float(made.alpha) == pytest.approx(sum(float(a) for _, a in sets.values()) / len(sets))
    assert not made.iterates


def test_a_loss_is_that_of_the_next_steps_without_pruning(long):
    assert main(["--rule", "none"]) == 0
    report = json.loads((OUT / "none.json").read_text())
    one = long_run("none", 4).recipe
    asked = one.stored_teachers()
    teachers = train_teachers(long, asked, teachers_in(Path("runs/others"), asked, long))
    made = read_long("none", 4, long)
    found = losses(made, teachers, one.distill)
    assert found == report["losses"][1]["own"]
    for draw, loss in enumerate(found):
        _, _, start, goal, updates = draw_piece(4 + draw, len(made.images), teachers, one.distill)
        where = teachers.network, start, made.images, made.labels, made.alpha, updates
        student = unroll(*where, torch.sum, "autograd").student
        everything = torch.ones_like(student, dtype=torch.bool)
        assert float(masked_loss(student, goal, start, everything)) == pytest.approx(loss, abs=1e-6)


def test_it_resumes_and_says_what_is_missing(long, capsys, monkeypatch):
    def kill(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(other_teachers, "write_set", kill)
        main(["--rule", "signed"])
    measured = json.loads(Path("runs/others/signed.json").read_text())
    with monkeypatch.context() as patch:
        patch.setattr(other_teachers, "losses", kill)  # none is measured again
        assert main(["--rule", "signed"]) == 0
    assert json.loads((OUT / "signed.json").read_text())["losses"] == measured["losses"]

    long_run("none", 2).report_path(Path("results")).unlink()
    capsys.readouterr()
    assert main(["--rule", "none"]) == 1
    assert "long/cifar10-ipc1-none-2-seed0 has no result" in capsys.readouterr().err
    assert main(["--rule", "random"]) == 1
    assert "signed" in capsys.readouterr().err
