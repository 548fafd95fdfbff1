"""The engine `stored`: `adjoint`, with the activations of all J updates kept from the forward pass.

An update is then computed once, as in `autograd`, and takes about half of that engine's memory: the
graph of its gradient is made in the backward pass, for one update at a time.
"""

import torch
from torch import Tensor
from torch.autograd import grad

from ddpp.networks import Flat
from ddpp.unrolling.updates import Loss, Unrolled, Updates, inner_loss


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
    path = []
    for batch, how in zip(*updates, strict=True):
        theta, x = theta.requires_grad_(), images[batch].requires_grad_()
        inner = inner_loss(network, theta, x, labels[batch], how)
        path.append((theta, x, inner))
        theta = (theta - alpha * grad(inner, theta, retain_graph=True)[0]).detach()

    student = theta.requires_grad_()
    value = loss(student)
    (adjoint,) = grad(value, student)
    grad_images, grad_alpha = torch.zeros_like(images), torch.zeros_like(alpha)
    for batch in reversed(updates.batches):
        theta, x, inner = path.pop()
        along = grad(inner, theta, create_graph=True)[0] @ adjoint
        curved, pixels = grad(along, (theta, x))
        grad_images.index_add_(0, batch.to(images.device), -alpha * pixels)
        grad_alpha -= along.detach()
        adjoint = adjoint - alpha * curved
    return Unrolled(student.detach(), value.detach(), grad_images, grad_alpha)
