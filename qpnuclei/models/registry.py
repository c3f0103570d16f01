"""Models by name: those that come with the package, and files of the user."""

from __future__ import annotations

from pathlib import Path

import torch

from qpnuclei.errors import NotFoundError

#: Where the models that come with the package lie, as ``<name>.safetensors``.
WEIGHTS_FOLDER = Path(__file__).resolve().parents[1] / "weights"


#: Instead of a model's name: the best of the package that the device can afford.
AUTO = "auto"


def affordable_model(device: torch.device) -> str:
    """Return the name of the best model in the package that a device runs in good time.

    It is ``"light"`` for a CPU, where the network is what takes longest, else ``"default"``.
    """
    return "light" if device.type == "cpu" else "default"


def resolve_model(name_or_path: str | Path, device: torch.device | None = None) -> Path:
    """Return the file of a model that comes with the package, or of a path.

    Parameters
    ----------
    name_or_path : str or pathlib.Path
        ``"auto"`` is the `affordable_model` of `device`.
    device : torch.device, optional
        Where the model is going to run. Without it, there is no ``"auto"``.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is none; the message lists the names there are.
    """
    if name_or_path == AUTO and device is not None:
        name_or_path = affordable_model(device)
    path = Path(name_or_path)
    if path.suffix == ".safetensors" or len(path.parts) > 1:
        if not path.is_file():
            raise NotFoundError(f"no model file at {path}", "give a name or a .safetensors file")
        return path
    packaged = WEIGHTS_FOLDER / f"{name_or_path}.safetensors"
    if not packaged.is_file():
        names = sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors"))
        raise NotFoundError(
            f"no model named {str(name_or_path)!r} comes with qpnuclei",
            f"there are: {', '.join(names) or 'none'}; or give the path of a .safetensors file",
        )
    return packaged
