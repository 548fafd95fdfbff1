"""Labels that are learned: each travels behind the pixels of its image.

So whatever moves images moves labels, too, and a step need not know of them. A row holds an image
and the logits of its label; the label is their softmax.
"""

import contextlib
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd import grad

from ddpp.networks import Flat
from ddpp.unrolling.adjoint import StudentPath
from ddpp.unrolling.updates import Loss, Unrolled, Updates, gradient


@dataclass(frozen=True)
class Carried:
    """Stands where labels would, and says that the images are rows with the logits behind them."""

    images: int  # N
    shape: torch.Size  # (C, H, W), of an image
    rate: float  # the learning rate of the logits over that of the images

    def __len__(self) -> int:
        return self.images

    def pack(self, images: Tensor, logits: Tensor) -> Tensor:
        """Put images (N, C, H, W) and logits (N, classes) into rows (N, C H W + classes)."""
        return torch.cat([images.flatten(1), logits], 1)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take rows apart again."""
        pixels = self.shape.numel()
        return rows[:, :pixels].unflatten(1, self.shape).contiguous(), rows[:, pixels:].contiguous()


def unroll_carried(
    network: Flat,
    start: Tensor,
    rows: Tensor,
    carried: Carried,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
    engine: str,
) -> Unrolled:
    """Do as `unroll` does, for rows; their gradient is packed as they are.

    That of the logits is multiplied by `carried.rate`, so that descent with the learning rate of
    the images moves them with their own. The engine `autograd` keeps the graph of all updates; any
    other works as `adjoint`.
    """
    images, logits = carried.split(rows.detach())
    logits = logits.requires_grad_()
    labels = logits.softmax(1)
    run = _autograd if engine == "autograd" else _adjoint
    out, of_labels = run(network, start, images, labels.detach(), alpha, updates, loss)
    (of_logits,) = grad(labels, logits, of_labels)
    return out._replace(grad_images=carried.pack(out.grad_images, carried.rate * of_logits))


def _autograd(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> tuple[Unrolled, Tensor]:
    """`autograd_engine`, and the gradient of the labels (N, classes)."""
    images, labels, alpha = (t.detach().requires_grad_() for t in (images, labels, alpha))
    theta = start.detach().requires_grad_()
    for batch, how in zip(*updates, strict=True):
        theta = theta - alpha * gradient(
            network, theta, images[batch], labels[batch], how, create_graph=True
        )
    value = loss(theta)
    of_images, of_labels, of_alpha = grad(value, (images, labels, alpha))
    return Unrolled(theta.detach(), value.detach(), of_images, of_alpha), of_labels


def _adjoint(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> tuple[Unrolled, Tensor]:
    """`adjoint_engine`, and the gradient of the labels: dL/dY -= alpha * d<lambda, g>/dY."""
    alpha, theta = alpha.detach(), start.detach()
    with contextlib.closing(StudentPath(start.device)) as path:
        for batch, how in zip(*updates, strict=True):
            path.push(theta)
            theta = theta.requires_grad_()
            slope = gradient(network, theta, images[batch], labels[batch], how)
            theta = (theta - alpha * slope).detach()

        student = theta.requires_grad_()
        value = loss(student)
        (adjoint,) = grad(value, student)
        of_images, of_labels, of_alpha = map(torch.zeros_like, (images, labels, alpha))
        for batch, how in zip(reversed(updates.batches), reversed(updates.draws), strict=True):
            theta, x, y = (
                t.requires_grad_() for t in (path.pop(start), images[batch], labels[batch])
            )
            along = gradient(network, theta, x, y, how, create_graph=True) @ adjoint
            curved, pixels, classes = grad(along, (theta, x, y))
            index = batch.to(images.device)
            of_images.index_add_(0, index, -alpha * pixels)
            of_labels.index_add_(0, index, -alpha * classes)
            of_alpha -= along.detach()
            adjoint = adjoint - alpha * curved
    return Unrolled(student.detach(), value.detach(), of_images, of_alpha), of_labels
