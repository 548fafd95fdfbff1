"""Rules are compared in pairs, and a difference is tested as a statistician would."""

import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from scipy import stats
from small import CONFIG, NETWORK, TEACHERS, load, refused, save

import ddpp
from ddpp import cli
from ddpp.book import figures
from ddpp.experiments import Comparison, Difference, holm
from ddpp.experiments.comparing import comparison_of, in_name, parse_setting
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import recipe
from ddpp_course.assignment4 import T_95

NONE, MINE, SIGNED = ("none", 0.0), ("mine", 0.1), ("signed", 0.1)
BASE = (30.0, 31.0, 29.0, 30.5, 28.0)
BETTER = (31.0, 32.5, 29.5, 31.0, 30.0)
ALIKE = (30.5, 30.0, 29.5, 30.0, 28.5)


def mine(student, teacher, epsilon):
    return student * teacher >= 0


@pytest.fixture
def small():
    distill = replace(CONFIG, steps=2, iterates=1)
    protocol = ddpp.Protocol(epochs=2)
    return replace(
        recipe("smoke"), teachers=TEACHERS, distill=distill, protocol=protocol, repeats=2
    )


# statistics


def test_the_interval_and_p_are_those_of_the_paired_t_test():
    gains = tuple(b - a for a, b in zip(BASE, BETTER, strict=True))
    found, right = Difference(gains), stats.ttest_rel(BETTER, BASE)
    low, high = right.confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    assert found.p == pytest.approx(right.pvalue)
    # as the course prints it
    assert Difference((0.0, 1.0)).half == pytest.approx(T_95[0] * 0.5, rel=1e-4)


# 40.1 - 39.1 and 52.3 - 51.3 are not the same bits
@pytest.mark.parametrize("values", [(1.0,), (1.0, 1.0), (40.1 - 39.1, 52.3 - 51.3)])
def test_one_seed_and_equal_differences_say_nothing_about_chance(values):
    found = Difference(values)
    assert (found.half, found.interval, found.p, found.detectable()) == (None,) * 4
    assert found.text() == "+1.00"


def test_runs_that_are_the_same_do_not_differ():
    same = Difference((0.0, 0.0, 0.0))
    assert (same.half, same.p) == (0, 1)


def test_p_is_corrected_by_holm():
    found = Comparison(NONE, {NONE: BASE, MINE: BETTER, SIGNED: ALIKE}, {})
    p = {setting: difference.p for setting, difference in found.differences.items()}
    assert p[MINE] < p[SIGNED]
    right = {MINE: 2 * p[MINE], SIGNED: max(2 * p[MINE], p[SIGNED])}
    assert found.corrected == pytest.approx(right)


def test_holm_is_what_its_definition_says():
    rng = torch.Generator().manual_seed(0)
    for count in (1, 2, 7):
        p = dict(enumerate((torch.rand(count, generator=rng) ** 2).tolist())) | {9: None}
        found = holm({name: SimpleNamespace(p=one) for name, one in p.items()})
        known = {name: one for name, one in p.items() if one is not None}
        scaled = {  # by the number of those that are not smaller
            name: one * sum(other >= one for other in known.values()) for name, one in known.items()
        }
        for name, one in known.items():
            largest = max(scaled[other] for other in known if known[other] <= one)
            assert found[name] == pytest.approx(min(1, largest))
        assert found[9] is None


def test_a_seed_without_a_result_is_left_out_of_its_pair():
    found = Comparison(NONE, {NONE: BASE, MINE: (math.nan, *BETTER[1:])}, {})
    assert len(found.differences[MINE].values) == 4
    assert found.lines()[2][0] == "mine" and found.lines()[2][-1] == "4"


# runs


def test_runs_of_one_seed_are_paired(small, tmp_path):
    data = load(save(tmp_path / "mine.npz"))
    options = {"seeds": 2, "recipe": small, "data": data, "folder": tmp_path / "c"}
    lines = []
    quiet = {"progress": False, "say": lines.append}
    found = ddpp.compare(mine, ("signed", 0.5), **options, **quiet)
    assert list(found.accuracies) == [NONE, ("mine", 0.1), ("signed", 0.5)]
    rows = [json.loads(path.read_text()) for path in (tmp_path / "c").rglob("compare/*.json")]
    assert len(rows) == 6
    for seed in (0, 1):
        group = [row["recipe"] for row in rows if row["seed"] == seed]
        for each in group:
            each["distill"] |= {"rule": None, "epsilon": None}
        assert len({json.dumps(each, sort_keys=True) for each in group}) == 1
        assert group[0]["teachers"]["seed"] == group[0]["distill"]["seed"] == seed
    # so is a rule of the same name that was written anew
    again = lambda student, teacher, epsilon: teacher > 0
    again.__name__ = "mine"
    assert [*ddpp.compare(again, **options, **quiet).accuracies] == [NONE, ("mine-2", 0.1)]
    both = ddpp.compare(mine, again, **options, **quiet).accuracies
    assert [*both] == [NONE, ("mine", 0.1), ("mine-2", 0.1)]
    assert all(len(values) == 2 for values in both.values())
    # a second call computes nothing
    lines.clear()
    assert ddpp.compare(mine, ("signed", 0.5), **options, **quiet) == found
    assert lines[0] == "6 of 6 runs are finished"
    head, line = found.markdown().splitlines()[0::2][:2]
    assert "95 % interval" in head and "none" in line
    labels = [t.get_text() for t in figures.comparison(found).axes[0].get_yticklabels()]
    assert labels == ["mine, 0.1", "signed, 0.5"]


def test_a_method_of_ones_own_with_a_rule_is_compared(small, tmp_path):
    METHODS["own"] = replace(METHODS["ddpp"])
    data = load(save(tmp_path / "mine.npz"))
    options = {"seeds": 1, "recipe": replace(small, method="own"), "data": data}
    quiet = {"progress": False, "say": lambda line: None, "folder": tmp_path / "c"}
    found = ddpp.compare(("signed", 0.5), **options, **quiet)
    assert list(found.accuracies) == [NONE, ("signed", 0.5)]


def test_other_data_in_the_same_folder_is_not_mistaken(small, tmp_path):
    quiet = {"progress": False, "say": lambda line: None, "folder": tmp_path / "c", "seeds": 1}
    one = load(save(tmp_path / "mine.npz"))
    ddpp.compare("signed", recipe=small, data=one, **quiet)
    x, y = one.train.images.sigmoid().permute(0, 2, 3, 1).numpy(), one.train.labels.numpy()
    two = ddpp.from_arrays(x, y, x, y, validation=0, zca=False, device="cpu")
    with refused("is the result of other settings", "recipe.data was 'mine"):
        ddpp.compare("signed", recipe=small, data=two, **quiet)


@pytest.mark.parametrize(
    "rules, options, words",
    [
        ([], {}, ["there is nothing to compare"]),
        (["none"], {}, ["there is nothing to compare"]),
        (["signed"], {"seeds": 0}, ["seeds is 0", "at least 1"]),
        (["signd"], {}, ["unknown rule 'signd'", "did you mean 'signed'?"]),
        ([("sign", 0.1)], {"base": ("sign", 0.3)}, ["there is nothing to compare"]),
    ],
)
def test_what_cannot_be_compared_is_refused(rules, options, words, tmp_path, small):
    with refused(*words):
        ddpp.compare(
            *rules, recipe=small, folder=tmp_path, progress=False, say=lambda _: None, **options
        )


def test_seeds_that_would_have_no_effect_are_refused(tmp_path, small):
    own = replace(small, distill=replace(small.distill, seed=7))
    with refused("seed is 7, but the runs have the seeds 0, 1, ..."):
        ddpp.compare("signed", recipe=own, folder=tmp_path)
    own = replace(small, teachers=replace(small.teachers, seed=9))
    with refused("teachers.seed is 9, but the runs have the seeds 0, 1, ..."):
        ddpp.compare("signed", recipe=own, folder=tmp_path)


def test_two_thresholds_are_two_names():
    assert (in_name(0.1), in_name(0.0), in_name(1e-05)) == ("0.1", "0", "1e-05")
    assert in_name(0.1234567) != in_name(0.12345671)


def test_a_rule_with_an_epsilon_is_read():
    assert parse_setting("signed") == "signed"
    assert parse_setting("signed@0.3") == ("signed", 0.3)
    assert parse_setting("mine:rule@0.3") == ("mine:rule", 0.3)
    with refused("signed@much is no rule with an epsilon", "signed@0.1"):
        parse_setting("signed@much")


def test_the_command_takes_one_option_for_each_rule(tmp_path, capsys):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "compare"
    words = f"compare --rule signed --rule=magnitude@0.2 --seeds 1 --data {npz} --out {out}"
    words += " --steps 2 --iterates 1 --teachers.count 1 --teachers.epochs 3 --student-steps 2"
    words += f" --teachers.network.width {NETWORK.width} --teachers.network.depth 1 --repeats 1"
    words += " --protocol.epochs 1 --device cpu --alpha-lr 0 --image-lr 0.01"
    assert cli.main(words.split()) == 0
    said = capsys.readouterr().out
    assert "3 of 3 runs are finished" in said and "minus none (points)" in said
    assert "| signed | 0.1 |" in (out / "table.md").read_text()
    assert (out / "differences.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("level", [0.05, 0.0125])
def test_the_detectable_difference_is_found_four_times_in_five(level):
    spread, seeds = 0.5, 8
    found = Difference(tuple(spread * stats.zscore(range(seeds), ddof=1)))
    n = seeds - 1
    shift = found.detectable(level) / (spread / math.sqrt(seeds))
    power = stats.nct.sf(stats.t.ppf(1 - level / 2, n), n, shift)
    assert power == pytest.approx(0.8, abs=1e-3)
    pair = Difference((-1.0, 1.0)).detectable(level)  # far from any usual quantile
    assert pair == pytest.approx({0.05: 16.33, 0.0125: 65.27}[level], abs=0.01)
    assert Difference((1.0,)).detectable() is None and found.detectable(0.9) == 0


def test_what_is_detectable_accounts_for_the_number_of_differences():
    values = {("none", 0.0): (30.0, 31.0, 29.0), ("sign", 0.0): (30.5, 31.0, 29.9)}
    one = Comparison(("none", 0.0), values, {})
    two = replace(one, accuracies=values | {("signed", 0.1): (30.1, 30.9, 29.2)})
    found = one.differences["sign", 0.0]
    assert one.detectable["sign", 0.0] == found.detectable(0.05)
    assert two.detectable["sign", 0.0] == found.detectable(0.025) > found.detectable(0.05)


def test_finished_runs_are_compared_without_their_list():
    def row(rule, seed, accuracy, epsilon=0.0, steps=80):
        recipe = {"distill": {"rule": rule, "epsilon": epsilon, "steps": steps}}
        name = f"{rule}-{steps}-seed{seed}"
        return {"error": None, "recipe": recipe, "seed": seed, "accuracy": accuracy, "name": name}

    # without pruning no epsilon has an effect, and a second none is no comparison
    rows = [row("sign", 3, 31.0), row("none", 3, 30.0), row("none", 5, 29.0, epsilon=0.3)]
    found = comparison_of(rows)
    assert found.base == NONE
    assert found.differences[("sign", 0.0)].values == (1.0,)
    assert len(found.differences) == 1
    with refused("no run is finished"):
        comparison_of([])
    with refused("none-80-seed3 and none-500-seed3 have the same rule, epsilon and seed"):
        comparison_of([*rows, row("none", 3, 35.0, steps=500)])
    with refused("sign-80-seed3 and none-500-seed4 cannot be compared (steps was 80 and is 500)"):
        comparison_of([*rows, row("none", 4, 35.0, steps=500)])


def test_methods_without_a_rule_and_names_of_no_function_are_refused(tmp_path):
    with refused("dm has no pruning rule", "the method ddpp"):
        ddpp.compare("signed", recipe=ddpp.recipe(method="dm"), folder=tmp_path)
    with refused("the rule os:path is a module: name a function or a class"):
        ddpp.compare("os:path", folder=tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_rule_without_its_name_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["compare", "--out", str(tmp_path / "c"), "--rule"])
    assert "--rule" in capsys.readouterr().err and not (tmp_path / "c").exists()


def test_data_that_was_preprocessed_in_another_way_is_not_mistaken(small, tmp_path):
    path = save(tmp_path / "mine.npz")
    quiet = {"folder": tmp_path, "progress": False, "say": lambda line: None, "seeds": 1}
    ddpp.compare("signed", recipe=small, data=load(path), **quiet)
    with refused("is the result of other settings", "recipe.zca was False and is True"):
        ddpp.compare("signed", recipe=small, data=load(path, zca=True, validation=0.3), **quiet)
