"""Refinements of the step: each against the same made by hand, and killed and resumed."""

import shutil
from dataclasses import replace

import pytest
import torch
from small import CONFIG, NAN, refused

from ddpp.distilled import DistilledDataset
from ddpp.distilling import distill

REFINED = {"ema": {"ema": 0.7}}
refinements = pytest.mark.parametrize("changes", REFINED.values(), ids=REFINED)


def same(a, b):
    """Whether two sets are the same bits, on the way and in what a next step would read."""
    assert a.state.keys() == b.state.keys()
    assert a.iterates.keys() == b.iterates.keys()
    pairs = [(a.images, b.images), (a.alpha, b.alpha), (a.labels, b.labels)]
    pairs += [(a.history[name], b.history[name]) for name in a.history]
    pairs += [(torch.as_tensor(a.state[k]), torch.as_tensor(b.state[k])) for k in a.state]
    pairs += [(a.iterates[k][0], b.iterates[k][0]) for k in a.iterates]
    return all(torch.equal(x, y) for x, y in pairs)


def seen(data, teachers, **changes):
    """The set of a run, and the images and alpha that its steps moved, the first ones included."""
    states = []
    look = lambda run: states.append(run.state)
    config = replace(CONFIG, **changes)
    return distill(data, teachers, config, progress=False, on_step=look), states


@refinements
def test_a_run_that_was_killed_goes_on_to_the_same_bits(data, teachers, tmp_path, changes):
    config, path = replace(CONFIG, **changes), tmp_path / "checkpoint"
    left = lambda step: tmp_path / f"after-{step}"

    def kill(run):  # nothing more of the step before is written then
        if run.state.step > 1:
            shutil.copy(path, left(run.state.step - 1))

    saving = {"checkpoint": path, "save_steps": 1, "progress": False}
    whole = distill(data, teachers, config, **saving, on_step=kill)
    for step in (1, 2, 3):
        resumed = distill(data, teachers, config, checkpoint=left(step), progress=False)
        assert same(resumed, whole)


@refinements
def test_more_steps_later_are_the_same_bits(data, teachers, tmp_path, changes):
    config, path = replace(CONFIG, **changes), tmp_path / "checkpoint"
    longer = replace(config, steps=6, iterates=1)
    distill(data, teachers, replace(config, iterates=1), checkpoint=path, progress=False)
    more = distill(data, teachers, longer, checkpoint=path, progress=False)
    whole = distill(data, teachers, longer, progress=False)
    assert torch.equal(more.images, whole.images) and torch.equal(more.labels, whole.labels)


@refinements
def test_a_refined_set_survives_its_file_and_is_another_run(run, tmp_path, changes):
    made, path = run(**changes), tmp_path / "checkpoint"
    made.save(tmp_path / "set.safetensors")
    again = DistilledDataset.load(tmp_path / "set.safetensors")
    assert same(again, made) and again.loss == "cross-entropy"
    plain = run(checkpoint=path)
    assert not torch.equal(plain.images, made.images)
    with refused("belongs to a run with other settings", f"config.{next(iter(changes))} was"):
        run(checkpoint=path, **changes)


# The moving average


def test_the_average_is_that_of_the_images_of_the_run_without_it(data, teachers):
    plain, states = seen(data, teachers)
    made, averages = seen(data, teachers, ema=0.7)
    mean = plain.at(0).images.double()
    for state, average in zip(states, averages, strict=True):
        mean = 0.7 * mean + 0.3 * state.images.double()
        assert torch.equal(average.moving, state.images)
        assert torch.allclose(average.images.double(), mean, atol=1e-6)
        assert torch.equal(average.alpha, state.alpha)
    assert torch.equal(made.images, averages[-1].images)
    assert torch.equal(made.at(2).images, averages[1].images)
    assert torch.equal(made.history["loss"], plain.history["loss"])


def test_a_skipped_step_leaves_the_average(data, teachers):
    _, (first, *others) = seen(data, teachers, ema=0.7, image_lr=1e30)
    assert [state.skipped for state in others] == [1, 2, 3]
    assert all(torch.equal(state.images, first.images) for state in others)


@pytest.mark.parametrize("value", [-0.1, 1.0, NAN])
def test_an_average_that_cannot_be_is_refused(run, value):
    with refused("ema is", "at least 0 and below 1"):
        run(ema=value)
