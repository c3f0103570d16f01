"""The forward pass of a network in torch, on CPUs and GPUs."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qpnuclei.choices import Precision
from qpnuclei.models.checkpoint import geometry_of
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.student import StudentNet
from qpnuclei.segmentation.cuda import TILES_AT_ONCE, CudaMaps
from qpnuclei.segmentation.forward import CpuForward, Forward, mean_of_views
from qpnuclei.segmentation.quantised import (
    FloatMap,
    QuantisedAttention,
    QuantisedCentre,
    quantise_cells,
)
from qpnuclei.slides.pixels import RGB

#: oneDNN computes this many output channels of a convolution at once.
_LEAST_OUTPUTS = 16

_DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16}


def torch_forward(
    network: nn.Module,
    metadata: ModelMetadata,
    device: torch.device,
    views: int,
    precision: Precision = "auto",
) -> Forward:
    """Return the forward pass of a network in torch.

    Parameters
    ----------
    network : torch.nn.Module
        A trained network of the family that `metadata` names. It is put into evaluation mode, and
        moved to `device`.
    metadata : ModelMetadata
    device : torch.device
    views, precision
        See `qpnuclei.segmentation.predictor.Predictor.load`.
    """
    dtype = _DTYPES[precision]
    if precision == "auto" and device.type == "cuda":
        # Not bfloat16: its 8 bits are coarse for a sigmoid of gain 20.
        dtype = torch.float16
    network = network.eval().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cpu":
        return _OnCpu(network, metadata, views, dtype)
    return _OnGpu(network, metadata, device, views, dtype)


class _OnCpu(CpuForward):
    def __init__(
        self, network: nn.Module, metadata: ModelMetadata, views: int, dtype: torch.dtype
    ) -> None:
        super().__init__(metadata, geometry_of(network), views, _name(dtype), _cell_px(network))
        self._network = network.cells if isinstance(network, StudentNet) else network
        self._dtype = dtype

    @torch.inference_mode()
    def logits(self, x: FloatMap) -> FloatMap:
        with torch.autocast("cpu", self._dtype, self._dtype != torch.float32):
            pixels = torch.from_numpy(x).contiguous(memory_format=torch.channels_last)
            logits = self._network(pixels).float()
        if self._cell_px > 1:
            logits = logits.permute(0, 2, 3, 1)
        computed: FloatMap = logits.contiguous().numpy()
        return computed


class _OnGpu:
    def __init__(
        self,
        network: nn.Module,
        metadata: ModelMetadata,
        device: torch.device,
        views: int,
        dtype: torch.dtype,
    ) -> None:
        self.device = str(device)
        self.precision = _name(dtype)
        self.views = views
        self.geometry = geometry_of(network)
        self._network = network
        self._metadata = metadata
        self._device = device
        self._dtype = dtype
        mean, std = torch.tensor([metadata.input_mean, metadata.input_std])
        self._mean = mean.to(device)
        self._std = std.to(device)
        self._on_cuda = None
        if device.type == "cuda":
            self._on_cuda = CudaMaps(self._maps, device, self.geometry.stride)

    @property
    def tiles_at_once(self) -> int:
        return 1 if self._on_cuda is None else TILES_AT_ONCE

    def maps(self, rgb: RGB) -> FloatMap:
        height, width = rgb.shape[1:3]
        bottom, right = (-length % self.geometry.stride for length in (height, width))
        padded = np.pad(rgb, ((0, 0), (0, bottom), (0, right), (0, 0)), mode="symmetric")
        maps: FloatMap = self._maps(torch.from_numpy(padded).to(self._device)).cpu().numpy()
        return maps[:, :, :height, :width]

    def quantised_maps(self, rgb: RGB) -> tuple[QuantisedAttention, QuantisedCentre | None]:
        if self._on_cuda is not None:
            return self._on_cuda(rgb)
        maps = np.ascontiguousarray(self.maps(rgb))
        shape = maps.shape[0], maps.shape[2], maps.shape[3]
        return quantise_cells(maps.reshape(len(maps), -1), shape, 1)

    @torch.inference_mode()
    def _maps(self, rgb: Tensor) -> Tensor:
        """Return the (B, C, H, W) maps of (B, H, W, 3) uint8 tiles on the device."""
        x = rgb.float().div_(255).sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)
        if self.views == 1:
            return self._predicted(x)
        return mean_of_views(x, self._predicted, torch.flip)

    def _predicted(self, x: Tensor) -> Tensor:
        with torch.autocast(self._device.type, self._dtype, self._dtype != torch.float32):
            logits: Tensor = self._network(x).float()
        if self._metadata.tau is not None:
            logits = self._metadata.sigmoid_gain * (logits - self._metadata.tau)
        return logits.contiguous().sigmoid_()


def _cell_px(network: nn.Module) -> int:
    return network.cell_px if isinstance(network, StudentNet) else 1


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def optimise_for_inference(network: nn.Module, device: torch.device) -> nn.Module:
    """Change a network, in place, into one that computes the same faster and reproducibly.

    Each BatchNorm is folded into the convolution before it. Two changes are for CPUs only:

    * A convolution with fewer than 16 outputs is widened to 16. With fewer outputs, oneDNN splits
      the sum over the inputs among the threads, and the last bit depends on their number.
    * A 1x1 convolution is declared as dilated, which does not change its result. Otherwise a single
      thread computes it without oneDNN, three times slower.

    Parameters
    ----------
    network : torch.nn.Module
        A network from `qpnuclei.models`, in evaluation mode. Each BatchNorm must directly follow
        its convolution among the children of their parent.
    device : torch.device
        Device on which the network will run.

    Returns
    -------
    torch.nn.Module
        `network` itself.
    """
    for parent in network.modules():
        children = list(parent.named_children())
        for (name, convolution), (norm_name, norm) in pairwise(children):
            if isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                setattr(parent, name, fuse_conv_bn_eval(convolution, norm))
                setattr(parent, norm_name, nn.Identity())
        if device.type != "cpu":
            continue
        for name, child in parent.named_children():
            if isinstance(child, nn.Conv2d):
                if child.kernel_size == (1, 1):
                    child.dilation = (2, 2)
                if child.out_channels < _LEAST_OUTPUTS:
                    setattr(parent, name, _Widened(child))
    return network


class _Widened(nn.Module):
    """A convolution with additional outputs of zero, which are cut off again."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self._outputs = convolution.out_channels
        more = _LEAST_OUTPUTS - self._outputs
        weight, bias = convolution.weight, convolution.bias
        convolution.weight = nn.Parameter(functional.pad(weight, (0, 0) * 3 + (0, more)))
        if bias is not None:
            convolution.bias = nn.Parameter(functional.pad(bias, (0, more)))
        convolution.out_channels = _LEAST_OUTPUTS
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        outputs: Tensor = self.convolution(x)[:, : self._outputs]
        return outputs
