"""A queue of runs is read and worked off; each longer run goes on with the shorter."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from small import refused, save
from test_experiments import tiny_runs

import ddpp
from ddpp import cli
from ddpp.experiments import overview, read_queue, reproduce
from ddpp.experiments.places import out_of
from ddpp.experiments.reproducing import usual_jobs

QUEUE = """
[[run]]
name = "long/mine"
profile = "smoke"
data = "{data}"
steps = [4, 2]
seeds = [0, 1]
repeats = 1
teachers = {{ count = 1, epochs = 3, batch = 6, network = {{ width = 4, depth = 1 }} }}
distill = {{ rule = "none", epsilon = 0.0, student_steps = 2, iterates = 1, image_lr = 1.0 }}
protocol = {{ epochs = 1 }}
"""


@pytest.fixture
def queue(tmp_path):
    path = tmp_path / "queue.toml"
    path.write_text(QUEUE.format(data=save(tmp_path / "mine.npz")))
    return path


def work(todo, tmp_path, **changes):
    places = {"results": tmp_path / "results", "work": tmp_path / "work", "device": "cpu"}
    return reproduce(todo, **places | changes, progress=False, say=lambda line: None)


def test_a_queue_lists_runs_by_seed_and_from_few_steps_to_many(queue):
    runs = read_queue(queue)
    names = [f"long/mine-{steps}-seed{seed}" for seed in (0, 1) for steps in (2, 4)]
    assert [run.name for run in runs] == names
    assert [run.continues for run in runs] == [None, runs[0], None, runs[2]]
    recipe = runs[1].recipe
    assert (recipe.distill.steps, recipe.distill.seed, recipe.repeats) == (4, 0, 1)
    assert (recipe.teachers.network.width, recipe.teachers.lr) == (4, 0.02)


def test_a_longer_run_goes_on_with_the_shorter_to_the_same_bits(queue, tmp_path):
    runs = read_queue(queue)[:2]
    rows = work(runs, tmp_path)
    assert [row["recipe"]["distill"]["steps"] for row in rows] == [2, 4]
    longer = ddpp.DistilledDataset.load(out_of(runs[1], tmp_path / "work"))
    (alone,) = work([replace(runs[1], continues=None)], tmp_path / "alone")
    whole = ddpp.DistilledDataset.load(out_of(runs[1], tmp_path / "alone" / "work"))
    assert torch.equal(longer.images, whole.images)
    assert torch.equal(longer.history["loss"], whole.history["loss"])
    assert rows[1]["accuracy"] == alone["accuracy"]
    assert list(longer.iterates) == [0, 2, 4]


def test_where_the_folder_of_work_is_lost_the_result_goes_on(queue, tmp_path):
    runs = read_queue(queue)[:2]
    work(runs[:1], tmp_path)
    shutil.rmtree(tmp_path / "work")
    rows = work(runs, tmp_path)
    longer = ddpp.DistilledDataset.load(out_of(runs[1], tmp_path / "work"))
    assert len(rows) == 2 and list(longer.iterates) == [4]  # earlier ones are not in a result
    assert longer.history["loss"].isfinite().all()


MORE = QUEUE.replace("steps = [4, 2]\nseeds = [0, 1]", "steps = [6, 8]\nevery = 2")
MORE = MORE.replace("iterates = 1, ", "")


def test_a_later_entry_of_the_same_name_goes_on_and_keeps_iterates(queue, tmp_path):
    text, more = queue.read_text(), MORE.format(data=tmp_path / "mine.npz")
    queue.write_text(text + more)
    runs = read_queue(queue)
    assert [run.name for run in runs[4:]] == ["long/mine-6-seed0", "long/mine-8-seed0"]
    assert [run.continues for run in runs[4:]] == [runs[1], runs[4]]
    assert [run.recipe.distill.iterates for run in runs] == [1, 1, 1, 1, 3, 4]
    todo = [*runs[:2], *runs[4:]]
    work(todo[:2], tmp_path)
    shutil.rmtree(tmp_path / "work")
    work(todo, tmp_path)
    last = ddpp.DistilledDataset.load(out_of(todo[-1], tmp_path / "work"))
    assert list(last.iterates) == [6, 8]  # 4, too, were it not lost
    work([replace(todo[-1], continues=None)], tmp_path / "alone")
    whole = ddpp.DistilledDataset.load(out_of(todo[-1], tmp_path / "alone" / "work"))
    assert torch.equal(last.images, whole.images) and list(whole.iterates) == [0, 2, 4, 6, 8]


@pytest.mark.parametrize("lost", [False, True])
def test_of_a_run_that_goes_on_no_iterate_is_chosen(queue, tmp_path, lost):
    text = queue.read_text().replace("[4, 2]", "[2]\nevery = 1\nvalidation = 0.4")
    more = MORE.format(data=tmp_path / "mine.npz").replace("[6, 8]", "[4]\nvalidation = 0.4")
    queue.write_text(text.replace("iterates = 1, ", "") + more)
    first, _, last = read_queue(queue)
    (one,) = work([first], tmp_path)
    if lost:
        shutil.rmtree(tmp_path / "work")
    *_, row = work([first, last], tmp_path)
    assert one["distilled"]["validation"].keys() == {"1", "2"}
    assert row["name"] == "long/mine-4-seed0"
    assert row["distilled"]["validation"] is None and row["selected"] == row["accuracy"]


def test_an_entry_that_cannot_go_on_is_refused(queue, tmp_path):
    text, more = queue.read_text(), MORE.format(data=tmp_path / "mine.npz")
    queue.write_text(text + more.replace("[6, 8]", "[4, 8]"))
    with refused("cannot go on with long/mine-4-seed0", "its steps must be more"):
        read_queue(queue)
    queue.write_text(text + more.replace("image_lr = 1.0", "image_lr = 2.0"))
    with refused("other settings (distill.image_lr was 1.0 and is 2.0)"):
        read_queue(queue)
    first = text.replace("[4, 2]", "4").replace("profile", "sets = false\nprofile", 1)
    queue.write_text(first + more)
    with refused("cannot go on with long/mine-4-seed0", "stores no sets"):
        read_queue(queue)
    queue.write_text("[[run]]\nname = 'a'\nmethod = 'cafe'\nsteps = [1, 2]")
    with refused("cannot go on with a-1-seed0", "depend on the number of steps"):
        read_queue(queue)
    queue.write_text(text + more.replace("student_steps", "iterates = 2, student_steps"))
    with refused("iterates, of long/mine in", "write every = 100, which says how many there are"):
        read_queue(queue)
    queue.write_text(text + more.replace("every = 2", "every = 0"))
    with refused("not a multiple of every"):
        read_queue(queue)
    queue.write_text(text + more.replace("[6, 8]", "[7, 8]"))
    with refused("7 steps of long/mine in", "not a multiple of every"):
        read_queue(queue)
    queue.write_text(text + more.replace("steps = [6, 8]", ""))
    with refused("every, of long/mine in", "needs steps beside it"):
        read_queue(queue)


def test_a_queue_may_store_reports_alone(queue, tmp_path):
    text = queue.read_text()
    queue.write_text(text.replace("[4, 2]", "4") + "\n[[run]]\nname = 'long/other'\nsets = false\n")
    assert [run.sets for run in read_queue(queue)] == [True, True, False]
    one = text.replace("[4, 2]", "2").replace("profile", "sets = false\nprofile")
    queue.write_text(one)
    first, *_ = read_queue(queue)
    (row,) = work([first], tmp_path)
    assert row["set"] is None and not [*(tmp_path / "results").rglob("*.safetensors")]
    assert work([first], tmp_path) == [row]
    queue.write_text(one.replace("\nsteps = 2", "\nsteps = [2, 4]"))
    with refused("long/mine in", "stores no sets", "Give one number of steps"):
        read_queue(queue)
    queue.write_text(one.replace("student_steps = 2", "student_steps = [2, 4]"))
    with refused("student_steps is (2, 4): it must be a whole number, at least 1"):
        read_queue(queue)
    queue.write_text(one.replace("sets = false", "sets = 'no'"))
    with refused("sets, of long/mine in", "must be true or false"):
        read_queue(queue)


def test_a_longer_run_waits_for_the_shorter(queue, tmp_path):
    lines = []
    shorter, longer, *_ = read_queue(queue)
    reproduce(
        [longer, shorter],
        results=tmp_path / "results",
        work=tmp_path / "work",
        device="cpu",
        progress=False,
        say=lines.append,
    )
    assert "2 of 2 runs are finished" in lines[-1]


def test_the_command_works_off_a_queue_and_lists_it(queue, tmp_path, capsys):
    places = ["--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--device", "cpu"]
    words = ["reproduce", "--queue", str(queue), "--only", "*seed0", *places]
    assert cli.main([*words, "--list"]) == 0
    assert "0 of 2 runs are finished" in capsys.readouterr().out
    assert cli.main(words) == 0
    assert cli.main([*words, "--list"]) == 0
    assert "2 of 2 runs are finished" in capsys.readouterr().out
    assert cli.main(["reproduce", "--queue", str(queue), "--profile", "cpu", "--list"]) == 1
    assert "each run of a queue has its own profile" in capsys.readouterr().err
    assert (tmp_path / "r" / "smoke" / "long" / "mine-4-seed0.json").exists()


@pytest.mark.parametrize(
    "text, words",
    [
        ("", ["has no [[run]]"]),
        ("[[run]]\nprofile = 'smoke'", ["a [[run]] in", "has no name"]),
        *[
            (f"[[run]]\nname = {name}", ["the name", "cannot be one of a file"])
            for name in ('"a\\u0000"', '"../x"', '"/tmp/x"', '"a//b"', '"long/"')
        ],
        ("[[run]]\nname = 'a'\nvalidation = -1.0", ["share is -1.0", "at least 0 and below 1"]),
        ("[[run]]\nname = 'a'\nstep = 3", ["a in", "unknown setting, step"]),
        ("[[run]]\nname = 'a'\ndistill = { rules = 'none' }", ["unknown setting, rules"]),
        ("[[run]]\nname = 'a'\nprofile = 'big'", ["unknown profile 'big'"]),
        ("[[run]]\nname = 'a'\n[[run]]\nname = 'a'", ["two runs a-seed0", "rename one"]),
        ("[[run]]\nname = 'x/a'\n[[run]]\nname = 'x-a'", ["would work in one file: rename one"]),
        ("[[run]]\nname = 'a'\neach = { rule = 'none' }", ["a in", "a list of values"]),
        ("[[run]]\nname = 'a'\neach = { rules = ['none'] }", ["unknown setting, rules"]),
        ("[[run]]\nname = 'a'\nsteps = []", ["steps, of a in", "is an empty list"]),
        ("[[run]]\nname = 'a'\nseeds = []", ["seeds, of a in", "is an empty list"]),
        ("data = 'cifar100'\n[[run]]\nname = 'a'", ["has data outside of a [[run]]"]),
        ("[[run]]\nname = 'a'\n[[runs]]\nname = 'b'", ["has runs outside of a [[run]]"]),
        ("[[run", ["cannot be read"]),
    ],
)
def test_a_queue_that_cannot_be_read_gets_a_sentence(text, words, tmp_path):
    path = tmp_path / "queue.toml"
    path.write_text(text)
    with refused(*words):
        read_queue(path)
    with refused("cannot be read"):
        read_queue(tmp_path / "nowhere.toml")


def test_each_combination_of_settings_is_a_run_of_its_own(queue):
    queue.write_text(
        queue.read_text().replace("steps = [4, 2]", "steps = 2")
        + 'each = { rule = ["none", "signed@0.7"], image_lr = [1, 2.5] }\n'
    )
    runs = read_queue(queue)
    assert [run.name for run in runs[4:]] == [
        "long/mine-none-image_lr1-2-seed1",
        "long/mine-none-image_lr2.5-2-seed1",
        "long/mine-signed-0.7-image_lr1-2-seed1",
        "long/mine-signed-0.7-image_lr2.5-2-seed1",
    ]
    last = runs[-1].recipe
    assert (last.distill.rule, last.distill.epsilon, last.distill.image_lr) == ("signed", 0.7, 2.5)
    assert (last.distill.seed, last.teachers.seed) == (1, 1)


def test_the_list_says_how_many_hours_are_left(queue, tmp_path):
    runs, places = read_queue(queue), (tmp_path / "results", tmp_path / "work")
    assert overview(runs, *places)[-1] == "0 of 4 runs are finished"
    work(runs[:2], tmp_path)
    path = runs[1].report_path(places[0])  # of steps 3 and 4, as it goes on with steps 1 and 2
    row = json.loads(path.read_text())
    path.write_text(json.dumps(row | {"seconds": {"distill": 7200, "evaluate": 1800}}))
    *_, last = overview(runs, *places)
    # a step takes an hour, an evaluation half of one: the other seed has four steps and two
    assert last == "2 of 4 runs are finished; about 5.0 hours are left for 2"
    other = replace(runs[3], name="long/other", continues=None)
    other = replace(other, recipe=replace(other.recipe, data="cifar100"))
    assert overview([*runs, other], *places)[-1].endswith(
        "5.0 hours are left for 2, and 1 of a kind that none is finished of"
    )


def test_two_runs_at_a_time_are_usual_on_several_cores(monkeypatch):
    for threads, jobs in ((1, 1), (4, 2)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert usual_jobs("cpu") == jobs


def test_a_longer_run_that_is_chosen_alone_goes_on_with_the_shorter_result(queue, tmp_path, capsys):
    places = ["--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--device", "cpu"]
    only = lambda name: cli.main(["reproduce", "--queue", str(queue), "--only", name, *places])
    assert only("long/mine-4-seed0") == 0
    said = "left out, as long/mine-2-seed0 has no result yet in"
    assert said in capsys.readouterr().out
    assert only("long/mine-2-seed0") == only("long/mine-4-seed0") == 0
    shorter, longer, *_ = read_queue(queue)
    assert longer.continues == shorter
    assert list(ddpp.DistilledDataset.load(out_of(longer, tmp_path / "w")).iterates) == [0, 2, 4]


def test_a_window_that_grows_does_so_over_the_steps_of_the_run(queue):
    text = queue.read_text().replace("student_steps", "first_max_start_epoch = 1, student_steps")
    queue.write_text(text)
    assert [run.recipe.distill.expand_steps for run in read_queue(queue)] == [4] * 4
    queue.write_text(text.replace("student_steps", "expand_steps = 7, student_steps"))
    assert [run.recipe.distill.expand_steps for run in read_queue(queue)] == [7] * 4


@pytest.mark.parametrize(
    "line, words",
    [
        ("seeds = 3", "seeds, of a in queue.toml, must be a list of whole numbers"),
        ("seeds = [0.5]", "seeds, of a in queue.toml, must be a list of whole numbers"),
        ("steps = [1, 'b']", "steps, of a in queue.toml, must be a whole number, or a list of"),
        ("each = 3", "each, of a in queue.toml, must be a table of lists"),
        ("ipc = 'ten'", "ipc, of a in queue.toml, must be a whole number"),
        ("ipc = true", "ipc, of a in queue.toml, must be a whole number"),
        ("data = 3", "data, of a in queue.toml, must be text"),
        ("teachers = 3", "teachers, of a in queue.toml, cannot be 3"),
        ("distill = 3", "distill, of a in queue.toml, cannot be 3"),
        ("zca = 'yes'", "zca, of a in queue.toml, cannot be 'yes'"),
        ("validation = 'x'", "validation, of a in queue.toml, cannot be 'x'"),
        ("teachers = { augment = 3 }", "augment is 3: it must be True, False, or a list"),
        ("teachers = { network = { width = 'x' } }", "the network's width is 'x': it must be"),
        ("distill = { normalize = 'x' }", "normalize is 'x': it must be True or False"),
        ("distill = { rule = 'nosuch' }", "a-seed0 in queue.toml cannot work: unknown rule"),
        ("teachers = { network = { name = 'x' } }", "cannot work: unknown network"),
        ("distill = { max_start_epoch = 99 }", "cannot work: max_start_epoch 99"),
    ],
)
def test_a_setting_of_another_type_gets_a_sentence(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "queue.toml"
    path.write_text(f"[[run]]\nname = 'a'\n{line}")
    with refused(words):
        read_queue("queue.toml")


@pytest.mark.parametrize(
    "line, words",
    [
        ("each = { seed = [0, 1, 2] }", "seed, of a in queue.toml, cannot be in each: write seeds"),
        ("distill = { seed = 5 }", "seed, of a in queue.toml, cannot be in distill: write seeds"),
        ("teachers = { seed = 7 }", "seed, of a in queue.toml, cannot be in teachers: write seeds"),
        (
            "each = { ipc = [1, 10] }",
            "ipc, of a in queue.toml, cannot be in each: write one [[run]]",
        ),
        ("distill = { ipc = 10 }", "ipc, of a in queue.toml, cannot be in distill: write one"),
        ("each = { steps = [1, 2] }", "steps, of a in queue.toml, cannot be in each: write steps"),
        ("distill = { steps = 3 }", "steps, of a in queue.toml, cannot be in distill: write steps"),
        (
            "each = { rule = ['none', 'signed@0.1'], epsilon = [0.2] }",
            "has epsilon twice: leave it",
        ),
    ],
)
def test_what_a_table_says_is_never_overwritten(line, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "queue.toml").write_text(f"[[run]]\nname = 'a'\n{line}")
    with refused(words):
        read_queue("queue.toml")


def test_teachers_that_all_seeds_share_may_have_a_seed_of_their_own(tmp_path):
    path = tmp_path / "queue.toml"
    run = "[[run]]\nname = 'a'\nprofile = 'paper'\nseeds = [0, 1]\nteachers = { seed = 7 }"
    path.write_text(run)
    assert [run.recipe.teachers.seed for run in read_queue(path)] == [7, 7]


@pytest.mark.parametrize("line", ["zca = false", "distill = { leave_out = 'bias', image_lr = 5 }"])
def test_a_setting_may_be_a_text_for_a_list_of_one_and_whole_for_a_fraction(line, tmp_path):
    path = tmp_path / "queue.toml"
    path.write_text(f"[[run]]\nname = 'a'\n{line}")
    assert len(read_queue(path)) == 1


def test_a_table_in_place_of_a_list_of_runs_is_no_queue(tmp_path):
    path = tmp_path / "queue.toml"
    path.write_text("[run]\nname = 'a'")
    with refused("has no [[run]]"):
        read_queue(path)


def test_results_of_other_images_are_not_taken(tmp_path):
    path = save(tmp_path / "mine.npz")
    todo = tiny_runs(path)
    rows = work(todo, tmp_path)
    assert work(todo, tmp_path) == rows
    path = save(path, x_train=255 - np.load(path)["x_train"])
    with refused("table1/none.json is the result of other images", "move it away"):
        work(todo, tmp_path)
