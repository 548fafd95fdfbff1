"""Random numbers as a function of a seed and a path of names, so that any step can be replayed on
its own.

Nothing in ddpp reads a global random state: a stopped run needs no saved generator to resume to the
same bits.
"""

import hashlib

import torch


def derive(seed: int, *path: float | str) -> int:
    """A 32-bit seed that depends on `seed` and `path` alone."""
    return int.from_bytes(hashlib.sha256(repr((seed, *path)).encode()).digest()[:4], "little")


def generator(seed: int, *path: float | str) -> torch.Generator:
    """A fresh generator for `path`, e.g. generator(0, "step", 17); on the CPU, so that all devices
    see equal draws.
    """
    return torch.Generator().manual_seed(derive(seed, *path))
