"""Networks, and a network as a function of one flat parameter vector, as in Eq. (3)."""

from ddpp.networks.architectures import ARCHITECTURES, VGG11, AlexNet, ConvNet, Layers, ResNet18
from ddpp.networks.checks import check
from ddpp.networks.config import NetworkConfig
from ddpp.networks.flat import Flat, accuracy, in_batches, plain

__all__ = [
    "ARCHITECTURES",
    "VGG11",
    "AlexNet",
    "ConvNet",
    "Flat",
    "Layers",
    "NetworkConfig",
    "ResNet18",
    "accuracy",
    "check",
    "in_batches",
    "plain",
]
