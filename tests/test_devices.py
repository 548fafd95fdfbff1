"""A device that is unknown or not there is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from small import NETWORK, TEACHERS, refused, small_recipe

import ddpp
from ddpp.baselines import dm, selection
from ddpp.foundation import provenance
from ddpp.foundation.devices import find_device
from ddpp.foundation.loop import Saving


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


@pytest.mark.parametrize(
    "source, found",
    [
        ({"url": "https://a.b/c", "vcs_info": {"vcs": "git", "commit_id": "0123456789abcdef"}}, 12),
        ({"url": "file:///nowhere", "dir_info": {}}, None),
        ({}, None),
    ],
)
def test_an_installed_copy_knows_the_commit_that_it_was_made_from(source, found, monkeypatch):
    def none(*_, **__):
        raise OSError

    known = SimpleNamespace(read_text=lambda name: json.dumps(source))
    monkeypatch.setattr(provenance, "distribution", lambda name: known)
    monkeypatch.setattr(provenance.subprocess, "run", none)  # it is in no repository
    assert provenance.commit.__wrapped__() == (found and "0123456789ab")


def test_float32_means_float32_whatever_was_set_before():
    before = torch.get_float32_matmul_precision()
    finer = hasattr(torch.backends, "fp32_precision")
    try:
        torch.set_float32_matmul_precision("high")
        if finer:
            torch.backends.fp32_precision = "tf32"
        find_device("cpu")
        assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "highest"
        if finer:
            assert torch.backends.cudnn.conv.fp32_precision == "ieee"
            assert torch.backends.cuda.matmul.fp32_precision == "ieee"
    finally:
        if finer:
            torch.backends.fp32_precision = "none"
        torch.set_float32_matmul_precision(before)


def test_tensors_are_made_on_the_cpu_unless_ddpp_says_otherwise():
    with torch.device("meta"), refused("has made meta the place", "give the device to load_data"):
        find_device("cpu")


def test_nothing_is_trained_without_gradients_or_in_16_bits(npz):
    with torch.no_grad():
        data = ddpp.load_data(npz(), device="cpu")
        real = selection.random(data, 1, {"name": "convnet", "width": 4, "depth": 1})
    begin = (
        lambda: ddpp.train_teachers(data, TEACHERS, progress=False),
        lambda: dm.distill(data, NETWORK, dm.DMConfig(steps=1), Saving(progress=False)),
        lambda: ddpp.evaluate(real, data, repeats=1, progress=False),
    )
    for call in begin:
        for off in (torch.no_grad, torch.inference_mode):
            with off(), refused("gradients are switched off", "call this outside"):
                call()
        with torch.autocast("cpu", torch.bfloat16), refused("autocast is on", "outside of it"):
            call()
    with torch.autocast("cpu", torch.bfloat16), refused("autocast is on"):
        ddpp.load_data(npz(), device="cpu")


def test_float32_means_float32_in_a_process_that_is_given_its_data(npz, tmp_path):
    # a process that has just started has PyTorch's own setting, which is TF32 for convolutions
    given = ddpp.load_data(npz(), device="cpu")
    torch.backends.cudnn.allow_tf32 = True
    base = small_recipe(npz(), "ddpp", ipc=1, repeats=1)
    ddpp.compare("signed", recipe=base, seeds=1, data=given, folder=tmp_path, progress=False)
    assert not torch.backends.cudnn.allow_tf32
