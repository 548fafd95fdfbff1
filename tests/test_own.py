"""What a researcher brings: data, a rule, a network, an augmentation, a look at each step."""

import functools
import importlib
import json
import shutil
import subprocess
import sys
import time
from dataclasses import asdict, replace

import pytest
import torch
from small import (
    CONFIG,
    NETWORK,
    TEACHERS,
    UNLIKE,
    load,
    refused,
    save,
    small_recipe,
    untouched,
)
from torch import nn
from torch.utils.data import TensorDataset

import ddpp
from ddpp import cli
from ddpp.baselines import selection
from ddpp.cli import showing
from ddpp.data.augmentation import OPERATIONS, draw
from ddpp.experiments import reproduce
from ddpp.experiments.lists import Run
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import recipe
from ddpp.experiments.reproducing import usual_jobs
from ddpp.experiments.results import read_row, read_set
from ddpp.experiments.run import Experiment
from ddpp.experiments.side_by_side import pack_runs
from ddpp.foundation import files
from ddpp.foundation.fingerprints import fingerprint
from ddpp.foundation.loop import Saving
from ddpp.foundation.seeds import generator
from ddpp.networks import ARCHITECTURES, accuracy
from ddpp.pruning import RULES
from ddpp.studies import remember


@pytest.fixture
def data(tmp_path):
    return load(save(tmp_path / "mine.npz"))


def closest(student, teacher, epsilon):
    return (student - teacher).abs() <= (student - teacher).abs().quantile(1 - epsilon)


def fade(images, u):
    return images * (1 - u[:, :1, None, None] / 2)


class Tiny(nn.Sequential):
    def __init__(self, channels, classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, classes))


def test_fifteen_lines_with_everything_of_ones_own():
    x, y = torch.rand(60, 1, 8, 8, generator=generator(0)), torch.arange(60) % 3
    x[range(60), 0, y] += 1  # each class has a row of its own
    images = TensorDataset(x.clamp(0, 1), y)
    steps = []

    def look(run):
        steps.append((run.state.step, float(run.history["loss"][run.state.step - 1])))
        return run.state.step == 3

    mine = ddpp.from_datasets(images, images, device="cpu")
    network, augment = ddpp.NetworkConfig(Tiny), ("crop", fade)
    config = ddpp.TeacherConfig(count=2, epochs=3, lr=0.05, network=network, augment=augment)
    teachers = ddpp.train_teachers(mine, config, progress=False)
    config = replace(CONFIG, rule=closest, augment=augment, steps=9, engine="auto")
    distilled = ddpp.distill(mine, teachers, config, on_step=look, progress=False)
    protocol = ddpp.Protocol(epochs=20, augment=augment)
    result = ddpp.evaluate(distilled, mine, Tiny, protocol=protocol, progress=False)

    assert [step for step, _ in steps] == [1, 2, 3]
    assert (len(distilled.history["loss"]), max(distilled.iterates)) == (3, 3)
    assert distilled.provenance["stopped_at"] == 3
    assert distilled.network["name"] == "Tiny"
    assert distilled.provenance["config"]["rule"] == "closest"
    assert {"rule closest", "augmentation fade", "network Tiny"} <= {
        *distilled.provenance["custom"],
        *distilled.provenance["teachers"]["custom"],
    }
    assert result.mean > 100 / 3


# names


def test_a_function_in_a_config_has_its_own_name_and_built_in_ones_keep_theirs():
    assert ddpp.DistillConfig(rule=closest).rule == "closest"
    assert ddpp.DistillConfig(rule=ddpp.custom(closest)) == ddpp.DistillConfig(rule="closest")
    assert ddpp.NetworkConfig(ddpp.ConvNet).name == "convnet"
    assert ddpp.NetworkConfig(Tiny).name == "Tiny"


def test_another_function_of_the_same_name_does_not_change_what_a_config_means():
    def make(share):
        def rule(student, teacher, epsilon):
            return student.abs() < share

        return rule

    one, two, again = (ddpp.DistillConfig(rule=make(share)).rule for share in (1, 2, 1))
    assert (one, two, again) == ("rule", "rule-2", "rule")
    vectors = torch.tensor([1.5]), torch.tensor([1.5])
    assert [ddpp.keep_mask(*vectors, 0.1, name).item() for name in (one, two)] == [False, True]


def test_what_has_no_name_or_cannot_be_recognized_is_refused():
    with refused("the rule '<lambda>' has no name", "write it with def"):
        ddpp.DistillConfig(rule=lambda student, teacher, epsilon: student > 0)
    drawn = torch.Generator()

    def random(student, teacher, epsilon):
        return torch.rand(len(student), generator=drawn) < 0.5

    with refused("rule random", "ddpp.custom(..., version=1)"):
        ddpp.DistillConfig(rule=random)
    assert ddpp.DistillConfig(rule=ddpp.custom(random, version=1)).rule == "random-2"
    with refused("the rule is 3", "give a name, a function or a class"):
        ddpp.DistillConfig(rule=3)


@pytest.mark.parametrize(
    "rule, what",
    [
        (lambda s, t, e: s, "torch.float32 (3,)"),
        (lambda s, t, e: s[:2] > 0, "torch.bool (2,)"),
        (lambda s, t, e: None, "None"),
        (lambda s, t, e: [True] * 3, "a list of length 3"),
    ],
)
def test_a_rule_that_returns_no_mask_is_refused(rule, what):
    with refused(f"the rule returns {what}", "one bool per parameter, 3 here"):
        ddpp.keep_mask(torch.ones(3), torch.ones(3), 0.1, rule)


def test_a_rule_that_draws_anew_each_time_or_fails_is_refused(data):
    def random(student, teacher, epsilon):
        return torch.rand(len(student)) < 0.5

    def broken(student, teacher, epsilon):
        return student[teacher] > 0

    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    with refused("the rule gives the same student and teacher another mask each time"):
        ddpp.distill(data, teachers, replace(CONFIG, rule=random), progress=False)
    size = teachers.network.size
    with refused(f"the rule fails on vectors of {size} parameters at epsilon 0.1: IndexError"):
        ddpp.distill(data, teachers, replace(CONFIG, rule=broken), progress=False)


@pytest.mark.parametrize("engine", ["autograd", "stored", "adjoint"])
def test_a_rule_that_works_in_place_changes_no_teacher(data, engine):
    def plain(student, teacher, epsilon):
        return student.abs() > epsilon * teacher.abs()

    def in_place(student, teacher, epsilon):
        return student.abs_() > epsilon * teacher.abs_()

    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    before = [teachers.snapshot(k, e).clone() for k in range(2) for e in range(4)]
    make = lambda rule: ddpp.distill(
        data, teachers, replace(CONFIG, rule=rule, engine=engine), progress=False
    )
    same(make(in_place), make(plain))
    after = [teachers.snapshot(k, e) for k in range(2) for e in range(4)]
    assert all(torch.equal(*pair) for pair in zip(before, after, strict=True))


def test_a_rule_that_was_written_anew_is_resumed_in_the_next_session(data, tmp_path):
    def make(share):
        def mine(student, teacher, epsilon):
            return student.abs() > share * teacher.abs()

        return mine

    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    go = lambda rule, steps: ddpp.distill(
        data,
        teachers,
        replace(CONFIG, rule=rule, steps=steps),
        checkpoint=tmp_path / "checkpoint",
        progress=False,
    )
    config = [ddpp.DistillConfig(rule=make(share)) for share in (0.1, 0.2)]
    assert [c.rule for c in config] == ["mine", "mine-2"]
    first = go("mine-2", 2)
    assert first.provenance["config"]["rule"] == "mine"
    assert first.provenance["custom"].keys() == {"rule mine"}
    with refused("the rule mine has changed"):
        go("mine", 4)
    for name in ("mine", "mine-2"):  # as in a new session
        del RULES[name]
    assert ddpp.DistillConfig(rule=make(0.2)).rule == "mine"
    assert go("mine", 4).provenance["config"]["steps"] == 4


def test_two_operations_of_one_name_stay_apart_in_files(data):
    weak, strong = functools.partial(dim, by=0.1), functools.partial(dim, by=0.9)
    config = replace(TEACHERS, augment=(weak, strong))
    assert config.identity(data)["augment"] == ["dim", "dim-2"]
    assert config.identity(data)["custom"].keys() == {"augmentation dim", "augmentation dim-2"}
    config = replace(TEACHERS, augment=("crop", strong))
    assert config.identity(data)["augment"] == ["crop", "dim"]


def dim(images, u, by):
    return images * (1 - by)


def test_subclasses_do_not_inherit_a_version():
    class Base(Tiny):
        pass

    class Other(Base):
        extra = 1

    class Another(Base):
        extra = 2

    assert fingerprint(ddpp.custom(Base, version=1)) == "version 1"
    assert len({fingerprint(one) for one in (Base, Other, Another)}) == 3


def test_a_rule_of_a_module_on_the_command_line(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def every_other(student, teacher, epsilon):\n"
        "    return student.new_ones(len(student)).cumsum(0) % 2 == 0\n"
    )
    npz, out = save(tmp_path / "data.npz"), tmp_path / "set.safetensors"
    words = f"distill --data {npz} --out {out} --rule mine:every_other --steps 2 --iterates 1"
    words += " --teachers.count 1 --teachers.network.width 2 --teachers.network.depth 1"
    words += " --protocol.epochs 1 --repeats 1 --device cpu --alpha-lr 0"
    words += " --image-lr 0.01 --augment color cutout"
    done = subprocess.run(
        [sys.executable, "-m", "ddpp", *words.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    distilled = ddpp.DistilledDataset.load(out)
    assert distilled.provenance["config"]["rule"] == "mine:every_other"
    assert distilled.provenance["config"]["augment"] == ["color", "cutout"]
    assert distilled.provenance["custom"].keys() == {"rule mine:every_other"}
    assert distilled.history["kept"].tolist() == pytest.approx([0.5, 0.5], abs=0.02)
    assert json.loads(out.with_suffix(".json").read_text())["recipe"]["distill"]["rule"]


def test_the_present_folder_is_looked_into_only_where_a_module_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "data:1").touch()
    for words in (["--version"], ["show", "data:1"], ["show", "https://a.b"]):
        cli.main(words)
        assert str(tmp_path) not in sys.path
    for words in (["--rule", "mine:rule"], ["--rule=mine:rule@0.3"], ["--queue", "mine.toml"]):
        with pytest.raises(SystemExit):
            cli.main(["reproduce" if "--queue" in words else "compare", *words, "--help"])
        assert sys.path.pop() == str(tmp_path)


@pytest.mark.parametrize("where", ["nowhere:rule", "math:nothing", "small:"])
def test_a_rule_that_cannot_be_imported_is_refused(where, capsys):
    assert cli.main(["distill", "--out", "set.safetensors", "--rule", where]) == 1
    said = capsys.readouterr().err
    assert f"the rule {where} cannot be imported" in said and "package.module:name" in said


# augmentation


def test_digits_are_not_mirrored(data):
    digits = ("color", "crop", "cutout", "scale", "rotate")
    rng = generator(0, "digits")
    drawn = {draw(2, rng, digits).operation for _ in range(100)}
    assert drawn == set(digits)
    config = replace(TEACHERS, augment=digits)
    assert config.identity(data)["augment"] == list(digits)


def test_all_operations_are_the_default_and_files_know_them_as_before(data):
    assert ddpp.TeacherConfig(augment=tuple(OPERATIONS)) == ddpp.TeacherConfig()
    assert ddpp.TeacherConfig(augment=()).augment is False
    assert TEACHERS.identity(data)["augment"] is True
    made = ddpp.train_teachers(data, TEACHERS, progress=False)
    distilled = ddpp.distill(data, made, CONFIG, progress=False)
    assert "augment" not in distilled.provenance["config"]
    one = ddpp.distill(data, made, replace(CONFIG, augment=("crop",)), progress=False)
    assert one.provenance["config"]["augment"] == ["crop"]
    assert not torch.equal(one.images, distilled.images)


def test_an_operation_of_ones_own_does_not_change_what_all_operations_are(data, tmp_path):
    first = ddpp.train_teachers(data, TEACHERS, tmp_path, progress=False)
    names = {draw(2, generator(n), True).operation for n in range(100)}
    ddpp.TeacherConfig(augment=("crop", fade))
    assert {draw(2, generator(n), True).operation for n in range(100)} == names
    again = ddpp.train_teachers(data, replace(TEACHERS, count=3), tmp_path, progress=False)
    alone = ddpp.train_teachers(data, replace(TEACHERS, count=3), progress=False)
    assert torch.equal(again.snapshot(0, 3), first.snapshot(0, 3))
    assert torch.equal(again.snapshot(2, 3), alone.snapshot(2, 3))


def noisy(images, u):
    return images + torch.rand_like(images)


def detached(images, u):
    return images.detach() * 2


def in_place(images, u):
    return images.mul_(2)


def rounded(images, u):
    return (images * 16).round() / 16


def cut_off(images, u):
    return torch.cat([images[:2], images[2:].detach()])


def blank(images, u):
    return images * (u[:, :1, None, None] > 0.5)


def smaller(images, u):
    return images[..., 1:]


def wrong(images, u):
    return images * u[:, 7]


@pytest.mark.parametrize(
    "operation, words",
    [
        (noisy, "gives the same images another result each time"),
        (detached, "is not differentiable"),
        (rounded, "has no gradient for some of the images"),
        (cut_off, "has no gradient for some of the images"),
        (in_place, "changes the images or numbers that it is given"),
        (smaller, "returns torch.float32 (4, 3, 8, 7): it must return images of the same shape"),
        (wrong, "cannot take images of 4 x 3 x 8 x 8 and numbers of 4 x 3: IndexError"),
    ],
)
@pytest.mark.parametrize("where", ["teachers", "distillation", "evaluation"])
def test_an_operation_that_is_no_function_of_images_and_numbers_is_refused(
    data, teachers, operation, words, where
):
    own, quiet = {"augment": ("crop", operation)}, {"progress": False}
    real = selection.random(data, 1, asdict(NETWORK), 0)
    begin = {
        "teachers": lambda: ddpp.train_teachers(data, replace(TEACHERS, **own), **quiet),
        "distillation": lambda: ddpp.distill(data, teachers, replace(CONFIG, **own), **quiet),
        "evaluation": lambda: ddpp.evaluate(
            real, data, protocol=ddpp.Protocol(epochs=1, **own), **quiet
        ),
    }
    before = torch.get_rng_state()
    with refused(f"the augmentation {operation.__name__} {words}"):
        begin[where]()
    assert torch.equal(torch.get_rng_state(), before)


def test_an_operation_may_blank_images_for_some_numbers(data):
    config = replace(TEACHERS, augment=("cutout", blank))
    assert len(ddpp.train_teachers(data, config, progress=False)) == 2


def test_an_unknown_operation_is_refused():
    with refused("unknown augmentation 'flop'", "did you mean 'flip'?"):
        ddpp.Protocol(augment=("crop", "flop"))


# a run that is looked at, stopped and extended


@pytest.fixture
def teachers(data):
    return ddpp.train_teachers(data, TEACHERS, progress=False)


def same(one, two):
    assert torch.equal(one.images, two.images) and torch.equal(one.alpha, two.alpha)
    for name, column in one.history.items():
        assert torch.equal(column, two.history[name]), name


def test_a_run_stopped_by_on_step_goes_on_to_the_same_bits(data, teachers, tmp_path):
    path, lines = tmp_path / "checkpoint", []
    call = lambda **options: ddpp.distill(data, teachers, CONFIG, progress=False, **options)
    stop = lambda run: run.state.step == 3
    stopped = call(checkpoint=path, on_step=stop, report=lines.append)
    assert lines[-1] == "stopped by on_step after step 3"
    assert list(stopped.iterates) == [0, 2, 3] and len(stopped.history["loss"]) == 3
    whole, resumed = call(), call(checkpoint=path)
    same(resumed, whole)
    assert list(resumed.iterates) == [0, 2, 4] and "stopped_at" not in resumed.provenance


def test_on_step_may_change_what_it_is_given(data, teachers):
    def plot(run):
        pixels = run.state.images.cpu().numpy()  # on a CPU no copy
        pixels -= pixels.min()
        for images, alpha in run.iterates.values():
            images.zero_(), alpha.zero_()
        for column in [*run.history.values(), run.state.alpha]:
            column.zero_()

    one, two = (
        ddpp.distill(data, teachers, CONFIG, progress=False, **by) for by in ({}, {"on_step": plot})
    )
    same(one, two)
    for step, (images, alpha) in one.iterates.items():
        assert torch.equal(images, two.iterates[step][0])
        assert torch.equal(alpha, two.iterates[step][1])


def test_on_step_that_fails_loses_nothing(data, teachers, tmp_path):
    def fails(run):
        if run.state.step == 3:
            raise KeyError("no such tag")

    path = tmp_path / "checkpoint"
    with pytest.raises(KeyError):
        ddpp.distill(data, teachers, CONFIG, progress=False, checkpoint=path, on_step=fails)
    assert files.read(path, "checkpoint")[1]["step"] == 3


def test_a_checkpoint_is_a_set_as_it_stands(data, teachers, tmp_path):
    path, seen = tmp_path / "checkpoint", []

    def look(run):
        if run.state.step == 2:
            seen.append(ddpp.DistilledDataset.load(path))

    ddpp.distill(
        data, teachers, CONFIG, progress=False, checkpoint=path, save_steps=1, on_step=look
    )
    (early,) = seen  # saved after step 1
    assert early.provenance["stopped_at"] == 1 and list(early.iterates) == [0, 1]
    assert early.classes == data.classes and early.whitening.equals(data.whitening)
    at_end = ddpp.DistilledDataset.load(path)
    same(at_end, ddpp.distill(data, teachers, CONFIG, progress=False))
    early.save(tmp_path / "early.safetensors")
    same(ddpp.DistilledDataset.load(tmp_path / "early.safetensors"), early)


def test_more_steps_continue_a_finished_run(data, teachers, tmp_path):
    path = tmp_path / "checkpoint"
    call = lambda steps, **options: ddpp.distill(
        data, teachers, replace(CONFIG, steps=steps), progress=False, **options
    )
    call(4, checkpoint=path)
    lines = []
    longer = call(7, checkpoint=path, report=lines.append)
    assert any("resuming from step 4 of 7" in line for line in lines)
    same(longer, call(7))
    assert longer.provenance["config"]["steps"] == 7
    assert list(longer.iterates) == [0, 2, 4, 7]
    with refused("is at step 7, beyond the 5 steps asked for"):
        call(5, checkpoint=path)


def small(npz, steps):
    base = recipe("smoke", str(npz))
    distill = replace(CONFIG, steps=steps)
    return replace(
        base, teachers=TEACHERS, distill=distill, protocol=ddpp.Protocol(epochs=1), repeats=1
    )


def test_a_run_that_its_callback_stopped_keeps_its_seconds(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"

    def make(on_step):
        saving = Saving(progress=False, on_step=on_step)
        return Experiment(small(npz, 3), out, saving=saving, device="cpu").run()[1]

    assert make(lambda run: time.sleep(1.2) or True) == {}
    assert make(lambda run: False)["seconds"]["distill"] >= 1.2
    assert not out.with_name(f"{out.name}.seconds").exists()


def test_more_steps_continue_a_finished_file_and_keep_the_shorter_one(tmp_path, monkeypatch):
    npz, out, lines = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors", []
    saving = Saving(progress=False, report=lines.append)
    make = lambda steps, out=out: Experiment(small(npz, steps), out, saving=saving, device="cpu")
    make(4).run()
    shorter = out.read_bytes()
    longer, report = make(7).run()
    aside = tmp_path / "set-4-steps.safetensors"
    assert aside.read_bytes() == shorter and aside.with_suffix(".json").exists()
    assert any("the set of 4 steps is in" in line for line in lines)
    assert report["recipe"]["distill"]["steps"] == 7
    whole, _ = make(7, tmp_path / "whole.safetensors").run()
    same(longer, whole)
    before = out.read_bytes()
    make(7).run()
    assert out.read_bytes() == before
    with refused("holds the result of another run", "config.steps was 7 and is 3"):
        make(3).run()


@pytest.mark.parametrize(
    "method",
    [
        name
        for name, method in METHODS.items()
        if hasattr(method.config, "steps") and getattr(method.config, "lasting", True)
    ],
)
def test_every_lasting_method_can_be_given_more_steps(tmp_path, method):
    npz, saving = save(tmp_path / "mine.npz"), Saving(progress=False)
    quick = {"batch_real": 4, "inner": 1, "outer": 2, "student_steps": 2, "unroll": 4, "window": 2}
    quick |= {"epochs": 3}

    def make(steps, out):
        config = METHODS[method].config
        settings = {k: v for k, v in quick.items() if k in config.__dataclass_fields__}
        base = small_recipe(npz, method, 1, 1, steps=steps, iterates=1, **settings)
        return Experiment(base, tmp_path / out, saving=saving, device="cpu").run()[0]

    make(2, "set.safetensors")
    longer, whole = make(4, "set.safetensors"), make(4, "whole.safetensors")
    assert torch.equal(longer.images, whole.images)
    assert longer.provenance["method"] == method


def test_a_repeated_run_reads_its_report_whatever_operations_it_was_tested_with(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"

    def make(augment):
        base = small_recipe(npz, "mtt", ipc=1, repeats=1)
        base = replace(base, protocol=replace(base.protocol, augment=augment))
        return Experiment(base, out, saving=Saving(progress=False), device="cpu").run()[1][
            "distilled"
        ]

    first = make(("crop", "cutout"))
    assert make(("crop", "cutout")) == first
    with refused("has another evaluation (protocol.augment was", "move it away"):
        make(("crop", fade))
    out.with_suffix(".json").unlink()
    first = make(("crop", fade))
    assert make(("crop", fade)) == first
    OPERATIONS["fade"] = lambda images, u: images * u[:, 1:2, None, None]
    with refused("has another evaluation (the augmentation fade has changed)"):
        make(("crop", "fade"))


def test_an_extension_that_is_killed_between_its_moves_goes_on(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"
    saving = Saving(progress=False)
    make = lambda steps: Experiment(small(npz, steps), out, saving=saving, device="cpu")
    make(4).run()
    shorter, report = ddpp.DistilledDataset.load(out), out.with_suffix(".json")
    shorter.save_checkpoint(tmp_path / "set.safetensors.checkpoint", make(7).identity)
    report.rename(tmp_path / "set-4-steps.json")
    longer, _ = make(7).run()
    assert longer.provenance["config"]["steps"] == 7
    assert (tmp_path / "set-4-steps.safetensors").exists()


def test_a_set_that_no_run_left_cannot_be_continued(data, tmp_path):
    real = ddpp.DistilledDataset(
        *data.draw(1, 0), torch.tensor(0.01), data.whitening, data.classes, NETWORK
    )
    with refused("does not hold what its next step needs"):
        real.save_checkpoint(tmp_path / "checkpoint", {})


# what a set can hope for


def test_the_report_says_how_good_the_matched_teachers_are(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"
    recipe = small(npz, 2)
    run = Experiment(recipe, out, saving=Saving(progress=False), device="cpu")
    _, report = run.run()
    last = CONFIG.max_start_epoch - 1 + CONFIG.expert_epochs
    teachers = run.teachers()
    right = [
        accuracy(teachers.network, teachers.snapshot(k, last), *run.data.test) for k in range(2)
    ]
    assert report["teachers"] == {"epoch": last, "accuracies": right}
    assert json.loads(out.with_suffix(".json").read_text())["teachers"] == report["teachers"]


def test_other_teachers_that_came_into_the_folder_are_not_taken_for_the_matched_ones(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"
    run = Experiment(small(npz, 2), out, saving=Saving(progress=False), device="cpu")
    made = run.distilled()
    shutil.rmtree(run.folder)
    ddpp.train_teachers(run.data, replace(TEACHERS, seed=9), run.folder, progress=False)
    assert "teachers" not in run.report(made)


def test_without_teachers_the_report_says_nothing_of_them(tmp_path):
    base = recipe("smoke", str(save(tmp_path / "mine.npz")), method="random")
    base = replace(base, teachers=TEACHERS, protocol=ddpp.Protocol(epochs=1), repeats=1)
    out = tmp_path / "set.safetensors"
    _, report = Experiment(base, out, saving=Saving(progress=False), device="cpu").run()
    assert "teachers" not in report


@pytest.mark.parametrize(
    "loss, mine, saturated", [(0.2, 50.0, True), (0.2, 40.0, False), (0.9, 50.0, False)]
)
def test_a_set_as_good_as_its_teachers_is_told_to_find_better_ones(
    data, teachers, loss, mine, saturated
):
    made = ddpp.distill(data, teachers, CONFIG, progress=False)
    made = replace(made, history={"unmasked": torch.full((4,), loss)})
    lines = list(showing.ceiling(made, mine, {"epoch": 3, "accuracies": [50.0, 52.0]}))
    assert lines[0] == "the teachers that it matches: 51.0 ± 1.4 %, at epoch 3"
    assert ("--max-start-epoch" in lines[-1]) == saturated


@UNLIKE
@pytest.mark.parametrize("where", ["teachers", "protocol"])
def test_a_result_knows_the_operations_of_teachers_and_of_the_evaluation(tmp_path, where):
    base = small_recipe(save(tmp_path / "mine.npz"), "mtt", ipc=1, repeats=1, augment=("crop",))
    base = replace(base, **{where: replace(getattr(base, where), augment=("crop", fade))})
    how = {"results": tmp_path / "r", "work": tmp_path / "w", "device": "cpu"}
    how |= {"progress": False, "say": lambda line: None}
    rows = reproduce([Run("mine/one", base)], **how)
    assert reproduce([Run("mine/one", base)], **how) == rows
    OPERATIONS["fade"] = lambda images, u: images * u[:, 1:2, None, None]
    with refused("is the result of other settings (the augmentation fade has changed)"):
        reproduce([Run("mine/one", base)], **how)


# several processes

MODULE = """
import torch
from torch import nn
from ddpp.experiments.methods import METHODS, Method

def half(student, teacher, epsilon):
    return student.new_ones(len(student)).cumsum(0) % 2 == 0

third = (lambda share: lambda student, teacher, epsilon: student.abs() < share)(1 / 3)

def fade(images, u):
    return images * (1 - u[:, :1, None, None] / 2)

class Net(nn.Sequential):
    def __init__(self, channels, classes, image_size):
        super().__init__(nn.Flatten(), nn.Linear(channels * image_size**2, classes))

def chosen(data, network, config, saving):
    return METHODS["random"].run(data, network, config, saving)

def check(config):
    pass

method = Method("nothing", METHODS["random"].config, chosen, check)
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of a user's own, which other processes find, too."""
    (tmp_path / "own_things.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("own_things")
    del sys.modules["own_things"]


def places(tmp_path):
    how = {"results": tmp_path / "r", "work": tmp_path / "w", "device": "cpu"}
    return how | {"progress": False, "say": lambda line: None}


def of_rule(tmp_path, rule):
    base = small_recipe(save(tmp_path / "mine.npz"), "ddpp", ipc=1, repeats=1)
    return Run(f"own/{rule}", replace(base, distill=replace(base.distill, rule=rule)))


@UNLIKE
@pytest.mark.slow
def test_what_is_of_ones_own_works_with_several_jobs(tmp_path, module, monkeypatch):
    monkeypatch.setitem(METHODS, "own", module.method)
    RULES["unused"] = lambda student, teacher, epsilon: student > 0  # no run needs it
    named, given = (of_rule(tmp_path, rule) for rule in ("own_things:third", module.half))
    base, fade = named.recipe, ddpp.custom(module.fade, version=3)
    network = replace(base.teachers, network=ddpp.NetworkConfig(module.Net))
    distill = replace(base.distill, rule="signed", augment=(fade,))
    marked = Run("own/marked", replace(base, distill=distill, teachers=network))
    base = small_recipe(named.recipe.data, "random", ipc=1, repeats=1)
    todo = [named, given, marked, Run("own/method", replace(base, method="own"))]
    rows = reproduce(todo, jobs=2, **places(tmp_path))
    assert [row["name"] for row in rows] == [run.name for run in todo]
    names = {name for row in rows for name in row["custom"]}
    assert {"rule own_things:third", "rule half", "network Net", "method own"} < names
    assert rows[2]["custom"]["augmentation fade"] == "version 3"
    alone = reproduce(todo, **places(tmp_path / "alone"))
    assert [row["distilled"] for row in alone] == [row["distilled"] for row in rows]


def test_what_another_process_cannot_import_needs_a_single_job(tmp_path, monkeypatch, module):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    RULES["half"] = module.half
    assert usual_jobs("cpu") == 2

    def local(student, teacher, epsilon):
        return student > 0

    run = of_rule(tmp_path, local)
    assert usual_jobs("cpu") == 1
    with refused("cannot import what these runs use (rule local)", "--jobs 1", "a module"):
        reproduce([run], jobs=2, **places(tmp_path))
    assert len(reproduce([run], **places(tmp_path))) == 1


@pytest.mark.slow
def test_what_a_notebook_defines_needs_a_single_job(tmp_path, monkeypatch, module):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(module.half, "__module__", "__main__")
    monkeypatch.setattr(sys.modules["__main__"], "half", module.half, raising=False)
    run = of_rule(tmp_path, module.half)
    assert usual_jobs("cpu") == 1
    with refused("cannot import what these runs use (rule half)", "--jobs 1"):
        reproduce([run], jobs=2, **places(tmp_path))
    assert len(reproduce([run], **places(tmp_path))) == 1


def test_a_module_that_has_changed_meanwhile_is_not_taken_for_what_it_was(tmp_path, module):
    run = of_rule(tmp_path, module.half)
    packed = pack_runs((run,))
    assert packed.unpack() == (run,)
    assert RULES["half"] is module.half
    module.half = module.third
    assert packed.unpack() is None


def test_settings_with_code_of_their_own_go_to_another_process(tmp_path, module, monkeypatch):
    class Mine(ddpp.Protocol):
        pass

    for name, value in (("__module__", module.__name__), ("__qualname__", "Mine")):
        setattr(Mine, name, value)
    monkeypatch.setattr(module, "Mine", Mine, raising=False)
    run = of_rule(tmp_path, module.half)
    run = replace(run, recipe=replace(run.recipe, protocol=Mine(epochs=1)))
    packed = pack_runs((run,))
    assert "settings Mine" in packed.used
    assert packed.unpack() == (run,)


def test_a_run_that_is_stopped_on_its_way_has_no_result_and_resumes(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"
    lines: list[str] = []
    base = small_recipe(npz, "mtt", ipc=1, repeats=1, steps=4)

    def make(out, **how):
        saving = Saving(progress=False, report=lines.append, **how)
        return Experiment(base, out, saving=saving, device="cpu").run()

    stopped, report = make(out, on_step=lambda run: run.state.step == 2)
    assert stopped.provenance["stopped_at"] == 2 and report == {}
    assert not out.exists() and lines[-1] == "to resume, run the same command again"
    resumed, report = make(out)
    assert report["distilled"] and torch.equal(
        resumed.images, make(tmp_path / "whole.safetensors")[0].images
    )


def test_reading_a_finished_set_leaves_the_checkpoint_of_a_longer_run(tmp_path):
    npz, out = save(tmp_path / "mine.npz"), tmp_path / "set.safetensors"

    def make(steps, **how):
        base = small_recipe(npz, "mtt", ipc=1, repeats=1, steps=steps)
        saving = Saving(progress=False, **how)
        return Experiment(base, out, saving=saving, device="cpu").run()

    make(2)
    make(6, on_step=lambda run: run.state.step == 5)
    longer = out.with_name("set.safetensors.checkpoint")
    for end in (".safetensors", ".json"):
        tmp_path.joinpath(f"set-2-steps{end}").rename(out.with_suffix(end))
    with untouched(longer, out):
        make(2)


def test_an_iterate_is_chosen_among_those_of_a_run_of_all_steps(tmp_path):
    npz, lines = save(tmp_path / "mine.npz"), []

    def make(steps, out):
        base = small_recipe(npz, "mtt", ipc=1, repeats=1, steps=steps, iterates=3)
        base = replace(base, validation=0.3)
        saving = Saving(progress=False, report=lines.append)
        return Experiment(base, tmp_path / out, saving=saving, device="cpu").run()

    make(3, "set.safetensors")
    longer, report = make(6, "set.safetensors")
    assert list(longer.iterates) == [0, 1, 2, 3, 4, 6]
    _, whole = make(6, "whole.safetensors")
    assert [*report["distilled"]["validation"]] == [*whole["distilled"]["validation"]] == [2, 4, 6]
    assert report["distilled"] == whole["distilled"]
    _, other = make(7, "set.safetensors")  # 5 was not kept
    assert other["distilled"]["selected"] is None
    assert any("no iterate is chosen" in line for line in lines)


def test_a_rule_that_fails_at_the_epsilon_of_the_run_is_refused_before_its_teachers(data):
    def farthest(student, teacher, epsilon):
        distance = (student - teacher).abs()
        return distance <= distance.kthvalue(int(epsilon * len(distance))).values

    config = replace(CONFIG, rule=farthest, epsilon=0.0)
    with refused("the rule fails on vectors of", "at epsilon 0.0: ", "kthvalue"):
        METHODS["ddpp"].fits(data, TEACHERS.network, config)


def a_net(factor):
    """A class called Net, another one for each factor, as a cell that is edited defines it."""

    class Net(torch.nn.Module):
        def __init__(self, channels, classes, image_size):
            super().__init__()
            self.last = torch.nn.Linear(channels * image_size**2, classes)

        def forward(self, x):
            return self.last(factor * x.flatten(1))

    return Net


def test_a_network_that_was_written_anew_is_known_in_the_next_session(data, tmp_path):
    checkpoint, path = tmp_path / "a.checkpoint", tmp_path / "a.safetensors"
    ddpp.NetworkConfig(a_net(1))
    second = ddpp.NetworkConfig(a_net(2))
    assert second.name == "Net-2"
    teachers = ddpp.train_teachers(data, replace(TEACHERS, network=second), progress=False)
    made = ddpp.distill(data, teachers, CONFIG, checkpoint=checkpoint, progress=False)
    assert made.network["name"] == "Net-2"
    made.save(path)
    tested = lambda one: (
        ddpp.evaluate(one, data, repeats=1, protocol=ddpp.Protocol(epochs=2), progress=False).final
    )
    expected = tested(made)
    for file in (path, checkpoint):  # in this session its name is still the second
        assert ddpp.DistilledDataset.load(file).network["name"] == "Net-2"
    for one in (
        ddpp.DistilledDataset.from_tensors(*data.draw(1, 0), 0.01, data, network=second),
        selection.random(data, 1, asdict(second)),
    ):  # which do not say what their network does
        one.save(tmp_path / "real.safetensors")
        again = ddpp.DistilledDataset.load(tmp_path / "real.safetensors")
        assert again.network["name"] == "Net-2"
    for name in ("Net", "Net-2"):  # the next session, in which it is the only one
        del ARCHITECTURES[name]
    for file in (path, checkpoint):
        with refused("unknown network 'Net'"):
            tested(ddpp.DistilledDataset.load(file))
    ddpp.NetworkConfig(a_net(2))
    for file in (path, checkpoint):
        found = ddpp.DistilledDataset.load(file)
        assert found.network["name"] == "Net" and tested(found) == expected
    ARCHITECTURES.pop("Net")
    ddpp.NetworkConfig(a_net(3))
    with refused("the network Net is not the one that the set was made with"):
        tested(ddpp.DistilledDataset.load(path))


def test_results_know_a_network_that_was_written_anew(npz, tmp_path):
    path, given = npz(classes=4), places(tmp_path)

    def with_net(factor):
        base = small_recipe(path, "ddpp", ipc=2, repeats=1)
        network = ddpp.NetworkConfig(a_net(factor))
        return replace(base, teachers=replace(base.teachers, network=network))

    first, second = with_net(1), with_net(2)
    assert second.teachers.network.name == "Net-2"
    (row,) = reproduce([Run("own/net", second)], **given)
    memory = lambda asked: remember(
        asked, tmp_path / "memory", tasks=2, device="cpu", saving=Saving(progress=False)
    )
    tasks = memory(second)
    with refused("holds the memory of another run"):
        memory(first)
    data = ddpp.load_data(path, validation=second.validation, zca=second.zca, device="cpu")
    report = Run("own/net", second).report_path(given["results"])
    tested = lambda: (
        ddpp.evaluate(
            read_set(report, read_row(report), data),
            data,
            repeats=1,
            protocol=second.protocol,
            seed=second.distill.seed,
            progress=False,
        ).final
    )
    assert tested() == row["distilled"]["final"]
    found = [report, tmp_path / "memory" / "memory.json"]
    with untouched(*found):  # both are known again, here and in the next session
        (known,) = reproduce([Run("own/net", second)], **given)
        assert known["recipe"]["teachers"]["network"]["name"] == "Net-2"  # its name in this session
        assert known | {"recipe": None} == read_row(report) | {"recipe": None}
        assert memory(second) == tasks
        for name in ("Net", "Net-2"):
            del ARCHITECTURES[name]
        again = with_net(2)
        assert again.teachers.network.name == "Net"
        assert reproduce([Run("own/net", again)], **given) == [read_row(report)]
        assert memory(again) == tasks and tested() == row["distilled"]["final"]
    assert all("Net-2" not in path.read_text() for path in found)


KEPT = {}


def kept(images, u):
    KEPT.setdefault(len(images), len(KEPT))
    return images


class Kept(ddpp.ConvNet):
    def forward(self, x):
        KEPT.setdefault(len(x), len(KEPT))
        return super().forward(x)


class KeptWhenMade(ddpp.ConvNet):
    def __init__(self, **sizes):
        super().__init__(**sizes)
        KEPT.setdefault(sizes["width"], len(KEPT))


def test_operations_and_networks_that_change_what_they_read_are_refused(data):
    for config, what in (
        (replace(TEACHERS, augment=("crop", kept)), "augmentation kept"),
        (replace(TEACHERS, network=ddpp.NetworkConfig(Kept, width=4, depth=1)), "network Kept"),
        (
            replace(TEACHERS, network=ddpp.NetworkConfig(KeptWhenMade, width=4, depth=1)),
            "network KeptWhenMade",
        ),
    ):
        KEPT.clear()
        with refused(f"the {what} changes a value that it reads", "ddpp.custom"):
            ddpp.train_teachers(data, config, progress=False)


STRENGTH = [1.0]


def raised(images, u):
    return images * STRENGTH[0]


def test_an_operation_that_reads_what_changes_in_the_run_ends_it(data, teachers):
    STRENGTH[:] = [1.0]

    def raise_it(run):
        STRENGTH[0] += 1

    config = replace(CONFIG, augment=("crop", raised))
    with refused("the augmentation raised reads a value that has changed in this run"):
        ddpp.distill(data, teachers, config, progress=False, on_step=raise_it)
    STRENGTH[:] = [1.0]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"leave_out": 0}, "leave_out is 0: it must be a list of texts"),
        ({"leave_out": ("bias", 1)}, "it must be a list of texts"),
        ({"normalize": "no"}, "normalize is 'no': it must be True or False"),
    ],
)
def test_a_setting_of_another_type_is_not_taken_for_none(changes, words):
    with refused(words):
        replace(CONFIG, **changes)


CALLS = {}


def test_a_rule_that_changes_what_it_reads_is_refused(data):
    def remembering(student, teacher, epsilon):
        mean = CALLS.setdefault(len(student), student.abs().mean() * 0)
        return student.abs() >= mean

    CALLS.clear()
    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    with refused("the rule remembering changes a value that it reads", "ddpp.custom"):
        ddpp.distill(data, teachers, replace(CONFIG, rule=remembering), progress=False)
    marked = ddpp.custom(remembering, version=1)
    ddpp.distill(data, teachers, replace(CONFIG, rule=marked), progress=False)


@pytest.fixture
def make(tmp_path):
    """Runs so many steps, into set.safetensors."""
    npz, saving = save(tmp_path / "mine.npz"), Saving(progress=False)
    out = tmp_path / "set.safetensors"
    return lambda steps: Experiment(small(npz, steps), out, saving=saving, device="cpu").run()


def test_a_shorter_run_that_is_made_again_is_not_in_the_way(make, tmp_path):
    make(2)
    make(4)
    aside = [tmp_path / f"set-2-steps{end}" for end in (".json", ".safetensors")]
    for path in tmp_path.glob("set.*"):
        path.unlink()
    make(2)
    with untouched(*aside):
        assert make(4)[0].provenance["config"]["steps"] == 4
    for path in tmp_path.glob("set.*"):
        path.unlink()
    make(2)
    aside[0].write_text("{}")
    with untouched(*aside), refused("set-2-steps.json is in the way"):
        make(4)


@pytest.mark.parametrize("gone", ["distilled", "random"])
def test_a_report_without_its_accuracies_is_another_file(make, tmp_path, gone):
    make(2)
    path = tmp_path / "set.json"
    for damaged in ({}, None, {"final": "high"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | {gone: damaged}))
        with untouched(path), refused("set.json is where the report belongs, but is another file"):
            make(2)


def test_seconds_that_are_no_numbers_are_left_out(make, tmp_path):
    clock = tmp_path / "set.safetensors.seconds"
    clock.write_text(json.dumps({"teachers": "long", "distill": [1], "evaluate": 100}))
    seconds = make(2)[1]["seconds"]
    assert seconds["evaluate"] >= 100 > seconds["distill"]


def test_scores_that_a_kill_left_are_deleted(make, tmp_path):
    make(2)
    scores = tmp_path / "set.safetensors.scores"
    scores.touch()
    make(2)
    assert not scores.exists()


def test_a_finished_run_is_read_where_nothing_can_be_written(make, tmp_path, monkeypatch):
    distilled, report = make(2)

    def never(path, *_, **__):
        raise ddpp.Error(f"cannot write {path}")

    for name in ("check_writable", "lock", "write_bytes"):
        monkeypatch.setattr(files, name, never)
    again, known = make(2)
    assert torch.equal(again.images, distilled.images) and known == json.loads(json.dumps(report))
    with refused("cannot write"):
        make(4)
    (tmp_path / "set.json").unlink()
    with refused("cannot write"):
        make(2)
