"""Networks, and a network seen as a function of one flat parameter vector, which is how Eqs. (3)
and (4) see it.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddpp.foundation.errors import Error, choose
from ddpp.foundation.identity import Table
from ddpp.foundation.seeds import generator


class ConvNet(nn.Sequential):
    """The ConvNet of Gidaris & Komodakis (2018) as the field uses it: 3 blocks of 128 channels,
    320,010 parameters
    for CIFAR-10. Block: 3x3 convolution, normalization of each channel of each image, ReLU, 2x2
    average pooling."""

    def __init__(self, channels=3, classes=10, width=128, depth=3, image_size=32):
        side = image_size // 2**depth
        if side < 1:
            raise Error(
                f"a ConvNet of depth {depth} halves the image {depth} times, which {image_size} "
                f"x {image_size} pixels "
                "do not allow: use larger images or a depth of at most "
                f"{image_size.bit_length() - 1}"
            )
        blocks = []
        for i in range(depth):
            blocks += [
                nn.Conv2d(width if i else channels, width, kernel_size=3, padding=1),
                # one group per channel: "instance norm" with learned scale and shift
                nn.GroupNorm(width, width),
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        super().__init__(*blocks, nn.Flatten(), nn.Linear(width * side**2, classes))


class AlexNet(nn.Sequential):
    """AlexNet (Krizhevsky et al., 2012) in the field's cut for images of 32 x 32: five
    convolutions, the only ones here
    without normalization, 2x2 max pooling after the first, second and last, one linear layer;
    1,872,202 parameters."""

    def __init__(self, channels=3, classes=10, width=128, image_size=32):
        _need(8, image_size, "an AlexNet halves the image three times, which leaves nothing of it")
        layers = []
        for published, kernel, pools in (
            (128, 5, 1),
            (192, 5, 1),
            (256, 3, 0),
            (192, 3, 0),
            (192, 3, 1),
        ):
            before, channels = channels, _scaled(published, width)
            layers += [
                nn.Conv2d(before, channels, kernel, padding=kernel // 2),
                nn.ReLU(),
                *[nn.MaxPool2d(2)] * pools,
            ]
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(channels * (image_size // 8) ** 2, classes)
        )


class VGG11(nn.Sequential):
    """VGG11 (Simonyan & Zisserman, 2015) in the field's cut: eight 3x3 convolutions with the
    ConvNet's normalization,
    2x2 max pooling after the first, second, fourth, sixth and last, one linear layer; 9,231,114
    parameters."""

    def __init__(self, channels=3, classes=10, width=128, image_size=32):
        _need(
            32,
            image_size,
            "the last normalization of a VGG11 has a single pixel to go by, and makes it 0",
        )
        layers = []
        for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for published in stage:
                before, channels = channels, _scaled(published, width)
                layers += [*_convolution(before, channels, bias=True), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(channels * (image_size // 32) ** 2, classes)
        )


class ResNet18(nn.Sequential):
    """ResNet18 (He et al., 2016) for small images: a first convolution of 3x3 without pooling, four
    stages of two
    blocks, the mean of each map, one linear layer; normalization as in the ConvNet; 11,173,962
    parameters."""

    def __init__(self, channels=3, classes=10, width=128, image_size=32):
        _need(
            9,
            image_size,
            "the last normalization of a ResNet18 has a single pixel to go by, and makes it 0",
        )
        before = _scaled(64, width)
        layers = [*_convolution(channels, before), nn.ReLU()]
        for published, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            after = _scaled(published, width)
            layers += [Residual(before, after, stride), Residual(after, after)]
            before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Residual(nn.Module):
    """Two convolutions, to whose result the input is added: as it is, or where the shape changes
    through a 1x1
    convolution."""

    def __init__(self, before: int, after: int, stride: int = 1):
        super().__init__()
        self.body = nn.Sequential(
            *_convolution(before, after, stride), nn.ReLU(), *_convolution(after, after)
        )
        same = stride == 1 and before == after
        self.shortcut = (
            nn.Identity() if same else nn.Sequential(*_convolution(before, after, stride, kernel=1))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.body(x) + self.shortcut(x))


def _convolution(
    before: int, after: int, stride: int = 1, kernel: int = 3, bias: bool = False
) -> list[nn.Module]:
    """A convolution, and the normalization of each channel of each image."""
    return [
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=bias),
        nn.GroupNorm(after, after),
    ]


def _scaled(published: int, width: int) -> int:
    """A layer's channels, where 128 stands for as many as published."""
    return max(1, published * width // 128)


def _need(least: int, image_size: int, why: str) -> None:
    if image_size < least:
        raise Error(
            f"{why} in images of {image_size} x {image_size}: use images of at least {least} x "
            f"{least} pixels"
        )


# called with channels, classes, width and image_size, the ConvNet also with its depth
ARCHITECTURES = Table(
    "network", {"convnet": ConvNet, "alexnet": AlexNet, "vgg11": VGG11, "resnet18": ResNet18}
)


@dataclass(frozen=True)
class NetworkConfig:
    """Which network; channels, classes and image size come from the data."""

    name: str = "convnet"  # or alexnet, vgg11, resnet18
    # 128: every layer as wide as published; others in proportion, as 32: a quarter of the channels
    width: int = 128
    depth: int = 3  # blocks of the ConvNet; the others have a depth of their own

    def build(
        self, channels: int, classes: int, image_size: int, device: torch.device | str = "cpu"
    ) -> "Flat":
        """The network for images (n, channels, image_size, image_size). Raises Error for one that
        cannot be used here,
        see `Flat`."""
        architecture = ARCHITECTURES[choose("network", self.name, ARCHITECTURES)]
        for field in ("width", "depth"):
            if getattr(self, field) < 1:
                raise Error(
                    f"the network's {field} is {getattr(self, field)}: it must be at least 1"
                )
        return _build(self, architecture, channels, classes, image_size, device)


@lru_cache(maxsize=8)  # few and small; runs of one network share it, with what was compiled for it
def _build(
    config: NetworkConfig,
    architecture: Callable[..., nn.Module],
    channels: int,
    classes: int,
    image_size: int,
    device: torch.device | str,
) -> "Flat":
    """config's network, made by the class that bears its name at the moment."""
    sizes = {
        "channels": channels,
        "classes": classes,
        "width": config.width,
        "image_size": image_size,
    }
    sizes |= {"depth": config.depth} if architecture is ConvNet else {}
    network = Flat(lambda: architecture(**sizes), device, config.name)
    network.check((channels, image_size, image_size), classes)
    return network


class Flat:
    """A network as a function of one vector: logits = network(theta, images), with theta of `size`
    = p entries.

    `make` returns the module, freshly initialized. It is computed as it is, in the mode in which it
    is made; buffers are constants of the network. Raises Error where that would not be a function
    of theta and the images alone: for dropout and running averages that are in use. Parameters that
    are frozen are refused, as theta has them all.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        device: torch.device | str = "cpu",
        name: str = "network",
    ):
        self._make, self.name = make, name
        self._module = self._fresh(0).to(device)
        self.device = device
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        # whether an image's logits depend on the others of its batch; `check` finds out
        self.mixes = False

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        return functional_call(self._module, self.unflatten(theta), (plain(images),))

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the last linear layer sees, (n, d)."""
        return self.activations(theta, images, kinds=())[-1]

    def activations(
        self, theta: Tensor, images: Tensor, kinds: tuple[type[nn.Module], ...] = (nn.ReLU,)
    ) -> list[Tensor]:
        """The output of each layer of these kinds, in order, then what the last linear layer sees,
        (n, d).
        """
        seen, modules = [], list(self._module.modules())
        last = [module for module in modules if isinstance(module, nn.Linear)][-1]
        hooks = [
            m.register_forward_hook(lambda m, x, y: seen.append(y))
            for m in modules
            if isinstance(m, kinds)
        ]
        hooks.append(last.register_forward_pre_hook(lambda m, x: seen.append(x[0])))
        try:
            self(theta, images)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def initial(self, seed: int) -> Tensor:
        """A fresh initialization (PyTorch's default distributions) as a vector; a function of the
        seed alone.
        """
        return torch.cat([p.detach().flatten() for p in self._fresh(seed).parameters()]).to(
            self.device
        )

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta (p,) as the named, shaped parameters; also splits a mask by layer."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def check(self, shape: tuple[int, int, int], classes: int) -> None:
        """Raise an Error unless images `(n, *shape)` become logits `(n, classes)`, twice the same,
        and change nothing.

        Made for networks of a user's own: what goes wrong here would go wrong silently, or late, in
        a run.
        """
        module, what = self._fresh(0), f"the network '{self.name}'"
        images = torch.randn(2, *shape, generator=generator(0, "probe"), dtype=torch.float32)
        given, constants = images.clone(), {name: b.clone() for name, b in module.named_buffers()}
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            try:
                logits, again = module(images), module(given.clone())
            except Exception as e:
                size = " x ".join(map(str, shape))
                raise Error(f"{what} cannot take images of {size}: {_first_line(e)}") from e
        if not isinstance(logits, Tensor):
            raise Error(
                f"{what} returns a {type(logits).__name__}: it must return its logits alone, a "
                "tensor"
            )
        if logits.shape != (2, classes):
            raise Error(
                f"{what} returns the shape {tuple(logits.shape)} for 2 images of {classes} "
                "classes: its logits must "
                f"have the shape (2, {classes})"
            )
        if not torch.equal(images, given):
            raise Error(
                f"{what} changes the images that it is given: make a new tensor instead of "
                "changing theirs"
            )
        if not all(torch.equal(b, constants[name]) for name, b in module.named_buffers()):
            raise Error(
                f"{what} changes its buffers when it is called: here they must be constants"
            )
        if not torch.equal(logits.nan_to_num(), again.nan_to_num()):
            raise Error(
                f"{what} gives the same images other logits each time: leave out dropout and "
                "other chance"
            )
        with torch.no_grad():
            self.mixes = not torch.allclose(module(given[:1]), logits[:1], rtol=1e-3, atol=1e-4)

    def _fresh(self, seed: int) -> nn.Module:
        """A module of its own, initialized by the seed; an Error for one that is no function of its
        parameters.
        """
        with torch.random.fork_rng(devices=[]), single_precision():
            # torch.manual_seed would also reseed the caller's GPU
            torch.default_generator.manual_seed(seed)
            try:
                module = self._make()
            except Error:
                raise
            except Exception as e:
                raise Error(f"the network '{self.name}' cannot be made: {_first_line(e)}") from e
        if problem := _problem(module):
            raise Error(f"the network '{self.name}' {problem}")
        return module


def plain(images: Tensor) -> Tensor:
    """The same images (n, C, H, W), each channel after the other in memory, as PyTorch lays out a
    new tensor.

    Otherwise the order of memory decides which convolution is taken, and one of oneDNN's for
    channels-last inputs (1x1, stride 2, fewer than 8 channels, on processors without AVX-512)
    writes where it must not. `contiguous()` is not
    enough: images of one channel count as contiguous in either order.
    """
    strides, size = [], 1
    for n in reversed(images.shape):
        strides.append(size)
        size *= n
    if images.stride() == tuple(reversed(strides)):
        return images
    return images.clone(memory_format=torch.contiguous_format)


@contextlib.contextmanager
def single_precision() -> Iterator[None]:
    """float32 as the default type, whatever the caller's is: a network is a function of its seed
    alone.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _problem(module: nn.Module) -> str:
    """Why a module is no function of one vector of parameters and the images; empty where it is."""
    if not isinstance(module, nn.Module):
        return f"is a {type(module).__name__}: it must be an nn.Module"
    parameters = dict(module.named_parameters())
    if not parameters:
        return "has no parameters: there is nothing to train"
    for name, p in parameters.items():
        if nn.parameter.is_lazy(p):
            return (
                f"has a parameter whose size is not known yet, {name}: use layers that are "
                "given their sizes"
            )
        if not p.requires_grad:
            return (
                f"has a frozen parameter, {name}: here all are trained; make it a buffer "
                "(register_buffer)"
            )
        if p.dtype != torch.float32:
            return f"has a parameter of the type {p.dtype}, {name}: they must be float32"
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.dropout._DropoutNd) and layer.training and layer.p > 0:
            return (
                f"has dropout, {name}: a step must be a function of the parameters; leave it "
                "out, or set p to 0"
            )
        if (
            isinstance(layer, nn.modules.batchnorm._NormBase)
            and layer.running_mean is not None
            and layer.training
        ):
            return (
                f"keeps running averages, {name}: use GroupNorm, InstanceNorm2d, or BatchNorm2d "
                "with "
                "track_running_stats=False, which takes the statistics of each batch"
            )
    return ""


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:300]}"


@torch.no_grad()
def accuracy(
    network: Flat, theta: Tensor, images: Tensor, labels: Tensor, batch: int = 500
) -> float:
    """Share of images (N, C, H, W) that the network classifies as labels (N,), in percent."""
    if network.mixes:  # then no batch may be all of one class, as those of a sorted data set are
        count = -(-len(labels) // batch)
        parts = [(images[i::count], labels[i::count]) for i in range(count)]
    else:
        parts = list(zip(images.split(batch), labels.split(batch), strict=True))
    hits = sum((network(theta, x).argmax(1) == y).sum() for x, y in parts)
    return 100 * int(hits) / len(labels)
