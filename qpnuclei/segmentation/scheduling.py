"""Which way, and how many at once, tiles go through a device."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from qpnuclei.errors import DeviceError

logger = logging.getLogger(__name__)

#: Of a batch of tiles, (B, H, W, 3) uint8; returns tensors with B rows each.
Function = Callable[[Tensor], tuple[Tensor, ...]]

#: Capturing and measuring take as long as so many batches: worth it for shapes that come often.
_USES_BEFORE_CAPTURE = 4
#: A graph needs memory for as long as it is kept.
_MOST_SHAPES = 8
#: Larger batches are no faster; they keep the stages that wait for them idle.
_MOST_TILES = 8
#: Of the free memory: a captured graph has activations of its own, beside those of eager batches.
_SHARE_OF_MEMORY = 0.4


class GraphOrEager:
    """A function that is replayed as a captured graph where that was measured to be faster.

    Parameters
    ----------
    function : callable
    capture : callable
        Given the function and an argument, returns a function for arguments of that shape that
        gives the same; or raises `RuntimeError`.
    milliseconds : callable
        Returns the time that a call takes.
    """

    def __init__(
        self,
        function: Function,
        capture: Callable[[Function, Tensor], Function],
        milliseconds: Callable[[Callable[[], object]], float],
    ) -> None:
        self._function = function
        self._capture = capture
        self._milliseconds = milliseconds
        self._shapes: OrderedDict[tuple[int, ...], _Shape] = OrderedDict()
        self._failed = False
        #: Of the shape that was measured first, the one that comes most often in a run.
        self._speedup: float | None = None

    @property
    def execution(self) -> str:
        """Which way was taken, for example ``"CUDA graphs (2.1x eager, measured)"``."""
        if self._speedup is None:
            return "eager"
        if self._speedup > 1:
            return f"CUDA graphs ({self._speedup:.2f}x eager, measured)"
        return f"eager (CUDA graphs {self._speedup:.2f}x, measured)"

    def forget(self) -> None:
        """Let go of all graphs and their memory."""
        self._shapes.clear()

    def __call__(self, batch: Tensor) -> tuple[Tensor, ...]:
        """Return ``function(batch)``."""
        shape = self._shapes.setdefault(tuple(batch.shape), _Shape())
        self._shapes.move_to_end(tuple(batch.shape))
        if len(self._shapes) > _MOST_SHAPES:
            self._shapes.popitem(last=False)
        shape.uses += 1
        if shape.uses == _USES_BEFORE_CAPTURE and not self._failed:
            shape.graph = self._faster_graph(batch)
        return (shape.graph or self._function)(batch)

    def _faster_graph(self, batch: Tensor) -> Function | None:
        try:
            graph = self._capture(self._function, batch)
        except RuntimeError as error:
            logger.warning("no CUDA graphs, batches are run eagerly: %s", error)
            self._failed = True
            return None
        pairs = zip(graph(batch), self._function(batch), strict=True)
        if not all(torch.equal(replayed, expected) for replayed, expected in pairs):
            logger.warning("no CUDA graphs, batches are run eagerly: their results differ")
            self._failed = True
            return None
        eager = self._milliseconds(lambda: self._function(batch))
        speedup = eager / self._milliseconds(lambda: graph(batch))
        if self._speedup is None:
            self._speedup = speedup
        return graph if speedup > 1 else None


@dataclass
class _Shape:
    """Of a batch: how often it came and, if that is faster, its graph."""

    uses: int = 0
    graph: Function | None = None


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
                logger.warning("%d tiles do not fit into memory: %d at once", len(part), most)
        if len(parts) == 1:
            return parts[0]
        return tuple(torch.cat(of_parts) for of_parts in zip(*parts, strict=True))

    def _attempt(self, part: Tensor) -> tuple[Tensor, ...] | None:
        with suppress(torch.cuda.OutOfMemoryError):
            return self._function(part)
        # Only here, when the error is gone, is nothing left of the attempt.
        self._release()
        return None


def batch_that_fits(free: int, per_px: float, tile_px: int) -> int:
    """Return how many tiles to take at once.

    Parameters
    ----------
    free : int
        Free memory of the device in bytes.
    per_px : float
        Bytes that one px takes on its way through the network.
    tile_px : int
        Edge of a tile.
    """
    tiles = int(_SHARE_OF_MEMORY * free / (per_px * tile_px**2))
    return min(max(tiles, 1), _MOST_TILES)
