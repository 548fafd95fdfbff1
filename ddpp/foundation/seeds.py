"""Random numbers as a function of a seed and a path of names, so that any step can be replayed on
its own.

Nothing in ddpp reads a global random state: a stopped run needs no saved generator to resume to the
same bits.
"""

import hashlib
import random
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch

T = TypeVar("T")
# What a process has only once is used by one thread at a time: the global random states, PyTorch's
# default type, and the modules of networks, in which a call puts the parameters.
ALONE = threading.RLock()


def derive(seed: int, *path: float | str) -> int:
    """A 32-bit seed that depends on `seed` and `path` alone, also if they are NumPy's numbers."""
    plain = tuple(part.item() if isinstance(part, np.generic) else part for part in (seed, *path))
    return int.from_bytes(hashlib.sha256(repr(plain).encode()).digest()[:4], "little")


def generator(seed: int, *path: float | str) -> torch.Generator:
    """A fresh generator for `path`, e.g. generator(0, "step", 17); on the CPU, so that all devices
    see equal draws.
    """
    return torch.Generator().manual_seed(derive(seed, *path))


def drawn(call: Callable[[], T]) -> tuple[T, bool]:
    """Call a function of a user's own. Return what it returns, and whether it drew random numbers
    from a global state, of PyTorch, NumPy or Python. The states are put back.

    Two calls with equal results do not tell: a mirror with probability 0.3 rarely acts.
    """
    with ALONE:
        before = _states()
        try:
            found = call()
            after = _states()
        finally:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])
            if len(before) > 3:
                torch.cuda.set_rng_state_all(before[3])
    # not strict: the call may have been the first to use CUDA, which has a state since
    return found, any(not _equal(a, b) for a, b in zip(before, after, strict=False))


def _states() -> tuple[Any, ...]:
    there = (torch.cuda.get_rng_state_all(),) if torch.cuda.is_initialized() else ()
    return torch.get_rng_state(), np.random.get_state(), random.getstate(), *there


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list):
        return all(map(_equal, a, b))
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    return bool(np.all(a == b))
