"""The numbers that the pages print are those of the committed results, and their commands work."""

import hashlib
import json
import re
import shlex
import statistics
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ddpp import DistilledDataset, cli, experiments, studies
from ddpp.cli.parsing import parse
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import PAPER, from_dict
from ddpp.foundation.text import show_mean
from ddpp.pruning import RULES
from ddpp.studies.ranking import TRUTH, Ranking, regret, spearman
from tools.memories import memories

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def typeset(text: str) -> str:
    """Numbers as prose has them, with minus signs."""
    return text.replace("-", "−")


def test_the_readmes_table_is_what_the_smoke_runs_left():
    show = lambda values: f"{show_mean(values)} %"
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
    assert len(pages) > 8
    for page in pages:
        named = set(
            re.findall(r"(?:`|^|run: |command: |=cpu )make ([a-z-]+)", page.read_text(), re.M)
        )
        assert named <= targets, page
    first = re.search(r"```sh\n(.*?)```", README, re.S)[1]
    assert [line.split()[1] for line in first.splitlines()] == ["distill", "test", "book", "lab"]
    assert "make test" in (ROOT / ".ci" / "run").read_text().splitlines()


CALL = re.compile(r"(?:\w+=\S+ |torchrun .*-m )*ddpp(?:\.cli)? ([a-z]+( .*)?)")


@cache
def calls():
    """The words behind `ddpp` in the listings of all pages and chapters, and in their text."""
    texts = [(ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md")]
    texts += [path.read_text() for path in (ROOT / "book").glob("*.md")]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = json.loads(path.read_text())["cells"]
        texts += ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    listed, named, listing = [], [], re.compile(r"^```.*?^```", re.M | re.S)
    for text in texts:
        listed += "\n".join(listing.findall(text)).replace("\\\n", " ").splitlines()
        named += [" ".join(span.split()) for span in re.findall("`([^`]+)`", listing.sub("", text))]
    found = ([CALL.fullmatch(line.strip()) for line in lines] for lines in (listed, named))
    return [
        [shlex.split(call[1].rstrip("& "), comments=True) for call in calls if call]
        for calls in found
    ]


def test_the_command_lines_in_listings_can_be_called(monkeypatch):
    monkeypatch.setitem(sys.modules, "my_rules", SimpleNamespace(mine=RULES["signed"]))
    listed, _ = calls()
    assert len(listed) > 30
    for verb, *words in listed:
        assert callable(parse(cli.find(verb), words, f"ddpp {verb}"))


# what the text says of it: it still works, it is the reader's own
OLD = (["bench"], ["evaluate", "FILE", "--epochs", "200"])
OWN = (["distill", "--method", "pixels"],)


def test_the_options_that_the_text_names_are_those_of_their_commands(capsys):
    @cache
    def options(*words):
        with pytest.raises(SystemExit) as end:
            cli.main([*words, "--help"])
        assert end.value.code == 0, words
        return {*re.findall(r"--[a-z0-9.-]+", capsys.readouterr().out)}

    _, named = calls()
    assert len(named) > 60
    assert all(each in named for each in (*OLD, *OWN))
    for verb, *words in (call for call in named if call not in (*OLD, *OWN)):
        method = words[words.index("--method") :][:2] if "--method" in words[:-1] else []
        given = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert given <= options(verb, *method), (verb, *words)


def test_the_readme_and_the_first_page_say_what_the_shipped_set_and_the_longest_run_reach():
    show = lambda values: f"{show_mean(values)} %"
    folder, text = ROOT / "results" / "cpu" / "long", " ".join(README.split())
    found = lambda steps: (
        json.loads((folder / f"cifar10-ipc1-{rule}-{steps}-seed0.json").read_text())
        for rule in ("signed", "none")
    )
    longest = max(int(p.stem.split("-")[3]) for p in folder.glob("cifar10-ipc1-signed-*.json"))
    last = " and ".join(show(row["distilled"]["final"]) for row in found(longest))
    assert f"After {longest:,} steps it is {last.replace(' % and', ' and')}" in text
    shipped = ROOT / "results" / "sets" / "cifar10-ipc1-ddpp" / "distilled.safetensors"
    steps = DistilledDataset.load(shipped).provenance["config"]["steps"]
    ours, mtt = found(steps)
    assert (
        f"**{show(ours['distilled']['final'])}** with the paper's rule and "
        f"{show(mtt['distilled']['final'])} without pruning (MTT) after {steps:,} steps" in text
    )
    assert f"ten real images reach {show(mtt['random']['final'])}" in text
    page = (ROOT / "book" / "index.md").read_text()
    assert (
        f"Trained on the ten distilled images it reaches {show(ours['distilled']['final'])}" in page
    )
    assert f"{steps:,} steps, MTT reaches {show(mtt['distilled']['final'])}" in page


def test_the_seeds_of_500_steps_are_told_as_their_reports_have_them():
    folder = ROOT / "results" / "cpu" / "long"
    rule, mtt = (
        {
            seed: statistics.fmean(json.loads(path.read_text())["distilled"]["final"])
            for seed in (0, 1, 2)
            for path in [folder / f"cifar10-ipc1-{name}-500-seed{seed}.json"]
        }
        for name in ("signed", "none")
    )
    show = lambda of: show_mean([*of.values()])
    difference = experiments.Difference.paired(rule, mtt)
    said = typeset(difference.text())
    readme, numbers = " ".join(README.split()), (ROOT / "book" / "numbers.md").read_text()
    assert f"reach {show(rule)} % with the paper's rule and {show(mtt)} % with MTT" in readme
    assert max(rule, key=lambda seed: rule[seed]) == 0 and "Seed 0, the best of the" in readme
    assert f"differ by {said.replace(' (', ' points (')}" in readme
    page = (ROOT / "book" / "index.md").read_text()
    assert f"the difference is {said.replace(' (', ' points (95 % interval ')}" in page
    each = [f"{value:+.2f}" for value in difference.values]
    assert f"| the paper's rule minus MTT | {' | '.join(each)} | {said} |" in numbers
    assert f"a true difference of {difference.detectable():.1f} points" in numbers


def test_the_steps_on_cifar100_are_told_as_their_reports_have_them():
    rule, mtt = (
        json.loads((ROOT / "results/cpu/long" / f"cifar100-ipc1-{name}-100-seed0.json").read_text())
        for name in ("signed", "none")
    )
    show = lambda report, of="distilled": show_mean(report[of]["final"])
    numbers = (ROOT / "book" / "numbers.md").read_text()
    page = (ROOT / "notebooks" / "results.ipynb").read_text()
    assert f"reach {show(mtt)} %, on those of the paper's rule {show(rule)} %" in numbers
    assert f"start from {show(mtt, 'random')} %" in numbers
    assert f"MTT reaches {show(mtt)} % and the paper's rule {show(rule)} %" in page


def test_the_steps_of_rat_bptt_are_told_as_their_report_has_them():
    few, many, mtt, rule = (
        json.loads((ROOT / f"results/cpu/long/cifar10-ipc1-{run}-seed0.json").read_text())
        for run in ("bptt-100", "bptt-500", "none-500", "signed-500")
    )
    show = lambda row, of="distilled": f"{show_mean(row[of]['final'])} %"
    numbers = (ROOT / "book" / "numbers.md").read_text()
    page = (ROOT / "notebooks" / "results.ipynb").read_text()
    made = f"{show(few)} after 100 steps and {show(many)} after 500"
    assert few["random"] == many["random"]
    assert f"reach {made}, on the photographs {show(few, 'random')}." in numbers
    assert f"reaches {made}, where the photographs reach {show(few, 'random')}." in page
    (theirs,) = {f"{statistics.fmean(row['distilled']['final']):.1f} %" for row in (mtt, rule)}
    assert f"are at {theirs} after 500 steps" in numbers
    assert f"After 500 steps MTT is at {theirs}" in page


def test_the_steps_of_tgdd_are_told_as_their_reports_have_them():
    few, many = (
        json.loads((ROOT / f"results/cpu/long/cifar10-ipc10-tgdd-{n}-seed0.json").read_text())
        for n in (400, 2000)
    )
    show = lambda row, of="distilled": f"{show_mean(row[of]['final'])} %"
    numbers, changes = ROOT / "book" / "numbers.md", ROOT / "CHANGELOG.md"
    made = f"{show(few)} after 400 steps and {show(many)} after 2,000"
    assert few["random"] == many["random"]
    assert f"reach {made}, on the photographs {show(few, 'random')}." in numbers.read_text()
    assert f"reaches {made} (photographs: {show(few, 'random')})" in changes.read_text()
    page = (ROOT / "notebooks" / "results.ipynb").read_text()
    assert f"reaches {made}, where the hundred photographs reach {show(few, 'random')}." in page
    chapter = (ROOT / "notebooks" / "13_what_came_after.ipynb").read_text()
    assert f"ten images per class: {show(many)} after 2,000 steps" in chapter


def test_the_pairs_with_ten_images_per_class_are_told_as_their_reports_have_them():
    (mtt, rule), (later_mtt, later_rule) = (
        [
            json.loads((ROOT / f"results/cpu/long/cifar10-ipc10-{name}-{n}-seed0.json").read_text())
            for name in ("none", "signed")
        ]
        for n in (50, 200)
    )
    show = lambda row, of="distilled": f"{show_mean(row[of]['final'])} %"
    only = lambda row: show(row).removesuffix(" %")
    assert mtt["random"] == rule["random"] == later_mtt["random"] == later_rule["random"]
    numbers, changes = (ROOT / path for path in ("book/numbers.md", "CHANGELOG.md"))
    told = f"{show(mtt)}, on those of the paper's rule {show(rule)}, and on the photographs that"
    later = f"After 200 steps they reach {show(later_mtt)} with MTT and {show(later_rule)} with"
    assert f"{told} both start from {show(mtt, 'random')}. {later} the rule." in numbers.read_text()
    then = f"After 200 they are at {only(later_mtt)} and {show(later_rule)}."
    assert f"MTT reach {show(mtt)}, and of the rule {show(rule)}. {then}" in changes.read_text()
    page = (ROOT / "notebooks" / "results.ipynb").read_text()
    before = f"(after 50 steps {only(mtt)} and {show(rule)})."
    then = f"MTT reaches {show(later_mtt)} after 200 steps, and the paper's rule {show(later_rule)}"
    assert f"{then} {before}" in page
    then = f"reaches {show(later_rule)} with the paper's rule and {show(later_mtt)} with MTT."
    assert f"{then} The hundred photographs that both start from reach {show(mtt, 'random')}." in (
        " ".join(README.split())
    )
    chapter = (ROOT / "notebooks" / "13_what_came_after.ipynb").read_text()
    assert f"MTT is at {show(later_mtt)} there, and the rule at {show(later_rule)}." in chapter


def test_the_steps_with_other_teachers_are_told_as_their_reports_have_them():
    page = (ROOT / "book" / "numbers.md").read_text()
    rule, mtt = (
        json.loads((ROOT / "results" / "others" / f"{name}.json").read_text())
        for name in ("signed", "none")
    )
    last, mean = ([row[of]["final"] for row in (rule, mtt)] for of in ("distilled", "mean"))
    assert f"| {show_mean(last[0])} ({show_mean(last[1])}) |" in page
    assert f"Its test accuracy is {show_mean(mean[0])} % (MTT: {show_mean(mean[1])} %)" in page
    chosen = [row["distilled"]["selected"] for row in (rule, mtt)]
    assert f"reach {show_mean(chosen[0])} and {show_mean(chosen[1])} % on the test images" in page
    for group, name in (("own", "the teachers of the long runs"), ("others", "the other teachers")):
        cells = [
            f"{statistics.fmean(a[group]):.2f} ({statistics.fmean(b[group]):.2f})"
            for a, b in zip(rule["losses"], mtt["losses"], strict=True)
        ]
        assert f"| loss on {name} | {' | '.join(cells)} |" in page
    for row, before in ((rule, "are "), (mtt, "MTT: ")):
        *first, end = (f"{value:.1f}" for value in row["distilled"]["validation"].values())
        assert f"{before}{', '.join(first)} and {end} %" in page
    gains = [a - b for x, y in zip(mean, last, strict=True) for a, b in zip(x, y, strict=True)]
    assert f"each network gains {min(gains):.1f} to {max(gains):.1f} points" in page


def test_the_sets_on_the_way_are_told_as_their_reports_have_them():
    page, text = (ROOT / "book" / "numbers.md").read_text(), " ".join(README.split())
    told = {}
    for path in (ROOT / "results" / "way").glob("signed-*.json"):
        rule, mtt = (
            json.loads(each.read_text())
            for each in (path, path.with_name(path.name.replace("signed", "none")))
        )
        many = {10: "ten", 20: "twenty"}[len(rule["steps"])]
        for steps, *pair in zip(rule["steps"], mtt["held_out"], rule["held_out"], strict=True):
            cells = f"{steps:,}", *(f"{value:.1f}" for value in pair)
            assert f"| {' | '.join(cells)} |" in page
        held_out = [row["mean"]["held_out"] for row in (rule, mtt)]
        if many == "ten":  # "better than each of them"
            both = f"{held_out[1]:.1f} | {held_out[0]:.1f}"
            assert f"| the mean of these ten sets, as one set | {both} |" in page
            assert all(
                a > max(row["held_out"]) for a, row in zip(held_out, (rule, mtt), strict=True)
            )
        else:
            assert (
                f"It has {held_out[0]:.1f} % on held-out images (MTT: {held_out[1]:.1f} %)" in page
            )
        mean = show_mean(rule["mean"]["test"])
        mtts = show_mean(mtt["mean"]["test"])
        assert f"mean reaches {mean} % (MTT: {mtts} %) on the test images" in page
        first, last = rule["steps"][0], rule["steps"][-1]
        told[last] = f"{many} sets from {first:,} to {last:,} steps reaches {mean} %"
    assert told[max(told)] in text


def test_the_page_on_citing_names_what_is_there():
    page = (ROOT / "book" / "citing.md").read_text()
    software = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert f"title   = {{{software['title']}}}" in page
    assert f"version = {{{software['version']}}}" in page
    (file,) = re.findall(r"howpublished = {(.*?)}", page)
    sha256, made_by = re.findall(r"SHA-256 (\w+)\.\.\., made by ddpp at commit (\w+)", page)[0]
    assert hashlib.sha256((ROOT / file).read_bytes()).hexdigest().startswith(sha256)
    assert f"commit {made_by}" in (ROOT / file).with_name("README.md").read_text()


def test_chapter_7_says_how_far_the_rule_turns_the_gradient_in_its_regimes():
    chapter = (ROOT / "notebooks/07_ablating_epsilon.ipynb").read_text()
    points = json.loads((ROOT / "results/map/smoke.json").read_text())["points"]
    for name in ("long", "fast", "ten"):
        of = [point for point in points if point["factor"] == f"regime {name}"]
        first, last = ({row["mask"]: row["angle"] for row in at["rows"]} for at in of)
        pairs = [(first[rule], last[rule]) for rule in ("signed@0.1", "signed@0.7")]
        turns = [f"{a:.0f}°" if round(a) == round(b) else f"{a:.0f}° to {b:.0f}°" for a, b in pairs]
        (row,) = re.findall(rf"\| {name} \|.*\|", chapter)
        assert row.endswith(f"| {turns[0]}, {turns[1]} |"), turns


def test_chapter_5_says_what_the_committed_bench_measured():
    rows = json.loads((ROOT / "results" / "bench" / "cpu.json").read_text())["rows"]
    chapter = (ROOT / "notebooks" / "05_differentiating_through_training.ipynb").read_text()
    memory = {
        name: [f"{row['above']:.0f}" for row in rows if row["engine"] == name]
        for name in ("autograd", "stored", "adjoint")
    }
    first, *_, last = memory["autograd"]
    assert f"from {first} to {last} mebibytes with autograd" in chapter
    first, *_, last = memory["stored"]
    assert f"from {first} to {last} with stored" in chapter
    assert memory["adjoint"]
    assert {round(int(each), -1) for each in memory["adjoint"]} <= {160, 170}
    assert "stays near 165 with adjoint" in chapter
    ratios = [row["time_ratio"] for row in rows if row["engine"] != "autograd"]
    assert f"between {min(ratios):.2f} and {max(ratios):.2f}" in chapter


def storage():
    """{(form, images per class): {seed: row}} of the stored forms, and each form's differences."""
    rows = json.loads((ROOT / "results" / "storage" / "forms.json").read_text())["rows"]
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
            assert typeset(gains[form, ipc].text(1)) in chapter, (form, ipc)
    using = (ROOT / "book" / "using.md").read_text()
    ten = typeset(gains["webp", 10].text(1)).replace("(", "points (").replace(")", ", five seeds)")
    assert ten in using and "167 kB instead of 43 MB" in using
    for ipc in (1, 10):
        more = typeset(gains["same bytes", ipc].text(1)).replace(" (", ", ")
        assert more in chapter, more
    middle = lambda form, ipc, key: statistics.median(r[key] for r in found[form, ipc].values())
    assert [round(middle("webp", ipc, "bytes") / 1000) for ipc in (1, 10)] == [21, 167]
    assert round(middle("bare file", 10, "bytes") / 1e6) == 39
    assert f"{middle('compact', 10, 'bytes') / 1e6:.1f} MB, is as large as all" in chapter
    (every,) = found["all photographs", 0].values()
    assert f"({every['bytes'] / 1e6:.1f} MB)" in chapter
    assert f"({every['bytes_as']['jpeg 90'] / 1e6:.1f} MB, quality 90)" in chapter
    assert f"reach {every['accuracies'][0]:.0f} % in {every['seconds']:.0f} s" in chapter
    assert (
        f"pay for it in time: {middle('same bytes', 10, 'seconds'):.0f} s instead of 5" in chapter
    )
    # what the text concludes from them
    for ipc in (1, 10):
        assert gains["bare file", ipc].mean == gains["result", ipc].mean == 0
        low, high = gains["webp", ipc].interval
        assert low < 0 < high and abs(gains["webp", ipc].mean) < 0.1
    assert gains["png", 10].interval[1] < 0 < gains["png", 1].interval[1]
    assert gains["same bytes", 10].interval[0] > 0 > gains["same bytes", 1].interval[1]


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
        assert typeset(one.text()) in chapter
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
        rates = f"{image_lr:g} | {alpha_lr:.0e} | {alpha0:g}".replace("e-0", "e-")
        assert f"| {label}, {ipc} | {j} | {k} | {start} | {rates} |" in page


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


def test_chapter_16_says_what_the_audits_found():
    cells = json.loads((ROOT / "notebooks" / "16_keeping_secrets.ipynb").read_text())["cells"]
    pages = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    text = " ".join(" ".join(pages).split())
    folder = ROOT / "results" / "auditing"
    found = {path.stem: studies.read_audit(path) for path in folder.glob("*.json")}
    assert len(found) == 11
    leak = lambda name, attack, group="all": getattr(found[name], group)[attack]
    area = lambda *which: f"{leak(*which).auc:.3f}"
    rate = lambda at, *which: f"{100 * leak(*which).tpr[at]:.1f} %"
    percent = lambda name: f"{statistics.fmean(found[name].accuracies):.1f} %"

    def ends(interval, scale=1.0, digits=3):
        low, high = (f"{scale * end:.{digits}f}" for end in interval)
        return f"({low} to {high})"

    def pairs(one, other, of):
        values = zip(of(found[one]), of(found[other]), strict=True)
        return experiments.Difference(tuple(a - b for a, b in values))

    loss = lambda one: one.all["loss"].aucs
    start = pairs("mtt-real", "mtt-noise", loss)
    cost = pairs("mtt-real", "mtt-noise", lambda one: one.accuracies)
    noise, short = leak("mtt-noise", "loss"), leak("short", "loss")
    weak, strong = "private-weak", "private-strong"
    gap = lambda one, other: pairs(one, other, lambda one: one.accuracies)
    rise = {name: pairs(weak, f"{name}-noise", loss) for name in ("mtt", "dm")}
    promise = {name: found[name].guarantee for name in (weak, strong)}
    allowed = {name: f"{100 * one.bound(0.001):.1f} %" for name, one in promise.items()}
    most = lambda name: f"{max(float(rate(1, name, a).split()[0]) for a in ('loss', 'lira'))} %"
    caught = lambda *which: f"{rate(1, *which)} {ends(leak(*which).tpr_intervals[1], 100, 1)}"

    def less(one, other):
        lost = gap(other, one)
        return f"{lost.mean:.1f} points", ends(lost.interval, digits=1)

    lira = lambda one: one.all["lira"].aucs
    for said in (
        f"LiRA has an AUC of {area('whole', 'lira')}, and finds {rate(0, 'whole', 'lira')}",
        f"A threshold finds {rate(0, 'whole', 'loss')}.",
        f"have an AUC of {area('random', 'lira')} by LiRA",
        f"the threshold finds {rate(1, 'random', 'loss')} at 0.1 % false positives",
        f"distance alone finds {rate(1, 'mtt-real', 'nearest', 'start')} at 0.1 %",
        f"For DM it is {rate(1, 'dm-real', 'nearest', 'start')}.",
        f"an AUC of {area('mtt-noise', 'nearest')} for MTT "
        f"{ends(leak('mtt-noise', 'nearest').auc_interval)}, and "
        f"{rate(1, 'mtt-noise', 'nearest')} true positives",
        f"have an AUC of {noise.auc:.3f} {ends(noise.auc_interval)} by the threshold",
        f"is {start.mean:.3f} lower from noise {ends(start.interval)}, and the accuracy "
        f"{cost.mean:.1f} points lower {ends(cost.interval, digits=1)}",
        f"from photographs is {typeset(pairs('rule-real', 'mtt-real', loss).text(3))}",
        f"{area('whole', 'lira', 'canaries')} for canaries, "
        f"and {area('whole', 'lira')} for all images",
        f"{percent('mtt-noise')} accuracy instead of {percent('random')}",
        f"finds {rate(1, 'mtt-noise', 'loss')} of the members instead of "
        f"{rate(1, 'random', 'loss')}",
        f"14 epochs, {percent('short')}. Its AUC by the threshold is {short.auc:.3f}",
        f"that of MTT from noise, at {percent('mtt-noise')}, is {noise.auc:.3f}",
        f"In pairs the difference is {typeset(pairs('mtt-noise', 'short', loss).text(3))}",
        f"{rate(1, 'short', 'loss')} {ends(short.tpr_intervals[1], 100, 1)} and "
        f"{rate(1, 'mtt-noise', 'loss')} {ends(noise.tpr_intervals[1], 100, 1)}",
        f"With $\\varepsilon = 8$ networks reach {percent(weak)}, and with $\\varepsilon = 2$ they "
        f"reach {percent(strong)}",
        f"By the accountant $\\varepsilon$ is {promise[weak].epsilon:.1f} and "
        f"{promise[strong].epsilon:.1f}, where $\\delta$ is one over the number of audited images, "
        f"{promise[weak].delta}.",
        f"$\\varepsilon = 2$ allows {allowed[strong]} true ones, and our attacks find "
        f"{most(strong)}",
        f"$\\varepsilon = 8$ allows {allowed[weak]}, so there it promises nothing. Our attacks "
        f"find {most(weak)}",
        f"it is {' less accurate than MTT from noise '.join(less(weak, 'mtt-noise'))}",
        f"higher, in pairs by {rise['mtt'].mean:.3f} {ends(rise['mtt'].interval)}",
        f"It is {' more accurate than DM from noise '.join(less('dm-noise', weak))}",
        f"and its AUC is higher by {rise['dm'].mean:.3f} {ends(rise['dm'].interval)}",
        f"the difference is {typeset(pairs(strong, 'mtt-noise', loss).text(3))}",
        f"a little lower, {typeset(pairs(strong, 'mtt-noise', lira).text(3))}",
        f"the accuracy is {' lower '.join(less(strong, 'mtt-noise'))}",
        f"finds {caught(weak, 'loss', 'canaries')} with $\\varepsilon = 8$",
        f"For MTT from noise it is {caught('mtt-noise', 'loss', 'canaries')}",
    ):
        assert said in text, said
    assert promise[weak].by == promise[strong].by == "RDP, opacus 1.6.0"
    for group in ("all", "canaries"):  # behind on sets and under noise, as the text says
        assert leak(weak, "lira", group).auc < leak(weak, "loss", group).auc
    for a, b in ((weak, "mtt-noise"), (weak, "short"), (strong, "mtt-noise")):  # they overlap
        ours, theirs = (leak(name, "loss", "canaries").tpr_intervals[1] for name in (a, b))
        assert ours[0] <= theirs[1] and theirs[0] <= ours[1]
    lowest = min(found, key=lambda name: leak(name, "loss").auc)
    assert lowest == "random" == max(found, key=lambda name: leak(name, "loss").tpr[1])


def test_chapter_14_says_what_the_memories_reached():
    cells = json.loads((ROOT / "notebooks" / "14_remembering.ipynb").read_text())["cells"]
    pages = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"]
    text = " ".join(" ".join(pages).split())
    rows = studies.read_memories(ROOT / "results" / "memory")
    asked = [memory.recipe for memory in memories()]
    stored = [json.loads(path.read_text()) for path in (ROOT / "results/memory").glob("*.json")]
    made = {from_dict(report["asked"]["recipe"]) for report in stored}
    assert made == {replace(settings, validation=0.0) for settings in asked}
    found = {(row["method"], row["ipc"], row["seed"]): row["accuracy"] for row in rows}
    mean = lambda method: statistics.fmean(found[method, 1, order] for order in range(5))

    def gain(method, ipc):
        orders = range(5)
        return experiments.Difference(
            tuple(found[method, ipc, i] - found["random", ipc, i] for i in orders)
        )

    ends = lambda gain: "({:.1f} to {:.1f})".format(*gain.interval)
    few, many, below = gain("dm", 1), gain("dm", 10), gain("ddpp", 10)
    low, high = below.interval
    for said in (
        f"ends {few.mean:.1f} points higher {ends(few)}",
        f"{gain('mtt', 1).mean:.1f} and {gain('ddpp', 1).mean:.1f} points.",
        f"Herding's gain of {gain('herding', 1).mean:.1f} is",
        f"is {many.mean:.1f} points better than photographs {ends(many)}",
        f"which is made of photographs, {gain('herding', 10).mean:.1f}.",
        f"*below* random photographs, by {-below.mean:.1f} points ({-high:.1f} to {-low:.1f})",
        f"end at {mean('mtt'):.1f} and {mean('ddpp'):.1f} %",
    ):
        assert said in text, said
