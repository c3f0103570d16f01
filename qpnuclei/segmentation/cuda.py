"""The forward pass of a run on an NVIDIA GPU.

Three CUDA streams copy pixels to the device, compute, and copy codes back: with two threads that
call it, one batch is copied while another is computed. Only codes, 3 bytes for each pixel, come
back. Batches are replayed as CUDA graphs where that was measured to be faster.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpnuclei.segmentation.forward import Forward
from qpnuclei.segmentation.quantised import (
    ATTENTION_STEPS,
    CENTRE_STEPS,
    NOT_A_NUMBER,
    AttentionCodes,
    CentreCodes,
)
from qpnuclei.segmentation.scheduling import (
    FittingBatches,
    Function,
    GraphOrEager,
    batch_that_fits,
)

#: Batches are padded to multiples of it in px, so that few graphs serve all of them.
_SHAPE_STEP_PX = 64
#: Edge in px of the tile with which the need for memory is measured.
_PROBE_PX = 1024
#: Batches over which eager runs and graphs are timed.
_REPEATS = 5

_WHITE = 255


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
        self._step = math.lcm(_SHAPE_STEP_PX, stride)
        self._queueing = threading.Lock()
        self._anchor: torch.cuda.CUDAGraph | None = None
        self._graphs = GraphOrEager(self._codes, self._captured, self._milliseconds)
        self._fitting = FittingBatches(self._graphs, self._release)
        self._copying_in, self._computing, self._copying_out = (
            torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            for _ in range(3)
        )
        # The weights came on another stream.
        torch.cuda.synchronize(device)

    @property
    def execution(self) -> str:
        """See `qpnuclei.segmentation.scheduling.GraphOrEager.execution`."""
        return self._graphs.execution

    @torch.inference_mode()
    def codes(self, rgb: npt.NDArray[np.uint8]) -> tuple[AttentionCodes, CentreCodes | None]:
        """Return the codes of a batch of tiles.

        Parameters
        ----------
        rgb : (B, H, W, 3) uint8 ndarray
            Continued with white, at the lower and right borders, to a size that recurs.

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

    def suggested_batch_size(self, tile_px: int) -> int:
        """Return how many tiles of this edge, with their surroundings, to take at once."""
        shape = (1, _PROBE_PX, _PROBE_PX, 3)
        with torch.cuda.device(self._device):
            probe = torch.zeros(shape, dtype=torch.uint8, device=self._device)
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            try:
                self._codes(probe)
            except torch.cuda.OutOfMemoryError:
                return 1
            torch.cuda.synchronize()
            per_px = (torch.cuda.max_memory_allocated() - before) / _PROBE_PX**2
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info()
        return batch_that_fits(free, per_px, tile_px)

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
        return -(-length // self._step) * self._step

    def _codes(self, rgb: Tensor) -> tuple[Tensor, ...]:
        return codes_of_maps(self._forward.maps(rgb))

    def _captured(self, function: Function, example: Tensor) -> Function:
        """Return a CUDA graph of a function that was warmed up with arguments of this shape.

        All graphs use the same memory: they run one after the other, on one stream.
        """
        if self._anchor is None:
            # Memory is shared only as long as one graph that has it is there.
            self._anchor, _ = self._capture(lambda x: (x + 1,), torch.zeros_like(example[:1, :1]))
        argument = example.clone()
        graph, results = self._capture(function, argument, self._anchor)

        def replay(batch: Tensor) -> tuple[Tensor, ...]:
            argument.copy_(batch)
            graph.replay()
            return tuple(result.clone() for result in results)

        return replay

    def _capture(
        self, function: Function, argument: Tensor, beside: torch.cuda.CUDAGraph | None = None
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...]]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(
            graph,
            pool=None if beside is None else beside.pool(),
            stream=self._computing,
            # Other threads may use the device meanwhile.
            capture_error_mode="thread_local",
        ):
            results = function(argument)
        return graph, results

    def _milliseconds(self, call: Callable[[], object]) -> float:
        """Return how long the device takes for a call, the processor's queueing included."""
        begin, end = (
            torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            for _ in range(2)
        )
        call()
        begin.record()
        for _ in range(_REPEATS):
            call()
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / _REPEATS

    def _release(self) -> None:
        self._graphs.forget()
        torch.cuda.empty_cache()


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
