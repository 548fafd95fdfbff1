"""`ddpp reproduce`: a list of runs whose results are files, that stops and goes on at any moment;
and its tables.
"""

import hashlib
import json
import math
import multiprocessing
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from small import listed

from ddpp import Error, NetworkConfig, Protocol, evaluate, load_data, recipe, train_teachers
from ddpp.baselines.selection import SelectionConfig
from ddpp.book.tables import (
    TABLE_1,
    against,
    best_1,
    best_3,
    cells,
    costs,
    missing_1,
    paired,
    summarize,
    table_3,
)
from ddpp.cli import main
from ddpp.experiments import (
    Run,
    elsewhere,
    overview,
    read_result,
    reproduce,
    results,
    runs,
    select,
)
from ddpp.experiments.methods import METHODS
from ddpp.experiments.places import out_of, working_file
from ddpp.experiments.recipes import PROFILES, from_dict
from ddpp.foundation import files
from ddpp.networks import accuracy

REPRODUCING = Path(__file__).with_name("reproducing.py")


def tiny_runs(path, steps=3):
    """MTT and the paper's rule on a data set of noise, in a second."""
    base = recipe("smoke", str(path))
    base = replace(
        base,
        teachers=replace(base.teachers, count=2, batch=8, network=NetworkConfig(width=8)),
        distill=replace(base.distill, steps=steps, student_steps=3, image_lr=10.0, iterates=2),
        protocol=Protocol(epochs=5),
        repeats=2,
    )
    pairs = [("none", 0.0), ("signed", 0.5)]
    return [
        Run(
            f"table1/{rule}",
            replace(base, distill=replace(base.distill, rule=rule, epsilon=epsilon)),
        )
        for rule, epsilon in pairs
    ]


@pytest.fixture
def places(tmp_path):
    return {"results": tmp_path / "results", "work": tmp_path / "work"}


@pytest.fixture
def quiet(places):
    return places | {"device": "cpu", "progress": False, "say": lambda line: None}


def test_every_profile_lists_the_experiments_most_valuable_first():
    names = {profile: [each.name for each in runs(profile)] for profile in PROFILES}
    assert all(len(set(found)) == len(found) for found in names.values())
    paper = names["paper"]
    assert paper == names["colab"]
    assert paper[:4] == [
        f"table1/cifar10-ipc{n}-{rule}-seed0" for n in (10, 1) for rule in ("none", "signed")
    ]
    assert paper[4].startswith("epsilon/signed-0-")
    sets = ("cifar10-ipc50", "cifar100-ipc1", "cifar100-ipc10")
    order = [paper.index(f"table1/{name}-signed-seed0") for name in sets]
    order += [
        paper.index(f"table1/cifar10-ipc10-{rival}-seed0")
        for rival in ("random", "dm", "dsa", "cafe")
    ]
    order += [
        paper.index("table2/cifar10-ipc10-kip-seed0"),
        paper.index("table1/cifar10-ipc10-none-seed1"),
    ]
    assert order == sorted(order)
    rows = [name for name in paper if "table1" in name]
    # ours and MTT with three seeds, the rest of Table I with one
    assert len(rows) == len(TABLE_1) * (2 * 3 + 6)
    assert paper.index("table3/cifar10-ipc10-signed-resnet18-seed0") > paper.index(
        "table1/cifar10-ipc10-signed-seed0"
    )
    assert names["cpu"][:2] == [
        "table1/cifar10-ipc1-none-seed0",
        "table1/cifar10-ipc1-signed-seed0",
    ]
    assert {name for name in names["cpu"] if "herding" in name} == {
        f"table1/{data}-ipc{n}-herding-seed0" for data in ("cifar10", "cifar100") for n in (1, 10)
    }
    smoke = [name for name in names["smoke"] if name.startswith("table1/cifar10-sample-ipc1-")]
    assert len(smoke) == len(METHODS) * 3


def test_runs_of_one_seed_differ_in_the_rule_alone():
    for profile in PROFILES:
        same = {}
        for each in runs(profile):
            if each.recipe.method == "ddpp":
                bare = replace(
                    each.recipe, distill=replace(each.recipe.distill, rule="none", epsilon=0.0)
                )
                same.setdefault((bare.data, bare.distill.ipc, bare.distill.seed), set()).add(bare)
        assert all(len(recipes) == 1 for recipes in same.values())
    assert {each.recipe.teachers.seed for each in runs("paper")} == {0}


def test_settings_survive_the_way_through_a_file_and_old_files_get_defaults():
    from dataclasses import asdict

    for each in (runs("paper")[0], select(runs("smoke"), "epsilon/*")[0]):
        stored = json.loads(json.dumps(asdict(each.recipe)))
        assert from_dict(stored) == each.recipe
        del stored["distill"]["trajectories"]
        assert from_dict(stored) == each.recipe
        with pytest.raises(Error, match="not the settings of a run"):
            from_dict(stored | {"colour": "red"})


def test_what_is_missing_is_run_and_what_is_there_is_left_alone(npz, places, quiet):
    todo, said = tiny_runs(npz()), []
    assert overview(todo, *places.values())[-1] == "0 of 2 runs are finished"
    rows = reproduce(todo, **quiet | {"say": said.append})
    assert rows == [read_result(each, places["results"]) for each in todo]
    assert [row["rule"] for row in rows] == ["none", "signed"]
    assert rows[0]["kept"] == 1 > rows[1]["kept"]
    assert rows[0]["accuracy"] == statistics.fmean(rows[0]["distilled"]["final"])
    assert rows[0]["distilled"]["selected"]
    assert rows[0]["distilled"]["best_on_test"] is None  # at smoke scale, which is to take minutes
    larger = replace(todo[0], recipe=replace(todo[0].recipe, profile="cpu"))
    assert reproduce([larger], **quiet)[0]["distilled"]["best_on_test"]
    assert rows[0]["random"]["final"]
    assert {"teachers", "distill", "evaluate"} <= rows[0]["seconds"].keys()
    assert "torch" in rows[0]["versions"]
    tensors, meta = files.read(
        todo[0].report_path(places["results"]).with_suffix(".safetensors"), results.RESULT
    )
    assert tensors["images"].shape == (3, 1, 12, 12)
    assert meta["provenance"]["teacher_count"] == 2
    assert "2 of 2 runs are finished" in said[-1]

    kept = {path: path.stat().st_mtime_ns for path in places["results"].rglob("*.*")}
    reproduce(todo, **quiet)
    assert {path: path.stat().st_mtime_ns for path in places["results"].rglob("*.*")} == kept
    todo[1].report_path(places["results"]).unlink()
    assert overview(todo, *places.values())[-1].startswith("1 of 2 runs are finished; about ")
    reproduce(todo, **quiet)
    assert read_result(todo[1], places["results"])["distilled"] == rows[1]["distilled"]


def test_the_ceiling_is_that_of_the_last_epoch_that_was_matched(npz, places, quiet):
    (todo,) = tiny_runs(npz())[:1]
    longer = replace(todo.recipe.teachers, epochs=4)
    todo = replace(todo, recipe=replace(todo.recipe, teachers=longer, all_epochs=True))
    (row,) = reproduce([todo], **quiet)
    data, recipe = load_data(todo.recipe.data, zca=todo.recipe.zca, device="cpu"), todo.recipe
    (folder,) = places["work"].glob("teachers-*")
    teachers = train_teachers(data, recipe.teachers, folder, progress=False)
    last = recipe.distill.teacher_epochs
    assert last < teachers.epochs == 4
    assert row["teachers"] == {
        "epoch": last,
        "accuracies": [
            accuracy(teachers.network, teachers.snapshot(k, last), *data.test) for k in range(2)
        ],
    }


def test_a_result_that_is_damaged_or_of_other_settings_is_refused(npz, places, quiet):
    todo = tiny_runs(npz())[:1]
    reproduce(todo, **quiet)
    path = todo[0].report_path(places["results"])
    other = [replace(todo[0], recipe=replace(todo[0].recipe, repeats=1))]
    with pytest.raises(
        Error, match=r"result of other settings \(recipe\.repeats was 2 and is 1\): move it away"
    ):
        reproduce(other, **quiet)
    whole = path.read_text()
    path.write_text(whole[:100])
    with pytest.raises(Error, match="is not the result of a run: move both away"):
        reproduce(todo, **quiet)
    path.write_text(whole)
    path.write_text(json.dumps(json.loads(whole) | {"recipe": {}}))
    with pytest.raises(Error, match="which this version of ddpp cannot read"):
        reproduce(todo, **quiet)
    path.write_text(whole)
    images = path.with_suffix(".safetensors")
    images.write_bytes(images.read_bytes()[:-1] + b"x")
    with pytest.raises(Error, match="are not those that it reports on"):
        overview(todo, *places.values())
    images.unlink()
    with pytest.raises(Error, match="move both away"):
        overview(todo, *places.values())


def test_pruning_too_much_is_a_result_not_a_crash(npz, places, quiet):
    todo = [
        replace(
            each,
            recipe=replace(
                each.recipe, distill=replace(each.recipe.distill, steps=40, alpha0=1e30)
            ),
        )
        for each in tiny_runs(npz())
    ]
    rows = reproduce(todo, **quiet)
    assert all("in a row" in row["error"] for row in rows)
    assert "| 0.00 h | 0.00 h | 0.00 h |" in costs(rows)
    # as if killed before the result was written: it must not go on
    todo[0].report_path(places["results"]).unlink()
    assert reproduce(todo, **quiet)[0]["error"] == rows[0]["error"]
    assert [(line["stopped"], line["mean"]) for line in summarize(rows)] == [(1, None), (1, None)]


def test_it_stops_when_the_minutes_are_over(npz, places, quiet):
    todo, said = tiny_runs(npz(), steps=100_000), []
    reproduce(todo, minutes=2 / 60, **quiet | {"say": said.append})
    assert "minutes are over; what was done is saved" in said[-2]
    lines = overview(todo, *places.values())
    assert lines[-1] == "0 of 2 runs are finished"
    assert "begun: " in lines[0]
    assert " of 100000 steps" in lines[0]
    working_file(out_of(todo[0], places["work"]), "checkpoint").rename(places["work"] / "kept")
    assert overview(todo, *places.values())[0].endswith("missing")
    for minutes in (0, math.inf):
        with pytest.raises(Error, match="it must be positive and below a million"):
            reproduce(todo, minutes=minutes, **quiet)


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_in_the_same_results(npz, tmp_path):
    data = npz()
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    call = lambda folder, kills: subprocess.run(
        [sys.executable, REPRODUCING, str(data), str(folder), str(kills)],
        capture_output=True,
        text=True,
    )
    assert call(whole, 0).returncode == 0
    done = call(killed, 10)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("killed") == 10
    assert "lost" not in done.stdout  # a finished run stays finished
    for each in tiny_runs(data, steps=40):
        a, b = (read_result(each, folder / "results") for folder in (whole, killed))
        same = (
            "name",
            "accuracy",
            "selected",
            "kept",
            "unmasked",
            "alpha",
            "distilled",
            "random",
            "set",
            "recipe",
        )
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
    assert not list(killed.rglob("*.part"))


@pytest.mark.slow
def test_several_at_a_time_end_in_the_same_results_as_one(npz, tmp_path):
    todo = [replace(each, name=f"{each.name}-seed0") for each in tiny_runs(npz(size=16), steps=20)]
    todo += elsewhere(todo[1], "table3", [NetworkConfig("resnet18", width=8)])
    places = [
        {"results": tmp_path / name, "work": tmp_path / "work" / name, "device": "cpu"}
        for name in ("one", "two")
    ]
    one = reproduce(todo, **places[0], progress=False, say=lambda line: None)
    two = reproduce(todo, **places[1], jobs=2)
    assert [row["name"] for row in two] == [each.name for each in todo]
    assert [row["distilled"] for row in two] == [row["distilled"] for row in one]
    assert [row.get("set") for row in two] == [row.get("set") for row in one]
    assert not list(tmp_path.rglob("*.lock"))
    for jobs in (0, -1):
        with pytest.raises(Error, match="it must be at least 1"):
            reproduce(todo, **places[1], jobs=jobs)


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_says_why_and_the_others_go_on(npz, places, capfd, jobs):
    good, other = tiny_runs(npz())
    todo = [replace(other, name="table1/wrong"), good, other]
    todo[0] = replace(
        todo[0], recipe=replace(other.recipe, distill=replace(other.recipe.distill, ipc=1000))
    )
    with pytest.raises(Error, match=r"failed, for the reasons above: table1/wrong$"):
        reproduce(todo, **places, device="cpu", jobs=jobs, progress=False)
    said = capfd.readouterr().out
    assert said.count("table1/wrong failed: class '0' has 18 training images") == 1
    assert said.rstrip().endswith("2 of 3 runs are finished")
    assert [each.name for each in todo if read_result(each, places["results"])] == [
        good.name,
        other.name,
    ]
    assert reproduce([], **places, jobs=jobs) == []


def test_a_fault_in_code_of_ones_own_fails_its_run_alone(npz, places, capfd, monkeypatch):
    def wrong(data, network, config, saving):
        raise IndexError("list index out of range")

    good, other = tiny_runs(npz())
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["random"], run=wrong))
    config = METHODS["random"].config()
    made = replace(other.recipe, method="mine", distill=config)
    mine = replace(other, name="table1/mine", recipe=made)
    with pytest.raises(Error, match=r"failed, for the reasons above: table1/mine$"):
        reproduce([mine, good], **places, device="cpu", progress=False)
    said = capfd.readouterr()
    assert said.out.count("table1/mine failed: IndexError: list index out of range") == 1
    assert said.err.count("Traceback") == 1  # for whoever has written it
    assert said.out.rstrip().endswith("1 of 2 runs are finished")


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_runs_without_their_data_fail_and_the_others_are_done(npz, places, capfd, jobs):
    good, other = tiny_runs(npz())
    lost = replace(other, name="table1/lost", recipe=replace(other.recipe, data="nowhere.npz"))
    with pytest.raises(Error, match=r"failed, for the reasons above: table1/lost$"):
        reproduce([lost, good, other], **places, device="cpu", jobs=jobs, progress=False)
    said = capfd.readouterr().out
    assert said.count("table1/lost failed: there is no file nowhere.npz") == 1
    assert said.rstrip().endswith("2 of 3 runs are finished")


@pytest.mark.slow
def test_what_has_failed_is_named_when_the_minutes_are_over(npz, places, quiet):
    good, other = tiny_runs(npz(), steps=1_000_000)
    lost = replace(other, name="table1/lost", recipe=replace(other.recipe, data="nowhere.npz"))
    with pytest.raises(Error, match=r"failed, for the reasons above: table1/lost$"):
        reproduce([lost, good], minutes=10 / 60, **quiet)


@pytest.mark.slow
def test_a_process_that_the_system_ended_is_told_from_one_that_failed(npz, places, quiet):
    todo = tiny_runs(npz(), steps=1_000_000)

    def kill() -> None:
        while not multiprocessing.active_children():
            time.sleep(0.1)
        for process in multiprocessing.active_children():
            process.kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(Error, match=r"ended by the system, perhaps for lack of memory"):
        reproduce(todo, jobs=2, **quiet)
    killer.join()


def test_what_another_process_is_at_is_left_to_it(npz, places, quiet):
    todo, said = tiny_runs(npz()), []
    claim = working_file(out_of(todo[0], places["work"]), "claim")
    files.check_writable(claim)
    with files.lock(claim, wait=False):
        rows = reproduce(todo, **quiet | {"say": said.append})
    assert [row["name"] for row in rows] == [todo[1].name]
    assert f"\n{todo[0].name}: running in another process" in said
    assert len(reproduce(todo, **quiet)) == 2


def until(done, process, seconds=120):
    ends = time.monotonic() + seconds
    while not done():
        assert process.poll() is None, "it has ended"
        assert time.monotonic() < ends, "it takes too long"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL, "minutes"])
def test_several_at_a_time_stop_together_and_save(npz, places, end):
    data, steps, minutes = npz(), 10**6, 0.7 if end == "minutes" else None
    code = f"""
import sys
from dataclasses import replace
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_experiments import reproduce, tiny_runs
places = {{"results": {str(places["results"])!r}, "work": {str(places["work"])!r}}}
runs = tiny_runs({str(data)!r}, steps={steps})
recipe = replace(runs[1].recipe, data="nowhere.npz")
runs.insert(0, replace(runs[1], name="table1/lost", recipe=recipe))
reproduce(runs, **places, device="cpu", jobs=2, minutes={minutes})
"""
    said = places["work"].with_name("said")
    # as a shell does for what it starts with &
    ignore = lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    with said.open("w") as stderr:
        whole = subprocess.Popen(
            [sys.executable, "-c", code],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            preexec_fn=ignore if end == "minutes" else None,
        )
    until(lambda: len(list(places["work"].glob("teachers-*/teacher_*"))) == 2, whole)
    until(lambda: len(list(places["work"].glob(".*.claim.lock"))) == 2, whole)
    time.sleep(5)
    processes = psutil.Process(whole.pid).children(recursive=True)
    if end != "minutes":
        whole.send_signal(end)
    whole.wait(90)
    _, alive = psutil.wait_procs(processes, timeout=60)
    assert not alive
    if end == "minutes":  # what has failed before is named
        assert said.read_text().rstrip().endswith("failed, for the reasons above: table1/lost")
    lines = overview(tiny_runs(data, steps=steps), *places.values())
    assert [line.split()[1] for line in lines[:2]] == ["begun:", "begun:"]
    for each in tiny_runs(data, steps=steps):  # nobody holds them any more
        with files.lock(working_file(out_of(each, places["work"]), "claim"), wait=False):
            pass


def test_the_command_line_lists_selects_and_explains(tmp_path, capsys):
    where = ["--results", str(tmp_path / "results"), "--work", str(tmp_path / "work")]
    assert main(["reproduce", "--list", "--only", "table1/cifar10-ipc10-*", *where]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == [
        f"table1/cifar10-ipc10-{r}-seed0" for r in ("none", "signed")
    ]
    assert lines[-1] == "0 of 12 runs are finished"
    assert main(["reproduce", "--jobs", "0", *where]) == 1
    assert "jobs is 0: it must be at least 1" in capsys.readouterr().err
    assert main(["reproduce", "--only", "table9/*", *where]) == 1
    assert "no run is named like 'table9/*'" in capsys.readouterr().err
    assert main(["reproduce", "--profile", "papr", *where]) == 1
    assert "did you mean 'paper'?" in capsys.readouterr().err
    with pytest.raises(Error, match="no run is named like"):
        select(runs("cpu"), "epsilon/*")


def test_the_results_in_this_repository_are_whole_and_of_the_listed_settings():
    folder = Path(__file__).parents[1] / "results"
    todo = listed(folder)
    reports = {each.report_path(folder) for each in todo}
    found = {path for profile in PROFILES for path in (folder / profile).glob("*/*.json")}
    assert found
    assert found <= reports
    for each in todo:
        row = read_result(each, folder)
        assert row is None or row["commit"]


def test_a_set_is_evaluated_elsewhere_once_it_is_there(npz, places, quiet, trainings):
    base = replace(tiny_runs(npz(size=16))[1], name="table1/signed-seed0")
    (other,) = elsewhere(base, "table3", [NetworkConfig("resnet18", width=8)])
    assert other.name == "table3/signed-resnet18-seed0"
    said = []
    assert reproduce([other], **quiet | {"say": said.append}) == []
    assert any("left out, as table1/signed-seed0 has no result yet in" in line for line in said)
    done, row = reproduce([base, other], **quiet)
    assert row["of"] == base.name
    assert row["network"]["name"] == "resnet18"
    assert len(row["distilled"]["final"]) == 2
    assert [network.name for network, _ in trainings[-2:]] == ["resnet18"] * 2
    path = base.report_path(places["results"])
    kept = results.read_set(path, done, load_data(npz(size=16), device="cpu"))
    assert kept.images.shape == (3, 1, 16, 16)
    assert all(torch.equal(on.images, kept.images) for _, on in trainings[-2:])
    with pytest.raises(Error, match="load that data"):
        results.read_set(path, done, load_data(npz(size=16), device="cpu", zca=False))
    table = [
        line
        for line in table_3([row | {"recipe": done["recipe"]}]).splitlines()
        if "ResNet18" in line
    ]
    assert "–" in table[0]  # of MTT nothing has been run


def test_a_test_of_a_set_that_was_made_anew_is_refused(npz, places, quiet):
    base = replace(tiny_runs(npz(size=16))[1], name="table1/signed-seed0")
    (other,) = elsewhere(base, "table3", [NetworkConfig("resnet18", width=8)])
    reproduce([base, other], **quiet)
    path = base.report_path(places["results"])
    row = json.loads(path.read_text())
    sheet = path.with_name(row["set"]["file"])
    again = files.read(sheet, "result")
    files.write(sheet, "result", again[0] | {"alpha": again[0]["alpha"] * 2}, again[1])
    row["set"]["sha256"] = hashlib.sha256(sheet.read_bytes()).hexdigest()
    path.write_text(json.dumps(row))
    with pytest.raises(Error, match=r"tested a set that .* has no more: move it away"):
        reproduce([base, other], **quiet)


def test_results_of_other_images_do_not_pass_for_those_of_cifar(npz, places, quiet):
    run = select(runs("smoke"), "table1/cifar10-sample-ipc1-random-seed0")[0]
    run = replace(run, recipe=replace(run.recipe, repeats=1, protocol=Protocol(epochs=1)))
    given = load_data(npz(classes=3, channels=3), device="cpu", validation=0)
    assert reproduce([run], given=given, **quiet)
    with pytest.raises(Error, match="is the result of other images, or of another preprocessing"):
        reproduce([run], **quiet)


def test_each_network_elsewhere_has_a_name_and_a_result_of_its_own(npz, places, quiet, trainings):
    base = replace(tiny_runs(npz(size=16))[1], name="table1/signed-seed0")
    own = base.recipe.teachers.network
    networks = [replace(own, depth=2), replace(own, depth=4), NetworkConfig("alexnet", width=16)]
    todo = elsewhere(base, "e", [*networks, replace(networks[2], width=8), own])
    assert [run.name for run in todo] == [
        f"e/signed-{which}-seed0"
        for which in ("depth2", "depth4", "alexnet-width16", "alexnet", "width8")
    ]
    done, shallow, deep = reproduce([base, *todo[:2]], **quiet)
    assert (shallow["network"]["depth"], deep["network"]["depth"]) == (2, 4)
    data = load_data(npz(size=16), device="cpu")
    sizes = [data.network(network).size for network in networks[:2]]
    assert [network.size for network, _ in trainings[-4:]] == [sizes[0]] * 2 + [sizes[1]] * 2
    made = results.read_set(base.report_path(places["results"]), done, data)
    for row, network in ((shallow, networks[0]), (deep, networks[1])):
        again = evaluate(made, data, network, 2, protocol=base.recipe.protocol, progress=False)
        assert again.final == row["distilled"]["final"]
    path = todo[0].report_path(places["results"])
    path.write_text(json.dumps(shallow | {"network": deep["network"]}))
    with pytest.raises(Error, match=r"other settings \(network.depth was 4 and is 2\)"):
        read_result(todo[0], places["results"])


def test_real_images_are_not_copied_into_the_results(npz, places, quiet):
    base = tiny_runs(npz())[0]
    recipe = replace(base.recipe, method="random", distill=SelectionConfig(ipc=1))
    runs = [base, replace(base, name="table1/random-seed0", recipe=recipe)]
    distilled, chosen = reproduce(runs, **quiet)
    sets = [run.report_path(places["results"]).with_suffix(".safetensors") for run in runs]
    assert distilled["set"] and sets[0].exists()
    assert chosen["set"] is None and not sets[1].exists()
    assert reproduce(runs, **quiet) == [distilled, chosen]


def row(rule, epsilon, seed, accuracy, **more):
    return {
        **{
            "rule": rule,
            "epsilon": epsilon,
            "seed": seed,
            "accuracy": accuracy,
            "selected": accuracy + 1,
        },
        **{"method": "ddpp", "error": None, "kept": 0.5, "unmasked": 1.0, **more},
    }


def test_differences_to_mtt_are_paired_by_seed():
    rows = [row("none", 0.0, s, a) for s, a in enumerate((10, 20, 30))]
    rows += [row("signed", 0.1, s, a) for s, a in enumerate((11, 22, 33))]
    none, signed = summarize(rows)
    assert none["gains"] == []
    assert (signed["mean"], signed["gains"], signed["runs"]) == (22, [1, 2, 3], 3)
    assert signed["stopped"] == 0
    # the interval of the differences 1, 2, 3, not of the accuracies: 4.303 * 1 / sqrt(3)
    last = "+2.0 (-0.5 to +4.5)"
    assert cells(signed) == ["signed", "0.1", "3", "50.0%", "22.0 ± 11.0", last]
    # one seed, or two: no interval
    assert cells(summarize(rows[::3])[1]) == ["signed", "0.1", "1", "50.0%", "11.0", "+1.0"]
    assert cells(summarize([*rows[:2], *rows[3:5]])[1])[-1] == "+1.5"
    gain, half, seeds = paired(rows)
    assert (gain, seeds) == (2, 3)
    assert half == pytest.approx(4.303 / 3**0.5, rel=1e-3)  # 95 %, two degrees of freedom
    assert paired(rows[::3]) == (1, None, 1)
    assert paired(rows[:3]) == (None, None, 0)


def test_settings_are_compared_with_one_of_them_by_seed():
    def made(setting, seed, accuracy, seconds=40.0):
        final = {"final": [accuracy - 1, accuracy + 1]}
        more = {"name": f"after/{setting}-seed{seed}", "seconds": {"distill": seconds}}
        return row("signed", 0.1, seed, accuracy, distilled=final, **more)

    rows = [made("rule", s, a) for s, a in enumerate((10, 20, 30))]
    rows += [made("ema", s, a, 50.0) for s, a in ((2, 33), (0, 11), (1, 22), (7, 90))]
    rows += [made("few", 1, 15)]
    names = {"after/rule": "the rule", "after/none": "MTT", "after/ema": "EMA", "after/few": "few"}
    table = against(rows, "after/rule", names).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert table[2:] == [  # seed 7 has no partner; the p of t = 2 sqrt(3) is 0.074
        "| the rule | 20.0 ± 10.0 |  |  | 40 | 3 |",
        "| EMA | 39.0 ± 35.2 | +2.00 (-0.48 to +4.48) | 0.074 | 50 | 4 |",
        "| few | 15.0 ± 1.4 | -5.00 |  | 40 | 1 |",
    ]


def test_table_1_shows_the_best_there_is_and_no_dash():
    final = lambda *values: {"final": list(values), "selected": None, "best_on_test": None}

    def made(profile, data, rule, *values):
        of = {"profile": profile, "data": data, "distill": {"ipc": 10}}
        return row(rule, 0.1, 0, 61.0, distilled=final(*values), recipe=of)

    rows = [
        made("smoke", "cifar10-sample", "signed", 30.0, 31.0),
        made("cpu", "cifar10", "signed", 60.0, 62.0),
        made("smoke", "cifar10-sample", "none", 29.0, 31.0),
    ]
    table = best_1(rows)
    assert "65.3 ± 0.7" not in table and "65.3\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}0.7" in table
    head, _, *lines = table.replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "scale" in head and "–" not in table
    assert lines == [
        "| CIFAR-10, 10 | MTT | 65.3 ± 0.7 | 30.0 ± 1.4 | 1 | smallest: the sample, width 32 |",
        "| CIFAR-10, 10 | pruned | 65.5 ± 0.3 | 61.0 ± 1.4 | 1 | full data, on CPU cores |",
    ]
    one, _, line = best_1(rows[1:2]).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert "scale" not in one and line == "| CIFAR-10, 10 | pruned | 65.5 ± 0.3 | 61.0 ± 1.4 | 1 |"
    of = rows[1]["recipe"] | {"teachers": {"count": 3}}
    short, long = (
        rows[1] | {"recipe": of | {"distill": {"ipc": 10, "steps": steps}}} for steps in (500, 1000)
    )
    mtt = rows[1] | {"rule": "none", "recipe": short["recipe"]}
    long = long | {"distilled": final(64.0, 66.0)}
    _, _, one, other = best_1([short, long, mtt]).replace("\N{NO-BREAK SPACE}", " ").splitlines()
    assert one.endswith("| 61.0 ± 1.4 | 1 | 3 teachers, 500 steps |")
    assert other.endswith("| 65.0 ± 1.4 | 1 | 3 teachers, 1,000 steps |")
    missing = missing_1(rows)
    assert "- CIFAR-10, 10: Random, Forgetting, Herding, DSA, DM, CAFE. `ddpp reproduce" in missing
    assert missing.count("\n") == len(TABLE_1) - 1


def test_table_3_names_its_scale_and_leaves_out_what_was_not_run():
    of = {"profile": "smoke", "data": "cifar10-sample", "distill": {"ipc": 1}}
    final = {"final": [20.0, 22.0], "selected": None, "best_on_test": None}
    vgg = {"network": {"name": "vgg11"}, "of": "table1/x", "recipe": of, "distilled": final}
    table = best_3([row(rule, 0.1, 0, 21.0) | vgg for rule in ("signed", "none")])
    (line,) = table.replace("\N{NO-BREAK SPACE}", " ").splitlines()[2:]
    assert line.startswith("| VGG11 | 52.9 ± 0.9 | 21.0 ± 1.4 | 50.3 ± 0.8 | 21.0 ± 1.4 |")
    assert line.endswith("one image per class |")
