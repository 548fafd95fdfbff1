"""Two processes under torchrun do what one process does, also when one of them is killed."""

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from ddpp import (
    DistillConfig,
    DistilledDataset,
    Error,
    NetworkConfig,
    TeacherConfig,
    distill,
    load_data,
    train_teachers,
)
from ddpp.cli import main
from ddpp.distilling import State, check_config, match, step
from ddpp.experiments.methods import METHODS
from ddpp.foundation import processes

SETTINGS = """--ipc 2 --steps 40 --student-steps 4 --batch 3 --iterates 2 --save-steps 4
    --repeats 1 --trajectories 4 --teachers.count 3 --teachers.batch 4 --teachers.network.width 8
    --teachers.network.depth 2 --protocol.epochs 2 --image-lr 5 --alpha-lr 1e-6
    --device cpu""".split()
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def command(data, out):
    return ["distill", "--data", str(data), "--out", str(out), *SETTINGS]


@pytest.fixture
def alone(npz, tmp_path):
    """The data, and the bytes that one process makes of it."""
    data, out = npz(), tmp_path / "alone" / "set.safetensors"
    assert main(command(data, out)) == 0
    return data, out.read_bytes()


@pytest.mark.slow
def test_two_ranks_distil_the_same_images_as_one_process(alone, tmp_path):
    data, want = alone
    out = tmp_path / "two" / "set.safetensors"
    done = subprocess.run(
        [*TORCHRUN, "-m", "ddpp", *command(data, out)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == want
    assert done.stdout.count("distillation gains") == 1  # one rank speaks
    assert len(list(out.parent.glob("teachers-*/teacher_*.safetensors"))) == 3
    assert out.with_suffix(".json").exists()


@pytest.mark.slow
def test_two_ranks_continue_a_finished_run_with_more_steps(alone, tmp_path):
    data, _ = alone
    out = tmp_path / "two" / "set.safetensors"
    for steps in ("20", "40"):
        line = [*TORCHRUN, "-m", "ddpp", *command(data, out), "--steps", steps]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert "the set of 20 steps is in" in done.stdout and "another run" not in done.stderr
    assert out.with_name("set-20-steps.safetensors").exists()
    whole = DistilledDataset.load(tmp_path / "alone" / "set.safetensors")
    assert torch.equal(DistilledDataset.load(out).images, whole.images)


@pytest.mark.slow
def test_a_killed_rank_is_started_again_and_the_run_goes_on(npz, tmp_path):
    data, out = npz(), tmp_path / "killed" / "set.safetensors"
    checkpoint = Path(f"{out}.checkpoint")
    longer = ["--steps", "100", "--save-steps", "2"]
    line = [*TORCHRUN, "--max-restarts", "2", "-m", "ddpp", *command(data, out), *longer]
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        saved = 0
        for victim in (1, 0):
            while process.poll() is None and not (
                checkpoint.exists() and checkpoint.stat().st_mtime > saved
            ):
                time.sleep(0.01)
            ranks = [psutil.Process(rank_process(process.pid, rank)) for rank in (0, 1)]
            ranks[victim].kill()
            psutil.wait_procs(ranks)  # the other one saves its steps before it ends
            saved = time.time()  # the next is killed once its own steps are saved
        said = process.communicate()[0]
    assert process.returncode == 0, said
    assert said.count("resuming from step") == 2
    one = tmp_path / "one" / "set.safetensors"
    assert main([*command(data, one), *longer]) == 0
    assert out.read_bytes() == one.read_bytes()


def rank_process(torchrun: int, number: int) -> int:
    for child in psutil.Process(torchrun).children():
        if child.environ().get("RANK") == str(number):
            return child.pid
    raise AssertionError(f"no rank {number}")


def test_what_several_processes_cannot_do_they_say_before_any_work(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(processes, "size", lambda: 2)
    with pytest.raises(
        Error, match="3 trajectories per step cannot be shared evenly by 2 processes"
    ):
        check_config(DistillConfig(trajectories=3))
    for name in ("dm", "random", "herding", "forgetting"):
        with pytest.raises(Error, match="only the matching of trajectories can be shared out"):
            METHODS[name].check(METHODS[name].config())
    assert main(["reproduce", "--results", str(tmp_path), "--work", str(tmp_path)]) == 1
    assert "only teachers and distill can be shared out by torchrun" in capsys.readouterr().err
    with pytest.raises(Error, match="share their teachers through a folder: say which"):
        train_teachers(load_data(device="cpu", zca=False), TeacherConfig(count=2, epochs=1))


def test_several_trajectories_average_their_gradients():
    one, other = {"a": torch.tensor([1.0, 2.0])}, {"a": torch.tensor([3.0, 6.0])}
    mean = processes.average([one, other], 2)
    assert mean["a"].tolist() == [2, 4]
    assert list(processes.share(3)) == [0, 1, 2]


def test_without_torchrun_a_stray_world_size_is_explained(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(
        Error, match=r"WORLD_SIZE is set, but not .*RANK: start with torchrun, or unset it"
    ):
        processes.join()


def test_a_script_of_torchrun_that_has_not_joined_is_told_so(npz, tmp_path, monkeypatch):
    data = load_data(npz(), device="cpu")
    config = TeacherConfig(count=1, epochs=2, batch=8, network=NetworkConfig(width=4, depth=2))
    teachers = train_teachers(data, config, progress=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    words = "has not joined them: call ddpp.foundation.processes.join"
    with pytest.raises(Error, match=words):
        train_teachers(data, config, tmp_path / "teachers", progress=False)
    with pytest.raises(Error, match=words):
        distill(data, teachers, DistillConfig(steps=1, max_start_epoch=1, expert_epochs=1))
    assert not (tmp_path / "teachers").exists()


def test_the_first_of_several_trajectories_is_the_one_of_a_single_one(npz):
    data = load_data(npz(), device="cpu")
    teachers = train_teachers(
        data,
        TeacherConfig(count=2, epochs=3, batch=8, network=NetworkConfig(width=4, depth=2)),
        progress=False,
    )
    images, labels = data.draw(1, 0)
    state = State(0, images, torch.tensor(0.02), torch.zeros_like(images), torch.tensor(0.0))
    one = DistillConfig(student_steps=3)
    two = replace(one, trajectories=2)
    both = [match(state, labels, teachers, two, "adjoint", m) for m in range(2)]
    alone = match(state, labels, teachers, one, "adjoint")
    assert torch.equal(alone["grad_images"], both[0]["grad_images"])
    assert not torch.equal(both[0]["grad_images"], both[1]["grad_images"])
    after, record = step(state, labels, teachers, two, "adjoint")
    mean = (both[0]["grad_images"] + both[1]["grad_images"]) / 2
    assert torch.allclose(after.images_velocity, mean)
    assert record["loss"] == pytest.approx(float(both[0]["loss"] + both[1]["loss"]) / 2)
