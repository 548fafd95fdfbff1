"""Refinements of the step: each against the same made by hand, and killed and resumed."""

import shutil
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from small import CONFIG, NAN, SHORT, command, contents, moving, refused, untouched

from ddpp.cli import main
from ddpp.data import Split
from ddpp.data.augmentation import augment
from ddpp.distilled import DistilledDataset
from ddpp.distilling import (
    Algorithm,
    DistillConfig,
    begin,
    distill,
    draw_piece,
    learning,
    match,
    step,
)
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig
from ddpp.pruning import RULES, keep_mask, masked_loss, matching_loss
from ddpp.refining import keep_parts, logits_of, normalized, shortened, start_epochs
from ddpp.unrolling import Carried, draw_updates, unroll

REFINED = {
    "ema": {"ema": 0.7},
    "clip": {"clip": 0.05},
    "window": {"first_max_start_epoch": 1},
    "later": {"min_start_epoch": 1, "clip": 0.05},
    "parts": {"leave_out": ("vectors",), "rule": "magnitude"},
    "labels": {"label_lr": 0.5},
    "all": {
        **{"label_lr": 0.5, "ema": 0.5, "clip": 0.05, "leave_out": ("bias",)},
        **{"first_max_start_epoch": 1, "trajectories": 2},
    },
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
    for done in (1, 2, 3):
        resumed = distill(data, teachers, config, checkpoint=left(done), progress=False)
        assert same(resumed, whole)


@refinements
def test_more_steps_later_are_the_same_bits(data, teachers, tmp_path, changes):
    config, path = replace(CONFIG, **changes), tmp_path / "checkpoint"
    longer = replace(config, steps=6, iterates=1)
    distill(data, teachers, replace(config, iterates=1), checkpoint=path, progress=False)
    if not config.lasting:
        with refused("config.steps was 4 and is 6"):
            distill(data, teachers, longer, checkpoint=path, progress=False)
        return
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
    with refused("belongs to a run with other settings"):
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
    `match` finds at the images of the run; and so for alpha.
    """
    changes |= {"alpha_lr": 1e-5}  # moves alpha by far more than float32 rounds it
    made, states = seen(data, teachers, **changes)
    config, labels = replace(CONFIG, **changes), made.labels
    images = made.at(0).images
    before = begin(Split(images, labels), config)
    velocity, alpha_velocity, norms = torch.zeros_like(images).double(), 0.0, []
    for state in states:
        matched = match(before, labels, teachers, config, "autograd")
        found = matched["grad_images"].double()
        norms.append(float(found.square().sum().sqrt()))
        velocity = config.momentum * velocity + limit(found, norms[-1])
        images = before.images.double() - config.image_lr * velocity
        assert torch.allclose(state.images.double(), images, rtol=1e-5, atol=1e-6)
        alpha_velocity = config.momentum * alpha_velocity + float(matched["grad_alpha"])
        moved = float(state.alpha) - float(before.alpha)
        assert moved == pytest.approx(-config.alpha_lr * alpha_velocity, rel=1e-3)
        before = state
    limited = bool(config.clip or config.normalize)
    assert ("norm" in made.history) == limited
    if limited:
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


# The window of start epochs


def test_every_bound_has_an_equal_share_of_the_steps():
    for first, most, steps in ((2, 5, 12), (1, 3, 7), (4, 4, 3), (1, 9, 20)):
        windows = [start_epochs(step, 1, first, most, steps) for step in range(steps + 3)]
        bounds = [window.stop for window in windows]
        assert {window.start for window in windows} == {1}
        assert bounds == sorted(bounds) and bounds[steps:] == [most] * 3
        shares = [bounds[:steps].count(bound) for bound in range(first, most + 1)]
        assert min(shares) > 0 and max(shares) - min(shares) <= 1


@pytest.mark.parametrize("least, windows", [(0, ([0], [0, 1], [0, 1, 2])), (1, ([1], [1, 2]))])
def test_start_epochs_are_drawn_evenly_from_the_window_of_their_step(teachers, least, windows):
    config = replace(CONFIG, expert_epochs=1, max_start_epoch=3, min_start_epoch=least)
    config = replace(config, first_max_start_epoch=least + 1, expand_steps=len(windows))

    for at, window in enumerate(windows):
        drawn = []
        for seed in range(300):
            epoch, k, start, goal, _ = draw_piece(at, 2, teachers, replace(config, seed=seed))
            k, epoch = int(k), int(epoch)
            assert torch.equal(start, teachers.snapshot(k, epoch))
            assert torch.equal(goal, teachers.snapshot(k, epoch + 1))
            drawn.append(epoch)
        assert set(drawn) == set(window)
        share = 1 / len(window)
        deviation = (300 * share * (1 - share)) ** 0.5
        assert all(abs(drawn.count(e) - 300 * share) <= 4 * deviation for e in window)


def test_the_history_has_the_teachers_epochs(data, teachers):
    made, _ = seen(data, teachers, min_start_epoch=1, expert_epochs=1, max_start_epoch=3, steps=12)
    epochs = made.history["epoch"].tolist()
    assert set(epochs) == {1, 2}


def test_with_more_steps_later_a_step_draws_from_the_same_window():
    config = DistillConfig(steps=80, max_start_epoch=9, first_max_start_epoch=3)
    longer = replace(config, steps=800)
    assert config.expand_steps == longer.expand_steps == 80
    assert [config.start_epochs(t) for t in range(80)] == [
        longer.start_epochs(t) for t in range(80)
    ]
    assert DistillConfig(max_start_epoch=9).start_epochs(7) == range(9)


def test_a_window_that_the_run_is_too_short_for_is_named(run):
    with pytest.warns(UserWarning, match="grow over 9 steps, and this run has 4.*set expand_steps"):
        run(first_max_start_epoch=1, expand_steps=9)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"min_start_epoch": -1}, ["min_start_epoch is -1", "at least 0"]),
        ({"min_start_epoch": 2}, ["min_start_epoch 2 leaves no epoch below max_start_epoch 2"]),
        (
            {"min_start_epoch": 1, "first_max_start_epoch": 1},
            ["leaves no epoch below first_max_start_epoch 1", "raise first_max_start_epoch"],
        ),
        ({"first_max_start_epoch": 0}, ["first_max_start_epoch is 0", "at least 1"]),
        (
            {"first_max_start_epoch": 3},
            ["first_max_start_epoch 3 is above max_start_epoch 2", "lower it"],
        ),
        ({"expand_steps": 3}, ["expand_steps", "give that, too, or leave it out"]),
    ],
)
def test_a_window_that_cannot_be_is_refused(run, changes, words):
    with refused(*words):
        run(**changes)


# Whole parts of the network

PARTS = {
    "0": ["0.weight", "0.bias"],
    "bias": ["0.bias", "1.bias", "5.bias"],
    "1.weight": ["1.weight"],
    "vectors": ["0.bias", "1.weight", "1.bias", "5.bias"],
    "matrices": ["5.weight"],
    "convolutions": ["0.weight"],
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_is_left_out_whole(teachers, part):
    network = teachers.network
    keep = network.unflatten(keep_parts(network.shapes, [part]))
    assert [name for name in keep if not keep[name].any()] == PARTS[part]
    assert all(keep[name].all() for name in keep if name not in PARTS[part])


def test_a_name_is_not_taken_for_the_end_of_a_longer_one():
    shapes = {"1.weight": torch.Size([2]), "11.weight": torch.Size([3])}
    assert keep_parts(shapes, ["1.weight"]).tolist() == [False] * 2 + [True] * 3
    assert keep_parts(shapes, ["1"]).tolist() == [False] * 2 + [True] * 3


@pytest.mark.parametrize("rule", ["none", "signed", "random"])
def test_a_run_matches_what_its_rule_and_its_parts_keep(data, teachers, rule):
    made, _ = seen(data, teachers, leave_out=["bias", "1"], rule=rule, steps=1, iterates=1)
    config = replace(CONFIG, rule=rule)
    images, labels = data.draw(config.ipc, config.seed)
    _, _, start, goal, updates = draw_piece(0, len(labels), teachers, config)
    network = teachers.network
    names = ["0.weight", "5.weight"]
    of = lambda theta: torch.cat([network.unflatten(theta)[name].flatten() for name in names])

    def loss(student):  # of shorter vectors, with nothing but what is left
        keep = keep_mask(of(student), of(goal), config.epsilon, rule)
        return masked_loss(of(student), of(goal), of(start), keep)

    alpha = torch.tensor(config.alpha0)
    out = unroll(network, start, images, labels, alpha, updates, loss, "adjoint")
    assert float(made.history["loss"][0]) == pytest.approx(float(out.loss), rel=1e-5)
    moved = images - config.image_lr * out.grad_images
    assert torch.allclose(made.images, moved, atol=1e-5)
    layers = made.history["layers"][0]
    assert layers[[1, 2, 3, 5]].tolist() == [0] * 4 and (layers[[0, 4]] > 0).all()


@pytest.mark.parametrize("rule", ["random", "largest", "smallest"])
@pytest.mark.parametrize("parts", [(), ("5",), ("vectors",)])
def test_with_parts_left_out_a_control_still_prunes_as_many(run, rule, parts):
    of = lambda rule: run(rule=rule, epsilon=0.9, steps=1, iterates=1, leave_out=parts)
    kept, controlled = of("signed").history["kept"][0], of(rule).history["kept"][0]
    assert 0 < float(kept) < 1 and controlled == kept


def test_a_rule_of_ones_own_knows_parameters_by_their_places_where_some_are_left_out(run):
    def first_half(student, teacher, epsilon):
        keep = torch.zeros_like(student, dtype=torch.bool)
        keep[: len(keep) // 2] = True
        return keep

    whole = run(rule=first_half, steps=1, iterates=1).history["layers"][0]
    parts = run(rule=first_half, steps=1, iterates=1, leave_out=("1",)).history["layers"][0]
    assert parts.tolist() == [0 if i in (2, 3) else kept for i, kept in enumerate(whole.tolist())]


def test_the_rules_of_runs_with_parts_are_in_no_table(run):
    before = dict(RULES)
    made = run(leave_out="vectors")
    assert dict(RULES) == before
    assert made.provenance["config"]["leave_out"] == ["vectors"]


@pytest.mark.parametrize(
    "names, words",
    [
        (["0", "norm"], ["no parameter is named norm", "vectors", "0.weight"]),
        (["weight", "bias"], ["no parameter is left", "leave out fewer"]),
    ],
)
def test_parts_that_are_not_there_or_are_all_are_refused(run, tmp_path, names, words):
    with refused(*words):
        run(leave_out=names, checkpoint=tmp_path / "checkpoint")
    assert not any(tmp_path.iterdir())


# Learned labels

ROWS = Carried(4, torch.Size([3, 8, 8]), rate=0.3)


@pytest.fixture
def soft():
    """A small problem in float64: network, start, teacher, images, logits, alpha, updates."""
    network, rng = NetworkConfig(width=4, depth=1).build(3, 3, 8), generator(0, "soft")
    start = network.initial(0).double()
    random = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)
    goal = start + 0.02 * random(len(start))
    updates = draw_updates(4, 3, 5, generator(1, "updates"))
    alpha = torch.tensor(0.05, dtype=torch.float64)
    return network, start, goal, random(4, 3, 8, 8), random(4, 3), alpha, updates


def carried_by(engine, problem, rule="none"):
    """What `unroll` returns of learned labels, and the gradients of images and logits in it."""
    network, start, goal, images, logits, alpha, updates = problem
    loss = lambda student: matching_loss(student, goal, start, 0.1, rule)
    rows = ROWS.pack(images, logits)
    out = unroll(network, start, rows, ROWS, alpha, updates, loss, engine)
    of_images, of_logits = ROWS.split(out.grad_images)
    return out, of_images, of_logits / ROWS.rate


@pytest.mark.parametrize("rule", ["none", "signed"])
@pytest.mark.parametrize("engine", ["adjoint", "stored", "compiled"])
def test_the_engines_agree_on_learned_labels(soft, engine, rule):
    (a, *mine), (b, *theirs) = (carried_by(e, soft, rule) for e in (engine, "autograd"))
    pairs = [(a.student, b.student), (a.loss, b.loss), (a.grad_alpha, b.grad_alpha)]
    for x, y in [*pairs, *zip(mine, theirs, strict=True)]:
        assert y.norm() > 0 and float((x - y).norm() / y.norm()) < 1e-10


@pytest.mark.parametrize("engine", ["autograd", "adjoint", "stored"])
def test_the_gradient_of_the_logits_is_the_slope_of_the_loss(soft, engine):
    network, start, goal, images, logits, alpha, updates = soft

    def plain(logits):  # Eq. (2) with soft labels, written out
        theta = start
        for batch, how in zip(*updates, strict=True):
            theta = theta.detach().requires_grad_()
            predicted = network(theta, augment(images[batch], how)).log_softmax(1)
            loss = -(logits[batch].softmax(1) * predicted).sum(1).mean()
            theta = theta - alpha * torch.autograd.grad(loss, theta)[0]
        off, moved = (theta.detach() - goal).square().sum(), (start - goal).square().sum()
        return float(off / moved)

    out, of_images, of_logits = carried_by(engine, soft)
    assert float(out.loss) == pytest.approx(plain(logits), rel=1e-12)
    h = 1e-5
    for i in range(logits.numel()):
        step = torch.zeros_like(logits)
        step.view(-1)[i] = h
        slope = (plain(logits + step) - plain(logits - step)) / (2 * h)
        assert float(of_logits.view(-1)[i]) == pytest.approx(slope, rel=1e-4, abs=1e-9)
    # images and alpha: as with soft labels that are not learned, by the other engines
    loss = lambda student: matching_loss(student, goal, start, 0.1, "none")
    labels = logits.softmax(1)
    fixed = unroll(network, start, images, labels, alpha, updates, loss, "stored")
    assert torch.allclose(of_images, fixed.grad_images, rtol=1e-9, atol=1e-12)
    assert torch.allclose(out.grad_alpha, fixed.grad_alpha, rtol=1e-9)


def test_labels_begin_as_the_logits_of_a_teacher_and_descend_at_their_rate(data, teachers):
    made, states = seen(data, teachers, label_lr=0.5)
    real = made.at(0).images
    hard = data.draw(CONFIG.ipc, CONFIG.seed).labels
    of = lambda k: logits_of(teachers.network, teachers.snapshot(k, 3), real, hard)
    first = next(
        logits for logits in map(of, (0, 1)) if torch.equal(first_logits(data, teachers), logits)
    )
    _, slower = seen(data, teachers, label_lr=0.25)
    moves = [run[0].logits - first for run in (states, slower)]
    assert moves[0].norm() > 0 and torch.allclose(moves[0], 2 * moves[1], atol=1e-6)
    assert torch.equal(made.labels, states[-1].logits.softmax(1))
    assert torch.equal(made.hard_labels, hard) and made.loss == "cross-entropy"
    assert list(made.iterates) == [0, 4]


def first_logits(data, teachers):
    config = replace(CONFIG, label_lr=0.5)
    start_set = data.draw(config.ipc, config.seed)
    algorithm = Algorithm("ddpp", begin, step)
    first, _ = learning(
        begin(start_set, config), start_set, algorithm, teachers, config, "autograd"
    )
    return first.logits


def test_a_teacher_that_is_wrong_changes_two_logits():
    network = lambda theta, images: images
    logits = torch.tensor([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0]])
    found = logits_of(network, torch.zeros(1), logits, torch.tensor([0, 2]))
    assert found.tolist() == [[3.0, 1.0, 2.0], [2.0, 1.0, 3.0]]


def test_the_engine_that_learns_labels_is_named(run):
    used = lambda engine: run(label_lr=0.5, engine=engine).provenance["made_on"][0]["engine"]
    assert used("stored") == "stored" and used("compiled") == "adjoint"


def test_a_checkpoint_with_learned_labels_is_read_as_a_set(run, tmp_path):
    made = run(label_lr=0.5, checkpoint=tmp_path / "checkpoint")
    read = DistilledDataset.load(tmp_path / "checkpoint")
    assert torch.equal(read.labels, made.labels) and read.loss == "cross-entropy"


def test_a_finished_run_with_learned_labels_is_not_begun_anew(npz, tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    line = command(npz(), out, ("--label-lr", 0.5))
    assert main(line) == 0
    before = contents(tmp_path)
    assert main([*line, "--steps", "6"]) == 1
    assert "config.steps was 4 and is 6" in capsys.readouterr().err
    assert contents(tmp_path) == before


@pytest.mark.parametrize("value", [0.0, -1.0, NAN])
def test_a_rate_of_labels_that_cannot_be_is_refused(run, value):
    with refused("label_lr is", "positive"):
        run(label_lr=value)


def test_the_first_step_moves_logits_by_their_own_rate(data, teachers):
    changes = {"label_lr": 0.5, "image_lr": 2.0, "steps": 1, "iterates": 1}
    _, (after,) = seen(data, teachers, **changes)
    config, start_set = replace(CONFIG, **changes), data.draw(CONFIG.ipc, CONFIG.seed)
    algorithm = Algorithm("ddpp", begin, step)
    first, _ = learning(begin(start_set, config), start_set, algorithm, teachers, config, "stored")
    carried = Carried(len(start_set.labels), start_set.images.shape[1:], rate=1.0)
    _, _, start, goal, updates = draw_piece(0, len(carried), teachers, config)
    loss = lambda student: matching_loss(student, goal, start, config.epsilon, config.rule)
    rows, alpha = carried.pack(first.images, first.logits), torch.tensor(config.alpha0)
    out = unroll(teachers.network, start, rows, carried, alpha, updates, loss, "autograd")
    of_images, of_logits = carried.split(out.grad_images)
    assert torch.allclose(after.logits, first.logits - 0.5 * of_logits, atol=1e-6)
    assert torch.allclose(after.images, first.images - 2.0 * of_images, atol=1e-6)
    assert not torch.allclose(after.logits, first.logits, atol=1e-5)


def test_a_run_that_was_begun_with_other_iterates_is_refused(data, teachers, tmp_path):
    checkpoint = tmp_path / "run.checkpoint"
    config = replace(CONFIG, steps=8, iterates=1)
    distill(
        data,
        teachers,
        config,
        checkpoint=checkpoint,
        progress=False,
        on_step=lambda run: run.state.step == 5,
    )
    with refused("was begun with iterates 1", "after step 2 was not kept"), untouched(checkpoint):
        distill(data, teachers, replace(config, iterates=4), checkpoint=checkpoint, progress=False)
    assert len(distill(data, teachers, config, checkpoint=checkpoint, progress=False).iterates) == 2
