"""Eq. (2) J times, and the exact gradient of a loss of the result with respect to the distilled
images and alpha.

Three engines, one signature, equal results. `autograd` keeps the graph of all J updates, as every
implementation before did. `adjoint` keeps the J parameter vectors only, on a CPU in a temporary
file, and walks back through them: with lambda = dL/dtheta_J,

    per update, backwards:   dL/dX     -= alpha * d<lambda, g>/dX        g = gradient of the inner
    loss at theta_j
                             dL/dalpha -= <lambda, g>
                             lambda    -= alpha * H lambda               H = its Hessian

which is what reverse-mode differentiation computes, one update's graph at a time. `compiled` takes
the same walk in the compiled functions of ddpp/fast.py; it compares itself with `adjoint` first,
and leaves the work to it where it cannot.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import psutil
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from ddpp import fast
from ddpp.augment import Draw, augment, draw
from ddpp.foundation.errors import Error, choose
from ddpp.networks import Flat

# of _compare: rounding, by which a ReLU may cross its kink, cost 0.008; a walk without H costs 0.2
TOLERANCE = 0.05

Loss = Callable[[Tensor], Tensor]  # of the student's parameters (p,), a scalar


class Updates(NamedTuple):
    """All that is fixed before the student starts: its J batches b_{i,j} of Eq. (1) and their
    augmentations.
    """

    batches: Sequence[Tensor]  # J index vectors into the distilled set
    draws: Sequence[Draw | None]  # J augmentations; None leaves a batch as it is


class Unrolled(NamedTuple):
    """The student after J updates (p,), the loss, and its gradients for the images (N, C, H, W) and
    alpha ().
    """

    student: Tensor
    loss: Tensor
    grad_images: Tensor
    grad_alpha: Tensor


def draw_updates(size: int, batch: int | None, steps: int, generator: torch.Generator) -> Updates:
    """J = `steps` batches of a distilled set of `size` images, and their augmentations.

    A batch is the whole set, or `batch` images without replacement: each pass through the set is a
    fresh permutation, of which a rest smaller than a batch is left out.
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
    loss: Loss,
    engine: str,
) -> Unrolled:
    """Train the student from `start` (p,) and differentiate loss(student), a scalar, through its
    whole training.
    """
    return ENGINES[choose("engine", engine, ENGINES)](
        network, start, images, labels, alpha, updates, loss
    )


def _autograd(network, start, images, labels, alpha, updates, loss) -> Unrolled:
    images, alpha = images.detach().requires_grad_(), alpha.detach().requires_grad_()
    theta = start.detach().requires_grad_()
    for batch, how in zip(*updates, strict=True):
        theta = theta - alpha * _gradient(
            network, theta, images[batch], labels[batch], how, create_graph=True
        )
    value = loss(theta)
    return Unrolled(theta.detach(), value.detach(), *grad(value, (images, alpha)))


def _adjoint(network, start, images, labels, alpha, updates, loss) -> Unrolled:
    images, alpha, theta = images.detach(), alpha.detach(), start.detach()
    with contextlib.closing(_Path(start.device)) as path:
        for batch, how in zip(*updates, strict=True):
            path.push(theta)
            theta = theta - alpha * _gradient(
                network, theta.requires_grad_(), images[batch], labels[batch], how
            )
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


def _compiled(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    problem = (start, images, labels, alpha, updates, loss)
    student = fast.student(
        network, len(updates.batches[0]), images.shape[1:], images.dtype, images.device
    )
    if student.usable:
        try:
            _compare(student, *problem[:-1])
            return _walk(student, *problem)
        except Error:
            raise
        # whatever goes wrong in a compiler, a driver or a library: adjoint needs none of them
        except Exception as e:
            student.give_up()
            reason = " ".join(str(e).splitlines()[:2])[:300] or type(e).__name__
            warnings.warn(
                f"the engine compiled cannot be used here ({reason}): from now on the engine "
                "adjoint takes its place, "
                "with the same results but slower; to be rid of this message, ask for the engine "
                "adjoint",
                stacklevel=3,
            )
    return _adjoint(network, *problem)


def _walk(
    student: fast.Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """As `_adjoint`, in a fast.Student; all draws move to the device at once, so that no update
    waits for the host.
    """
    images, batches = images.detach(), torch.stack([*updates.batches]).to(images.device)
    names = [None if how is None else how.operation for how in updates.draws]
    numbers = torch.stack(
        [torch.zeros(batches.shape[1], 3) if how is None else how.u for how in updates.draws]
    )
    moves = list(zip(batches, numbers.to(images), names, strict=True))
    student.alpha.copy_(alpha.detach())
    student.theta.copy_(start.detach())
    with contextlib.closing(_Path(start.device)) as path:
        for batch, u, name in moves:
            path.push(student.theta.clone())
            student.load(images, labels, batch, u)
            student.update(name)

        end = student.theta.clone().requires_grad_()
        value = loss(end)
        (adjoint,) = grad(value, end)
        student.adjoint.copy_(adjoint)
        grad_images, grad_alpha = torch.zeros_like(images), torch.zeros_like(student.alpha)
        for batch, u, name in reversed(moves):
            student.theta.copy_(path.pop(start))
            student.load(images, labels, batch, u)
            student.back(name)
            grad_images.index_add_(0, batch, student.pixels)
            grad_alpha -= student.along
    return Unrolled(end.detach(), value.detach(), grad_images, grad_alpha)


def _compare(
    student: fast.Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
) -> None:
    """Make two updates with each operation that is new to this student, also with `adjoint`; raise
    where they differ.

    Two, for H to have a part in the result, and with a learning rate of 0.1, for that part to be
    large; and with a loss without a mask, as rounding may move a mask, or draw a random one anew.
    """
    loss = lambda theta: (theta - start).square().sum()
    for batch, how in zip(*updates, strict=True):
        name = None if how is None else how.operation
        if name in student.trusted:
            continue
        problem = (
            start,
            images,
            labels,
            torch.full_like(alpha, 0.1),
            Updates([batch] * 2, [how] * 2),
            loss,
        )
        mine, exact = _walk(student, *problem), _adjoint(student.network, *problem)
        pairs = {
            field: (getattr(mine, field), getattr(exact, field))
            for field in ("grad_images", "grad_alpha")
        }
        if not all(b.isfinite().all() and b.any() for _, b in pairs.values()):
            continue  # there is nothing to compare with
        for field, (a, b) in pairs.items():
            difference = float((a - b).norm() / b.norm())
            if not difference < TOLERANCE:  # also where it is no number
                raise RuntimeError(
                    f"with the operation {name}, its {field} is {difference:.2g} away from "
                    "adjoint's"
                )
        student.trusted.add(name)


Engine = Callable[[Flat, Tensor, Tensor, Tensor, Tensor, Updates, Loss], Unrolled]
ENGINES: dict[str, Engine] = {"autograd": _autograd, "adjoint": _adjoint, "compiled": _compiled}


def _gradient(network, theta, x, y, how, create_graph=False) -> Tensor:
    """The gradient in Eq. (2): of the cross-entropy on the augmented batch with respect to theta,
    (p,).
    """
    x = x if how is None else augment(x, how)
    return grad(F.cross_entropy(network(theta, x), y), theta, create_graph=create_graph)[0]


class _Path:
    """theta_0 ... theta_{J-1}, last in first out. On a CPU they wait in an unnamed temporary file,
    so that the memory
    does not grow with J even for networks larger than the images' graph; on a GPU they stay on
    it."""

    def __init__(self, device: torch.device):
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
                f"{where} has no room for the student's path ({e}): make room, or use the engine "
                "autograd"
            ) from e

    def close(self) -> None:
        if self.file:
            self.file.close()

    def pop(self, like: Tensor) -> Tensor:
        if not self.file:
            return self.vectors.pop()
        end = self.file.seek(-like.numel() * like.element_size(), 1)
        # aligned as `theta` was: numpy's memory would not be
        theta = torch.empty(like.shape, dtype=like.dtype)
        self.file.readinto(theta.numpy().data)
        self.file.seek(end)
        return theta


def choose_engine(
    network: Flat, images: Tensor, labels: Tensor, batch: int | None, steps: int
) -> tuple[str, str]:
    """The engine for this device and size, and the reason in words.

    On a GPU `compiled`. On a CPU `autograd`, which computes each update once, if the graph of all
    updates fits in half of the memory; else `adjoint`, which computes each twice.
    """
    if images.device.type != "cpu":
        return (
            "compiled",
            "on a GPU, starting small operations one by one takes longer than their arithmetic",
        )
    needed = steps * graph_bytes(network, images[: batch or None], labels[: batch or None])
    # not what is free now: a run must not depend on its neighbours
    memory = psutil.virtual_memory().total
    size = (
        f"the graph of {steps} updates takes {needed / 2**20:,.0f} of {memory / 2**20:,.0f} "
        "MiB of memory"
    )
    return ("autograd" if needed < memory / 2 else "adjoint"), size


def graph_bytes(network: Flat, images: Tensor, labels: Tensor) -> int:
    """Bytes that one student update keeps for differentiating through it, measured by making
    one.
    """
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    theta = network.initial(0).to(images).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _ = _gradient(
            network, theta, images.detach().requires_grad_(), labels, None, create_graph=True
        )
    return sum(kept.values())
