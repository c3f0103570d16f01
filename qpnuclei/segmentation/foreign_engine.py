"""The engine of third-party models: a network in a file, and a sidecar that describes it."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from qpnuclei.segmentation.engine import EngineOptions, EngineSpec, ReadPixels, TileInstances
from qpnuclei.segmentation.outputs import instances
from qpnuclei.segmentation.sidecar import Sidecar
from qpnuclei.segmentation.threads import networks_at_once, one_thread_per_network
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics
from qpnuclei.system.threads import map_in_threads, prefetch
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.plan import Tile, TilePlan

#: Runs a network on a (1, C, H, W) or (1, H, W, C) float32 ndarray; returns its outputs.
Network: TypeAlias = Callable[[npt.NDArray[np.float32]], Sequence[npt.NDArray[Any]]]


class ForeignEngine:
    """A third-party network, applied tile by tile.

    Parameters
    ----------
    network : callable
        Threads may call it at the same time.
    sidecar : Sidecar
    spec : EngineSpec
    options : EngineOptions
    execution : str
        Where and how the network runs.
    """

    def __init__(
        self,
        network: Network,
        sidecar: Sidecar,
        spec: EngineSpec,
        options: EngineOptions,
        execution: str,
    ) -> None:
        self._network = network
        self._sidecar = sidecar
        self._spec = spec
        self._workers = options.workers
        self._execution = execution

    @property
    def spec(self) -> EngineSpec:
        """What a run must know about the engine."""
        return self._spec

    @property
    def execution(self) -> str:
        """Where and how the engine runs."""
        return self._execution

    def segment(
        self,
        read: ReadPixels,
        tiles: TilePlan,
        colour: ReinhardStatistics | None,  # noqa: ARG002 - such models take the original colours
        clock: Stopwatch,
    ) -> Generator[TileInstances, None, None]:
        """Yield the instances of every tile; see `qpnuclei.segmentation.engine.Engine.segment`."""
        margin = self._spec.margin_px

        def pixels() -> Iterator[tuple[Tile, RGB]]:
            for tile in tiles:
                with clock("read"), tiles.errors_naming(tile):
                    rgb = read(tile.view.grown(margin))
                yield tile, rgb

        def find(seen: tuple[Tile, RGB]) -> TileInstances:
            tile, rgb = seen
            inner = tile.view.within(tile.view.grown(margin))
            with tiles.errors_naming(tile):
                with clock("predict"):
                    outputs = [
                        self._inner(output, rgb.shape[:2], margin)
                        for output in self._network(self._input(rgb))
                    ]
                with clock("segment"):
                    shape = (tile.view.height, tile.view.width)
                    labels, scores = instances(outputs, shape, self._sidecar)
            return TileInstances(tile, np.ascontiguousarray(rgb[inner]), labels, scores)

        at_once = networks_at_once(self._workers)
        with (
            one_thread_per_network(),
            closing(prefetch(pixels(), 2)) as seen,
            closing(map_in_threads(find, seen, at_once)) as found,
        ):
            yield from found

    def _input(self, rgb: RGB) -> npt.NDArray[np.float32]:
        """Return the network's input: normalised, and padded to a multiple of the stride."""
        bottom, right = (-length % self._spec.stride for length in rgb.shape[:2])
        rgb = np.pad(rgb, ((0, bottom), (0, right), (0, 0)), mode="symmetric")
        how = self._sidecar.normalisation
        mean, std = (np.array(v, np.float32) for v in (how.mean, how.std))
        values = (rgb.astype(np.float32) / np.float32(how.scale) - mean) / std
        if self._sidecar.channels == "first":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values[None], np.float32)

    def _inner(
        self, output: npt.NDArray[Any], shape: tuple[int, ...], margin: int
    ) -> npt.NDArray[Any]:
        """Return an output with its channels first and without the margin."""
        if self._sidecar.channels == "last" and output.ndim == 4:
            output = output.transpose(0, 3, 1, 2)
        if output.ndim < 2:
            return output  # `instances` rejects it
        grid = self._sidecar.stardist.grid if self._sidecar.output == "stardist" else 1
        height, width = (-(-n // grid) for n in shape)
        low = margin // grid  # without a rest: the stride is a multiple of the grid
        return output[..., low : height - low, low : width - low]
