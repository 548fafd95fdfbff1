"""The ConvNet of the paper, and the AlexNet, VGG11 and ResNet18 of its Table III."""

from collections import OrderedDict

import torch.nn.functional as F
from torch import Tensor, nn

from ddpp.foundation.errors import Error
from ddpp.foundation.identity import Table


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
