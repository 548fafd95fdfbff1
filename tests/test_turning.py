"""What a mask does to the gradient of the images, against gradients taken another way."""

import math
from dataclasses import replace

import pytest
import torch
from small import CONFIG, refused

from ddpp.data import load_data
from ddpp.distilling import draw_piece
from ddpp.pruning import keep_mask, masked_loss
from ddpp.studies.turning import average_turns, mask_of, masks_by_part, turns
from ddpp.unrolling import unroll


def test_a_mask_that_keeps_all_does_not_turn_the_gradient(data, teachers):
    (turn,) = turns(data, teachers, CONFIG, {"none": mask_of("none", 0.0)}).values()
    assert turn.angle == pytest.approx(0, abs=1e-4) and turn.length == pytest.approx(1)
    assert (turn.kept, turn.loss) == (1, 0) and math.isnan(turn.opposite)


def test_the_turn_is_that_of_gradients_by_autograd(data, teachers):
    (turn,) = turns(data, teachers, CONFIG, {"mine": mask_of("signed", 0.5)}, epoch=1).values()
    images, labels = data.draw(CONFIG.ipc, CONFIG.seed)
    *_, updates = draw_piece(0, len(labels), teachers, replace(CONFIG, max_start_epoch=1))
    start, goal = teachers.snapshot(0, 1), teachers.snapshot(0, 1 + CONFIG.expert_epochs)
    alpha = torch.tensor(CONFIG.alpha0)

    def gradient(rule):
        def loss(student):
            return masked_loss(student, goal, start, keep_mask(student, goal, 0.5, rule))

        out = unroll(teachers.network, start, images, labels, alpha, updates, loss, "autograd")
        return out.grad_images.flatten(), out.student

    (base, student), (turned, _) = gradient("none"), gradient("signed")
    cosine = torch.cosine_similarity(base, turned, dim=0)
    assert turn.angle == pytest.approx(math.degrees(math.acos(cosine)), abs=0.05)
    assert turn.length == pytest.approx(float(turned.norm() / base.norm()), rel=1e-3)
    keep = keep_mask(student, goal, 0.5)
    error = (student - goal).square()
    assert turn.kept == pytest.approx(float(keep.float().mean()))
    assert turn.loss == pytest.approx(float(error[~keep].sum() / error.sum()), rel=1e-3)
    opposite = (student * goal)[~keep] < 0
    assert turn.opposite == pytest.approx(float(opposite.float().mean()))


def test_gradients_are_averaged_before_their_angle_is_taken(data, teachers):
    masks = {"none": mask_of("none", 0.0), "mine": mask_of("signed", 0.5)}
    between, turn = average_turns(data, teachers, CONFIG, masks, draws=3)
    alone, one = average_turns(data, teachers, CONFIG, masks, draws=2)
    images, labels = data.draw(CONFIG.ipc, CONFIG.seed)
    found = {"none": [], "signed": []}
    for step in range(3):
        k = step % len(teachers)
        *_, updates = draw_piece(step, len(labels), teachers, replace(CONFIG, max_start_epoch=1))
        start, goal = teachers.snapshot(k, 0), teachers.snapshot(k, CONFIG.expert_epochs)
        for rule, gradients in found.items():
            loss = lambda s, to=goal, at=start, by=rule: masked_loss(
                s, to, at, keep_mask(s, to, 0.5, by)
            )
            alpha = torch.tensor(CONFIG.alpha0)
            out = unroll(teachers.network, start, images, labels, alpha, updates, loss, "autograd")
            gradients.append(out.grad_images.flatten().double())
    angle = lambda a, b: math.degrees(
        math.acos(min(1, float(torch.cosine_similarity(a, b, dim=0))))
    )
    none, signed = found["none"], found["signed"]
    assert turn["none"] == pytest.approx((0, 0), abs=1e-4)
    single = sum(map(angle, none, signed)) / 3
    assert turn["mine"] == pytest.approx((single, angle(sum(none), sum(signed))), abs=0.05)
    assert one["mine"][1] == pytest.approx(angle(sum(none[:2]), sum(signed[:2])), abs=0.05)
    assert alone == pytest.approx(angle(none[0], none[1]), abs=0.05)
    pairs = [angle(none[i], none[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert between == pytest.approx(sum(pairs) / 3, abs=0.05)


def test_sign_is_the_papers_rule_without_its_threshold(data, teachers):
    masks = {"sign": mask_of("sign", 0.3), "signed": mask_of("signed", 0.0)}
    sign, signed = turns(data, teachers, CONFIG, masks).values()
    assert sign == signed and sign.opposite == 1


def test_easiest_prunes_its_share_and_little_of_the_loss():
    student = torch.arange(8.0)
    keep = keep_mask(student, torch.zeros(8), 0.25, "easiest")
    assert keep.tolist() == [False, False] + 6 * [True]


def test_a_part_of_the_network_is_left_out_whole(data, teachers):
    shapes = teachers.network.shapes
    masks = masks_by_part(teachers, {name: [name] for name in shapes})
    theta = teachers.snapshot(0, 0)
    for name, shape in shapes.items():
        keep = teachers.network.unflatten(masks[name](theta, theta))
        assert not keep[name].any() and int((~masks[name](theta, theta)).sum()) == shape.numel()
    with refused("no parameter is named nothing"):
        masks_by_part(teachers, {"mine": ["nothing"]})


def test_a_start_that_is_not_there_is_refused(data, teachers):
    with refused("epoch 4 is not stored"):
        turns(data, teachers, CONFIG, {"none": mask_of("none", 0.0)}, epoch=2)
    with refused("teacher 2 is not there", "0 to 1"):
        turns(data, teachers, CONFIG, {}, teacher=2)


def test_the_window_of_start_epochs_has_no_part_in_it(data, teachers):
    masks = {"mine": mask_of("signed", 0.5)}
    window = {"max_start_epoch": 2, "min_start_epoch": 1}
    growing = {"max_start_epoch": 2, "first_max_start_epoch": 2, "expand_steps": 9}
    plain = turns(data, teachers, CONFIG, masks, epoch=1)
    for changes in (window, growing):
        assert turns(data, teachers, replace(CONFIG, **changes), masks, epoch=1) == plain


def test_a_mask_that_keeps_nothing_leaves_no_angle(data, teachers):
    nothing = lambda student, teacher: torch.zeros_like(student, dtype=torch.bool)
    (turn,) = turns(data, teachers, CONFIG, {"nothing": nothing}).values()
    assert turn.kept == 0 and math.isnan(turn.angle) and math.isnan(turn.length)


@pytest.mark.parametrize("draws", [0, 1])
def test_an_average_of_fewer_than_two_is_refused(data, teachers, draws):
    with refused(f"the average is of {draws} draws: give at least 2"):
        average_turns(data, teachers, CONFIG, {"none": mask_of("none", 0.0)}, draws=draws)


def test_a_turn_is_measured_where_the_run_starts(data, teachers):
    masks = {"mine": mask_of("signed", 0.5)}
    noise = replace(CONFIG, init="noise")
    start = data.draw(CONFIG.ipc, CONFIG.seed).as_noise(CONFIG.seed)
    from_noise = turns(data, teachers, noise, masks)
    assert from_noise == turns(data, teachers, CONFIG, masks, start_set=start)
    assert from_noise != turns(data, teachers, CONFIG, masks)


def test_teachers_of_other_data_have_no_turn(teachers, npz):
    other = load_data(str(npz()), device="cpu")
    with refused("these teachers were trained on another data set"):
        turns(other, teachers, CONFIG, {})
    with refused("these teachers were trained on another data set"):
        average_turns(other, teachers, CONFIG, {})
