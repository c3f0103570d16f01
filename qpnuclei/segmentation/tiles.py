"""The tile plan: which tiles cover a region of interest, and which of them owns a nucleus.

All coordinates are px of the working resolution, in the image's frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, overload

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei import NucleiTable
from qpnuclei.segmentation.polygons import bounds


class Box(NamedTuple):
    """A half-open rectangle: x0 <= x < x1, y0 <= y < y1."""

    x0: int
    y0: int
    x1: int
    y1: int

    @property
    def width(self) -> int:
        """x1 - x0."""
        return self.x1 - self.x0

    @property
    def height(self) -> int:
        """y1 - y0."""
        return self.y1 - self.y0

    def polygon(self) -> shapely.Polygon:
        """Return the rectangle as a Shapely polygon."""
        return shapely.box(*self)


@dataclass(frozen=True)
class Tile:
    """One tile of a plan.

    Parameters
    ----------
    index : int
        Position in the plan.
    row, column : int
        Position in the grid of cores.
    core : Box
        What the tile answers for. The cores of a plan do not overlap.
    extent : Box
        What is read for it: the core and at least the halo around it. It may stick out of the
        image.
    view : Box
        The part of the extent that lies in the image: what is segmented.
    """

    index: int
    row: int
    column: int
    core: Box
    extent: Box
    view: Box


class TilePlan(Sequence[Tile]):
    """The tiles whose cores meet a region of interest, in row-major order.

    Parameters
    ----------
    roi : shapely geometry
        Region of interest.
    image_size : (width, height) of int
        Of the image, whose upper left corner is (0, 0).
    core_size : int
        Edge of the square cores.
    halo : int
        Least width of what a tile sees around its core, at least 1. Nuclei up to this size come
        whole from one tile.
    alignment : int
        Extents start at multiples of it, and their size is one: a network of that stride then sees
        every pixel in the same phase from every tile.
    origin : (x, y) of int
        A corner of the grid of cores.

    Raises
    ------
    ValueError
        If a size is not positive.
    """

    def __init__(
        self,
        roi: shapely.Geometry,
        image_size: tuple[int, int],
        core_size: int,
        halo: int,
        alignment: int = 1,
        origin: tuple[int, int] = (0, 0),
    ) -> None:
        for name, value in (
            ("image width", image_size[0]),
            ("image height", image_size[1]),
            ("core_size", core_size),
            ("halo", halo),
            ("alignment", alignment),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, but is {value!r}")
        self.image_size = image_size
        self.core_size = core_size
        self.halo = halo
        roi = shapely.intersection(roi, shapely.box(0, 0, *image_size))
        axes = [
            _Axis.covering(*limits, core_size, halo, alignment, start, size)
            for limits, start, size in zip(_ranges(roi), origin, image_size, strict=True)
        ]
        self._x, self._y = axes
        self.extent_size = (self._x.extent_size, self._y.extent_size)
        x0, y0 = np.meshgrid(self._x.cores, self._y.cores)
        cores = shapely.box(x0, y0, x0 + core_size, y0 + core_size)
        shapely.prepare(roi)
        rows, columns = np.nonzero(shapely.intersects(roi, cores) & ~shapely.touches(roi, cores))
        self._grid = np.full(cores.shape, -1, np.int64)
        self._grid[rows, columns] = np.arange(len(rows))
        self._tiles = [
            self._tile(index, row, column)
            for index, (row, column) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))
        ]

    def _tile(self, index: int, row: int, column: int) -> Tile:
        (core_x0, core_x1), (core_y0, core_y1) = self._x.core(column), self._y.core(row)
        (x0, x1), (y0, y1) = self._x.extent(column), self._y.extent(row)
        width, height = self.image_size
        return Tile(
            index,
            row,
            column,
            Box(core_x0, core_y0, core_x1, core_y1),
            Box(x0, y0, x1, y1),
            Box(max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)),
        )

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._tiles)

    def __repr__(self) -> str:
        return (
            f"<TilePlan of {len(self)} tiles, cores of {self.core_size} px, "
            f"extents of {self.extent_size[0]} x {self.extent_size[1]} px>"
        )

    @overload
    def __getitem__(self, index: int) -> Tile: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tile]: ...
    def __getitem__(self, index: int | slice) -> Tile | list[Tile]:
        return self._tiles[index]

    def owners(
        self, boxes: npt.NDArray[np.float64], centroids: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.int64]:
        """Return which tile owns each of N nuclei, from their outlines alone.

        That is the tile whose half-open core holds the centroid, if it sees the nucleus whole: if
        the bounding box touches no side of the tile's view but those of the image. Otherwise it
        is the first tile of the plan that sees it whole.

        Parameters
        ----------
        boxes : (N, 4) float64 ndarray
            x0, y0, x1, y1.
        centroids : (N, 2) float64 ndarray
            x, y.

        Returns
        -------
        (N,) int64 ndarray
            Indices of tiles; -1 where no tile sees the nucleus whole.
        """
        owners = np.full(len(boxes), -1, np.int64)
        if len(self) == 0:
            return owners
        columns, rows = self._x.seeing(boxes[:, 0::2]), self._y.seeing(boxes[:, 1::2])
        # Candidates in reverse order, so that the first of the plan is written last.
        deepest = int((rows[1] - rows[0]).max(initial=0))
        widest = int((columns[1] - columns[0]).max(initial=0))
        for down in reversed(range(deepest)):
            for right in reversed(range(widest)):
                row, column = rows[0] + down, columns[0] + right
                at = np.flatnonzero((row < rows[1]) & (column < columns[1]))
                tiles = self._grid[row[at], column[at]]
                owners[at[tiles >= 0]] = tiles[tiles >= 0]
        column, row = self._x.holding(centroids[:, 0]), self._y.holding(centroids[:, 1])
        sees = (column >= columns[0]) & (column < columns[1]) & (row >= rows[0]) & (row < rows[1])
        at = np.flatnonzero(sees)
        tiles = self._grid[row[at], column[at]]
        owners[at[tiles >= 0]] = tiles[tiles >= 0]
        return owners

    def answers_for(self, centroids: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Tell which of N centroids (x, y) lie in the core of a tile.

        All others lie outside of the region of interest.
        """
        if len(self) == 0:
            return np.zeros(len(centroids), bool)
        column, row = self._x.holding(centroids[:, 0]), self._y.holding(centroids[:, 1])
        inside: npt.NDArray[np.bool_] = (
            (column >= 0)
            & (column < self._grid.shape[1])
            & (row >= 0)
            & (row < self._grid.shape[0])
        )
        inside[inside] = self._grid[row[inside], column[inside]] >= 0
        return inside

    def owner(
        self, box: tuple[float, float, float, float], centroid: tuple[float, float]
    ) -> int | None:
        """Return the index of the tile that owns one nucleus; None if no tile sees it whole."""
        index = int(self.owners(np.array([box], float), np.array([centroid], float))[0])
        return None if index < 0 else index

    def divide(
        self, tile: Tile, nuclei: NucleiTable
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Say which of the nuclei found in a tile's view concern the result.

        Returns
        -------
        own : int64 ndarray
            Rows of the nuclei that the tile sees whole and owns.
        cut : int64 ndarray
            Rows of those that the border of its view cuts. All others belong to other tiles.
        """
        boxes = bounds(nuclei)
        columns, rows = self._x.seeing(boxes[:, 0::2]), self._y.seeing(boxes[:, 1::2])
        whole = (
            (tile.column >= columns[0])
            & (tile.column < columns[1])
            & (tile.row >= rows[0])
            & (tile.row < rows[1])
        )
        own = np.zeros(len(nuclei), bool)
        own[whole] = self.owners(boxes[whole], nuclei.take(whole).centroids()) == tile.index
        return np.flatnonzero(own), np.flatnonzero(~whole)

    def neighbours(self, tile: Tile) -> list[Tile]:
        """Return the other tiles whose view shares pixels with this one's, in order."""
        columns = self._x.overlapping(tile.column)
        rows = self._y.overlapping(tile.row)
        indices = self._grid[rows[0] : rows[1], columns[0] : columns[1]].ravel()
        return [self._tiles[i] for i in indices.tolist() if i >= 0 and i != tile.index]


@dataclass(frozen=True, eq=False)
class _Axis:
    """The grid along x or y: n intervals, their extents and what of them lies in the image."""

    core_size: int
    image_size: int
    cores: npt.NDArray[np.int64]
    extents: npt.NDArray[np.int64]
    extent_size: int

    @classmethod
    def covering(
        cls,
        low: float,
        high: float,
        core_size: int,
        halo: int,
        alignment: int,
        origin: int,
        image_size: int,
    ) -> _Axis:
        first = math.floor((low - origin) / core_size)
        last = math.ceil((high - origin) / core_size)
        cores = np.arange(first, last, dtype=np.int64) * core_size + origin
        starts = (cores - halo) // alignment * alignment
        reach = int((cores + core_size + halo - starts).max(initial=0))
        return cls(core_size, image_size, cores, starts, -(-reach // alignment) * alignment)

    def core(self, i: int) -> tuple[int, int]:
        start = int(self.cores[i])
        return start, start + self.core_size

    def extent(self, i: int) -> tuple[int, int]:
        start = int(self.extents[i])
        return start, start + self.extent_size

    def holding(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return which core holds each x (half-open); -1 or n outside of all."""
        beyond = x >= self.cores[-1] + self.core_size
        found: npt.NDArray[np.int64] = np.searchsorted(self.cores, x, side="right") - ~beyond
        return found

    def seeing(
        self, intervals: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the first and one past the last interval that sees each (x0, x1) whole."""
        low = np.where(self.extents <= 0, -np.inf, self.extents)
        ends = self.extents + self.extent_size
        high = np.where(ends >= self.image_size, np.inf, ends)
        return (
            np.searchsorted(high, intervals[:, 1], side="right"),
            np.searchsorted(low, intervals[:, 0], side="left"),
        )

    def overlapping(self, i: int) -> tuple[int, int]:
        """Return the first and one past the last interval whose view overlaps that of i."""
        start, stop = self.extent(i)
        return (
            int(np.searchsorted(self.extents, start - self.extent_size, side="right")),
            int(np.searchsorted(self.extents, stop, side="left")),
        )


def _ranges(roi: shapely.Geometry) -> tuple[tuple[float, float], tuple[float, float]]:
    if shapely.is_empty(roi):
        return (0, 0), (0, 0)
    x0, y0, x1, y1 = shapely.bounds(roi).tolist()
    return (x0, x1), (y0, y1)
