"""Random numbers are a function of a seed and a path of names, and the paths stay what they are:
files of earlier runs are resumed, and made again, with the same bits.
"""

import ast
import hashlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from small import CONFIG, TEACHERS, load, save

from ddpp.distilling import distill
from ddpp.evaluating import Protocol, evaluate
from ddpp.foundation import seeds
from ddpp.foundation.seeds import derive, generator
from ddpp.teachers import train_teachers

DDPP = Path(__file__).parents[1] / "ddpp"
# every call in ddpp: what is not written there is _, a part of any length *
PATHS = {
    "derive(_, 'audited model', _)",
    "derive(_, 'bptt', _)",
    "derive(_, 'cafe', _)",
    "derive(_, 'dm', _)",
    "derive(_, 'dsa', _)",
    "derive(_, 'teacher', _)",
    "derive(_, *)",  # of an evaluation: its role and the network's number
    "generator(0, 'derivatives')",
    "generator(0, 'fits')",
    "generator(0, 'in batches')",
    "generator(0, 'moved')",
    "generator(0, 'numbers', _)",
    "generator(0, 'probe')",
    "generator(0, 'random rule', _, _)",
    "generator(_, 'bootstrap')",
    "generator(_, 'bptt', _)",
    "generator(_, 'canaries')",
    "generator(_, 'class order')",
    "generator(_, 'cafe', _)",
    "generator(_, 'dm', _)",
    "generator(_, 'draw', _)",
    "generator(_, 'dsa', _)",
    "generator(_, 'halves')",
    "generator(_, 'kip', _)",
    "generator(_, 'labels')",
    "generator(_, 'networks')",
    "generator(_, 'noise')",
    "generator(_, 'shadows', _)",
    "generator(_, 'step', _, *)",  # and the trajectory's number, but not that of the first
    "generator(_, 'teacher', _, _)",
    "generator(_, 'tgdd', _)",
    "generator(_, 'ties')",
    "generator(_, *, 'batches')",
}


def paths(text: str) -> set[str]:
    """The calls of `generator` and `derive` in a file."""
    found = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rpartition(".")[2]
            if name in ("generator", "derive"):
                assert not node.keywords
                found.add(f"{name}({', '.join(map(shown, node.args))})")
    return found


def shown(argument: ast.expr) -> str:
    if isinstance(argument, ast.Starred):
        return "*"
    return repr(argument.value) if isinstance(argument, ast.Constant) else "_"


def test_random_numbers_depend_on_seed_and_path_alone():
    first = torch.rand(3, generator=generator(0, "step", 1))
    torch.manual_seed(5)
    assert torch.equal(first, torch.rand(3, generator=generator(0, "step", 1)))
    assert len({derive(s, "step", t) for s in range(10) for t in range(10)}) == 100


def test_numbers_of_numpy_are_the_same_seeds():
    assert derive(np.int64(3), "step", np.int32(17)) == derive(3, "step", 17)


def test_a_seed_of_a_path_is_the_same_in_every_version():
    assert derive(0, "step", 17) == 879894099
    assert derive(1, "random rule", 0.5, -2.0) == 185453866


def test_the_paths_of_seeds_are_those_of_stored_files():
    files = [path for path in DDPP.rglob("*.py") if path.name != "seeds.py"]
    assert set().union(*(paths(path.read_text()) for path in files)) == PATHS


def test_a_call_that_is_the_first_to_use_cuda_is_no_draw(monkeypatch):
    begun = []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: bool(begun))
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [torch.zeros(1)])
    assert seeds.drawn(lambda: begun.append(1)) == (None, False)
    begun.clear()
    assert seeds.drawn(lambda: begun.append(torch.rand(())))[1]


def test_another_path_is_seen():
    text = 'def f(x):\n    return seeds.generator(x.seed, "steps", *x.path, 1.5)'
    assert paths(text) == {"generator(_, 'steps', *, 1.5)"}


def test_a_run_uses_these_paths(tmp_path, monkeypatch):
    used, data = set(), load(save(tmp_path / "mine.npz"), validation=0.2)

    def record(text):
        used.add(text.decode())
        return hashlib.sha256(text)

    monkeypatch.setattr(seeds, "hashlib", SimpleNamespace(sha256=record))
    teachers = train_teachers(data, TEACHERS, progress=False)
    distilled = distill(data, teachers, CONFIG, progress=False)
    evaluate(distilled, data, repeats=2, protocol=Protocol(epochs=1), seed=3, progress=False)
    drawn = {text for text in used if "probe" not in text and "moved" not in text}
    assert drawn == {
        *(f"(0, 'teacher', {k})" for k in range(2)),
        *(f"(0, 'teacher', {k}, {epoch})" for k in range(2) for epoch in (1, 2, 3)),
        "(0, 'draw', 1)",
        "(3, 'validation', 0)",
        "(3, 'validation', 0, 'batches')",
        *(f"(0, 'step', {step})" for step in range(4)),
        *(f"(3, 'test', {number})" for number in range(2)),
        *(f"(3, 'test', {number}, 'batches')" for number in range(2)),
    }
