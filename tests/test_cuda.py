"""On a GPU nothing is left on the CPU: the whole way, on a pretended GPU (see pretending.py), to
the CPU's results.

What it cannot see: the kernels of CUDA and their speed, memory, compilation, and real CUDA graphs,
which are tapes here; the tests there that need a GPU are for these.
"""

import contextlib
import copy
import importlib
from dataclasses import replace

import pytest
import torch
from pretending import Tape, gpu, tapes
from small import UNLIKE, refused, small_recipe

from ddpp import (
    DistillConfig,
    DistilledDataset,
    Error,
    NetworkConfig,
    Protocol,
    TeacherConfig,
    distilling,
    evaluate,
    load_data,
    train_teachers,
)
from ddpp.baselines import bptt, selection
from ddpp.data.augmentation import OPERATIONS, Draw, as_augmentation, augment
from ddpp.evaluating import train
from ddpp.experiments.methods import METHODS
from ddpp.experiments.run import Experiment
from ddpp.foundation.devices import clock
from ddpp.foundation.loop import Saving
from ddpp.pruning import RULES
from ddpp.studies import Design, Grid, Search, audit, membership, private, rank, remember
from ddpp.unrolling import ENGINES

TEACHERS = TeacherConfig(
    count=2, epochs=3, lr=0.02, batch=10, network=NetworkConfig(width=4, depth=1)
)
CONFIG = DistillConfig(steps=2, student_steps=8, image_lr=10.0, alpha0=0.02, batch=2, iterates=2)
PROTOCOL = Protocol(epochs=1)
SMALL = {
    "dc": {"steps": 2, "outer": 2, "inner": 2, "batch_real": 8},
    "dsa": {"steps": 2, "outer": 2, "inner": 2, "batch_real": 8},
    "dm": {"steps": 2, "batch_real": 8},
    "cafe": {
        "steps": 2,
        "batch_real": 8,
        "queries": 4,
        "window": 2,
        "most": 3,
        "weights": (1.0, 1.0),
    },
    "tgdd": {"steps": 2, "batch_real": 8, "epochs": 3},
    "kip": {"steps": 2, "target": 20},
    "bptt": {"steps": 2, "window": 2, "max_updates": 3, "target": 8, "image_lr": 0.01},
    "herding": {"epochs": 2},
    "forgetting": {"epochs": 2},
}


@pytest.fixture
def cuda(monkeypatch):
    """A pretended GPU; graphs are tapes, and torch.compile has done its work."""
    with tapes(monkeypatch), gpu(monkeypatch) as there:
        yield there


@pytest.fixture
def path(npz):
    return npz(channels=3)


def make(path, method="ddpp", device=None, saving=None, **changes):
    """Teachers, a method, and its evaluation, on one device; returns the data, the set and what it
    is worth.
    """
    data = load_data(path, zca=True, device=device)
    method = METHODS[method]
    source = train_teachers(data, TEACHERS, progress=False) if method.teachers else TEACHERS.network
    config = method.config(**dict(method.settings) | changes)
    distilled = method.run(data, source, config, saving or Saving(progress=False))
    return data, distilled, evaluate(distilled, data, repeats=1, protocol=PROTOCOL, progress=False)


@pytest.mark.parametrize("engine", ["auto", *ENGINES])
def test_a_distillation_and_its_evaluation_are_the_same_on_a_gpu(path, cuda, engine):
    settings = {**vars(CONFIG), "engine": engine}
    data, there, score = make(path, **settings)
    assert {tensor.device.type for tensor in (data.train.images, there.images, there.alpha)} == {
        "cuda"
    }
    made_on = there.provenance["made_on"][0]
    assert (made_on["device"], made_on["engine"]) == (
        "cuda: a pretended GPU",
        "adjoint" if engine == "auto" else engine,  # so few steps are not worth compiling
    )
    on_cpu = make(path, device="cpu", **settings | {"engine": "adjoint"})
    assert on_cpu[1].images.device.type == "cpu"
    torch.testing.assert_close(there.images.cpu(), on_cpu[1].images)
    assert not torch.equal(there.images.cpu(), there.at(0).images.cpu())
    assert score.final == pytest.approx(on_cpu[2].final)


@pytest.mark.slow
@pytest.mark.parametrize("rule", RULES)
def test_every_rule_prunes_there(path, cuda, rule):
    _, there, _ = make(path, **vars(replace(CONFIG, steps=1, student_steps=2, rule=rule)))
    assert torch.isfinite(there.history["loss"]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in METHODS if name != "ddpp"])
def test_every_rival_works_there(path, cuda, name):
    matching = (
        {"steps": 2, "student_steps": 3} if issubclass(METHODS[name].config, DistillConfig) else {}
    )
    settings = SMALL.get(name, matching)
    _, there, score = make(path, name, **settings)
    _, here, on_cpu = make(path, name, device="cpu", **settings)
    assert there.images.device.type == "cuda"
    torch.testing.assert_close(there.images.cpu(), here.images, rtol=1e-4, atol=1e-5)
    assert score.final == pytest.approx(on_cpu.final, abs=2)


def test_a_run_goes_on_there_from_its_checkpoint_and_its_file_is_read_anywhere(
    path, cuda, tmp_path
):
    settings = vars(replace(CONFIG, engine="adjoint"))
    saving = Saving(tmp_path / "checkpoint", save_steps=1, progress=False)
    _, whole, _ = make(path, saving=saving, **settings)
    said = []
    _, again, _ = make(path, saving=replace(saving, report=said.append), **settings)
    assert any("resuming from step 2" in line for line in said)
    assert torch.equal(again.images, whole.images)
    whole.save(tmp_path / "set.safetensors")
    read = DistilledDataset.load(tmp_path / "set.safetensors")
    assert read.images.device.type == "cpu"
    assert torch.equal(read.images, whole.images.cpu())
    assert read.to("cuda").natural().device.type == "cpu"
    assert whole.picture().size == read.picture().size


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_augmentation_takes_numbers_of_the_cpu(cuda, operation):
    images, how = torch.rand(4, 3, 12, 12), Draw(operation, torch.rand(4, 3))
    out = augment(images.to("cuda"), how)
    assert out.device.type == "cuda"
    assert torch.equal(out.cpu(), augment(images, how))


# The pretended GPU is as strict as a real one


def numbers_on_the_cpu(operation):
    return lambda images, u: operation(images, u.cpu())


def with_numbers_on_the_cpu(table):
    for name, operation in list(table.items()):
        table[name] = numbers_on_the_cpu(operation)
    return table


LEFT = {  # what is left on the CPU: the function that makes it, and another in its place
    "a teacher": ("teachers", "Teachers.snapshot", lambda f: lambda *args: f(*args).cpu()),
    "the start of a network": ("networks", "Flat.initial", lambda f: lambda *args: f(*args).cpu()),
    "labels": (
        "distilling",
        "step",
        lambda f: lambda state, labels, *rest: f(state, labels.cpu(), *rest),
    ),
    "images": ("distilling", "begin", lambda f: lambda start, config: f(start.to("cpu"), config)),
    "the numbers of an augmentation": (
        "data.augmentation",
        "OPERATIONS",
        lambda table: with_numbers_on_the_cpu(copy.copy(table)),
    ),
    "a mask": ("distilling", "keep_mask", lambda f: lambda *args: f(*args).cpu()),
}


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("left", LEFT)
def test_a_tensor_that_is_left_on_the_cpu_is_found(path, cuda, monkeypatch, engine, left):
    module, name, change = LEFT[left]
    owner = importlib.import_module(f"ddpp.{module}")
    *path_to, name = name.split(".")
    owner = getattr(owner, *path_to) if path_to else owner
    monkeypatch.setattr(owner, name, change(getattr(owner, name)))
    # compiled warns, and gives up; operations that are not ddpp's own are tried before the run
    with pytest.raises((RuntimeError, UserWarning, Error), match="cuda:0"):
        make(path, **{**vars(CONFIG), "engine": engine})


def test_the_rules_of_a_gpu_are_kept(cuda):
    there, here = torch.ones(3, device="cuda"), torch.ones(3)
    assert (there + 1).device.type == (there * torch.tensor(2.0)).device.type == "cuda"
    assert there[torch.tensor([0, 2])].device.type == "cuda"
    assert torch.zeros_like(there).device.type == "cuda"
    assert here.to(there).device.type == "cuda"
    assert here.device.type == "cpu"
    here.copy_(there)
    for mistake in (
        lambda: there + here,
        lambda: here * there.sum(),
        lambda: here[torch.tensor([0], device="cuda")],
        lambda: torch.stack([there, here]),
        lambda: torch.stack([there.sum(), torch.tensor(0.0)]),
        lambda: torch.tensor(0.0).sub_(there.sum()),
        lambda: torch.index_select(there, 0, torch.tensor([0])),
        lambda: torch.rand(3, device="cuda", generator=torch.Generator()),
    ):
        with pytest.raises(RuntimeError, match="cuda"):
            mistake()
    with pytest.raises(TypeError, match="cuda"):
        there.numpy()


# What is made of sets


SIDES = ("cuda", "cpu")


def both(cuda, make):
    """What a function of a device returns there, and here."""
    return tuple(make(side) for side in SIDES)


def test_an_audit_is_the_same_there(npz, cuda, tmp_path, monkeypatch):
    monkeypatch.setattr(membership, "RESAMPLES", 20)
    base = small_recipe(npz(classes=2, size=8, per_class=12), "mtt", ipc=1, repeats=1)
    design, quiet = Design(images=12, canaries=12, models=6), Saving(progress=False)
    there, here = both(cuda, lambda to: audit(base, tmp_path / to, design, device=to, saving=quiet))
    assert there.all["closer"].auc == pytest.approx(here.all["closer"].auc, abs=0.01)
    assert there.accuracies == pytest.approx(here.accuracies, abs=9)


def test_a_memory_is_the_same_there(npz, cuda, tmp_path):
    base = small_recipe(npz(classes=4), "dm", ipc=1, repeats=1, steps=2, batch_real=4, iterates=1)
    base = replace(base, protocol=Protocol(epochs=20))
    how = {"tasks": 2, "rate": 0.02, "saving": Saving(progress=False)}
    there, here = both(cuda, lambda to: remember(base, tmp_path / to, device=to, **how))
    assert len(there) == len(here) == 2
    for k, (a, b) in enumerate(zip(there, here, strict=True)):
        assert (a.classes, a.images) == (b.classes, b.images)
        assert a.accuracies == pytest.approx(b.accuracies, abs=5)
        made, like = (DistilledDataset.load(tmp_path / to / f"task{k}.safetensors") for to in SIDES)
        torch.testing.assert_close(made.images, like.images)


def test_a_ranking_moves_sets_to_their_data(npz, cuda, tmp_path):
    path, small = npz(), Search(small_epochs=1, epochs=1, batch=20)
    grid = Grid(width=(4, 8), depth=(1,), norm=("none",), activation=("relu",), pooling=("max",))
    here = load_data(path, zca=False, validation=0.2, device="cpu")
    selection.random(here, 2, {}).save(tmp_path / "set.safetensors")
    sets = {"random": [DistilledDataset.load(tmp_path / "set.safetensors")]}
    made = lambda to: rank(
        grid.candidates(),
        sets,
        load_data(path, zca=False, validation=0.2, device=to),
        tmp_path / to,
        small,
        progress=False,
    )
    there, here = both(cuda, made)
    assert torch.allclose(there.truth, here.truth, atol=4)


def threshold_on(device):
    """A rule that holds a tensor on a device."""
    threshold = torch.tensor([0.01], device=device)

    def above(student, teacher, epsilon):
        return student.abs() > threshold

    return above


def gain_on(device):
    gain = torch.tensor([1.1], device=device)

    def louder(images, numbers):
        return images * gain

    return louder


@UNLIKE
def test_what_is_of_ones_own_is_tried_out_where_it_will_run(npz, cuda, tmp_path):
    base = small_recipe(npz(classes=2), "ddpp", ipc=1, repeats=1)
    for made, words in ((threshold_on, "the rule fails"), (gain_on, "cannot take images")):
        there, here = made("cuda"), made("cpu")
        change = "rule" if made is threshold_on else "augment"
        for function, fails in ((there, False), (here, True)):
            value = function if change == "rule" else (function,)
            recipe = replace(base, distill=replace(base.distill, **{change: value}))
            out = tmp_path / f"{change} {fails}" / "set.safetensors"
            run = Experiment(recipe, out, device="cuda", saving=Saving(progress=False))
            with refused(words) if fails else contextlib.nullcontext():
                run.run()
            assert run.folder.exists() != fails  # no teacher is trained before


def waits_for_the_host(images, numbers):
    return images * (0.5 + 0.1 * float(numbers[0, 0]))


@UNLIKE
def test_an_operation_that_waits_for_the_host_is_in_no_graph(path, cuda):
    settings = {**vars(CONFIG), "augment": as_augmentation((waits_for_the_host,))}
    _, there, _ = make(path, **settings | {"engine": "compiled"})  # it would warn, an error here
    _, here, _ = make(path, device="cpu", **settings | {"engine": "adjoint"})
    torch.testing.assert_close(there.images.cpu(), here.images)
    with torch.cuda.graph(Tape(), None, None):
        for mistake in (
            lambda: torch.ones(2).to("cuda"),
            lambda: torch.tensor([1.0], device="cuda"),
            lambda: float(cuda.place(torch.ones(1), there=True)),
        ):
            with pytest.raises(RuntimeError, match="not permitted when stream is capturing"):
                mistake()


def interrupt(_):
    raise KeyboardInterrupt


@pytest.mark.parametrize("name, module", [("ddpp", distilling), ("bptt", bptt)])
def test_a_run_that_stops_frees_the_memory_of_its_graphs(path, cuda, monkeypatch, name, module):
    freed = []
    monkeypatch.setattr(module, "free_memory", lambda: freed.append(name))
    settings = vars(CONFIG) if name == "ddpp" else SMALL["bptt"]
    stopped = Saving(progress=False, on_step=interrupt)
    with pytest.raises(KeyboardInterrupt):
        make(path, name, saving=stopped, **settings | {"engine": "compiled"})
    assert freed == [name]


class LeavesATensorBehind(torch.nn.Module):
    def __init__(self, channels, classes):
        super().__init__()
        self.linear = torch.nn.Linear(channels, classes)
        self.scale = torch.ones(channels)  # no buffer, so `to` does not move it

    def forward(self, x):
        return self.linear(x.mean((2, 3)) * self.scale)


def test_a_network_of_ones_own_is_tried_out_where_it_will_run(cuda):
    network = NetworkConfig(LeavesATensorBehind)
    assert network.build(3, 2, 8, "cpu").size == 8
    with refused("works on the CPU, but not on cuda", "same device"):
        network.build(3, 2, 8, "cuda")


def test_a_set_from_a_file_is_trained_on_where_the_network_is(path, cuda, tmp_path):
    data = load_data(path, zca=True)
    selection.random(data, 2, {}).save(tmp_path / "set.safetensors")
    read, network = DistilledDataset.load(tmp_path / "set.safetensors"), TEACHERS.network
    theta = train(data.network(network), read, PROTOCOL, 0)
    assert theta.device.type == "cuda"
    noise = private.Noise(sigma=1.0, max_norm=1.0, images=20)
    theta = private.train(data.network(network), read, PROTOCOL, noise, 0)
    assert theta.device.type == "cuda"


def test_a_kernel_needs_memory_that_is_free(path, cuda, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**10, 2**34))
    with refused("GiB, and 0.0 are there"):
        make(path, "kip", **SMALL["kip"])


def test_time_on_a_gpu_is_that_of_its_work(cuda, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    began = clock(torch.device("cuda"))
    assert clock(torch.device("cuda")) > began and len(waited) == 2
    assert clock(torch.device("cpu")) >= 0 and len(waited) == 2
