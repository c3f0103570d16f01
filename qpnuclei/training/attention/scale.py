"""The scale network G of the paper, which tells the magnification of an predicted image."""

from __future__ import annotations

import logging
import pickle
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torchvision.models import (
    ResNet,
    ResNet18_Weights,
    ResNet34_Weights,
    resnet18,
    resnet34,
)
from torchvision.models.resnet import BasicBlock

from qpnuclei.errors import ModelError, NotFoundError, UsageError
from qpnuclei.models.checkpoint import load_weights

_log = logging.getLogger(__name__)

#: What the two readers raise for a file that is something else, or torn: torch's unpickler lets
#: pass whatever its own stack machine meets.
_UNREADABLE = (
    safetensors.SafetensorError,
    pickle.UnpicklingError,
    OSError,
    EOFError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
)

Architecture = Literal["resnet34", "resnet18", "resnet10"]


class NarrowResNet(nn.Module):
    """ResNet of four stages with one basic block each, of any width: for machines without a GPU.

    Parameters
    ----------
    n_classes : int
    width : int
        Channels of the first stage; each further stage has twice as many.
    """

    def __init__(self, n_classes: int, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.stages = nn.Sequential(
            *(
                BasicBlock(inputs, outputs, stride, _shortcut(inputs, outputs, stride))
                for inputs, outputs, stride in zip(widths, widths[1:], (1, 2, 2, 2), strict=False)
            )
        )
        self.fc = nn.Linear(widths[-1], n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to scores (B, n_classes)."""
        features: Tensor = self.stages(self.stem(x))
        return cast(Tensor, self.fc(features.mean(dim=(2, 3))))


def build_scale_network(
    architecture: Architecture,
    n_scales: int,
    *,
    imagenet: bool = False,
    width: int = 16,
) -> nn.Module:
    """Build G: (B, 3, H, W) predicted images, normalised to ImageNet, to scores (B, n_scales).

    Parameters
    ----------
    architecture : {'resnet34', 'resnet18', 'resnet10'}
        The paper's is torchvision's ResNet-34; ``'resnet10'`` is `NarrowResNet`.
    n_scales : int
        Number of magnifications to tell apart.
    imagenet : bool
        Start from torchvision's ImageNet weights, as the authors do. They are downloaded once.
    width : int
        Of ``'resnet10'`` only.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there are no ImageNet weights for `architecture`, or they cannot be downloaded.
    """
    if architecture == "resnet10":
        if imagenet:
            raise UsageError(
                "there are no ImageNet weights for resnet10",
                "use --set scale_network=resnet34, or --set scale_weights=scratch",
            )
        return NarrowResNet(n_scales, width)
    build, weights = {
        "resnet34": (resnet34, ResNet34_Weights.IMAGENET1K_V1),
        "resnet18": (resnet18, ResNet18_Weights.IMAGENET1K_V1),
    }[architecture]
    try:
        network: ResNet = build(weights=weights if imagenet else None)
    except (urllib.error.URLError, OSError, RuntimeError) as error:
        # torch.hub raises RuntimeError if the hash of a download does not match.
        raise UsageError(
            f"the ImageNet weights of {architecture} cannot be downloaded: {error}",
            "give them with --backbone-weights FILE, or start with --set scale_weights=scratch",
        ) from error
    network.fc = nn.Linear(network.fc.in_features, n_scales)
    _log.info(
        "scale network %s starts %s",
        architecture,
        f"from {weights}" if imagenet else "from random weights",
    )
    return cast(nn.Module, network)


def load_backbone(network: nn.Module, path: Path) -> None:
    """Copy the weights of a file into G, all but its last layer.

    Parameters
    ----------
    network : torch.nn.Module
        As `build_scale_network` returns it.
    path : pathlib.Path
        ``.safetensors``, or a state dict as torchvision publishes it (``.pth``), which is read
        without running any code it might hold.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        If it is neither, or of another architecture.
    """
    source = f"backbone file {path}"
    features = {k: v for k, v in _read_tensors(path, source).items() if not k.startswith("fc.")}
    head = {k: v for k, v in network.state_dict().items() if k.startswith("fc.")}
    load_weights(network, {**features, **head}, source)
    _log.info("scale network starts from %s", path)


def _read_tensors(path: Path, source: str) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise NotFoundError(f"no {source}", "give a .pth or .safetensors file")
    hint = "give a .safetensors file or a .pth file of a torchvision state dict"
    try:
        if path.suffix == ".safetensors":
            return cast(Mapping[str, Tensor], safetensors.torch.load_file(path))
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"{source} cannot be read: {reason}", hint) from error
    if not isinstance(tensors, dict) or not all(isinstance(t, Tensor) for t in tensors.values()):
        raise ModelError(f"{source} holds no state dict but a {type(tensors).__name__}", hint)
    return tensors


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if inputs == outputs and stride == 1:
        return None
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
    )
