"""What a researcher brings is refused, or noticed, where results would be wrong without a word."""

import importlib
import pickle
import random
import sys
from collections import namedtuple
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small import CONFIG, TEACHERS, load, refused, save, small_recipe
from torch import nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

import ddpp
from ddpp.baselines import selection
from ddpp.data import from_datasets
from ddpp.experiments.methods import METHODS
from ddpp.experiments.run import Experiment
from ddpp.foundation.fingerprints import fingerprint
from ddpp.foundation.identity import TABLES
from ddpp.foundation.loop import Saving
from ddpp.networks import ARCHITECTURES, ConvNet
from ddpp.unrolling.checks import check_derivatives

QUIET = {"progress": False}


@pytest.fixture(autouse=True)
def tables():
    """Nothing stays in the tables of names."""
    before = {kind: dict(table) for kind, table in TABLES.items()}
    yield
    for kind, table in TABLES.items():
        table.clear()
        table.update(before[kind])


@pytest.fixture
def path(tmp_path):
    return save(tmp_path / "mine.npz")


@pytest.fixture
def data(path):
    return load(path)


@pytest.fixture
def teachers(data):
    return ddpp.train_teachers(data, TEACHERS, **QUIET)


def with_network(kind):
    return replace(TEACHERS, network=ddpp.NetworkConfig(kind))


# networks that cannot be differentiated twice


def silu_slope(x):
    s = x.sigmoid()
    return s * (1 + x * (1 - s))


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return F.silu(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return gradient * silu_slope(ctx.saved_tensors[0])


class Detached(Once):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * silu_slope(ctx.saved_tensors[0].detach())


class Right(Once):
    @staticmethod
    def backward(ctx, gradient):
        return gradient * silu_slope(ctx.saved_tensors[0])


class Activated(nn.Module):
    act = staticmethod(F.silu)

    def __init__(self, channels, classes, image_size):
        super().__init__()
        self.first = nn.Linear(channels * image_size**2, 6)
        self.last = nn.Linear(6, classes)

    def forward(self, x):
        return self.last(self.act(self.first(x.flatten(1))))


class OnceNet(Activated):
    act = staticmethod(Once.apply)


class DetachedNet(Activated):
    act = staticmethod(Detached.apply)


class RightNet(Activated):
    act = staticmethod(Right.apply)


class SinglePrecision(Activated):
    act = staticmethod(lambda x: F.silu(x.float()))


class Attention(Activated):
    @staticmethod
    def act(x):
        x = x.view(len(x), 1, 3, 2)
        return F.scaled_dot_product_attention(x, x, x).flatten(1)


class WithoutGradient(Activated):
    @staticmethod
    def act(x):
        with torch.no_grad():
            return x * 1


class FromZero(DetachedNet):
    """Its last layer begins at 0, and so does every second derivative of what is before it."""

    def __init__(self, channels, classes, image_size):
        super().__init__(channels, classes, image_size)
        nn.init.zeros_(self.last.weight)


class Rounded(Activated):
    act = staticmethod(lambda x: F.silu(x.bfloat16()).to(x.dtype))


WRONG = [
    (OnceNet, "the derivative of its gradient is"),
    (DetachedNet, "the derivative of its gradient is"),
    (FromZero, "the derivative of its gradient is"),
    (Rounded, "computes in fewer than 64 bits (autocast, bfloat16)"),
    (Attention, "its gradient cannot be differentiated again"),
]


@pytest.mark.parametrize("kind, words", WRONG)
def test_a_network_that_cannot_be_differentiated_twice_trains_no_teacher(
    kind, words, path, tmp_path
):
    base = small_recipe(path, "ddpp", ipc=1, repeats=1)
    made = replace(base, teachers=replace(base.teachers, network=ddpp.NetworkConfig(kind)))
    run = Experiment(made, tmp_path / "out/set.safetensors", saving=Saving(progress=False))
    with refused(f"the network '{kind.__name__}' cannot be unrolled", words):
        run.run()
    assert not run.folder.exists()


@pytest.mark.parametrize("method", ["bptt", "dsa"])
def test_nor_is_it_unrolled_by_another_method(data, method):
    config = METHODS[method].config(steps=1)
    with refused("cannot be unrolled"):
        METHODS[method].run(data, ddpp.NetworkConfig(OnceNet), config, Saving(progress=False))


def test_it_can_be_tested_on_a_set(data):
    real = selection.random(data, 1, {"name": "convnet", "width": 4, "depth": 1})
    protocol = ddpp.Protocol(epochs=1)
    found = ddpp.evaluate(real, data, OnceNet, repeats=1, protocol=protocol, **QUIET)
    assert len(found.final) == 1


@pytest.mark.parametrize("kind", [Activated, RightNet])
def test_one_that_can_is_taken(data, kind):
    network = data.network(ddpp.NetworkConfig(kind))
    check_derivatives(network, data.shape, len(data.classes))


class Asserts(Activated):
    @staticmethod
    def act(x):
        assert x.dtype == torch.float32
        return F.silu(x)


@pytest.mark.parametrize("kind", [SinglePrecision, Asserts])
def test_one_of_single_precision_is_taken_with_a_warning(data, kind):
    network = data.network(ddpp.NetworkConfig(kind))
    with pytest.warns(UserWarning, match=f"'{kind.__name__}' cannot compute in double precision"):
        check_derivatives(network, data.shape, len(data.classes))


class Turned(DetachedNet):
    """A wrong one with a constant that is a plain tensor, and no buffer."""

    def __init__(self, channels, classes, image_size):
        super().__init__(channels, classes, image_size)
        self.turn = torch.eye(6).roll(1, 0)

    def act(self, x):
        return Detached.apply(x @ self.turn)


def test_a_constant_that_is_no_buffer_hides_no_wrong_derivative(data):
    network = data.network(ddpp.NetworkConfig(Turned))
    with refused("'Turned' cannot be unrolled", "the derivative of its gradient is"):
        check_derivatives(network, data.shape, len(data.classes))


class AsPublished(ConvNet):
    """The published ConvNet under a name of its own: so many ReLUs that some cross their kink."""


class CutOff(AsPublished):
    def forward(self, x):
        return Detached.apply(super().forward(x))


@pytest.mark.parametrize("width", [16, 128])
def test_a_network_of_the_published_size_is_taken_and_a_wrong_one_found(width):
    shape, build = (3, 32, 32), lambda kind: ddpp.NetworkConfig(kind, width=width).build(3, 10, 32)
    check_derivatives(build(AsPublished), shape, 10)
    with refused("'CutOff' cannot be unrolled", "the derivative of its gradient is"):
        check_derivatives(build(CutOff), shape, 10)


# what draws random numbers, keeps something, or has parameters elsewhere


def rarely(draw):
    """Do something with probability 0.02, in a way that two calls hardly ever show."""
    return {
        "torch": lambda: float(torch.rand(())) < 0.02,
        "numpy": lambda: np.random.rand() < 0.02,
        "python": lambda: random.random() < 0.02,
    }[draw]()


@pytest.mark.parametrize("draw", ["torch", "numpy", "python"])
def test_what_rarely_draws_is_refused(data, teachers, draw):
    def rule(student, teacher, epsilon):
        return student.abs() < (0 if rarely(draw) else 1)

    def operation(images, u):
        return images.flip(3) if rarely(draw) else images * 1

    class Net(Activated):
        def act(self, x):
            return x.neg() if rarely(draw) else x

    before = random.getstate()
    with refused("the rule gives the same student and teacher another mask each time"):
        ddpp.distill(data, teachers, replace(CONFIG, rule=rule), **QUIET)
    with refused("gives the same images another result each time"):
        ddpp.distill(data, teachers, replace(CONFIG, augment=(operation,)), **QUIET)
    with refused("gives the same images other logits each time"):
        ddpp.train_teachers(data, with_network(Net), **QUIET)
    assert random.getstate() == before


def test_a_rule_that_draws_on_ties_alone_is_refused(data, teachers):
    def dither(student, teacher, epsilon):
        tied = student == teacher
        return ~tied | (torch.rand_like(student) < 0.5) if tied.any() else ~tied

    def revive(student, teacher, epsilon):
        return student.abs() > (torch.rand(()) if (student == 0).any() else 0)

    for rule in (dither, revive):
        with refused("the rule gives the same student and teacher another mask each time"):
            ddpp.distill(data, teachers, replace(CONFIG, rule=rule), **QUIET)


class Counter(Activated):
    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class InAList(Activated):
    def __init__(self, channels, classes, image_size):
        super().__init__(channels, classes, image_size)
        self.more = [nn.Linear(6, 6)]

    def act(self, x):
        return F.silu(self.more[0](x))


class Seeding(Activated):
    def __init__(self, channels, classes, image_size):
        torch.manual_seed(0)
        super().__init__(channels, classes, image_size)


def test_a_network_that_counts_or_keeps_layers_in_a_list_is_refused(data):
    with refused("'Counter' changes an attribute when it is called"):
        ddpp.train_teachers(data, with_network(Counter), **QUIET)
    with refused("'InAList' uses a parameter (6,", "nn.ModuleList"):
        ddpp.train_teachers(data, with_network(InAList), **QUIET)


class Recomputing(Activated):
    def act(self, x):
        return checkpoint(self.more, x, use_reentrant=False)

    def __init__(self, channels, classes, image_size):
        super().__init__(channels, classes, image_size)
        self.more = nn.Sequential(nn.Linear(6, 6), nn.SiLU())


class Reentering(Recomputing):
    def act(self, x):
        return checkpoint(self.more, x, use_reentrant=True)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize(
    "kind, words",
    [
        (Recomputing, ("has a wrong gradient here", "switch activation checkpointing off")),
        (Reentering, ("cannot be differentiated",)),
    ],
)
def test_a_network_that_computes_activations_anew_is_refused(data, kind, words):
    with refused(f"the network '{kind.__name__}' ", *words):
        ddpp.train_teachers(data, with_network(kind), **QUIET)


class Averaging(Activated):
    """Normalizes as textbooks do: by the batch where gradients are wanted, and else by averages."""

    def __init__(self, channels, classes, image_size):
        super().__init__(channels, classes, image_size)
        self.mean = torch.zeros(6)

    def act(self, x):
        if torch.is_grad_enabled():
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            return F.silu(x - x.mean(0))
        return F.silu(x - self.mean)


class Dropping(Activated):
    def act(self, x):
        return F.dropout(x, 0.01, training=torch.is_grad_enabled())


class Remembering(Activated):
    """Keeps sums, and does not use them."""

    def __init__(self, channels, classes, image_size):
        super().__init__(channels, classes, image_size)
        self.register_buffer("seen", torch.zeros(6))

    def act(self, x):
        if torch.is_grad_enabled():
            self.seen += x.detach().sum(0)
        return F.silu(x)


@pytest.mark.parametrize("kind", [Averaging, Dropping, Remembering])
def test_a_network_that_is_another_one_where_it_learns_is_refused(data, kind):
    with refused(f"'{kind.__name__}' does something else where a gradient is wanted"):
        ddpp.train_teachers(data, with_network(kind), **QUIET)


class Sized(Activated):
    def __init__(self, channels, classes, image_size, width=16, depth=3):
        super().__init__(channels, classes, image_size)
        self.last = nn.Sequential(nn.Linear(6, width), nn.Linear(width, classes))


def test_a_default_that_is_not_used_is_told(data):
    with pytest.warns(UserWarning, match="made with width 128.*not with its own default, 16"):
        data.network(ddpp.NetworkConfig(Sized))
    assert data.network(ddpp.NetworkConfig(Sized, width=8)).shapes["last.0.weight"] == (8, 6)


def test_what_networks_share_inside_stays_as_it_is(data):
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(192, 6), nn.SiLU())
    before = [p.clone() for p in backbone.parameters()]

    class Tuned(nn.Module):
        def __init__(self, classes):
            super().__init__()
            self.backbone, self.head = backbone, nn.Linear(6, classes)

        def forward(self, x):
            return self.head(self.backbone(x))

    teachers = ddpp.train_teachers(data, with_network(Tuned), **QUIET)
    made = ddpp.distill(data, teachers, CONFIG, **QUIET)
    protocol = ddpp.Protocol(epochs=1)
    assert len(ddpp.evaluate(made, data, Tuned, repeats=2, protocol=protocol, **QUIET).final) == 2
    for p, was in zip(backbone.parameters(), before, strict=True):
        assert p.dtype == torch.float32 and torch.equal(p, was)


def test_a_network_that_seeds_pytorch_is_noticed(data):
    with pytest.warns(UserWarning, match="same parameters whatever the seed"):
        data.network(ddpp.NetworkConfig(Seeding))


LIMIT = 0.0


def by_step(student, teacher, epsilon):
    return student.abs() >= LIMIT


def test_a_rule_may_work_in_inference_mode(data, teachers):
    def rule(student, teacher, epsilon):
        return student * teacher >= 0

    one, other = (
        ddpp.distill(data, teachers, replace(CONFIG, rule=each, leave_out=("bias",)), **QUIET)
        for each in ("sign", torch.inference_mode()(rule))
    )
    assert torch.equal(one.images, other.images)
    made = ddpp.distill(data, teachers, replace(CONFIG, rule=torch.inference_mode()(rule)), **QUIET)
    assert made.images.isfinite().all()


def test_a_rule_that_changes_during_a_run_is_refused_in_the_run_itself(
    data, teachers, tmp_path, monkeypatch
):
    def look(run):
        monkeypatch.setattr(sys.modules[__name__], "LIMIT", 0.01 * (run.state.step // 2))

    checkpoint = tmp_path / "checkpoint"
    config = replace(CONFIG, rule=by_step)
    with refused("the rule by_step reads a value that has changed in this run"):
        ddpp.distill(data, teachers, config, checkpoint=checkpoint, on_step=look, **QUIET)
    assert ddpp.DistilledDataset.load(checkpoint).provenance["stopped_at"] == 2


def test_a_mask_elsewhere_is_refused():
    student = torch.ones(3)
    with refused("a mask on meta for vectors on cpu", "device=student.device"):
        ddpp.keep_mask(student, student, 0.1, lambda s, t, e: torch.ones(3, device="meta") > 0)


@pytest.mark.parametrize("true", [True, np.bool_(True), torch.tensor(True)])
def test_on_step_may_answer_with_a_truth_of_numpy_or_torch(data, teachers, true):
    found = ddpp.distill(data, teachers, CONFIG, on_step=lambda run: true, **QUIET)
    assert found.provenance["stopped_at"] == 1
    for other in ([1], torch.tensor(0.02), torch.ones(2, 3), torch.ones(2, dtype=torch.bool)):
        found = ddpp.distill(data, teachers, CONFIG, on_step=lambda run, it=other: it, **QUIET)
        assert "stopped_at" not in found.provenance
    assert "stopped_at" not in found.provenance


# what a set was made from


def test_images_that_a_set_was_made_from_do_not_choose_among_its_iterates(path):
    data = load(path, validation=0.0)
    teachers = ddpp.train_teachers(data, TEACHERS, **QUIET)
    made = ddpp.distill(data, teachers, CONFIG, **QUIET)
    again = load(path, whitening=made.whitening, validation=0.3)
    with refused("made with a validation share of 0.0, here it is 0.3", "validation=0.0"):
        ddpp.evaluate(made, again, **QUIET)


def net_of(width):
    class Net(nn.Sequential):
        def __init__(self, channels, classes, image_size):
            size = channels * image_size**2
            super().__init__(nn.Flatten(), nn.Linear(size, width), nn.Linear(width, classes))

    return Net


def test_a_set_is_not_tested_on_another_network_of_the_same_name(data, tmp_path):
    first, other = net_of(3), net_of(4)
    teachers = ddpp.train_teachers(data, with_network(first), **QUIET)
    path = tmp_path / "set.safetensors"
    ddpp.distill(data, teachers, CONFIG, **QUIET).save(path)
    made, short = ddpp.DistilledDataset.load(path), ddpp.Protocol(epochs=1)
    how = {"repeats": 1, "protocol": short} | QUIET
    assert ddpp.evaluate(made, data, **how).final
    ARCHITECTURES["Net"] = other  # as in the next session, after the class was edited
    with refused("the network Net is not the one that the set was made with", "architecture=Net"):
        ddpp.evaluate(made, data, **how)
    assert ddpp.evaluate(made, data, "Net", **how).final


def test_a_width_that_a_network_does_not_take_is_refused(data):
    real = selection.random(data, 1, {"name": "convnet", "width": 4, "depth": 1})
    with refused("the network Activated has no width to choose"):
        ddpp.evaluate(real, data, Activated, width=64, **QUIET)


def test_a_set_made_without_mirrors_is_not_mirrored_without_a_word(data, teachers):
    made = ddpp.distill(data, teachers, replace(CONFIG, augment=("crop",)), **QUIET)
    with pytest.warns(UserWarning, match=r"operations crop alone.*augment=\('crop',\)"):
        ddpp.evaluate(made, data, repeats=1, **QUIET)
    quick = ddpp.Protocol(epochs=1, augment=("crop",))
    assert ddpp.evaluate(made, data, repeats=1, protocol=quick, **QUIET).final


def test_teachers_made_by_hand_are_not_taken_for_trained_ones(data, teachers, tmp_path):
    path, stop = tmp_path / "checkpoint", lambda run: run.state.step == 2
    ddpp.distill(data, teachers, CONFIG, checkpoint=path, on_step=stop, **QUIET)
    scaled = [{k: 2 * v for k, v in one.items()} for one in teachers.trajectories]
    identity = teachers.identity | {"scaled": 2}
    others = type(teachers)(scaled, identity, teachers.config, teachers.network)
    with refused("belongs to a run with other settings, data or teachers"):
        ddpp.distill(data, others, CONFIG, checkpoint=path, **QUIET)


def test_a_run_goes_on_with_another_engine(data, teachers, tmp_path):
    path, stop = tmp_path / "checkpoint", lambda run: run.state.step == 2
    ddpp.distill(data, teachers, CONFIG, checkpoint=path, on_step=stop, **QUIET)
    other = replace(CONFIG, engine="adjoint")
    found = ddpp.distill(data, teachers, other, checkpoint=path, **QUIET)
    whole = ddpp.distill(data, teachers, CONFIG, **QUIET)
    assert torch.allclose(found.images, whole.images, rtol=1e-3, atol=1e-4)
    engines = [machine["engine"] for machine in found.provenance["made_on"]]
    assert engines == ["autograd", "adjoint"]


def test_a_module_that_was_loaded_anew_has_its_new_rule(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / "rules_of_mine.py"
    file.write_text("def mine(s, t, e):\n    return s > 0\n")
    ddpp.DistillConfig(rule="rules_of_mine:mine")
    file.write_text("def mine(s, t, e):\n    return t > 0\n")
    importlib.reload(sys.modules["rules_of_mine"])
    config = ddpp.DistillConfig(rule="rules_of_mine:mine")
    mask = ddpp.keep_mask(torch.tensor([1.0]), torch.tensor([-1.0]), 0.1, config.rule)
    assert mask.tolist() == [False]


def test_two_functions_of_torchscript_have_two_names():
    text = "def f(images, u):\n    return images * {}\n"
    dim, blank, again = (torch.jit.CompilationUnit(text.format(k)).f for k in (0.8, 0.1, 0.8))
    one, other, same = (ddpp.TeacherConfig(augment=(f,)) for f in (dim, blank, again))
    assert (one.augment, other.augment, same.augment) == (("f",), ("f-2",), ("f",))


class Pair(namedtuple("Pair", "a b")):
    def total(self):
        return self.a + self.b


class OtherPair(namedtuple("Pair", "a b")):
    def total(self):
        return self.a * self.b


class Many(list):
    factor = 1


@pytest.mark.parametrize("one, other", [(Pair(1, 2), OtherPair(1, 2)), (Many([1]), [1])])
def test_methods_of_subclasses_of_built_in_classes_count(one, other):
    OtherPair.__name__ = "Pair"
    assert fingerprint(one) != fingerprint(other)


def test_attributes_of_subclasses_of_built_in_classes_count():
    one, other = Many([1]), Many([1])
    assert fingerprint(one) == fingerprint(other)
    other.factor = 2
    assert fingerprint(one) != fingerprint(other)


def test_a_comparison_has_the_preprocessing_of_the_data_that_it_was_given(data, path, tmp_path):
    base = replace(small_recipe(path, "ddpp", ipc=1, repeats=1), validation=0.5, zca=True)
    lines = []
    options = {"seeds": 1, "folder": tmp_path / "c", "say": lines.append} | QUIET
    ddpp.compare("signed", recipe=base, data=data, **options)
    report = next((tmp_path / "c").rglob("*.json")).read_text()
    assert f'"validation": {data.held_out}' in report and '"validation": 0.5' not in report


@pytest.mark.parametrize(
    "item, words",
    [
        ({"image": np.zeros((8, 8)), "label": 1}, "yields a dict: it must yield pairs"),
        ((np.zeros((8, 8)), "cat"), "yields a tuple of ndarray, str"),
        ((np.zeros((8, 8)), None), "yields a tuple of ndarray, NoneType"),
        ((np.zeros((8, 8)), 1.5), "yields a tuple of ndarray, float"),
        ([torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])], "yields a list of Tensor, Tensor"),
    ],
)
def test_a_dataset_that_yields_no_pairs_is_told_what_to_yield(item, words):
    with refused(f"the train dataset {words}", '(row["image"], row["label"])'):
        from_datasets([item], [item])


@pytest.mark.parametrize("name", ["convnet", "alexnet", "vgg11", "resnet18"])
def test_a_network_can_be_cut_into_layers_and_pickled(name):
    network = ARCHITECTURES[name](channels=3, classes=4, width=8)
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert torch.equal(network[-1](network[:-1](x)), network(x))
    assert network[:-1].state_dict().keys() < network.state_dict().keys()
    flat = ddpp.NetworkConfig(name, width=8).build(3, 4, 32)
    again = pickle.loads(pickle.dumps(flat))
    theta = flat.initial(0)
    assert torch.equal(again(theta, x), flat(theta, x))


def test_another_engine_is_named_when_a_run_goes_on_with_it(data, teachers, tmp_path):
    path, lines, stop = tmp_path / "checkpoint", [], lambda run: run.state.step == 2
    ddpp.distill(data, teachers, CONFIG, checkpoint=path, on_step=stop, **QUIET)
    other = replace(CONFIG, engine="adjoint")
    ddpp.distill(data, teachers, other, checkpoint=path, report=lines.append, **QUIET)
    assert lines[-1] == (
        "the steps before were made by the engine autograd: the bits may differ from a run of "
        "adjoint alone"
    )
