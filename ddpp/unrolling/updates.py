"""What the engines share: J updates, drawn beforehand, and the gradient of Eq. (2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from ddpp.data.augmentation import Draw, augment, draw
from ddpp.networks import Flat

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


def gradient(
    network: Flat,
    theta: Tensor,
    x: Tensor,
    y: Tensor,
    how: Draw | None,
    create_graph: bool = False,
) -> Tensor:
    """The gradient in Eq. (2): of the cross-entropy on the augmented batch with respect to theta,
    (p,).
    """
    x = x if how is None else augment(x, how)
    return grad(F.cross_entropy(network(theta, x), y), theta, create_graph=create_graph)[0]
