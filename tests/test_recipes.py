"""Recipes: an unknown one is answered with the nearest, and its settings fit one another."""

from dataclasses import replace

import pytest
from small import refused

from ddpp.experiments.recipes import recipe


def test_an_unknown_recipe_is_answered_with_the_nearest():
    with refused("unknown profile 'papr'", "did you mean 'paper'"):
        recipe("papr")


@pytest.mark.parametrize("changes", [{"expert_epochs": 6}, {"max_start_epoch": 6}])
def test_a_recipe_must_reach_its_last_epoch(changes):
    smoke = recipe("smoke")
    with refused("reach epoch 7", "the teachers stop at 6", "train them longer or lower either"):
        replace(smoke, distill=replace(smoke.distill, **changes)).stored_teachers()
