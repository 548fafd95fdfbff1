"""The engine `compiled`: equal to the others, compiled once, and replaced by `adjoint` where it
cannot work.
"""

import warnings
from functools import lru_cache, partial
from types import SimpleNamespace

import pretending
import pytest
import torch
from torch._dynamo.utils import counters
from torch._inductor import config
from torch.utils._pytree import tree_map

from ddpp.data.augmentation import OPERATIONS, Draw, as_augmentation
from ddpp.foundation.devices import find_device
from ddpp.foundation.seeds import generator
from ddpp.networks import ConvNet, Flat, NetworkConfig
from ddpp.pruning import RULES, matching_loss
from ddpp.unrolling import (
    ENGINES,
    Updates,
    choose_engine,
    compiled,
    draw_updates,
    free_memory,
    unroll,
)
from ddpp.unrolling.adjoint import adjoint_engine

# one shape of batch throughout: it is compiled once, in half a minute
BATCH, CLASSES, SIZE = (
    4,
    3,
    12,
)
FIELDS = ("student", "loss", "grad_images", "grad_alpha")
OWN = compiled.student  # before a fixture replaces it


def make_network(width=4):
    # anew, not the one of another test
    return Flat(partial(ConvNet, 3, CLASSES, width, depth=1, image_size=SIZE))


@pytest.fixture(scope="module", autouse=True)
def keep_compiled():
    """A run keeps one student; here, tests of several kinds take turns."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "student", lru_cache(maxsize=8)(compiled.student.__wrapped__))
        yield


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture
def uncompiled(monkeypatch):
    """As if torch.compile had done its work: tests of what surrounds it need not wait for it."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def solve(
    network, engine, updates, size=6, dtype=torch.float64, epsilon=0.1, rule="signed", device="cpu"
):
    """Unroll a small problem, the same at every call, with one engine."""
    rng = generator(0, "problem")
    start = network.initial(0).cpu().double()
    teacher = start + 0.02 * torch.randn(start.shape, generator=rng, dtype=torch.float64)
    images = torch.randn(size, 3, SIZE, SIZE, generator=rng, dtype=torch.float64)
    start, teacher, images, alpha = (
        t.to(device, dtype) for t in (start, teacher, images, torch.tensor(0.02))
    )
    loss = lambda student: matching_loss(student, teacher, start, epsilon, rule)
    labels = torch.arange(size, device=device) % CLASSES
    return unroll(network, start, images, labels, alpha, updates, loss, engine)


def differences(a, b):
    of = lambda result, field: getattr(result, field).cpu().double()
    return [float((of(a, f) - of(b, f)).norm() / of(b, f).norm()) for f in FIELDS]


def twice(operation):
    how = operation and Draw(
        operation, torch.rand(BATCH, 3, generator=generator(2), dtype=torch.float64)
    )
    return Updates([torch.tensor([5, 0, 3, 1])] * 2, [how] * 2)


# The same results


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("size, batch", [(4, None), (6, BATCH)])
@pytest.mark.parametrize("rule", ["signed", "magnitude"])
def test_the_compiled_engine_agrees_with_the_others(network, steps, size, batch, rule):
    updates = draw_updates(size, batch, steps, generator(1, "updates"))
    compiled, adjoint, autograd = (
        solve(network, engine, updates, size, rule=rule)
        for engine in ("compiled", "adjoint", "autograd")
    )
    assert autograd.grad_images.abs().max() > 0
    assert autograd.grad_alpha != 0
    assert max(differences(compiled, adjoint)) < 1e-10
    assert max(differences(compiled, autograd)) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("operation", [None, *OPERATIONS])
def test_it_agrees_through_every_augmentation(network, operation):
    compiled, adjoint = (
        solve(network, engine, twice(operation)) for engine in ("compiled", "adjoint")
    )
    assert max(differences(compiled, adjoint)) < 1e-10


@pytest.mark.slow
def test_in_single_precision_it_is_right_to_single_precision(network, monkeypatch):
    # all but the slow C++ compiler
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    updates = draw_updates(6, BATCH, 5, generator(1, "updates"))
    single, double = (
        solve(network, "compiled", updates, dtype=dtype) for dtype in (torch.float32, torch.float64)
    )
    assert single.grad_images.dtype == torch.float32
    assert max(differences(single, double)) < 1e-4


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("operation", [None, *OPERATIONS])
def test_on_a_gpu_gradients_are_those_of_double_precision_on_the_cpu(network, engine, operation):
    find_device("cuda")  # switches TF32 off
    there = NetworkConfig(width=4, depth=1).build(3, CLASSES, SIZE, "cuda")
    exact = solve(network, "adjoint", twice(operation))
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        # a fallback is not what is tested
        warnings.filterwarnings("error", message="the engine compiled")
        found = solve(there, engine, twice(operation), dtype=torch.float32, device="cuda")
    assert max(differences(found, exact)) < 1e-4


# Compiled once


def test_rounding_is_no_reason_to_give_up_whatever_the_rule(monkeypatch):
    scale = lambda tensor: tensor * (1 + 3e-7)
    monkeypatch.setattr(
        torch, "compile", lambda function, **_: lambda *args: tree_map(scale, function(*args))
    )
    updates = draw_updates(6, BATCH, 5, generator(1, "updates"))
    for rule in RULES:
        with warnings.catch_warnings(action="error"):
            solve(make_network(), "compiled", updates, epsilon=0.3, rule=rule)


@pytest.mark.slow
def test_a_second_step_compiles_nothing(network):
    updates = draw_updates(6, BATCH, 5, generator(1, "updates"))
    solve(network, "compiled", updates)
    before = counters["stats"]["unique_graphs"]
    assert before > 0
    solve(network, "compiled", draw_updates(6, BATCH, 8, generator(2, "updates")), epsilon=0.3)
    solve(network, "compiled", draw_updates(4, None, 8, generator(3, "updates")), size=4)
    assert counters["stats"]["unique_graphs"] == before


@pytest.mark.slow
def test_a_process_may_go_on_to_any_number_of_networks(monkeypatch):
    # the limit is not the backend's
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    before = counters["stats"]["unique_graphs"]
    # a second compilation of the same code would be an error
    with torch._dynamo.config.patch(recompile_limit=1):
        for width in (2, 3, 4):
            network = make_network(width)
            compiled, adjoint = (
                solve(network, engine, twice(None)) for engine in ("compiled", "adjoint")
            )
            assert max(differences(compiled, adjoint)) < 1e-10
    assert counters["stats"]["unique_graphs"] - before == 2 * 3


def test_it_does_not_keep_every_network(uncompiled, monkeypatch):
    monkeypatch.setattr(compiled, "student", OWN)
    for _ in range(3):
        solve(make_network(), "compiled", twice(None))
    assert OWN.cache_info().currsize == 1


# Where it cannot work


def fails(function, **_):
    raise RuntimeError("no kernels today\nand many more lines")


def is_wrong(function, **_):
    """A compiler that drops the part of H, the least visible of mistakes."""
    if function.__name__ == "slope":
        return function
    return lambda *a: (torch.zeros_like(a[1]), *function(*a)[1:])


def leaves_the_numbers(function, **_):
    if function.__name__ == "slope":
        return function
    return lambda *a: tuple(part * torch.nan for part in function(*a))


@pytest.mark.parametrize(
    "broken, reason",
    [
        (fails, "no kernels today and many more lines"),
        (is_wrong, "its grad_images differs from adjoint's by "),
        (leaves_the_numbers, "its grad_images differs from adjoint's by nan"),
    ],
)
def test_where_it_fails_it_says_so_once_and_adjoint_takes_its_place(monkeypatch, broken, reason):
    monkeypatch.setattr(torch, "compile", broken)
    network, updates = make_network(), twice("flip")
    with pytest.warns(
        UserWarning,
        match=f"engine compiled cannot be used here .*{reason}.* ask for the engine adjoint",
    ):
        first = solve(network, "compiled", updates)
    second = solve(network, "compiled", updates)  # without a warning, which would be an error
    adjoint = solve(network, "adjoint", updates)
    for result in (first, second):
        assert all(torch.equal(getattr(result, field), getattr(adjoint, field)) for field in FIELDS)


def full_at_once(*_):
    raise torch.OutOfMemoryError


def full_in_a_capture(*_):
    try:
        raise torch.OutOfMemoryError
    finally:  # as a graph does where it cannot be ended
        raise RuntimeError("operation failed due to a previous error during capture")


def full_says_the_driver(*_):
    raise RuntimeError("CUDA error: out of memory")


@pytest.mark.parametrize("full", [full_at_once, full_in_a_capture, full_says_the_driver])
def test_a_full_memory_is_no_reason_to_give_up(uncompiled, monkeypatch, full):
    network, updates = make_network(), twice("flip")
    adjoint = solve(network, "adjoint", updates)

    with monkeypatch.context() as now:
        now.setattr(compiled, "walk", full)
        with pytest.warns(UserWarning, match="memory was full, .* the engine adjoint made this"):
            assert max(differences(solve(network, "compiled", updates), adjoint)) == 0
    walked = []
    original = compiled.walk
    monkeypatch.setattr(compiled, "walk", lambda *args: walked.append(1) or original(*args))
    assert max(differences(solve(network, "compiled", updates), adjoint)) < 1e-10
    assert len(walked) == 2  # to compare, and the step itself


def test_a_memory_that_stays_full_is_one(uncompiled, monkeypatch):
    network, updates = make_network(), twice("flip")

    def full(*_):
        raise torch.OutOfMemoryError("no room on the GPU")

    monkeypatch.setattr(compiled, "walk", full)
    with pytest.warns(UserWarning, match="memory was full"):
        solve(network, "compiled", updates)
    with pytest.warns(UserWarning, match="cannot be used here .no room on the GPU."):
        solve(network, "compiled", updates)
    solve(network, "compiled", updates)  # without a warning, which would be an error


def test_a_step_that_cannot_be_compared_is_made_by_adjoint(uncompiled, monkeypatch):
    walked = []
    original = compiled.walk
    monkeypatch.setattr(compiled, "walk", lambda *args: walked.append(1) or original(*args))
    zeros = lambda *args: adjoint_engine(*args)._replace(grad_alpha=torch.zeros(()))
    monkeypatch.setattr(compiled, "adjoint_engine", zeros)
    solve(make_network(), "compiled", twice("flip"))
    assert len(walked) == 1  # to compare


def test_labels_that_are_distributions_are_adjoints_work(uncompiled):
    network = make_network()
    labels = torch.full((4, CLASSES), 1 / CLASSES, dtype=torch.float64)
    images = torch.randn(4, 3, SIZE, SIZE, generator=generator(0), dtype=torch.float64)
    updates = draw_updates(4, 2, 3, generator(0, "updates"))
    start = network.initial(0).double()
    loss = lambda theta: theta.square().sum()
    alpha = torch.tensor(0.1, dtype=torch.float64)
    with warnings.catch_warnings(action="error"):
        mine, other = (
            unroll(network, start, images, labels, alpha, updates, loss, engine)
            for engine in ("compiled", "adjoint")
        )
    assert torch.equal(mine.grad_images, other.grad_images)


@pytest.mark.slow
def test_without_a_compiler_a_step_is_made_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))  # where nothing is compiled yet
    no_compiler = config.patch({"cpp.cxx": (None, "/nonexistent")})
    with no_compiler, pytest.warns(UserWarning, match="No working C\\+\\+ compiler"):
        compiled = solve(make_network(), "compiled", twice("crop"))
    adjoint = solve(make_network(), "adjoint", twice("crop"))
    assert differences(compiled, adjoint) == [0, 0, 0, 0]


def test_an_error_of_the_callers_is_the_callers(uncompiled, monkeypatch):
    from ddpp.foundation.errors import Error

    def full(*_):
        raise Error("no room")

    monkeypatch.setattr("ddpp.unrolling.adjoint.StudentPath.push", full)
    with pytest.raises(Error, match="no room"):
        solve(make_network(), "compiled", twice("flip"))


# On a GPU


@pytest.fixture
def tapes(monkeypatch):
    """Students capture on tapes, as on a GPU they do in CUDA graphs."""
    original = compiled.Student.__init__

    def init(self, *args):
        original(self, *args)
        self._pool, self._side = "a pool", torch.cuda.Stream()

    monkeypatch.setattr(compiled.Student, "__init__", init)
    with pretending.tapes(monkeypatch) as made:
        yield made


def test_updates_captured_once_and_replayed_give_the_same(tapes):
    network, draws, made = make_network(), generator(4, "updates"), []
    for _ in range(3):
        updates = draw_updates(6, BATCH, 30, draws)
        assert {how.operation for how in updates.draws} == set(OPERATIONS)
        compiled, adjoint = (solve(network, engine, updates) for engine in ("compiled", "adjoint"))
        assert max(differences(compiled, adjoint)) < 1e-10
        made.append(len(tapes))
    # there and back, and anew after an operation was checked, which needs room for two engines
    assert 2 * len(OPERATIONS) <= made[0] < 4 * len(OPERATIONS)
    assert made[1] - made[0] <= 2 * len(OPERATIONS) and made[2] == made[1]


def darker(images, numbers):
    return images * torch.tensor(0.5 + 0.1 * float(numbers[0, 0]))  # this waits for the host


def test_an_operation_of_ones_own_is_in_no_graph(tapes):
    (name,) = as_augmentation((darker,))
    compiled, adjoint = (
        solve(make_network(), engine, twice(name)) for engine in ("compiled", "adjoint")
    )
    assert max(differences(compiled, adjoint)) < 1e-10
    assert not tapes


def test_memory_that_was_freed_is_captured_anew(tapes):
    network, made = make_network(), []
    for free in (False, True, False):
        solve(network, "compiled", twice("flip"))
        made.append(len(tapes))
        if free:
            free_memory()
    assert made == [2, 2, 4]


def test_no_update_waits_for_the_host(tapes):
    solve(make_network(), "compiled", draw_updates(6, BATCH, 30, generator(4, "updates")))
    made = {call[0].overloadpacket for tape in tapes for call in tape.calls}
    aten = torch.ops.aten
    assert aten.sub_ in made
    assert not made & {
        aten._local_scalar_dense,
        aten.nonzero,
        aten.masked_select,
        aten.is_nonzero,
        aten.equal,
    }


def test_on_a_gpu_it_is_the_engine(network):
    there = SimpleNamespace(device=torch.device("cuda"))
    engine, why = choose_engine(network, there, None, None, 50, 1000)
    assert (engine, "GPU" in why) == ("compiled", True)
    engine, why = choose_engine(network, there, None, None, 15, 80)
    assert (engine, why) == ("adjoint", "1,200 updates take less time than compiling them")
