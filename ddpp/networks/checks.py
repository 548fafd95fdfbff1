"""Whether a network of a user's own is a function of its parameters and the images alone."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad
from torch.func import functional_call

from ddpp.foundation.errors import Error, first_line
from ddpp.foundation.seeds import drawn, generator
from ddpp.networks.flat import Flat


def check(network: Flat, shape: tuple[int, int, int], classes: int) -> None:
    """Raise an Error unless images `(n, *shape)` become logits `(n, classes)`, twice the same.

    The call must change neither the images nor the buffers. This is for networks of a user's own:
    what goes wrong here would otherwise go wrong silently, or late, in a run. Sets the
    network's `mixes` (an image's logits depend on its batch) and `needs_company` (it cannot be
    alone in one).
    """
    what = f"the network '{network.name}'"
    # on a GPU, equal calls may differ in the last bits, and dropout would use the caller's seed
    module = network.module if network.device.type == "cpu" else network.fresh(0)
    images = torch.randn(2, *shape, generator=generator(0, "probe"), dtype=torch.float32)
    given, constants = images.clone(), {name: b.clone() for name, b in module.named_buffers()}
    other = network.fresh(0)
    with torch.no_grad():
        try:
            logits, draws = drawn(lambda: module(images))
            once = _attributes(module)
            again, _ = drawn(lambda: module(given.clone()))
        except Exception as e:
            size = " x ".join(map(str, shape))
            raise Error(f"{what} cannot take images of {size}: {first_line(e)}") from e
    if problem := _problem_of_logits(logits, classes):
        raise Error(f"{what} {problem}")
    if not torch.equal(images, given):
        raise Error(
            f"{what} changes the images that it is given: make a new tensor instead of "
            "changing theirs"
        )
    buffers = dict(module.named_buffers())  # one may be new
    if buffers.keys() != constants.keys() or not all(
        torch.equal(b, constants[name]) for name, b in buffers.items()
    ):
        raise Error(f"{what} changes its buffers when it is called: here they must be constants")
    if not draws and not _same(once, _attributes(module)):
        raise Error(
            f"{what} changes an attribute when it is called, as a counter does: here its "
            "logits must depend on its parameters and the images alone"
        )
    moved = _moved(network, module, given)
    both = _called_with(network, moved, module, given)
    _check_fresh(module, other, what)
    if draws or not torch.equal(logits.nan_to_num(), again.nan_to_num()):
        raise Error(
            f"{what} gives the same images other logits each time: leave out dropout and "
            "other randomness"
        )
    _called_with(network, moved, other, 3 * given + 1)  # of which it must keep nothing
    anew = _called_with(network, moved, other, given)
    if not torch.allclose(anew, both, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise Error(
            f"{what} gives other logits than one that is made anew and has the same "
            "parameters: compute in each call what depends on them or on the images, and keep "
            "nothing of it; constants that are drawn are to be drawn from torch"
        )
    _find_company(network, module, moved, given, both)
    if module is not network.module:
        _check_device(network, given, what)
    _check_parameters(network, given.to(network.device), what)
    _check_learning(network, (module, other), moved, given, both)


def _called_with(
    network: Flat, parameters: dict[str, Tensor], module: nn.Module, images: Tensor
) -> Tensor:
    """Compute logits with other parameters than the module's own, which must not change."""
    what = f"the network '{network.name}'"
    try:
        logits, given = _call(network, module, parameters, images)
    except Exception as e:
        raise Error(
            f"{what} cannot be called with other parameters than its own ({first_line(e)}): "
            "give the module that is inside of DataParallel, or a class of Python in place of "
            "what torch.jit.script made of it"
        ) from e
    if not all(torch.equal(given[place], p) for place, p in network.placed(parameters).items()):
        raise Error(f"{what} changes its parameters when it is called: here only training does")
    return logits


def _call(
    network: Flat, module: nn.Module, parameters: dict[str, Tensor], images: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Call a module with copies of these parameters. Return the logits and what became of them."""
    given = network.placed({name: p.clone() for name, p in parameters.items()})
    with torch.no_grad():
        call = lambda: functional_call(module, given, (images,), tie_weights=False)
        return drawn(call)[0], given


def _check_fresh(module: nn.Module, other: nn.Module, what: str) -> None:
    """Raise an Error unless a second module of the same seed has the same numbers."""
    # the one that evaluations make later must be the same function
    first, second = ([*made.named_parameters(), *made.named_buffers()] for made in (module, other))
    for (name, one), (_, other) in zip(first, second, strict=True):
        if not _equal(one, other).all():
            raise Error(
                f"{what} draws {name} anew each time it is made, whatever the seed: draw from "
                "torch, or give the numbers as constants"
            )


def _find_company(
    network: Flat, module: nn.Module, moved: dict[str, Tensor], images: Tensor, both: Tensor
) -> None:
    """Find out `mixes` and `needs_company`, from the logits of two images (2, C, H, W)."""
    try:
        alone, _ = _call(network, module, moved, images[:1])
    except Exception:  # batch statistics of a single value
        network.mixes = network.needs_company = True
    else:
        network.mixes = not torch.allclose(alone, both[:1], rtol=1e-3, atol=1e-4)


def _check_device(network: Flat, images: Tensor, what: str) -> None:
    """Raise an Error for a network that works on the CPU alone."""
    try:
        with torch.no_grad():
            network.module(images.to(network.device))
    except Exception as e:  # of a tensor that is no buffer, say, and stayed behind
        raise Error(f"{what} works on the CPU, but not on {network.device}: {first_line(e)}") from e


def _check_parameters(network: Flat, images: Tensor, what: str) -> None:
    """Raise an Error if the logits depend on parameters that are no part of theta."""
    theta = network.initial(0).requires_grad_()
    try:
        logits = network(theta, images)  # kept: older torch frees the graph with its last tensor
    except Exception as e:
        raise Error(
            f"{what} cannot be called where a gradient is wanted ({first_line(e)}): change no "
            "parameters in forward, and stay within PyTorch"
        ) from e
    nodes, seen = [logits.grad_fn], set()
    while nodes:
        node = nodes.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)  # of an AccumulateGrad
        if leaf is not None and leaf is not theta:
            raise Error(
                f"{what} uses a parameter {tuple(leaf.shape)} that it has not registered, and "
                "that would never be trained: keep parameters as attributes, and layers in an "
                "nn.ModuleList, not in a list"
            )
        nodes += [following for following, _ in node.next_functions]


def _check_learning(
    network: Flat,
    modules: tuple[nn.Module, nn.Module],
    moved: dict[str, Tensor],
    images: Tensor,
    logits: Tensor,
) -> None:
    """Raise an Error for a network that is another function where a gradient is wanted, or whose
    gradient is taken at other parameters than those it was called with.

    - modules: one to be called with the parameters `moved`, and one to have them as its own.
    - logits: of the images (2, C, H, W) with these parameters, where no gradient is wanted.
    """
    what, (module, other) = f"the network '{network.name}'", modules
    with torch.no_grad():
        for name, p in other.named_parameters():
            p.copy_(moved[name])
    theta = torch.cat([p.flatten() for p in moved.values()]).requires_grad_()
    y = torch.arange(len(images)) % logits.shape[1]
    try:
        constants = {name: b.clone() for name, b in other.named_buffers()}
        drawn(lambda: other(images))
        once = _attributes(other)
        own, draws = drawn(lambda: other(images))
        keeps = not _same(constants, dict(other.named_buffers())) or not _same(
            once, _attributes(other)
        )
        given = network.placed(network.unflatten(theta))
        called = functional_call(module, given, (images,), tie_weights=False)
        found = grad(F.cross_entropy(called, y), theta)[0]
        right = grad(
            F.cross_entropy(own, y),
            list(other.parameters()),
            allow_unused=True,
            materialize_grads=True,
        )
    except Exception as e:
        raise Error(f"{what} cannot be differentiated: {first_line(e)}") from e
    if draws or keeps or not torch.allclose(own, logits, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise Error(
            f"{what} does something else where a gradient is wanted than where none is, or keeps "
            "what it did there: it must not ask which is the case (torch.is_grad_enabled)"
        )
    right = torch.cat([part.flatten() for part in right])
    if (found - right).norm() > 1e-2 * right.norm():
        raise Error(
            f"{what} has a wrong gradient here, as its backward pass uses other parameters than "
            "the call: switch activation checkpointing off (torch.utils.checkpoint, "
            "memory_efficient), and save in forward what backward uses"
        )


def _attributes(module: nn.Module) -> list[dict]:
    """Copy the attributes of a module and of those inside it, but not what PyTorch registers."""
    registered = {name for name, value in vars(nn.Module()).items() if isinstance(value, dict)}
    return [
        {name: _copied(value) for name, value in vars(one).items() if name not in registered}
        for one in module.modules()
    ]


def _copied(value: object, depth: int = 5) -> object:
    """Copy numbers, texts and tensors, also in what contains them. Of other objects take the type.

    - depth: of containers in containers. One may contain itself.
    """
    if isinstance(value, Tensor):
        return value.detach().to_dense().clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if depth and isinstance(value, dict):
        return {key: _copied(one, depth - 1) for key, one in value.items()}
    if depth and isinstance(value, list | tuple):
        return [_copied(one, depth - 1) for one in value]
    if isinstance(value, set):
        return set(value)
    return value if isinstance(value, bool | int | float | str) else type(value)


def _same(one: object, other: object) -> bool:
    """Compare two copies. NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor | np.ndarray) and isinstance(other, Tensor | np.ndarray):
        return one.shape == other.shape and bool(_equal(one, other).all())
    return bool(_equal(one, other))


def _equal(one: Any, other: Any) -> Any:
    """Compare numbers, or tensors number by number. NaN equals NaN."""
    return (one == other) | ((one != one) & (other != other))


def _moved(network: Flat, module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return a module's parameters after a random step: a last layer may begin at 0, where all
    logits are equal.

    Without the step where it cannot be called after it, as parameters may have bounds.
    """
    rng, own = generator(0, "moved"), {name: p.detach() for name, p in module.named_parameters()}
    draw = lambda p: torch.randn(p.shape, generator=rng, dtype=torch.float32).to(p)
    moved = {name: p + 0.1 * draw(p) for name, p in own.items()}
    try:
        _call(network, module, moved, images)
    except Exception:
        return own
    return moved


def _problem_of_logits(logits: object, classes: int) -> str:
    """Say why this is not what a network must return for two images. Empty if it is."""
    if not isinstance(logits, Tensor):
        return f"returns a {type(logits).__name__}: it must return its logits alone, a tensor"
    if logits.shape != (2, classes):
        return (
            f"returns the shape {tuple(logits.shape)} for 2 images of {classes} classes: its "
            f"logits must have the shape (2, {classes})"
        )
    return ""
