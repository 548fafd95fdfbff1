"""A device that is unknown or not there is refused."""

import pytest
import torch
from small import refused

from ddpp.foundation.devices import find_device


@pytest.mark.parametrize("device", ["gpu", "", "meta", "cpu:7"])
def test_an_unknown_device(device):
    with refused(f"unknown device '{device}'", "use 'cpu' or 'cuda'"):
        find_device(device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", torch.device("cuda")])
def test_no_gpu_where_one_is_asked_for(device):
    with refused("CUDA was asked for", "no GPU here", "use the device 'cpu'"):
        find_device(device)


def test_no_hundred_gpus():
    with refused("CUDA was asked for", "GPU here", "use the device 'cpu'"):
        find_device("cuda:99")
