"""Choose the device for a network: the one requested, or the best available."""

from __future__ import annotations

import torch

from qpnuclei.errors import DeviceError, UsageError


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
            f"device {name!r} was requested, but there are {torch.cuda.device_count()} CUDA GPUs",
            "GPUs count from cuda:0",
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceError(
            "device 'mps' was requested, but this machine has no Apple Metal",
            "use --device auto or cpu",
        )
    return device
