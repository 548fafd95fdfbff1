"""The jobs that a full-scale run consists of, on made-up images: time, memory, and lower bounds.

`python -m tools.jobs FUNCTION JSON` calls a function of this module in its own process.
"""

import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ddpp.data import ImageData, Split
from ddpp.data.whitening import fit_channels
from ddpp.distilled import DistilledDataset
from ddpp.evaluating import Protocol, evaluate
from ddpp.experiments.recipes import PAPER
from ddpp.foundation.devices import find_device
from ddpp.foundation.seeds import generator
from ddpp.networks import NetworkConfig
from ddpp.pruning import matching_loss
from ddpp.teachers import TeacherConfig, train_teachers
from ddpp.unrolling import Updates, draw_updates, kept_bytes, unroll

SHAPE = (3, 32, 32)  # of an image


@dataclass(frozen=True)
class Job:
    """One distillation step, one epoch of a teacher, or training an evaluation's networks.

    `repeats` counts what it does again and again: J updates, the batches of an epoch, or epochs.
    """

    kind: str  # step, teacher or evaluate
    classes: int
    images: int  # the distilled images, or those that a teacher is trained on
    batch: int  # images per update of a network
    repeats: int
    unit: str  # the name of a repeat, in the plural
    share: int  # the repeats that are enough to measure on a CPU
    networks: int = 1


class Work(NamedTuple):
    """What is measured."""

    run: Callable[[], object]
    warm_up: Callable[[], object]  # done once before
    kept: int = 0  # bytes that each repeat keeps to the end


def _step(data: str, ipc: int, share: int) -> Job:
    classes = {"cifar10": 10, "cifar100": 100}[data]
    j, *_, batch = PAPER[data, ipc]
    return Job("step", classes, classes * ipc, batch or classes * ipc, j, "updates", share)


JOBS = {
    "step-cifar10-ipc1": _step("cifar10", 1, share=10),
    "step-cifar10-ipc10": _step("cifar10", 10, share=3),
    "step-cifar100-ipc10": _step("cifar100", 10, share=2),
    "step-cifar100-ipc50": _step("cifar100", 50, share=3),
    "teacher-epoch": Job("teacher", 10, 50_000, 256, 196, "batches", share=3),
    "evaluate-cifar10-ipc10": Job("evaluate", 10, 100, 100, 1000, "epochs", share=5, networks=5),
}


def arithmetic(job: Job, width: int) -> int:
    """Count the floating-point operations of a job, by doing them for one image.

    A gradient takes about three times a forward pass. An update of a step takes one gradient in the
    forward pass and, in the backward pass, one more, which is differentiated. With a forward pass
    of 0.1 GFLOP at width 128, that is about twelve times as much.
    """
    network = NetworkConfig(width=width).build(SHAPE[0], job.classes, SHAPE[1])
    theta = network.initial(0)
    image, label = torch.zeros(1, *SHAPE), torch.zeros(1, dtype=torch.int64)
    with Arithmetic() as made:
        if job.kind == "step":
            once = Updates([torch.arange(1)], [None])
            unroll(network, theta, image, label, torch.tensor(0.01), once, torch.sum, "adjoint")
        else:
            torch.autograd.grad(
                F.cross_entropy(network(theta.requires_grad_(), image), label), theta
            )
    epochs = job.repeats if job.kind == "evaluate" else 1
    images = job.repeats * job.batch if job.kind == "step" else epochs * job.images * job.networks
    return made.flop * images


class Arithmetic(TorchDispatchMode):
    """Counts the floating-point operations of convolutions and matrix products.

    PyTorch's own counter, which also tracks modules, fails on the derivative of a gradient.
    """

    flop = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function.overloadpacket in flop_registry:
            self.flop += flop_registry[function.overloadpacket](*args, **kwargs or {}, out_val=out)
        return out


def least_bytes(job: Job, width: int) -> int:
    """Return the bytes of a job's parameter vectors and images, which no engine can do without.

    There are J vectors of a step, and two of an evaluation, with the velocity. A step also has the
    gradient of its images.
    """
    p = NetworkConfig(width=width).build(SHAPE[0], job.classes, SHAPE[1]).size
    vectors = {"step": job.repeats, "teacher": 1, "evaluate": 2}[job.kind]
    copies = 2 if job.kind == "step" else 1
    return 4 * (vectors * p + copies * job.images * torch.Size(SHAPE).numel())


def matmul_rate(device: str) -> float:
    """Return the floating-point operations per second in a product of two large float32 matrices.

    It is the fastest of five.
    """
    find_device(device)  # it decides what float32 means
    n = 2048 if device == "cpu" else 8192
    a, b = torch.randn(2, n, n, device=device)
    return 2 * n**3 / min(_seconds(lambda: a @ b, device) for _ in range(5))


def measure(job: dict, engine: str, width: int, count: int, device: str) -> dict:
    """Measure seconds and bytes of `count` repeats of a job.

    - job: its fields.
    - engine: of a distillation step; other jobs have none.
    - width: of the ConvNet.
    - count: how many repeats are run.
    - device: cpu or cuda.

    Returns seconds, the peak of memory in bytes above the idle process (`above`) and in all
    (`total`), and the bytes that each further repeat would add (`kept`). Where it cannot be
    measured, it returns the reason under `failed`.
    """
    find_device(device)
    kinds = {"step": partial(_unrolling, engine), "teacher": _training, "evaluate": _evaluating}
    idle = _reset_peak(device)
    try:
        with warnings.catch_warnings():
            # the engine that takes its place is measured anyway
            warnings.filterwarnings("error", message="the engine compiled")
            warnings.filterwarnings("error", message="the GPU's memory was full")
            work = kinds[job["kind"]](Job(**job), NetworkConfig(width=width), count, device)
            work.warm_up()
            seconds = _seconds(work.run, device)
    except (torch.OutOfMemoryError, MemoryError) as e:
        return {"failed": "out of memory" + (f": {e}" if isinstance(e, MemoryError) else "")}
    except RuntimeError as e:
        if "can't allocate memory" not in str(e):  # which is how a CPU says it
            raise
        return {"failed": "out of memory"}
    except UserWarning as e:
        return {"failed": str(e)}
    peak = _peak(device)
    return {"seconds": seconds, "above": peak - idle, "total": peak, "kept": work.kept}


def _unrolling(engine: str, job: Job, config: NetworkConfig, count: int, device: str) -> Work:
    network = config.build(SHAPE[0], job.classes, SHAPE[1], device)
    images, labels = _images(job.images, job.classes, device)
    graph, kept = 0, 0  # of one update, and of that what the engine keeps
    if device == "cpu":
        batch = (images[: job.batch], labels[: job.batch])
        graph = kept_bytes(network, *batch)
        if engine in ("autograd", "stored"):
            kept = graph if engine == "autograd" else kept_bytes(network, *batch, engine)
    needed = graph + (count - 1) * kept
    # a GPU raises an error by itself; on a CPU the whole machine would run out of memory
    if needed > 0.8 * psutil.virtual_memory().available:
        raise MemoryError(f"the graph takes {needed / 2**20:,.0f} MiB")
    start, alpha = network.initial(0), torch.tensor(0.01, device=device)
    teacher = start + 0.01 * torch.randn(start.shape, generator=generator(0, "teacher")).to(device)
    loss = lambda student: matching_loss(student, teacher, start, 0.1)
    updates = draw_updates(job.images, job.batch, count, generator(0, "updates"))
    backwards = reversed(list(enumerate(updates.draws)))
    first = {how.operation: j for j, how in backwards if how}  # one update of each operation
    few = Updates(
        [updates.batches[j] for j in first.values()], [updates.draws[j] for j in first.values()]
    )
    make = lambda updates: unroll(network, start, images, labels, alpha, updates, loss, engine)
    return Work(lambda: make(updates), lambda: make(few), kept=kept)


def _training(job: Job, config: NetworkConfig, count: int, device: str) -> Work:
    images, labels = _images(job.images, job.classes, device)
    how = TeacherConfig(count=1, epochs=1, batch=job.batch, network=config)
    train = lambda n: train_teachers(
        _data(Split(images[:n], labels[:n]), job.classes), how, progress=False
    )
    return Work(lambda: train(count * job.batch), lambda: train(job.batch))


def _evaluating(job: Job, config: NetworkConfig, count: int, device: str) -> Work:
    images, labels = _images(job.images, job.classes, device)
    data, alpha = _data(Split(images, labels), job.classes), torch.tensor(0.01, device=device)
    distilled = DistilledDataset(
        images, labels, alpha, data.whitening, data.classes, asdict(config)
    )

    def train(networks: int, epochs: int) -> object:
        protocol = Protocol(epochs=epochs, batch=job.batch)
        return evaluate(distilled, data, repeats=networks, protocol=protocol, progress=False)

    return Work(lambda: train(job.networks, count), lambda: train(1, 1))


def _images(n: int, classes: int, device: str) -> Split:
    images = torch.randn(n, *SHAPE, generator=generator(0, "images"))
    return Split(images, torch.arange(n) % classes).to(device)


def _data(train: Split, classes: int) -> ImageData:
    # a few images only, as the test is not what is measured
    test = Split(train.images[:classes], train.labels[:classes])
    names = tuple(map(str, range(classes)))
    whitening = fit_channels(train.images[:100])
    return ImageData("made up", names, train, None, test, whitening, held_out=0.0, sha256="")


def _seconds(work: Callable[[], object], device: str) -> float:
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - began


def _reset_peak(device: str) -> int:
    """Start measuring the peak memory; return what is used now, in bytes."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")
    return psutil.Process().memory_info().rss


def _peak(device: str) -> int:
    if device == "cuda":
        # not allocated: what a CUDA graph works in counts as free there
        return torch.cuda.max_memory_reserved()
    # not getrusage: there a child starts with its parent's peak
    if Path("/proc/self/status").exists():
        lines = Path("/proc/self/status").read_text().splitlines()
        peak = next(line for line in lines if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


if __name__ == "__main__":
    function, arguments = sys.argv[1:]
    functions = {"measure": measure, "matmul_rate": matmul_rate}
    print(json.dumps(functions[function](**json.loads(arguments))))
