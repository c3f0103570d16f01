"""Models by name: packaged models and the user's files."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from qpnuclei.choices import Speed
from qpnuclei.errors import NotFoundError, UsageError
from qpnuclei.system.arguments import check_choice

#: Folder of the packaged models, ``<name>.safetensors``.
WEIGHTS_FOLDER = Path(__file__).resolve().parents[1] / "weights"

#: The default model is the same on every machine, so that counts are comparable. It is two networks
#: (see `network_for`). The pixel size of a slide decides which of them is used.
DEFAULT_MODEL = "default"

#: The two networks, for 0.25 and for 0.5 µm/px. Under these names, they take any pixel size.
FINE_NETWORK, COARSE_NETWORK = "default-40x", "default-20x"

#: Slides with more µm/px get the coarse network (near the geometric mean of 0.25 and 0.5).
COARSE_ABOVE_MPP = 0.36


def network_for(model: str, mpp: float, speed: Speed = "auto") -> str:
    """Return the model for a slide: a network of the default if `model` is that, else `model`.

    Parameters
    ----------
    model : str
        Name or path that the user gives.
    mpp : float
        µm/px of the slide at full resolution.
    speed : {"auto", "fast"}
        With fast, the coarse network of the default takes every slide.

    Examples
    --------
    >>> network_for("default", 0.25), network_for("default", 0.5)
    ('default-40x', 'default-20x')
    >>> network_for("default", 0.25, "fast"), network_for("ours.safetensors", 0.5)
    ('default-20x', 'ours.safetensors')
    """
    if model != DEFAULT_MODEL:
        return model
    return COARSE_NETWORK if speed == "fast" or mpp > COARSE_ABOVE_MPP else FINE_NETWORK


def networks_of(model: str, speed: Speed = "auto") -> tuple[str, ...]:
    """Return all models that `network_for` may choose for any slide."""
    return tuple(dict.fromkeys(network_for(model, mpp, speed) for mpp in (0.0, float("inf"))))


def check_speed(model: str | None, speed: Speed) -> None:
    """Raise if a speed is unknown, or given for a model that is not the default.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there is no such `speed`, or it is not auto and the model is not the default one.
    """
    check_choice("speed", speed, get_args(Speed))
    if speed != "auto" and model != DEFAULT_MODEL:
        raise UsageError(
            f"--speed {speed} chooses a network of the default model, but --model names {model}",
            "leave out one of the two",
        )


def is_file_name(model: str | Path) -> bool:
    """Return whether a model is named by its file, and is not a packaged one."""
    path = Path(model)
    is_path = path.suffix == ".safetensors" or len(path.parts) > 1
    return is_path or (bool(path.suffix) and path.is_file())


def resolve_model(name_or_path: str | Path) -> Path:
    """Return the file of a packaged model, or of a path. The default gives its fine network.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such model; the message lists the available names.
    """
    if is_file_name(name_or_path):
        path = Path(name_or_path)
        if not path.is_file():
            raise NotFoundError(f"no model file at {path}", "give a name or a .safetensors file")
        return path
    name = FINE_NETWORK if name_or_path == DEFAULT_MODEL else name_or_path
    packaged = WEIGHTS_FOLDER / f"{name}.safetensors"
    if not packaged.is_file():
        names = [DEFAULT_MODEL, *sorted(p.stem for p in WEIGHTS_FOLDER.glob("*.safetensors"))]
        raise NotFoundError(
            f"no model named {str(name_or_path)!r} comes with qpnuclei",
            f"there are: {', '.join(names)}; or give the path of a .safetensors file",
        )
    return packaged
