"""Who was in the data: attacks against planted members and where nothing leaks, curves against
counting by hand, and audits from nothing to the report.
"""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_npz
from scipy import stats
from small import CONFIG, command, contents, load, refused, small_recipe
from torch import nn

import ddpp
from ddpp import networks
from ddpp.book import figures
from ddpp.cli import main
from ddpp.data import Split
from ddpp.evaluating import Protocol
from ddpp.foundation import identity
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.studies import Design, audit, auditing, membership, private, read_audit
from ddpp.studies.auditing import draw_pool, judge, nearest
from ddpp.studies.membership import (
    area,
    balanced,
    closer,
    halves,
    leak,
    lira,
    mislabel,
    roc,
    scaled_confidence,
    tpr_at,
)

QUIET = Saving(progress=False)


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(membership, "RESAMPLES", 200)


@pytest.fixture
def npz(tmp_path):
    return write_npz(tmp_path, classes=2, size=8, per_class=12)


def small(path, method="mtt", **changes):
    if method == "dm":
        changes = {"steps": 2, "batch_real": 4, "iterates": 1} | changes
    return small_recipe(path, method, ipc=1, repeats=1, **changes)


DESIGN = Design(images=12, canaries=12, models=6)


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# The attacks


def test_the_scaled_confidence_is_the_logit_of_the_probability_also_where_that_is_0_or_1():
    logits, labels = 3 * normal(50, 7), torch.arange(50) % 7
    p = logits.softmax(1)[torch.arange(50), labels]
    assert torch.allclose(scaled_confidence(logits, labels), (p / (1 - p)).log())
    sure = scaled_confidence(torch.tensor([[900.0, 0.0], [900.0, 0.0]]), torch.tensor([0, 1]))
    assert sure.tolist() == [900.0, -900.0]


def test_each_image_is_in_half_of_the_models_and_no_two_models_have_the_same():
    members = halves(images=300, models=8, seed=3)
    assert (members.sum(0) == 4).all() and members.shape == (8, 300)
    assert len({tuple(row) for row in members.tolist()}) == 8
    # each pair of models shares a quarter of the images, about: 3/14 of all, as 4 of 8 are drawn
    shared = members.double() @ members.double().T / 300
    assert (shared[~torch.eye(8, dtype=torch.bool)] - 3 / 14).abs().max() < 0.09
    assert torch.equal(members, halves(300, 8, 3)) and not torch.equal(members, halves(300, 8, 4))


def test_what_an_audit_draws_is_the_same_with_another_default_type():
    drawn = lambda: (halves(50, 8, 3), *balanced(halves(50, 8, 3), generator(0)))
    before = drawn()
    torch.set_default_dtype(torch.float64)
    try:
        assert all(torch.equal(a, b) for a, b in zip(before, drawn(), strict=True))
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("models", [0, 2, 4, 7])
def test_too_few_models_or_an_odd_number_are_refused(models):
    with refused(f"an audit cannot have {models} models", "an even number from 6 on"):
        halves(10, models, 0)


def test_a_canary_has_any_wrong_label_and_all_others_have_theirs():
    right = torch.arange(3000) % 5
    labels, wrong = mislabel(right, 5, 1000, 0)
    assert wrong.sum() == 1000 and torch.equal(labels != right, wrong)
    shifts = torch.bincount((labels - right)[wrong] % 5, minlength=5)
    assert shifts[0] == 0 and (shifts[1:] > 200).all()
    assert torch.equal(right, torch.arange(3000) % 5)  # what was given is as it was
    assert not mislabel(right, 5, 0, 0)[1].any()
    with refused("3001 of 3000 images cannot be mislabelled"):
        mislabel(right, 5, 3001, 0)


def test_the_likelihood_ratio_is_that_of_gaussians_fitted_to_the_other_models_one_by_one():
    scores, members = normal(8, 20), halves(20, 8, 0)
    found = lira(scores, members)
    for target in range(8):
        others = [m for m in range(8) if m != target]
        chosen = balanced(members[others], generator(0, "shadows", target))
        fits = {}
        for inside, one in zip((True, False), chosen, strict=True):
            values = [
                [float(scores[m, i]) for m, row in zip(others, one, strict=True) if row[i]]
                for i in range(20)
            ]
            squares = sum(sum((v - np.mean(one)) ** 2 for v in one) for one in values)
            deviation = math.sqrt(squares / sum(len(one) - 1 for one in values))
            fits[inside] = [stats.norm(np.mean(one), deviation) for one in values]
        for i in range(20):
            ratio = fits[True][i].logpdf(scores[target, i]) - fits[False][i].logpdf(
                scores[target, i]
            )
            assert float(found[target, i]) == pytest.approx(ratio)


def test_shadow_models_with_an_image_and_without_it_are_equally_many():
    inside = halves(300, 8, 0)[1:]
    ins, outs = balanced(inside, generator(0))
    assert (ins.sum(0) == 3).all() and (outs.sum(0) == 3).all()
    assert (ins <= inside).all() and (outs <= ~inside).all()
    left_out = ~(ins | outs)
    assert (left_out.sum(0) == 1).all() and (left_out.sum(1) > 20).all()  # any of them, at random


@pytest.mark.parametrize("models", [6, 16])
def test_the_likelihood_ratio_of_noise_is_a_guess(models):
    areas = []
    for seed in range(12):
        scores, members = normal(models, 1000, seed=seed), halves(1000, models, seed)
        areas.append(area(*roc(lira(scores, members), members)))
    error = np.std(areas, ddof=1) / math.sqrt(12)
    assert error < 0.003 and abs(np.mean(areas) - 0.5) < 2.5 * error


def test_no_model_is_attacked_with_what_is_known_of_itself():
    scores, members = normal(6, 10), halves(10, 6, 0)
    other = members.clone()
    other[2] = ~other[2]
    assert torch.equal(lira(scores, members)[2], lira(scores, other)[2])
    assert not torch.equal(lira(scores, members)[1], lira(scores, other)[1])


def test_how_much_closer_an_image_is_than_to_the_sets_of_the_others():
    distances = torch.tensor([[1.0, 5.0], [3.0, 6.0], [5.0, 10.0]])
    assert closer(distances).tolist() == [[3.0, 3.0], [0.0, 1.5], [-3.0, -4.5]]


def planted(shift, spread=5.0, models=16, images=200):
    """Scores to which being a member adds `shift`; images differ by `spread`, models by 1."""
    members = halves(images, models, 0)
    return normal(models, images) + spread * normal(images, seed=1) + shift * members, members


def test_planted_members_are_found_by_lira_and_hardly_by_a_threshold():
    scores, members = planted(3.0)
    threshold, ratio = leak(scores, members), leak(lira(scores, members), members)
    assert ratio.auc > 0.95 and ratio.tpr[0] > 0.4
    assert threshold.auc < 0.75 and threshold.tpr[0] < 0.1
    # with all known exactly, the area is that of two Gaussians three deviations apart
    best = leak(scores - 5.0 * normal(200, seed=1), members).auc
    assert best == pytest.approx(stats.norm.cdf(3 / math.sqrt(2)), abs=0.01)
    assert ratio.auc < best


@pytest.mark.parametrize("seed", range(3))
def test_where_nothing_leaks_the_area_is_one_half_and_errors_are_as_many_as_hits(seed):
    members = halves(500, 16, seed)
    scores = normal(16, 500, seed=seed) + 5.0 * normal(500, seed=seed + 10)
    for attack in (scores, lira(scores, members)):
        found = leak(attack, members)
        assert found.auc == pytest.approx(0.5, abs=0.02)
        assert found.auc_interval[0] < 0.5 < found.auc_interval[1]
        assert found.tpr[0] == pytest.approx(0.01, abs=0.006)
        assert found.tpr[1] < 0.004


def test_a_single_planted_member_is_the_first_that_is_named():
    members = halves(100, 8, 0)
    scores = normal(8, 100)
    scores[:, 7] += 40 * members[:, 7]
    found = lira(scores, members)
    for target in range(8):
        best = found[target].argmax() if members[target, 7] else found[target].argmin()
        assert best == 7


# The curve


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_curve_is_what_counting_at_each_threshold_gives(levels):
    scores = (normal(400) * levels / 5).round()
    positive = normal(400, seed=1) + scores / levels > 0
    fpr, tpr = roc(scores, positive)
    assert fpr[0] == tpr[0] == 0 and fpr[-1] == tpr[-1] == 1
    counted = [
        (
            float((scores[~positive] >= at).double().mean()),
            float((scores[positive] >= at).double().mean()),
        )
        for at in sorted(set(scores.tolist()), reverse=True)
    ]
    assert torch.stack([fpr, tpr], 1)[1:].numpy() == pytest.approx(np.array(counted))
    pairs = stats.mannwhitneyu(scores[positive], scores[~positive]).statistic
    assert area(fpr, tpr) == pytest.approx(pairs / (positive.sum() * (~positive).sum()))
    for rate in (0.001, 0.01, 0.1, 0.5):
        reached = [hit for false, hit in counted if false <= rate]
        assert tpr_at(rate, fpr, tpr) == pytest.approx(max(reached, default=0))


def test_scores_that_are_all_equal_say_nothing():
    found = roc(torch.zeros(10), torch.arange(10) < 3)
    assert area(*found) == 0.5 and tpr_at(0.99, *found) == 0


def test_the_interval_is_as_wide_as_the_estimate_varies_over_fresh_data():
    areas, found = [], leak(normal(6, 40), halves(40, 6, 0))
    for seed in range(60):
        members = halves(40, 6, seed)
        found = leak(normal(6, 40, seed=seed) + members, members, seed=seed)
        areas.append(found.auc)
    low, high = found.auc_interval
    assert 0.7 < (high - low) / (2 * 1.96 * np.std(areas)) < 2
    assert found.positives == found.negatives == 120
    assert np.mean(found.aucs) == pytest.approx(found.auc, abs=0.05)


def test_an_attack_that_has_nothing_to_find_in_a_model_is_refused():
    members = halves(10, 6, 0)
    members[3] = False
    with refused("only where each model has members and others"):
        leak(normal(6, 10), members)


# Audits


def test_a_copy_is_at_distance_0_exactly():
    images = 100 * normal(30, 3, 8, 8).float()
    assert (nearest(images, images[10:12]) == 0).tolist() == [i in (10, 11) for i in range(30)]
    assert nearest(torch.zeros(1, 1, 1, 2), torch.tensor([[[[3.0, 4.0]]], [[[6.0, 8.0]]]])) == 5


def test_a_model_is_made_from_its_half_alone(npz):
    data = load(npz)
    pool = draw_pool(data, DESIGN, 0)
    assert pool.data.validation is None and len(pool.data.train.labels) == 24
    one, two = pool.half(0), pool.half(1)
    assert torch.equal(one.train.images, pool.data.train.images[pool.members[0]])
    assert torch.equal(one.train.labels, pool.data.train.labels[pool.members[0]])
    assert len({one.sha256, two.sha256, data.sha256}) == 3
    # another label is another half
    labels = pool.data.train.labels.clone()
    labels[pool.members[0].nonzero()[0]] ^= 1
    train = pool.data.train._replace(labels=labels)
    assert replace(pool, data=replace(pool.data, train=train)).half(0).sha256 != one.sha256


def test_a_half_is_known_by_which_images_it_has_and_not_by_their_last_bits(npz):
    pool = draw_pool(load(npz), DESIGN, 0)
    near = pool.data.train._replace(images=pool.data.train.images * (1 + 1e-6))
    elsewhere = replace(pool, data=replace(pool.data, train=near))  # as with other threads
    assert elsewhere.half(0).sha256 == pool.half(0).sha256
    other = draw_pool(load(npz), DESIGN, 1)
    fewer = draw_pool(load(npz), replace(DESIGN, images=DESIGN.images - 1), 0)
    assert len({one.half(0).sha256 for one in (pool, other, fewer)}) == 3


def test_photographs_are_found_again_in_a_set_with_other_last_bits(npz, tmp_path, monkeypatch):
    first = audit(small(npz, method="random"), tmp_path / "a", DESIGN, device="cpu", saving=QUIET)
    shutil.copytree(tmp_path / "a", tmp_path / "b", ignore=lambda *_: {"audit.json"})
    for path in (tmp_path / "b").glob("model*"):
        path.unlink()
    whole = auditing.draw_pool

    def rounded(data, design, seed):
        pool = whole(data, design, seed)
        near = pool.data.train._replace(images=pool.data.train.images * (1 + 1e-6))
        return replace(pool, data=replace(pool.data, train=near))

    monkeypatch.setattr(auditing, "draw_pool", rounded)
    again = audit(small(npz, method="random"), tmp_path / "b", DESIGN, device="cpu", saving=QUIET)
    assert first.start.keys() == again.start.keys() == {"nearest", "closer"}
    for name, found in first.start.items():
        assert again.start[name].auc == pytest.approx(found.auc, abs=0.01)


def test_a_network_that_has_learned_its_half_by_heart_gives_its_canaries_away(tmp_path):
    path = write_npz(tmp_path, classes=2, size=8, per_class=60)
    how = {"protocol": Protocol(epochs=400, batch=20, augment=False, weight_decay=0.0)}
    network = ddpp.NetworkConfig(width=16, depth=1)
    base = small(path, "random")
    base = replace(base, teachers=replace(base.teachers, network=network), **how)
    design = Design(images=60, canaries=60, models=8, whole=True)
    found = audit(base, tmp_path / "audit", design, device="cpu", saving=QUIET)
    assert found.canaries["lira"].auc > 0.8
    assert found.canaries["lira"].auc > found.all["lira"].auc - 0.02
    assert found.start["nearest"].auc == 1  # the half itself
    # the same networks, and members drawn by lot: nothing is found
    seen = seen_of(base, tmp_path / "audit", design)
    blind = judge(replace(seen, members=halves(120, 8, 5)))
    assert blind.all["loss"].auc == pytest.approx(0.5, abs=0.06)
    assert blind.canaries["loss"].auc == pytest.approx(0.5, abs=0.12)


def seen_of(base, folder, design):
    """What the attacks of a finished audit saw."""
    data = ddpp.load_data(base.data, zca=base.zca, validation=0, device="cpu")
    pool = draw_pool(data, design, base.distill.seed)
    each = [auditing.files.read(path, auditing.KIND)[0] for path in sorted(folder.glob("model*"))]
    return auditing.gather(pool, each)


@pytest.mark.parametrize(
    ("method", "init", "started"),
    [
        ("random", None, True),
        ("mtt", "real", True),
        ("dm", "noise", False),
        ("mtt", "noise", False),
    ],
)
def test_a_set_that_started_from_photographs_says_which_and_one_from_noise_started_from_none(
    npz, tmp_path, method, init, started
):
    base = small(npz, method, **({"init": init} if init else {}))
    found = audit(base, tmp_path / "audit", DESIGN, device="cpu", saving=QUIET)
    assert bool(found.start) == started
    assert len(found.accuracies) == 6
    seen = seen_of(base, tmp_path / "audit", DESIGN)
    assert (seen.start.sum(1) == (2 if started else 0)).all()
    assert not (seen.start & ~seen.members).any()
    made = ddpp.DistilledDataset.load(tmp_path / "audit" / "set03.safetensors")
    data = ddpp.load_data(npz, zca=False, validation=0, device="cpu")
    pool = draw_pool(data, DESIGN, 0)
    for i in (0, 7, 20):
        image, label = (part[i] for part in pool.data.train)
        own = made.images[made.labels == label]
        assert seen.distance[3, i] == pytest.approx(
            float((own - image).flatten(1).norm(dim=1).min())
        )
    if method == "random":
        assert found.start["nearest"].auc == 1


def test_an_audit_that_was_killed_goes_on_to_the_same_numbers(npz, tmp_path):
    base = small(npz)
    whole = audit(base, tmp_path / "whole", DESIGN, device="cpu", saving=QUIET)

    def stop(line):
        if line.startswith("model 3 of 6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(base, tmp_path / "a", DESIGN, device="cpu", saving=replace(QUIET, report=stop))
    assert audit(base, tmp_path / "a", DESIGN, device="cpu", saving=QUIET) == whole
    models = [*(tmp_path / "whole").glob("model*")]
    assert len(models) == DESIGN.models
    for path in models:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert read_audit(tmp_path / "a" / "audit.json") == whole
    before = contents(tmp_path / "a")
    with refused("holds the audit of another run", "canaries was 12 and is 11"):
        audit(base, tmp_path / "a", replace(DESIGN, canaries=11), device="cpu", saving=QUIET)
    assert contents(tmp_path / "a") == before
    (tmp_path / "a" / "audit.json").unlink()
    with refused("model00.safetensors is of another audit", "seed was 0 and is 1"):
        audit(small(npz, seed=1), tmp_path / "a", DESIGN, device="cpu", saving=QUIET)
    (tmp_path / "a" / "audit.json").write_text("[]")
    with refused("is where the report belongs, but is another file"):
        audit(base, tmp_path / "a", DESIGN, device="cpu", saving=QUIET)
    with refused("is not the report of an audit"):
        read_audit(tmp_path / "a" / "audit.json")


def test_an_audit_of_sets_that_were_stopped_is_none(npz, tmp_path):
    whole = audit(small(npz), tmp_path / "whole", DESIGN, device="cpu", saving=QUIET)
    stopping = replace(QUIET, on_step=lambda run: True)
    with refused("the set was stopped after 1 steps", "the same call without the stop resumes"):
        audit(small(npz), tmp_path / "a", DESIGN, device="cpu", saving=stopping)
    assert audit(small(npz), tmp_path / "a", DESIGN, device="cpu", saving=QUIET) == whole


def test_audits_share_teachers_of_the_same_half(npz, tmp_path):
    for init in ("real", "noise"):
        how = {"teachers": tmp_path / "teachers", "device": "cpu", "saving": QUIET}
        audit(small(npz, init=init), tmp_path / init, DESIGN, **how)
    assert len(list((tmp_path / "teachers").glob("teachers-*"))) == DESIGN.models


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 13}, "has 12 training images, fewer than the 13"),
        ({"canaries": 25}, "25 of 24 images cannot be mislabelled"),
        ({"canaries": 1}, "a half has none or all of the canaries: audit more canaries"),
        ({"models": 5}, "an audit cannot have 5 models"),
        ({"images": 0}, "the audit's images is 0"),
        ({"canaries": -1}, "the audit's canaries is -1"),
    ],
)
def test_an_audit_that_cannot_be_made_is_refused(npz, tmp_path, changes, words):
    with refused(words):
        audit(small(npz), tmp_path / "a", replace(DESIGN, **changes), device="cpu", saving=QUIET)


def test_what_one_half_cannot_give_is_noticed_before_the_first_model(npz, tmp_path, monkeypatch):
    monkeypatch.setattr(auditing.Experiment, "distilled", lambda self: pytest.fail("made in vain"))
    data = ddpp.load_data(str(npz), validation=0, device="cpu", zca=small(npz).zca)
    members = draw_pool(data, DESIGN, 0).members.unflatten(1, (2, -1)).sum(2)  # of each class
    most = int(members.min()) + 1
    assert members[0].min() >= most  # the first half would do
    base = small_recipe(npz, "dm", ipc=most, repeats=1, steps=2, batch_real=4, iterates=1)
    with refused(f"training images, fewer than the {most}"):
        audit(base, tmp_path / "a", DESIGN, device="cpu", saving=QUIET)
    with refused("an audit holds no images out: leave the validation share out"):
        audit(replace(small(npz), validation=0.3), tmp_path / "b", DESIGN, saving=QUIET)


def test_operations_that_break_the_guarantee_are_noticed_before_the_first_model(
    npz, tmp_path, monkeypatch
):
    def mix(images, u):
        return images.cumsum(0)

    pytest.importorskip("opacus")
    monkeypatch.setattr(private, "train", lambda *_: pytest.fail("trained in vain"))
    base = small(npz)
    base = replace(base, protocol=replace(base.protocol, augment=("crop", mix)))
    with refused("the augmentation mix makes an image depend on the others"):
        noisy = replace(DESIGN, whole=True, noise=1.0)
        audit(base, tmp_path / "a", noisy, device="cpu", saving=QUIET)


def test_the_command_says_what_each_attack_finds(npz, tmp_path, capsys):
    more = ("--images", 12), ("--canaries", 12), ("--models", 6)
    line = [str(word) for word in command(npz, tmp_path / "a", *more, verb="audit")]
    assert main(line) == 0
    out = capsys.readouterr().out
    assert "model 6 of 6: " in out and "AUC (95 % interval)" in out and "canaries, lira" in out
    report = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert report["asked"]["design"]["models"] == 6 and "commit" in report
    assert len(report["found"]["all"]["lira"]["curve"]) == len(membership.GRID)
    assert main([*line, "--seed", "1"]) == 1
    assert "holds the audit of another run" in capsys.readouterr().err


# With a guarantee

PRIVATE = replace(DESIGN, whole=True, noise=1.5, rate=0.1)


def test_an_audit_with_noise_has_its_guarantee_and_goes_on_after_a_kill(npz, tmp_path):
    opacus = pytest.importorskip("opacus.accountants")
    base = replace(small(npz, "random"), protocol=Protocol(epochs=3, batch=5), repeats=2)
    whole = audit(base, tmp_path / "whole", PRIVATE, device="cpu", saving=QUIET)
    accountant = opacus.RDPAccountant()
    for _ in range(2 * 3 * 3):  # networks, epochs, and 12 images in batches of 5
        accountant.step(noise_multiplier=1.5, sample_rate=5 / 12)
    promise = whole.guarantee
    assert promise.epsilon == pytest.approx(accountant.get_epsilon(1 / 24), rel=1e-9)
    assert promise.delta == 1 / 24 and whole.lines()[-1] == str(promise)

    def stop(line):
        if line.startswith("model 3 of 6"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        audit(base, tmp_path / "a", PRIVATE, device="cpu", saving=replace(QUIET, report=stop))
    assert len(list((tmp_path / "a").glob("model*"))) == 3
    assert audit(base, tmp_path / "a", PRIVATE, device="cpu", saving=QUIET) == whole
    models = [*(tmp_path / "whole").glob("model*")]
    assert len(models) == DESIGN.models
    for path in models:
        assert path.read_bytes() == (tmp_path / "a" / path.name).read_bytes()
    assert read_audit(tmp_path / "a" / "audit.json") == whole
    for changes in ({"noise": 1.4}, {"max_norm": 2.0}, {"rate": 0.2}):
        with refused("holds the audit of another run", f"design.{next(iter(changes))}"):
            audit(base, tmp_path / "a", replace(PRIVATE, **changes), device="cpu", saving=QUIET)


def test_networks_with_much_noise_know_nothing_of_their_half(tmp_path):
    pytest.importorskip("opacus")
    path = write_npz(tmp_path, classes=2, size=8, per_class=60)
    base = replace(small(path, "random"), protocol=Protocol(epochs=20, batch=60, augment=False))
    design = Design(images=60, canaries=60, models=8, whole=True, noise=100.0, rate=0.1)
    found = audit(base, tmp_path / "audit", design, device="cpu", saving=QUIET)
    assert found.guarantee.epsilon < 1
    assert found.all["loss"].auc == pytest.approx(0.5, abs=0.06)


def test_reports_and_settings_of_before_have_no_word_of_noise(npz, tmp_path):
    known = {"images": 100, "canaries": 200, "models": 16, "whole": False}
    assert identity.settings(Design()) == known
    reports = [*(Path(__file__).parents[1] / "results" / "auditing").glob("*.json")]
    assert reports
    for path in reports:
        report, found = json.loads(path.read_text()), read_audit(path)
        new = report["asked"]["design"].keys() - known.keys()
        assert (found.guarantee is None) == ("guarantee" not in report["found"]) == (not new)
        assert identity.settings(Design(**report["asked"]["design"])) == report["asked"]["design"]
    base = small(npz, "random")
    audit(base, tmp_path / "a", DESIGN, device="cpu", saving=QUIET)
    report = json.loads((tmp_path / "a" / "audit.json").read_text())
    assert report["asked"]["design"].keys() == known.keys()
    assert report["found"].keys() == {"accuracies", "all", "canaries", "start"}
    # the rate was a constant before, and is the default now
    design = replace(DESIGN, whole=True)
    assert audit(base, tmp_path / "b", design, device="cpu", saving=QUIET) == audit(
        base, tmp_path / "c", replace(design, rate=0.01), device="cpu", saving=QUIET
    )


def test_without_the_accountant_an_audit_with_noise_does_not_begin(npz, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "opacus.accountants", None)
    with refused("needs the package opacus: pip install opacus"):
        audit(small(npz, "random"), tmp_path / "a", PRIVATE, device="cpu", saving=QUIET)
    assert not list((tmp_path / "a").glob("model*"))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"noise": 1.0}, "the audit's noise has no meaning without whole: set whole, or leave"),
        ({"rate": 0.1}, "the audit's rate has no meaning without whole"),
        ({"whole": True, "max_norm": 2.0}, "the audit's max_norm has no meaning without noise"),
        ({"whole": True, "noise": -1.0}, "the audit's noise is -1.0: it must be at least 0"),
        ({"whole": True, "noise": math.nan}, "the audit's noise is nan"),
        ({"whole": True, "noise": 1.0, "max_norm": 0.0}, "the audit's max_norm is 0.0"),
        ({"whole": True, "rate": 0.0}, "the audit's rate is 0.0: it must be positive"),
    ],
)
def test_settings_of_noise_that_cannot_work_are_refused(settings, words):
    with refused(words):
        Design(**settings)


def test_the_command_trains_with_noise(npz, tmp_path, capsys):
    pytest.importorskip("opacus")
    more = ("--images", 12), ("--canaries", 12), ("--models", 6), ("--noise", 2), "--whole"
    line = [str(word) for word in command(npz, tmp_path / "a", *more, verb="audit")]
    assert main(line) == 0
    assert "differential privacy of the networks: epsilon " in capsys.readouterr().out
    assert json.loads((tmp_path / "a" / "audit.json").read_text())["asked"]["design"]["noise"] == 2
    assert main([word for word in line if word != "--whole"]) == 1
    assert "noise has no meaning without whole" in capsys.readouterr().err


# The start from noise


def test_images_that_start_as_noise_are_no_photographs_and_are_another_run(data, teachers):
    made = {
        init: ddpp.distill(data, teachers, replace(CONFIG, init=init), progress=False)
        for init in ("real", "noise")
    }
    assert torch.equal(made["real"].at(0).images, data.draw(CONFIG.ipc, CONFIG.seed).images)
    noise = made["noise"].at(0).images
    assert torch.equal(noise, data.draw(CONFIG.ipc, CONFIG.seed).as_noise(CONFIG.seed).images)
    assert nearest(noise, data.train.images).min() > 1
    assert torch.equal(made["noise"].labels, made["real"].labels)
    assert "init" not in made["real"].provenance["config"]  # as files of before
    assert made["noise"].provenance["config"]["init"] == "noise"
    for init, one in made.items():  # figures say what the first images are
        assert figures.progress(one).axes[0].get_ylabel() == init
        assert figures.before_after(one).axes[0].get_title() == init
    with refused("unknown init 'nose': did you mean 'noise'?"):
        ddpp.distill(data, teachers, replace(CONFIG, init="nose"), progress=False)


def own_network(base, network):
    teachers = replace(base.teachers, network=ddpp.NetworkConfig(network))
    return replace(base, teachers=teachers)


class Plain(nn.Sequential):
    """No convolution."""

    def __init__(self, channels, classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, classes))


class Batchwise(nn.Sequential):
    """Takes the statistics of each batch."""

    def __init__(self, channels, classes, image_size):
        norm = nn.BatchNorm2d(channels, track_running_stats=False)
        super().__init__(norm, nn.Flatten(), nn.Linear(channels * image_size**2, classes))


def test_models_of_a_network_that_has_changed_since_are_refused(npz, tmp_path):
    how = {"design": DESIGN, "device": "cpu", "saving": QUIET}
    base = own_network(small(npz, "random"), Plain)
    audit(base, tmp_path / "a", **how)
    networks.ARCHITECTURES["Plain"] = Batchwise  # as in another session, after an edit
    with refused("holds the audit of another run", "the network Plain has changed"):
        audit(base, tmp_path / "a", **how)
    (tmp_path / "a" / "audit.json").unlink()
    with refused("is of another audit", "the network Plain has changed"):
        audit(base, tmp_path / "a", **how)


def test_a_network_that_reads_its_batch_sees_each_batch_across_all_classes(
    npz, tmp_path, monkeypatch
):
    sizes = []
    whole = networks.in_batches

    def few(network, function, images, batch=500):
        def seen(x):
            sizes.append(len(x))
            return function(x)

        return whole(network, seen, images, 12)

    monkeypatch.setattr(auditing, "in_batches", few)
    audit(
        own_network(small(npz, "random"), Batchwise), tmp_path, DESIGN, device="cpu", saving=QUIET
    )
    assert {*sizes} == {12}
    data = load(npz)
    flat = data.network(ddpp.NetworkConfig(Batchwise))
    theta, (images, labels) = flat.initial(0), draw_pool(data, DESIGN, 0).data.train
    batches = []
    found = whole(flat, lambda x: batches.append(x) or flat(theta, x), images, 12)  # of 24, sorted
    for batch in batches:
        places = (images[:, None] == batch).flatten(2).all(2).nonzero()
        order = places[places[:, 1].argsort(), 0]
        assert len(order) == 12 and len(labels[order].unique()) == len(data.classes)
        assert torch.equal(found[order], flat(theta, batch))
    assert not torch.allclose(found[:12], flat(theta, images[:12]), atol=1e-3)


def test_networks_that_diverged_are_no_sign_that_nothing_leaks(npz, tmp_path):
    base = small(npz, "dm", alpha=1e30)
    with refused("the networks of model 1 diverged", "learning rate is 1e+30, lower it"):
        audit(base, tmp_path / "a", DESIGN, device="cpu", saving=QUIET)
    assert not (tmp_path / "a" / "model00.safetensors").exists()


def test_draws_without_a_member_leave_the_intervals_what_they_are():
    members = torch.zeros(6, 2, dtype=torch.bool)
    members[:3, 0] = members[3:, 1] = True  # two images: half of the draws have one alone
    found = leak(normal(6, 2) + 2 * members, members)
    for low, high in (found.auc_interval, *found.tpr_intervals):
        assert 0 <= low <= high <= 1
    found = leak(members.double(), members)  # whatever is drawn, the attack is always right
    assert found.auc_interval == (1, 1) and found.tpr_intervals == ((1, 1), (1, 1))


def test_a_second_call_does_not_claim_to_have_made_the_audit(npz, tmp_path):
    how = {"design": DESIGN, "device": "cpu", "saving": QUIET}
    audit(small(npz, "random"), tmp_path, **how)
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "of before"}))
    audit(small(npz, "random"), tmp_path, **how)
    assert json.loads(path.read_text())["commit"] == "of before"


def test_intervals_say_how_much_models_differ():
    members = halves(100, 6, 0)
    found = leak((2.0 * members - 1) * torch.tensor([1.0, 1, 1, 1, -1, -1])[:, None], members)
    assert found.aucs == (1, 1, 1, 1, 0, 0)  # each model says the same of all images
    assert found.auc_interval[0] < 0.35 and found.auc_interval[1] == 1


def test_a_half_that_lacks_a_class_is_measured_by_the_other_images(npz, tmp_path):
    design = Design(images=2, canaries=0, models=6, whole=True)
    base = small(npz, "random")
    pool = draw_pool(load(npz), design, 0)
    assert any(len(pool.half(m).train.labels.unique()) == 1 for m in range(6))
    audit(base, tmp_path, design, device="cpu", saving=QUIET)
    assert seen_of(base, tmp_path, design).distance.isfinite().all()


def test_every_model_has_a_seed_of_its_own(npz, tmp_path):
    audit(small(npz), tmp_path, DESIGN, device="cpu", saving=QUIET)
    sets = [ddpp.DistilledDataset.load(path) for path in tmp_path.glob("set*.safetensors")]
    for seed in ("config", "teachers"):
        assert len({one.provenance[seed]["seed"] for one in sets}) == 6


def test_noise_is_standard_normal():
    noise = Split(torch.zeros(50, 3, 8, 8), torch.zeros(50, dtype=torch.int64)).as_noise(1).images
    assert stats.kstest(noise.flatten().double().numpy(), "norm").pvalue > 0.01
