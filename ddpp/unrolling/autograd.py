"""The engine `autograd`: PyTorch keeps the graph of all updates, as in earlier implementations."""

from torch import Tensor
from torch.autograd import grad

from ddpp.networks import Flat
from ddpp.unrolling.updates import Loss, Unrolled, Updates, gradient


def autograd_engine(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """Keep the graph of all J updates and differentiate through it."""
    images, alpha = images.detach().requires_grad_(), alpha.detach().requires_grad_()
    theta = start.detach().requires_grad_()
    for batch, how in zip(*updates, strict=True):
        theta = theta - alpha * gradient(
            network, theta, images[batch], labels[batch], how, create_graph=True
        )
    value = loss(theta)
    return Unrolled(theta.detach(), value.detach(), *grad(value, (images, alpha)))
