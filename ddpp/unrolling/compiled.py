"""The engine `compiled`: one update of a student and the step back through it, as whole functions
of fixed shapes. They are compiled, and on a GPU replayed as CUDA graphs, so that the time goes into
arithmetic and not into starting it.

Autograd cannot differentiate twice through a compiled function. Here it need not: `slope` and
`curvature` contain all derivatives with respect to theta, written with torch.func, and are compiled
as they stand. The augmentation stays outside, because grid_sample has no second derivative; the
step back needs its first one only.
"""

import contextlib
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad
from torch.func import grad as func_grad
from torch.func import grad_and_value

from ddpp.data.augmentation import Draw, augment
from ddpp.foundation.errors import Error
from ddpp.networks import Flat, plain
from ddpp.unrolling.adjoint import StudentPath, adjoint_engine
from ddpp.unrolling.updates import Loss, Unrolled, Updates

# of _compare: rounding, by which a ReLU may cross its kink, cost 0.008; a walk without H costs 0.2
TOLERANCE = 0.05
# runs before a capture, in which libraries choose their algorithms and make their workspaces
WARM_UPS = 3


def slope(network: Flat, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """g (p,), the gradient of the cross-entropy on a batch that is augmented already, with respect
    to theta.
    """
    return func_grad(lambda theta: F.cross_entropy(network(theta, x), y))(theta)


def curvature(
    network: Flat, theta: Tensor, x: Tensor, y: Tensor, along: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """H @ along (p,), d<g, along>/dx (n, C, H, W) and <g, along> (), with H the Hessian of the same
    cross-entropy.

    Reverse mode twice: on a CPU, compiled, it was faster than forward over reverse.
    """
    toward = lambda theta, x: slope(network, theta, x, y) @ along
    (curved, pixels), value = grad_and_value(toward, argnums=(0, 1))(theta, x)
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
    def _slope(self) -> Callable:
        return _compile(slope)

    @cached_property
    def _curvature(self) -> Callable:
        return _compile(curvature)

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
        self.theta -= self.alpha * self._slope(self.network, self.theta, x, self.y)

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


def _compile(function: Callable) -> Callable:
    """`function`, compiled at its first call.

    torch.compile counts what it compiles per code object and stops at eight: each student gets a
    copy of its own.
    """
    own = FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    return torch.compile(own, fullgraph=True, dynamic=False)


def compiled_engine(
    network: Flat,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """As `adjoint`, in compiled functions; `adjoint` itself where they fail or differ."""
    problem = (start, images, labels, alpha, updates, loss)
    trained = student(
        network, len(updates.batches[0]), images.shape[1:], images.dtype, images.device
    )
    if trained.usable:
        try:
            _compare(trained, *problem[:-1])
            return _walk(trained, *problem)
        except Error:
            raise
        # whatever goes wrong in a compiler, a driver or a library: adjoint needs none of them
        except Exception as e:
            trained.give_up()
            reason = " ".join(str(e).splitlines()[:2])[:300] or type(e).__name__
            warnings.warn(
                f"the engine compiled cannot be used here ({reason}): from now on the engine "
                "adjoint takes its place, "
                "with the same results but slower; to be rid of this message, ask for the engine "
                "adjoint",
                stacklevel=3,
            )
    return adjoint_engine(network, *problem)


def _walk(
    student: Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """As `_adjoint`, in a Student; all draws move to the device at once, so that no update
    waits for the host.
    """
    images, batches = images.detach(), torch.stack([*updates.batches]).to(images.device)
    names = [None if how is None else how.operation for how in updates.draws]
    numbers = torch.stack(
        [torch.zeros(batches.shape[1], 3) if how is None else how.u for how in updates.draws]
    )
    moves = list(zip(batches, numbers.to(images), names, strict=True))
    student.alpha.copy_(alpha.detach())
    student.theta.copy_(start.detach())
    with contextlib.closing(StudentPath(start.device)) as path:
        for batch, u, name in moves:
            path.push(student.theta.clone())
            student.load(images, labels, batch, u)
            student.update(name)

        end = student.theta.clone().requires_grad_()
        value = loss(end)
        student.adjoint.copy_(grad(value, end)[0])
        grad_images, grad_alpha = torch.zeros_like(images), torch.zeros_like(student.alpha)
        for batch, u, name in reversed(moves):
            student.theta.copy_(path.pop(start))
            student.load(images, labels, batch, u)
            student.back(name)
            grad_images.index_add_(0, batch, student.pixels)
            grad_alpha -= student.along
    return Unrolled(end.detach(), value.detach(), grad_images, grad_alpha)


def _compare(
    student: Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
) -> None:
    """Make two updates with each operation that is new to this student, also with `adjoint`; raise
    where they differ.

    Two, for H to have a part in the result, and with a learning rate of 0.1, for that part to be
    large; and with a loss without a mask, as rounding may move a mask, or draw a random one anew.
    """
    loss = lambda theta: (theta - start).square().sum()
    for batch, how in zip(*updates, strict=True):
        name = None if how is None else how.operation
        if name in student.trusted:
            continue
        problem = (
            start,
            images,
            labels,
            torch.full_like(alpha, 0.1),
            Updates([batch] * 2, [how] * 2),
            loss,
        )
        mine, exact = _walk(student, *problem), adjoint_engine(student.network, *problem)
        pairs = {
            field: (getattr(mine, field), getattr(exact, field))
            for field in ("grad_images", "grad_alpha")
        }
        if not all(b.isfinite().all() and b.any() for _, b in pairs.values()):
            continue  # there is nothing to compare with
        for field, (a, b) in pairs.items():
            difference = float((a - b).norm() / b.norm())
            if not difference < TOLERANCE:  # also where it is no number
                raise RuntimeError(
                    f"with the operation {name}, its {field} is {difference:.2g} away from "
                    "adjoint's"
                )
        student.trusted.add(name)
