"""The engine `adjoint`: exact gradients from the J parameter vectors alone.

Begin with lambda = dL/dtheta_J. Then, for each update from the last to the first, with g the
gradient of the inner loss at theta_j and H its Hessian:

    dL/dX     -= alpha * d<lambda, g>/dX
    dL/dalpha -= <lambda, g>
    lambda    -= alpha * H lambda

This is what reverse-mode differentiation computes, with the graph of one update at a time.
"""

import contextlib
import tempfile

import torch
from torch import Tensor
from torch.autograd import grad

from ddpp.foundation.errors import Error
from ddpp.networks import Flat
from ddpp.unrolling.updates import Loss, Unrolled, Updates, gradient


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
            theta = theta - alpha * gradient(
                network, theta.requires_grad_(), images[batch], labels[batch], how
            )
            theta = theta.detach()

        student = theta.requires_grad_()
        value = loss(student)
        (adjoint,) = grad(value, student)
        grad_images, grad_alpha = torch.zeros_like(images), torch.zeros_like(alpha)
        for batch, how in zip(reversed(updates.batches), reversed(updates.draws), strict=True):
            theta, x = path.pop(start).requires_grad_(), images[batch].requires_grad_()
            along = gradient(network, theta, x, labels[batch], how, create_graph=True) @ adjoint
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
                f"{tempfile.gettempdir()} has no room for the student's path ({e}): make room, or "
                "use the engine autograd"
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
