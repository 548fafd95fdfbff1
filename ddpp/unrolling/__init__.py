"""Eq. (2) J times, and the exact gradient of a loss of the result with respect to the distilled
images and alpha.

Three engines, one signature, equal results. `autograd` keeps the graph of all J updates. `adjoint`
keeps the J parameter vectors only, on a CPU in a temporary file, and walks back through them.
`compiled` takes the same walk in compiled functions; it compares itself with `adjoint` first, and
leaves the work to it where it cannot.
"""

from collections.abc import Callable

import psutil
import torch
from torch import Tensor

from ddpp.foundation.errors import choose
from ddpp.networks import Flat
from ddpp.unrolling.adjoint import adjoint_engine
from ddpp.unrolling.autograd import autograd_engine
from ddpp.unrolling.compiled import compiled_engine
from ddpp.unrolling.updates import Loss, Unrolled, Updates, draw_updates, gradient

__all__ = ["ENGINES", "Unrolled", "Updates", "choose_engine", "draw_updates", "gradient", "unroll"]

Engine = Callable[[Flat, Tensor, Tensor, Tensor, Tensor, Updates, Loss], Unrolled]
ENGINES: dict[str, Engine] = {
    "autograd": autograd_engine,
    "adjoint": adjoint_engine,
    "compiled": compiled_engine,
}


def unroll(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
    engine: str,
) -> Unrolled:
    """Train the student from `start` (p,) and differentiate loss(student), a scalar, through its
    whole training.
    """
    return ENGINES[choose("engine", engine, ENGINES)](
        network, start, images, labels, alpha, updates, loss
    )


def choose_engine(
    network: Flat, images: Tensor, labels: Tensor, batch: int | None, steps: int
) -> tuple[str, str]:
    """The engine for this device and size, and the reason in words.

    On a GPU `compiled`. On a CPU `autograd`, which computes each update once, if the graph of all
    updates fits in half of the memory; else `adjoint`, which computes each twice.
    """
    if images.device.type != "cpu":
        return (
            "compiled",
            "on a GPU, starting small operations one by one takes longer than their arithmetic",
        )
    needed = steps * graph_bytes(network, images[: batch or None], labels[: batch or None])
    # not what is free now: a run must not depend on its neighbours
    memory = psutil.virtual_memory().total
    size = (
        f"the graph of {steps} updates takes {needed / 2**20:,.0f} of {memory / 2**20:,.0f} "
        "MiB of memory"
    )
    return ("autograd" if needed < memory / 2 else "adjoint"), size


def graph_bytes(network: Flat, images: Tensor, labels: Tensor) -> int:
    """Bytes that one student update keeps for differentiating through it, measured by making
    one.
    """
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    theta = network.initial(0).to(images).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        _ = gradient(
            network, theta, images.detach().requires_grad_(), labels, None, create_graph=True
        )
    return sum(kept.values())
