"""A run can be stopped at any moment, in any way, and goes on to the same bits."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import write_npz

from ddpp.cli import main
from ddpp.distilled import DistilledDataset
from ddpp.foundation import files

KILLING = Path(__file__).with_name("killing.py")
SETTINGS = """--seed 3 --ipc 2 --steps 60 --student-steps 4 --batch 3 --iterates 3 --save-steps 4
    --repeats 1 --teachers.count 6 --teachers.epochs 3 --teachers.batch 2
    --teachers.network.width 8 --teachers.network.depth 2 --protocol.epochs 2 --image-lr 5
    --alpha-lr 1e-6 --device cpu""".split()


def command(data, out):
    return ["distill", "--data", str(data), "--out", str(out), *SETTINGS]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The data, the folder of an uninterrupted run, and how long it took."""
    folder = tmp_path_factory.mktemp("finished")
    data, began = write_npz(folder), time.monotonic()
    assert main(command(data, folder / "whole" / "set.safetensors")) == 0
    return data, folder / "whole", time.monotonic() - began


@pytest.fixture
def whole(finished, tmp_path):
    """The data, the bytes of an uninterrupted run, and how long it took; a copy of its files is in
    tmp_path / whole.
    """
    data, folder, seconds = finished
    shutil.copytree(folder, tmp_path / "whole")
    return data, (folder / "set.safetensors").read_bytes(), seconds


@pytest.mark.slow
def test_killed_at_20_random_moments_it_ends_in_the_same_bits(whole, tmp_path):
    data, want, seconds = whole
    out = tmp_path / "killed" / "set.safetensors"
    arguments = [sys.executable, KILLING, "20", str(seconds / 2), out, *command(data, out)]
    hits = subprocess.run(arguments, capture_output=True, text=True)
    assert hits.returncode == 0, hits.stderr
    stages = [
        line
        for line in hits.stdout.splitlines()
        if line in ("teachers", "distilling", "evaluating")
    ]
    assert len(stages) == 20
    assert stages.count("teachers") >= 3
    assert stages.count("distilling") >= 3
    ends = sorted(out.parent.glob("set.safetensors.[0-9]*"))
    assert ends
    assert all(end.read_bytes() == want for end in ends)
    assert not list(out.parent.glob("*.part"))


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(npz, tmp_path):
    data, long = npz(), ["--steps", "300", "--save-steps", "1000"]  # not over before it is stopped
    whole, out = (tmp_path / name / "set.safetensors" for name in ("whole", "stopped"))
    assert main([*command(data, whole), *long]) == 0
    line = [sys.executable, "-m", "ddpp", *command(data, out), *long]
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as process:
        seen = ""
        while "loss" not in seen.partition("distil:")[2] and process.poll() is None:
            seen += process.stderr.read(1)
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Run the same command again" in rest
    assert "Traceback" not in rest
    assert not out.exists()
    assert Path(f"{out}.checkpoint").exists()
    assert main([*command(data, out), *long]) == 0
    assert out.read_bytes() == whole.read_bytes()
    assert not Path(f"{out}.checkpoint").exists()


def test_a_finished_run_is_not_run_again(whole, tmp_path, capsys):
    data, want, _ = whole
    out = tmp_path / "whole" / "set.safetensors"
    report = out.with_suffix(".json").read_bytes()
    capsys.readouterr()
    assert main(command(data, out)) == 0
    assert "finished already" in capsys.readouterr().out
    assert out.read_bytes() == want
    assert out.with_suffix(".json").read_bytes() == report


def test_another_evaluation_does_not_replace_the_report(whole, tmp_path, capsys):
    data, _, _ = whole
    out = tmp_path / "whole" / "set.safetensors"
    report = out.with_suffix(".json").read_bytes()
    assert main([*command(data, out), "--repeats", "2"]) == 1
    assert "has another evaluation" in capsys.readouterr().err
    out.rename(tmp_path / "elsewhere.safetensors")
    assert main(command(data, out)) == 1
    assert "reports on a set that is gone" in capsys.readouterr().err
    assert out.with_suffix(".json").read_bytes() == report


def test_two_runs_do_not_write_one_file(npz, tmp_path, capsys):
    out = tmp_path / "set.safetensors"
    with files.lock(out, wait=False):
        assert main(command(npz(), out)) == 1
    assert "another process is writing" in capsys.readouterr().err


def test_the_history_tells_every_step(whole, tmp_path):
    distilled = DistilledDataset.load(tmp_path / "whole" / "set.safetensors")
    history = distilled.history
    assert {len(column) for column in history.values()} == {60}
    assert set(history["epoch"].tolist()) == {0, 1}
    assert set(history["teacher"].tolist()) <= set(range(6))
    assert history["skipped"].sum() == 0
    assert ((history["kept"] > 0) & (history["kept"] <= 1)).all()
    assert not torch.equal(history["loss"], history["unmasked"])
    assert history["layers"].shape == (60, 10)
    assert list(distilled.iterates) == [0, 20, 40, 60]
    assert torch.equal(distilled.at(60).images, distilled.images)
    # evaluating it is evaluating step 40, not the end
    assert list(distilled.at(40).iterates) == [0, 20, 40]


def test_teachers_given_more_epochs_keep_the_ones_they_had(npz, tmp_path):
    from dataclasses import replace

    from ddpp import NetworkConfig, TeacherConfig, load_data, train_teachers

    data = load_data(npz(), device="cpu")
    config = TeacherConfig(count=1, epochs=2, batch=16, network=NetworkConfig(width=4, depth=2))
    short = train_teachers(data, config, tmp_path / "t", progress=False).snapshot(0, 2)
    longer = train_teachers(
        data, replace(config, count=2, epochs=4), tmp_path / "t", progress=False
    )
    anew = train_teachers(data, replace(config, count=2, epochs=4), progress=False)
    assert (len(longer), longer.epochs) == (2, 4)
    assert torch.equal(longer.snapshot(0, 2), short)
    for k in (0, 1):
        assert torch.equal(longer.snapshot(k, 4), anew.snapshot(k, 4))
    assert torch.equal(longer.train_loss(), anew.train_loss())
