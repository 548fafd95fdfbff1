"""Checks of assignment 1: ZCA and its inverse, the ConvNet, a differentiable augmentation,
accuracy.

Each draws its cases from `seed`. The right answers are computed here, without ddpp's functions and
without the solution.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpp import networks
from ddpp.data import augmentation, whitening
from ddpp_course.checks import Checks, ask, close, describe, tensor

here = Checks("assignment1")


def fit_zca(function: Callable, seed: int = 0, images: Tensor | None = None) -> None:
    """fit_zca(images, eps) on many images, with eps = 0.1."""
    _judge_fit(function, _images(300, (3, 4, 4), seed) if images is None else images, 0.1)
    here.good("zca")


def few_images(function: Callable, seed: int = 0) -> None:
    """fit_zca on fewer images than an image has values, grey and not square, with another eps."""
    _judge_fit(function, _images(15, (1, 5, 6), seed), 0.01)
    here.good("zca_of_few")


def _judge_fit(function: Callable, images: Tensor, eps: float) -> None:
    matrix = _zca_matrix(ask(function, images, eps, forbid=(whitening,)), images).double()
    n, covariance = len(images), images.flatten(1).double().T.cov()
    variances, u = torch.linalg.eigh(covariance)
    length = (variances + eps).sqrt()
    # how much too long each direction comes out: an error counts the same in strong and in weak
    # directions
    seen = lambda m: u.T @ m.double() @ (u * length)

    def zca(c: Tensor) -> Tensor:
        s, directions = torch.linalg.eigh(c)
        return seen(directions * (s.clamp(min=1e-9) + eps).rsqrt() @ directions.T)

    value, square = seen(matrix), (1 / length).diag()
    if any(close(value, zca(c), 0.005) for c in (covariance, covariance * (n - 1) / n)):
        return
    varied = variances > 1e-6
    if not varied.all() and close(value[varied][:, varied], torch.eye(int(varied.sum())), 0.05):
        raise here.wrong("zca_lost_directions")
    if close(seen(matrix @ matrix.T), square, 0.01) or close(seen(matrix.T @ matrix), square, 0.01):
        raise here.wrong("zca_not_rotated_back")
    if close(matrix, matrix.T) and close(torch.linalg.eigvalsh(matrix).flip(0), 1 / length, 0.01):
        raise here.wrong("zca_rows_of_u")
    run = lambda s: seen(s.fit_zca(images.double(), eps)[1])
    here.compare("fit-zca", value, torch.eye(len(u)), run, "zca_formula", 0.01)


def _zca_matrix(answer, images: Tensor) -> Tensor:
    """The matrix that fit_zca returns, where it returns the right mean with it."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise here.wrong("zca_not_two", found=describe(answer))
    mean, matrix = (_real(value, None, "fit_zca").detach() for value in answer)
    shape, size = tuple(images.shape[1:]), images[0].numel()
    if tuple(mean.shape) not in (shape, (1, *shape)):
        raise here.wrong("zca_mean_shape", shape=shape, found=tuple(mean.shape))
    if not close(mean.reshape(shape), images.mean(0)):
        raise here.wrong("zca_mean")
    if tuple(matrix.shape) != (size, size):
        raise here.wrong("zca_matrix_shape", size=size, found=tuple(matrix.shape))
    return matrix


def whiten(function: Callable, seed: int = 0) -> None:
    """whiten(images, mean, matrix) on several images, and on one."""
    for n in (4, 1):
        x, mean, matrix = _whitening(n, seed)
        value = _real(ask(function, x, mean, matrix, forbid=(whitening,)), tuple(x.shape), "whiten")
        right = ((x - mean).flatten(1) @ matrix).view_as(x)
        run = lambda s, given=(x, mean, matrix): s.whiten(*given)
        here.compare("whiten", value, right, run, "whiten_steps", 1e-3)
    here.good("whiten")


def unwhiten(function: Callable, seed: int = 0) -> None:
    """unwhiten(images, mean, matrix): back to natural colours."""
    for n in (4, 1):
        x, mean, matrix = _whitening(n, seed)
        given = ((x - mean).flatten(1) @ matrix).view_as(x), mean, matrix
        value = _real(ask(function, *given, forbid=(whitening,)), tuple(x.shape), "unwhiten")
        run = lambda s, given=given: s.unwhiten(*given)
        here.compare("unwhiten", value, x, run, "unwhiten_off", 1e-3)
    here.good("unwhiten")


def convnet(
    function: Callable, channels=3, classes=10, width=128, image_size=32, seed: int = 0
) -> None:
    """build_convnet: the layers by their parameters, then the logits by comparison with the right
    network, which gets the same parameters.
    """
    arguments = channels, classes, width, image_size
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = ask(function, *arguments, forbid=(networks,))
    if not isinstance(network, nn.Module):
        raise here.wrong("convnet_no_module", found=describe(network))
    if any(map(nn.parameter.is_lazy, network.parameters())):
        ask(network, torch.zeros(2, channels, image_size, image_size))
    kernels, count = _judge_layers(list(network.cpu().parameters()), *arguments)
    x = torch.randn(
        3, channels, image_size, image_size, generator=torch.Generator().manual_seed(seed)
    )
    with torch.no_grad():
        _judge_logits(network, kernels, x, arguments)
    here.good("convnet", count=count)


def _judge_layers(
    parameters: list[Tensor], channels: int, classes: int, width: int, image_size: int
) -> tuple[list[int], int]:
    """The places of the kernels among the parameters, and how many numbers these have in all."""
    side = image_size // 8
    kernels = [i for i, p in enumerate(parameters) if p.ndim == 4 and p.shape[2:] == (3, 3)]
    linear = [p for p in parameters if p.ndim == 2]
    if len(kernels) != 3:
        raise here.wrong("convnet_blocks", found=len(kernels))
    shapes = [tuple(parameters[i].shape[:2]) for i in kernels]
    if shapes != [(width, channels), (width, width), (width, width)]:
        raise here.wrong("convnet_widths", channels=channels, width=width, found=shapes)
    if [p.shape[0] for p in linear] != [classes]:
        raise here.wrong("convnet_outputs", classes=classes)
    if (inputs := linear[0].shape[1]) != width * side**2:
        sizes = {"width": width, "side": side, "image_size": image_size}
        raise here.wrong("convnet_inputs", found=inputs, **sizes)
    count = sum(p.numel() for p in parameters)
    right = 9 * width * (channels + 2 * width) + 9 * width + linear[0].numel() + classes
    missing = {
        6 * width: "convnet_no_scale",
        3 * width: "convnet_no_bias",
        9 * width: "convnet_neither",
        classes: "convnet_no_linear_bias",
    }
    if count != right:
        why = here.say(missing.get(right - count, "convnet_which_layer"))
        raise here.wrong("convnet_count", found=count, right=right, why=why)
    return kernels, count


def _judge_logits(network: nn.Module, kernels: list[int], x: Tensor, arguments: tuple) -> None:
    """At its start, where the normalization has scale 1 and shift 0, a network is its convolutions
    and linear layer.
    """
    parameters = [*network.parameters(), torch.zeros(())]
    (weight,) = (p for p in parameters if p.ndim == 2)
    bias = [p for p in parameters if p.shape == weight.shape[:1]][-1]
    offsets = [parameters[i + 1] if parameters[i + 1].ndim == 1 else None for i in kernels]
    forward = lambda images: network(images)
    forward.__name__ = here.say("the_network")
    see = lambda images: _real(
        ask(forward, images, forbid=(networks,)), (len(images), len(weight)), forward.__name__
    )
    z = x
    for i, offset in zip(kernels, offsets, strict=True):
        z = F.conv2d(z, parameters[i], offset, padding=1)
        z = F.avg_pool2d(F.instance_norm(z).relu(), 2)
    right, value = F.linear(z.flatten(1), weight, bias), see(x)
    if close(value, right, 1e-3):
        network.eval()
        if not close(see(x), right, 1e-3):
            raise here.wrong("convnet_running")
        with torch.enable_grad():
            total = see(x).sum()
        slopes = torch.autograd.grad(total, [*network.parameters()], allow_unused=True)
        if any(slope is None for slope in slopes):
            raise here.wrong("convnet_unused")
        network.train()
        return
    if not close(value[:1], see(x[:1]), 1e-3):
        raise here.wrong("convnet_batch")

    def run(solution) -> Tensor:
        """The logits of a network with a mistake and the student's numbers."""
        other = solution.build_convnet(*arguments)
        layers = [m for m in other.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
        weights = [*(parameters[i] for i in kernels), weight]
        for layer, w, b in zip(layers, weights, [*offsets, bias], strict=True):
            layer.weight.copy_(w)
            if layer.bias is not None:
                layer.bias.copy_(torch.zeros(()) if b is None else b)
        return other(x)

    with torch.random.fork_rng(devices=[]):
        here.compare("convnet", value, right, run, "convnet_logits", 1e-3)


def draw_shift(function: Callable, seed: int = 0) -> None:
    """Range and distribution of the offsets, and that they are a function of the generator."""
    n, reach, generator = 2000, 2, torch.Generator().manual_seed(seed)
    call = lambda n, reach, rng: _real(
        ask(function, n, reach, rng, forbid=(augmentation,)), (n, 2), "draw_shift"
    )
    offsets = call(n, reach, generator)
    _judge_offsets(offsets, reach)
    if torch.equal(offsets, call(n, reach, generator)):
        raise here.wrong("offsets_equal")
    again = []
    with torch.random.fork_rng(devices=[]):
        for other in (seed + 1, seed + 2):
            torch.default_generator.manual_seed(other)
            again.append(call(n, reach, torch.Generator().manual_seed(seed)))
    if not torch.equal(*again):
        raise here.wrong("offsets_generator")
    if call(3, 0, generator).any():
        raise here.wrong("offsets_none")
    here.good("offsets")


def _judge_offsets(offsets: Tensor, reach: int) -> None:
    if offsets.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise here.wrong("offsets_type", found=offsets.dtype)
    if (offsets == offsets[0]).all():
        raise here.wrong("offsets_one")
    if (offsets[:, 0] == offsets[:, 1]).all():
        raise here.wrong("offsets_diagonal")
    low, high = int(offsets.min()), int(offsets.max())
    if (low, high) == (-reach, reach - 1):
        raise here.wrong("offsets_upper_end", reach=reach)
    if (low, high) != (-reach, reach):
        raise here.wrong("offsets_range", reach=reach, low=low, high=high)
    share = torch.stack([(offsets == step).double().mean(0) for step in range(low, high + 1)])
    if (share - 1 / len(share)).abs().max() > 0.05:
        found = ", ".join(f"{100 * s:.0f}" for s in share.mean(1))
        raise here.wrong("offsets_likely", low=low, high=high, found=found)


def shift(function: Callable, seed: int = 0) -> None:
    """Values on images that are not square, then the gradient in the pixels."""
    generator = torch.Generator().manual_seed(seed)
    x, weights = torch.randn(2, 6, 3, 7, 5, generator=generator)
    offsets = torch.randint(-2, 3, (6, 2), generator=generator)
    offsets[:3] = torch.tensor([[2, -1], [0, 0], [-1, 0]])
    call = lambda images, moves: _real(
        ask(function, images, moves, forbid=(augmentation,)), tuple(images.shape), "shift"
    )
    far = torch.tensor([[4 + seed, -4], [-6, 3], [0, 0], [1, -1], [-2, 5], [7, 0]])
    for given in ((x, offsets), (x[:1], offsets[:1]), (x[1:2], offsets[1:2]), (x, far)):
        run = lambda s, given=given: s.shift(*given)
        here.compare("shift", call(*given), _moved(*given), run, "shift_example")
    pixels = x.clone().requires_grad_()
    moved = call(pixels, offsets)
    if not moved.requires_grad:
        raise here.wrong("shift_no_gradient")
    (gradient,) = torch.autograd.grad((moved * weights).sum(), pixels, allow_unused=True)
    if gradient is None or not close(gradient, _moved(weights, -offsets)):
        raise here.wrong("shift_gradient")
    here.good("shift")


def accuracy(function: Callable, seed: int = 0) -> None:
    """Percent, over batches of unequal size, without a graph."""
    for n, batch in ((33, 5), (7, 50)):
        generator = torch.Generator().manual_seed(seed + n)
        labels = torch.randint(5, (n,), generator=generator)
        said = torch.where(torch.rand(n, generator=generator) < 0.5, labels, (labels + 1) % 5)
        # the last batch, which is smaller, does better
        said[-3:], said[:2] = labels[-3:], (labels[:2] + 1) % 5
        noise = torch.rand(n, 5, 1, 1, generator=generator)
        images = F.one_hot(said, 5)[:, :, None, None] + noise / 2
        network = _Recorder()
        number = _percent(ask(function, network, images, labels, batch, forbid=(networks,)))
        if network.graph:
            raise here.wrong("accuracy_graph")
        if (most := max(network.sizes, default=0)) > batch:
            raise here.wrong("accuracy_batch", batch=batch, found=most)
        hits = int((said == labels).sum())
        words = {"hits": hits, "n": n, "percent": 100 * hits / n, "found": number}
        run = lambda s, given=(network, images, labels, batch): s.accuracy(*given)
        here.compare("accuracy", number, 100 * hits / n, run, "accuracy_otherwise", **words)
    here.good("accuracy")


def _percent(value) -> float:
    try:
        return float(value)
    except Exception:  # of a student's object, it may be any
        raise here.wrong("accuracy_number", found=describe(value)) from None


class _Recorder(nn.Module):
    """A network whose logits are the image, which notes how it is called."""

    def __init__(self):
        super().__init__()
        self.scale, self.sizes, self.graph = nn.Parameter(torch.ones(())), [], False

    def forward(self, images: Tensor) -> Tensor:
        self.sizes.append(len(images))
        self.graph |= torch.is_grad_enabled()
        return images.flatten(1) * self.scale


def _real(value, shape: tuple[int, ...] | None, name: str) -> Tensor:
    """A tensor of real numbers on the CPU, as `tensor` in the checks of all assignments; otherwise
    a Mistake.
    """
    value = (
        value.to_dense() if isinstance(value, Tensor) and value.layout != torch.strided else value
    )
    if tensor(value, shape, name).is_complex():
        raise here.wrong("complex", name=name)
    return value.cpu()


def _images(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """n correlated images in [0, 1]."""
    generator, size = torch.Generator().manual_seed(seed), shape[0] * shape[1] * shape[2]
    x = torch.randn(n, size, generator=generator)
    x = x @ torch.randn(size, size, generator=generator) / size**0.5
    return (x + torch.randn(size, generator=generator)).sigmoid().view(n, *shape)


def _whitening(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n images, a mean, and a matrix that whitens."""
    images = _images(100, (3, 4, 5), seed)
    variances, u = torch.linalg.eigh(images.flatten(1).T.cov())
    return images[:n], images.mean(0), u * (variances + 0.1).rsqrt() @ u.T


def _moved(images: Tensor, offsets: Tensor) -> Tensor:
    """Each image moved by its offset (down, right); zeros move in."""
    (height, width), moved = images.shape[2:], []
    for image, (down, right) in zip(images, offsets.tolist(), strict=True):
        r, c = torch.arange(height) - down, torch.arange(width) - right
        inside = ((r >= 0) & (r < height))[:, None] & ((c >= 0) & (c < width))
        moved.append(image[:, r.clamp(0, height - 1)][:, :, c.clamp(0, width - 1)] * inside)
    return torch.stack(moved)
