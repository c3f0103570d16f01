"""The forward pass of a run on an NVIDIA GPU.

Three CUDA streams copy pixels to the device, compute, and copy codes back: with two threads that
call it, one batch is copied while another is computed. Only codes, 3 bytes for each pixel, come
back.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpnuclei.errors import DeviceError
from qpnuclei.segmentation.forward import Forward
from qpnuclei.segmentation.quantised import (
    ATTENTION_STEPS,
    CENTRE_STEPS,
    NOT_A_NUMBER,
    AttentionCodes,
    CentreCodes,
)

_log = logging.getLogger(__name__)

#: Larger batches are no faster; they keep the stages that wait for them idle.
TILES_AT_ONCE = 8

_WHITE = 255

#: Of a batch of tiles, (B, H, W, 3) uint8; returns tensors with B rows each.
Function = Callable[[Tensor], tuple[Tensor, ...]]


class CudaForward:
    """A network on an NVIDIA GPU, from batches of tiles to codes. Threads may share it.

    Parameters
    ----------
    forward : Forward
    device : torch.device
    stride : int
        Of the network.
    """

    def __init__(self, forward: Forward, device: torch.device, stride: int) -> None:
        self._forward = forward
        self._device = device
        self._stride = stride
        self._queueing = threading.Lock()
        self._fitting = FittingBatches(self._codes, torch.cuda.empty_cache)
        self._copying_in, self._computing, self._copying_out = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        # The weights came on another stream.
        torch.cuda.synchronize(device)

    @torch.inference_mode()
    def codes(self, rgb: npt.NDArray[np.uint8]) -> tuple[AttentionCodes, CentreCodes | None]:
        """Return the codes of a batch of tiles.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 ndarray
            Continued with white, at the lower and right borders, to whole strides.

        Returns
        -------
        attention : (B, H, W) uint8 ndarray
        centre : (B, H, W) uint16 ndarray or None
            Both in pinned memory: let go of them soon.

        Raises
        ------
        qpnuclei.errors.DeviceError
            If one tile does not fit into the device's memory.
        """
        batch, height, width = rgb.shape[:3]
        with torch.cuda.device(self._device):
            pixels = _pinned((batch, self._whole(height), self._whole(width), 3), torch.uint8)
            padded = pixels.numpy()
            padded[:, :height, :width] = rgb
            padded[:, height:] = padded[:, :height, width:] = _WHITE
            with self._queueing:
                copies, done = self._queue(pixels)
        done.synchronize()
        attention, *centre = (copy.numpy()[:, :height, :width] for copy in copies)
        return attention, centre[0].view(np.uint16) if centre else None

    def _queue(self, pixels: Tensor) -> tuple[list[Tensor], torch.cuda.Event]:
        """Queue the work of a batch; return where the codes will be, and when.

        `record_stream`, and the like for pinned memory, which `copy_` and `to` do by themselves,
        keep memory from being used anew before the work that was queued for it is done.
        """
        with torch.cuda.stream(self._copying_in):
            x = pixels.to(self._device, non_blocking=True)
        self._computing.wait_stream(self._copying_in)
        with torch.cuda.stream(self._computing):
            x.record_stream(self._computing)
            codes = self._fitting(x)
        self._copying_out.wait_stream(self._computing)
        copies = []
        with torch.cuda.stream(self._copying_out):
            for code in codes:
                code.record_stream(self._copying_out)
                copies.append(_pinned(code.shape, code.dtype).copy_(code, non_blocking=True))
            # Threads sleep until it happens, rather than keeping a core busy each.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        return copies, done

    def _whole(self, length: int) -> int:
        return -(-length // self._stride) * self._stride

    def _codes(self, rgb: Tensor) -> tuple[Tensor, ...]:
        return codes_of_maps(self._forward.maps(rgb))


class FittingBatches:
    """A function that is given no more of a batch at once than fits the device's memory.

    Parameters
    ----------
    function : callable
    release : callable
        Called after the memory did not suffice: gives back what is kept but not needed.
    """

    def __init__(self, function: Function, release: Callable[[], None]) -> None:
        self._function = function
        self._release = release
        self._most_px: int | None = None

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return ``function(batch)``.

        Raises
        ------
        qpnuclei.errors.DeviceError
            If not even one tile of the batch fits.
        """
        height, width = batch.shape[1:3]
        parts: list[tuple[Tensor, ...]] = []
        done, most = 0, len(batch)
        if self._most_px is not None:
            most = max(1, self._most_px // (height * width))
        while done < len(batch):
            part = batch[done : done + most]
            results = self._attempt(part)
            if results is not None:
                parts.append(results)
                done += len(part)
            elif len(part) == 1:
                raise DeviceError(
                    f"a tile of {width}x{height} px, with its surroundings, does not fit into the "
                    f"memory of {batch.device}",
                    "give a smaller --tile, or --device cpu",
                )
            else:
                most = len(part) // 2
                self._most_px = most * height * width
                _log.warning("%d tiles do not fit into memory: %d at once", len(part), most)
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(of_parts) for of_parts in zip(*parts, strict=True))

    def _attempt(self, part: Tensor) -> tuple[Tensor, ...] | None:
        with suppress(torch.cuda.OutOfMemoryError):
            return self._function(part)
        # Free the failed attempt's memory after the exception, which refers to it, is released.
        self._release()
        return None


def codes_of_maps(maps: Tensor) -> tuple[Tensor, ...]:
    """Return, on the device, what `qpnuclei.segmentation.quantised` makes of maps.

    Parameters
    ----------
    maps : (B, C, H, W) float32 Tensor
        Attention and, with two channels, the centre map.

    Returns
    -------
    attention : (B, H, W) uint8 Tensor
    centre : (B, H, W) int16 Tensor
        With the bits of uint16, with which torch can do little. Only if there is a centre map.
    """
    steps = maps[:, 0].mul(ATTENTION_STEPS).ceil_().sub_(1).clamp_(min=0)
    attention = steps.masked_fill_(maps.isnan().any(dim=1), NOT_A_NUMBER).to(torch.uint8)
    if maps.shape[1] == 1:
        return (attention,)
    return attention, maps[:, 1].mul(CENTRE_STEPS).round_().to(torch.int32).to(torch.int16)


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)
