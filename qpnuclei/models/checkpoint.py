"""Model files: weights as safetensors, with everything needed to run them in the header.

No pickle is read or written. The header's entry ``qpnuclei`` is the JSON of
`qpnuclei.models.metadata.ModelMetadata`.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import pydantic
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from qpnuclei.errors import ModelError, NotFoundError
from qpnuclei.models.metadata import FORMAT_VERSION, ModelMetadata
from qpnuclei.system.files import write_atomically

#: Where the network of a family lives. Imported when a model of that family is built.
FAMILIES: Mapping[str, str] = {
    "attention": "qpnuclei.models.attention:AttentionNet",
    "student": "qpnuclei.models.student:StudentNet",
}

_HEADER_KEY = "qpnuclei"
_NOT_THERE = "give a name or the path of a .safetensors file"
_RETRAIN = "use a model made by this version of qpnuclei, or train it again"


class Network(Protocol):
    """What a network of any family says about itself, beside being a `torch.nn.Module`.

    Its forward takes (B, 3, H, W) and gives (B, C, H, W): channel 0 is what becomes the
    attention, channel 1, where there is one, the centre map (both before the sigmoid).
    """

    @property
    def receptive_radius_px(self) -> int:
        """How far, in input px, a pixel of the output looks."""

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of it."""


def build_network(metadata: ModelMetadata) -> nn.Module:
    """Build the network that `metadata` describes, with its initial random weights.

    Raises
    ------
    qpnuclei.errors.ModelError
        If the family's network cannot be built from ``metadata.architecture``.
    """
    module, _, name = FAMILIES[metadata.family].partition(":")
    network_class = getattr(importlib.import_module(module), name)
    try:
        return cast(nn.Module, network_class(**metadata.architecture))
    except (TypeError, ValueError) as error:
        raise ModelError(
            f"model {metadata.name!r}: {name} cannot be built from {metadata.architecture!r}: "
            f"{error}",
            _RETRAIN,
        ) from error


@dataclass(frozen=True)
class NetworkGeometry:
    """How far a network looks and how it must be aligned, in px of its input; see `Network`."""

    receptive_radius_px: int
    stride: int


def network_geometry(metadata: ModelMetadata) -> NetworkGeometry:
    """Return the geometry of the network that `metadata` describes.

    Raises
    ------
    qpnuclei.errors.ModelError
        As `build_network`.
    """
    with torch.device("meta"):  # no weights are made
        network = cast(Network, build_network(metadata))
    return NetworkGeometry(network.receptive_radius_px, network.stride)


def save_model(path: Path, network: nn.Module, metadata: ModelMetadata) -> None:
    """Write a model file; either all of it or nothing.

    Parameters
    ----------
    path : pathlib.Path
        The ``.safetensors`` file, replaced if it exists.
    network : torch.nn.Module
        Its ``state_dict`` is stored, on the CPU.
    metadata : ModelMetadata

    Raises
    ------
    qpnuclei.errors.SaveError
        If it cannot be written; what was there before is untouched.
    """
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    content = safetensors.torch.save(tensors, {_HEADER_KEY: metadata.model_dump_json()})
    write_atomically(path, content)


def read_metadata(path: Path) -> ModelMetadata:
    """Read a model file's metadata without its weights.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        If it is not safetensors, has no metadata of qpnuclei, or is of a newer format.
    """
    if not path.is_file():
        raise NotFoundError(
            f"no model file at {path}", "give --model a name or a .safetensors file"
        )
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"model file {path} is not safetensors, or is truncated: {error}",
            "copy or download it again",
        ) from error
    if _HEADER_KEY not in header:
        raise ModelError(
            f"model file {path} has no qpnuclei metadata (its header has {sorted(header)!r})",
            "give a file that `qpnuclei train` wrote; plain weights do not say how to use them",
        )
    try:
        # A newer format may have fields we do not know: look at its version before the rest.
        fields = json.loads(header[_HEADER_KEY])
        version = fields.get("format_version") if isinstance(fields, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise ModelError(
                f"model file {path} has format {version}; this qpnuclei reads up to "
                f"{FORMAT_VERSION}",
                "update qpnuclei",
            )
        return ModelMetadata.model_validate(fields)
    except json.JSONDecodeError as error:
        raise ModelError(
            f"model file {path}: its metadata is no JSON: {error}", _RETRAIN
        ) from error
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        raise ModelError(
            f"model file {path}: its metadata field {field!r} is {first['input']!r}: "
            f"{first['msg']}",
            _RETRAIN,
        ) from error


def load_model(path: Path) -> tuple[nn.Module, ModelMetadata]:
    """Read a model file: the network in evaluation mode on the CPU, and its metadata.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        As `read_metadata`, and if the weights were made for another architecture.
    """
    metadata = read_metadata(path)
    network = build_network(metadata)
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"model file {path} cannot be read: {error}", "copy or download it again"
        ) from error
    load_weights(network, tensors, f"model file {path}")
    return network.eval(), metadata


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a network that must want exactly these, in name and shape.

    Parameters
    ----------
    network : torch.nn.Module
    tensors : mapping of str to Tensor
    source : str
        How the error message calls where they come from.

    Raises
    ------
    qpnuclei.errors.ModelError
        Naming the tensors that are missing, unexpected, or of another shape.
    """
    wanted = network.state_dict()
    problems = []
    if missing := [name for name in wanted if name not in tensors]:
        problems.append(f"lacks {_listed(missing)}")
    if unexpected := [name for name in tensors if name not in wanted]:
        problems.append(f"has unexpected {_listed(unexpected)}")
    if reshaped := [
        f"{name} of shape {tuple(tensors[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]:
        problems.append(f"has {_listed(reshaped)}")
    if problems:
        raise ModelError(
            f"{source} was made for another architecture than {type(network).__name__}: it "
            + "; it ".join(problems),
            _RETRAIN,
        )
    network.load_state_dict(dict(tensors))


def model_hash(path: Path) -> str:
    """Return the SHA-256 of a model file in hexadecimal: which model made a result.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    """
    if not path.is_file():
        raise NotFoundError(
            f"no model file at {path}", "give --model a name or a .safetensors file"
        )
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_versions() -> dict[str, str]:
    """Return the versions that a model's metadata records."""
    import numpy
    import torchvision

    from qpnuclei._version import __version__

    return {
        "qpnuclei": __version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
    }


def _listed(names: list[str], most: int = 4) -> str:
    """Join names as ``"a, b, c, d and 3 more"``."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
