"""Eq. (2) J times, and the exact gradient of a loss of the result with respect to the distilled images and alpha.

Two engines, one signature, equal results. `autograd` keeps the graph of all J updates, as every implementation before
did. `adjoint` keeps the J parameter vectors only, on a CPU in a temporary file, and walks back through them: with
lambda = dL/dtheta_J,

    per update, backwards:   dL/dX     -= alpha * d<lambda, g>/dX        g = gradient of the inner loss at theta_j
                             dL/dalpha -= <lambda, g>
                             lambda    -= alpha * H lambda               H = its Hessian

which is what reverse-mode differentiation computes, one update's graph at a time.
"""

import contextlib
import tempfile
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from ddpp.augment import Draw, augment, draw
from ddpp.errors import Error, choose
from ddpp.networks import Flat


class Updates(NamedTuple):
    """All that is fixed before the student starts: its J batches b_{i,j} of Eq. (1) and their augmentations."""

    batches: Sequence[Tensor]  # J index vectors into the distilled set
    draws: Sequence[Draw | None]  # J augmentations; None leaves a batch as it is


class Unrolled(NamedTuple):
    """The student after J updates (p,), the loss, and its gradients for the images (N, C, H, W) and alpha ()."""

    student: Tensor
    loss: Tensor
    grad_images: Tensor
    grad_alpha: Tensor


def draw_updates(size: int, batch: int | None, steps: int, generator: torch.Generator) -> Updates:
    """J = `steps` batches of a distilled set of `size` images, and their augmentations.

    A batch is the whole set, or `batch` images without replacement: each pass through the set is a fresh permutation,
    of which a rest smaller than a batch is left out.
    """
    batch = min(batch or size, size)
    batches = []
    while len(batches) < steps:
        order = torch.randperm(size, generator=generator) if batch < size else torch.arange(size)
        batches += [part for part in order.split(batch) if len(part) == batch]
    return Updates(batches[:steps], [draw(batch, generator) for _ in range(steps)])


def unroll(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Callable[[Tensor], Tensor],
    engine: str,
) -> Unrolled:
    """Train the student from `start` (p,) and differentiate loss(student), a scalar, through its whole training."""
    return ENGINES[choose("engine", engine, ENGINES)](network, start, images, labels, alpha, updates, loss)


def _autograd(network, start, images, labels, alpha, updates, loss) -> Unrolled:
    images, alpha = images.detach().requires_grad_(), alpha.detach().requires_grad_()
    theta = start.detach().requires_grad_()
    for batch, how in zip(*updates, strict=True):
        theta = theta - alpha * _gradient(network, theta, images[batch], labels[batch], how, create_graph=True)
    value = loss(theta)
    return Unrolled(theta.detach(), value.detach(), *grad(value, (images, alpha)))


def _adjoint(network, start, images, labels, alpha, updates, loss) -> Unrolled:
    images, alpha, theta = images.detach(), alpha.detach(), start.detach()
    with contextlib.closing(_Path(start.device)) as path:
        for batch, how in zip(*updates, strict=True):
            path.push(theta)
            theta = theta - alpha * _gradient(network, theta.requires_grad_(), images[batch], labels[batch], how)
            theta = theta.detach()

        student = theta.requires_grad_()
        value = loss(student)
        (adjoint,) = grad(value, student)
        grad_images, grad_alpha = torch.zeros_like(images), torch.zeros_like(alpha)
        for batch, how in zip(reversed(updates.batches), reversed(updates.draws), strict=True):
            theta, x = path.pop(start).requires_grad_(), images[batch].requires_grad_()
            along = _gradient(network, theta, x, labels[batch], how, create_graph=True) @ adjoint
            curved, pixels = grad(along, (theta, x))
            grad_images.index_add_(0, batch.to(images.device), -alpha * pixels)
            grad_alpha -= along.detach()
            adjoint = adjoint - alpha * curved
    return Unrolled(student.detach(), value.detach(), grad_images, grad_alpha)


ENGINES = {"autograd": _autograd, "adjoint": _adjoint}


def _gradient(network, theta, x, y, how, create_graph=False) -> Tensor:
    """The gradient in Eq. (2): of the cross-entropy on the augmented batch with respect to theta, (p,)."""
    x = x if how is None else augment(x, how)
    return grad(F.cross_entropy(network(theta, x), y), theta, create_graph=create_graph)[0]


class _Path:
    """theta_0 ... theta_{J-1}, last in first out. On a CPU they wait in an unnamed temporary file, so that the memory
    does not grow with J even for networks larger than the images' graph; on a GPU they stay on it."""

    def __init__(self, device):
        self.file = tempfile.TemporaryFile() if device.type == "cpu" else None  # noqa: SIM115
        self.vectors: list[Tensor] = []

    def push(self, theta: Tensor) -> None:
        if not self.file:
            self.vectors.append(theta.detach())
            return
        try:
            self.file.write(theta.detach().numpy().tobytes())
            self.file.flush()
        except OSError as e:
            where = tempfile.gettempdir()
            raise Error(
                f"{where} has no room for the student's path ({e}): make room, or use the engine autograd"
            ) from e

    def close(self) -> None:
        if self.file:
            self.file.close()

    def pop(self, like: Tensor) -> Tensor:
        if not self.file:
            return self.vectors.pop()
        end = self.file.seek(-like.numel() * like.element_size(), 1)
        theta = torch.from_numpy(np.fromfile(self.file, like.detach().numpy().dtype, like.numel()))
        self.file.seek(end)
        return theta


def choose_engine(network: Flat, images: Tensor, labels: Tensor, batch: int | None, steps: int) -> tuple[str, str]:
    """The engine for this device and size, and the reason in words.

    On a GPU `adjoint`. On a CPU `autograd`, which computes each update once, if the graph of all updates fits in half
    of the memory; else `adjoint`, which computes each twice.
    """
    if images.device.type != "cpu":
        return "adjoint", "on a GPU, memory is the scarcer"
    needed = steps * graph_bytes(network, images[: batch or None], labels[: batch or None])
    memory = psutil.virtual_memory().total  # not what is free now: a run must not depend on its neighbours
    size = f"the graph of {steps} updates takes {needed / 2**20:,.0f} of {memory / 2**20:,.0f} MiB of memory"
    return ("autograd" if needed < memory / 2 else "adjoint"), size


def graph_bytes(network: Flat, images: Tensor, labels: Tensor) -> int:
    """Bytes that one student update keeps for differentiating through it, measured by making one."""
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    theta = network.initial(0).to(images).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _ = _gradient(network, theta, images.detach().requires_grad_(), labels, None, create_graph=True)
    return sum(kept.values())
