"""Choose the device for a network: the one requested, or the best available."""

from __future__ import annotations

import ctypes
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from qpnuclei.errors import DeviceError, UsageError

if TYPE_CHECKING:
    import torch

#: The library of the NVIDIA driver.
_CUDA_DRIVERS = {"linux": "libcuda.so.1", "win32": "nvcuda.dll"}

#: Present with the AMD driver. Torch uses the name CUDA for AMD GPUs, too.
_AMD_DRIVER = Path("/dev/kfd")


def resolve_device(name: str = "auto") -> torch.device:
    """Return the torch device of this name.

    Parameters
    ----------
    name : str
        ``"auto"`` (CUDA, else MPS, else the CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.

    Raises
    ------
    qpnuclei.errors.UsageError
        If the name is unknown.
    qpnuclei.errors.DeviceError
        If the requested device is not available.
    """
    import torch  # takes seconds: see `takes_cpu`

    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"no such device: {name!r}", "use auto, cpu, cuda, cuda:N or mps")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DeviceError(
            f"device {name!r} was requested, but torch {torch.__version__} finds no CUDA GPU",
            "use --device auto or cpu; `qpnuclei doctor` shows what torch was built for",
        )
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise DeviceError(
            f"device {name!r} was requested, but torch finds {torch.cuda.device_count()} CUDA GPUs",
            "the first GPU is cuda:0",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device 'mps' was requested, but this machine has no Apple Metal",
            "use --device auto or cpu",
        )
    return device


def takes_cpu(name: str) -> bool:
    """Tell whether a device of this name is the CPU. Torch is loaded only if it may be a GPU.

    Raises
    ------
    qpnuclei.errors.UsageError, qpnuclei.errors.DeviceError
        As for `resolve_device`.

    Examples
    --------
    >>> takes_cpu("cpu")
    True
    """
    if name == "cpu" or (name == "auto" and not _may_have_gpu()):
        return True
    return resolve_device(name).type == "cpu"


def _may_have_gpu() -> bool:
    """Tell whether the machine has a GPU driver. If so, only torch knows if it can use the GPU."""
    if sys.platform == "darwin":
        return platform.machine() == "arm64"
    if _AMD_DRIVER.exists():
        return True
    try:
        ctypes.CDLL(_CUDA_DRIVERS.get(sys.platform, "libcuda.so"))
    except OSError:
        return False
    return True
