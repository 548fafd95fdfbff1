"""Several processes as one: torchrun starts them, each is a rank. A process on its own is rank 0 of
1.

Ranks talk through the CPU (gloo), whatever they compute on: what they exchange, one gradient of the
images per step, is small beside the work behind it.
"""

import contextlib
import datetime
import functools
import os
from collections.abc import Iterator, Sequence
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from ddpp.foundation.errors import Error

PATIENCE = datetime.timedelta(hours=24)  # a rank may wait for another's teachers that long


def join() -> None:
    """Meet the other processes that torchrun started.

    Does nothing in a process that was started alone, or in a second call.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world == 1 or dist.is_initialized():
        return
    if missing := {"RANK", "MASTER_ADDR", "MASTER_PORT"} - os.environ.keys():
        raise Error(
            f"WORLD_SIZE is set, but not {', '.join(sorted(missing))}: start with torchrun, or "
            "unset it"
        )
    from torch.distributed import PrefixStore, TCPStore  # pyright: ignore[reportPrivateImportUsage] documented

    number, attempt = int(os.environ["RANK"]), os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    hosts = number == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=hosts)
    # else, after a restart, ranks read addresses of dead ones
    store = PrefixStore(f"attempt {attempt}", store)
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=PATIENCE)


def check_joined() -> None:
    """Raise an Error in a script that torchrun started and that did not `join`: each process would
    do all of the work, and write it to the same place.
    """
    world = int(os.environ.get("WORLD_SIZE", 1))
    if world > 1 and not dist.is_initialized():
        raise Error(
            f"torchrun started {world} processes, and this script has not joined them: call "
            "ddpp.foundation.processes.join() at its beginning (or unset WORLD_SIZE, if each "
            "process is to work on its own)"
        )


def leave() -> None:
    """Part from the others. A process that ends without it may abort, as its threads still listen
    to them.
    """
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def share(count: int) -> range:
    """Which of `count` pieces of work are this rank's."""
    return range(rank(), count, size())


def wait() -> None:
    """Block until every rank arrives (a barrier)."""
    if size() > 1:
        dist.barrier(_group())


def _group() -> dist.ProcessGroup | None:
    """The ranks as they talk here: through gloo, also where a script's own group has another
    backend.
    """
    return None if dist.get_backend() == "gloo" else _beside(dist.group.WORLD)


@functools.lru_cache(1)
def _beside(_: object) -> dist.ProcessGroup:
    return cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=PATIENCE))


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Rank 0 enters the block first, the others when it has left: for what one must fetch and all
    can then read.
    """
    if rank() > 0:
        wait()
    try:
        yield
    finally:  # also where rank 0 has failed: it ends, and torchrun ends the others
        if rank() == 0:
            wait()


def average(parts: Sequence[dict[str, Tensor]], count: int) -> dict[str, Tensor]:
    """The mean of `count` dicts of tensors, of which `parts` are the ones in this rank's `share`.
    It is the same on every rank.

    Summed in the order of the whole, so that the bits do not depend on the number of ranks, which
    must divide `count`.
    """
    if size() > 1:
        mine = torch.stack(
            [torch.cat([value.flatten().cpu() for value in part.values()]) for part in parts]
        )
        shares = [torch.empty_like(mine) for _ in range(size())]
        dist.all_gather(shares, mine, _group())
        # as `share` deals
        rows = torch.stack(shares, dim=1).flatten(0, 1).to(next(iter(parts[0].values())).device)
        lengths = [value.numel() for value in parts[0].values()]
        shapes = {name: value.shape for name, value in parts[0].items()}
        parts = [
            {
                name: v.view(s)
                for v, (name, s) in zip(row.split(lengths), shapes.items(), strict=True)
            }
            for row in rows
        ]
    total = dict(parts[0])
    for part in parts[1:]:
        total = {name: value + part[name] for name, value in total.items()}
    return {name: value / count for name, value in total.items()}
