"""Model files: weights as safetensors, with everything needed to run them in the header.

No pickle is read or written. The header's entry ``qpnuclei`` is the JSON of
`qpnuclei.models.metadata.ModelMetadata`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from qpnuclei.errors import ModelError
from qpnuclei.models.geometry import NetworkGeometry
from qpnuclei.models.metadata import HEADER_KEY, RETRAIN, ModelMetadata, read_metadata, shortened
from qpnuclei.system.files import write_atomically

#: Module of each family's network, imported when a model of that family is built.
FAMILIES: Mapping[str, str] = {
    "attention": "qpnuclei.models.attention:AttentionNet",
    "student": "qpnuclei.models.student:StudentNet",
}

#: Data types of weights, and of the batch counter of BatchNorm.
_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64)


class Network(Protocol):
    """The interface of a network of any family, in addition to `torch.nn.Module`.

    Its forward maps (B, 3, H, W) to (B, C, H, W): channel 0 becomes the attention, the optional
    channel 1 is the centre map (both before the sigmoid).
    """

    @property
    def receptive_radius_px(self) -> int:
        """Radius of the receptive field in input px."""

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
    except (TypeError, ValueError, RuntimeError) as error:
        raise ModelError(
            f"model {metadata.name!r}: {name} cannot be built from "
            f"{shortened(metadata.architecture)}: {error}",
            RETRAIN,
        ) from error


def save_model(path: Path, network: nn.Module, metadata: ModelMetadata) -> None:
    """Write a model file atomically.

    Parameters
    ----------
    path : pathlib.Path
        The ``.safetensors`` file, replaced if it exists.
    network : torch.nn.Module
        Of a family that `FAMILIES` names. Its ``state_dict`` is stored, on the CPU.
    metadata : ModelMetadata
        Its `geometry` is replaced by that of `network`.

    Raises
    ------
    qpnuclei.errors.SaveError
        If it cannot be written; an existing file is unchanged.
    """
    described = metadata.model_copy(update={"geometry": _geometry(network)})
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    content = safetensors.torch.save(tensors, {HEADER_KEY: described.model_dump_json()})
    write_atomically(path, content)


def load_model(path: Path) -> tuple[nn.Module, ModelMetadata]:
    """Read a model file: the network in evaluation mode on the CPU, and its metadata.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        As `read_metadata`; also if the weights belong to another architecture or are not finite, or
        if the receptive field is larger than the file states.
    """
    metadata = read_metadata(path)
    with torch.device("meta"):  # uses no memory, whatever size the file states
        network = build_network(metadata)
    if metadata.network_geometry() != _geometry(network):
        raise ModelError(
            f"model file {path} states {metadata.network_geometry()}, but its network has "
            f"{_geometry(network)}",
            RETRAIN,
        )
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ModelError(
            f"model file {path} cannot be read: {error}", "copy or download it again"
        ) from error
    check_weights(network, tensors, f"model file {path}")
    _check_finite(tensors, path)
    network.to_empty(device="cpu").load_state_dict(tensors)
    return network.eval(), metadata


def _check_finite(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Raise for weights that give NaN results, or that no training produces."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            what = f"is stored as {tensor.dtype}, which no training produces"
        elif not tensor.float().isfinite().all():
            what = "is not finite (NaN or infinite)"
        elif name.endswith("running_var") and tensor.min() < 0:
            what = "is a negative variance"
        else:
            continue
        raise ModelError(
            f"model file {path}: its weight {name} {what}", "train it again, or copy it again"
        )


def _geometry(network: nn.Module) -> NetworkGeometry:
    described = cast(Network, network)
    return NetworkGeometry(described.receptive_radius_px, described.stride)


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a network, after `check_weights`."""
    check_weights(network, tensors, source)
    network.load_state_dict(dict(tensors))


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors match a network's, in name and shape.

    Parameters
    ----------
    network : torch.nn.Module
    tensors : mapping of str to Tensor
    source : str
        Origin of the tensors, for error messages.

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
            RETRAIN,
        )


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
