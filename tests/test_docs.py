"""The numbers that the pages print are those of the committed results."""

import hashlib
import json
import re
import statistics
from pathlib import Path

import yaml

from ddpp import experiments
from ddpp.experiments.methods import METHODS
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


def storage():
    """{(form, images per class): {seed: row}} of the stored forms, and each form's differences."""
    rows = json.loads((ROOT / "results" / "smoke" / "storage" / "forms.json").read_text())["rows"]
    found = {}
    for row in rows:
        found.setdefault((row["form"], row["ipc"]), {})[row["seed"]] = row
    mean = lambda key, seed: statistics.fmean(found[key][seed]["accuracies"])
    gains = {
        (form, ipc): experiments.Difference(
            tuple(mean((form, ipc), s) - mean(("file", ipc), s) for s in found[form, ipc])
        )
        for form, ipc in found
        if ipc
    }
    return found, gains


def test_the_pages_say_what_storage_takes():
    found, gains = storage()
    chapter = (ROOT / "notebooks" / "11_your_own_images.ipynb").read_text()
    chapter = " ".join(chapter.replace('\\n",', "").replace('"', "").split()).replace(
        " points (", " ("
    )
    for form in ("webp", "webp 90", "webp 50", "png"):
        for ipc in (1, 10):
            assert {*found[form, ipc]} == {*found["file", ipc]} == {*range(5)}
            assert gains[form, ipc].text(1) in chapter, (form, ipc)
    using = (ROOT / "book" / "using.md").read_text()
    ten = gains["webp", 10].text(1).replace("(", "points (").replace(")", ", five seeds)")
    assert ten in using and "167 kB instead of 39 MB" in using
    for ipc in (1, 10):
        more = gains["same bytes", ipc].text(1).replace(" (", ", ")
        assert more in chapter, more
    middle = lambda form, ipc, key: statistics.median(r[key] for r in found[form, ipc].values())
    assert [round(middle("webp", ipc, "bytes") / 1000) for ipc in (1, 10)] == [21, 167]
    assert round(middle("bare file", 10, "bytes") / 1e6) == 39
    assert f"{middle('compact', 10, 'bytes') / 1e6:.1f} MB, is as large as all" in chapter
    (every,) = found["all photographs", 0].values()
    assert f"({every['bytes'] / 1e6:.1f} MB)" in chapter
    assert f"({every['bytes_as']['jpeg 90'] / 1e6:.1f} MB, quality 90)" in chapter
    assert f"reach {every['accuracies'][0]:.0f} % in {every['seconds']:.0f} s" in chapter
    assert f"took {middle('same bytes', 10, 'seconds'):.0f} s" in chapter
    # what the text concludes from them
    for ipc in (1, 10):
        assert gains["bare file", ipc].mean == gains["result", ipc].mean == 0
        low, high = gains["webp", ipc].interval
        assert low < 0 < high and abs(gains["webp", ipc].mean) < 0.1
    assert gains["png", 10].interval[1] < 0 < gains["png", 1].interval[1]
    assert gains["same bytes", 10].interval[0] > 0 > gains["same bytes", 1].interval[1]


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
