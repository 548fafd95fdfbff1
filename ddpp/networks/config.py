"""Which network to build, by name or by a class of one's own."""

import inspect
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial

import torch
from torch import nn

from ddpp.foundation.errors import Count, Error, check_bounds, choose
from ddpp.networks import checks
from ddpp.networks.architectures import ARCHITECTURES
from ddpp.networks.flat import Flat


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
    # with those of channels, classes, image_size, width and depth that it has as parameters, also
    # where it has defaults for them
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
    ) -> Flat:
        """Build the network, or return the one that was built for equal arguments before.

        - channels: of an image.
        - classes: number of logits.
        - image_size: side of the square images, in pixels.
        - device: where it computes. Default "cpu".

        Raises Error for a network that cannot be used here, see `Flat` and `check`.
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
) -> Flat:
    """Build config's network by the class that its name stands for now.

    More parameters than elsewhere: they are what the cache tells networks apart by. `mark` is the
    class's fingerprint, which changes with what its code uses.
    """
    sizes = {
        "channels": channels,
        "classes": classes,
        "width": config.width,
        "depth": config.depth,
        "image_size": image_size,
    }
    sizes = {name: size for name, size in sizes.items() if config.takes(name)}
    before = ARCHITECTURES.marks(config.name)
    network = Flat(partial(architecture, **sizes), device, str(config.name))
    checks.check(network, (channels, image_size, image_size), classes)
    ARCHITECTURES.check_unchanged(before)
    if mark and torch.equal(network.initial(0), network.initial(1)):
        warnings.warn(
            f"the network '{network.name}' has the same parameters whatever the seed, so all its "
            "trainings start at one point: does it seed PyTorch itself?",
            stacklevel=3,
        )
    for name in {"width", "depth"} & sizes.keys() if mark else ():
        own = inspect.signature(architecture).parameters.get(name)
        usual = getattr(NetworkConfig, name)
        if own and own.default not in (own.empty, usual) and sizes[name] == usual:
            warnings.warn(
                f"the network '{network.name}' is made with {name} {usual}, as nothing else was "
                f"asked for, and not with its own default, {own.default}: give NetworkConfig the "
                f"{name}",
                stacklevel=3,
            )
    return network
