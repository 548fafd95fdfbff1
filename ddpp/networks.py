"""Networks, and a network seen as a function of one flat parameter vector, which is how Eqs. (3) and (4) see it."""

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ddpp.errors import Error, choose


class ConvNet(nn.Sequential):
    """The ConvNet of Gidaris & Komodakis (2018) as the field uses it: 3 blocks of 128 channels, 320,010 parameters
    for CIFAR-10. Block: 3x3 convolution, normalization of each channel of each image, ReLU, 2x2 average pooling."""

    def __init__(self, channels=3, classes=10, width=128, depth=3, image_size=32):
        side = image_size // 2**depth
        if side < 1:
            raise Error(
                f"a ConvNet of depth {depth} halves the image {depth} times, which {image_size} x {image_size} pixels "
                f"do not allow: use larger images or a depth of at most {image_size.bit_length() - 1}"
            )
        blocks = []
        for i in range(depth):
            blocks += [
                nn.Conv2d(width if i else channels, width, kernel_size=3, padding=1),
                nn.GroupNorm(width, width),  # one group per channel: "instance norm" with learned scale and shift
                nn.ReLU(),
                nn.AvgPool2d(2),
            ]
        super().__init__(*blocks, nn.Flatten(), nn.Linear(width * side**2, classes))


ARCHITECTURES = {"convnet": ConvNet}


@dataclass(frozen=True)
class NetworkConfig:
    """Which network; channels, classes and image size come from the data."""

    name: str = "convnet"
    width: int = 128
    depth: int = 3

    @lru_cache(maxsize=8)  # noqa: B019  (few and small; runs of one network share it, with what was compiled for it)
    def build(self, channels: int, classes: int, image_size: int, device="cpu") -> "Flat":
        architecture = ARCHITECTURES[choose("network", self.name, ARCHITECTURES)]
        for field in ("width", "depth"):
            if getattr(self, field) < 1:
                raise Error(f"the network's {field} is {getattr(self, field)}: it must be at least 1")
        make = lambda: architecture(channels, classes, self.width, self.depth, image_size)
        return Flat(make, device)


class Flat:
    """A network as a function of one vector: logits = network(theta, images), with theta of `size` = p entries."""

    def __init__(self, make, device="cpu"):
        self._make = make
        with torch.device("meta"):  # only names and shapes are needed: theta brings the values
            self._module = make()
        self.device = device
        self.shapes = {name: p.shape for name, p in self._module.named_parameters()}
        self.size = sum(shape.numel() for shape in self.shapes.values())

    def __call__(self, theta: Tensor, images: Tensor) -> Tensor:
        return functional_call(self._module, self.unflatten(theta), (images,))

    def features(self, theta: Tensor, images: Tensor) -> Tensor:
        """What the last linear layer sees, (n, d)."""
        return self.activations(theta, images, kinds=())[-1]

    def activations(self, theta: Tensor, images: Tensor, kinds=(nn.ReLU,)) -> list[Tensor]:
        """The output of each layer of these kinds, in order, then what the last linear layer sees, (n, d)."""
        seen, modules = [], list(self._module.modules())
        last = [module for module in modules if isinstance(module, nn.Linear)][-1]
        hooks = [m.register_forward_hook(lambda m, x, y: seen.append(y)) for m in modules if isinstance(m, kinds)]
        hooks.append(last.register_forward_pre_hook(lambda m, x: seen.append(x[0])))
        try:
            self(theta, images)
        finally:
            for hook in hooks:
                hook.remove()
        return seen

    def initial(self, seed: int) -> Tensor:
        """A fresh initialization (PyTorch's default distributions) as a vector; a function of the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would also reseed the caller's GPU
            module = self._make()
        return torch.cat([p.detach().flatten() for p in module.parameters()]).to(self.device)

    def unflatten(self, theta: Tensor) -> dict[str, Tensor]:
        """Views of theta (p,) as the named, shaped parameters; also splits a mask by layer."""
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        return {name: part.view(shape) for part, (name, shape) in zip(parts, self.shapes.items(), strict=True)}


@torch.no_grad()
def accuracy(network: Flat, theta: Tensor, images: Tensor, labels: Tensor, batch: int = 500) -> float:
    """Share of images (N, C, H, W) that the network classifies as labels (N,), in percent."""
    parts = zip(images.split(batch), labels.split(batch), strict=True)
    hits = sum((network(theta, x).argmax(1) == y).sum() for x, y in parts)
    return 100 * int(hits) / len(labels)
