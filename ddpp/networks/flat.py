"""`Flat`: a network as a function of one vector of all its parameters, as in Eqs. (3) and (4)."""

import contextlib
import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddpp.foundation.devices import find_device
from ddpp.foundation.errors import Error, first_line
from ddpp.foundation.seeds import ALONE, generator


class Flat:
    """A network as a function of one vector: logits = network(theta, images).

    - make: returns the module, freshly initialized. The module is used as it is, in the mode (train
      or eval) in which it is made.
    - device: where theta and the images are. Default "cpu".
    - name: for messages.

    theta has `size` = p entries, all parameters of the module. Buffers are constants. Raises Error
    where the module would not be a function of theta and the images alone, as with dropout or
    running averages in use, and for frozen parameters.

    Threads may share a network. Its calls take turns.
    """

    _first: nn.Module | None = None  # the module that was made first

    def __init__(
        self,
        make: Callable[[], nn.Module],
        device: torch.device | str = "cpu",
        name: str = "network",
    ):
        self._make, self.name, self.device = make, name, find_device(device)
        self._first = self.module = self.fresh(0)
        if self.device.type != "cpu":  # one that nobody else has
            self.module = self.fresh(0).to(self.device)
        self.shapes = {name: p.shape for name, p in self.module.named_parameters()}
        self.places = _places(self.module)
        self.size = sum(shape.numel() for shape in self.shapes.values())
        # what `ddpp.networks.check` finds out: whether an image's logits depend on its batch, and
        # whether it cannot be alone in one
        self.mixes = self.needs_company = False

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        given = self.placed(self.unflatten(theta))
        # a lock cannot be compiled, and the engine that compiles this has it
        with contextlib.nullcontext() if torch.compiler.is_compiling() else ALONE:
            return functional_call(self.module, given, (plain(images),), tie_weights=False)

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
        with ALONE:  # another thread's call would be seen, too
            for module in self.module.modules():
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
        parameters = [p.detach().flatten() for p in self.fresh(seed).parameters()]
        return torch.cat(parameters).to(self.device)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """View theta (p,), or a mask (p,), as the named, shaped parameters."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {
            name: part.view(shape)
            for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)
        }

    def placed(self, parameters: dict[str, Tensor]) -> dict[str, Tensor]:
        """Put named parameters into all places of the module where they are."""
        return {place: parameters[name] for place, name in self.places.items()}

    def double(self) -> "Flat":
        """Return the same network for float64, on the CPU."""
        other, module = copy.copy(self), self.fresh(0).double()
        for part in module.modules():  # constants that are no buffers
            for name, value in vars(part).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    setattr(part, name, value.double())
        other.module, other.device = module, torch.device("cpu")
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

    def fresh(self, seed: int) -> nn.Module:
        """Make another module, initialized by the seed, or raise Error if it cannot be used."""
        with ALONE, torch.random.fork_rng(devices=[]), _single_precision():
            # not torch.manual_seed, which would also reseed the caller's GPU
            torch.default_generator.manual_seed(seed)
            try:
                module = self._make()
            except Error:
                raise
            except Exception as e:
                raise Error(f"the network '{self.name}' cannot be made: {first_line(e)}") from e
            if _shared(module, self._first):  # a user's own, as one that is pretrained
                module = self._copied(module)
        if problem := _problem(module):
            raise Error(f"the network '{self.name}' {problem}")
        return module

    def _copied(self, module: nn.Module) -> nn.Module:
        try:
            return copy.deepcopy(module)
        except Exception as e:
            raise Error(
                f"the network '{self.name}' is the same module each time it is made, or has the "
                f"same inside, and cannot be copied ({first_line(e)}): make a new module, and what "
                "is inside, in each call"
            ) from e


@torch.no_grad()
def accuracy(
    network: Flat, theta: Tensor, images: Tensor, labels: Tensor, batch: int = 500
) -> float:
    """Compute the share of images that the network classifies correctly, in percent.

    - network, theta: the function and its parameters (p,).
    - images: (N, C, H, W), preprocessed.
    - labels: (N,), int64.
    - batch: images per forward pass.

    Raises Error unless there is one label for each image, and one image at least.
    """
    if not len(images) or labels.shape != images.shape[:1]:
        raise Error(
            f"there are labels of the shape {tuple(labels.shape)} for {len(images)} images: give "
            "(N,) for N images, at least one"
        )
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
    # then no batch may be all of one class, as those of a sorted data set are, or of one in which
    # the classes take turns
    order = torch.randperm(len(images), generator=generator(0, "in batches")).to(images.device)
    count = -(-len(images) // batch)
    batches = [order[i::count] for i in range(count)]
    rows = torch.cat([function(images[batch]) for batch in batches])
    return torch.empty_like(rows).index_copy_(0, torch.cat(batches), rows)


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


def _places(module: nn.Module) -> dict[str, str]:
    """Map each place of a parameter in a module to the parameter's name, once.

    Two layers may share a parameter, which then has two places. A layer under two names has one
    place for each of its parameters: `functional_call` would not restore it after the second.
    """
    names = {id(p): name for name, p in module.named_parameters()}
    return {
        place: names[id(p)]
        for prefix, part in module.named_modules()
        for place, p in part.named_parameters(prefix, recurse=False, remove_duplicate=False)
    }


def _shared(module: object, first: nn.Module | None) -> bool:
    """Whether a module is the first one, or has a part or a parameter of it."""
    if first is None or not isinstance(module, nn.Module):
        return False
    parts, others = (
        {*map(id, one.modules()), *map(id, one.parameters())} for one in (module, first)
    )
    return not parts.isdisjoint(others)


@contextlib.contextmanager
def _single_precision() -> Iterator[None]:
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
