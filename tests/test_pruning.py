"""The paper's rule: which pairs are difficult to match, and what is left of the loss."""

import pytest
import torch

from ddpp import keep_mask, matching_loss, similarity
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig
from ddpp.pruning import RULES

ALIKE, TENTH, FLIPPED, ZERO, ZEROS = (1.0, 1.0), (0.05, 1.0), (1.0, -1.0), (0.0, 1.0), (0.0, 0.0)


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    "pair, signed, magnitude",
    [
        (ALIKE, True, True),
        (TENTH, False, False),
        (FLIPPED, False, True),
        (ZERO, False, False),
        (ZEROS, True, True),
    ],
)
def test_the_truth_table_of_both_rules(pair, signed, magnitude, swap):
    s, t = (torch.tensor([v]) for v in (reversed(pair) if swap else pair))
    assert keep_mask(s, t, 0.1).item() is signed
    assert keep_mask(s, t, 0.1, "magnitude").item() is magnitude


def test_the_rule_is_the_papers_ratio_test():
    s, t = torch.randn(2, 10_000, generator=generator(0), dtype=torch.float64)
    for epsilon in (0.0, 0.1, 0.5):
        literal = (s / t < epsilon) | (t / s < epsilon)
        assert torch.equal(keep_mask(s, t, epsilon), ~literal)
        literal = ((s / t).abs() < epsilon) | ((t / s).abs() < epsilon)
        assert torch.equal(keep_mask(s, t, epsilon, "magnitude"), ~literal)
        assert torch.equal(similarity(s, t) < epsilon, ~keep_mask(s, t, epsilon))


def test_similarity_is_symmetric_and_bounded():
    s, t = torch.tensor([2.0, 1.0, -3.0, 0.0, 0.0]), torch.tensor([1.0, 2.0, 3.0, 0.0, 5.0])
    assert torch.equal(similarity(s, t), torch.tensor([0.5, 0.5, -1.0, 1.0, 0.0]))
    assert torch.equal(similarity(s, t), similarity(t, s))


def test_epsilon_zero_still_separates_the_two_rules():
    s, t = torch.tensor([1.0, 1.0]), torch.tensor([1.0, -1.0])
    assert keep_mask(s, t, 0.0, "magnitude").all()
    assert keep_mask(s, t, 0.0, "signed").tolist() == [True, False]


def test_the_same_pairs_leave_numerator_and_denominator():
    student, teacher, start = (
        torch.tensor(v) for v in ([1.0, 2.0, 0.01], [2.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    )
    assert keep_mask(student, teacher, 0.1).tolist() == [True, True, False]
    assert matching_loss(student, teacher, start, 0.1).item() == pytest.approx((1 + 1) / (4 + 1))
    assert matching_loss(student, teacher, start, 0.1, "none").item() == pytest.approx(
        (1 + 1 + 0.99**2) / 6
    )


def test_the_loss_is_zero_at_the_teacher_and_one_at_the_start():
    start, teacher = torch.randn(2, 1000, generator=generator(1))
    for rule in RULES:
        assert matching_loss(teacher, teacher, start, 0.1, rule) == 0
        assert matching_loss(start, teacher, start, 0.1, rule) == pytest.approx(1)


def test_the_mask_carries_no_gradient():
    student, teacher, start = (
        torch.randn(50, generator=generator(2, i), requires_grad=i == 0) for i in range(3)
    )
    keep = keep_mask(student, teacher, 0.1)
    (gradient,) = torch.autograd.grad(matching_loss(student, teacher, start, 0.1), student)
    assert not keep.requires_grad
    assert (gradient[~keep] == 0).all()
    expected = 2 * (student - teacher) / ((start - teacher)[keep] ** 2).sum()
    assert torch.allclose(gradient[keep], expected[keep])


def test_nothing_left_is_not_a_number():
    student, teacher = torch.ones(3), -torch.ones(3)
    assert matching_loss(student, teacher, torch.zeros(3), 0.1).isnan()


def test_a_mask_splits_by_layer():
    network = NetworkConfig(width=4, depth=1).build(3, 2, 8)
    parts = network.unflatten(torch.ones(network.size, dtype=torch.bool))
    assert list(parts) == ["0.weight", "0.bias", "1.weight", "1.bias", "5.weight", "5.bias"]
    assert sum(part.numel() for part in parts.values()) == network.size


def test_the_controls_prune_as_many_as_the_papers_rule_but_others():
    rng = torch.Generator().manual_seed(3)
    student = torch.randn(2000, generator=rng)
    teacher = student + 0.5 * torch.randn(2000, generator=rng)
    difference = (student - teacher).abs()
    masks = {
        rule: keep_mask(student, teacher, 0.3, rule)
        for rule in ("signed", "random", "largest", "smallest")
    }
    assert len({int(keep.sum()) for keep in masks.values()}) == 1
    assert difference[~masks["largest"]].min() >= difference[masks["largest"]].max()
    assert difference[~masks["smallest"]].max() <= difference[masks["smallest"]].min()
    pruned = ~masks["random"]
    expected = pruned.float().mean() ** 2 * 2000
    overlap = (pruned & ~masks["signed"]).sum()
    # independent of what the paper's rule prunes
    assert abs(overlap - expected) < 5 * expected**0.5
    assert torch.equal(keep_mask(student, teacher, 0.3, "random"), masks["random"])  # replayed
    # drawn anew
    assert not torch.equal(keep_mask(student + 1e-3, teacher, 0.3, "random"), masks["random"])


@pytest.mark.parametrize("rule", ["random", "largest", "smallest"])
def test_where_the_papers_rule_prunes_nothing_the_controls_do_not_either(rule):
    same = torch.linspace(-1, 1, 11)
    assert keep_mask(same, same, 0.5, rule).all()
