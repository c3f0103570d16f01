"""The forward pass: pixels are normalised, predicted, and made into maps or quantised maps."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.student import StudentNet
from qpnuclei.segmentation.quantised import (
    ATTENTION_STEPS,
    CENTRE_STEPS,
    NAN_LEVEL,
    FloatMap,
    QuantisedAttention,
    QuantisedCentre,
)
from qpnuclei.system.compiled import compiled

Level = TypeVar("Level", np.uint8, np.uint16)

#: oneDNN computes this many output channels of a convolution at once.
_LEAST_OUTPUTS = 16

_BITS_OF_ONE = int(np.float32(1).view(np.uint32))

#: Values whose sigmoid is computed at once: few enough to stay in the processor's cache.
_SIGMOID_BLOCK = 32768


class Forward:
    """A network on a device, from pixels to the sigmoid of its output.

    Parameters
    ----------
    network : torch.nn.Module
        In evaluation mode, on `device`.
    metadata : ModelMetadata
    device : torch.device
    views : {1, 8}
        With 8, maps are averages over the flips and right-angle rotations of the image.
    dtype : torch.dtype
        Of the convolutions.
    """

    def __init__(
        self,
        network: nn.Module,
        metadata: ModelMetadata,
        device: torch.device,
        views: int,
        dtype: torch.dtype,
    ) -> None:
        self._metadata = metadata
        self._device = device
        self._views = views
        self._dtype = dtype
        self._network: Callable[[Tensor], Tensor] = network
        self._cell_px = 1
        if isinstance(network, StudentNet):
            self._network, self._cell_px = network.cells, network.cell_px
        mean, std = torch.tensor([metadata.input_mean, metadata.input_std])
        levels = (torch.arange(256.0)[:, None] / 255 - mean) / std
        self._lookup = levels.numpy()
        self._mean = mean.to(device)
        self._std = std.to(device)

    @torch.inference_mode()
    def maps(self, rgb: Tensor) -> Tensor:
        """Return the maps of tiles whose sizes are multiples of the network's stride.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 Tensor
            Contiguous, on the device.

        Returns
        -------
        (B, C, H, W) float32 Tensor
            On the device, in 0..1: attention and, with two channels, the centre map.
        """
        x = self._normalised(rgb)
        if self._views == 1:
            return self._arranged(self._activated(x))
        total = torch.zeros((), device=self._device)
        for transpose in (False, True):
            for flips in ((), (2,), (3,), (2, 3)):
                view = x.transpose(2, 3) if transpose else x
                maps = self._arranged(self._activated(view.flip(flips))).flip(flips)
                total = total + (maps.transpose(2, 3) if transpose else maps)
        return total / 8

    @torch.inference_mode()
    def quantised_maps(self, rgb: Tensor) -> tuple[QuantisedAttention, QuantisedCentre | None]:
        """Return `maps`, quantised (see `qpnuclei.segmentation.quantised`).

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 Tensor
            As for `maps`.

        Returns
        -------
        attention : (B, H, W) uint8 ndarray
        centre : (B, H, W) uint16 ndarray or None
        """
        batch, height, width = rgb.shape[:3]
        side = self._cell_px if self._views == 1 else 1
        if side > 1:
            # Rearranging levels is faster than rearranging floats.
            activated = self._activated(self._normalised(rgb))
            rows = activated.cpu().numpy().reshape(-1, activated.shape[3])
            length = side * side
        else:
            rows = self.maps(rgb).cpu().contiguous().numpy().reshape(batch, -1)
            length = height * width
        attention = np.empty((len(rows), length), np.uint8)
        centre = np.empty((len(rows), rows.shape[1] - length), np.uint16)
        _quantise_rows(rows, attention, centre)
        shape = batch, height, width
        return (
            _arrange_cells(attention, shape, side),
            _arrange_cells(centre, shape, side) if centre.size else None,
        )

    def _normalised(self, rgb: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float32, channels last."""
        if self._device.type == "cpu":
            x = torch.empty(rgb.shape)
            _look_up(rgb.numpy().reshape(-1, 3), self._lookup, x.numpy().reshape(-1, 3))
        else:
            x = rgb.float().div_(255).sub_(self._mean).div_(self._std)
        return x.permute(0, 3, 1, 2)

    def _activated(self, x: Tensor) -> Tensor:
        """Return the sigmoid of the network's output, contiguous.

        Its shape is (B, C, H, W). A network that predicts cells of c x c px at once gives
        (B, H/c, W/c, C·c·c).
        """
        reduced = self._dtype != torch.float32
        with torch.autocast(self._device.type, self._dtype, reduced):
            logits = self._network(x).float()
        if self._metadata.tau is not None:
            logits = self._metadata.sigmoid_gain * (logits - self._metadata.tau)
        if self._cell_px > 1:
            logits = logits.permute(0, 2, 3, 1)
        logits = logits.contiguous()
        if self._device.type != "cpu":
            return logits.sigmoid_()
        _sigmoid(logits.numpy().reshape(-1))
        return logits

    def _arranged(self, activated: Tensor) -> Tensor:
        if self._cell_px == 1:
            return activated
        return functional.pixel_shuffle(activated.permute(0, 3, 1, 2), self._cell_px)


def optimise_for_inference(network: nn.Module, device: torch.device) -> nn.Module:
    """Change a network, in place, into one that computes the same faster and reproducibly.

    Every BatchNorm is folded into the convolution before it. Two changes are for CPUs only:

    * A convolution with fewer than 16 outputs is widened to 16. With fewer, oneDNN splits the sum
      over the inputs among the threads, and the last bit depends on their number.
    * A 1x1 convolution is declared dilated, which does not change its result. Otherwise a single
      thread computes it without oneDNN, three times slower.

    Parameters
    ----------
    network : torch.nn.Module
        From `qpnuclei.models`, in evaluation mode. Every BatchNorm must directly follow its
        convolution among the children of their parent.
    device : torch.device
        Where it will run.

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
    """A convolution with outputs of zero added, which are cut off again."""

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


def _sigmoid(logits: FloatMap) -> None:
    """Replace the values of a 1-D array by their sigmoid.

    On CPUs, torch computes the end of each thread's share differently: the last bit would depend
    on the number of threads and on the position of a pixel in its tile. With NumPy it does not.
    """
    with np.errstate(over="ignore"):
        for start in range(0, len(logits), _SIGMOID_BLOCK):
            block = logits[start : start + _SIGMOID_BLOCK]
            np.negative(block, out=block)
            np.exp(block, out=block)
            np.add(block, 1, out=block)
            np.divide(1, block, out=block)


@compiled
def _look_up(
    rgb: npt.NDArray[np.uint8], levels: npt.NDArray[np.float32], out: npt.NDArray[np.float32]
) -> None:
    """Replace (N, 3) uint8 channel values by their entries in a (256, 3) table."""
    for row in range(rgb.shape[0]):
        for channel in range(3):
            out[row, channel] = levels[rgb[row, channel], channel]


@compiled
def _quantise_rows(
    rows: npt.NDArray[np.float32],
    attention: npt.NDArray[np.uint8],
    centre: npt.NDArray[np.uint16],
) -> None:
    """Quantise (N, n + m) values: n of attention, then m of the centre map.

    The attention of a row with a NaN becomes `NAN_LEVEL`.
    """
    steps, one, zero = np.float32(ATTENTION_STEPS), np.float32(1), np.float32(0)
    centre_steps = np.float32(CENTRE_STEPS)
    bits = rows.view(np.uint32)  # as integers, those of NaN exceed those of all floats in 0..1
    length = attention.shape[1]
    for row in range(rows.shape[0]):
        highest = np.uint32(0)
        for column in range(length):
            level = np.ceil(rows[row, column] * steps) - one
            attention[row, column] = np.uint8(max(level, zero))
            highest = max(highest, bits[row, column])
        for column in range(centre.shape[1]):
            centre[row, column] = np.uint16(np.rint(rows[row, length + column] * centre_steps))
            highest = max(highest, bits[row, length + column])
        if highest > _BITS_OF_ONE:
            attention[row] = NAN_LEVEL


def _arrange_cells(
    levels: npt.NDArray[Level], shape: tuple[int, int, int], side: int
) -> npt.NDArray[Level]:
    """Rearrange cells of `side` x `side` px, one per row, to (B, H, W)."""
    if side == 1:
        return levels.reshape(shape)
    batch, height, width = shape
    # Move each row of a cell as one integer.
    whole = np.dtype(f"u{side * levels.itemsize}")
    cells = levels.view(whole).reshape(batch, height // side, width // side, side)
    return cast("npt.NDArray[Level]", cells.swapaxes(2, 3).copy().view(levels.dtype).reshape(shape))
