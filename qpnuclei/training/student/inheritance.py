"""Initial weights from a model of another resolution or width, so that training is short.

A network with inherited weights already finds nuclei; training makes up for the weights that were
left out. Afterwards the weights can be moved back towards their start.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qpnuclei.errors import UsageError
from qpnuclei.models.checkpoint import load_model
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.models.student import StudentNet
from qpnuclei.training.student.recipe import StudentRecipe

#: Pixels of the 6x6 stem of stride 4 that each pixel of the 4x4 stem of stride 2 covers, where
#: pixels are twice as large.
_COVERED_BY = (0, 1, 1, 2, 2, 3)

#: The group of channels that is the network's result.
_MAPS = "maps"


def starting_model(recipe: StudentRecipe) -> tuple[StudentNet, ModelMetadata]:
    """Return the network that a recipe starts from, and the metadata of its model.

    Raises
    ------
    qpnuclei.errors.UsageError
        If the recipe's network cannot inherit the weights of that model.
    qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
        If there is no such model, or it cannot be read.
    """
    assert recipe.start is not None
    network, metadata = load_model(resolve_model(recipe.start))
    heir = inherited(network, metadata, recipe) if isinstance(network, StudentNet) else None
    if heir is None:
        raise UsageError(
            f"start {recipe.start!r} is another network ({metadata.family}, "
            f"{metadata.architecture}, {metadata.mpp} µm/px) than the recipe's "
            f"({recipe.architecture}, {recipe.mpp} µm/px)",
            "take a model that the same recipe made, or --set the fields that differ",
        )
    return heir, metadata


def inherited(
    network: StudentNet, metadata: ModelMetadata, recipe: StudentRecipe
) -> StudentNet | None:
    """Return a recipe's network with the weights of a trained one; None if it cannot inherit them.

    Parameters
    ----------
    network : StudentNet
        Trained.
    metadata : ModelMetadata
        Of `network`.
    recipe : StudentRecipe

    Returns
    -------
    StudentNet or None
        It has the same levels, convolutions and decoder as `network` and as many channels or less,
        and sees the same pixels; or pixels twice as large through a stem of stride 2 instead of 4,
        so that its finest level has the same resolution.
    """
    wanted = _complete(recipe.architecture)
    given = _complete(metadata.architecture)
    tensors: dict[str, Tensor] = dict(network.state_dict())
    if recipe.mpp == 2 * metadata.mpp and (given["stem_stride"], wanted["stem_stride"]) == (4, 2):
        tensors |= _for_larger_pixels(tensors)
        given |= {"stem_stride": 2}
    elif recipe.mpp != metadata.mpp:
        return None
    widths = {key: wanted[key] for key in ("base_channels", "max_channels")}
    is_narrower = widths.items() != {key: given[key] for key in widths}.items()
    if {**given, **widths} != wanted or any(widths[key] > given[key] for key in widths):
        return None
    if is_narrower and wanted["decoder"] != "adding":
        return None
    heir = StudentNet(**recipe.architecture)
    heir.load_state_dict(
        _narrowed(tensors, heir, wanted["encoder_convolutions"]) if is_narrower else tensors
    )
    return heir.eval()


def _complete(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """Return an architecture with defaults for the missing values."""
    usual = StudentRecipe(name="")
    names = ("base_channels", "levels", "max_channels", "stem_stride", "decoder", "subpixel")
    complete = {name: architecture.get(name, getattr(usual, name)) for name in names}
    complete["subpixel"] = complete["subpixel"] or complete["stem_stride"] == 4
    depths = architecture.get("encoder_convolutions") or (2,) * complete["levels"]
    return {**complete, "encoder_convolutions": list(depths)}


def _for_larger_pixels(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the first and last weights of a network of stem stride 4 for pixels twice as large.

    A pixel that is the mean of 2x2 has the sum of their weights, and is predicted as the mean of
    their logits. Only detail within 2x2 pixels is lost.
    """
    stem = tensors["stem.0.weight"]
    covered = torch.tensor(_COVERED_BY)
    rows = stem.new_zeros(*stem.shape[:2], 4, 6).index_add_(2, covered, stem)
    changed = {"stem.0.weight": stem.new_zeros(*stem.shape[:2], 4, 4).index_add_(3, covered, rows)}
    for name in ("head.weight", "head.bias"):
        head = tensors[name]
        pixels = head.reshape(2, 2, 2, 2, 2, *head.shape[1:])  # map, y, y within, x, x within
        changed[name] = pixels.mean(dim=(2, 4)).reshape(8, *head.shape[1:])
    return changed


def _narrowed(
    tensors: Mapping[str, Tensor], heir: StudentNet, encoder_convolutions: Sequence[int]
) -> dict[str, Tensor]:
    """Return those channels of each layer that matter most to what follows it.

    A channel matters by the scale that BatchNorm gives it times the norm of the weights that read
    it. Layers whose results are added keep the same channels.
    """
    layers = _layers(encoder_convolutions)
    shapes = {name: tensor.shape for name, tensor in heir.state_dict().items()}
    kept = {}
    for group in {layer.writes for layer in layers} - {_MAPS}:
        writing = [layer for layer in layers if layer.writes == group]
        reading = [layer for layer in layers if layer.reads == group]
        scale = torch.stack([tensors[f"{layer.name}.1.weight"].abs() for layer in writing]).sum(0)
        read = torch.cat([tensors[layer.weight].transpose(0, 1).flatten(1) for layer in reading], 1)
        order = (scale * read.norm(dim=1)).argsort(descending=True, stable=True)
        kept[group] = order[: shapes[writing[0].weight][0]].sort().values
    narrowed = {}
    for name, tensor in tensors.items():
        layer = next(la for la in layers if name.startswith(f"{la.name}."))
        if layer.writes in kept and tensor.ndim:
            tensor = tensor[kept[layer.writes]]
        if layer.reads in kept and name == layer.weight:
            tensor = tensor[:, kept[layer.reads]]
        narrowed[name] = tensor
    return narrowed


@dataclass(frozen=True)
class _Layer:
    """A convolution, and the groups of channels that it reads and writes."""

    name: str
    weight: str
    reads: str
    writes: str


def _layers(encoder_convolutions: Sequence[int]) -> list[_Layer]:
    """Return the convolutions of a network whose decoder adds."""
    levels = len(encoder_convolutions)
    layers = [_Layer("stem", "stem.0.weight", "image", "stem")]
    before = "stem"
    for level, convolutions in enumerate(encoder_convolutions):
        # The coarsest level is added to the one before it.
        after = f"level {min(level, levels - 2)}"
        for number in range(convolutions):
            name = f"encoder.{level}.{number}"
            writes = after if number == convolutions - 1 else name
            layers.append(_Layer(name, f"{name}.0.weight", before, writes))
            before = writes
    for level in range(levels - 1):
        name = f"decoder.{level}.0"
        writes = f"level {level - 1}" if level else "output"
        layers.append(_Layer(name, f"{name}.0.weight", f"level {level}", writes))
    return [*layers, _Layer("head", "head.weight", "output", _MAPS)]


@torch.no_grad()
def move_back(student: StudentNet, start: StudentNet, share: float) -> None:
    """Move weights and statistics of BatchNorm back towards the start, by a share of the way.

    Parameters
    ----------
    student : StudentNet
        Changed in place.
    start : StudentNet
        The network from which its training started.
    share : float
        0 leaves the student as it is, 1 makes it the start.

    Notes
    -----
    If the training of one network started from the other, the two can be averaged: networks between
    them know most of the new data and forget little of the old [1]_.

    References
    ----------
    .. [1] M. Wortsman et al., "Robust Fine-Tuning of Zero-Shot Models", CVPR 2022.
    """
    old = start.state_dict()
    for name, value in student.state_dict().items():
        if value.dtype.is_floating_point:
            value.lerp_(old[name].to(value), share)
