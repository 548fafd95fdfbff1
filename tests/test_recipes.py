"""Recipes: an unknown one is answered with the nearest, and its settings fit one another."""

from dataclasses import replace
from pathlib import Path

import pytest
from small import refused

from ddpp.experiments import read_queue
from ddpp.experiments.recipes import recipe
from ddpp.experiments.run import Experiment


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with refused("unknown profile 'papr'", "did you mean 'paper'"):
        recipe("papr")


def test_a_path_is_as_good_as_its_text(tmp_path):
    path = tmp_path / "mine.npz"
    assert recipe("smoke", path) == recipe("smoke", str(path))
    assert replace(recipe("smoke"), data=path).data == str(path)
    assert Experiment(recipe("smoke"), "set.safetensors").out == Path("set.safetensors")


@pytest.mark.parametrize("changes", [{"expert_epochs": 6}, {"max_start_epoch": 6}])
def test_a_recipe_must_reach_its_last_epoch(changes):
    smoke = recipe("smoke")
    with refused("reach epoch 7", "the teachers stop at 6", "train them longer or lower either"):
        replace(smoke, distill=replace(smoke.distill, **changes)).stored_teachers()


def test_the_recipe_of_tgdd_is_the_one_that_was_measured():
    queue = read_queue(Path(__file__).parents[1] / "results" / "smoke" / "after.toml")
    measured = next(run.recipe for run in queue if run.name == "after/tgdd-250-seed0")
    made = recipe("smoke", ipc=10, method="tgdd")
    assert made.distill == measured.distill
    assert made.teachers == measured.teachers and made.protocol == measured.protocol
    assert made.stored_teachers() == measured.stored_teachers()
