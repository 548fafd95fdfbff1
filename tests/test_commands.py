"""The command line itself: its commands, what their help lists, old spellings, and who may import
what.
"""

import dataclasses
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ddpp
from ddpp import cli
from ddpp.baselines import selection
from ddpp.cli import commands, parsing
from ddpp.cli.options import OWN_NAME
from ddpp.data.sources import SHA256
from ddpp.experiments.methods import METHODS
from ddpp.experiments.recipes import PROFILES
from ddpp.foundation import processes
from ddpp.networks import ARCHITECTURES
from ddpp.pruning import RULES
from ddpp.unrolling import ENGINES

ROOT = Path(__file__).parents[1]
COMMANDS = (
    "teachers distill compare reproduce remember rank audit evaluate judge show export pack".split()
)
COMMANDS += ["assign", "grade"]
SMALL = """--validation 0 --repeats 1 --teachers.count 1 --teachers.epochs 3 --teachers.batch 6
    --protocol.epochs 2 --teachers.network.width 4 --teachers.network.depth 1 --steps 2
    --student-steps 2 --iterates 1 --device cpu""".split()


@pytest.fixture
def help_of(capsys, monkeypatch):
    """The help of a command line, at a width in columns."""

    def call(*words, columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([*words, "--help"])
        assert end.value.code == 0
        return re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)

    return call


@pytest.fixture
def distilled(npz, tmp_path):
    """The options that say where data and a small distilled file are; the file is made once."""
    data, out = npz(), tmp_path / "set.safetensors"
    assert cli.main(["distill", "--data", str(data), "--out", str(out), *SMALL]) == 0
    return [str(out), "--data", str(data), "--device", "cpu", "--repeats", "1"]


# commands


def test_the_version_is_that_of_the_package(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"ddpp {ddpp.__version__}\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ddpp.__version__ == project["version"] == importlib.metadata.version("ddpp")


def test_without_a_command_all_of_them_are_listed(capsys):
    said = []
    for words, code in (([], 2), (["--help"], 0), (["-h"], 0)):
        with pytest.raises(SystemExit) as end:
            cli.main(words)
        assert end.value.code == code
        said.append(capsys.readouterr())
    assert said[0].err == said[1].out == said[2].out
    assert not said[0].out
    lines = said[1].out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == COMMANDS
    assert max(map(len, lines)) <= 80
    assert all(len(line.split()) > 3 for line in lines if line.startswith("  "))


@pytest.mark.parametrize(
    "word, meant", [("distil", "distill"), ("evalute", "evaluate"), ("grad", "grade")]
)
def test_an_unknown_command_is_told_the_nearest(word, meant, capsys):
    with pytest.raises(SystemExit) as end:
        cli.main([word])
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith(f"ddpp: unknown command '{word}': did you mean '{meant}'?")
    assert said.count("\n") == 1
    assert all(name in said for name in COMMANDS)


@pytest.mark.slow
def test_the_package_can_be_run():
    done = subprocess.run(
        [sys.executable, "-m", "ddpp", "show", "nowhere"], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith("ddpp: there is no file nowhere")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_command_imports_neither_matplotlib_nor_the_course():
    code = """import sys, ddpp.cli
try: ddpp.cli.main(["evaluate", "--help"])
except SystemExit: pass
print([name for name in ("matplotlib", "torchvision", "ddpp_course") if name in sys.modules])"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr


def test_a_warning_is_a_sentence(npz, tmp_path):
    path = npz(channels=3)
    data = ddpp.load_data(path, zca=False, device="cpu", validation=0)
    made = selection.random(data, 1, {"width": 2})
    made.save(tmp_path / "set.safetensors")
    arrays = dict(np.load(path))
    np.savez(path, **arrays | {"x_test": arrays["x_test"][::-1]})
    words = f"evaluate {tmp_path}/set.safetensors --data {path} --repeats 1 --protocol.epochs 1"
    code = f"import sys, ddpp.cli; sys.exit(ddpp.cli.main({words.split()!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0
    assert "ddpp: the set was made from other images than those of mine" in done.stderr
    assert "UserWarning" not in done.stderr and "commands.py" not in done.stderr


def test_only_the_command_asked_for_is_loaded(monkeypatch, capsys):
    class Broken:
        name = "broken"

        def load(self):
            raise AssertionError("loaded in vain")

    class Greet:
        name = "greet"

        def load(self):
            def greet(times: int = 1) -> int:
                """Say hello."""
                print("hello " * times)
                return 3

            return greet

    monkeypatch.setattr(cli, "entry_points", lambda group: [Broken(), Greet()])
    assert cli.main(["greet", "--times", "2"]) == 3
    assert capsys.readouterr().out == "hello hello \n"


# the help


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_fits_the_terminal_and_explains_every_option(command, columns, help_of):
    text = help_of(command, columns=columns)
    assert text.startswith(f"usage: ddpp {command} ")
    assert [line for line in text.splitlines() if len(line) > columns] == []
    clear = {name for name in CLEAR if f" {name} " in flat(text)}
    assert set(unexplained(text)) == clear


# options that their names and defaults explain
CLEAR = ("--protocol.momentum", "--protocol.weight-decay")
VALUE = r"(?:[A-Z]+|\[[A-Z]+ \[[A-Z]+ \.{3}\]\]|{[^}]*}\S*)(?: \.{3})?"


def unexplained(text):
    """The options with nothing beside them or below them but their default."""
    return re.findall(rf"(--[a-z0-9.-]+) (?:{VALUE} )?\((?:default: [^)]*|required)\)", flat(text))


@pytest.mark.parametrize(
    "value",
    ["", "INT ", "{None}|FLOAT ", "[STR [STR ...]] ", "{a,\nb,FILE.npz} ", "{a,b}[@E] ... "],
)
@pytest.mark.parametrize("default", ["(default: 1)", "(default: )", "(required)"])
def test_an_option_that_is_not_explained_is_found(value, default):
    assert unexplained(f"--before --a.level2 {value}{default} --after") == ["--a.level2"]
    assert unexplained(f"--a.level2 {value}how high {default}") == []


def flat(text):
    """The words of a help text, without its boxes and line breaks."""
    return " ".join(re.sub("[│\n]", " ", text).split())


def listed(text, option):
    """The names in braces behind an option, whatever lines they are on."""
    found = re.search(re.escape(option) + r"[\s│]+\{([^}]*)\}", text)
    assert found, f"{option} lists no names in\n{text}"
    return re.sub(r"[\s│]", "", found[1]).split(",")


@pytest.mark.parametrize("columns", [80, 100])
@pytest.mark.parametrize("command", ["teachers", "distill"])
def test_where_a_name_is_asked_for_the_names_are_listed(command, columns, help_of):
    text = help_of(command, columns=columns)
    assert listed(text, "--profile") == list(PROFILES)
    assert listed(text, "--data") == [*SHA256, "FILE.npz"]
    assert listed(text, "--method") == list(METHODS)
    assert listed(text, "--rule") == [*RULES, OWN_NAME]
    assert listed(text, "--engine") == ["auto", *ENGINES]
    assert listed(text, "--teachers.network.name") == [*ARCHITECTURES, OWN_NAME]


def test_commands_and_methods_with_names_of_their_own_list_them(help_of):
    assert listed(help_of("reproduce"), "--profile") == list(PROFILES)
    assert listed(help_of("evaluate"), "--architecture") == list(ARCHITECTURES)
    kip = help_of("distill", "--method", "kip")
    assert listed(kip, "--kernel") == ["fc", "conv"]
    assert listed(kip, "--init") == ["real", "noise"]


def test_a_rule_of_ones_own_is_listed_as_well(help_of, monkeypatch):
    monkeypatch.setitem(RULES, "mine", RULES["signed"])
    assert "mine" in listed(help_of("distill"), "--rule")


@pytest.mark.parametrize("name", METHODS)
def test_the_options_are_those_of_the_method_with_its_defaults(name, help_of):
    text = help_of("distill", "--method", name, "--ipc", "3")
    options = set(re.findall(r"--([a-z0-9-]+)", text))
    settings = [field.name for field in dataclasses.fields(METHODS[name].config)]
    assert {field.replace("_", "-") for field in settings} <= options
    assert ("epsilon" in options) == ("epsilon" in settings)
    assert "--ipc INT images per class (default: 3)" in flat(text)
    assert f"(default: {name})" in flat(text)


def test_the_defaults_are_those_of_the_profile(help_of):
    text = flat(
        help_of("distill", "--profile", "paper", "--data", "cifar100", "--ipc", "10", columns=80)
    )
    assert "--teachers.count INT N (default: 200)" in text
    assert re.search(r"--image-lr FLOAT [^(-]*\(default: 1000.0\)", text)
    assert "(default: cifar100)" in text


# mistakes


def one_line(capsys):
    said = capsys.readouterr().err
    assert said.startswith("ddpp: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("command", ["distill", "reproduce"])
def test_an_unknown_profile_is_called_a_profile(command, tmp_path, capsys):
    out = ["--out", str(tmp_path / "set.safetensors")] if command == "distill" else []
    assert cli.main([command, "--profile", "big", *out]) == 1
    assert "unknown profile 'big': the choices are smoke, cpu" in one_line(capsys)


@pytest.mark.parametrize(
    "option, word, telling",
    [
        ("--teachers.network.name", "convnets", "unknown network 'convnets': did you mean"),
        ("--rule", "signd", "unknown rule 'signd': did you mean 'signed'"),
        ("--engine", "adjoin", "unknown engine 'adjoin': did you mean 'adjoint'"),
    ],
)
def test_a_mistyped_name_is_what_the_message_is_about_even_where_the_output_exists(
    option, word, telling, distilled, capsys
):
    out, _, data, *_ = distilled
    capsys.readouterr()
    line = ["distill", "--data", data, "--out", out, *SMALL, option, word]
    assert cli.main(line) == 1
    assert telling in one_line(capsys)


def test_a_cpu_has_no_index(npz, capsys):
    assert cli.main(["teachers", "--data", str(npz()), "--device", "cpu:7"]) == 1
    assert "unknown device 'cpu:7': use 'cpu' or 'cuda'" in one_line(capsys)


# spellings


def test_evaluate_takes_the_settings_of_its_protocol_as_distill_does(distilled, capsys):
    capsys.readouterr()
    new = "--protocol.epochs 3 --protocol.augment False --protocol.weight-decay 0.1".split()
    assert cli.main(["evaluate", *distilled, *new]) == 0
    same = capsys.readouterr()
    assert "spelled" not in same.err
    old = ["--epochs", "3", "--no-augment", "--weight_decay=0.1"]
    assert cli.main(["evaluate", *distilled, *old]) == 0
    said = capsys.readouterr()
    assert said.out == same.out
    notes = [line for line in said.err.splitlines() if line.startswith("ddpp: ")]
    assert len(notes) == 1
    for new, old in (
        ("--protocol.epochs", "--epochs"),
        ("--protocol.augment False", "--no-augment"),
        ("--protocol.weight-decay", "--weight_decay"),
    ):
        assert f"{old} is spelled {new} now" in notes[0]


def test_every_old_option_of_evaluate_is_respelled(capsys):
    words = ["a", "--batch", "1", "--momentum=0", "--augment", "--data", "x", "--seed", "1"]
    assert parsing.respell(words, commands.evaluate) == [
        *("a", "--protocol.batch", "1", "--protocol.momentum=0", "--protocol.augment", "True"),
        *("--data", "x", "--seed", "1"),
    ]
    assert capsys.readouterr().err.count("\n") == 1


def test_the_switch_of_the_augmentation_is_respelled(capsys):
    words = ["--teachers.no-augment", "--protocol.augment", "--augment", "crop", "flip"]
    assert parsing.respell(words, commands.distill) == [
        *("--teachers.augment", "False", "--protocol.augment", "True"),
        *("--augment", "crop", "flip"),
    ]
    assert (
        "--teachers.no-augment is spelled --teachers.augment False now" in capsys.readouterr().err
    )
    same = ["--teachers.augment", "crop", "--protocol.augment", "False"]
    assert parsing.respell(same, commands.distill) == same
    assert capsys.readouterr().err == ""


def test_other_commands_keep_options_of_such_names(npz, tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    line = ["distill", "--data", str(npz()), "--out", str(out), *SMALL, "--momentum", "0.25"]
    assert cli.main([*line, "--batch", "2"]) == 0
    assert "spelled" not in capsys.readouterr().err
    recipe = json.loads(out.with_suffix(".json").read_text())["recipe"]
    assert (recipe["distill"]["momentum"], recipe["distill"]["batch"]) == (0.25, 2)
    assert recipe["protocol"]["batch"] == 256


def test_bench_is_run_where_a_checkout_is_and_else_explained(tmp_path, monkeypatch, capfd):
    assert cli.main("bench --device cpu --jobs teacher-epok".split()) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "ddpp: 'ddpp bench' is spelled 'python -m tools.bench' now"
    assert "did you mean 'teacher-epoch'" in second
    monkeypatch.setattr(ddpp, "__file__", str(tmp_path / "site-packages" / "ddpp" / "__init__.py"))
    assert cli.main(["bench"]) == 1
    said = one_line(capfd)
    assert "python -m tools.bench" in said and "checkout" in said


# ranks


def test_a_rank_that_is_not_the_first_is_silent(monkeypatch, capsys):
    monkeypatch.setattr(processes, "rank", lambda: 1)
    assert cli.main(["reproduce", "--profile", "smoke", "--list"]) == 0
    assert capsys.readouterr().out == ""


def test_under_torchrun_each_rank_matches_a_trajectory(monkeypatch, help_of):
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert re.search(r"--trajectories INT [^(-]*\(default: 3\)", flat(help_of("distill")))


def test_a_class_whose_name_is_not_utf8_is_packed(tmp_path):
    for name in (os.fsdecode(b"caf\xe9"), "tea"):
        for i in range(2):
            try:
                (tmp_path / "in" / name).mkdir(parents=True, exist_ok=True)
            except OSError:
                pytest.skip("the file system takes UTF-8 alone")
            Image.new("RGB", (8, 8), "red").save(tmp_path / "in" / name / f"{i}.png")
    words = ["-m", "ddpp", "pack", tmp_path / "in", "--out", tmp_path / "a.npz", "--size", "8"]
    strict = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    done = subprocess.run([sys.executable, *words], capture_output=True, env=strict)
    assert done.returncode == 0, done.stderr
    assert rb"caf\udce9: 1 images to train on" in done.stdout and b"written:" in done.stdout


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device here")
def test_an_output_that_cannot_be_written_gets_a_sentence():
    for words in (["--version"], ["distill", "--help"], ["reproduce", "--list"]):
        with open("/dev/full", "w") as full:
            line = [sys.executable, "-m", "ddpp", *words]
            done = subprocess.run(line, stdout=full, stderr=subprocess.PIPE, text=True)
        assert done.returncode == 1
        told = "ddpp: cannot write to the standard output: No space left on device; "
        assert done.stderr == f"{told}what was done is saved\n"
