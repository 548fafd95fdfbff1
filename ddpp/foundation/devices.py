"""The device a run works on, and what it depends on there."""

import contextlib
import ctypes
import os
import platform
import time
import warnings
from importlib.metadata import version

import psutil
import torch

from ddpp.foundation.errors import Error


def find_device(device: str | torch.device | None = None) -> torch.device:
    """Find the device asked for, or the GPU if there is one, else the CPU, and set the process up
    for it: matrix products in full float32, and on a CPU freed memory that is kept for reuse.

    Raises Error for a device that is not there, and where PyTorch is set to round numbers.
    """
    _keep_precision()
    _check_autocast()
    usual = torch.empty(0).device  # older get_default_device do not see a `with` block's device
    if usual.type != "cpu":
        raise Error(
            f"torch.set_default_device has made {usual} the place of new tensors, and random "
            "numbers are drawn on the CPU here: set it back to 'cpu', and give the device to "
            "load_data instead"
        )
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    try:
        device = torch.device(("cuda" if found else "cpu") if device is None else device)
        # of a CPU, PyTorch takes any index and ignores it
        if device.type not in ("cpu", "cuda") or (device.type == "cpu" and device.index):
            raise RuntimeError
    except RuntimeError:
        raise Error(f"unknown device '{device}': use 'cpu' or 'cuda'") from None
    if device.type == "cuda" and (device.index or 0) >= found:
        raise Error(
            f"CUDA was asked for but PyTorch finds no {'such ' if found else ''}GPU here: "
            "use the device 'cpu', or a machine with a GPU"
        )
    if device.type == "cpu":
        _keep_memory()
    elif device.index is None:  # under torchrun, each rank on a machine takes a GPU of its own
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % found)
    return device


def check_training() -> None:
    """Raise an Error where PyTorch is set to compute no gradients, or rounded ones."""
    _check_autocast()
    if not torch.is_grad_enabled():
        raise Error(
            "gradients are switched off here, and training needs them: call this outside of "
            "torch.no_grad and torch.inference_mode, or after torch.set_grad_enabled(True)"
        )


def _check_autocast() -> None:
    """Raise an Error where PyTorch rounds numbers to 16 bits."""
    if any(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")):
        raise Error(
            "torch.autocast is on, which would round what is computed in 32 bits here: call this "
            "outside of it"
        )


def share_memory(jobs: int) -> None:
    """Let this process know how many work side by side on this machine, it included."""
    _sharing["jobs"] = jobs


def memory() -> int:
    """The bytes of the machine's memory that are for this process, also where it is one of several.

    It is not what is free now, so that equal runs make equal choices.
    """
    shares = _sharing["jobs"] * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return psutil.virtual_memory().total // shares


_sharing = {"jobs": 1}


def clock(device: torch.device) -> float:
    """Processor seconds so far, or on a GPU, which is waited for, seconds of real time."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def _keep_precision() -> None:
    """Let float32 mean float32, whatever was set before: TF32 would round to 10 bits."""
    with warnings.catch_warnings():  # PyTorch 2.9 advises its finer settings, which come below
        warnings.filterwarnings("ignore", message="Please use the new API settings")
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False
    # from PyTorch 2.9 on there are finer settings. They come last, as the older ones reset them
    for part in ("conv", "rnn"):
        if hasattr(getattr(torch.backends.cudnn, part, None), "fp32_precision"):
            getattr(torch.backends.cudnn, part).fp32_precision = "ieee"


def _keep_memory() -> None:
    """Let the C library keep freed memory for the next tensor: on a CPU that doubles the speed of a
    teacher.

    Otherwise it hands each large block back to the system, and takes it anew, page by page.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another C library than glibc
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: no block is a mapping of its own
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: nothing is given back


def made_on(device: torch.device) -> dict:
    """The device and the versions that a run depends on."""
    cuda = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if cuda else platform.processor()
    return {
        "device": f"{device.type}: {name or platform.machine()}",
        "versions": {
            "ddpp": version("ddpp"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
