"""Make the bundled sample from the complete CIFAR-10.

    python -m tools.make_sample ROOT        ROOT holds cifar10.npz

Writes cifar10-sample.webp: 6,000 tiles of 32 x 32 in a lossless mosaic, and prints the arrays'
SHA-256 for ddpp/data/sources.py.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from ddpp.data.sources import SAMPLE, find, sha256
from tools.commands import run


def sample_of(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Choose the images of the bundled sample: the first of each class in the official order.

    They are in the order of classes.
    """
    first = lambda y, n: np.concatenate([np.flatnonzero(y == c)[:n] for c in range(10)])
    train, test = first(arrays["y_train"], 500), first(arrays["y_test"], 100)
    picks = {"x_train": train, "y_train": train, "x_test": test, "y_test": test}
    return {key: arrays[key][index] for key, index in picks.items()}


def command(root: Path, /) -> None:
    """Make the bundled sample from the complete CIFAR-10.

    Args:
        root: the folder that holds cifar10.npz
    """
    sample = sample_of(find("cifar10", root)[1])
    tiles = np.concatenate([sample["x_train"], sample["x_test"]])
    mosaic = tiles.reshape(75, 80, 32, 32, 3).transpose(0, 2, 1, 3, 4).reshape(75 * 32, 80 * 32, 3)
    Image.fromarray(mosaic).save(SAMPLE, lossless=True, quality=100, method=6)
    for key, array in sample.items():
        print(f'"{key}": "{sha256(array)}",')


main = partial(run, command, "make_sample")


if __name__ == "__main__":
    sys.exit(main())
