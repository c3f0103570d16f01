"""Read the tiles of an index from their slides, in the colours of one target if wanted."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qpnuclei.errors import UsageError
from qpnuclei.models.metadata import LEAST_DEVIATION
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.reinhard import ReinhardStatistics, reinhard_statistics, reinhard_transfer
from qpnuclei.slides.resolution import working_downsample
from qpnuclei.slides.slide import Slide
from qpnuclei.training.sources import Source
from qpnuclei.training.tile_index import TileIndex

#: How many tiles of a slide its colour is measured on.
_COLOUR_TILES = 16

_CACHE_BYTES = 2**28
_MAX_OPEN_SLIDES = 64


@dataclass(frozen=True)
class ColourTransfer:
    """Reinhard's transfer of every source to one target.

    Parameters
    ----------
    statistics : tuple of ReinhardStatistics
        One per source.
    target_mean, target_std : (float, float, float)
        CIELAB mean and standard deviation.
    """

    statistics: tuple[ReinhardStatistics, ...]
    target_mean: tuple[float, float, float]
    target_std: tuple[float, float, float]

    @classmethod
    def measured(cls, reader: TileReader) -> ColourTransfer:
        """Measure every source that has tiles; the target is their average.

        Sources without tiles, which are never read, get the target's own statistics.

        Raises
        ------
        qpnuclei.errors.UsageError
            If the images have no colours, or are each of one colour.
        """
        found = {
            int(source): _source_colour(reader, int(source))
            for source in np.unique(reader.index.source)
        }
        mean = np.mean([s.mean for s in found.values()], axis=0).tolist()
        std = np.mean([s.std for s in found.values()], axis=0).tolist()
        if min(std) < LEAST_DEVIATION:
            raise UsageError(
                "the tissue of the images has no colours, so none can be transferred",
                "give images of stained tissue in colour, or leave the transfer out: "
                "--set colour=none",
            )
        neutral = ReinhardStatistics(255.0, tuple(mean), tuple(std))
        statistics = tuple(found.get(i, neutral) for i in range(len(reader.sources)))
        return cls(statistics, tuple(mean), tuple(std))


def _source_colour(reader: TileReader, source: int) -> ReinhardStatistics:
    """Colour of a source's tissue, on tiles spread over it at the finest scale it has."""
    tiles = np.flatnonzero(reader.index.source == source)
    scale = reader.index.scale[tiles]
    tiles = tiles[scale == scale.min()]
    chosen = tiles[np.linspace(0, len(tiles) - 1, min(_COLOUR_TILES, len(tiles))).astype(int)]
    return reinhard_statistics(np.stack([reader.read(int(tile)) for tile in chosen]))


class TileReader:
    """Reads tiles by their number in the index; keeps those read last.

    Parameters
    ----------
    sources : sequence of Source
    index : TileIndex
    scales : sequence of float
        In µm/px.
    tile_px : int
    colour : ColourTransfer or None
        Applied to every tile.

    Notes
    -----
    It pickles without its open slides and its cache, so each worker process opens its own.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        index: TileIndex,
        scales: Sequence[float],
        tile_px: int,
        colour: ColourTransfer | None = None,
    ) -> None:
        self.sources = tuple(sources)
        self.index = index
        self._scales = tuple(scales)
        self._tile_px = tile_px
        self._colour = colour
        self._tiles: OrderedDict[int, RGB] = OrderedDict()
        self._slides: OrderedDict[int, Slide] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_tiles": OrderedDict(), "_slides": OrderedDict()}

    def with_colour(self, colour: ColourTransfer) -> TileReader:
        """Return a reader of the same tiles that applies this colour transfer."""
        return TileReader(self.sources, self.index, self._scales, self._tile_px, colour)

    def read(self, tile: int) -> RGB:
        """Return the (tile_px, tile_px, 3) uint8 tile of this number.

        Raises
        ------
        qpnuclei.errors.SlideError
            If its pixels cannot be read.
        """
        if tile in self._tiles:
            self._tiles.move_to_end(tile)
            return self._tiles[tile]
        number = int(self.index.source[tile])
        source = self.sources[number]
        downsample = working_downsample(source.mpp, self._scales[self.index.scale[tile]])
        x, y = int(self.index.x[tile]), int(self.index.y[tile])
        pixels = source.pixels(self._slide(number))
        rgb = pixels.read(x, y, self._tile_px, self._tile_px, downsample)
        if self._colour is not None:
            rgb = reinhard_transfer(
                rgb,
                self._colour.statistics[number],
                self._colour.target_mean,
                self._colour.target_std,
            )
        self._tiles[tile] = rgb
        if len(self._tiles) * rgb.nbytes > _CACHE_BYTES:
            self._tiles.popitem(last=False)
        return rgb

    def close(self) -> None:
        """Close the slides it has open."""
        while self._slides:
            self._slides.popitem()[1].close()

    def _slide(self, number: int) -> Slide:
        if number in self._slides:
            self._slides.move_to_end(number)
        else:
            self._slides[number] = self.sources[number].open()
            if len(self._slides) > _MAX_OPEN_SLIDES:
                self._slides.popitem(last=False)[1].close()
        return self._slides[number]
