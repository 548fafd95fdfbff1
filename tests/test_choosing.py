"""Networks that are ranked by training on small sets: the grid, the choice from it, the statistics
against scipy, and that a stopped run resumes to the same numbers.
"""

import json
import math
import statistics
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from scipy import stats
from small import contents, refused

import ddpp
from ddpp.baselines import selection
from ddpp.book import figures
from ddpp.cli import main
from ddpp.data.images import Watched
from ddpp.networks import NetworkConfig
from ddpp.studies import Candidate, Grid, Ranking, Search, choosing, rank, stratified
from ddpp.studies.ranking import (
    STATISTICS,
    TRUTH,
    bootstrap,
    in_best_tenth,
    kendall,
    ranks,
    regret,
    spearman,
)

TINY = Grid(width=(4, 8), depth=(1,), activation=("relu",), pooling=("max",))
QUICK = Search(small_epochs=2, epochs=2, batch=8, rates=(0.03, 0.1), repeats=2)


def row(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    from conftest import write_npz

    path = write_npz(tmp_path_factory.mktemp("ranked"))
    return ddpp.load_data(path, zca=False, validation=0.2, device="cpu")


def sets_of(images, draws=2):
    return {"random": [selection.random(images, 2, {}, seed) for seed in range(draws)]}


# the grid


def test_a_candidate_with_the_convnets_parts_is_the_convnet(images):
    ours = NetworkConfig(width=8, depth=2).build(1, 3, 12)
    theirs = Candidate(8, 2).network(images)
    theta = ours.initial(5)
    assert torch.equal(theta, theirs.initial(5))
    x = images.test.images
    assert torch.equal(ours(theta, x), theirs(theta, x))


def test_every_value_of_a_grid_makes_another_network(images):
    full = Grid(width=(4, 8), pooling=("none", "max", "average"))
    candidates = full.candidates()
    assert len(candidates) == len(set(candidates)) == 2 * 3 * 4 * 3 * 3
    x, logits = images.test.images, set()
    for one in candidates[::5]:
        network = one.network(images)
        assert not network.mixes
        logits.add(tuple(network(network.initial(0), x)[0].tolist()))
    assert len(logits) == len(candidates[::5])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [12, 48, 132, 144])
def test_in_a_stratified_choice_each_value_of_each_factor_appears_equally_often(count, seed):
    grid = Grid()
    chosen = stratified(grid.candidates(), count, seed)
    assert len(set(chosen)) == count and set(chosen) <= set(grid.candidates())
    for field in fields(grid):
        found = [getattr(one, field.name) for one in chosen]
        values = getattr(grid, field.name)
        assert {found.count(value) for value in values} == {count // len(values)}
    assert chosen == stratified(grid.candidates(), count, seed)


def test_other_seeds_choose_other_networks():
    assert len({tuple(stratified(Grid().candidates(), 48, seed)) for seed in range(10)}) == 10


@pytest.mark.parametrize("count", [0, -12, 10, 156])
def test_a_count_that_cannot_be_balanced_is_refused(count):
    with refused(f"{count} networks", "each value equally often", "multiple of 12 up to 144"):
        stratified(Grid().candidates(), count)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"norm": ()}, ["the grid is empty", "norm"]),
        ({"width": ()}, ["the grid is empty", "width"]),
        ({"depth": (1, 1)}, ["names a depth twice"]),
        ({"width": (0, 8)}, ["a width below 1"]),
        ({"norm": ("batch",)}, ["unknown norm 'batch'", "instance"]),
        ({"pooling": ("avg",)}, ["unknown pooling 'avg'", "average"]),
    ],
)
def test_a_grid_that_is_empty_or_wrong_is_refused(change, words):
    with refused(*words):
        Grid(**change)


def test_a_single_name_is_a_grid_of_one():
    assert Grid(norm="group") == Grid(norm=("group",))
    with refused("unknown norm 'batch'"):
        Grid(norm="batch")


def test_images_that_are_too_small_for_a_depth_are_refused(images):
    with refused("depth 4 halves the image 4 times", "12 x 12", "leave that depth out"):
        Candidate(8, 4).network(images)
    assert Candidate(8, 4, pooling="none").network(images).size


# the statistics


def random_rows(n, levels, seed):
    rng = torch.Generator().manual_seed(seed)
    a = torch.randint(levels, (n,), generator=rng).double()
    return a, (a + torch.randint(levels, (n,), generator=rng)).double()


@pytest.mark.parametrize("levels", [2, 5, 10_000])  # with many ties, some, hardly any
@pytest.mark.parametrize("seed", range(5))
def test_ranks_and_correlations_are_those_of_scipy(levels, seed):
    a, b = random_rows(40, levels, seed)
    assert ranks(a).tolist() == stats.rankdata(a.numpy()).tolist()
    assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-12)
    assert kendall(a, b) == pytest.approx(stats.kendalltau(a, b).statistic, abs=1e-12)


def test_equal_and_opposite_orders():
    a = row(1, 5, 2, 9)
    for statistic in (spearman, kendall):
        assert statistic(a, a.exp()) == pytest.approx(1)
        assert statistic(a, -a) == pytest.approx(-1)
        assert math.isnan(statistic(a, row(3, 3, 3, 3)))


@pytest.mark.parametrize("a, b", [(row(1, 2), row(1, 2, 3)), (row(1), row(1))])
def test_rows_of_other_networks_are_refused(a, b):
    for statistic in (spearman, kendall):
        with refused("are no two rows of values of the same networks"):
            statistic(a, b)


def test_the_best_tenth_and_the_regret_by_hand():
    truth = torch.arange(20.0)
    proxy = truth.clone()
    proxy[19], proxy[18] = 18, 19  # the two best in the wrong order
    assert in_best_tenth(truth, proxy) == pytest.approx(-1)
    assert spearman(truth, proxy) > 0.99
    third = torch.tensor([3.0, 5.0, 1.0, 2.0])  # a tenth of 21 is three
    assert in_best_tenth(torch.arange(21.0), torch.cat([-torch.arange(17.0), third])) == (
        pytest.approx(-0.5)
    )
    assert regret(truth, proxy) == -1 and regret(truth, proxy, keep=2) == 0
    assert regret(truth, -truth) == -19 and regret(truth, -truth, keep=5) == -15
    assert regret(truth, truth) == 0


def test_the_interval_of_a_mean_is_the_one_of_theory():
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found = bootstrap(lambda index: float(values[index].mean()), 200)
    half = 1.96 * float(values.std()) / math.sqrt(200)
    assert found.value == pytest.approx(float(values.mean()))
    assert found.high - found.value == pytest.approx(half, rel=0.15)
    assert found.value - found.low == pytest.approx(half, rel=0.15)
    assert found == bootstrap(lambda index: float(values[index].mean()), 200)


def ranked(n=24, noise=0.5, draws=2, repeats=1):
    rng = torch.Generator().manual_seed(1)
    truth = torch.randn(n, generator=rng)
    candidates = tuple(stratified(Grid().candidates(), n))
    made = {
        "good": truth + noise * torch.randn(draws, n, generator=rng),
        "bad": truth + 5 * torch.randn(draws, n, generator=rng),
    }
    trained = truth + 0.1 * torch.randn(repeats, n, generator=rng) * (repeats > 1)
    again = truth + 0.2 * torch.randn(repeats, n, generator=rng)
    seconds = {"good": 60.0, "bad": 90.0, TRUTH: 600.0}
    return Ranking(candidates, trained, again, made, seconds)


def test_a_better_proxy_has_a_difference_above_zero_and_none_to_itself():
    found = ranked()
    assert found.estimate("good", spearman, base="bad").low > 0
    assert found.estimate("good", spearman, base="good") == (0, 0, 0)
    mean = sum(spearman(found.truth[0], one) for one in found.proxies["good"]) / 2
    assert found.estimate("good", spearman).value == pytest.approx(mean)


def test_all_images_trained_on_again_say_how_well_any_proxy_could_do():
    found = ranked(repeats=3)
    a, b, c = found.truth
    rest = (b + c) / 2, (a + c) / 2, (a + b) / 2
    pairs = zip(rest, found.again, strict=True)
    mean = statistics.fmean(stats.spearmanr(*pair).statistic for pair in pairs)
    assert found.estimate(TRUTH, spearman).value == pytest.approx(mean)
    assert found.estimate(TRUTH, spearman, base="bad").low > 0
    last = found.markdown().splitlines()[-1].split("|")
    assert last[1].strip() == TRUTH and f"{mean:.2f}" in last[2] and last[-2].strip() == "10.0"
    part = found.only("activation", "relu", "leaky")
    assert part.again.shape == part.truth.shape
    with refused("trained on once: rank with at least two repeats"):
        ranked().estimate(TRUTH, spearman)


def test_shifts_say_which_value_ranks_too_high():
    found = ranked(noise=0)
    assert set(found.shifts("good", "norm").values()) == {0}
    favoured = torch.tensor([one.norm == "layer" for one in found.candidates])
    found.proxies["good"] = found.proxies["good"] + 100 * favoured
    shifts = found.shifts("good", "norm")
    assert shifts["layer"] > 0 and all(shifts[norm] < 0 for norm in ("none", "instance", "group"))
    assert sum(shifts.values()) == pytest.approx(0, abs=1e-5)  # equally many of each


def test_a_part_of_the_networks_is_a_ranking_of_its_own():
    found = ranked()
    part = found.only("activation", "relu", "leaky")
    assert {one.activation for one in part.candidates} == {"relu", "leaky"}
    kept = torch.tensor([one.activation != "sigmoid" for one in found.candidates])
    assert torch.equal(part.truth, found.truth[:, kept])
    assert torch.equal(part.proxies["bad"], found.proxies["bad"][:, kept])
    with refused("fewer than two networks have norm"):
        found.only("norm", "batch")


def test_a_factor_or_set_that_is_not_there_gets_a_sentence():
    found = ranked()
    for ask in (lambda: found.only("with", 8), lambda: found.shifts("good", "with")):
        with refused("unknown factor 'with': did you mean 'width'?", "depth, norm"):
            ask()
    sets = (lambda: found.estimate("god", spearman), lambda: found.estimate("bad", spearman, "god"))
    for ask in (*sets, lambda: found.shifts("god", "norm")):
        with refused("unknown set 'god': did you mean 'good'?"):
            ask()


def test_the_table_has_a_row_for_each_set_and_the_minutes_of_all():
    table = ranked().markdown().splitlines()
    assert table[0].count("|") == len(STATISTICS) + 3
    assert [line.split("|")[1].strip() for line in table[2:]] == ["good", "bad", TRUTH]
    assert [line.split("|")[-2].strip() for line in table[2:]] == ["1.0", "1.5", "10.0"]


# rank


@pytest.fixture(scope="module")
def done(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("done")
    return folder, rank(TINY.candidates(), sets_of(images), images, folder, QUICK, progress=False)


def without_seconds(folder):
    found = json.loads((folder / choosing.REPORT).read_text())["found"]
    return {
        name: [{key: row[key] for key in ("rate", "held_out", "test")} for row in rows]
        for name, rows in found.items()
    }


def test_scores_are_those_of_training_by_hand(images, done):
    folder, found = done
    assert found.truth.shape == (2, 8) and found.proxies["random"].shape == (2, 8)
    one, protocol = TINY.candidates()[3], ddpp.Protocol(epochs=2, batch=20)
    network, best = one.network(images), (-1.0, 0.0)
    for rate in QUICK.rates:
        on = replace(sets_of(images)["random"][1], alpha=torch.tensor(rate))
        theta = ddpp.evaluating.train(network, on, protocol, 0, "proxy", 1)
        best = max(best, (ddpp.networks.accuracy(network, theta, *images.validation), -rate))
    assert found.proxies["random"][1, 3] == pytest.approx(best[0])
    assert without_seconds(folder)["random"][1]["rate"][3] == -best[1]
    assert all(seconds > 0 for seconds in found.seconds.values())


def test_the_truth_is_tested_on_test_images_after_training_on_all(images, done):
    _, found = done
    one, protocol = TINY.candidates()[0], ddpp.Protocol(epochs=2, batch=8)
    network, scores = one.network(images), []
    for rate in QUICK.rates:
        on = ddpp.DistilledDataset.from_tensors(*images.train, rate, images)
        theta = ddpp.evaluating.train(network, on, protocol, 0, "truth", 0)
        splits = (images.validation, images.test)
        split = [ddpp.networks.accuracy(network, theta, *part) for part in splits]
        scores.append(split)
    chosen = max(scores, key=lambda split: split[0])
    assert found.truth[0, 0] == pytest.approx(chosen[1])


def test_a_run_that_was_killed_resumes_to_the_same_numbers(images, done, tmp_path, monkeypatch):
    calls, train = [], choosing.train

    def stop(*words):
        calls.append(words)
        if len(calls) == 21:
            raise KeyboardInterrupt
        return train(*words)

    monkeypatch.setattr(choosing, "train", stop)
    what = (TINY.candidates(), sets_of(images), images, tmp_path / "stopped", QUICK)
    with pytest.raises(KeyboardInterrupt):
        rank(*what, progress=False)
    assert not (tmp_path / "stopped" / choosing.REPORT).exists()
    found = rank(*what, progress=False)
    assert len(calls) == 1 + 8 * 2 * 4  # nothing is trained twice but what was stopped
    assert torch.equal(found.truth, done[1].truth)
    assert without_seconds(tmp_path / "stopped") == without_seconds(done[0])
    rank(*what, progress=False)
    assert len(calls) == 1 + 8 * 2 * 4


def test_a_machine_that_rounds_whitened_images_otherwise_finds_its_report(images, done, tmp_path):
    def rounded(split):
        return split._replace(images=split.images * (1 + 2e-7))

    for name, data in contents(done[0]).items():
        (tmp_path / name.name).write_bytes(data)
    splits = {name: rounded(getattr(images, name)) for name in ("train", "validation")}
    watched = {name: Watched(split) for name, split in splits.items()}
    there = replace(images, **splits, loaded={**images.loaded, **watched})
    assert not torch.equal(there.train.images, images.train.images)
    rank(TINY.candidates(), sets_of(there), there, tmp_path, QUICK, progress=False)
    assert contents(tmp_path) == {tmp_path / k.name: v for k, v in contents(done[0]).items()}


def test_another_search_keeps_the_report_and_shares_the_trainings(
    images, tmp_path, done, monkeypatch
):
    what = (TINY.candidates(), sets_of(images), images, tmp_path)
    for name, data in contents(done[0]).items():
        (tmp_path / name.name).write_bytes(data)
    before = contents(tmp_path)
    more = replace(QUICK, repeats=3)
    with refused("the report of another run", "repeats was 2 and is 3", "move it away"):
        rank(*what, more, progress=False)
    assert contents(tmp_path) == before
    (tmp_path / choosing.REPORT).unlink()
    calls, train = [], choosing.train
    monkeypatch.setattr(choosing, "train", lambda *words: calls.append(1) or train(*words))
    found = rank(*what, more, progress=False)
    assert len(calls) == 8 * 2 and torch.equal(found.truth[:2], done[1].truth)


def test_what_does_not_fit_is_refused(images, tmp_path):
    candidates, fitting = TINY.candidates(), sets_of(images)
    try_ = lambda *what: rank(*what, tmp_path / "none", QUICK, progress=False)
    with refused("there is nothing to rank"):
        try_(candidates[:1], fitting, images)
    for empty in ({}, {"random": []}):
        with refused("there is nothing to train on"):
            try_(candidates, empty, images)
    with refused("'all images' is the name of the truth"):
        try_(candidates, {TRUTH: fitting["random"]}, images)
    with refused("ranking needs held-out images"):
        try_(candidates, fitting, replace(images, validation=None))
    with refused("the distilled set has 3 classes, the data 3, or other names"):
        try_(candidates, fitting, replace(images, classes=("a", "b", "c")))
    other = replace(images, held_out=0.1)
    with refused("the set 'random' was made with a validation share of 0.2, here it is 0.1"):
        try_(candidates, fitting, other)
    assert not (tmp_path / "none").exists()
    # of another code's set nobody knows which images it was made from
    from conftest import write_npz

    own = write_npz(tmp_path)
    torch.save({"images": torch.rand(3, 1, 12, 12)}, tmp_path / "theirs.pt")
    theirs = ddpp.open_set(tmp_path / "theirs.pt", own, "raw", device="cpu")
    with pytest.warns(UserWarning, match="the set 'theirs' is not of ddpp, and may have been made"):
        try_(candidates, {"theirs": [theirs.distilled]}, theirs.data)


@pytest.mark.parametrize(
    "name, says",
    [
        (choosing.SCORES, "is not a file of scores: move it away"),
        (choosing.REPORT, "is where the report belongs, but is another file: move it"),
    ],
)
def test_other_files_in_the_folder_are_refused(images, tmp_path, name, says):
    (tmp_path / name).write_text("[")
    with refused(says):
        rank(TINY.candidates(), sets_of(images), images, tmp_path, QUICK, progress=False)
    assert (tmp_path / name).read_text() == "["


def test_searches_that_cannot_work_are_refused():
    for change, words in (
        ({"rates": ()}, "learning rates"),
        ({"rates": (0.1, -1.0)}, "all of them positive"),
        ({"epochs": 0}, "the search's epochs is 0"),
        ({"rates": 0.03}, "the search's rates is 0.03: it must be a list of finite numbers"),
    ):
        with refused(words):
            replace(QUICK, **change)


def test_numbers_of_numpy_are_taken(images, tmp_path):
    assert replace(QUICK, rates=np.array([0.25, 0.5])).rates == (0.25, 0.5)
    assert Grid(width=np.arange(8, 10)).width == (8, 9)
    assert Candidate(np.int64(4), 1) == Candidate(4, 1)
    with refused("the grid's width is 8: it must be a list of whole numbers"):
        Grid(width=8)
    with refused("the candidate's depth is 0: it must be at least 1"):
        Candidate(depth=0)


def test_a_single_set_is_not_taken_for_a_list_of_them(images, tmp_path):
    one = {"mine": sets_of(images)["random"][0]}
    with refused("the sets 'mine' are a single set: give a list of sets"):
        rank(TINY.candidates(), one, images, tmp_path, QUICK, progress=False)


def test_a_report_that_is_none_is_refused(tmp_path):
    path = tmp_path / choosing.REPORT
    for text in (None, "[]", "{", '{"found": {}, "networks": []}', '{"found": []}'):
        if text:
            path.write_text(text)
        with refused("is no report of ddpp rank"):
            Ranking.read(path)


def test_the_command_writes_the_table_and_the_figure(npz, tmp_path, capsys):
    data, out = npz(), tmp_path / "ranked"
    made = ddpp.load_data(data, zca=False, validation=0.1, device="cpu")
    for seed in (0, 1):
        selection.random(made, 2, {}, seed + 7).save(tmp_path / f"mine-seed{seed}.safetensors")
    words = f"""rank {tmp_path / "mine-seed0.safetensors"} {tmp_path / "mine-seed1.safetensors"}
        --data {data} --out {out} --device cpu --width 4 8 --depth 1 --activation relu
        --pooling max --norm none instance --networks 4 --draws 2 --small-epochs 1 --epochs 1"""
    assert main(words.split()) == 0
    said = capsys.readouterr().out
    assert "mine" in said and "random, 2 per class" in said and TRUTH in said
    assert Ranking.read(out / choosing.REPORT).proxies["mine"].shape == (2, 4)
    assert (out / "ranking.png").exists()
    said = lambda *more: (main([*words.split(), *more]), capsys.readouterr().err)[1]
    assert "choose a multiple of 2 up to 4" in said("--networks", "3")
    assert "name a distilled file, and at least one draw" in said("--draws", "0")
    assert "unknown norm 'batch'" in said("--norm", "batch")


def test_the_figures_show_every_set_and_every_network():
    found = ranked()
    panels = figures.ranking(found).axes
    assert [axis.get_title() for axis in panels] == ["trained on: good", "trained on: bad"]
    assert [sum(len(line.get_xdata()) for line in axis.lines) for axis in panels] == [24, 24]
    panels = figures.correlations({"all": found, "some": found.only("width", 8)}).axes
    assert [axis.get_title() for axis in panels] == ["Spearman", "Kendall"]
    assert [len(axis.containers) for axis in panels] == [4, 4]


def test_networks_that_cannot_work_are_refused_before_the_first_is_trained(images, tmp_path):
    for wrong, words in (
        (Candidate(8, 4), "leave that depth out"),
        (Candidate(6, 1, "group"), "6"),
    ):
        with refused(words):
            candidates = [*TINY.candidates(), wrong]
            rank(candidates, sets_of(images), images, tmp_path / "r", QUICK, progress=False)
    assert not (tmp_path / "r").exists()


def test_a_part_of_a_grid_has_no_stratified_choice():
    whole = Grid().candidates()
    for some in (whole[:20], [*whole, whole[0]]):
        with refused(f"these {len(some)} networks are no whole grid", "all candidates() of a Grid"):
            stratified(some, 12)


def test_files_of_one_name_in_two_folders_are_two_rows(npz, tmp_path, capsys):
    data = npz()
    made = ddpp.load_data(data, zca=False, validation=0.1, device="cpu")
    files = [tmp_path / name for name in ("a/set-seed0", "a/set-seed1", "b/set-seed0")]
    files = [path.with_suffix(".safetensors") for path in files]
    for seed, path in enumerate(files):
        selection.random(made, 2, {}, seed + 7).save(path)
    words = f"""--data {data} --out {tmp_path / "out"} --device cpu --width 4 --depth 1
        --activation relu --pooling max --norm none instance --networks 2 --draws 1
        --small-epochs 1 --epochs 1"""
    assert main(["rank", *map(str, files), *words.split()]) == 0
    found = Ranking.read(tmp_path / "out" / choosing.REPORT).proxies
    rows = {name: len(row) for name, row in found.items()}
    assert rows == {
        str(tmp_path / "a" / "set"): 2,
        str(tmp_path / "b" / "set"): 1,
        "random, 2 per class": 1,
    }
