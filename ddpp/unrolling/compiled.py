"""The engine `compiled`: an update of the student, and its backward pass, as compiled functions.

The functions have fixed shapes. On a GPU they are replayed as CUDA graphs, so that the time goes
into arithmetic and not into launching it.

Autograd cannot differentiate twice through a compiled function, and here this is not necessary:
`slope` and `curvature` contain all derivatives with respect to theta, written with torch.func, and
are compiled as they stand. The augmentation stays outside, because grid_sample has no second
derivative. The backward pass needs the first one only.
"""

import contextlib
import warnings
from collections.abc import Callable
from functools import cached_property, lru_cache
from types import FunctionType
from weakref import WeakSet

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import grad
from torch.func import grad as func_grad
from torch.func import grad_and_value

from ddpp.data.augmentation import OPERATIONS, Draw, augment
from ddpp.foundation.errors import Error
from ddpp.foundation.seeds import ALONE
from ddpp.networks import Flat, plain
from ddpp.unrolling.adjoint import StudentPath, adjoint_engine
from ddpp.unrolling.learned import Carried
from ddpp.unrolling.updates import Loss, Unrolled, Updates

# Of _is_trusted. Rounding, by which a ReLU may cross its kink, cost 0.008; leaving out H costs 0.2.
TOLERANCE = 0.05
STUDENTS: WeakSet["Student"] = WeakSet()  # those that there are
# Runs before a capture, in which libraries choose their algorithms and make their workspaces.
WARM_UPS = 3


def slope(network: Flat, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Compute g (p,), the gradient of the cross-entropy on an augmented batch."""
    return func_grad(lambda theta: F.cross_entropy(network(theta, x), y))(theta)


def curvature(
    network: Flat, theta: Tensor, x: Tensor, y: Tensor, along: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute H @ along (p,), d<g, along>/dx (n, C, H, W) and <g, along> ().

    H is the Hessian of the same cross-entropy. Both derivatives are in reverse mode: on a CPU,
    compiled, this was faster than forward over reverse.
    """

    def toward(theta: Tensor, x: Tensor) -> Tensor:
        return slope(network, theta, x, y) @ along

    (curved, pixels), value = grad_and_value(toward, argnums=(0, 1))(theta, x)
    return curved, pixels, value


class Student:
    """A student in training; `update` and `back` change its buffers in place.

    - theta (p,), alpha (), and adjoint (p,), which is lambda = dL/dtheta.
    - x (n, C, H, W), y (n,), u (n, 3): the batch, and the numbers of its augmentation.
    - pixels, like x, and along (): results of `back`, the batch's part of dL/dX and <g, lambda>.
    """

    def __init__(
        self, network: Flat, n: int, image: torch.Size, dtype: torch.dtype, device: torch.device
    ):
        self.network = network

        def new(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        self.theta, self.adjoint = new(network.size), new(network.size)
        self.alpha, self.along = new(), new()
        self.x, self.pixels, self.u = new(n, *image), new(n, *image), new(n, 3)
        self.y = torch.zeros(n, dtype=torch.int64, device=device)
        self.trusted = set()  # the operations whose results were compared with adjoint's
        # on which all graphs are captured, as they share a pool
        self._side = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.usable = True
        self.full = False  # whether there was no memory for it in the step before
        STUDENTS.add(self)
        self._graphs = {}
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None

    @cached_property
    def _slope(self) -> Callable:
        return _compile(slope)

    @cached_property
    def _curvature(self) -> Callable:
        return _compile(curvature)

    def load(self, images: Tensor, labels: Tensor, batch: Tensor, u: Tensor) -> None:
        """Copy a batch into the buffers: images and labels at the indices `batch` (n,), and u."""
        torch.index_select(images, 0, batch, out=self.x)
        torch.index_select(labels, 0, batch, out=self.y)
        self.u.copy_(u)

    def update(self, operation: str | None) -> None:
        """Subtract alpha * g from theta. The operation augments the batch, None leaves it."""
        self._run(self._update, operation)

    def back(self, operation: str | None) -> None:
        """Subtract alpha * H adjoint from adjoint, with theta as before the update."""
        self._run(self._back, operation)

    def free(self) -> None:
        """Free what the graphs hold. They are captured anew when they are needed."""
        self._graphs.clear()
        if self._pool is not None:  # one without graphs cannot be used again
            self._pool = torch.cuda.graph_pool_handle()

    def give_up(self) -> None:
        """Free what the graphs hold. The student cannot be used after that."""
        self.usable = False
        self.free()

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
        return plain(x)  # a crop has other strides, for which the functions would compile again

    def _run(self, function: Callable, operation: str | None) -> None:
        # in a graph nothing may wait for the CPU, which an operation of one's own may do
        if self._pool is None or (operation and OPERATIONS.is_brought(operation)):
            return function(operation)
        key = function.__name__, operation
        if key not in self._graphs:
            self._graphs[key] = self._capture(function, operation)
        self._graphs[key].replay()

    def _capture(self, function: Callable, operation: str | None) -> torch.cuda.CUDAGraph:
        """Capture a CUDA graph, after warm-up runs whose effect on the buffers is undone.

        All graphs share one pool of memory. Their results are in the buffers, outside the pool, so
        they can be replayed in any order.
        """
        buffers = [value for value in vars(self).values() if isinstance(value, Tensor)]
        before = [buffer.clone() for buffer in buffers]
        with torch.cuda.device(self.theta.device):
            side = self._side
            assert side is not None
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    function(operation)
            torch.cuda.current_stream().wait_stream(side)
            graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
            try:
                with torch.cuda.graph(graph, pool=self._pool, stream=side):
                    function(operation)
            finally:  # a capture that fails leaves its stream behind
                torch.cuda.set_stream(current)
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
        return graph


@lru_cache(maxsize=1)  # a run needs one; a second would keep the memory of its graphs
def student(
    network: Flat, n: int, image: torch.Size, dtype: torch.dtype, device: torch.device
) -> Student:
    """Make the student for this network and batches of n images, once."""
    return Student(network, n, image, dtype, device)


def _compile(function: Callable) -> Callable:
    """Return a copy of a function that is compiled at its first call.

    torch.compile counts what it compiles per code object and stops at eight, so each student gets
    a copy of its own.
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
    """Do as `adjoint` does, in compiled functions. Where they fail or differ, call `adjoint`.

    It also takes their place where labels are learned or distributions.
    """
    problem = (start, images, labels, alpha, updates, loss)
    if isinstance(labels, Carried) or labels.is_floating_point():
        return adjoint_engine(network, *problem)
    n = len(updates.batches[0])
    with ALONE:  # threads share one student, so their steps take turns
        trained = student(network, n, images.shape[1:], images.dtype, images.device)
        if trained.usable:
            try:
                if _is_trusted(trained, *problem[:-1]):
                    out = walk(trained, *problem)
                    trained.full = False
                    return out
            except Error:
                raise
            except Exception as e:  # of a compiler, driver or library that adjoint does not need
                if trained.full or not _is_of_memory(e):
                    _give_up(trained, e)
                else:
                    trained.free()
                    trained.full = True
                    warnings.warn(
                        "the GPU's memory was full, so the engine adjoint made this step; the next "
                        "one tries the engine compiled again",
                        stacklevel=3,
                    )
    return adjoint_engine(network, *problem)


def free_memory() -> None:
    """Free what the engine keeps on a GPU for the next step. What is compiled stays."""
    with ALONE:
        for one in STUDENTS:
            one.free()


def _is_of_memory(e: BaseException) -> bool:
    """Tell whether the memory was full: a capture that this ends raises another error of its own,
    and so do the driver and its libraries.
    """
    known = any(isinstance(one, torch.OutOfMemoryError) for one in (e, e.__context__))
    return known or "out of memory" in str(e).lower()


def _give_up(student: Student, e: BaseException) -> None:
    """Use `adjoint` from now on, and say why."""
    student.give_up()
    if "during capture" in str(e) and e.__context__ is not None:
        e = e.__context__  # what had happened in the capture
    reason = " ".join(str(e).splitlines()[:2])[:300] or type(e).__name__
    warnings.warn(
        f"the engine compiled cannot be used here ({reason}): from now on the engine adjoint takes "
        "its place, with the same results but slower; to avoid this message, ask for the engine "
        "adjoint",
        stacklevel=4,
    )


def walk(
    student: Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
    loss: Loss,
) -> Unrolled:
    """Do as `adjoint_engine` does, in a Student.

    All draws move to the device in advance, so that no update waits for the host.
    """
    images, none = images.detach(), images.new_zeros(len(updates.batches[0]), 3)
    moves = [
        (batch, none, None) if how is None else (batch, how.u, how.operation)
        for batch, how in zip(*updates.to(images), strict=True)
    ]
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


def _is_trusted(
    student: Student,
    start: Tensor,
    images: Tensor,
    labels: Tensor,
    alpha: Tensor,
    updates: Updates,
) -> bool:
    """Make two updates with each operation that is new to this student, also with `adjoint`, and
    raise RuntimeError where the gradients differ. Returns whether all could be compared.

    There are two updates, so that H has a part in the result, and a learning rate of 0.1, so that
    this part is large. The loss has no mask: rounding may change a mask, or draw a random one anew.
    """

    def loss(theta: Tensor) -> Tensor:
        return (theta - start).square().sum()

    for batch, how in zip(*updates, strict=True):
        name = None if how is None else how.operation
        if name in student.trusted:
            continue
        rate, twice = torch.full_like(alpha, 0.1), Updates([batch] * 2, [how] * 2)
        problem = (start, images, labels, rate, twice, loss)
        student.free()  # a GPU may have room for one engine only
        exact = adjoint_engine(student.network, *problem)
        with warnings.catch_warnings():  # the compiler advises it; here float32 means float32
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores")
            mine = walk(student, *problem)
        pairs = {
            "grad_images": (mine.grad_images, exact.grad_images),
            "grad_alpha": (mine.grad_alpha, exact.grad_alpha),
        }
        if not all(b.isfinite().all() and b.any() for _, b in pairs.values()):
            return False  # there is nothing to compare with
        for field, (a, b) in pairs.items():
            difference = float((a - b).norm() / b.norm())
            if not difference < TOLERANCE:  # also where the difference is NaN
                raise RuntimeError(
                    f"with the operation {name}, its {field} differs from adjoint's by "
                    f"{difference:.2g}"
                )
        student.trusted.add(name)
    return True
