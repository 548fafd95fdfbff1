"""Sets of real images, what a distilled set has to beat."""

import torch

from ddpp.data import ImageData
from ddpp.distilled import DistilledDataset

LEARNING_RATE = 0.01  # the field's rate for training on real images; a distilled set brings its own alpha


def random(data: ImageData, ipc: int, network: dict, seed: int = 0) -> DistilledDataset:
    """`ipc` random real training images per class; with the same seed, those that distillation starts from."""
    images, labels = data.draw(ipc, seed)
    return DistilledDataset(
        images=images,
        labels=labels,
        alpha=torch.tensor(LEARNING_RATE, device=data.device),
        whitening=data.whitening,
        classes=data.classes,
        network=network,
        provenance=data.provenance | {"method": "random real images", "ipc": ipc, "seed": seed},
    )
