"""Refinements of the step: each against the same made by hand, and killed and resumed."""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small import CONFIG, NAN, SHORT, moving, refused

from ddpp.data import Split
from ddpp.distilled import DistilledDataset
from ddpp.distilling import begin, distill, match
from ddpp.refining import normalized, shortened

REFINED = {
    "ema": {"ema": 0.7},
    "clip": {"clip": 0.05},
    "normalize": {"normalize": True, "ema": 0.5},
}
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


# The norm of the gradient


def by_hand(data, teachers, limit, **changes):
    """Images after each step of gradient descent with momentum, in float64, with the gradients that
    `match` finds at the images of the run.
    """
    made, states = seen(data, teachers, **changes)
    config, labels = replace(CONFIG, **changes), made.labels
    images = made.at(0).images
    before = begin(Split(images, labels), config)
    velocity, norms = torch.zeros_like(images).double(), []
    for state in states:
        found = match(before, labels, teachers, config, "autograd")["grad_images"].double()
        norms.append(float(found.square().sum().sqrt()))
        velocity = config.momentum * velocity + limit(found, norms[-1])
        images = before.images.double() - config.image_lr * velocity
        assert torch.allclose(state.images.double(), images, rtol=1e-5, atol=1e-6)
        before = state
    if "norm" in made.history:
        assert made.history["norm"].tolist() == pytest.approx(norms, rel=1e-4)
    return norms


def test_a_gradient_is_shortened_to_the_norm_that_clip_says(data, teachers):
    norms = by_hand(data, teachers, lambda g, norm: g)  # of the run without it
    most = sorted(norms)[1]
    found = by_hand(data, teachers, lambda g, norm: g * min(1, most / norm), clip=most)
    assert min(found) < most < max(found)


def test_with_normalize_a_step_without_momentum_is_as_long_as_image_lr(data, teachers):
    by_hand(data, teachers, lambda g, norm: g / norm, normalize=True)
    made, states = seen(data, teachers, normalize=True, momentum=0.0, image_lr=0.3)
    images = [made.at(0).images, *(state.images for state in states)]
    moves = [float((b - a).norm()) for a, b in pairwise(images)]
    assert moves == pytest.approx([0.3] * 4, rel=1e-4)


def test_a_norm_that_nothing_reaches_changes_no_bit(data, teachers):
    plain, clipped = (seen(data, teachers, clip=clip)[0] for clip in (None, 1e6))
    assert torch.equal(plain.images, clipped.images) and torch.equal(plain.alpha, clipped.alpha)
    assert torch.equal(plain.state["images_velocity"], clipped.state["images_velocity"])


def test_a_gradient_of_zero_stays_zero():
    zero = torch.zeros(2, 3)
    assert torch.equal(shortened(zero, 1.0), zero) and torch.equal(normalized(zero), zero)


def test_a_limited_step_that_is_not_finite_is_skipped_and_leaves_the_state(data):
    still, goes = lambda start: start, lambda start: 1.1 * start
    with_still = moving(data, still, goes)
    _, states = seen(data, with_still, clip=0.01, steps=20, **SHORT)
    skipped = [(a, b) for a, b in pairwise(states) if b.skipped]
    assert 0 < len(skipped) < 19
    for a, b in skipped:
        assert (b.step, b.skipped) == (a.step + 1, a.skipped + 1)
        for name in ("images", "alpha", "images_velocity", "alpha_velocity"):
            assert torch.equal(getattr(a, name), getattr(b, name))
    with refused("not finite", "lower image_lr"):
        seen(data, moving(data, goes), normalize=True, image_lr=3e38, steps=30, **SHORT)


@pytest.mark.parametrize(
    "changes, words",
    [
        *[({"clip": value}, ["clip is", "positive"]) for value in (0.0, -1.0, NAN)],
        ({"clip": 1.0, "normalize": True}, ["clip is 1.0", "normalize", "leave out one of them"]),
    ],
)
def test_a_norm_that_cannot_be_is_refused(run, changes, words):
    with refused(*words):
        run(**changes)
