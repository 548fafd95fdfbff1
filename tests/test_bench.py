"""The jobs of a full-scale run are measured, held against their arithmetic, and reported where they
do not fit.
"""

import json
import subprocess
from types import SimpleNamespace

import psutil
import pytest
import torch

from ddpp.experiments.recipes import PAPER
from ddpp.foundation.errors import Error
from ddpp.unrolling import compiled
from tools import bench, jobs
from tools.bench import main
from tools.jobs import JOBS, Job, arithmetic, least_bytes, measure

SMALL = {
    "step": Job("step", 3, 6, 4, 4, "updates", share=2),
    "teacher": Job("teacher", 3, 24, 8, 3, "batches", share=2),
    "evaluate": Job("evaluate", 3, 6, 6, 10, "epochs", share=2, networks=2),
}
SLOT = 9 * 2  # operations of a 3x3 filter at one place, for one channel in and one out


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """As if torch.compile had done its work, which for this network takes minutes."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


def measured_by(monkeypatch, measure):
    """Measure with this function, in this process; a product of matrices takes no time."""
    functions = {"measure": measure, "matmul_rate": lambda device: 1e9}
    start = subprocess.run

    def answer(command, **options):
        if "tools.jobs" not in command:
            return start(command, **options)
        result = functions[command[-2]](**json.loads(command[-1]))
        return SimpleNamespace(returncode=0, stdout=json.dumps(result), stderr="")

    monkeypatch.setattr(subprocess, "run", answer)


@pytest.fixture
def here(monkeypatch):
    """Measure in this process."""
    measured_by(monkeypatch, jobs.measure)


def run(job, engine="-", count=None):
    return measure(vars(SMALL[job]), engine, 4, count or SMALL[job].share, "cpu")


def test_the_jobs_are_those_of_the_paper():
    for data, ipc in (("cifar10", 1), ("cifar10", 10), ("cifar100", 10), ("cifar100", 50)):
        job = JOBS[f"step-{data}-ipc{ipc}"]
        assert (job.repeats, job.images) == (PAPER[data, ipc][0], ipc * job.classes)
    assert JOBS["step-cifar100-ipc50"].batch == 125
    assert all(job.share <= job.repeats for job in JOBS.values())


def test_the_arithmetic_follows_from_the_layers():
    first, second, third = (SLOT * c * 128 * side**2 for c, side in ((3, 32), (128, 16), (128, 8)))
    forward = first + second + third + 2 * 128 * 4**2 * 10
    assert forward == pytest.approx(0.101e9, rel=0.01)
    gradient = 3 * forward - first  # nobody asks for the derivative with respect to the pixels
    assert arithmetic(JOBS["teacher-epoch"], 128) == 50_000 * gradient
    assert arithmetic(JOBS["evaluate-cifar10-ipc10"], 128) == 5 * 1000 * 100 * gradient
    assert arithmetic(JOBS["step-cifar10-ipc1"], 128) / (50 * 10 * forward) == pytest.approx(
        12, rel=0.05
    )


def test_the_least_memory_is_vectors_and_images():
    assert least_bytes(JOBS["step-cifar10-ipc1"], 128) == 4 * (50 * 320_010 + 2 * 10 * 3 * 32 * 32)
    assert least_bytes(JOBS["teacher-epoch"], 128) == 4 * (320_010 + 50_000 * 3 * 32 * 32)


def test_a_product_of_matrices_is_timed():
    assert jobs.matmul_rate("cpu") > 1e8


@pytest.mark.parametrize(
    "job, engine",
    [
        ("step", "autograd"),
        ("step", "adjoint"),
        ("step", "compiled"),
        ("step", "stored"),
        ("teacher", "-"),
        ("evaluate", "-"),
    ],
)
def test_a_job_is_measured(job, engine):
    result = run(job, engine)
    assert result["seconds"] > 0
    assert result["total"] > result["above"] >= 0
    assert (result["kept"] > 0) == (engine in ("autograd", "stored"))


def test_a_table_shows_each_job_beside_its_floor(here, monkeypatch):
    monkeypatch.setattr(bench, "JOBS", SMALL)
    lines = []
    result = bench.bench_jobs(bench.choose_jobs(("step", "teacher"), "cpu"), 4, "cpu", lines.append)
    rows = {(row["job"], row["engine"]): row for row in result["rows"]}
    assert list(rows) == [
        ("step", "autograd"),
        ("step", "adjoint"),
        ("step", "compiled"),
        ("step", "stored"),
        ("teacher", "-"),
    ]
    assert result["matmul_flops"] == 1e9
    for row in rows.values():
        assert row["floor_seconds"] == pytest.approx(row["flop"] / 1e9)
        assert row["floor_ratio"] == pytest.approx(row["seconds"] / row["floor_seconds"])
    reference = rows["step", "autograd"]["seconds"]
    assert rows["step", "compiled"]["autograd_ratio"] == pytest.approx(
        rows["step", "compiled"]["seconds"] / reference
    )
    assert rows["teacher", "-"]["autograd_ratio"] is None
    assert "2 of 4 updates, scaled" in "\n".join(lines)
    json.dumps(result)


def test_a_share_is_scaled_to_the_whole_job(monkeypatch):
    run = {"seconds": 3.0, "above": 4 * bench.MIB, "total": 10 * bench.MIB, "kept": bench.MIB}
    measured_by(monkeypatch, lambda **_: run)
    job = Job("step", 3, 6, 4, 6, "updates", share=2)
    row = bench.bench_jobs({"step": job}, 4, "cpu", lambda line: None)["rows"][0]
    assert (row["measured"], row["of"]) == (2, 6)
    assert {key: row[key] for key in ("seconds", "above", "total")} == {
        "seconds": 9.0,
        "above": 8.0,
        "total": 14.0,
    }


def test_a_step_is_measured_with_the_engines_in_turn_and_its_median_taken(monkeypatch):
    order, times = [], {"autograd": [5.0, 1.0, 2.0], "stored": [4.0, 9.0, 6.0]}

    def run(engine, **_):
        order.append(engine)
        seconds = times.get(engine, [1.0] * 3)[order.count(engine) - 1]
        return {"seconds": seconds, "above": 0, "total": 0, "kept": 0}

    measured_by(monkeypatch, run)
    job = Job("step", 3, 6, 4, 2, "updates", share=2)
    table = bench.bench_jobs({"step": job}, 4, "cpu", lambda line: None, rounds=3)
    found = {row["engine"]: row["seconds"] for row in table["rows"]}
    assert found["autograd"] == 2 and found["stored"] == 6
    assert order == [*bench.ENGINES] * 3


def test_on_a_gpu_all_jobs_are_the_default():
    assert list(bench.choose_jobs(None, "cuda")) == list(JOBS)
    assert set(bench.choose_jobs(None, "cpu")) < set(JOBS)


def test_an_unknown_job_is_refused_before_anything_is_measured(capsys):
    assert main("--device cpu --jobs teacher-epok".split()) == 1
    captured = capsys.readouterr()
    assert "did you mean 'teacher-epoch'?" in captured.err
    assert captured.out == ""


def test_the_command_writes_jobs_beside_the_rows(here, monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "JOBS", SMALL)
    out = tmp_path / "bench.json"
    options = (
        "--student-steps 1 --width 4 --images 4 --rounds 1 --device cpu --jobs evaluate".split()
    )
    assert main([*options, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert set(written) >= {
        "machine",
        "torch",
        "width",
        "images",
        "rows",
        "jobs",
        "commit",
        "finished",
        "device",
    }
    assert [row["engine"] for row in written["rows"]] == ["autograd", "stored", "adjoint"]
    assert written["jobs"]["rows"][0]["of"] == 10


# Out of memory, and other ways to fail


def test_a_graph_larger_than_the_memory_is_not_begun(monkeypatch):
    needed = run("step", "autograd")["kept"]
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * needed))
    result = run("step", "autograd")  # of two updates, beside all else
    assert result["failed"].startswith("out of memory: the graph takes")
    assert "seconds" in run("step", "adjoint")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_a_job_without_memory_is_reported(here, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(jobs, "train_teachers", fail)
    lines = []
    result = bench.bench_jobs({"teacher": SMALL["teacher"]}, 4, "cpu", lines.append)
    assert result["rows"][0]["failed"] == "out of memory"
    assert lines[-1].endswith("out of memory")


def test_a_process_that_the_system_stops_is_one_without_memory(monkeypatch):
    stopped = SimpleNamespace(returncode=-9, stdout="", stderr="")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: stopped)
    with pytest.raises(Error, match="out of memory"):
        bench.bench((1,), width=4, images=4, rounds=1, device="cpu")


def test_where_compiled_cannot_be_used_it_has_no_time(monkeypatch):
    def fails(function, **_):
        raise RuntimeError("no kernels today")

    monkeypatch.setattr(torch, "compile", fails)
    compiled.student.cache_clear()  # in this process, an earlier test may have compiled it
    assert "no kernels today" in run("step", "compiled")["failed"]


def test_any_other_failure_is_an_error(monkeypatch):
    broken = SimpleNamespace(
        returncode=1, stdout="", stderr="Traceback\nValueError: something else"
    )
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: broken)
    with pytest.raises(Error, match=r"a measurement failed \(ValueError: something else\)"):
        bench.bench((1,), width=4, images=4, rounds=1, device="cpu")
