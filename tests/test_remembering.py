"""Classes that arrive in tasks: what is stored of each, and that nothing looks ahead."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_npz
from small import NETWORK, command, contents, refused, small_recipe

import ddpp
from ddpp.cli import main
from ddpp.data.augmentation import OPERATIONS
from ddpp.data.whitening import fit_channels
from ddpp.evaluating import Protocol
from ddpp.experiments.recipes import recipe
from ddpp.experiments.run import Experiment
from ddpp.foundation.loop import Saving
from ddpp.studies import class_tasks, remember, remembering
from ddpp.studies.remembering import for_tasks, read_memories, union
from tools.memories import main as memories_main
from tools.memories import memories_of_cifar100

QUIET = Saving(progress=False)


@pytest.fixture
def four(npz):
    return npz(classes=4)


def small(path, method="ddpp"):
    settings = {"epochs": 3} if method == "herding" else {}
    return small_recipe(path, method, ipc=2, repeats=2, **settings)


def run(path, folder, method="ddpp", saving=QUIET, **changes):
    how = {"tasks": 2, "order": 1, "device": "cpu"} | changes
    return remember(small(path, method), folder, saving=saving, **how)


def test_every_class_arrives_once_in_an_order_of_its_seed():
    found = [class_tasks(12, 4, seed) for seed in range(20)]
    for order in found:
        assert [len(labels) for labels in order] == [3] * 4
        assert sorted(label for labels in order for label in labels) == list(range(12))
    assert found[3] == class_tasks(12, 4, 3)
    assert len({str(order) for order in found}) == 20
    # a hand-made history: each class is as often among the first three as among the last
    first = [label for order in found for label in order[0]]
    assert len(set(first)) > 8


@pytest.mark.parametrize(
    "classes, tasks, choices", [(10, 3, "1 or 2 or 5"), (10, 10, "5"), (4, 0, "2")]
)
def test_tasks_of_unequal_size_or_of_one_class_are_refused(classes, tasks, choices):
    with refused(f"{classes} classes cannot arrive in {tasks} equal tasks", choices):
        class_tasks(classes, tasks, 0)


def test_classes_are_kept_in_the_order_asked_for(four):
    whole = ddpp.load_data(four, zca=False, validation=0, device="cpu")
    part = ddpp.load_data(four, only=[3, 1], zca=False, validation=0, device="cpu")
    assert part.classes == ("3", "1") and part.identity != whole.identity
    raw = whole.whitening.invert(whole.train.images)
    for new, old in enumerate((3, 1)):
        mine = part.whitening.invert(part.train.images[part.train.labels == new])
        assert torch.allclose(mine, raw[whole.train.labels == old], atol=1e-6)
    of_both = raw[(whole.train.labels == 3) | (whole.train.labels == 1)]
    assert torch.allclose(part.whitening.mean, fit_channels(of_both).mean, atol=1e-5)
    assert len(part.test.labels) == 2 * sum(whole.test.labels == 1)


@pytest.mark.parametrize("only", [[1], [], [1, 1], [0, 4], [-1, 0]])
def test_classes_that_are_not_there_or_too_few_are_refused(four, only):
    with refused("cannot be kept", "at least two different labels from 0 to 3"):
        ddpp.load_data(four, only=only, device="cpu")


@pytest.mark.parametrize("method", ["ddpp", "random", "herding"])
def test_classes_that_have_not_arrived_are_never_touched(four, tmp_path, method):
    _, later = class_tasks(4, 2, 1)
    arrays = dict(np.load(four))
    for part in ("train", "test"):
        y = arrays[f"y_{part}"]
        x = arrays[f"x_{part}"].copy()
        x[np.isin(y, later)] = 255 - x[np.isin(y, later)]
        arrays[f"x_{part}"] = x
    other = write_npz(tmp_path, name="other", **arrays)
    mine, theirs = (run(path, tmp_path / path.stem, method) for path in (four, other))
    assert mine[0] == theirs[0]
    sets = [
        [ddpp.DistilledDataset.load(tmp_path / path.stem / f"task{k}.safetensors") for k in (0, 1)]
        for path in (four, other)
    ]
    assert torch.equal(sets[0][0].images, sets[1][0].images)
    assert torch.equal(sets[0][0].whitening.mean, sets[1][1].whitening.mean)
    assert not torch.equal(sets[0][1].images, sets[1][1].images)


def test_a_network_is_trained_on_all_that_is_stored_and_tested_on_all_classes_so_far(
    four, tmp_path
):
    found = run(four, tmp_path / "memory")
    order = class_tasks(4, 2, 1)
    assert [task.classes for task in found] == [tuple(map(str, labels)) for labels in order]
    assert [task.images for task in found] == [4, 8]
    sets = [ddpp.DistilledDataset.load(tmp_path / f"memory/task{k}.safetensors") for k in (0, 1)]
    for k in (0, 1):
        seen = [label for labels in order[: k + 1] for label in labels]
        whitening = sets[0].whitening
        data = ddpp.load_data(
            four, only=seen, whitening=whitening, validation=0, zca=False, device="cpu"
        )
        stored = ddpp.DistilledDataset(
            images=torch.cat([part.images for part in sets[: k + 1]]),
            labels=torch.tensor([0, 0, 1, 1, 2, 2, 3, 3][: 4 * (k + 1)]),
            alpha=sum(float(part.alpha) for part in sets[: k + 1]) / (k + 1),
            whitening=whitening,
            classes=data.classes,
            network=NETWORK,
        )
        how = {"repeats": 2, "protocol": Protocol(epochs=4), "seed": 1, "progress": False}
        expected = ddpp.evaluate(stored, data, **how).final
        assert list(found[k].accuracies) == pytest.approx(expected)


def test_networks_can_be_trained_at_one_rate_for_all_methods(four, tmp_path, trainings):
    run(four, tmp_path / "own")
    trainings.clear()
    same = run(four, tmp_path / "same", rate=0.5)
    assert [float(stored.alpha) for _, stored in trainings] == [0.5] * 4
    made = ddpp.DistilledDataset.load(tmp_path / "same/task0.safetensors")
    first = ddpp.DistilledDataset.load(tmp_path / "own/task0.safetensors")
    assert torch.equal(made.images, first.images) and float(made.alpha) == float(first.alpha)
    data = ddpp.load_data(four, only=class_tasks(4, 2, 1)[0], validation=0, zca=False, device="cpu")
    how = {"repeats": 2, "protocol": Protocol(epochs=4), "seed": 1, "progress": False}
    expected = ddpp.evaluate(replace(made, alpha=0.5, iterates={}), data, **how).final
    assert list(same[0].accuracies) == pytest.approx(expected)
    with refused("holds the memory of another run", "rate"):
        run(four, tmp_path / "same")
    for rate in (0.0, -1.0, float("nan"), float("inf")):
        with refused("the rate is", "positive number"):
            run(four, tmp_path / "bad", rate=rate)
    assert not (tmp_path / "bad").exists()


def test_a_report_from_before_a_setting_was_there_is_known(four, tmp_path):
    whole = run(four, tmp_path / "memory")
    path = tmp_path / "memory/memory.json"
    report = json.loads(path.read_text())
    del report["asked"]["recipe"]["distill"]["init"]
    path.write_text(json.dumps(report))
    assert run(four, tmp_path / "memory") == whole
    report["asked"]["recipe"]["distill"]["unheard"] = 1
    path.write_text(json.dumps(report))
    with refused("is where the report belongs, but is another file"):
        run(four, tmp_path / "memory")


def test_a_run_that_was_killed_goes_on_to_the_same_memory(four, tmp_path):
    whole = run(four, tmp_path / "whole")

    def stop(line):
        if line.startswith("task 1 of 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(four, tmp_path / "stopped", saving=replace(QUIET, report=stop))
    assert run(four, tmp_path / "stopped") == whole
    before = contents(tmp_path / "stopped")
    with refused("holds the memory of another run", "order was 1 and is 2"):
        run(four, tmp_path / "stopped", order=2)
    assert contents(tmp_path / "stopped") == before
    (tmp_path / "stopped" / "memory.json").write_text("[]")
    with refused("is where the report belongs, but is another file"):
        run(four, tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize("ipc", [1, 10])
def test_the_usual_settings_suit_tasks_of_two_classes(tmp_path, ipc):
    usual = for_tasks(recipe("smoke", ipc=ipc))
    data = ddpp.load_data("cifar10-sample", only=[5, 3], validation=0, device="cpu")
    shorter = replace(usual, distill=replace(usual.distill, steps=20))
    made = Experiment(shorter, tmp_path / "task0.safetensors", given=data, saving=QUIET).distilled()
    assert float(made.alpha) == pytest.approx(usual.distill.alpha0, rel=0.2)
    assert not made.history["skipped"].any()


def test_only_matching_at_smoke_scale_has_other_settings_for_tasks():
    for profile, method, same in [
        ("smoke", "dm", True),
        ("paper", "ddpp", True),
        ("smoke", "ddpp", False),
        ("smoke", "mtt", False),
    ]:
        usual = recipe(profile, method=method)
        assert (for_tasks(usual) == usual) is same


def test_reports_are_read_as_rows(four, tmp_path):
    found = run(four, tmp_path / "memory", "random")
    (tmp_path / "all").mkdir()
    path = tmp_path / "all" / "random-ipc2-order1.json"
    path.write_bytes((tmp_path / "memory/memory.json").read_bytes())
    (row,) = read_memories(tmp_path / "all")
    assert (row["name"], row["method"], row["ipc"]) == ("random-ipc2-seed1", "random", 2)
    last = found[-1].accuracies
    assert row["accuracy"] == pytest.approx(sum(last) / 2)
    assert row["distilled"]["final"] == list(last)
    assert [(task.classes, task.images) for task in row["tasks"]] == [
        (list(task.classes), task.images) for task in found
    ]
    for other in ("[]", "{", '{"asked": {}, "found": []}'):
        path.write_text(other)
        with refused("is not the report of a memory"):
            read_memories(tmp_path / "all")


def test_labels_that_are_no_classes_cannot_be_joined(four):
    data = ddpp.load_data(four, validation=0, zca=False, device="cpu")
    images, labels = data.draw(1, 0)
    soft = ddpp.DistilledDataset.from_tensors(images, torch.eye(4)[labels], 0.01, data)
    with refused("a memory needs labels that are classes"):
        union([soft, soft], data)


def test_the_command_says_what_each_task_brought(four, tmp_path, capsys):
    line = command(four, tmp_path / "memory", ("--tasks", 2), verb="remember")
    assert main([*map(str, line)]) == 0
    out = capsys.readouterr().out
    assert "task 1 of 2: " in out and "% on 4 classes, from 4 images" in out
    report = json.loads((tmp_path / "memory" / "memory.json").read_text())
    assert len(report["found"]) == 2 and report["asked"]["order"] == 0
    assert main([*map(str, line), "--order", "1"]) == 1
    assert "holds the memory of another run" in capsys.readouterr().err


def test_the_memories_of_cifar100_are_listed_and_can_work(tmp_path, capsys):
    found = list(memories_of_cifar100())
    assert {(m.tasks, m.recipe.distill.ipc, m.recipe.data) for m in found} == {
        (5, 20, "cifar100"),
        (10, 20, "cifar100"),
    }
    assert len({m.name for m in found}) == len(found) == 5 * 2 * 5
    for memory in found:
        memory.recipe.stored_teachers()  # refuses settings that cannot work
        assert len(class_tasks(100, memory.tasks, memory.order)) == memory.tasks
    results = ["--results", str(tmp_path)]
    assert memories_main([*results, "--cifar100", "--list", "--only", "dm"]) == 0
    assert capsys.readouterr().out.count("missing") == 10
    assert memories_main([*results, "--list"]) == 0
    assert capsys.readouterr().out.count("missing") == 55 and not any(tmp_path.iterdir())


def test_each_part_of_the_data_is_read_once(four, tmp_path, monkeypatch):
    read, whole = [], remembering.load_data
    monkeypatch.setattr(
        remembering,
        "load_data",
        lambda *a, only, **k: read.append(only) or whole(*a, only=only, **k),
    )
    run(four, tmp_path / "memory", "random")
    first, second = class_tasks(4, 2, 1)
    assert read == [first, second, first + second]


def test_a_second_call_that_is_stopped_leaves_the_report_as_it_was(four, tmp_path):
    run(four, tmp_path / "memory", "random")
    path = tmp_path / "memory" / "memory.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"commit": "of before"}))
    before = path.read_bytes()

    def stop(line):
        if line.startswith("task 1 of 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(four, tmp_path / "memory", "random", saving=replace(QUIET, report=stop))
    assert path.read_bytes() == before
    run(four, tmp_path / "memory", "random")
    assert path.read_bytes() == before


def test_a_memory_of_an_operation_that_has_changed_since_is_refused(four, tmp_path):
    base = small(four, "random")
    base = replace(base, protocol=replace(base.protocol, augment=("crop", fade)))
    how = {"tasks": 2, "device": "cpu", "saving": QUIET}
    remember(base, tmp_path, **how)
    OPERATIONS["fade"] = lambda images, u: images * u[:, 1:2, None, None]
    with refused("holds the memory of another run", "the augmentation fade has changed"):
        remember(base, tmp_path, **how)


def fade(images, u):
    return images * (1 - u[:, :1, None, None] / 2)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {"y_train": np.array(["cat"] * 80)},
            ["y_train has the type <U3: labels must be integers"],
        ),
        (
            {"x_test": np.zeros((0, 12, 12, 1), np.uint8), "y_test": np.zeros(0, int)},
            ["x_test", "without a single pixel"],
        ),
        ({"y_train": np.arange(3)}, ["x_train has 80 images but y_train has the shape (3,)"]),
    ],
    ids=["labels", "images", "length"],
)
def test_arrays_that_cannot_be_used_are_refused(tmp_path, changes, words):
    path = write_npz(tmp_path, classes=4, **changes)
    with refused(*words):
        run(path, tmp_path / "memory")


def test_labels_that_are_learned_are_refused_before_anything_is_made(four, tmp_path):
    base = small(four)
    base = replace(base, distill=replace(base.distill, label_lr=1.0))
    with refused("a memory needs labels that are classes: leave label_lr out"):
        remember(base, tmp_path / "memory", tasks=2, device="cpu", saving=QUIET)
    assert not (tmp_path / "memory").exists()


def test_a_larger_set_counts_more_in_the_rate_of_the_memory(four):
    whole = ddpp.load_data(four, validation=0, zca=False, device="cpu")
    parts = [ddpp.load_data(four, only=only, validation=0, zca=False) for only in ([0, 1], [2, 3])]
    draw = lambda i, ipc, rate: ddpp.DistilledDataset.from_tensors(
        *parts[i].draw(ipc, 0), rate, parts[i]
    )
    found = union([draw(0, 1, 0.1), draw(1, 3, 0.2)], whole)
    assert float(found.alpha) == pytest.approx((2 * 0.1 + 6 * 0.2) / 8)
    assert found.labels.tolist() == [0, 1, 2, 2, 2, 3, 3, 3]


def test_a_class_that_is_too_small_is_noticed_before_the_first_task(four, tmp_path):
    arrays = dict(np.load(four))
    last = class_tasks(4, 2, 1)[1][1]
    few = np.flatnonzero(arrays["y_train"] == last)[1:]
    for name in ("x_train", "y_train"):
        arrays[name] = np.delete(arrays[name], few, axis=0)
    with refused(f"class '{last}' has 1 training images, fewer than the 2"):
        run(write_npz(tmp_path, name="few", **arrays), tmp_path / "memory", "random")
    assert not list((tmp_path / "memory").glob("task*"))


def test_numbers_of_numpy_are_as_good_as_pythons(four, tmp_path):
    found = run(four, tmp_path / "a", "random", tasks=np.int64(2), order=np.int64(1))
    assert found == run(four, tmp_path / "b", "random")
    rated = run(four, tmp_path / "c", "random", rate=np.float32(0.25))
    assert rated == run(four, tmp_path / "d", "random", rate=0.25)
    with refused("order is 1.5: it must be a whole number"):
        run(four, tmp_path / "e", "random", order=1.5)
