"""Seconds and memory of a distillation step with each engine, every measurement in a process of its own."""

import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from ddpp.errors import Error
from ddpp.networks import NetworkConfig
from ddpp.pruning import matching_loss
from ddpp.seeds import generator
from ddpp.unroll import ENGINES, draw_updates, unroll

MIB = 2**20


def bench(steps: tuple[int, ...], width: int, images: int, rounds: int, device: str, say=print) -> dict:
    """Measure both engines for each J in `steps`, `rounds` times in turn; print a table with ratios and return it."""
    for name, value in (
        ("student_steps", min(steps, default=0)),
        ("width", width),
        ("images", images),
        ("rounds", rounds),
    ):
        if value < 1:
            raise Error(f"the bench's {name} is {value}: it must be at least 1")
    say(f"one distillation step: ConvNet width {width}, {images} images, epsilon 0.1, not compiled; {_machine(device)}")
    say(f"median of {rounds} runs, in turn, each in its own process; memory: peak above the idle process, and in all\n")
    say(f"{'J':>3}  {'engine':9} {'s/step':>8} {'MiB':>8} {'in all':>8}   adjoint / autograd")
    rows = []
    for j in steps:
        runs = {engine: [] for engine in ENGINES}
        for _ in range(rounds):
            for engine, into in runs.items():
                into.append(_child(engine, j, width, images, device))
        pair = [_row(engine, j, results) for engine, results in runs.items()]
        rows += pair
        for row in pair:
            ratio = ""
            if row["engine"] == "adjoint":  # time: the median of neighbours' ratios, as the machine's speed may drift
                times = zip(runs["adjoint"], runs["autograd"], strict=True)
                row["time_ratio"] = statistics.median(a["seconds"] / b["seconds"] for a, b in times)
                memory = {key: row[key] / pair[0][key] for key in ("above", "total")}
                ratio = f"   time {row['time_ratio']:.2f}, memory {memory['above']:.2f} ({memory['total']:.2f} in all)"
            say(f"{j:3}  {row['engine']:9} {row['seconds']:8.3f} {row['above']:8.0f} {row['total']:8.0f}{ratio}")
    if len(steps) > 1:
        first, last = (next(r for r in rows if r["engine"] == "adjoint" and r["J"] == j) for j in (steps[0], steps[-1]))
        growth = {key: last[key] / first[key] - 1 for key in ("above", "total")}
        span = f"J = {first['J']} to {last['J']}"
        say(f"\nadjoint from {span}: memory {growth['above']:+.1%} ({growth['total']:+.1%} in all)")
    return {"machine": _machine(device), "torch": torch.__version__, "width": width, "images": images, "rows": rows}


def _machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    return f"cpu, {torch.get_num_threads()} threads, {platform.machine()}, torch {torch.__version__}"


def _row(engine: str, j: int, runs: list[dict]) -> dict:
    return {
        "J": j,
        "engine": engine,
        "seconds": statistics.median(run["seconds"] for run in runs),
        "above": statistics.median(run["above"] for run in runs) / MIB,
        "total": statistics.median(run["total"] for run in runs) / MIB,
    }


def _child(*arguments) -> dict:
    command = [sys.executable, "-m", "ddpp.bench", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise Error(f"a measurement failed ({last}): try fewer images or a smaller width")
    return json.loads(done.stdout)


def measure(engine: str, j: int, width: int, images: int, device: str) -> dict:
    """Seconds and peak memory of one distillation step in this process, after two updates to warm up."""
    network = NetworkConfig(width=width).build(3, 10, 32, device)
    start = network.initial(0)
    teacher = start + 0.01 * torch.randn(start.shape, generator=generator(0, "teacher")).to(device)
    x = torch.randn(images, 3, 32, 32, generator=generator(0, "images")).to(device)
    y, alpha = torch.arange(images, device=device) % 10, torch.tensor(0.01, device=device)
    updates = draw_updates(images, None, j, generator(0, "updates"))
    loss = lambda student: matching_loss(student, teacher, start, 0.1)

    def seconds(updates) -> float:
        began = time.perf_counter()
        unroll(network, start, x, y, alpha, updates, loss, engine)
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    idle = _reset_peak(device)
    seconds(draw_updates(images, None, 2, generator(0, "warm")))
    taken = seconds(updates)
    peak = _peak(device)
    return {"seconds": taken, "above": peak - idle, "total": peak}


def _reset_peak(device: str) -> int:
    """Start measuring the peak memory; returns what is used now, in bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def _peak(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    if Path("/proc/self/status").exists():  # not getrusage: there a child starts with its parent's peak
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    engine, j, width, images, device = sys.argv[1:]
    print(json.dumps(measure(engine, int(j), int(width), int(images), device)))
