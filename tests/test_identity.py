"""What is registered under a name is known by its code: nothing made with another function is taken
for its own.
"""

import copy
import cProfile
import functools
import json
import math
import os
import random
import shutil
import subprocess
import sys
from collections import defaultdict
from dataclasses import dataclass, field, make_dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pytest
import small
import torch
from torch import nn

import ddpp
from ddpp import DistillConfig, Error, NetworkConfig, Protocol, TeacherConfig, evaluate, load_data
from ddpp.baselines import common, dm, selection
from ddpp.cli import main
from ddpp.data.augmentation import OPERATIONS
from ddpp.distilled import format
from ddpp.experiments import Run, read_result, reproduce
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import recipe
from ddpp.experiments.run import Experiment
from ddpp.foundation import loop
from ddpp.foundation.fingerprints import fingerprint
from ddpp.foundation.identity import TABLES, marks
from ddpp.foundation.loop import Saving
from ddpp.networks import ARCHITECTURES
from ddpp.pruning import RULES

ROOT = Path(ddpp.__file__).parents[1]
SCALE, TABLE = 2.0, torch.arange(3.0)


def keeps(limit):
    return lambda s, t, epsilon: s.abs() > limit


def helper(x):
    return x + 1


def with_global(x):
    return x * SCALE


def with_helper(x):
    return helper(x)


def with_tensor(x):
    return x + TABLE


def inner(x):
    def deep(y):
        return y * SCALE

    return deep(x)


@dataclass(frozen=True)
class Settings:
    steps: int = 3
    weights: tuple = field(default_factory=lambda: (1, 2))

    @cached_property
    def total(self):
        return sum(self.weights)


def fields_of(**defaults):
    """A dataclass with these fields."""
    fields = [(name, int, value) for name, value in defaults.items()]
    return make_dataclass("Made", fields, namespace={"__module__": __name__})


@lru_cache
def cached(x):
    return x + SCALE


class Rule:
    threshold = 0.1

    def __init__(self, power):
        self.power = power

    def __call__(self, s, t, epsilon):
        return (s.abs() ** self.power) > self.threshold


# Fingerprints


def test_equal_code_with_equal_values_is_the_same():
    assert fingerprint(keeps(0.5)) == fingerprint(keeps(0.5))
    assert fingerprint(Rule(2)) == fingerprint(Rule(2))
    assert fingerprint(Settings()) == fingerprint(Settings(3))
    space = {}, {}
    for one in space:  # as when a cell is run again, elsewhere in the notebook
        exec(f"{'# a comment' * len(one)}\n\ndef f(x, k=3):\n    return x ** k", one)
    assert fingerprint(space[0]["f"]) == fingerprint(space[1]["f"])


class Plain:
    """Has a __dict__."""


class Slotted(Plain):
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


class Named(torch.Tensor):
    def __matmul__(self, other):
        return super().__matmul__(other) + 1


def catching(x):
    try:
        y = x + 1
        return -y
    except ValueError:
        return 0


def catching_less(x):
    try:
        y = x + 1
    except ValueError:
        return 0
    return -y


@pytest.mark.parametrize(
    "one, other",
    [
        (catching, catching_less),
        (eval("lambda x, u: u"), eval("lambda x, *u: u")),
        (eval("lambda x, u: u"), eval("lambda x, **u: u")),
        (defaultdict(int), defaultdict(list)),
        (Slotted(1), Slotted(2)),
        (torch.ones(2), torch.ones(2).as_subclass(Named)),
    ],
)
def test_less_common_differences_count(one, other):
    uses = lambda value: value if callable(value) else (lambda: value)
    assert fingerprint(uses(one)) != fingerprint(uses(other))


@pytest.mark.parametrize(
    "value",
    [
        np.frompyfunc(lambda x: x, 1, 1),
        np.ma.masked_array([1.0, 2.0], mask=[True, False]),
        torch.eye(2).to_sparse(),
        torch.ones(2, device="meta"),
        random.Random(0),
    ],
)
def test_values_that_cannot_be_seen_through_ask_for_a_version(value):
    with pytest.raises(Error, match=r"of which ddpp cannot tell.*ddpp.custom\(..., version=1\)"):
        fingerprint(lambda x: (x, value))


def test_a_set_of_functions_is_the_same_in_each_process():
    code = (
        "from ddpp.foundation.fingerprints import fingerprint\n"
        "def helper(x): return x\n"
        "def one(x): return helper(x)\n"
        "def two(x): return helper(x) + 1\n"
        "ALL = {('a', one), ('b', two), ('c', helper)}\n"
        "def rule(x): return [f(x) for _, f in sorted(ALL)]\n"
        "print(fingerprint(rule))"
    )
    found = set()
    for seed in range(4):
        of = {**os.environ, "PYTHONHASHSEED": str(seed)}
        run = [sys.executable, "-B", "-c", code]
        found.add(subprocess.run(run, env=of, capture_output=True, text=True, check=True).stdout)
    assert len(found) == 1


def test_the_order_of_a_set_in_the_code_does_not_count():
    one, other, third = (
        eval(f"lambda x: x in {names}") for names in ("{0, 8}", "{8, 0}", "{0, 9}")
    )
    assert repr(one.__code__.co_consts) != repr(other.__code__.co_consts)  # as in two processes
    assert fingerprint(one) == fingerprint(other) != fingerprint(third)


@pytest.mark.parametrize(
    "one, other",
    [
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: x.abs(), lambda x: x.neg()),
        (keeps(0.5), keeps(0.6)),
        (lambda x, k=1: x * k, lambda x, k=2: x * k),
        (lambda x, *, k=1: x * k, lambda x, *, k=2: x * k),
        (Rule(2), Rule(3)),
        (Settings(), Settings(4)),
        (Settings, fields_of(steps=4)),
        (fields_of(n=3), fields_of(n=4)),
        (fields_of(n=3), fields_of(m=3)),
        (Rule(2).__call__, Rule(3).__call__),
        (type("Net", (nn.Linear,), {}), type("Net", (nn.Linear,), {"bias": None})),
        (type("Net", (nn.Module,), {}), type("Net", (nn.Linear,), {})),
    ],
)
def test_other_code_or_other_values_are_another(one, other):
    assert fingerprint(one) != fingerprint(other)


@pytest.mark.parametrize(
    "function, name, value",
    [
        (with_global, "SCALE", 3.0),
        (inner, "SCALE", 3.0),
        (cached, "SCALE", 3.0),
        (with_helper, "helper", lambda x: x - 1),
        (with_tensor, "TABLE", torch.arange(3.0) + 1),
        (with_tensor, "TABLE", np.arange(3.0)),
    ],
)
def test_what_the_code_uses_counts(function, name, value, monkeypatch):
    before = fingerprint(function)
    monkeypatch.setitem(globals(), name, value)
    assert fingerprint(function) != before


def test_functions_of_a_module_of_ones_own_count(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    found = []
    for text in ("def f(x): return x", "def f(x): return 2 * x"):
        (tmp_path / "mylib.py").write_text(text)
        code = (
            "import mylib, ddpp.foundation.fingerprints\ndef rule(x): return "
            "mylib.f(x)\nprint(ddpp.foundation.fingerprints.fingerprint(rule))"
        )
        run = [sys.executable, "-B", "-c", code]
        found.append(
            subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
        )
    assert found[0] != found[1]


def test_what_cannot_be_seen_through_asks_for_a_version():
    generator = torch.Generator()
    rule = lambda s, t, epsilon: torch.rand(s.shape, generator=generator) > epsilon
    with pytest.raises(
        Error, match=r"a Generator, of which ddpp cannot tell.*ddpp.custom\(..., version=1\)"
    ):
        fingerprint(rule)
    assert fingerprint(ddpp.custom(rule, version=1)) == "version 1"
    assert fingerprint(ddpp.custom(rule, version=2)) == "version 2"
    assert ddpp.custom(torch.relu, version="a")(torch.tensor(-1.0)) == 0  # a C function


def scripted(text):
    """A function of TorchScript that is called f and returns this."""
    return torch.jit.CompilationUnit(f"def f(s, t, epsilon: float):\n    return {text}\n").f


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_function_of_torchscript_is_known_by_what_it_computes():
    one, same, other = map(scripted, ("s > 0.1", "s > 0.1", "s > 0.2"))
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    assert len({fingerprint(lambda s, f=f: f(s, s, 0.1)) for f in (one, same, other)}) == 2
    many = torch.arange(5000.0)
    made = (many, many.clone(), many + 1)  # a graph does not show all of them
    one, same, other = (
        torch.jit.trace(lambda x, k=k: x * k, (torch.ones(5000),), check_trace=False) for k in made
    )
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_what_is_found_by_a_text_asks_for_a_version():
    for found in (
        lambda s, t, epsilon: globals()["LIMIT"],
        lambda s, t, epsilon: exec("s += LIMIT"),
        lambda s, t, epsilon: __import__("small").NETWORK,
    ):
        with small.refused("(), of which ddpp cannot tell whether it has changed"):
            fingerprint(found)
    eval = len
    assert len(fingerprint(lambda s, t, epsilon: eval(s))) == 16  # of one's own


def test_an_operator_of_ones_own_asks_for_a_version():
    assert len(fingerprint(lambda s, t, epsilon: torch.ops.aten.gt(s, t))) == 16
    with small.refused("an operator of torch.ops that is not PyTorch's, of which ddpp cannot tell"):
        fingerprint(lambda s, t, epsilon: torch.ops.mine.keep(s, t))


def test_two_values_are_told_apart_however_short_they_live():
    class Counts:
        def __init__(self, *values):
            self.values = [list(range(v)) for v in values]

        def __call__(self):
            return self.values

    found = {fingerprint(Counts(*(i + k for k in range(5)))) for i in range(200)}
    assert len(found) == 200


def test_a_function_that_calls_itself_is_no_endless_loop():
    def down(x):
        return down(x - 1) if x else 0

    assert len(fingerprint(down)) == 16


def test_names_of_ddpp_add_nothing_to_an_identity():
    own = {
        "rule": "signed magnitude none random largest smallest",
        "network": "convnet alexnet vgg11 resnet18",
        "method": "ddpp mtt iadd dc dsa dm cafe tgdd kip bptt random herding forgetting",
        "kernel": "fc conv",
    }
    for kind, names in own.items():
        assert set(names.split()) <= TABLES[kind].keys()
        assert all(marks(**{kind: name}) == {} for name in names.split())
    assert marks(augmentation=True) == {}
    assert marks(rule="not there") == {}


def test_a_function_of_ddpp_that_is_replaced_is_no_longer_its_own(monkeypatch):
    monkeypatch.setitem(RULES, "signed", keeps(0))
    assert marks(rule="signed") == {"custom": {"rule signed": fingerprint(keeps(0))}}


# The places where a file is looked up


@pytest.fixture
def data(npz):
    return load_data(npz(), device="cpu")


NETWORK = NetworkConfig(width=4, depth=2)
TEACHERS = TeacherConfig(count=1, epochs=3, batch=20, network=NETWORK)
CONFIG = DistillConfig(steps=3, student_steps=2, iterates=1, rule="mine", image_lr=1.0)


class Small(nn.Sequential):
    def __init__(self, channels, classes, image_size, hidden=4, **_):
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * image_size**2, hidden),
            nn.Tanh(),
            nn.Linear(hidden, classes),
        )


def test_a_checkpoint_of_a_rule_that_was_changed_is_refused(data, tmp_path, monkeypatch):
    teachers = ddpp.train_teachers(data, TEACHERS, progress=False)
    path = tmp_path / "checkpoint"
    go = lambda steps=3: ddpp.distill(
        data, teachers, replace(CONFIG, steps=steps), checkpoint=path, progress=False
    )
    monkeypatch.setitem(RULES, "mine", keeps(0.01))
    first = go()
    monkeypatch.setitem(RULES, "mine", keeps(0.01))  # the cell is run again
    assert torch.equal(go().images, first.images)
    monkeypatch.setitem(RULES, "mine", keeps(0.2))
    with pytest.raises(
        Error, match=r"other settings, data or teachers \(the rule mine has changed\)"
    ):
        go()
    with pytest.raises(Error, match=r"config\.steps was 3 and is 4; the rule mine has changed"):
        go(steps=4)


def test_teachers_of_another_augmentation_or_network_are_not_taken(data, tmp_path, monkeypatch):
    train = lambda config=TEACHERS: ddpp.train_teachers(
        data, config, tmp_path / "teachers", progress=False
    )
    first, turn = train(), lambda x, u: x.flip(2)
    monkeypatch.setitem(OPERATIONS, "crop", turn)
    with pytest.raises(Error, match="the augmentation crop has changed"):
        train()
    monkeypatch.undo()
    monkeypatch.setitem(OPERATIONS, "turn", turn)  # known, but not asked for
    assert torch.equal(train().snapshot(0, 3), first.snapshot(0, 3))
    mine = replace(TEACHERS, network=NetworkConfig("mine"))
    monkeypatch.setitem(ARCHITECTURES, "mine", Small)
    one = ddpp.train_teachers(data, mine, tmp_path / "mine", progress=False)
    monkeypatch.setitem(ARCHITECTURES, "mine", lambda **sizes: Small(**sizes, hidden=5))
    with pytest.raises(Error, match="the network mine has changed"):
        ddpp.train_teachers(data, mine, tmp_path / "mine", progress=False)
    assert ddpp.train_teachers(data, mine, progress=False).network.size != one.network.size


def test_a_whole_run_and_its_accuracies_are_those_of_the_rule_and_network(
    data, npz, tmp_path, monkeypatch
):
    real, scores = (
        selection.random(data, 1, {"name": "mine", "width": 4, "depth": 1}, 0),
        tmp_path / "scores",
    )
    test = lambda: (
        evaluate(
            real, data, repeats=1, protocol=Protocol(epochs=20), scores=scores, progress=False
        ).mean
    )
    monkeypatch.setitem(ARCHITECTURES, "mine", Small)
    test()
    written = scores.read_text()
    test()
    assert scores.read_text() == written
    monkeypatch.setitem(ARCHITECTURES, "mine", lambda **sizes: Small(**sizes, hidden=5))
    test()
    assert scores.read_text() != written

    base = recipe("smoke", str(npz()))
    small = replace(base, teachers=TEACHERS, distill=CONFIG, protocol=Protocol(epochs=2), repeats=1)
    out = tmp_path / "out.safetensors"
    go = lambda: Experiment(small, out, device="cpu", saving=Saving(progress=False)).run()
    monkeypatch.setitem(RULES, "mine", keeps(0.01))
    go()
    assert ddpp.DistilledDataset.load(out).provenance["custom"] == {
        "rule mine": fingerprint(keeps(0.01))
    }
    go()
    monkeypatch.setitem(RULES, "mine", keeps(0.2))
    with pytest.raises(Error, match=r"the result of another run \(the rule mine has changed\)"):
        go()


def test_a_result_of_a_rule_that_was_changed_is_not_the_new_ones(npz, tmp_path, monkeypatch):
    base = recipe("smoke", str(npz()))
    small = replace(base, teachers=TEACHERS, distill=CONFIG, protocol=Protocol(epochs=2), repeats=1)
    todo, places = (
        [Run("mine/one", small)],
        {"results": tmp_path / "results", "work": tmp_path / "work"},
    )
    go = lambda: reproduce(todo, **places, device="cpu", progress=False, say=lambda line: None)
    monkeypatch.setitem(RULES, "mine", keeps(0.01))
    assert len(go()) == 1
    assert read_result(todo[0], places["results"])["custom"] == {
        "rule mine": fingerprint(keeps(0.01))
    }
    monkeypatch.setitem(RULES, "mine", keeps(0.2))
    with pytest.raises(Error, match=r"the result of other settings \(the rule mine has changed\)"):
        go()


def test_a_method_of_ones_own_carries_its_code(monkeypatch):
    changed = replace(METHODS["random"], run=lambda *_: None)
    monkeypatch.setitem(METHODS, "mine", changed)
    first = marks(method="mine")["custom"]["method mine"]
    monkeypatch.setitem(METHODS, "mine", replace(METHODS["random"], run=lambda *_: 1))
    assert marks(method="mine")["custom"]["method mine"] != first


# Settings with code of their own


class Nesterov(Protocol):
    def update(self, theta, velocity, gradient, rate):
        velocity = self.momentum * velocity + gradient + self.weight_decay * theta
        return theta - rate * (gradient + self.momentum * velocity), velocity


class Latest(DistillConfig):
    def start_epochs(self, step):
        return range(self.max_start_epoch - 1, self.max_start_epoch)


def test_a_score_of_the_plain_protocol_is_not_one_of_a_protocol_with_its_own_update(data, tmp_path):
    distilled = selection.random(data, 1, {"width": 4, "depth": 1})

    def score(kind, scores=tmp_path / "scores.json"):
        how = {"repeats": 1, "seed": 1, "scores": scores, "progress": False}
        return evaluate(distilled, data, protocol=kind(epochs=9), **how).final

    keys = lambda: json.loads((tmp_path / "scores.json").read_text()).keys()
    score(Protocol)
    plain = keys()
    score(Nesterov)
    assert len(keys() - plain) == 1
    assert score(Nesterov) == score(Nesterov, None)


def test_a_class_is_the_same_after_one_of_its_kind_was_copied():
    class Fresh(Protocol):
        pass

    before = fingerprint(Fresh)
    copy.deepcopy(Fresh())
    assert "__slotnames__" in vars(Fresh) and fingerprint(Fresh) == before


def test_a_run_of_plain_settings_is_not_one_of_settings_with_their_own_code(data, tmp_path):
    teachers = ddpp.train_teachers(data, small.TEACHERS, progress=False)
    values = {name: getattr(small.CONFIG, name) for name in small.CONFIG.__dataclass_fields__}
    go = lambda config: ddpp.distill(
        data, teachers, config, checkpoint=tmp_path / "checkpoint", progress=False
    )
    go(small.CONFIG)
    with small.refused("belongs to a run with other settings", "settings Latest"):
        go(Latest(**values))


# Files of earlier versions, made by commit 6636843


GOLDEN = Path(__file__).with_name("golden")


@dataclass
class Soft:
    step: int
    images: torch.Tensor
    alpha: torch.Tensor
    labels: torch.Tensor


def shift(state, problem):
    images = state.images + SCALE
    return replace(state, images=images, step=state.step + 1), {"loss": torch.tensor(1.0)}


@pytest.mark.parametrize("name", ["mine", "dm"])
def test_a_method_that_is_not_in_the_table_is_known_by_its_step(data, tmp_path, monkeypatch, name):
    saving = Saving(tmp_path / "checkpoint", progress=False)
    config = dm.DMConfig(iterates=1)
    go = lambda n: common.distill(name, shift, data, NETWORK, replace(config, steps=n), saving)
    assert go(1).provenance["custom"].keys() == go(2).provenance["custom"].keys()
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    with small.refused(f"the method {name} has changed"):
        go(3)


def run_of(data, step, steps=3, start=None, **beside):
    """A run of a step of one's own, from the loop itself."""
    images, labels = data.draw(1, 0)
    begin = start or common.State(0, images.clone(), torch.tensor(0.1), torch.zeros_like(images))
    about = format.beside(data, labels, NETWORK, **beside)
    method = loop.Method(begin, step, steps, steps, beside=about)
    return loop.run(method, {"method": "mine"}, {}, Saving(progress=False)), about


def test_a_step_in_place_leaves_the_iterates_before(data):
    def halve(state):
        return replace(state, images=state.images.mul_(0.5), step=state.step + 1), {"loss": 1.0}

    made, _ = run_of(data, halve)
    norms = [float(images.norm()) for images, _ in made.iterates.values()]
    assert norms == pytest.approx([norms[0] / 2**i for i in range(4)])


def test_what_a_step_records_keeps_no_graph(data):
    def record(state):
        loss = state.images.clone().requires_grad_().square().sum()
        return replace(state, step=state.step + 1), {"loss": loss}

    made, _ = run_of(data, record)
    assert not made.history["loss"].requires_grad


@pytest.mark.parametrize("by", [0, 2])
def test_a_step_that_does_not_count_is_refused(data, by):
    with small.refused(f"from step 0 to step {by}", "step=state.step + 1"):
        run_of(data, lambda state: (replace(state, step=state.step + by), {"loss": 1.0}))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"alpha": 0.1}, ["the field alpha of the state must be a tensor"]),
        ({"alpha": np.float32(0.1)}, ["the field alpha of the state is a float32"]),
        ({"velocity": [1.0]}, ["the field velocity of the state is a list"]),
    ],
)
def test_a_state_that_files_could_not_keep_is_refused(data, changes, words):
    images = data.draw(1, 0).images
    state = common.State(0, images, torch.tensor(0.1), torch.zeros_like(images))
    with small.refused(*words):
        run_of(data, lambda at: shift(at, None), start=replace(state, **changes))


@pytest.mark.parametrize("loss", ["cross-entropy", "squared error"])
def test_a_method_says_what_its_soft_labels_are_trained_with(data, loss, tmp_path):
    images, labels = data.draw(1, 0)
    soft = torch.eye(len(data.classes))[labels]
    made, about = run_of(
        data, lambda at: shift(at, None), start=Soft(0, images, torch.tensor(0.1), soft), loss=loss
    )
    found = ddpp.DistilledDataset.from_run(made, about, {"method": "mine"})
    found.save(tmp_path / "set.safetensors")
    assert found.loss == ddpp.DistilledDataset.load(tmp_path / "set.safetensors").loss == loss


def test_a_step_of_ones_own_that_cannot_be_described_takes_no_name_of_ddpps(data, tmp_path):
    hidden = torch.Generator()

    def unseen(state, problem):
        hidden.get_state()
        return shift(state, problem)

    config, saved = dm.DMConfig(steps=1, iterates=1), Saving(tmp_path / "to", progress=False)
    go = lambda name, saving: common.distill(name, unseen, data, NETWORK, config, saving)
    assert go("mine", Saving(progress=False)).images.isfinite().all()
    with small.refused("whether the method mine has changed"):
        go("mine", saved)
    with small.refused("the step of the method dm uses a value, a Generator"):
        go("dm", saved)


def test_a_checkpoint_that_could_not_tell_its_method_is_not_begun(tmp_path):
    one = torch.ones(1)
    method = loop.Method(common.State(0, one, one, one), lambda at: shift(at, None), 1, 1)
    go = lambda saving: loop.run(method, {"method": "mine"}, {}, saving)
    assert go(Saving(progress=False)).state.step == 1
    with small.refused("whether the method mine has changed: put it into METHODS"):
        go(Saving(tmp_path / "checkpoint", progress=False))


def test_files_made_before_there_were_fingerprints_are_the_same_runs_now(npz, tmp_path, capsys):
    folder = tmp_path / "golden"
    shutil.copytree(GOLDEN, folder)
    small = f"""--data {npz()} --steps 6 --student-steps 3 --iterates 2 --repeats 1
        --teachers.count 1 --teachers.epochs 3 --teachers.batch 20 --teachers.network.width 4
        --teachers.network.depth 2 --protocol.epochs 2 --image-lr 5 --device cpu""".split()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert main(["distill", *small, "--out", str(folder / "set.safetensors")]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert main(["distill", *small, "--out", str(folder / "stopped.safetensors")]) == 0
    assert "resuming from step 3 of 6" in capsys.readouterr().out
    whole, resumed = (
        ddpp.DistilledDataset.load(folder / f"{name}.safetensors") for name in ("set", "stopped")
    )
    # on another processor the bits may differ
    assert torch.allclose(resumed.images, whole.images, atol=1e-3)
    assert (
        folder / "teachers-dfcaac17" / "teacher_000.safetensors"
    ).read_bytes() in before.values()
    learned = ddpp.DistilledDataset.load(folder / "kip.safetensors")
    assert learned.loss == "squared error"
    assert learned.labels.shape == (3, 3)


def test_a_wrapper_has_not_the_version_of_what_it_wraps():
    def rule(student):
        return student > 0

    marked = ddpp.custom(rule, version=1)

    def wrapper(limit):
        @functools.wraps(marked)
        def inner(student):
            return marked(student) & (student < limit)

        return inner

    assert fingerprint(wrapper(1)) != fingerprint(wrapper(2))
    assert fingerprint(wrapper(1)) != fingerprint(marked) == "version 1"
    assert fingerprint(ddpp.custom(wrapper(1), version=2)) == "version 2"


def halved(rule, part):
    """A rule of its own, under the names of another."""

    @functools.wraps(rule)
    def inner(student, teacher, epsilon):
        keep = rule(student, teacher, epsilon)
        keep[int(part * len(keep)) :] = False
        return keep

    return inner


def test_a_wrapper_of_a_built_in_is_not_taken_for_it():
    signed, tables = RULES["signed"], (RULES, ARCHITECTURES, OPERATIONS)
    before = [dict(table) for table in tables]
    rules = [DistillConfig(rule=halved(signed, part)).rule for part in (0.5, 0.1, 0.5)]
    assert rules == ["signed-2", "signed-3", "signed-2"]
    updated = functools.update_wrapper(functools.partial(halved(signed, 0.5)), signed)
    assert DistillConfig(rule=updated).rule == "signed-4"
    assert NetworkConfig(halved(ddpp.ConvNet, 0.5)).name == "ConvNet"
    assert NetworkConfig(halved(ddpp.ConvNet, 0.1)).name == "ConvNet-2"
    assert Protocol(augment=("crop", halved(OPERATIONS["flip"], 1))).augment == ("crop", "flip-2")
    for table, own in zip(tables, before, strict=True):
        assert own.items() <= table.items()


def test_what_a_library_makes_of_functions_is_known_by_these():
    pool, other = nn.functional.max_pool2d, nn.functional.adaptive_max_pool2d
    assert pool.__qualname__ == other.__qualname__
    assert fingerprint(pool) == fingerprint(pool) != fingerprint(other)
    one, two = (torch.no_grad()(halved(RULES["signed"], part)) for part in (0.5, 0.1))
    again = torch.no_grad()(halved(RULES["signed"], 0.5))
    assert fingerprint(one) == fingerprint(again) != fingerprint(two)
    torch.manual_seed(0)
    layers = [nn.Linear(2, 2), nn.Linear(2, 2)]
    assert fingerprint(layers[0].forward) != fingerprint(layers[1].forward)
    known = fingerprint(random.uniform), fingerprint(np.random.rand)
    random.random(), np.random.rand(1)
    assert (fingerprint(random.uniform), fingerprint(np.random.rand)) == known


@pytest.mark.parametrize("name", ["__main__", "__mp_main__", "colorsys"])
def test_code_of_ones_own_is_seen_whatever_its_module_is_called(name, tmp_path, monkeypatch):
    def made(limit):
        module = type(sys)(name)
        # `python -m cProfile` has its own file for the main module
        module.__file__ = cProfile.__file__ if "main" in name else str(tmp_path / f"{name}.py")
        monkeypatch.setitem(sys.modules, name, module)
        exec(f"class Rule:\n    limit = {limit}\nmine = lambda s: s > {limit}", vars(module))
        return fingerprint(module.mine), fingerprint(module.Rule)

    first, again, other = made(1), made(1), made(2)
    assert first == again
    assert first[0] != other[0] and first[1] != other[1]


class Scaled:
    """A rule as an object, which calls itself a function's wrapper."""

    def __init__(self, rule, factor):
        functools.update_wrapper(self, rule)
        self.factor = factor

    def __call__(self, student):
        return self.__wrapped__(student * self.factor)


def test_an_object_is_known_by_its_class_and_values_whatever_it_wraps():
    assert fingerprint(Scaled(helper, 1.0)) == fingerprint(Scaled(helper, 1.0))
    found = {fingerprint(Scaled(helper, 1.0)), fingerprint(Scaled(helper, 2.0))}
    assert len(found | {fingerprint(helper)}) == 3


def test_numbers_that_numpy_does_not_have_are_seen():
    one, other = (torch.tensor([0.5, x], dtype=torch.bfloat16) for x in (1.0, 2.0))
    assert fingerprint(one) == fingerprint(one.clone()) != fingerprint(other)
    assert fingerprint(one) != fingerprint(one.float())


def test_what_a_class_of_classes_does_is_seen():
    def made(limit):
        class Limited(type):
            def keep(cls, student):
                return student > limit

        return Limited("Rule", (), {"__call__": lambda self, student: type(self).keep(student)})

    assert fingerprint(made(1)()) == fingerprint(made(1)())
    assert fingerprint(made(1)()) != fingerprint(made(2)())


def test_a_module_of_ones_own_that_is_not_asked_for_names_asks_for_a_version():
    class Rule:
        tools = small

        def __call__(self, student):
            return self.tools.keep(student)

    passes_on = lambda student: Rule.__call__(small, student)
    for thing in (Rule(), passes_on):
        with pytest.raises(Error, match="uses all of the module small, of which ddpp cannot tell"):
            fingerprint(thing)
    Rule.tools = math
    assert len(fingerprint(Rule())) == 16  # libraries have no versions of their own


def test_values_that_are_attributes_of_a_function_are_seen():
    def share(x):
        return x * share.limit

    share.limit = 1.0
    one = fingerprint(share)
    share.limit = 2.0
    assert fingerprint(share) != one


@pytest.mark.parametrize(
    "lines",
    [
        ("import {0}.masks", "return {0}.masks.keep(x)"),
        ("", "import {0}.masks\n    return {0}.masks.keep(x)"),
        ("", "import {0}.masks as m\n    return m.keep(x)"),
        ("", "from {0}.masks import keep\n    return keep(x)"),
        ("", "from {0} import masks\n    return masks.keep(x)"),
        (
            "import {0}.masks\nwith_module = (lambda m: lambda x: m.keep(x))({0}.masks)",
            "return with_module(x)",
        ),
        (
            "from {0}.masks import keep",
            "class Kept:\n        mask = keep(0)\n    return Kept.mask",
        ),
    ],
)
def test_code_of_ones_own_modules_is_seen_however_it_is_imported(tmp_path, monkeypatch, lines):
    above, body = (line.format("tools_of_mine") for line in lines)
    package = tmp_path / "tools_of_mine"
    package.mkdir()
    package.joinpath("__init__.py").touch()
    tmp_path.joinpath("rules_of_mine.py").write_text(f"{above}\ndef rule(x):\n    {body}\n")
    ask = (
        "import rules_of_mine, ddpp.foundation.fingerprints as f\n"
        "print(f.fingerprint(rules_of_mine.rule))"
    )
    found = []
    for limit in (1, 1, 2):
        package.joinpath("masks.py").write_text(f"def keep(x):\n    return x > {limit}\n")
        environment = os.environ | {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
        environment["PYTHONDONTWRITEBYTECODE"] = "1"
        done = subprocess.run(
            [sys.executable, "-c", ask], capture_output=True, text=True, env=environment
        )
        found.append(done.stdout.strip())
    assert found[0] and found[0] == found[1] != found[2]
