"""One update of a student and the way back through it, as whole functions of fixed shapes:
compiled, and on a GPU
replayed as CUDA graphs, so that the time goes into arithmetic and not into starting it.

Autograd cannot differentiate twice through a compiled function. Here it need not: `gradient` and
`curvature` contain all derivatives with respect to theta, written with torch.func, and are compiled
as they stand. The augmentation stays outside, because grid_sample has no second derivative; the way
back needs its first one only.
"""

from collections.abc import Callable
from functools import cached_property, lru_cache
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad, grad_and_value

from ddpp.augment import Draw, augment
from ddpp.networks import Flat, plain

# runs before a capture, in which libraries choose their algorithms and make their workspaces
WARM_UPS = 3


def gradient(network: Flat, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """g (p,), the gradient of the cross-entropy on a batch that is augmented already, with respect
    to theta.
    """
    return grad(lambda theta: F.cross_entropy(network(theta, x), y))(theta)


def curvature(
    network: Flat, theta: Tensor, x: Tensor, y: Tensor, along: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """H @ along (p,), d<g, along>/dx (n, C, H, W) and <g, along> (), with H the Hessian of the same
    cross-entropy.

    Reverse mode twice: on a CPU, compiled, it was faster than forward over reverse.
    """
    slope = lambda theta, x: gradient(network, theta, x, y) @ along
    (curved, pixels), value = grad_and_value(slope, argnums=(0, 1))(theta, x)
    return curved, pixels, value


class Student:
    """A student in training. `update` and `back` move its buffers in place, by one update of Eq.
    (2) or one back.

    theta (p,); alpha (); adjoint (p,), lambda = dL/dtheta; the batch: x (n, C, H, W), y (n,), the
    numbers u (n, 3) of its augmentation; what `back` leaves of it: pixels, the batch's part of
    dL/dX, and along (), <g, lambda>.
    """

    def __init__(
        self, network: Flat, n: int, image: torch.Size, dtype: torch.dtype, device: torch.device
    ):
        self.network = network
        new = lambda *shape: torch.zeros(shape, dtype=dtype, device=device)
        self.theta, self.adjoint, self.alpha, self.along = (
            new(network.size),
            new(network.size),
            new(),
            new(),
        )
        self.x, self.pixels, self.u = new(n, *image), new(n, *image), new(n, 3)
        self.y = torch.zeros(n, dtype=torch.int64, device=device)
        self.trusted = set()  # the operations whose results were compared with another engine's
        self.usable = True
        self._graphs = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @cached_property
    def _gradient(self) -> Callable:
        return _compiled(gradient)

    @cached_property
    def _curvature(self) -> Callable:
        return _compiled(curvature)

    def load(self, images: Tensor, labels: Tensor, batch: Tensor, u: Tensor) -> None:
        """Take the images (N, C, H, W) and labels (N,) at the indices `batch` (n,), and the numbers
        u (n, 3).
        """
        torch.index_select(images, 0, batch, out=self.x)
        torch.index_select(labels, 0, batch, out=self.y)
        self.u.copy_(u)

    def update(self, operation: str | None) -> None:
        """theta -= alpha * g, on the batch augmented by this operation, or as it is."""
        self._run(self._update, operation)

    def back(self, operation: str | None) -> None:
        """With theta as it was before the update: pixels, along, and adjoint -= alpha * H
        adjoint.
        """
        self._run(self._back, operation)

    def give_up(self) -> None:
        """Free what the graphs hold; the student is of no more use."""
        self.usable = False
        self._graphs.clear()

    def _update(self, operation: str | None) -> None:
        x = self._augmented(self.x, operation)
        self.theta -= self.alpha * self._gradient(self.network, self.theta, x, self.y)

    def _back(self, operation: str | None) -> None:
        x = self.x.detach().requires_grad_()
        augmented = self._augmented(x, operation)
        curved, pixels, along = self._curvature(
            self.network, self.theta, augmented.detach(), self.y, self.adjoint
        )
        (pixels,) = torch.autograd.grad(augmented, x, pixels)
        self.pixels.copy_(-self.alpha * pixels)
        self.along.copy_(along)
        self.adjoint -= self.alpha * curved

    def _augmented(self, x: Tensor, operation: str | None) -> Tensor:
        x = x if operation is None else augment(x, Draw(operation, self.u))
        # a crop lies otherwise in memory, for which the functions would be compiled again
        return plain(x)

    def _run(self, function: Callable, operation: str | None) -> None:
        if self._pool is None:
            return function(operation)
        key = function.__name__, operation
        if key not in self._graphs:
            self._graphs[key] = self._capture(function, operation)
        self._graphs[key].replay()

    def _capture(self, function: Callable, operation: str | None) -> torch.cuda.CUDAGraph:
        """All graphs share one pool of memory: what they leave is in the buffers, outside it, so
        any order is right.
        """
        buffers = [value for value in vars(self).values() if isinstance(value, Tensor)]
        before = [buffer.clone() for buffer in buffers]
        with torch.cuda.device(self.theta.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    function(operation)
            torch.cuda.current_stream().wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                function(operation)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return graph


@lru_cache(maxsize=1)  # a run needs one, and the graphs of another would keep their memory
def student(
    network: Flat, n: int, image: torch.Size, dtype: torch.dtype, device: torch.device
) -> Student:
    """The student for this network and batches of n images, made once."""
    return Student(network, n, image, dtype, device)


def _compiled(function: Callable) -> Callable:
    """`function`, compiled at its first call.

    torch.compile counts what it compiles per code object and stops at eight: each student gets a
    copy of its own.
    """
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, fullgraph=True, dynamic=False)
