"""One level of a TIFF: its tiles or strips, decoded by tifffile."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import SlideError, number_of
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.readers.jpeg_end import lacks_end

#: Largest number of pixels of a tile, strip or untiled image that is decoded at once.
MAX_DECODED_PIXELS = 200_000_000
#: Size of the cache of decoded tiles, per level.
_KEPT_BYTES = 64 * 2**20


class TiffLevel:
    """The tiles (or strips) of a level.

    The last decoded tiles are cached, because consecutive regions overlap.

    Parameters
    ----------
    path : Path
        Path of the file, for messages.
    pages : sequence of tifffile pages
        One page, or three grey pages for red, green and blue.
    n_planes : int
        Number of separate planes: 1, or the number of colours.
    to_rgb : callable
        Converts decoded pixels, (height, width, samples), to (height, width, 3).

    Raises
    ------
    qpnuclei.errors.SlideError
        If the file has too few tiles for its size, or its tiles are too large.
    """

    def __init__(
        self,
        path: Path,
        pages: Sequence[Any],
        n_planes: int,
        to_rgb: Callable[[npt.NDArray[np.uint8]], RGB],
    ) -> None:
        keyframe = pages[0].keyframe
        self._to_rgb = to_rgb
        self.size: tuple[int, int] = keyframe.imagewidth, keyframe.imagelength
        #: Offset of its first page in the file.
        self.offset: int = pages[0].offset
        width, height = self.size
        if keyframe.is_tiled:
            self._tile_width, self._tile_height = keyframe.tilewidth, keyframe.tilelength
        else:
            self._tile_width, self._tile_height = width, min(keyframe.rowsperstrip, height)
        self._columns = -(-width // self._tile_width)
        n_tiles = self._columns * -(-height // self._tile_height)
        #: For each plane, its page and the index of its first tile in that page.
        self._planes = [
            (pages[plane], 0) if len(pages) > 1 else (pages[0], plane * n_tiles)
            for plane in range(n_planes)
        ]
        for page, first in self._planes:
            if len(page.dataoffsets) < first + n_tiles:
                raise SlideError(
                    f"{path} is a damaged TIFF: {width}x{height} px need "
                    f"{number_of(n_tiles, 'tile')}, but it has {len(page.dataoffsets)}",
                    "copy the slide again",
                )
        if self._tile_width * self._tile_height > MAX_DECODED_PIXELS:
            raise SlideError(
                f"{path} has tiles or strips of {self._tile_width}x{self._tile_height} px, "
                "which are too large to decode",
                "convert it to a tiled, pyramidal 8-bit RGB TIFF",
            )
        tables = {"jpegtables": pages[0].jpegtables, "jpegheader": keyframe.jpegheader}
        self._tables = {name: table for name, table in tables.items() if table is not None}
        kept = _KEPT_BYTES // (3 * self._tile_width * self._tile_height)
        self._tile = lru_cache(kept)(self._decoded)

    def read(self, x: int, y: int, width: int, height: int) -> RGB:
        """Return a region within the level; tiles that the file leaves out are white."""
        region = np.full((height, width, 3), 255, np.uint8)
        columns = range(x // self._tile_width, -(-(x + width) // self._tile_width))
        rows = range(y // self._tile_height, -(-(y + height) // self._tile_height))
        for row, column in itertools.product(rows, columns):
            pixels = self._tile(row, column)
            if pixels is None:
                continue
            left, top = column * self._tile_width - x, row * self._tile_height - y
            part = region[max(top, 0) : top + len(pixels), max(left, 0) : left + pixels.shape[1]]
            from_y, from_x = max(-top, 0), max(-left, 0)
            part[:] = pixels[from_y : from_y + part.shape[0], from_x : from_x + part.shape[1]]
        return region

    def _decoded(self, row: int, column: int) -> RGB | None:
        """Return the pixels of a tile; None if the file leaves it out, which means background."""
        index = row * self._columns + column
        planes = [self._segment(page, first + index) for page, first in self._planes]
        if any(plane is None for plane in planes):
            return None
        pixels = planes[0] if len(planes) == 1 else np.concatenate(planes, axis=2)
        # Tiles at the right and bottom are padded with arbitrary pixels.
        width = self.size[0] - column * self._tile_width
        height = self.size[1] - row * self._tile_height
        return self._to_rgb(pixels[:height, :width])

    def _segment(self, page: Any, index: int) -> Any:
        offset, size = page.dataoffsets[index], page.databytecounts[index]
        if not (offset and size):
            return None
        file = page.parent.filehandle
        file.seek(offset)
        data = file.read(size)
        if lacks_end(data):
            raise ValueError(f"the end of tile {index} is missing: zeros are in its place")
        if _jpeg_pixels(data) > MAX_DECODED_PIXELS:
            raise ValueError(f"tile {index} is a JPEG with too many pixels to decode")
        tile = page.keyframe.decode(data, index, **self._tables)[0]
        return tile.reshape(*tile.shape[1:3], -1)


def _jpeg_pixels(data: bytes) -> int:
    """Return width times height from the header of a JPEG; 0 if it is not one, or has no size."""
    if not data.startswith(b"\xff\xd8"):
        return 0
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        # C0 to CF are frame headers, except Huffman tables, extensions and arithmetic coding.
        if 0xC0 <= data[at + 1] <= 0xCF and data[at + 1] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return int(height) * int(width)
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0
