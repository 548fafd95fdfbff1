"""What the engines share: the J updates, drawn in advance, and the gradient of Eq. (2)."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from ddpp.data.augmentation import Augmentation, Draw, augment, draw
from ddpp.networks import Flat
from ddpp.unrolling.learned import Carried

Loss = Callable[[Tensor], Tensor]  # maps the student's parameters (p,) to a scalar


class Updates(NamedTuple):
    """What is fixed before the student starts: the batches of Eq. (1) and their augmentations."""

    batches: Sequence[Tensor]  # J index vectors into the distilled set
    draws: Sequence[Draw | None]  # J augmentations; None leaves a batch as it is

    def to(self, images: Tensor) -> "Updates":
        """Move all at once to the images' device: each copy waits for what was started before."""
        if not self.batches or self.batches[0].device == images.device:
            return self
        batches = torch.stack([*self.batches]).to(images.device).unbind()
        draws = [how for how in self.draws if how is not None]
        if not draws:
            return Updates(batches, self.draws)
        numbers = torch.stack([how.u for how in draws]).to(images.device, images.dtype).unbind()
        moved = (how._replace(u=u) for how, u in zip(draws, numbers, strict=True))
        return Updates(batches, [how and next(moved) for how in self.draws])


class Unrolled(NamedTuple):
    """The student after J updates, its loss, and the gradients of the loss."""

    student: Tensor  # (p,)
    loss: Tensor  # ()
    grad_images: Tensor  # (N, C, H, W), or as the rows that images were
    grad_alpha: Tensor  # ()


def draw_updates(
    size: int,
    batch: int | None,
    steps: int,
    generator: torch.Generator,
    augment: Augmentation = True,
) -> Updates:
    """Draw the student's batches, Eq. (1), and their augmentations.

    - size: images in the distilled set.
    - batch: images per update, drawn without replacement; None: the whole set. Each pass through
      the set is a fresh permutation. A rest smaller than a batch is left out.
    - steps: J, the number of updates.
    - generator: on the CPU. First all batches are drawn, then all augmentations.
    - augment: the operations to draw from; False: none. Default: all.

    >>> from ddpp.foundation.seeds import generator
    >>> from ddpp.unrolling import draw_updates
    >>> updates = draw_updates(size=5, batch=2, steps=3, generator=generator(0, "example"))
    >>> [len(batch) for batch in updates.batches], len(updates.draws)
    ([2, 2, 2], 3)
    """
    batch = min(batch or size, size)
    batches = []
    while len(batches) < steps:
        order = torch.randperm(size, generator=generator) if batch < size else torch.arange(size)
        batches += [part for part in order.split(batch) if len(part) == batch]
    draws = [draw(batch, generator, augment) if augment else None for _ in range(steps)]
    return Updates(batches[:steps], draws)


def inner_loss(
    network: Flat, theta: Tensor, x: Tensor, y: Tensor | Carried, how: Draw | None
) -> Tensor:
    """Compute the loss of Eq. (2), a scalar: the cross-entropy on the augmented batch."""
    if isinstance(y, Carried):  # labels that are learned come with their images
        x, logits = y.split(x)
        y = logits.softmax(1)
    x = x if how is None else augment(x, how)
    return F.cross_entropy(network(theta, x), y)


def gradient(
    network: Flat,
    theta: Tensor,
    x: Tensor,
    y: Tensor | Carried,
    how: Draw | None,
    create_graph: bool = False,
) -> Tensor:
    """Compute the gradient in Eq. (2), (p,): that of `inner_loss`."""
    loss = inner_loss(network, theta, x, y, how)
    return grad(loss, theta, create_graph=create_graph)[0]


def update(
    network: Flat, theta: Tensor, x: Tensor, y: Tensor | Carried, how: Draw | None, alpha: Tensor
) -> Tensor:
    """Make one update of the student, Eq. (2), without a graph.

    Takes parameters (p,), a batch (n, C, H, W), its labels (n,), its augmentation, and alpha, ().
    Returns the next parameters (p,).
    """
    theta = theta.detach().requires_grad_()
    return (theta - alpha * gradient(network, theta, x, y, how)).detach()
