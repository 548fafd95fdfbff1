"""Whether a network of a user's own can be differentiated twice, as every engine does."""

import contextlib
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad

from ddpp.foundation.devices import check_training
from ddpp.foundation.errors import Error, first_line
from ddpp.foundation.seeds import generator
from ddpp.networks import ARCHITECTURES, Flat

# of the difference quotients, in float64: over a long step some ReLU crosses its kink, where the
# gradient jumps, and over a short one rounding counts. A right derivative agrees over one of them.
STEPS = (1e-6, 1e-8, 1e-10)
TOLERANCE = 1e-3  # a right derivative is nearly exact


def check_derivatives(network: Flat, shape: tuple[int, int, int], classes: int) -> None:
    """Raise an Error for a network whose gradient has no derivative, or a wrong one.

    An operation may have a backward pass that cannot be differentiated again, and PyTorch does not
    always notice. Then all engines agree on a gradient of the images that is wrong.

    - network: ddpp's own are not looked at.
    - shape: of an image, (C, H, W).
    - classes: number of logits.
    """
    if network.name in ARCHITECTURES.built_in and not ARCHITECTURES.is_brought(network.name):
        return
    check_training()
    what = f"the network '{network.name}' cannot be unrolled"
    try:
        single = _Probe(network, shape, classes, torch.float32)
        single.derivatives(single.initial)
    except RuntimeError as e:
        raise Error(
            f"{what}, as its gradient cannot be differentiated again ({first_line(e)}): leave that "
            "operation out, or, of attention, call it within "
            "torch.nn.attention.sdpa_kernel(SDPBackend.MATH)"
        ) from e
    probe = _Probe(network.double(), shape, classes, torch.float64)
    try:
        compared = probe.compared(probe.initial)
    except Exception as e:  # of a network that fixes the type of its numbers
        warnings.warn(
            f"the network '{network.name}' cannot compute in double precision ({first_line(e)}), "
            "so whether its gradient is differentiated rightly has not been checked: take the type "
            "of its numbers from the images",
            stacklevel=2,
        )
        return
    with contextlib.suppress(Exception):  # parameters may have bounds, as a scale above 0
        # a last layer or a gate may begin at 0, and hides then what is before it
        compared += probe.compared(probe.moved)
    for derivative, quotients in compared:
        quotient = min(quotients, key=lambda each: abs(derivative - each))
        if abs(derivative - quotient) > TOLERANCE * abs(quotient) + 1e-9:
            raise Error(
                f"{what}, as the derivative of its gradient is {derivative:.4g} where differences "
                f"of gradients give {quotient:.4g}: an operation cuts its backward pass off from "
                "the graph, by detach, no_grad or once_differentiable, or computes in fewer than "
                "64 bits (autocast, bfloat16), or PyTorch's own second derivative of it is "
                "inexact, as that of weight_norm is"
            )


class _Probe:
    """The gradient of the cross-entropy for theta, and its part along one direction.

    This part is differentiated along one direction of theta and one of the images.
    """

    def __init__(
        self, network: Flat, shape: tuple[int, int, int], classes: int, dtype: torch.dtype
    ):
        rng = generator(0, "derivatives")
        draw = lambda *size: torch.randn(*size, generator=rng, dtype=torch.float64).to(
            network.device, dtype
        )
        self.network, self.initial = network, network.initial(0).to(dtype)
        self.x, self.y = draw(4, *shape), torch.arange(4, device=network.device) % classes
        self.part, self.of_theta = draw(network.size), draw(network.size)
        self.of_x = draw(4, *shape)
        self.moved = self.initial + 0.1 * draw(network.size)  # where no part of theta is 0

    def along(self, theta: Tensor, x: Tensor, create_graph: bool = False) -> Tensor:
        """Compute the gradient's part along the direction, a scalar."""
        loss = F.cross_entropy(self.network(theta, x), self.y)
        return grad(loss, theta, create_graph=create_graph)[0] @ self.part

    def compared(self, theta: Tensor) -> list[tuple[float, tuple[float, ...]]]:
        """Return each derivative at one theta, and what differences over each step say of it."""
        measured = zip(*(self.quotients(theta, step) for step in STEPS), strict=True)
        return list(zip(self.derivatives(theta), measured, strict=True))

    def derivatives(self, theta: Tensor) -> tuple[float, float]:
        """Differentiate it along both directions, as an engine does."""
        theta, x = theta.clone().requires_grad_(), self.x.clone().requires_grad_()
        found = grad(
            self.along(theta, x, create_graph=True),
            (theta, x),
            allow_unused=True,
            materialize_grads=True,
        )
        return float(found[0] @ self.of_theta), float((found[1] * self.of_x).sum())

    def quotients(self, theta: Tensor, step: float) -> tuple[float, float]:
        """Measure the same by differences of gradients over a step."""
        by_theta, by_x = step * self.of_theta, step * self.of_x
        at = lambda theta, x: float(self.along(theta.clone().requires_grad_(), x))
        return (
            (at(theta + by_theta, self.x) - at(theta - by_theta, self.x)) / (2 * step),
            (at(theta, self.x + by_x) - at(theta, self.x - by_x)) / (2 * step),
        )
