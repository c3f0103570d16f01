"""Read and check the weights of a model file as NumPy arrays. Needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors

from qpnuclei.errors import ModelError
from qpnuclei.models.metadata import RETRAIN
from qpnuclei.system.files import unreadable

Weights = dict[str, npt.NDArray[Any]]

#: Accepted types, as safetensors names them; int64 is for the batch counter of BatchNorm.
_STORED_AS = ("F32", "F16", "F64", "I64")
#: Weights that a message names.
_LISTED = 4


def read_weights(path: Path) -> Weights:
    """Return the weights of a model file, floats as float32.

    Raises
    ------
    qpnuclei.errors.ModelError
        If the file cannot be read, or a weight has another type, is not finite, or is a negative
        variance.
    """
    weights: Weights = {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - file is not a mapping
                stored_as = file.get_slice(name).get_dtype()
                if stored_as not in _STORED_AS:
                    raise _bad_weight(path, name, f"is stored as {stored_as}")
                weights[name] = file.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
        hint = "copy or download it again"
        raise unreadable(f"model file {path}", error, ModelError, hint) from error
    for name, weight in weights.items():
        if weight.dtype == np.int64:
            continue
        with np.errstate(over="ignore"):
            weights[name] = weight.astype(np.float32, copy=False)
        if not np.isfinite(weights[name]).all():
            raise _bad_weight(path, name, "is not finite (NaN or infinite)")
        if name.endswith("running_var") and (weight < 0).any():
            raise _bad_weight(path, name, "is a negative variance")
    return weights


def check_shapes(
    shapes: Mapping[str, tuple[int, ...]],
    wanted: Mapping[str, tuple[int, ...]],
    source: str,
    network: str,
) -> None:
    """Check that the names and shapes of weights match a network.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Shapes of the weights.
    wanted : mapping of str to tuple of int
        Shapes in the network.
    source, network : str
        Origin of the weights, and the name of the network, for error messages.

    Raises
    ------
    qpnuclei.errors.ModelError
        If they do not; names the weights that are missing, unexpected, or of another shape.
    """
    problems = []
    if missing := [name for name in wanted if name not in shapes]:
        problems.append(f"lacks {_listed(missing)}")
    if unexpected := [name for name in shapes if name not in wanted]:
        problems.append(f"has unexpected {_listed(unexpected)}")
    if reshaped := [
        f"{name} of shape {shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if shapes.get(name, shape) != shape
    ]:
        problems.append(f"has {_listed(reshaped)}")
    if problems:
        raise ModelError(
            f"{source} was made for another architecture than {network}: it "
            + "; it ".join(problems),
            RETRAIN,
        )


def _bad_weight(path: Path, name: str, what: str) -> ModelError:
    return ModelError(
        f"model file {path}: its weight {name} {what}, which no training produces",
        "train it again, or copy it again",
    )


def _listed(names: list[str]) -> str:
    """Join names as ``"a, b, c, d and 3 more"``."""
    shown = ", ".join(names[:_LISTED])
    return shown if len(names) <= _LISTED else f"{shown} and {len(names) - _LISTED} more"
