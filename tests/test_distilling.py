"""Algorithm 1: settings, teachers and checkpoints that do not fit are refused, a run is saved in
time, and it skips steps whose result is not finite.
"""

from types import SimpleNamespace

import pytest
import torch
from small import CONFIG, NAN, SHORT, TEACHERS, arrays, load, moving, refused, save, untouched

from ddpp.baselines import selection
from ddpp.distilling import MAX_SKIPPED, distill
from ddpp.evaluating import evaluate
from ddpp.foundation import files
from ddpp.teachers import train_teachers


@pytest.mark.parametrize(
    "call, words",
    [
        (
            lambda d, t: distill(d, t, {"steps": 1}),
            ["config is of the type dict", "give a ddpp.DistillConfig"],
        ),
        (
            lambda d, t: distill(d, "teachers", CONFIG),
            ["teachers is of the type str", "a ddpp.Teachers"],
        ),
        (
            lambda d, t: distill("cifar10", t, CONFIG),
            ["data is of the type str", "a ddpp.ImageData"],
        ),
        (
            lambda d, t: train_teachers(d, {"count": 1}),
            ["config is of the type dict", "ddpp.TeacherConfig"],
        ),
        (
            lambda d, t: train_teachers("cifar10", TEACHERS),
            ["data is of the type str", "a ddpp.ImageData"],
        ),
        (
            lambda d, t: evaluate(d, d),
            ["distilled is of the type ImageData", "a ddpp.DistilledDataset"],
        ),
        (
            lambda d, t: evaluate(selection.random(d, 1, {}), d, protocol={"epochs": 1}),
            ["protocol is of the type dict", "give a ddpp.Protocol"],
        ),
    ],
)
def test_an_argument_of_another_kind_is_named(data, teachers, call, words):
    with refused(*words):
        call(data, teachers)


@pytest.mark.parametrize(
    "setting, asked, near", [("rule", "signd", "signed"), ("engine", "adjoin", "adjoint")]
)
def test_an_unknown_rule_or_engine_is_answered_with_the_nearest(run, setting, asked, near):
    with refused(f"unknown {setting} '{asked}'", f"did you mean '{near}'", "the choices are"):
        run(**{setting: asked})


@pytest.mark.parametrize(
    "changes, words",
    [
        *[
            ({"epsilon": value}, ["epsilon", "at least 0 and below 1"])
            for value in (-0.1, 1.0, NAN)
        ],
        *[
            ({name: value}, [f"{name} is {value}", "at least 1"])
            for name in (
                "ipc",
                "steps",
                "student_steps",
                "expert_epochs",
                "max_start_epoch",
                "iterates",
                "batch",
            )
            for value in (0, -1)
        ],
        *[
            ({name: value}, [name, "positive"])
            for name in ("image_lr", "alpha0")
            for value in (0.0, -1.0, NAN)
        ],
        ({"ipc": 7}, ["class '0' has 6 training images", "7 images per class", "lower"]),
        (
            {"expert_epochs": 3},
            ["expert_epochs 3", "epoch 4", "stop at 3", "train them longer or lower either"],
        ),
        (
            {"max_start_epoch": 9},
            ["max_start_epoch 9", "epoch 10", "stop at 3", "train them longer or lower either"],
        ),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_step(run, tmp_path, changes, words):
    with refused(*words):
        run(checkpoint=tmp_path / "checkpoint", **changes)
    assert not any(tmp_path.iterdir())


def test_teachers_of_other_data_are_refused(tmp_path, run, teachers):
    for other in (
        load(save(tmp_path / "mine.npz"), zca=True),
        load(save(tmp_path / "3.npz", **arrays(classes=3))),
    ):
        with refused("trained on another data set or preprocessing", "train teachers on this one"):
            run(data=other)


def test_a_damaged_checkpoint_is_refused_and_left_as_it_is(run, tmp_path):
    path = tmp_path / "checkpoint"
    run(checkpoint=path)
    content = path.read_bytes()
    for damaged in (b"", content[:100], content[:-1], content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damaged)
        with untouched(path), refused("checkpoint is damaged", "move it away"):
            run(checkpoint=path)


def test_a_checkpoint_of_another_run_is_refused_and_left_as_it_is(run, tmp_path):
    path = tmp_path / "checkpoint"
    run(checkpoint=path)
    for changes in ({"seed": 1}, {"epsilon": 0.2}, {"ipc": 2}):
        with (
            untouched(path),
            refused("belongs to a run with other settings", "choose another output"),
        ):
            run(checkpoint=path, **changes)


@pytest.mark.parametrize(
    "saving, words",
    [
        ({"save_minutes": NAN}, "save_minutes is nan: it must be a finite number"),
        ({"save_minutes": -1.0}, "save_minutes is -1.0: it must be at least 0"),
        ({"save_steps": 0}, "save_steps is 0: it must be at least 1"),
    ],
)
def test_a_time_that_never_comes_is_refused(data, teachers, saving, words):
    with refused(words):
        distill(data, teachers, CONFIG, progress=False, **saving)


@pytest.mark.parametrize(
    "saving, saved",
    [
        ({}, [None, None, 2, 2]),  # every minute
        ({"save_minutes": 0.5}, [None, 1, 2, 3]),
        ({"save_minutes": 2}, [None] * 4),
        ({"save_minutes": 2, "save_steps": 3}, [None, None, None, 3]),
    ],
)
def test_a_run_is_saved_after_so_many_minutes_or_steps(
    data, teachers, tmp_path, monkeypatch, saving, saved
):
    path, seen, clock = tmp_path / "checkpoint", [], SimpleNamespace(now=0)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr("ddpp.foundation.loop.time", clock)

    def look(_):
        seen.append(files.read(path, "checkpoint")[1]["step"] if path.exists() else None)
        clock.now += 40  # seconds that a step takes

    distill(data, teachers, CONFIG, checkpoint=path, on_step=look, progress=False, **saving)
    assert seen == saved


def test_an_iterate_that_was_not_kept(distilled):
    with refused("step 3 was not kept", "the choices are 0, 2, 4"):
        distilled.at(3)


def test_an_earlier_iterate_is_the_set_of_a_run_stopped_there(data, teachers, distilled, tmp_path):
    at_2 = lambda run: run.state.step == 2
    stopped = distill(data, teachers, CONFIG, progress=False, on_step=at_2)
    early = distilled.at(2)
    assert torch.equal(early.images, stopped.images) and torch.equal(early.alpha, stopped.alpha)
    assert list(early.iterates) == list(stopped.iterates) == [0, 2]
    assert early.provenance == stopped.provenance and early.provenance["stopped_at"] == 2
    for name, column in stopped.history.items():
        assert torch.equal(early.history[name], column)
    # the state of step 4 is not that of step 2
    with refused("does not hold what its next step needs", "an earlier step"):
        early.save_checkpoint(tmp_path / "checkpoint", {})
    last = distilled.at(4)
    assert last.state.keys() == distilled.state.keys() != set()
    assert "stopped_at" not in last.provenance and len(last.history["loss"]) == 4


def test_a_run_in_which_everything_is_pruned_ends_with_advice(run, data):
    with refused(
        "every parameter was pruned", f"{MAX_SKIPPED + 1} steps in a row", "lower epsilon"
    ):
        run(
            teachers=moving(data, lambda start: -start),
            epsilon=0.999,
            rule="signed",
            steps=30,
            **SHORT,
        )


def test_a_run_whose_alpha_leaves_the_positive_numbers_ends_with_advice(run):
    with refused(f"{MAX_SKIPPED + 1} steps in a row", "lower", "alpha_lr"):
        run(alpha_lr=1e30, steps=30)


def test_a_run_whose_images_leave_the_numbers_ends_with_advice_and_keeps_its_steps(run, tmp_path):
    path, taken = tmp_path / "checkpoint", run(image_lr=1e30, steps=1)
    assert not taken.history["skipped"].any()
    with refused("the loss was not finite", f"{MAX_SKIPPED + 1} steps in a row", "lower image_lr"):
        run(image_lr=1e30, steps=30, checkpoint=path, save_steps=1)
    tensors, meta = files.read(path, "checkpoint")
    skipped = tensors["history.skipped"]
    assert meta["step"] >= MAX_SKIPPED
    assert skipped[0] == 0 and skipped[1 : meta["step"]].all()
    assert torch.equal(tensors["images"], taken.images)
    # the advice followed, the old steps still stay
    with untouched(path), refused("other settings"):
        run(image_lr=1.0, steps=30, checkpoint=path)


def test_a_run_whose_steps_were_all_skipped_is_no_result(run, data, tmp_path):
    path = tmp_path / "checkpoint"
    for _ in range(2):  # the second time from the checkpoint
        with refused(f"in {MAX_SKIPPED} steps in a row", "lower alpha_lr"):
            run(alpha_lr=1e30, steps=MAX_SKIPPED, checkpoint=path)
    tensors, _ = files.read(path, "checkpoint")
    assert tensors["history.skipped"].sum() == MAX_SKIPPED
    assert torch.equal(tensors["images"], data.draw(CONFIG.ipc, CONFIG.seed).images)
    assert tensors["alpha"] == torch.tensor(CONFIG.alpha0)


def test_a_teacher_that_stands_still_costs_its_own_steps_only(run, data):
    still, goes = lambda start: start, lambda start: 1.1 * start
    history = run(teachers=moving(data, still, goes), steps=30, **SHORT).history
    assert 0 < history["skipped"].sum() < 30
    assert torch.equal(history["skipped"], (history["teacher"] == 0).float())
