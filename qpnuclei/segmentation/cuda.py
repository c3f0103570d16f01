"""The forward pass of a run on an NVIDIA GPU.

Three CUDA streams copy pixels to the device, compute, and copy maps back. When two threads call it,
one batch is copied while another is computed. Only quantised maps, 3 bytes per pixel, are copied
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
from qpnuclei.segmentation.quantised import (
    ATTENTION_STEPS,
    CENTRE_STEPS,
    NAN_LEVEL,
    QuantisedAttention,
    QuantisedCentre,
)

_log = logging.getLogger(__name__)

#: Larger batches are no faster, and the stages after the network would wait for them.
TILES_AT_ONCE = 8

_WHITE = 255

#: Takes a batch of tiles, (B, H, W, 3) uint8, and returns tensors with B rows each.
Function = Callable[[Tensor], tuple[Tensor, ...]]


class CudaMaps:
    """Computes the quantised maps of batches of tiles on an NVIDIA GPU. Threads may share it.

    Parameters
    ----------
    maps : callable
        Computes (B, C, H, W) maps from (B, H, W, 3) uint8 tiles on the device.
    device : torch.device
    stride : int
        Stride of the network.
    """

    def __init__(self, maps: Callable[[Tensor], Tensor], device: torch.device, stride: int) -> None:
        self._maps = maps
        self._device = device
        self._stride = stride
        self._queueing = threading.Lock()
        self._splitter = BatchSplitter(self._quantised_maps, torch.cuda.empty_cache)
        self._copying_in, self._computing, self._copying_out = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        # The weights were copied on another stream: wait for them.
        torch.cuda.synchronize(device)

    @torch.inference_mode()
    def __call__(
        self, rgb: npt.NDArray[np.uint8]
    ) -> tuple[QuantisedAttention, QuantisedCentre | None]:
        """Return the quantised maps of a batch of tiles.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 ndarray
            The method pads them with white, at the lower and right borders, to a multiple of the
            stride.

        Returns
        -------
        attention : (B, H, W) uint8 ndarray
        centre : (B, H, W) uint16 ndarray or None
            Both arrays are in pinned memory, which is scarce: do not keep them for long.

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
        """Queue the work of a batch; return the maps, and an event that occurs when they are ready.

        `record_stream` keeps memory from being reused before the work queued on it is done. For
        pinned memory, `copy_` and `to` do the same by themselves.
        """
        with torch.cuda.stream(self._copying_in):
            x = pixels.to(self._device, non_blocking=True)
        self._computing.wait_stream(self._copying_in)
        with torch.cuda.stream(self._computing):
            x.record_stream(self._computing)
            maps = self._splitter(x)
        self._copying_out.wait_stream(self._computing)
        copies = []
        with torch.cuda.stream(self._copying_out):
            for map_ in maps:
                map_.record_stream(self._copying_out)
                copies.append(_pinned(map_.shape, map_.dtype).copy_(map_, non_blocking=True))
            # Blocking: a waiting thread sleeps and does not keep a core busy.
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        return copies, done

    def _whole(self, length: int) -> int:
        return -(-length // self._stride) * self._stride

    def _quantised_maps(self, rgb: Tensor) -> tuple[Tensor, ...]:
        return quantise_maps(self._maps(rgb))


class BatchSplitter:
    """Calls a function with parts of a batch if the whole batch does not fit the device memory.

    Parameters
    ----------
    function : callable
        Takes a batch and returns one tensor or several, each with a row per tile.
    release : callable
        Called after the device ran out of memory, to free cached memory.
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
                    f"a tile of {width}x{height} px, with its margin, does not fit into the memory "
                    f"of {batch.device}",
                    "give a smaller --tile, or --device cpu",
                )
            else:
                most = len(part) // 2
                self._most_px = most * height * width
                _log.warning("tiles at once: %d do not fit into memory, now %d", len(part), most)
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(of_parts) for of_parts in zip(*parts, strict=True))

    def _attempt(self, part: Tensor) -> tuple[Tensor, ...] | None:
        with suppress(torch.cuda.OutOfMemoryError):
            return self._function(part)
        # Not inside the block: the exception still referred to the memory of the failed attempt.
        self._release()
        return None


def quantise_maps(maps: Tensor) -> tuple[Tensor, ...]:
    """Quantise maps on the device, exactly as `qpnuclei.segmentation.quantised` does.

    Parameters
    ----------
    maps : (B, C, H, W) float32 Tensor
        Attention and, with two channels, the centre map.

    Returns
    -------
    attention : (B, H, W) uint8 Tensor
    centre : (B, H, W) int16 Tensor
        The bits of uint16, which torch hardly supports. Only returned if there is a centre map.
    """
    steps = maps[:, 0].mul(ATTENTION_STEPS).ceil_().sub_(1).clamp_(min=0)
    attention = steps.masked_fill_(maps.isnan().any(dim=1), NAN_LEVEL).to(torch.uint8)
    if maps.shape[1] == 1:
        return (attention,)
    return attention, maps[:, 1].mul(CENTRE_STEPS).round_().to(torch.int32).to(torch.int16)


def _pinned(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, pin_memory=True)
