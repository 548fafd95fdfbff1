"""Checks of assignment 2: a network as a vector, teachers and their segments, the matching loss,
the gradient through a
student's updates, a distillation step.

Each draws its cases from `seed`: small, smooth networks, for which the right answers are computed
here.
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import grad

from ddpp import networks, pruning, unrolling
from ddpp import teachers as stage_a
from ddpp_course.checks import Mistake, ask, close, compare, describe, good, tensor

LR = 0.3  # of the teachers that are checked


def vector(flatten: Callable, load: Callable, seed: int = 0) -> None:
    """flatten(network) and load(network, theta), for a network with buffers and for the ConvNet."""
    rng = torch.Generator().manual_seed(seed)
    for network in _modules(rng):
        parameters = list(network.parameters())
        _judge_flatten(flatten, network, parameters)
        theta = torch.randn(sum(p.numel() for p in parameters), generator=rng)
        _judge_load(load, network, parameters, theta)
    good(
        "a network becomes a vector and a vector a network, in the same order, and neither hangs "
        "on the other"
    )


def _judge_flatten(function: Callable, network: nn.Module, parameters: Sequence[Tensor]) -> None:
    size = sum(p.numel() for p in parameters)
    value = tensor(ask(function, network, forbid=(networks,)), None, "flatten")
    if value.numel() != size and value.numel() == size + sum(b.numel() for b in network.buffers()):
        raise Mistake(
            "your vector also has the buffers (running averages of a normalization, say): they "
            "are not trained; take "
            "`network.parameters()` and not the `state_dict`"
        )
    tensor(value, (size,), "flatten")
    wrong = {
        "the layers stand in the order of their names as text, where 10 comes before 2: keep the "
        "order of "
        "`network.parameters()`": _cat(_by_name(network)),
        "the entries of a matrix run down its columns: take each parameter as `flatten()` gives "
        "it": _cat([p.mT if p.ndim > 1 else p for p in parameters]),
    }
    compare(
        value.cpu(),
        _cat(parameters),
        wrong,
        "`flatten` should put the parameters one after the other, in their order",
    )
    if value.requires_grad:
        raise Mistake(
            "your vector still hangs on a graph: a snapshot is numbers only, so detach it"
        )
    before = value.clone()
    with torch.no_grad():
        for p in parameters:
            p.add_(1)
    if not torch.equal(value, before):
        raise Mistake("when the network trains on, your vector changes with it: return a copy")


def _judge_load(
    function: Callable, network: nn.Module, parameters: Sequence[Tensor], theta: Tensor
) -> None:
    old, sizes = _cat(parameters), [p.numel() for p in parameters]
    ask(function, network, theta, forbid=(networks,))
    now = list(network.parameters())
    if [p.shape for p in now] != [p.shape for p in parameters]:
        raise Mistake("after `load` the network's parameters have other shapes than before")
    if close(_cat(_by_name(network)), theta):
        raise Mistake(
            "the layers are filled in the order of their names as text, where 10 comes before 2: "
            "keep that of "
            "`network.parameters()`"
        )
    wrong = {
        "`load` leaves the network as it was: fill the network "
        "that it is given, and not a copy": old,
        "each parameter is filled from the beginning of theta: "
        "go on where the last one ended": torch.cat([theta[:size] for size in sizes]),
    }
    compare(
        _cat(now),
        theta,
        wrong,
        "after `load` the network's parameters should be the entries of theta, in order",
    )
    if not all(p.requires_grad for p in now):
        raise Mistake(
            "after `load` the parameters no longer ask for gradients, so the network cannot be "
            "trained"
        )
    before = theta.clone()
    with torch.no_grad():
        for p in now:
            p.add_(1)
    if not torch.equal(theta, before):
        raise Mistake(
            "after `load` the network lives in theta itself: as it trains, it overwrites the "
            "snapshot that it was "
            "loaded from. Copy the numbers (`copy_`)"
        )


def snapshots(function: Callable, seed: int = 0) -> None:
    """train_teacher's snapshots, against SGD on the images that it showed to the network, in its
    order.
    """
    n, epochs = 6 + 2 * (seed % 3), 3 + seed % 2
    for batch in (n, n // 2):
        rng, network = torch.Generator().manual_seed(seed), Network()
        images, labels, start = *_images(n, rng), network.initial(seed)
        generator = torch.Generator().manual_seed(seed)
        value = ask(
            function,
            network,
            start,
            images,
            labels,
            epochs,
            LR,
            batch,
            generator,
            forbid=(stage_a,),
        )
        _judge_snapshots(value, start, images, labels, _orders(network, images), epochs)
    good(
        "your snapshots are those of plain SGD, from the initialization to the last epoch, each "
        "a copy"
    )


def _judge_snapshots(
    value, start: Tensor, images: Tensor, labels: Tensor, orders: list[Tensor], epochs: int
) -> None:
    size, rows = (
        len(start),
        len(value) if isinstance(value, Tensor) and value.ndim == 2 else epochs + 1,
    )
    if rows == epochs:
        missing = "last epoch" if close(value[0].cpu(), start) else "initialization"
        raise Mistake(
            f"the {missing} is missing: {epochs} epochs give {epochs + 1} snapshots, from "
            "theta_0, the initialization, "
            f"to theta_{epochs}"
        )
    if rows == len(orders) + 1 != epochs + 1:
        raise Mistake("there is a snapshot after each update: keep one after each epoch")
    value = tensor(value, (epochs + 1, size), "train_teacher").cpu()
    if value.requires_grad:
        raise Mistake(
            "the snapshots still hang on a graph, which keeps the whole training in memory: "
            "detach them"
        )
    if len(orders) % epochs:
        raise Mistake(
            f"{epochs} epochs make {len(orders)} updates: every epoch should have as many as the "
            "others"
        )

    def path(labels: list[Tensor], **options) -> Tensor:
        steps = [(images[order], y) for order, y in zip(orders, labels, strict=True)]
        return torch.stack(_sgd(start, steps, LR, **options)[:: len(orders) // epochs])

    shown = [labels[order] for order in orders]
    right = path(shown)
    again = (
        "the same snapshot stands in several rows, which are all the one vector that goes on "
        "changing: keep a copy"
    )
    wrong = {
        f"{again} (`clone`) of each": right[-1:].expand_as(right),
        f"{again} (`clone`) after each epoch": torch.cat(
            [right[:1], right[-1:].expand_as(right[1:])]
        ),
        "the teacher does not move at all": right[:1].expand_as(right),
        "row 1 is the initialization once more: a snapshot is kept after its epoch": torch.cat(
            [right[:1], right[:-1]]
        ),
        "every epoch begins at `start` again: go on from where the last one ended": torch.cat(
            [right[:1], right[1:2].expand_as(right[1:])]
        ),
        "the gradient is added instead of subtracted, so the loss grows": path(shown, sign=1),
        "the loss is the sum over the images of a batch: take the mean": path(shown, how="sum"),
        "gradients add up from update to update: set them to "
        "zero, or use `torch.autograd.grad`": path(shown, momentum=1.0),
        "there is momentum in your updates: a teacher is trained by plain SGD": path(
            shown, momentum=0.9
        ),
        "images are shuffled and labels are not: take both with the same index": path(
            [
                labels[: len(order)] if len(order) <= len(labels) else y
                for order, y in zip(orders, shown, strict=True)
            ]
        ),
    }
    otherwise = (
        "the snapshots are not those of plain SGD: theta - lr * gradient of the mean "
        "cross-entropy, batch after batch"
    )
    compare(value, right, wrong, otherwise)


def batches(function: Callable, seed: int = 0) -> None:
    """Which images train_teacher shows to the network, and in what order."""
    rng, batch, epochs = torch.Generator().manual_seed(seed), 5, 3
    n = 23 + seed % 2
    images, labels = _images(n, rng)

    def see(number: int, elsewhere: int) -> list[Tensor]:
        network, generator = Network(), torch.Generator().manual_seed(number)
        start = network.initial(seed)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(elsewhere)
            ask(
                function,
                network,
                start,
                images,
                labels,
                epochs,
                0.1,
                batch,
                generator,
                forbid=(stage_a,),
            )
        return _orders(network, images)

    seen = see(seed, 0)
    sizes, stream = [len(part) for part in seen], torch.cat(seen)
    if max(sizes) > batch:
        raise Mistake(f"with `batch` {batch} the network gets {max(sizes)} images at once")
    full = n // batch * batch
    if len(stream) % n and len(stream) % full == 0:
        raise Mistake(
            f"the last batch of an epoch, which is smaller, is left out: of {n} images an epoch "
            f"sees {full} only"
        )
    if len(stream) % n:
        raise Mistake(
            f"in {epochs} epochs of {n} images the network should see {epochs * n}, but saw "
            f"{len(stream)}"
        )
    passes, updates = stream.view(-1, n), -(-n // batch)
    if any(len(epoch.unique()) < n for epoch in passes):
        raise Mistake(
            "in one epoch some images come twice and others not at all: draw one permutation of "
            "all images for each "
            "epoch, and cut it into batches"
        )
    if len(sizes) != len(passes) * updates:
        raise Mistake(
            f"an epoch of {n} images in batches of {batch} has {updates} updates: cut it into as "
            "many"
        )
    if any(torch.equal(epoch, torch.arange(n)) for epoch in passes):
        raise Mistake(
            "the images come in the order in which they are stored: shuffle them anew for each "
            "epoch"
        )
    if len(passes.unique(dim=0)) < len(passes):
        raise Mistake(
            "every epoch has the same order: draw a new permutation for each, and go on with the "
            "generator"
        )
    if not torch.equal(stream, torch.cat(see(seed, 1))):
        raise Mistake(
            "equal generators give different orders: draw from the generator that is passed in"
        )
    if torch.equal(stream, torch.cat(see(seed + 1, 2))):
        raise Mistake(
            "another generator gives the same order: draw from the generator that is passed in"
        )
    good("in each epoch every image is seen once, in a new order that the generator decides")


def segment(function: Callable, seed: int = 0) -> None:
    """draw_segment: where 400 segments begin and end, and that the generator decides."""
    rng, draws = torch.Generator().manual_seed(seed), 400
    k, bound, count = 2 + seed, 3 + seed % 2, 3
    # longer than needed: a start too late is named
    teachers = torch.randn(count, bound + k + 2, 5, generator=rng)

    def call(
        generator: torch.Generator, bound: int = bound, teachers: Tensor = teachers
    ) -> tuple[int, int]:
        answer = ask(function, teachers, k, bound, generator)
        if isinstance(answer, Tensor):
            answer = tuple(answer) if answer.ndim else ()
        if not isinstance(answer, (tuple, list)) or len(answer) != 2:
            raise Mistake("`draw_segment` should return two vectors: `return start, target`")
        places = []
        for value in answer:
            value = tensor(value, (5,), "draw_segment").detach().cpu()
            found = (teachers == value).all(-1).nonzero().tolist()
            if not found:
                raise Mistake("`draw_segment` returns a vector that is no snapshot of a teacher")
            places.append(found[0])
        (a, first), (b, last) = places
        if a != b:
            raise Mistake("start and target are from two different teachers: each goes its own way")
        if last - first == -k:
            raise Mistake(
                "start and target are swapped: the student begins at the earlier snapshot"
            )
        if last - first != k:
            raise Mistake(
                f"the target is {last - first} epochs after the start, and not {k}, which is the "
                "`expert_epochs` that "
                "were passed in"
            )
        return a, first

    drawn = [call(rng) for _ in range(draws)]
    starts, who = torch.tensor(drawn)[:, 1], torch.tensor(drawn)[:, 0]
    if len(set(drawn)) == 1:
        raise Mistake(f"{draws} segments in a row are the same: draw, and let the generator go on")
    if starts.max() >= bound:
        raise Mistake(
            f"with `max_start_epoch` {bound} a student began at epoch {int(starts.max())}: the "
            "paper draws i < I+, "
            f"that is, 0 to {bound - 1}"
        )
    for epoch in range(bound):
        if epoch not in starts:
            why = (
                "it is a start like the others"
                if epoch < bound - 1
                else "`torch.randint` excludes its upper end"
            )
            raise Mistake(
                f"with `max_start_epoch` {bound} no student ever begins at epoch {epoch}: {why}"
            )
    for teacher in range(count):
        if teacher not in who:
            raise Mistake(f"of {count} teachers, teacher {teacher} is never drawn")
    if len(set(drawn)) < count * bound:
        raise Mistake("some teachers never start at some epochs: draw teacher and epoch separately")
    for name, values, options in (("start epochs", starts, bound), ("teachers", who, count)):
        share = values.bincount(minlength=options) / draws
        if (share * options - 1).abs().max() > 0.45:
            percent = ", ".join(f"{100 * s:.0f}" for s in share)
            raise Mistake(
                f"not all {name} are equally likely: they come up in {percent} % of the draws"
            )
    again = []
    with torch.random.fork_rng(devices=[]):
        for other in (seed + 1, seed + 2):
            torch.default_generator.manual_seed(other)
            generator = torch.Generator().manual_seed(seed)
            again.append([call(generator) for _ in range(20)])
    if again[0] != again[1]:
        raise Mistake(
            "equal generators give different segments: draw from the generator that is passed in"
        )
    if {call(rng, 1, teachers[:, : k + 1])[1] for _ in range(5)} != {0}:
        raise Mistake("with `max_start_epoch` 1 a student should always begin at epoch 0")
    good("segments lie on one teacher, K epochs long, and begin at every epoch below I+ alike")


def loss(function: Callable, seed: int = 0) -> None:
    """matching_loss: its value, at three scales and in two special places, and its gradient for the
    student.
    """
    rng, p = torch.Generator().manual_seed(seed), 40 + seed
    start, way, astray = torch.randn(3, p, generator=rng)
    target, student = start + 0.3 * way, start + 0.2 * way + 0.2 * astray
    for scale in (1, 1e-4, 30):
        _judge_loss(function, scale * student, scale * target, scale * start, scale)
    for s, right, where in (
        (target, 0.0, "has arrived at the target"),
        (start, 1.0, "has not moved"),
    ):
        value = _ask_loss(function, s.clone().requires_grad_(), target, start)
        if (value.detach() - right).abs() > 1e-5:
            raise Mistake(
                f"for a student that {where} the loss should be {right:g}, not "
                f"{float(value.detach()):.4f}"
            )
    good(
        "0 at the target, 1 for a student that did not move, the same at every scale, and with "
        "the right gradient"
    )


def _ask_loss(function: Callable, student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    value = ask(function, student, target, start, forbid=(pruning,))
    if isinstance(value, (int, float)):
        raise Mistake(
            "the loss is a plain number, which has no gradient: return a tensor of shape ()"
        )
    return tensor(value, (), "matching_loss").cpu()


def _judge_loss(
    function: Callable, student: Tensor, target: Tensor, start: Tensor, scale: float
) -> None:
    student = student.requires_grad_()
    value = _ask_loss(function, student, target, start)
    square = lambda a, b: (a - b).detach().square().sum()
    error, way, moved = square(student, target), square(start, target), square(student, start)
    each = ((student - target) / (start - target)).detach().square()
    wrong = {
        "the error is not divided by the teacher's way: an error "
        "of 1 is small beside a long way": error,
        "the mean of the squared errors is not divided by the teacher's way": error / len(student),
        "the error is divided by the student's own way: take the "
        "teacher's, from start to target": error / moved,
        "these are distances, not their squares": (error / way).sqrt(),
        "this is how far the student went, not how far off it is: "
        "are target and start swapped?": moved / way,
        "numerator and denominator are swapped": way / error,
        "the error is a sum over the parameters and the way a mean: take the same of both": error
        / way
        * len(student),
        "the error is a mean over the parameters and the way a sum: take the same of both": error
        / way
        / len(student),
        "each entry is divided by its own way: divide the sum by the sum": each.mean(),
        "the error is divided by the size of the target: take the teacher's way": error
        / target.square().sum(),
        "this is the squared error of the mean, not the sum of squared errors": (
            student - target
        ).sum()
        ** 2
        / way,
    }
    otherwise = "the loss is not |student - target|^2 / |start - target|^2"
    if scale != 1:
        otherwise = (
            f"with all vectors times {scale:g} the loss is another one: is anything "
            "added, or cut off?"
        )
    compare(value, error / way, wrong, otherwise, 1e-3)
    if not value.requires_grad:
        raise Mistake(
            "no gradient leads from the loss to the student: leave out detach, item, float and "
            "no_grad"
        )
    gradient = _gradients("matching_loss", value, (student,))[0]
    right = 2 * (student - target).detach() / way
    if gradient is None or not close(gradient, right, 1e-3):
        raise Mistake(
            "the value is right, but its gradient for the student is not: is part of it detached?"
        )


def student(function: Callable, seed: int = 0) -> None:
    """student_updates: where the student is after J updates."""
    rng, network = torch.Generator().manual_seed(seed), Network()
    images, labels = _images(4 + seed, rng)
    start = network.initial(seed)
    for steps, rate in ((4, 0.5), (1, 0.2), (3 + seed, 0.8)):
        x, alpha = images.clone().requires_grad_(), torch.tensor(rate, requires_grad=True)
        value = ask(function, network, start, x, labels, alpha, steps, forbid=(unrolling,))
        value = tensor(value, (network.size,), "student_updates").detach().cpu()

        def after(count: int = steps, rate: float = rate, **options) -> Tensor:
            return _sgd(start, [(images, labels)] * count, rate, **options)[-1]

        first = after(1) - start
        wrong = {
            f"the student makes {steps - 1} updates instead of {steps}": after(steps - 1),
            f"the student makes {steps + 1} updates instead of {steps}": after(steps + 1),
            "the student goes up the gradient: theta - alpha * gradient": after(sign=1),
            "the loss is the sum over the images: take the mean, as `F.cross_entropy` does": after(
                how="sum"
            ),
            "every gradient is taken at the start: take it where the student is now": start
            + steps * first,
            "gradients add up from update to update: each update has its own": after(momentum=1.0),
            "there is momentum in the updates: Eq. (2) has none": after(momentum=0.9),
            "alpha is missing: the gradient is subtracted as it is": after(rate=1.0),
            "each image makes an update of its own: all of them are one batch": _sgd(
                start, list(zip(images.split(1), labels.split(1), strict=True)) * steps, rate
            )[-1],
        }
        otherwise = (
            f"after {steps} updates of Eq. (2) on all images at once, the student should "
            "be elsewhere"
        )
        compare(value, after(), wrong, otherwise)
    good("the student makes J updates of Eq. (2), each from where it is")


def gradients(function: Callable, seed: int = 0) -> None:
    """The gradient through the student's updates: what autograd makes of them, against finite
    differences of the same
    function. It can be right although the student ends in a wrong place."""
    rng, network, steps = torch.Generator().manual_seed(seed), Network(), 3 + seed % 3
    images, labels = _images(3, rng)
    images, start, alpha = (
        images.double(),
        network.initial(seed).double(),
        torch.tensor(0.8).double(),
    )
    target = start + 0.5 * torch.randn(len(start), generator=rng)

    def run(x: Tensor, rate: Tensor) -> Tensor:
        value = ask(function, network, start.clone(), x, labels, rate, steps, forbid=(unrolling,))
        value = tensor(value, (network.size,), "student_updates").cpu()
        if not value.is_floating_point():
            raise Mistake(f"`student_updates` should return real parameters, not {value.dtype}")
        return _loss(value, target, start)

    x, rate = images.clone().requires_grad_(), alpha.clone().requires_grad_()
    value = run(x, rate)
    if not value.requires_grad:
        raise Mistake(
            "the student that you return knows nothing of the images or alpha: leave out detach, "
            "data, item and no_grad"
        )
    to_images, to_alpha = _gradients("student_updates", value, (x, rate))
    if to_images is None:
        raise Mistake(
            "no gradient reaches the images: each update's gradient has to keep its own graph "
            "(`create_graph=True`), "
            "and neither the images nor the student may be detached on the way"
        )
    if to_alpha is None:
        raise Mistake(
            "no gradient reaches alpha: keep it a tensor (no float, item, detach or torch.tensor "
            "around it)"
        )

    # 8 directions stand for all pixels
    small, ways = (
        1e-3,
        torch.randn(8, *images.shape, generator=rng).double(),
    )
    along = lambda gradient: (ways * gradient).flatten(1).sum(1)
    pixels = torch.stack(
        [run(images + small * way, alpha) - run(images - small * way, alpha) for way in ways]
    )
    slope = run(images, alpha + small) - run(images, alpha - small)

    def cut(where: str) -> tuple[Tensor, Tensor]:
        x, rate = images.detach().clone().requires_grad_(), alpha.detach().clone().requires_grad_()
        to_x, to_rate = grad(
            _loss(_updates(start, x, labels, rate, steps, where), target, start), (x, rate)
        )
        return along(to_x), to_rate

    last, direct = cut("between updates"), cut("inside updates")
    for i, (name, value, right) in enumerate(
        (("the images", along(to_images), pixels), ("alpha", to_alpha, slope))
    ):
        wrong = {
            f"the gradient for {name} comes through the last update only: the student is "
            "detached between updates, so "
            "that what the earlier ones did is forgotten": last[i],
            f"the gradient for {name} leaves out how earlier updates change the later ones' "
            "gradients: take each "
            "gradient at the student itself, not at a detached "
            "copy, with `create_graph=True`": direct[i],
        }
        otherwise = (
            f"the gradient for {name} is not how the loss changes when one changes {name} a "
            "little: part of the "
            "way back is cut off (detach, data, no_grad, or a missing create_graph)"
        )
        compare(value, right / (2 * small), wrong, otherwise, 1e-2)
    good("the gradient runs through all J updates, to the images and to alpha")


def step(function: Callable, seed: int = 0) -> None:
    """distil_step, twice in a row, from its own images and alpha the second time."""
    rng, network = torch.Generator().manual_seed(seed), Network()
    images, labels = _images(3, rng)
    start, image_lr, alpha_lr, steps = network.initial(seed), 0.7 + seed, 0.02, 3
    target = start + 0.1 * torch.randn(len(start), generator=rng)
    alpha = torch.tensor(0.3)

    def train(start: Tensor, images: Tensor, alpha: Tensor) -> Tensor:
        return _updates(start, images, labels, alpha, steps)

    def measure(
        x: Tensor, rate: Tensor, begin=start, goal=target, origin=start
    ) -> tuple[Tensor, Tensor, Tensor]:
        x, rate = x.detach().clone().requires_grad_(), rate.detach().clone().requires_grad_()
        value = _loss(train(begin, x, rate), goal, origin)
        for_x, for_rate = grad(value, (x, rate))
        return value.detach(), for_x, for_rate

    for _ in range(2):
        arguments = (train, _loss, (start, target), images, alpha, image_lr, alpha_lr)
        answer = ask(function, *arguments, forbid=(unrolling,))
        if not isinstance(answer, (tuple, list)) or len(answer) != 3:
            raise Mistake(
                "`distil_step` should return three things, `images, alpha, loss`, not "
                f"{describe(answer)}"
            )
        new = tensor(answer[0], tuple(images.shape), "distil_step")
        rate = tensor(answer[1], (), "distil_step")
        said = answer[2]
        if not isinstance(said, (int, float, Tensor)) or (
            isinstance(said, Tensor) and said.numel() != 1
        ):
            raise Mistake(
                "the third thing that `distil_step` returns should be the loss, not "
                f"{describe(said)}"
            )
        value, to_images, to_alpha = measure(images, alpha)
        swapped = measure(images, alpha, start, start, target)
        backwards = measure(images, alpha, target, start, target)
        turned = (
            "start and target are swapped: the segment is (start, target), and the loss is "
            "asked for as "
        )
        wrong = {
            "the images do not change: update them and return the new ones": images,
            "the images go up the gradient, so the loss grows: subtract it": images
            + image_lr * to_images,
            "the images change by alpha_lr: they have a learning rate of their own": images
            - alpha_lr * to_images,
            "the images change by alpha: it is the student's learning rate, not theirs": images
            - alpha * to_images,
            "the images change by their gradient without its learning rate": images - to_images,
            turned + "loss(student, target, start)": images - image_lr * swapped[1],
            turned + "loss(student, target, start), too": images - image_lr * backwards[1],
        }
        otherwise = (
            "the new images are not images - image_lr * gradient, the gradient being "
            "that of the student's loss"
        )
        compare(new.detach().cpu(), images - image_lr * to_images, wrong, otherwise)
        later = measure(images - image_lr * to_images, alpha)
        wrong = {
            "alpha does not change: it is learned as well": alpha,
            "alpha goes up its gradient: subtract it": alpha + alpha_lr * to_alpha,
            "alpha changes by image_lr: it has a learning rate of its own": alpha
            - image_lr * to_alpha,
            "alpha changes by its gradient without its learning rate": alpha - to_alpha,
            "alpha's gradient is that after the images have changed: take both gradients of one "
            "loss": (alpha - alpha_lr * later[2]),
        }
        otherwise = "the new alpha is not alpha - alpha_lr * its gradient"
        compare(rate.detach().cpu(), alpha - alpha_lr * to_alpha, wrong, otherwise, 1e-5)
        wrong = {
            "the loss that you return is that after the step: return the one that was "
            "differentiated": later[0]
        }
        given = torch.as_tensor(said).detach().cpu().reshape(())
        compare(given, value, wrong, "the loss that you return is not that of this student")
        for name, result in (("images", new), ("alpha", rate), ("loss", said)):
            if isinstance(result, Tensor) and result.grad_fn is not None:
                raise Mistake(
                    f"the {name} that you return still hang{'s' * (name != 'images')} on the "
                    "graph of this step. After "
                    "many steps they would all be in memory: detach, or update under "
                    "torch.no_grad()"
                )
        images, alpha = new.detach(), rate.detach()
    good(
        "a step moves images and alpha down the gradient of one student's loss, and leaves no "
        "graph behind"
    )


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
    """n images and labels for a Network; no label is that of the image before it."""
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


def _by_name(network: nn.Module) -> list[Tensor]:
    """The parameters in the order of their names as text."""
    return [p for _, p in sorted(network.named_parameters(), key=lambda named: named[0])]


def _cat(parameters: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.detach().flatten() for p in parameters]).cpu()


def _orders(network: Network, images: Tensor) -> list[Tensor]:
    """For each batch that the network was shown: which of `images` it was made of."""
    orders = []
    for batch in network.seen:
        if batch.shape[1:] != images.shape[1:]:
            raise Mistake(
                f"the network is shown a tensor {tuple(batch.shape)} instead of images: (n, "
                "channels, h, w)"
            )
        same = (batch[:, None] == images).flatten(2).all(2)
        if not same.any(1).all():
            raise Mistake(
                "the network is shown images that are not among the training images: leave them "
                "as they are"
            )
        orders.append(same.long().argmax(1))
    if not orders:
        raise Mistake(
            "the network is never asked for logits in training: call `network(theta, images)`"
        )
    return orders


def _sgd(
    start: Tensor, batches, lr: float, sign: int = -1, how: str = "mean", momentum: float = 0.0
) -> list[Tensor]:
    """start, and where SGD is after each batch (images, labels)."""
    network, path, velocity = Network(), [start], 0.0
    for images, labels in batches:
        theta = path[-1].clone().requires_grad_()
        (g,) = grad(F.cross_entropy(network(theta, images), labels, reduction=how), theta)
        velocity = momentum * velocity + g
        path.append(theta.detach() + sign * lr * velocity)
    return path


def _updates(
    start: Tensor, images: Tensor, labels: Tensor, alpha: Tensor, steps: int, cut: str = ""
) -> Tensor:
    """Eq. (2), `steps` times, on all images; cut: where the graph is cut by mistake."""
    network, theta = Network(), start.detach().clone().requires_grad_()
    for _ in range(steps):
        if cut == "between updates":
            theta = theta.detach().requires_grad_()
        at = theta.detach().requires_grad_() if cut == "inside updates" else theta
        (g,) = grad(F.cross_entropy(network(at, images), labels), at, create_graph=True)
        theta = theta - alpha * g
    return theta


def _loss(student: Tensor, target: Tensor, start: Tensor) -> Tensor:
    """Eq. (8), nothing pruned."""
    return (student - target).square().sum() / (start - target).square().sum()


def _gradients(name: str, value: Tensor, inputs: tuple[Tensor, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of what a student's function made; a Mistake where autograd cannot go back
    through it.
    """
    try:
        return grad(value, inputs, allow_unused=True)
    except RuntimeError as e:
        raise Mistake(
            f"autograd cannot go back through `{name}` ({str(e).splitlines()[0][:150]}): make "
            "new tensors instead of "
            "changing them in place (`-=`, `add_`, `.data`)"
        ) from e
