"""Apply Eq. (2) J times, and differentiate a loss of the result with respect to the distilled
images and alpha, exactly.

Four engines have one signature and equal results. `autograd` keeps the graph of all J updates.
`stored` keeps their activations, about half as much, and makes the rest of the graph update by
update. `adjoint` keeps the J parameter vectors only, on a CPU in a temporary file, and computes the
activations twice. `compiled` does the same in compiled functions. It first compares its results
with `adjoint`. Where it fails or differs, `adjoint` is used.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor

from ddpp.foundation.devices import memory
from ddpp.foundation.errors import choose
from ddpp.networks import Flat
from ddpp.unrolling.adjoint import adjoint_engine, stored_engine
from ddpp.unrolling.autograd import autograd_engine
from ddpp.unrolling.compiled import compiled_engine, free_memory
from ddpp.unrolling.learned import Carried
from ddpp.unrolling.updates import (
    Loss,
    Unrolled,
    Updates,
    draw_updates,
    gradient,
    inner_loss,
    update,
)

__all__ = [
    "ENGINES",
    "Carried",
    "Unrolled",
    "Updates",
    "choose_engine",
    "draw_updates",
    "free_memory",
    "gradient",
    "unroll",
    "update",
]

# Updates on a GPU, estimated: an update starts some 2,000 small operations there and back, in about
# 7 ms, and compiling takes one to three minutes.
WORTH_COMPILING = 20_000
Engine = Callable[[Flat, Tensor, Tensor, Tensor, Tensor, Updates, Loss], Unrolled]
ENGINES: dict[str, Engine] = {
    "autograd": autograd_engine,
    "adjoint": adjoint_engine,
    "compiled": compiled_engine,
    "stored": stored_engine,
}


def unroll(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor | Carried,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
    engine: str,
) -> Unrolled:
    """Train the student by Eq. (2), and differentiate a loss of it through its whole training.

    - network: the student as a function of its parameters, see `Flat`.
    - start: parameters (p,) before the first update.
    - images: the distilled images (N, C, H, W), preprocessed.
    - labels: their classes (N,), int64, or distributions (N, classes), or `Carried`, if they are
      learned. Then images and their gradient are rows with the logits behind the pixels, and the
      gradient's logits are multiplied by `Carried.rate`.
    - alpha: the student's learning rate, a scalar tensor.
    - updates: the J batches and augmentations, see `draw_updates`.
    - loss: maps the student's parameters (p,) to a scalar.
    - engine: "autograd", "stored", "adjoint" or "compiled", see above, else Error.

    Returns the student, the loss, and its gradients for the images and alpha. There are so many
    parameters because they are the terms of Eqs. (1)-(4).

    >>> import ddpp, torch
    >>> from ddpp.foundation.seeds import generator
    >>> from ddpp.unrolling import draw_updates, unroll
    >>> network = ddpp.NetworkConfig(width=2, depth=1).build(channels=1, classes=2, image_size=8)
    >>> images, labels = torch.eye(8).repeat(2, 1, 1, 1), torch.tensor([0, 1])
    >>> updates = draw_updates(size=2, batch=None, steps=3, generator=generator(0, "example"))
    >>> start, loss = network.initial(seed=0), lambda student: student.square().sum()
    >>> alpha = torch.tensor(0.1)
    >>> result = unroll(network, start, images, labels, alpha, updates, loss, "adjoint")
    >>> result.grad_images.shape, result.grad_alpha.shape
    (torch.Size([2, 1, 8, 8]), torch.Size([]))
    """
    run = ENGINES[choose("engine", engine, ENGINES)]
    alpha, updates = alpha.to(images.device), updates.to(images)
    # to an engine, Carried is as good as labels
    out = run(network, start, images, cast(Tensor, labels), alpha, updates, loss)
    if isinstance(labels, Carried):
        return out._replace(grad_images=labels.at_rate(out.grad_images))
    return out


def choose_engine(
    network: Flat, images: Tensor, labels: Tensor, batch: int | None, steps: int, total: int
) -> tuple[str, str]:
    """Choose the engine for this device and size, and return its name and the reason in words.

    - steps: updates of the student in a distillation step.
    - total: distillation steps of the run.

    On a GPU: `compiled`, or `adjoint` in runs of so few updates that compiling would take longer.
    On a CPU the first that keeps at most a third of the memory for this process (the backward pass
    and the data need as much again): `autograd`, `stored`, which is about as fast, or `adjoint`,
    whose memory hardly grows with the updates.
    """
    if images.device.type != "cpu":
        if steps * total < WORTH_COMPILING:
            return "adjoint", f"{steps * total:,} updates take less time than compiling them"
        return "compiled", "on a GPU; the first step compiles it, for a minute or more"
    images, labels = images[: batch or None], labels[: batch or None]
    there = memory()
    of = f"of {steps} updates"
    why = {"autograd": f"the graph {of} takes", "stored": f"the activations {of} take"}
    for engine, what in why.items():
        needed = steps * kept_bytes(network, images, labels, engine)
        why[engine] = f"{what} {needed / 2**20:,.0f} MiB of memory"
        if needed < there / 3:
            return engine, why[engine]
    return "adjoint", f"{why['stored']}, and there are {there / 2**20:,.0f} MiB"


def kept_bytes(network: Flat, images: Tensor, labels: Tensor, engine: str = "autograd") -> int:
    """Measure, by making one update, the bytes that `autograd` or `stored` keeps of it."""
    kept = {}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    theta, x = network.initial(0).to(images).requires_grad_(), images.detach().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        if engine == "autograd":
            _ = gradient(network, theta, x, labels, None, create_graph=True)
        else:
            _ = inner_loss(network, theta, x, labels, None)
    return sum(kept.values())
