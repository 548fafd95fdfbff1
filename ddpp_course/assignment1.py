"""Checks of assignment 1: ZCA and its inverse, the ConvNet, a differentiable augmentation,
accuracy.

Each draws its cases from `seed`; what they need of the method is written out here, apart from the
rooms of ddpp.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpp import networks
from ddpp.data import augmentation, whitening
from ddpp_course.checks import Mistake, ask, close, compare, describe, good, tensor


def fit_zca(function: Callable, seed: int = 0, images: Tensor | None = None) -> None:
    """fit_zca(images, eps) on many images, with eps = 0.1."""
    _judge_fit(function, _images(300, (3, 4, 4), seed) if images is None else images, 0.1)
    good("your matrix whitens: uncorrelated values, in the directions of the images themselves")


def few_images(function: Callable, seed: int = 0) -> None:
    """fit_zca on fewer images than an image has values, grey and not square, with another eps."""
    _judge_fit(function, _images(15, (1, 5, 6), seed), 0.01)
    good("with 15 images of 30 values your matrix stays finite, and it follows eps")


def _judge_fit(function: Callable, images: Tensor, eps: float) -> None:
    answer, shape, size = (
        ask(function, images, eps, forbid=(whitening,)),
        images.shape[1:],
        images[0].numel(),
    )
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise Mistake(f"`fit_zca` should return two things, `mean, matrix`, not {describe(answer)}")
    mean, matrix = (_real(value, None, "fit_zca").detach() for value in answer)
    if tuple(mean.shape) not in (tuple(shape), (1, *shape)):
        raise Mistake(
            f"the mean should look like one image, {tuple(shape)}, not {tuple(mean.shape)}: "
            "average over the images, each pixel and channel on its own"
        )
    if not close(mean.reshape(shape), images.mean(0)):
        raise Mistake("the mean is not the average over the images of each pixel and channel")
    if tuple(matrix.shape) != (size, size):
        raise Mistake(
            f"the matrix should be ({size}, {size}), not {tuple(matrix.shape)}: images become "
            f"rows of {size} values, "
            "and the covariance is the one between values, not the one between images"
        )

    flat, n = images.flatten(1).double(), len(images)
    centred = flat - flat.mean(0)
    covariance = centred.T @ centred / (n - 1)
    variances, u = torch.linalg.eigh(covariance)
    length = (variances + eps).sqrt()
    # how much too long each direction comes out: an error counts the same in strong and in weak
    # directions
    seen = lambda m: u.T @ m @ (u * length)

    def zca(change: Callable, c: Tensor = covariance) -> Tensor:
        s, directions = torch.linalg.eigh(c)
        return seen(directions * change(s.clamp(min=1e-9)) @ directions.T)

    root = lambda s: (s + eps).rsqrt()
    matrix = matrix.double()
    value, square = seen(matrix), (1 / length).diag()
    if any(close(value, zca(root, c), 0.005) for c in (covariance, covariance * (n - 1) / n)):
        return
    varied = variances > 1e-6
    if not varied.all() and close(value[varied][:, varied], torch.eye(int(varied.sum())), 0.05):
        raise Mistake(
            "the matrix is right in the directions in which the images vary, but not in the "
            "others: there S is 0 and "
            "the factor eps^(-1/2), with the same U on both sides (the V of a singular value "
            "decomposition is another)"
        )
    if close(seen(matrix @ matrix.T), square, 0.01) or close(seen(matrix.T @ matrix), square, 0.01):
        raise Mistake(
            "your matrix uncorrelates the values, but turns the images into their principal "
            "components (PCA): "
            "ZCA rotates back, with U on one side and its transpose on the other"
        )
    if close(matrix, matrix.T) and close(torch.linalg.eigvalsh(matrix).flip(0), 1 / length, 0.01):
        raise Mistake(
            "the right numbers scale the wrong directions: the eigenvectors are the columns of "
            "U, so the matrix is "
            "U (...) U^T, and not U^T (...) U"
        )
    wrong = {
        "the mean is not subtracted before the covariance is taken": zca(
            root, flat.T @ flat / (n - 1)
        ),
        "the sum over the images is not divided by their number": zca(root, centred.T @ centred),
        "directions are divided by S + eps: divide by its square root": zca(
            lambda s: 1 / (s + eps)
        ),
        "the matrix colours instead of whitening: divide by the square root": zca(
            lambda s: (s + eps).sqrt()
        ),
        "eps is missing, so directions that hardly vary are blown up": zca(lambda s: s.rsqrt()),
        "eps is added after the square root: it belongs to S, under the root": zca(
            lambda s: 1 / (s.sqrt() + eps)
        ),
        "eps is added to 1 / sqrt(S): it belongs to S, under the root": zca(
            lambda s: s.rsqrt() + eps
        ),
        "eps is added to all entries of the covariance, not to S": zca(
            lambda s: s.rsqrt(), covariance + eps
        ),
        "eps is always 0.1: use the one that is passed in": zca(lambda s: (s + 0.1).rsqrt()),
    }
    formula = (
        "the matrix is not U (S + eps)^(-1/2) U^T, with U S U^T the covariance of the "
        "flattened images"
    )
    compare(value, torch.eye(size), wrong, formula, 0.01)


def whiten(function: Callable, seed: int = 0) -> None:
    """whiten(images, mean, matrix) on several images, and on one."""
    for n in (4, 1):
        x, mean, matrix = _whitening(n, seed)
        value = _real(ask(function, x, mean, matrix, forbid=(whitening,)), tuple(x.shape), "whiten")
        product = lambda z, m=matrix: (z.flatten(1) @ m).view_as(z)
        wrong = {
            "the mean is not subtracted": product(x),
            "the mean is subtracted after the product: it comes first": product(x) - mean,
            "the mean is added: whitening subtracts it": product(x + mean),
            "this is the way back: to whiten, multiply by the matrix itself": product(
                x - mean, matrix.inverse()
            ),
        }
        steps = (
            "whitened images are images - mean, flattened, times the matrix, in the shape of "
            "images again"
        )
        compare(value, product(x - mean), wrong, steps, 1e-3)
    good("images are whitened as (x - mean) W, and keep their shape")


def unwhiten(function: Callable, seed: int = 0) -> None:
    """unwhiten(images, mean, matrix): the way back to natural colours."""
    for n in (4, 1):
        x, mean, matrix = _whitening(n, seed)
        white = ((x - mean).flatten(1) @ matrix).view_as(x)
        value = _real(
            ask(function, white, mean, matrix, forbid=(whitening,)), tuple(x.shape), "unwhiten"
        )
        inverse = matrix.inverse()
        product = lambda z, m=inverse: (z.flatten(1) @ m).view_as(z)
        wrong = {
            "the mean is not added back": product(white),
            "the mean is added before the product: undo the last step first": product(white + mean),
            "the mean is subtracted: on the way back it is added": product(white) - mean,
            "the matrix is applied once more: the way back needs its inverse": product(
                white, matrix
            )
            + mean,
            "the inverse of a matrix is not 1 / each of its entries": product(white, 1 / matrix)
            + mean,
        }
        compare(value, x, wrong, "the images that come back are not those that were whitened", 1e-3)
    good("your way back is exact: distilled images can be shown in natural colours")


def convnet(
    function: Callable, channels=3, classes=10, width=128, image_size=32, seed: int = 0
) -> None:
    """build_convnet: the layers by their parameters, then the logits by those of the right network
    with the same.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = ask(function, channels, classes, width, image_size, forbid=(networks,))
    if not isinstance(network, nn.Module):
        raise Mistake(
            f"`build_convnet` should return a network, an nn.Module, not {describe(network)}"
        )
    if any(map(nn.parameter.is_lazy, network.parameters())):
        ask(network, torch.zeros(2, channels, image_size, image_size))
    parameters, side = list(network.cpu().parameters()), image_size // 8
    kernels = [i for i, p in enumerate(parameters) if p.ndim == 4 and p.shape[2:] == (3, 3)]
    linear = [p for p in parameters if p.ndim == 2]
    if len(kernels) != 3:
        raise Mistake(
            f"your network has {len(kernels)} convolutions of 3 x 3: there is one in each of the "
            "3 blocks"
        )
    shapes = [tuple(parameters[i].shape[:2]) for i in kernels]
    if shapes != [(width, channels), (width, width), (width, width)]:
        raise Mistake(
            f"for {channels} channels and width {width} your convolutions have (outputs, inputs) "
            f"{shapes}: "
            "the first goes from channels to width, the others from width to width"
        )
    if [p.shape[0] for p in linear] != [classes]:
        raise Mistake(
            f"your network should end in one linear layer with {classes} outputs, one for each "
            "class"
        )
    if linear[0].shape[1] != width * side**2:
        raise Mistake(
            f"the linear layer has {linear[0].shape[1]:,} inputs instead of {width} x {side} x "
            f"{side}: with padding, "
            f"only the three poolings change the size of an image, here from {image_size} to {side}"
        )
    count = sum(p.numel() for p in parameters)
    right = 9 * width * (channels + 2 * width) + 9 * width + linear[0].numel() + classes
    missing = {
        6 * width: "your normalization has no learned scale and shift for each channel (or it is "
        "missing)",
        3 * width: "your convolutions have no bias",
        9 * width: "your convolutions have no bias, and your normalization no learned scale and "
        "shift",
        classes: "your linear layer has no bias",
    }
    if count != right:
        why = missing.get(right - count, "which layer has too many, or too few?")
        raise Mistake(f"your network has {count:,} parameters instead of {right:,}: {why}")
    with torch.no_grad():
        _judge_logits(
            network,
            kernels,
            torch.Generator().manual_seed(seed),
            (channels, image_size, image_size),
        )
    good(f"{count:,} parameters in three blocks and a linear layer, and the logits are right")


def _judge_logits(
    network: nn.Module, kernels: list[int], generator: torch.Generator, shape: tuple
) -> None:
    """At its start, where the normalization has scale 1 and shift 0, a network is its convolutions
    and linear layer.
    """
    parameters, x = (
        [*network.parameters(), torch.zeros(())],
        torch.randn(3, *shape, generator=generator),
    )
    (weight,) = (p for p in parameters if p.ndim == 2)
    bias = [p for p in parameters if p.shape == weight.shape[:1]][-1]
    forward = lambda images: network(images)
    forward.__name__ = "the network"
    see = lambda images: _real(
        ask(forward, images, forbid=(networks,)), (len(images), len(weight)), "the network"
    )

    def logits(norm=F.instance_norm, act=F.relu, pool=F.avg_pool2d) -> Tensor:
        z = x
        for i in kernels:
            offset = parameters[i + 1] if parameters[i + 1].ndim == 1 else None
            z = pool(act(norm(F.conv2d(z, parameters[i], offset, padding=1))), 2)
        return F.linear(z.flatten(1), weight, bias)

    value, same = see(x), lambda z, size=2: z
    if close(value, logits(), 1e-3):
        return
    if not close(value[:1], see(x[:1]), 1e-3):
        raise Mistake(
            "an image gets other logits when it stands in a batch with others: batch "
            "normalization averages over the "
            "images, the ConvNet normalizes each channel of each image on its own"
        )
    wrong = {
        "the normalization takes all channels of an image together, not each on its own": logits(
            norm=lambda z: F.group_norm(z, 1)
        ),
        "the pooling takes the maximum instead of the average": logits(pool=F.max_pool2d),
        "the ReLU is missing": logits(act=same),
        "the normalization is built but not used": logits(norm=same),
        "the ReLU comes before the normalization: it comes after it": logits(
            F.relu, F.instance_norm
        ),
        "the pooling comes before the normalization: it comes last": logits(
            lambda z: F.instance_norm(F.avg_pool2d(z, 2)), pool=same
        ),
        "the pooling comes before the ReLU: it comes last": logits(
            act=lambda z: F.avg_pool2d(z, 2).relu(), pool=same
        ),
        "the normalization divides by the deviation with n - 1: take the one with n": logits(
            norm=lambda z: (z - z.mean((2, 3), True)) / z.std((2, 3), keepdim=True)
        ),
        "the network returns probabilities: return the logits, without a softmax": logits().softmax(
            1
        ),
        "the network returns logarithms of probabilities: return the logits": logits().log_softmax(
            1
        ),
        "there is a ReLU after the linear layer: logits may be negative": logits().relu(),
    }
    block = "convolution, normalization of each channel of each image, ReLU, average pooling"
    compare(
        value,
        logits(),
        wrong,
        f"the parameters are right, but the logits are not. A block is: {block}",
        1e-3,
    )


def draw_shift(function: Callable, seed: int = 0) -> None:
    """Range and distribution of the offsets, and that they are a function of the generator."""
    n, reach, generator = 2000, 2, torch.Generator().manual_seed(seed)
    call = lambda n, reach, rng: _real(
        ask(function, n, reach, rng, forbid=(augmentation,)), (n, 2), "draw_shift"
    )
    offsets = call(n, reach, generator)
    if offsets.dtype not in (torch.int8, torch.int16, torch.int32, torch.int64):
        raise Mistake(
            f"offsets are whole pixels: the tensor should hold integers, not {offsets.dtype}"
        )
    if (offsets == offsets[0]).all():
        raise Mistake("all images of the batch get the same offset: draw one for each")
    if (offsets[:, 0] == offsets[:, 1]).all():
        raise Mistake(
            "each image moves as far down as to the right: draw the two numbers separately"
        )
    low, high = int(offsets.min()), int(offsets.max())
    if (low, high) == (-reach, reach - 1):
        raise Mistake(
            f"an offset of +{reach} never comes up: the upper end of `torch.randint` is excluded"
        )
    if (low, high) != (-reach, reach):
        raise Mistake(
            f"for a reach of {reach} your offsets go from {low} to {high} instead of {-reach} to "
            f"{reach}"
        )
    share = torch.stack([(offsets == step).double().mean(0) for step in range(low, high + 1)])
    if (share - 1 / len(share)).abs().max() > 0.05:
        raise Mistake(
            f"not all offsets are equally likely: from {low} to {high} they come up in "
            f"{', '.join(f'{100 * s:.0f}' for s in share.mean(1))} % of the draws"
        )
    if torch.equal(offsets, call(n, reach, generator)):
        raise Mistake("two draws in a row are equal: let the generator go on, do not seed it anew")
    again = []
    with torch.random.fork_rng(devices=[]):
        for other in (seed + 1, seed + 2):
            torch.default_generator.manual_seed(other)
            again.append(call(n, reach, torch.Generator().manual_seed(seed)))
    if not torch.equal(*again):
        raise Mistake(
            "equal generators give different offsets: draw from the generator that is passed in"
        )
    if call(3, 0, generator).any():
        raise Mistake("with a reach of 0 nothing should move")
    good("offsets are drawn for each image, evenly from -reach to +reach, and can be drawn again")


def shift(function: Callable, seed: int = 0) -> None:
    """Values on images that are not square, then the gradient in the pixels."""
    generator = torch.Generator().manual_seed(seed)
    x, weights = torch.randn(2, 6, 3, 7, 5, generator=generator)
    offsets = torch.randint(-2, 3, (6, 2), generator=generator)
    offsets[:3] = torch.tensor([[2, -1], [0, 0], [-1, 0]])
    call = lambda images, moves: _real(
        ask(function, images, moves, forbid=(augmentation,)), tuple(images.shape), "shift"
    )
    for images, moves in ((x, offsets), (x[:1], offsets[:1]), (x[1:2], offsets[1:2])):
        pairs, flipped = list(zip(images, moves.tolist(), strict=True)), moves.flip(1)
        wrong = {
            "what leaves on one side comes in on the other: zeros should move in": torch.stack(
                [image.roll(move, (1, 2)) for image, move in pairs]
            ),
            "all images are moved by the offset of the first": _moved(
                images, moves[:1].expand_as(moves)
            ),
            "rows and columns are swapped: the first number moves down, the second right": _moved(
                images, flipped
            ),
            "images move the wrong way: positive numbers move down and to the right": _moved(
                images, -moves
            ),
            "up and down are swapped": _moved(images, moves * torch.tensor([-1, 1])),
            "left and right are swapped": _moved(images, moves * torch.tensor([1, -1])),
            "rows and columns are swapped, and images move the wrong way": _moved(images, -flipped),
            "pixels at the edge are repeated: zeros should move in": _moved(
                images, moves, edge=True
            ),
            "the images do not move": images,
        }
        example = (
            "an offset (1, 2) should move an image 1 pixel down and 2 to the right, with "
            "zeros where nothing was"
        )
        compare(call(images, moves), _moved(images, moves), wrong, example)
    pixels = x.clone().requires_grad_()
    moved = call(pixels, offsets)
    if not moved.requires_grad:
        raise Mistake(
            "no gradient passes through your shift, so distilled images would never change: "
            "leave out detach, data, no_grad and copies made with torch.tensor"
        )
    (gradient,) = torch.autograd.grad((moved * weights).sum(), pixels, allow_unused=True)
    if gradient is None or not close(gradient, _moved(weights, -offsets)):
        raise Mistake(
            "the gradient in the pixels is not that of a shift, which moves it back by the same "
            "offsets"
        )
    good("images move with zeros behind them, and the gradient finds its way back to the pixels")


def accuracy(function: Callable, seed: int = 0) -> None:
    """Percent, over batches of unequal size, without a graph."""
    for n, batch in ((33, 5), (7, 50)):
        generator = torch.Generator().manual_seed(seed + n)
        labels = torch.randint(5, (n,), generator=generator)
        said = torch.where(torch.rand(n, generator=generator) < 0.5, labels, (labels + 1) % 5)
        # the last batch, which is smaller, does better
        said[-3:], said[:2] = (
            labels[-3:],
            (labels[:2] + 1) % 5,
        )
        images = (
            F.one_hot(said, 5)[:, :, None, None] + torch.rand(n, 5, 1, 1, generator=generator) / 2
        )
        network = _Recorder()
        value = ask(function, network, images, labels, batch, forbid=(networks,))
        try:
            number = float(value)  # pyright: ignore[reportArgumentType]  (whatever a student returns)
        except Exception:  # of a student's object, it may be any
            raise Mistake(f"`accuracy` should return one number, not {describe(value)}") from None
        if network.graph:
            raise Mistake(
                "a graph is built for a gradient that nobody asks for: work under torch.no_grad()"
            )
        if max(network.sizes, default=0) > batch:
            raise Mistake(
                f"with a batch of {batch} the network gets {max(network.sizes)} images at once: "
                "there may not be "
                "memory for all of them"
            )
        hit, batches = (said == labels).double(), -(-n // batch)
        percent, full = 100 * hit.mean(), (n // batch * batch) or n
        averaged = torch.stack([part.mean() for part in hit.split(batch)]).mean()
        wrong = {
            "this is a share between 0 and 1: accuracy is asked for in percent": hit.mean(),
            "the hits of the last batch, which is smaller, are left out": 100
            * hit[:full].sum()
            / n,
            "this is the number of hits: accuracy is their share, in percent": hit.sum(),
            "this is the share of errors: accuracy is the share of hits": 100 - percent,
            "the average of the batches' accuracies counts the images of a small last batch too "
            "much: "
            "count the hits, and divide once": 100 * averaged,
            "the last batch, which is smaller, is left out": 100 * hit[:full].mean(),
            "hits are divided as if the last batch were full": 100 * hit.sum() / (batch * batches),
        }
        otherwise = (
            f"{int(hit.sum())} of {n} images are classified as their labels, which is "
            f"{percent:.2f} percent"
        )
        compare(number, percent, wrong, f"{otherwise}: you have {number:.2f}")
    good("every image counts once, in percent, in batches and without a graph")


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
        raise Mistake(
            f"`{name}` returns complex numbers: for a symmetric matrix take `torch.linalg.eigh`, "
            "not `eig`"
        )
    return value.cpu()


def _images(n: int, shape: tuple[int, int, int], seed: int) -> Tensor:
    """n correlated images in [0, 1]."""
    generator, size = torch.Generator().manual_seed(seed), shape[0] * shape[1] * shape[2]
    x = (
        torch.randn(n, size, generator=generator)
        @ torch.randn(size, size, generator=generator)
        / size**0.5
    )
    return (x + torch.randn(size, generator=generator)).sigmoid().view(n, *shape)


def _whitening(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """n images, a mean, and a matrix that whitens."""
    images = _images(100, (3, 4, 5), seed)
    variances, u = torch.linalg.eigh(images.flatten(1).T.cov())
    return images[:n], images.mean(0), u * (variances + 0.1).rsqrt() @ u.T


def _moved(images: Tensor, offsets: Tensor, edge: bool = False) -> Tensor:
    """Each image moved by its offset (down, right); zeros, or with `edge` the outermost pixels,
    move in.
    """
    (height, width), moved = images.shape[2:], []
    for image, (down, right) in zip(images, offsets.tolist(), strict=True):
        r, c = torch.arange(height) - down, torch.arange(width) - right
        inside = ((r >= 0) & (r < height))[:, None] & ((c >= 0) & (c < width))
        new = image[:, r.clamp(0, height - 1)][:, :, c.clamp(0, width - 1)]
        moved.append(new if edge else new * inside)
    return torch.stack(moved)
