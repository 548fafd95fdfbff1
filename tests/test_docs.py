"""The numbers that the pages print are those of the committed results."""

import hashlib
import json
import re
import statistics
from pathlib import Path

import yaml

from ddpp import experiments
from ddpp.experiments.methods import METHODS
from ddpp.experiments.ranking import TRUTH, Ranking, regret, spearman
from ddpp.experiments.recipes import PAPER

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_readmes_table_is_what_the_smoke_runs_left():
    show = lambda values: f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"
    reports = sorted((ROOT / "results" / "smoke").glob("seed*.json"))
    assert len(reports) == 3
    for path in reports:
        report = json.loads(path.read_text())
        final, chosen, real = (
            report["distilled"]["final"],
            report["distilled"]["selected"],
            report["random"]["final"],
        )
        gain = statistics.fmean(final) - statistics.fmean(real)
        assert gain > 10
        assert not report["resumed"]
        assert f"of commit {report['commit'][:7]}" in README
        assert sum(report["seconds"].values()) < 180
        seed = report["recipe"]["distill"]["seed"]
        assert f"| {seed} | {show(real)} | {show(final)} | {gain:+.1f} | {show(chosen)} |" in README


def test_the_commands_of_the_readme_and_the_book_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    assert set(re.search(r"^\.PHONY: (.*)$", makefile, re.M)[1].split()) == targets
    pages = [ROOT / "README.md", ROOT / ".ci" / "run", *(ROOT / "book").glob("*.md")]
    pages += (ROOT / ".github" / "workflows").glob("*.yml")
    for page in pages:
        named = set(
            re.findall(r"(?:`|^|run: |command: |=cpu )make ([a-z-]+)", page.read_text(), re.M)
        )
        assert named <= targets, page
    first = re.search(r"```sh\n(.*?)```", README, re.S)[1]
    assert [line.split()[1] for line in first.splitlines()] == ["distill", "test", "book", "lab"]
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


def test_the_readme_says_what_the_runs_on_a_cpu_reached():
    show = lambda values: f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f} %"
    read = lambda rule: json.loads(
        (ROOT / f"results/cpu/table1/cifar10-ipc1-{rule}-seed0.json").read_text()
    )
    ours, mtt, text = read("signed"), read("none"), " ".join(README.split())
    assert (
        f"**{show(ours['distilled']['final'])}** with the paper's rule and "
        f"{show(mtt['distilled']['final'])}" in text
    )
    assert f"ten real images reach {show(mtt['random']['final'])}" in text


def test_the_page_on_citing_names_what_is_there():
    page = (ROOT / "book" / "citing.md").read_text()
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"title   = {{{software['title']}}}" in page
    assert f"version = {{{software['version']}}}" in page
    (file,) = re.findall(r"howpublished = {(.*?)}", page)
    sha256, made_by = re.findall(r"SHA-256 (\w+)\.\.\., made by ddpp at commit (\w+)", page)[0]
    assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest().startswith(sha256)
    assert f"commit {made_by}" in (ROOT / file).with_name("README.md").read_text()


def test_chapter_5_says_what_the_committed_bench_measured():
    rows = json.loads((ROOT / "results" / "bench" / "cpu.json").read_text())["rows"]
    graph, walk = rows[::2], rows[1::2]
    assert {row["engine"] for row in graph} == {"autograd"}
    assert {row["engine"] for row in walk} == {"adjoint"}
    chapter = (ROOT / "notebooks" / "05_differentiating_through_training.ipynb").read_text()
    assert f"from {graph[0]['above']:.0f} to {graph[-1]['above']:.0f} mebibytes" in chapter
    assert f"falls from {walk[0]['time_ratio']:.2f} to {walk[-1]['time_ratio']:.2f}" in chapter


def test_chapter_15_says_what_the_stored_ranking_shows():
    found = Ranking.read(ROOT / "results" / "choosing" / "ranking.json")
    alive = found.only("activation", "relu", "leaky")
    instance = alive.only("norm", "instance")
    chapter = (ROOT / "notebooks" / "15_choosing.ipynb").read_text()
    rule, dm, real = found.proxies
    differences = (
        found.estimate(rule, spearman, base=real),
        found.estimate(dm, spearman, base=real),
        alive.estimate(rule, spearman, base=real),
        *(alive.estimate(name, spearman) for name in found.proxies),
    )
    for one in differences:
        assert one.text() in chapter
    assert f"with the truth is {instance.estimate(rule, spearman).value:.2f}" in chapter
    truth = found.truth.mean(0)
    lost = {name: [-regret(truth, row) for row in rows] for name, rows in found.proxies.items()}
    assert f"is {truth.max() - truth.mean():.1f} points below the best" in chapter
    assert f"lose between {min(lost[real]):.1f} and {max(lost[real]):.1f} points" in chapter
    assert {f"{points:.1f}" for points in lost[rule]} == {"4.0"}
    assert "which is 4.0 points below the best" in chapter
    minutes = {name: seconds / 60 for name, seconds in found.seconds.items()}
    assert f"took {minutes[TRUTH]:.1f} minutes of one core, on photographs" in chapter
    assert f"saves {minutes[TRUTH] - minutes[real]:.1f} minutes" in chapter
    moved = [alive.shifts(name, "norm") for name in (rule, real)]
    assert f"{moved[1]['none'] - moved[0]['none']:.1f} ranks lower than with photographs" in chapter
    higher = moved[0]["instance"] - moved[1]["instance"]
    assert f"{higher:.1f} ranks higher than with photographs" in chapter
    report = json.loads((ROOT / "results/smoke/choosing/ddpp-12-seed0.json").read_text())
    steps, teachers = (report["seconds"][stage] / 60 for stage in ("distill", "teachers"))
    assert f"took {steps:.1f} minutes, and their teachers {teachers:.1f} minutes" in chapter


def test_the_deviations_page_lists_the_settings_that_are_used():
    page = (ROOT / "book" / "deviations.md").read_text()
    for (name, ipc), (j, k, start, image_lr, alpha_lr, alpha0, _) in PAPER.items():
        label = name.upper().replace("CIFAR", "CIFAR-")
        rates = f"{image_lr:g}, {alpha_lr:.0e}, {alpha0:g}".replace("e-0", "e-")
        assert f"| {label}, {ipc} | {j}, {k}, {start} | {rates} |" in page


def test_every_method_beats_random_images_at_the_smallest_scale_but_forgetting():
    rows = experiments.read(ROOT / "results", "smoke", "table1")
    rows = [row for row in rows if row["recipe"]["distill"]["ipc"] == 1]
    accuracy = {(row["method"], row.get("rule"), row["seed"]): row["accuracy"] for row in rows}
    kinds = {key[:2] for key in accuracy}
    assert {method for method, _ in kinds} | {"mtt"} == set(METHODS)
    assert {rule for method, rule in kinds if method == "ddpp"} == {"none", "signed"}
    for method, rule in kinds:
        gains = [
            accuracy[method, rule, seed] - accuracy["random", None, seed] for seed in (0, 1, 2)
        ]
        assert method in ("random", "forgetting") or min(gains) > 0, (method, gains)
    assert len(rows) == 3 * len(kinds)
