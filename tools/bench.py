"""Measure time and memory of a distillation step and of the jobs of a full-scale run.

Each measurement runs in its own process.
"""

import json
import math
import platform
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from ddpp.foundation import files
from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error, choose
from ddpp.foundation.provenance import commit, provenance
from ddpp.unrolling import ENGINES
from tools.commands import run
from tools.jobs import JOBS, Job, arithmetic, least_bytes

ROOT = Path(__file__).parents[1]
MIB = 2**20
COMPARED = ("autograd", "stored", "adjoint")  # as PyTorch runs them, not compiled
# the jobs, unless others are asked for
ON_A_CPU = ("step-cifar10-ipc1", "teacher-epoch", "evaluate-cifar10-ipc10")


def bench(
    steps: tuple[int, ...],
    width: int,
    images: int,
    rounds: int,
    device: str,
    say: Callable[[str], None] = print,
) -> dict:
    """Measure one distillation step with three engines; print a table and return it.

    - steps: numbers of student steps J; each is measured.
    - width: of the ConvNet.
    - images: distilled images.
    - rounds: measurements of each engine, taken in turn.
    - device: cpu or cuda.
    - say: takes each line of the table.

    Raises Error for a number below 1, and where a measurement fails.
    """
    counts = {"student_steps": min(steps, default=0), "width": width, "images": images}
    for name, value in (counts | {"rounds": rounds}).items():
        if value < 1:
            raise Error(f"the bench's {name} is {value}: it must be at least 1")
    machine = _machine(device)
    say(f"one distillation step: ConvNet width {width}, {images} images, epsilon 0.1, not compiled")
    say(machine)
    say(f"median of {rounds} runs, in turn, each in its own process")
    say("memory: peak above the idle process, and in all\n")
    say(f"{'J':>3}  {'engine':9} {'s/step':>8} {'MiB':>8} {'in all':>8}   over autograd's")
    found = []
    for j in steps:
        job = Job("step", 10, images, images, j, "updates", j)
        found.append(_engines(job, width, rounds, device))
        for row in found[-1]:
            say(_engine_line(row, found[-1][0]))
    if len(found) > 1:
        say(_growth(found[0][-1], found[-1][-1]))
    about = {"machine": machine, "torch": torch.__version__, "width": width, "images": images}
    return about | {"rows": [row for rows in found for row in rows]}


def _engines(job: Job, width: int, rounds: int, device: str) -> list[dict[str, Any]]:
    """Measure the engines in turn; return a row of each, autograd's first."""
    runs: dict[str, list[dict]] = {engine: [] for engine in COMPARED}
    for _ in range(rounds):
        for engine, measured in runs.items():
            measured.append(_measure(job, engine, width, job.repeats, device))
            if why := measured[-1].get("failed"):
                raise Error(f"a measurement failed ({why}): try fewer images or a smaller width")
    rows = [_row(engine, job.repeats, measured) for engine, measured in runs.items()]
    for row in rows[1:]:
        # the median of neighbours' ratios, as the machine's speed may drift
        neighbours = zip(runs[row["engine"]], runs["autograd"], strict=True)
        row["time_ratio"] = statistics.median(a["seconds"] / b["seconds"] for a, b in neighbours)
    return rows


def _engine_line(row: dict[str, Any], autograd: dict[str, Any]) -> str:
    measured = f"{row['seconds']:8.3f} {row['above']:8.0f} {row['total']:8.0f}"
    line = f"{row['J']:3}  {row['engine']:9} {measured}"
    if "time_ratio" not in row:
        return line
    above, total = (row[key] / max(autograd[key], 1) for key in ("above", "total"))
    return f"{line}   time {row['time_ratio']:.2f}, memory {above:.2f} ({total:.2f} in all)"


def _growth(first: dict, last: dict) -> str:
    above, total = (last[key] / max(first[key], 1) - 1 for key in ("above", "total"))
    span = f"J = {first['J']} to {last['J']}"
    return f"\nadjoint from {span}: memory {above:+.1%} ({total:+.1%} in all)"


def choose_jobs(names: tuple[str, ...] | None, device: str) -> dict[str, Job]:
    """Return the jobs with these names; None: three on a CPU, all on a GPU."""
    names = (ON_A_CPU if device == "cpu" else tuple(JOBS)) if names is None else names
    return {name: JOBS[choose("job", name, JOBS)] for name in names}


def bench_jobs(
    jobs: dict[str, Job],
    width: int,
    device: str,
    say: Callable[[str], None] = print,
    rounds: int = 1,
) -> dict:
    """Measure each job, steps with every engine; print a table and return it.

    - jobs: by name. On a CPU a share of each is measured and scaled to the whole job.
    - width: of the ConvNet.
    - device: cpu or cuda.
    - say: takes each line of the table.
    - rounds: measurements of a step with each engine, in turn. Other jobs are measured once.
    """
    rate = _child("matmul_rate", device=device)
    if isinstance(rate, dict):
        raise Error(f"the rate of a matrix product cannot be measured: {rate['failed']}")
    say(f"\njobs of a full-scale run: ConvNet width {width}, float32; {_machine(device)}")
    gflops = f"{rate / 1e9:,.0f} GFLOP/s, the rate of a large matrix product"
    say(f"floor: the arithmetic at {gflops} on this device")
    say("least MiB: the J parameter vectors of a step, the images, and a step's gradient of them")
    say("autograd: as earlier implementations, it keeps every update; those left out are added\n")
    say(
        f"{'job':23} {'engine':9} {'s':>9} {'floor':>9} {'ratio':>6} {'/autograd':>9} {'MiB':>9} "
        f"{'least':>7}  measured"
    )
    rows = []
    for name, job in jobs.items():
        for row in _job_rows(name, job, width, device, rate, rounds):
            rows.append(row)
            say(_line(row))
    return {"matmul_flops": rate, "rows": rows}


def _job_rows(
    name: str, job: Job, width: int, device: str, rate: float, rounds: int
) -> Iterator[dict]:
    """Measure one job, a step with every engine."""
    flop, reference = arithmetic(job, width), None
    count = job.share if device == "cpu" else job.repeats
    about = {"job": name, "measured": count, "of": job.repeats, "unit": job.unit, "flop": flop}
    about |= {"floor_seconds": flop / rate, "least": least_bytes(job, width) / MIB}
    engines, rounds = (list(ENGINES), rounds) if job.kind == "step" else (["-"], 1)
    turns = [
        [_measure(job, engine, width, count, device) for engine in engines] for _ in range(rounds)
    ]
    for engine, *runs in zip(engines, *turns, strict=True):
        run = sorted(runs, key=lambda run: run.get("seconds", math.inf))[rounds // 2]
        row: dict[str, Any] = about | {"engine": engine} | _scaled(run, count, job.repeats)
        if "seconds" in row:
            reference = row["seconds"] if engine == "autograd" else reference
            row["floor_ratio"] = row["seconds"] / row["floor_seconds"]
            row["autograd_ratio"] = reference and row["seconds"] / reference
        yield row


def _scaled(run: dict, count: int, of: int) -> dict:
    """Return seconds and MiB of a whole job, from those of `count` of its repeats."""
    if "failed" in run:
        return run
    more = (of - count) * run["kept"]
    memory = {key: (run[key] + more) / MIB for key in ("above", "total")}
    return {"seconds": run["seconds"] * of / count} | memory


def _line(row: dict) -> str:
    start = f"{row['job']:23} {row['engine']:9}"
    if "failed" in row:
        return f"{start} {row['failed']}"
    versus = f"{row['autograd_ratio']:9.2f}" if row["autograd_ratio"] else f"{'':9}"
    share = (
        "whole"
        if row["measured"] == row["of"]
        else f"{row['measured']} of {row['of']:,} {row['unit']}, scaled"
    )
    return (
        f"{start} {row['seconds']:9,.2f} {row['floor_seconds']:9,.2f} {row['floor_ratio']:6.1f} "
        f"{versus} {row['above']:9,.0f} {row['least']:7,.0f}  {share}"
    )


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return (
        f"cpu, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"
    )


def _row(engine: str, j: int, runs: list[dict]) -> dict[str, Any]:
    return {
        "J": j,
        "engine": engine,
        "seconds": statistics.median(run["seconds"] for run in runs),
        "above": statistics.median(run["above"] for run in runs) / MIB,
        "total": statistics.median(run["total"] for run in runs) / MIB,
    }


def _measure(job: Job, engine: str, width: int, count: int, device: str) -> dict:
    return _child(
        "measure", job=asdict(job), engine=engine, width=width, count=count, device=device
    )


def _child(function: str, **arguments: object) -> Any:
    """Return what a function of tools/jobs.py returns in a process of its own."""
    command = [sys.executable, "-m", "tools.jobs", function, json.dumps(arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode == -signal.SIGKILL:
        return {"failed": "out of memory: the system stopped it"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Error(f"a measurement failed ({last}): try fewer images or a smaller width")
    return json.loads(done.stdout)


def command(
    student_steps: tuple[int, ...] = (10, 30, 50),
    width: int = 128,
    images: int = 10,
    rounds: int = 3,
    jobs: Annotated[
        tuple[str, ...] | None, tyro.conf.arg(metavar="{" + ",".join(JOBS) + "} ...")
    ] = None,
    device: str | None = None,
    out: Path | None = None,
) -> None:
    """Measure time and memory of a distillation step, as ratios, and of single jobs.

    The jobs are those that a full-scale run consists of.

    Args:
        student_steps: J, one measurement for each
        width: of the network
        images: distilled images
        rounds: runs of each engine, in turn; their median is taken
        jobs: jobs to measure; None: three of them on a CPU, all on a GPU
        device: cpu or cuda; None: the GPU if there is one
        out: also write the figures there, as JSON
    """
    # the measurements choose among several GPUs by CUDA_VISIBLE_DEVICES
    found = find_device(device)
    chosen = choose_jobs(jobs, found.type)
    commit()  # the one that is measured, even if the working tree changes in the meantime
    if out:
        files.check_writable(out)
    result = bench(student_steps, width, images, rounds, found.type)
    if chosen:
        result["jobs"] = bench_jobs(chosen, width, found.type, rounds=rounds)
    if out:
        files.write_json(out, result | provenance(found))
        print(f"written to {out}")


main = partial(run, command, "bench")

if __name__ == "__main__":
    sys.exit(main())
