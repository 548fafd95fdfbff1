"""Labels that are learned: each travels behind the pixels of its image.

So whatever draws, differentiates or moves images does the same with their labels, and need not know
of them. A row holds an image and the logits of its label. The label is their softmax.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Carried:
    """Stands where labels would, and says that the images are rows with the logits behind them."""

    images: int  # N
    shape: torch.Size  # (C, H, W), of an image
    rate: float  # the learning rate of the logits over that of the images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, batch: Tensor | slice) -> "Carried":
        """Stand for the labels of any batch: its rows bring them along."""
        return self

    def pack(self, images: Tensor, logits: Tensor) -> Tensor:
        """Put images (N, C, H, W) and logits (N, classes) into rows (N, C H W + classes)."""
        return torch.cat([images.flatten(1), logits], 1)

    def split(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Take rows apart again."""
        pixels = self.shape.numel()
        return rows[:, :pixels].unflatten(1, self.shape).contiguous(), rows[:, pixels:].contiguous()

    def at_rate(self, gradient: Tensor) -> Tensor:
        """Multiply the logits' part of a gradient of rows by `rate`.

        So descent with the learning rate of the images moves the logits with their own.
        """
        of_images, of_logits = self.split(gradient)
        return self.pack(of_images, self.rate * of_logits)
