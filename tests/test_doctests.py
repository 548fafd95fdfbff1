"""The examples in the docstrings run, and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest

import ddpp

ROOT = Path(ddpp.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in ROOT.rglob("*.py")
    if ">>> " in path.read_text()
)
SHOWN = """
    data.images.ImageData data.loading.load_data data.folder.pack_folder data.whitening.fit_zca
    data.augmentation.draw data.augmentation.augment
    networks.architectures.ConvNet networks.config.NetworkConfig
    teachers.TeacherConfig teachers.Teachers
    distilled.dataset.DistilledDataset distilled.dataset.DistilledDataset.save
    distilled.dataset.DistilledDataset.load distilled.dataset.DistilledDataset.natural
    distilled.dataset.DistilledDataset.at distilled.dataset.DistilledDataset.picture
    teachers.train_teachers unrolling.unroll unrolling.updates.draw_updates
    pruning.similarity pruning.keep_mask pruning.matching_loss
""".split()


def examples(module):
    """Those of a module, by the name of what they are examples of."""
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module), module)
    return {test.name: test for test in found if test.examples}


@pytest.mark.parametrize("module", MODULES)
def test_the_examples_print_what_they_say(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write a file
    found = examples(module)
    assert found
    runner, said = doctest.DocTestRunner(), []
    for test in found.values():
        runner.run(test, out=said.append)
    assert runner.failures == 0, "".join(said)
    assert runner.tries == sum(len(test.examples) for test in found.values())


def test_what_users_call_has_an_example():
    found = {name for module in MODULES for name in examples(module)}
    assert [name for name in SHOWN if f"ddpp.{name}" not in found] == []


def test_a_wrong_example_is_noticed():
    test = doctest.DocTestParser().get_doctest(">>> 1 + 1\n3\n", {}, "wrong", None, 0)
    runner = doctest.DocTestRunner()
    runner.run(test, out=lambda _: None)
    assert runner.failures == 1
