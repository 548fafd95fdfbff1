"""Checks of assignment 2: a network as a vector, teachers and their segments, the matching loss,
the gradient through a student's updates, a distillation step.

Each draws its cases from `seed`: small, smooth networks, for which the right answers are computed
here, apart from ddpp's functions and from the solution.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from types import FunctionType

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad

from ddpp import networks, pruning, unrolling
from ddpp import teachers as stage_a
from ddpp_course.checks import Checks, ask, ask_each, close, describe, tensor

LR = 0.3  # of the teachers that are checked

here = Checks("assignment2")


def vector(flatten: Callable, load: Callable, seed: int = 0) -> None:
    """flatten(network) and load(network, theta), for a network with buffers and for the ConvNet."""
    rng = torch.Generator().manual_seed(seed)
    for network in _modules(rng):
        parameters = list(network.parameters())
        _judge_flatten(flatten, network, parameters)
        theta = torch.randn(sum(p.numel() for p in parameters), generator=rng)
        _judge_load(load, network, parameters, theta)
    here.good("vector")


def _judge_flatten(function: Callable, network: nn.Module, parameters: Sequence[Tensor]) -> None:
    size = sum(p.numel() for p in parameters)
    value = tensor(ask(function, network, forbid=(networks,)), None, "flatten")
    if value.numel() != size and value.numel() == size + sum(b.numel() for b in network.buffers()):
        raise here.wrong("flatten_buffers")
    tensor(value, (size,), "flatten")
    run = lambda s: s.flatten(network)
    here.compare("flatten", value.cpu(), _cat(parameters), run, "flatten_order")
    if value.requires_grad:
        raise here.wrong("flatten_graph")
    if _changes(value, parameters):
        raise here.wrong("flatten_shared")


def _judge_load(
    function: Callable, network: nn.Module, parameters: Sequence[Tensor], theta: Tensor
) -> None:
    before = deepcopy(network)
    same = ask(function, network, theta, forbid=(networks,)) is network
    now = list(network.parameters())
    if [p.shape for p in now] != [p.shape for p in parameters]:
        raise here.wrong("load_shapes")
    by_name = sorted(network.named_parameters(), key=lambda named: named[0])
    if close(_cat([p for _, p in by_name]), theta):
        raise here.wrong("load_by_name")

    def run(solution) -> Tensor:
        filled = deepcopy(before)
        solution.load(filled, theta)
        return _cat([*filled.parameters()])

    here.compare("load", _cat(now), theta, run, "load_order")
    if not all(p.requires_grad for p in now):
        raise here.wrong("load_gradients")
    if _changes(theta, now):
        raise here.wrong("load_shared")
    if not same:
        raise here.wrong("load_returns")


def _changes(vector: Tensor, parameters: Sequence[Tensor]) -> bool:
    """Whether a vector changes when the parameters do. They are changed."""
    before = vector.clone()
    with torch.no_grad():
        for p in parameters:
            p.add_(1)
    return not torch.equal(vector, before)


def snapshots(function: Callable, seed: int = 0) -> None:
    """train_teacher's snapshots, against SGD on the images that it showed to the network, in its
    order.
    """
    n, epochs = 6 + 2 * (seed % 3), 3 + seed % 2
    for batch in (n, n // 2):
        rng, network = torch.Generator().manual_seed(seed), Network()
        images, labels, start = *_images(n, rng), network.initial(seed)
        given = start, images, labels, epochs, LR, batch, torch.Generator().manual_seed(seed)
        value = ask(function, network, *given, forbid=(stage_a,))
        _judge_snapshots(value, given, _orders(network, images))
    here.good("snapshots")


def _judge_snapshots(value, given: tuple, orders: list[Tensor]) -> None:
    """given: the arguments of train_teacher but for the network; orders: the images of each
    update.
    """
    start, images, labels, epochs, *_ = given
    two = isinstance(value, Tensor) and value.ndim == 2
    rows = len(value) if two else epochs + 1
    if rows == epochs:
        missing = "snapshots_last" if close(value[0].cpu(), start) else "snapshots_first"
        raise here.wrong(missing, epochs=epochs, right=epochs + 1)
    if rows == len(orders) + 1 != epochs + 1:
        raise here.wrong("snapshots_updates")
    value = tensor(value, (epochs + 1, len(start)), "train_teacher").cpu()
    if value.requires_grad:
        raise here.wrong("snapshots_graph")
    if len(orders) % epochs:
        raise here.wrong("snapshots_uneven", epochs=epochs, found=len(orders))
    updates = len(orders) // epochs
    path = _sgd(start, [(images[order], labels[order]) for order in orders], LR)
    shown = [torch.cat(orders[i : i + updates]) for i in range(0, len(orders), updates)]

    def run(solution) -> Tensor:
        """What a teacher with a mistake learns from the images in the student's order."""
        function = solution.train_teacher
        space = {**function.__globals__, "torch": _Ordered(shown)}
        return FunctionType(function.__code__, space)(Network(), *given)

    here.compare("snapshots", value, torch.stack(path[::updates]), run, "snapshots_otherwise")


class _Ordered:
    """torch, with permutations that are given."""

    def __init__(self, orders: list[Tensor]):
        self._orders = iter(orders)

    def randperm(self, *_, **__) -> Tensor:
        return next(self._orders)

    def __getattr__(self, name: str):
        return getattr(torch, name)


def batches(function: Callable, seed: int = 0) -> None:
    """Which images train_teacher shows to the network, and in what order."""
    rng, batch, epochs = torch.Generator().manual_seed(seed), 5, 3
    images, labels = _images(23 + seed % 2, rng)

    def see(number: int, elsewhere: int) -> list[Tensor]:
        network, generator = Network(), torch.Generator().manual_seed(number)
        start = network.initial(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(elsewhere)
            given = start, images, labels, epochs, 0.1, batch, generator
            ask(function, network, *given, forbid=(stage_a,))
        return _orders(network, images)

    seen = see(seed, 0)
    _judge_order(seen, len(images), batch, epochs)
    if not torch.equal(torch.cat(seen), torch.cat(see(seed, 1))):
        raise here.wrong("batches_generator")
    if torch.equal(torch.cat(seen), torch.cat(see(seed + 1, 2))):
        raise here.wrong("batches_no_generator")
    here.good("batches")


def _judge_order(seen: list[Tensor], n: int, batch: int, epochs: int) -> None:
    sizes, stream = [len(part) for part in seen], torch.cat(seen)
    if max(sizes) > batch:
        raise here.wrong("batches_large", batch=batch, found=max(sizes))
    full = n // batch * batch
    if len(stream) % n and len(stream) % full == 0:
        raise here.wrong("batches_last", n=n, full=full)
    if len(stream) % n:
        raise here.wrong("batches_all", epochs=epochs, n=n, right=epochs * n, found=len(stream))
    passes, updates = stream.view(-1, n), -(-n // batch)
    if any(len(epoch.unique()) < n for epoch in passes):
        raise here.wrong("batches_twice")
    if len(sizes) != len(passes) * updates:
        raise here.wrong("batches_updates", n=n, batch=batch, updates=updates)
    if any(torch.equal(epoch, torch.arange(n)) for epoch in passes):
        raise here.wrong("batches_stored")
    if len(passes.unique(dim=0)) < len(passes):
        raise here.wrong("batches_same")


def segment(function: Callable, seed: int = 0) -> None:
    """draw_segment: where 400 segments begin and end, and that the generator decides."""
    rng, draws = torch.Generator().manual_seed(seed), 400
    k, bound, count = 2 + seed, 3 + seed % 2, 3
    # longer than needed: a start too late is named
    teachers = torch.randn(count, bound + k + 2, 5, generator=rng)

    def drawn(
        n: int, generator: torch.Generator, bound=bound, teachers=teachers
    ) -> list[tuple[int, int]]:
        answers = ask_each(function, [(teachers, k, bound, generator)] * n)
        return [_place_of(answer, teachers, k) for answer in answers]

    _judge_draws(drawn(draws, rng), bound, count)
    again = []
    with torch.random.fork_rng(devices=[]):
        for other in (seed + 1, seed + 2):
            torch.default_generator.manual_seed(other)
            again.append(drawn(20, torch.Generator().manual_seed(seed)))
    if again[0] != again[1]:
        raise here.wrong("segment_generator")
    if {start for _, start in drawn(5, rng, 1, teachers[:, : k + 1])} != {0}:
        raise here.wrong("segment_bound")
    here.good("segment")


def _place_of(answer, teachers: Tensor, k: int) -> tuple[int, int]:
    """The teacher and the first epoch of a segment of k epochs."""
    if isinstance(answer, Tensor):
        answer = tuple(answer) if answer.ndim else ()
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise here.wrong("segment_not_two")
    places = []
    for value in answer:
        value = tensor(value, (5,), "draw_segment").detach().cpu()
        found = (teachers == value).all(-1).nonzero().tolist()
        if not found:
            raise here.wrong("segment_no_snapshot")
        places.append(found[0])
    (a, first), (b, last) = places
    if a != b:
        raise here.wrong("segment_two_teachers")
    if last - first == -k:
        raise here.wrong("segment_swapped")
    if last - first != k:
        raise here.wrong("segment_length", found=last - first, k=k)
    return a, first


def _judge_draws(drawn: list[tuple[int, int]], bound: int, count: int) -> None:
    starts, who = torch.tensor(drawn)[:, 1], torch.tensor(drawn)[:, 0]
    if len(set(drawn)) == 1:
        raise here.wrong("segment_same", draws=len(drawn))
    if starts.max() >= bound:
        raise here.wrong("segment_late", bound=bound, found=int(starts.max()), last=bound - 1)
    for epoch in range(bound):
        if epoch not in starts:
            why = here.say("segment_like_others" if epoch < bound - 1 else "segment_upper_end")
            raise here.wrong("segment_never", bound=bound, epoch=epoch, why=why)
    for teacher in range(count):
        if teacher not in who:
            raise here.wrong("segment_teacher", count=count, teacher=teacher)
    if len(set(drawn)) < count * bound:
        raise here.wrong("segment_together")
    epochs, teachers = here.say("segment_epochs"), here.say("segment_teachers")
    for name, values, options in ((epochs, starts, bound), (teachers, who, count)):
        share = values.bincount(minlength=options) / len(drawn)
        if (share * options - 1).abs().max() > 0.45:
            found = ", ".join(f"{100 * s:.0f}" for s in share)
            raise here.wrong("segment_likely", name=name, found=found)


def loss(function: Callable, seed: int = 0) -> None:
    """matching_loss: its value, at three scales and in two special places, and its gradient for the
    student.
    """
    rng, p = torch.Generator().manual_seed(seed), 40 + seed
    start, way, astray = torch.randn(3, p, generator=rng)
    target, student = start + 0.3 * way, start + 0.2 * way + 0.2 * astray
    for scale in (1, 1e-4, 1e-9, 30):
        _judge_loss(function, scale * student, scale * target, scale * start, scale)
    for s, right, key in ((target, 0.0, "loss_arrived"), (start, 1.0, "loss_not_moved")):
        value = _ask_loss(function, s.clone().requires_grad_(), target, start)
        if (value.detach() - right).abs() > 1e-5:
            raise here.wrong(key, found=float(value.detach()))
    here.good("loss")


def _ask_loss(function: Callable, student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    value = ask(function, student, target, start, forbid=(pruning,))
    if isinstance(value, (int, float)):
        raise here.wrong("loss_number")
    return tensor(value, (), "matching_loss").cpu()


def _judge_loss(
    function: Callable, student: Tensor, target: Tensor, start: Tensor, scale: float
) -> None:
    student = student.requires_grad_()
    value = _ask_loss(function, student, target, start)
    way = (start - target).square().sum()
    right = (student - target).detach().square().sum() / way
    run = lambda s: s.matching_loss(student, target, start)
    otherwise = "loss_otherwise" if scale == 1 else "loss_scale"
    here.compare("loss", value, right, run, otherwise, 1e-3, scale=scale)
    if not value.requires_grad:
        raise here.wrong("loss_no_gradient")
    gradient = _gradients("matching_loss", value, (student,))[0]
    right = 2 * (student - target).detach() / way
    if gradient is None or not close(gradient, right, 1e-3):
        raise here.wrong("loss_gradient")


def student(function: Callable, seed: int = 0) -> None:
    """student_updates: where the student is after J updates."""
    rng, network = torch.Generator().manual_seed(seed), Network()
    images, labels = _images(4 + seed, rng)
    start = network.initial(seed)
    for steps, rate in ((4, 0.5), (1, 0.2), (3 + seed, 0.8)):
        x, alpha = images.clone().requires_grad_(), torch.tensor(rate, requires_grad=True)
        given = network, start, x, labels, alpha, steps
        value = tensor(
            ask(function, *given, forbid=(unrolling,)), (network.size,), "student_updates"
        )
        right = _sgd(start, [(images, labels)] * steps, rate)[-1]
        run = lambda s, given=given: s.student_updates(*given)
        words = {"steps": steps, "less": steps - 1, "more": steps + 1}
        here.compare("student", value.detach().cpu(), right, run, "student_otherwise", **words)
    here.good("student")


def gradients(function: Callable, seed: int = 0) -> None:
    """The gradient through the student's updates: what autograd makes of them, against finite
    differences of the same function.

    It can be right although the student ends in a wrong place.
    """
    rng, network, steps = torch.Generator().manual_seed(seed), Network(), 3 + seed % 3
    images, labels = _images(3, rng)
    images, alpha = images.double(), torch.tensor(0.8).double()
    start = network.initial(seed).double()
    target = start + 0.5 * torch.randn(len(start), generator=rng)

    asked = lambda *given: ask(function, *given, forbid=(unrolling,))

    def loss_of(function: Callable, x: Tensor, rate: Tensor) -> Tensor:
        value = function(network, start.clone(), x, labels, rate, steps)
        value = tensor(value, (network.size,), "student_updates").cpu()
        if not value.is_floating_point():
            raise here.wrong("gradients_real", found=value.dtype)
        return _loss(value, target, start)

    def gradients_of(function: Callable) -> tuple[Tensor | None, ...]:
        x, rate = images.clone().requires_grad_(), alpha.clone().requires_grad_()
        value = loss_of(function, x, rate)
        if not value.requires_grad:
            raise here.wrong("gradients_none")
        return _gradients("student_updates", value, (x, rate))

    found = gradients_of(asked)
    for gradient, key in zip(found, ("gradients_images", "gradients_alpha"), strict=True):
        if gradient is None:
            raise here.wrong(key)
    # 8 directions stand for all pixels
    small, directions = 1e-3, torch.randn(8, *images.shape, generator=rng).double()
    change = lambda d, e: (
        loss_of(asked, images + d, alpha + e) - loss_of(asked, images - d, alpha - e)
    )
    slopes = torch.stack([change(small * d, 0.0) for d in directions]), change(0.0, small)
    parts = lambda to_x, to_rate: ((directions * to_x).flatten(1).sum(1), to_rate)
    for i, key in enumerate(("gradients_of_images", "gradients_of_alpha")):
        run = lambda s, i=i: parts(*gradients_of(s.student_updates))[i]
        right, name = slopes[i] / (2 * small), here.say(key)
        value = parts(*found)[i]
        here.compare("gradients", value, right, run, "gradients_otherwise", 1e-2, name=name)
    here.good("gradients")


def step(function: Callable, seed: int = 0) -> None:
    """distil_step, twice in a row, from its own images and alpha the second time."""
    rng, network = torch.Generator().manual_seed(seed), Network()
    images, labels = _images(3, rng)
    start = network.initial(seed)
    target = start + 0.1 * torch.randn(len(start), generator=rng)
    alpha = torch.tensor(0.3)

    def train(start: Tensor, images: Tensor, alpha: Tensor) -> Tensor:
        return _updates(start, images, labels, alpha, 3)

    for _ in range(2):
        given = train, _loss, (start, target), images, alpha, 0.7 + seed, 0.02
        images, alpha = _judge_step(function, given)
    here.good("step")


def _judge_step(function: Callable, given: tuple) -> tuple[Tensor, Tensor]:
    """The student's images and alpha after a step that is right."""
    train, _, (start, target), images, alpha, image_lr, alpha_lr = given
    answer = ask(function, *given, forbid=(unrolling,))
    if not isinstance(answer, (tuple, list)) or len(answer) != 3:
        raise here.wrong("step_not_three", found=describe(answer))
    new = tensor(answer[0], tuple(images.shape), "distil_step")
    rate = tensor(answer[1], (), "distil_step")
    said = answer[2]
    number = isinstance(said, (int, float)) or (isinstance(said, Tensor) and said.numel() == 1)
    if not number:
        raise here.wrong("step_no_loss", found=describe(said))
    x, a = images.detach().clone().requires_grad_(), alpha.detach().clone().requires_grad_()
    value = _loss(train(start, x, a), target, start)
    to_images, to_alpha = grad(value, (x, a))
    run = lambda i: lambda s: s.distil_step(*given)[i]
    right = images - image_lr * to_images
    here.compare("step-images", new.detach().cpu(), right, run(0), "step_images")
    right = alpha - alpha_lr * to_alpha
    here.compare("step-alpha", rate.detach().cpu(), right, run(1), "step_alpha", 1e-5)
    loss = torch.as_tensor(said).detach().cpu().reshape(())
    here.compare("step-loss", loss, value, run(2), "step_loss")
    keys = "step_images_graph", "step_alpha_graph", "step_loss_graph"
    for key, result in zip(keys, (new, rate, said), strict=True):
        if isinstance(result, Tensor) and result.grad_fn is not None:
            raise here.wrong(key)
    return new.detach(), rate.detach()


class Network(networks.Flat):
    """A small, smooth network as a function of one vector, that notes which images it is shown for
    a gradient.
    """

    def __init__(self):
        super().__init__(
            lambda: nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.Tanh(), nn.Linear(6, 3))
        )
        self.seen: list[Tensor] = []

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(images.detach().cpu())
        return super().__call__(theta, images)


def _images(n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """n images and labels for a Network. No image has the label of the one before it."""
    return torch.randn(n, 3, 2, 2, generator=rng), torch.arange(n) % 3


def _modules(rng: torch.Generator) -> list[nn.Module]:
    """A network with buffers and more than ten layers, and a ConvNet."""
    with torch.random.fork_rng(devices=[]):
        deep = [
            layer for _ in range(4) for layer in (nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Tanh())
        ]
        made = [
            nn.Sequential(nn.Linear(4, 3), *deep, nn.Linear(3, 2)),
            networks.ConvNet(2, 3, 4, 3, 8),
        ]
    with torch.no_grad():
        for p in [p for network in made for p in network.parameters()]:
            p.copy_(torch.randn(p.shape, generator=rng))
    return made


def _cat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters]).cpu()


def _orders(network: Network, images: Tensor) -> list[Tensor]:
    """For each batch that the network was shown: which of `images` it was made of."""
    orders = []
    for batch in network.seen:
        if batch.shape[1:] != images.shape[1:]:
            raise here.wrong("shown_shape", found=tuple(batch.shape))
        same = (batch[:, None] == images).flatten(2).all(2)
        if not same.any(1).all():
            raise here.wrong("shown_others")
        orders.append(same.long().argmax(1))
    if not orders:
        raise here.wrong("shown_none")
    return orders


def _sgd(start: Tensor, batches, lr: float) -> list[Tensor]:
    """start, and where SGD is after each batch (images, labels)."""
    network, path = Network(), [start]
    for images, labels in batches:
        theta = path[-1].clone().requires_grad_()
        (g,) = grad(F.cross_entropy(network(theta, images), labels), theta)
        path.append(theta.detach() - lr * g)
    return path


def _updates(start: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, steps: int) -> Tensor:
    """Eq. (2), `steps` times, on all images."""
    network, theta = Network(), start.detach().clone().requires_grad_()
    for _ in range(steps):
        (g,) = grad(F.cross_entropy(network(theta, images), labels), theta, create_graph=True)
        theta = theta - alpha * g
    return theta


def _loss(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Eq. (8), nothing pruned."""
    return (student - target).square().sum() / (start - target).square().sum()


def _gradients(name: str, value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of what a student's function made, or a Mistake where autograd cannot go back
    through it.
    """
    try:
        return grad(value, inputs, allow_unused=True)
    except RuntimeError as e:
        said = str(e).splitlines()[0][:150]
        raise here.wrong("autograd", name=name, error=said) from e
