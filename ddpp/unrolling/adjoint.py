"""The engines `adjoint` and `stored`: exact gradients, with the backward pass written by hand.

Begin with lambda = dL/dtheta_J. Then, for each update from the last to the first, with g the
gradient of the inner loss at theta_j and H its Hessian:

    dL/dX     -= alpha * d<lambda, g>/dX
    dL/dalpha -= <lambda, g>
    lambda    -= alpha * H lambda

This is what reverse-mode differentiation computes, with the graph of one update at a time.
`adjoint` computes each update twice. `stored` computes it once, as `autograd` does, and takes about
half of that engine's memory: only the graph of its gradient is made in the backward pass.
"""

import contextlib
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import grad

from ddpp.data.augmentation import Draw
from ddpp.foundation.errors import Error
from ddpp.networks import Flat
from ddpp.unrolling.updates import Loss, Unrolled, Updates, inner_loss, update


def adjoint_engine(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """Keep the J parameter vectors; in the backward pass, make one update's graph at a time."""
    images, alpha, theta = images.detach(), alpha.detach(), start.detach()
    with contextlib.closing(StudentPath(start.device)) as path:
        for batch, how in zip(*updates, strict=True):
            path.push(theta)
            theta = update(network, theta, images[batch], labels[batch], how, alpha)

        def graph(batch: Tensor, how: Draw | None) -> tuple[Tensor, ...]:
            theta = path.pop(start).requires_grad_()
            x = images[batch].requires_grad_()
            return theta, x, inner_loss(network, theta, x, labels[batch], how)

        return backward_pass(theta, images, alpha, updates, loss, graph)


def stored_engine(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """Keep the graph of each update's inner loss. In the backward pass, differentiate it twice."""
    images, alpha, theta = images.detach(), alpha.detach(), start.detach()
    graphs = []
    for batch, how in zip(*updates, strict=True):
        theta, x = theta.requires_grad_(), images[batch].requires_grad_()
        inner = inner_loss(network, theta, x, labels[batch], how)
        graphs.append((theta, x, inner))
        theta = (theta - alpha * grad(inner, theta, retain_graph=True)[0]).detach()
    return backward_pass(theta, images, alpha, updates, loss, lambda *_: graphs.pop())


def backward_pass(
    student: Tensor, images: Tensor, alpha: Tensor, updates: Updates, loss: Loss, graph: Callable
) -> Unrolled:
    """Differentiate the loss of the student (p,) through its updates, from the last to the first.

    `graph` maps an update's batch and augmentation to theta_j (p,), its images (n, C, H, W) and the
    inner loss, a scalar with its graph. The other arguments are as in `unroll`.
    """
    value = loss(student.requires_grad_())
    (adjoint,) = grad(value, student)
    grad_images, grad_alpha = torch.zeros_like(images), torch.zeros_like(alpha)
    for batch, how in zip(reversed(updates.batches), reversed(updates.draws), strict=True):
        theta, x, inner = graph(batch, how)
        along = grad(inner, theta, create_graph=True)[0] @ adjoint
        curved, pixels = grad(along, (theta, x))
        grad_images.index_add_(0, batch.to(images.device), -alpha * pixels)
        grad_alpha -= along.detach()
        adjoint = adjoint - alpha * curved
    return Unrolled(student.detach(), value.detach(), grad_images, grad_alpha)


class StudentPath:
    """The vectors theta_0 ... theta_{J-1}, last in, first out.

    On a CPU they are in an unnamed temporary file, so that the memory does not grow with J even
    for large networks. On a GPU they stay in its memory.
    """

    def __init__(self, device: torch.device):
        try:
            self.file = tempfile.TemporaryFile() if device.type == "cpu" else None  # noqa: SIM115
        except OSError as e:
            raise Error(
                f"there is no folder for temporary files, which the student's path needs ({e}): "
                "set TMPDIR (on Windows TEMP) to a folder that can be written, or use the engine "
                "stored"
            ) from e
        self.vectors: list[Tensor] = []

    def push(self, theta: Tensor) -> None:
        """Keep a vector (p,). Raises Error if the disk is full."""
        if not self.file:
            self.vectors.append(theta.detach())
            return
        try:
            self.file.write(theta.detach().numpy().tobytes())
            self.file.flush()
        except OSError as e:
            raise Error(
                f"{tempfile.gettempdir()} has no room for the student's path ({e}): make room, set "
                "TMPDIR (on Windows TEMP) to a folder with more, use fewer student steps, or the "
                "engine stored, which needs memory instead"
            ) from e

    def close(self) -> None:
        """Delete the file."""
        if self.file:
            self.file.close()

    def pop(self, like: Tensor) -> Tensor:
        """Give back the last vector that is left; `like` has its shape and type."""
        if not self.file:
            return self.vectors.pop()
        end = self.file.seek(-like.numel() * like.element_size(), 1)
        theta = torch.empty(like.shape, dtype=like.dtype)  # aligned as before, unlike numpy's
        self.file.readinto(theta.numpy().data)
        self.file.seek(end)
        return theta
