"""Networks, and `Flat`: a network as a function of one flat parameter vector, as in Eq. (3)."""

import contextlib
import copy
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Count, Error, check_bounds, choose, first_line
from ddpp.foundation.identity import Table
from ddpp.foundation.seeds import drawn, generator


class Layers(nn.Sequential):
    """Layers in their order. A slice of them is an nn.Sequential that shares them."""

    def __getitem__(self, index):
        if isinstance(index, slice):
            return nn.Sequential(OrderedDict([*self._modules.items()][index]))
        return super().__getitem__(index)


class ConvNet(Layers):
    """The ConvNet of Gidaris & Komodakis (2018) as the field uses it.

    A block: 3x3 convolution, normalization of each channel of each image, ReLU, 2x2 average
    pooling. Three blocks of 128 channels and a linear layer have 320,010 parameters for CIFAR-10.
    MTT's code has a wider border around grey images; here it is 1 pixel for all.

    - channels: of an image.
    - classes: number of logits.
    - width: channels of each block.
    - depth: number of blocks.
    - image_size: side of the square images, in pixels, at least 2**depth; else Error.

    >>> import ddpp, torch
    >>> network = ddpp.ConvNet(channels=3, classes=10)
    >>> sum(p.numel() for p in network.parameters())
    320010
    >>> network(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, channels=3, classes=10, width=128, depth=3, image_size=32):
        side = image_size // 2**depth
        if side < 1:
            raise Error(
                f"a ConvNet of depth {depth} halves the image {depth} times, which {image_size} x "
                f"{image_size} pixels do not allow: use larger images or a depth of at most "
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


class AlexNet(Layers):
    """AlexNet (Krizhevsky et al., 2012) in the field's version for images of 32 x 32.

    Five convolutions, the only ones here without normalization, with 2x2 max pooling after the
    first, second and last, and one linear layer. 1,872,202 parameters for CIFAR-10. Arguments as in
    `NetworkConfig.build`. A width of 128 gives the published channels.
    """

    def __init__(self, channels=3, classes=10, width=128, image_size=32):
        why = "an AlexNet halves the image three times, which leaves nothing of it"
        _need(8, image_size, why)
        layers = []
        plan = ((128, 5, 1), (192, 5, 1), (256, 3, 0), (192, 3, 0), (192, 3, 1))
        for published, kernel, pools in plan:
            before, channels = channels, _scaled(published, width)
            layers += [
                nn.Conv2d(before, channels, kernel, padding=kernel // 2),
                nn.ReLU(),
                *[nn.MaxPool2d(2)] * pools,
            ]
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(channels * (image_size // 8) ** 2, classes)
        )


class VGG11(Layers):
    """VGG11 (Simonyan & Zisserman, 2015) in the field's version for images of 32 x 32.

    Eight 3x3 convolutions with the ConvNet's normalization, with 2x2 max pooling after the first,
    second, fourth, sixth and last, and one linear layer. 9,231,114 parameters for CIFAR-10.
    Arguments as in `NetworkConfig.build`. A width of 128 gives the published channels.
    """

    def __init__(self, channels=3, classes=10, width=128, image_size=32):
        why = "the last normalization of a VGG11 sees a single pixel and makes it 0"
        _need(32, image_size, why)
        layers = []
        for stage in ((64,), (128,), (256, 256), (512, 512), (512, 512)):
            for published in stage:
                before, channels = channels, _scaled(published, width)
                layers += [*_convolution(before, channels, bias=True), nn.ReLU()]
            layers.append(nn.MaxPool2d(2))
        super().__init__(
            *layers, nn.Flatten(), nn.Linear(channels * (image_size // 32) ** 2, classes)
        )


class ResNet18(Layers):
    """ResNet18 (He et al., 2016) in the field's version for small images.

    A first convolution of 3x3 without pooling, four stages of two residual blocks, the mean of each
    map, and one linear layer. The normalization is the ConvNet's. 11,173,962 parameters for
    CIFAR-10. Arguments as in `NetworkConfig.build`. A width of 128 gives the published channels.
    """

    def __init__(self, channels=3, classes=10, width=128, image_size=32):
        why = "the last normalization of a ResNet18 sees a single pixel and makes it 0"
        _need(9, image_size, why)
        before = _scaled(64, width)
        layers = [*_convolution(channels, before), nn.ReLU()]
        for published, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
            after = _scaled(published, width)
            layers += [Residual(before, after, stride), Residual(after, after)]
            before = after
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, classes))


class Residual(nn.Module):
    """A residual block: the sum of two convolutions and the input.

    Where the shape changes, the input goes through a 1x1 convolution.
    """

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
    """Make a convolution and the normalization of each channel of each image."""
    return [
        nn.Conv2d(before, after, kernel, stride, padding=kernel // 2, bias=bias),
        nn.GroupNorm(after, after),
    ]


def _scaled(published: int, width: int) -> int:
    """Scale a layer's published channels in proportion to the width; 128 keeps them."""
    return max(1, published * width // 128)


def _need(least: int, image_size: int, why: str) -> None:
    if image_size < least:
        raise Error(
            f"{why} in images of {image_size} x {image_size}: use images of at least {least} x "
            f"{least} pixels"
        )


# Each is called with those of channels, classes, width, depth and image_size that it takes.
ARCHITECTURES = Table(
    "network", {"convnet": ConvNet, "alexnet": AlexNet, "vgg11": VGG11, "resnet18": ResNet18}
)


@dataclass(frozen=True)
class NetworkConfig:
    """Which network to build. Channels, classes and image size come from the data.

    >>> import ddpp, torch
    >>> config = ddpp.NetworkConfig("convnet", width=32)
    >>> network = config.build(channels=3, classes=10, image_size=32)
    >>> network.size, network(network.initial(seed=0), torch.zeros(2, 3, 32, 32)).shape
    (24714, torch.Size([2, 10]))
    """

    # or alexnet, vgg11, resnet18; or a class or function of your own that makes the module, called
    # with those of channels, classes, image_size, width and depth that it has as parameters
    name: str | Callable[..., nn.Module] = "convnet"
    # 128: every layer as wide as published; others in proportion, as 32: a quarter of the channels
    width: Count = 128
    depth: Count = 3  # blocks of the ConvNet; the others have a depth of their own

    def __post_init__(self):
        check_bounds(self, "the network's ")
        object.__setattr__(self, "name", ARCHITECTURES.name_of(self.name))

    def takes(self, name: str) -> bool:
        """Tell whether the network is built by a parameter, as "width" or "depth"."""
        made_by = ARCHITECTURES[choose("network", self.name, ARCHITECTURES)]
        taken = inspect.signature(made_by).parameters
        fixed = getattr(made_by, "keywords", {})  # of a functools.partial
        any_name = any(one.kind is one.VAR_KEYWORD for one in taken.values())
        return (name in taken or any_name) and name not in fixed

    def of_width(self, width: int) -> "NetworkConfig":
        """Return the network with another width. Raises Error for one that has none to choose."""
        other = replace(self, width=width)
        if not self.takes("width"):
            raise Error(f"the network {self.name} has no width to choose: leave width out")
        return other

    def build(
        self, channels: int, classes: int, image_size: int, device: torch.device | str = "cpu"
    ) -> "Flat":
        """Build the network, or return the one that was built for equal arguments before.

        - channels: of an image.
        - classes: number of logits.
        - image_size: side of the square images, in pixels.
        - device: where it computes. Default "cpu".

        Raises Error for a network that cannot be used here, see `Flat`.
        """
        architecture = ARCHITECTURES[choose("network", self.name, ARCHITECTURES)]
        mark = "".join(ARCHITECTURES.marks(self.name).values())
        return _build(self, architecture, mark, channels, classes, image_size, device)


@lru_cache(maxsize=8)  # few and small; runs of one network share it, with what was compiled for it
def _build(
    config: NetworkConfig,
    architecture: Callable[..., nn.Module],
    mark: str,
    channels: int,
    classes: int,
    image_size: int,
    device: torch.device | str,
) -> "Flat":
    """Build config's network by the class that its name stands for now.

    More parameters than elsewhere: they are what the cache tells networks apart by. `mark` is the
    class's fingerprint, which changes with what its code uses.
    """
    sizes = {
        "channels": channels,
        "classes": classes,
        "width": config.width,
        "image_size": image_size,
    }
    sizes |= {"depth": config.depth}
    sizes = {name: size for name, size in sizes.items() if config.takes(name)}
    before = ARCHITECTURES.marks(config.name)
    network = Flat(partial(architecture, **sizes), device, str(config.name))
    network.check((channels, image_size, image_size), classes)
    ARCHITECTURES.check_unchanged(before)
    if mark and torch.equal(network.initial(0), network.initial(1)):
        warnings.warn(
            f"the network '{network.name}' has the same parameters whatever the seed, so all its "
            "trainings start at one point: does it seed PyTorch itself?",
            stacklevel=3,
        )
    return network


class Flat:
    """A network as a function of one vector: logits = network(theta, images).

    - make: returns the module, freshly initialized. The module is used as it is, in the mode (train
      or eval) in which it is made.
    - device: where theta and the images are. Default "cpu".
    - name: for messages.

    theta has `size` = p entries, all parameters of the module. Buffers are constants. Raises Error
    where the module would not be a function of theta and the images alone, as with dropout or
    running averages in use, and for frozen parameters.
    """

    def __init__(
        self,
        make: Callable[[], nn.Module],
        device: torch.device | str = "cpu",
        name: str = "network",
    ):
        self._make, self.name, self.device = make, name, find_device(device)
        self._module = self._fresh(0).to(self.device)
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())
        # what `check` finds out: whether an image's logits depend on its batch, and whether it
        # cannot be alone in one
        self.mixes = self.needs_company = False

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        return functional_call(self._module, self.unflatten(theta), (plain(images),))

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """Compute the input of the linear layer that is called last, (n, d): of one that is applied
        to several places of an image, all of them.
        """
        return self.activations(theta, images, kinds=())[-1]

    def activations(
        self, theta: Tensor, images: Tensor, kinds: tuple[type[nn.Module], ...] = (nn.ReLU,)
    ) -> list[Tensor]:
        """Compute the output of each layer of these kinds, in order, then the input of the linear
        layer that is called last, (n, d). Raises Error for a network that calls none.
        """
        seen, inputs, hooks = [], [], []
        for module in self._module.modules():
            if isinstance(module, kinds):
                hooks.append(module.register_forward_hook(lambda m, x, y: seen.append(y)))
            if isinstance(module, nn.Linear):
                take = lambda m, x, named: inputs.append(x[0] if x else named["input"])
                hooks.append(module.register_forward_pre_hook(take, with_kwargs=True))
        try:
            self(theta, images)
        finally:
            for hook in hooks:
                hook.remove()
        if not inputs:
            raise Error(
                f"the network '{self.name}' has no features to match, as these are the input of "
                "its last nn.Linear, and it calls none: end it with one, or choose a method that "
                "matches something else"
            )
        if len(inputs[-1]) != len(images):
            raise Error(
                f"the last nn.Linear of the network '{self.name}' is given {len(inputs[-1])} rows "
                f"for {len(images)} images, so an image has no features of its own: give it one "
                "row for each image, or choose a method that matches something else"
            )
        return [*seen, inputs[-1].flatten(1)]

    def initial(self, seed: int) -> Tensor:
        """Draw an initialization (p,) from PyTorch's default distributions, by the seed alone."""
        parameters = [p.detach().flatten() for p in self._fresh(seed).parameters()]
        return torch.cat(parameters).to(self.device)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """View theta (p,), or a mask (p,), as the named, shaped parameters."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def check(self, shape: tuple[int, int, int], classes: int) -> None:
        """Raise an Error unless images `(n, *shape)` become logits `(n, classes)`, twice the same.

        The call must change neither the images nor the buffers. This is for networks of a user's
        own: what goes wrong here would otherwise go wrong silently, or late, in a run.
        """
        what = f"the network '{self.name}'"
        # on a GPU, equal calls may differ in the last bits, and dropout would use the caller's seed
        module = self._module if self.device.type == "cpu" else self._fresh(0)
        images = torch.randn(2, *shape, generator=generator(0, "probe"), dtype=torch.float32)
        given, constants = images.clone(), {name: b.clone() for name, b in module.named_buffers()}
        before = _attributes(module)
        with torch.no_grad():
            try:
                logits, draws = drawn(lambda: module(images))
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
        if not all(torch.equal(b, constants[name]) for name, b in module.named_buffers()):
            raise Error(
                f"{what} changes its buffers when it is called: here they must be constants"
            )
        if _attributes(module) != before:
            raise Error(
                f"{what} changes an attribute when it is called, as a counter does: here its "
                "logits must depend on its parameters and the images alone"
            )
        other, moved = self._fresh(0), _moved(module, given)
        both = self._called_with(moved, module, given, what)
        self._check_fresh(module, other, what)
        if draws or not torch.equal(logits.nan_to_num(), again.nan_to_num()):
            raise Error(
                f"{what} gives the same images other logits each time: leave out dropout and "
                "other randomness"
            )
        anew = self._called_with(moved, other, given, what)
        if not torch.allclose(anew, both, rtol=1e-3, atol=1e-4, equal_nan=True):
            raise Error(
                f"{what} gives other logits than one that is made anew and has the same "
                "parameters: compute in each call what depends on them, and keep nothing of it; "
                "constants that are drawn are to be drawn from torch"
            )
        self._find_company(module, moved, given, both)
        if module is not self._module:
            self._check_device(given, what)
        self._check_parameters(given.to(self.device), what)

    def _called_with(
        self, parameters: dict[str, Tensor], module: nn.Module, images: Tensor, what: str
    ) -> Tensor:
        """Compute logits with other parameters than the module's own, which must not change."""
        given = {name: p.clone() for name, p in parameters.items()}
        try:
            with torch.no_grad():
                logits, _ = drawn(lambda: functional_call(module, given, (images,)))
        except Exception as e:
            raise Error(
                f"{what} cannot be called with other parameters than its own ({first_line(e)}): "
                "give the module that is inside of DataParallel, or a class of Python in place of "
                "what torch.jit.script made of it"
            ) from e
        if not all(torch.equal(given[name], p) for name, p in parameters.items()):
            raise Error(f"{what} changes its parameters when it is called: here only training does")
        return logits

    def _check_fresh(self, module: nn.Module, other: nn.Module, what: str) -> None:
        """Raise an Error unless a second module of the same seed has the same numbers."""
        # the one that evaluations make later must be the same function
        first, second = (
            [*made.named_parameters(), *made.named_buffers()] for made in (module, other)
        )
        for (name, one), (_, other) in zip(first, second, strict=True):
            if not ((one == other) | ((one != one) & (other != other))).all():
                raise Error(
                    f"{what} draws {name} anew each time it is made, whatever the seed: draw from "
                    "torch, or give the numbers as constants"
                )

    def _find_company(
        self, module: nn.Module, moved: dict[str, Tensor], images: Tensor, both: Tensor
    ) -> None:
        """Find out `mixes` and `needs_company`, from the logits of two images (2, C, H, W)."""
        try:
            with torch.no_grad():
                alone = functional_call(module, moved, (images[:1],))
        except Exception:  # batch statistics of a single value
            self.mixes = self.needs_company = True
        else:
            self.mixes = not torch.allclose(alone, both[:1], rtol=1e-3, atol=1e-4)

    def _check_device(self, images: Tensor, what: str) -> None:
        """Raise an Error for a network that works on the CPU alone."""
        try:
            with torch.no_grad():
                self._module(images.to(self.device))
        except Exception as e:  # of a tensor that is no buffer, say, and stayed behind
            raise Error(
                f"{what} works on the CPU, but not on {self.device}: {first_line(e)}"
            ) from e

    def double(self) -> "Flat":
        """Return the same network for float64, on the CPU."""
        other, module = copy.copy(self), self._fresh(0).double()
        for part in module.modules():  # constants that are no buffers
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    setattr(part, name, value.double())
        other._module, other.device = module, torch.device("cpu")
        return other

    def check_features(self, images: Tensor) -> None:
        """Raise an Error unless the network has features of these images, (n, C, H, W)."""
        with torch.no_grad():
            self.features(self.initial(0), images)

    def check_company(self, images: int | None, setting: str) -> None:
        """Raise an Error for a setting that leaves an image alone, and must not."""
        if self.needs_company and images == 1:
            raise Error(
                f"{setting} is 1, but the network '{self.name}' cannot take the statistics of a "
                "single image: choose 2 or more"
            )

    def check_batches(self, images: int, batch: int) -> None:
        """Raise an Error if `images` in batches leave one that is alone, and must not be."""
        if self.needs_company and (batch == 1 or images % batch == 1):
            raise Error(
                f"{images} images in batches of {batch} leave a single one, of which the network "
                f"'{self.name}' cannot take the statistics: choose another batch size"
            )

    def _check_parameters(self, images: Tensor, what: str) -> None:
        """Raise an Error if the logits depend on parameters that are no part of theta."""
        theta = self.initial(0).requires_grad_()
        try:
            logits = self(theta, images)  # kept: older torch frees the graph with its last tensor
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

    def _fresh(self, seed: int) -> nn.Module:
        """Make another module, initialized by the seed, or raise Error if it cannot be used."""
        with torch.random.fork_rng(devices=[]), single_precision():
            # not torch.manual_seed, which would also reseed the caller's GPU
            torch.default_generator.manual_seed(seed)
            try:
                module = self._make()
            except Error:
                raise
            except Exception as e:
                raise Error(f"the network '{self.name}' cannot be made: {first_line(e)}") from e
        if problem := _problem(module):
            raise Error(f"the network '{self.name}' {problem}")
        return module


def plain(images: Tensor) -> Tensor:
    """Lay out images (n, C, H, W) in memory channel after channel, as in a new tensor.

    The layout decides which convolution oneDNN takes. One of its convolutions for channels-last
    inputs (1x1, stride 2, fewer than 8 channels, on processors without AVX-512) writes out of
    bounds. `contiguous()` is not enough: images of one channel are contiguous in either layout.
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
    """Make float32 the default type, so that a network depends on its seed alone."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _problem(module: nn.Module) -> str:
    """Say why a module is no function of one parameter vector and the images. Empty if it is."""
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
        averages = isinstance(layer, nn.modules.batchnorm._NormBase) and layer.training
        if averages and layer.running_mean is not None:
            return (
                f"keeps running averages, {name}: use GroupNorm, InstanceNorm2d, or BatchNorm2d "
                "with track_running_stats=False, which takes the statistics of each batch"
            )
    return ""


def _attributes(module: nn.Module) -> list[dict]:
    """The plain values among the attributes of a module and of those inside it."""
    plain = (bool, int, float, str, tuple)
    return [
        {name: value for name, value in vars(one).items() if isinstance(value, plain)}
        for one in module.modules()
    ]


def _moved(module: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return a module's parameters after a random step: a last layer may begin at 0, where all
    logits are equal.

    Without the step where it cannot be called after it, as parameters may have bounds.
    """
    rng, own = generator(0, "moved"), {name: p.detach() for name, p in module.named_parameters()}
    draw = lambda p: torch.randn(p.shape, generator=rng, dtype=torch.float32).to(p)
    moved = {name: p + 0.1 * draw(p) for name, p in own.items()}
    try:
        with torch.no_grad():
            given = {name: p.clone() for name, p in moved.items()}
            drawn(lambda: functional_call(module, given, (images,)))
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


@torch.no_grad()
def accuracy(
    network: Flat, theta: Tensor, images: Tensor, labels: Tensor, batch: int = 500
) -> float:
    """Compute the share of images that the network classifies correctly, in percent.

    - network, theta: the function and its parameters (p,).
    - images: (N, C, H, W), preprocessed.
    - labels: (N,), int64.
    - batch: images per forward pass.
    """
    logits = in_batches(network, lambda x: network(theta, x), images, batch)
    return 100 * int((logits.argmax(1) == labels).sum()) / len(labels)


@torch.no_grad()
def in_batches(
    network: Flat, function: Callable[[Tensor], Tensor], images: Tensor, batch: int = 500
) -> Tensor:
    """Compute something of each image with a network, a batch at a time: (N, ...), in their order.

    - network: what the function calls.
    - function: of images (n, C, H, W), with one row for each.
    - images: (N, C, H, W), preprocessed.
    - batch: images per forward pass.
    """
    if not network.mixes:
        return torch.cat([function(x) for x in images.split(batch)])
    # then no batch may be all of one class, as those of a sorted data set are
    count = -(-len(images) // batch)
    parts = [function(images[i::count]) for i in range(count)]
    found = parts[0].new_empty(len(images), *parts[0].shape[1:])
    for i, part in enumerate(parts):
        found[i::count] = part
    return found
