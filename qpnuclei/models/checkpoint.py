"""Model files: weights as safetensors, and in the header all data needed to run them.

No pickle is read or written. The entry ``qpnuclei`` of the header is the JSON of
`qpnuclei.models.metadata.ModelMetadata`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import msgspec
import safetensors.torch
import torch
from msgspec.structs import replace
from torch import Tensor, nn

from qpnuclei.errors import ModelError
from qpnuclei.models.geometry import NetworkGeometry
from qpnuclei.models.metadata import HEADER_KEY, RETRAIN, ModelMetadata, read_metadata, shortened
from qpnuclei.models.weights import check_shapes, read_weights
from qpnuclei.system.checked import rechecked
from qpnuclei.system.files import write_atomically

#: Module of each family's network, imported when a model of that family is built.
FAMILIES: Mapping[str, str] = {
    "attention": "qpnuclei.models.attention:AttentionNet",
    "student": "qpnuclei.models.student:StudentNet",
}


class Network(Protocol):
    """The interface of a network of any family, in addition to `torch.nn.Module`.

    The forward pass maps (B, 3, H, W) to (B, C, H, W). Channel 0 becomes the attention; channel 1,
    if there is one, the centre map. Both are logits.
    """

    @property
    def receptive_radius_px(self) -> int:
        """Radius of the receptive field in input px."""

    @property
    def stride(self) -> int:
        """Height and width of the input must be multiples of the stride."""


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
        A network of a family in `FAMILIES`. Its ``state_dict`` is stored, on the CPU.
    metadata : ModelMetadata
        Its `geometry` is replaced by that of `network`.

    Raises
    ------
    qpnuclei.errors.SaveError
        If the file cannot be written; an existing file is unchanged.
    """
    described = rechecked(replace(metadata, geometry=geometry_of(network)))
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    content = safetensors.torch.save(tensors, {HEADER_KEY: msgspec.json.encode(described).decode()})
    write_atomically(path, content)


def load_model(
    path: Path, metadata: ModelMetadata | None = None
) -> tuple[nn.Module, ModelMetadata]:
    """Read a model file: the network in evaluation mode on the CPU, and its metadata.

    Parameters
    ----------
    path : pathlib.Path
    metadata : ModelMetadata, optional
        Those of the file, if they were read before.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        As for `read_metadata` and `qpnuclei.models.weights.read_weights`; also if the weights
        belong to another architecture, or if the receptive field is larger than the file states.
    """
    metadata = metadata or read_metadata(path)
    with torch.device("meta"):  # uses no memory, whatever size the file states
        network = build_network(metadata)
    if metadata.network_geometry() != geometry_of(network):
        raise ModelError(
            f"model file {path} states {metadata.network_geometry()}, but its network has "
            f"{geometry_of(network)}",
            RETRAIN,
        )
    tensors = {name: torch.from_numpy(weight) for name, weight in read_weights(path).items()}
    check_weights(network, tensors, f"model file {path}")
    # Assigned, not copied: making tensors like those of the "meta" device loads SymPy.
    types = {name: tensor.dtype for name, tensor in network.state_dict().items()}
    network.load_state_dict({n: t.to(types[n]) for n, t in tensors.items()}, assign=True)
    return network.eval(), metadata


def geometry_of(network: nn.Module) -> NetworkGeometry:
    """Return the receptive field and stride of a `Network`."""
    described = cast(Network, network)
    return NetworkGeometry(described.receptive_radius_px, described.stride)


def load_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a network, after `check_weights`."""
    check_weights(network, tensors, source)
    network.load_state_dict(dict(tensors))


def check_weights(network: nn.Module, tensors: Mapping[str, Tensor], source: str) -> None:
    """Check that tensors match those of a network, in name and shape.

    Parameters
    ----------
    network : torch.nn.Module
    tensors : mapping of str to Tensor
    source : str
        Origin of the tensors, for error messages.

    Raises
    ------
    qpnuclei.errors.ModelError
        If they do not; names the tensors that are missing, unexpected, or of another shape.
    """
    check_shapes(
        {name: tuple(tensor.shape) for name, tensor in tensors.items()},
        {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()},
        source,
        type(network).__name__,
    )


def library_versions() -> dict[str, str]:
    """Return the versions that the metadata of a model record."""
    import numpy
    import torchvision

    from qpnuclei._version import __version__

    return {
        "qpnuclei": __version__,
        "torch": str(torch.__version__),  # its type is a subclass
        "torchvision": torchvision.__version__,
        "numpy": numpy.__version__,
    }
