"""The tile plan: the tiles that cover a region of interest, and the tile that owns a nucleus.

All coordinates are in px of the working grid, in the image's frame.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import overload

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import QpnucleiError, number_of
from qpnuclei.nuclei.outlines import bounds
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.grid import Axis, bounds_inside, ranges


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
        The tile's share of the region and its margin: their bounding box within its square of the
        grid. The cores of a plan do not overlap.
    extent : Box
        The box that is read: the core and at least the halo around it. It may extend beyond the
        image.
    view : Box
        The part of the extent inside the image, which is segmented.
    """

    index: int
    row: int
    column: int
    core: Box
    extent: Box
    view: Box


class TilePlan(Sequence[Tile]):
    """The tiles that intersect a region of interest, in row-major order.

    Parameters
    ----------
    roi : shapely geometry
        Region of interest.
    image_size : (width, height) of int
        Size of the image; its upper left corner is (0, 0).
    core_size : int
        Width and height of the squares of the grid: the largest size of a core.
    halo : int
        Minimum margin of a tile around its core, at least 1. A nucleus up to this size is complete
        in some tile.
    alignment : int
        Extents start and end at multiples of it. A network with this stride then sees every pixel
        in the same phase in every tile.
    origin : (x, y) of int
        A corner of the grid.
    margin : int
        Cores also cover this margin around the region, within the image. A nucleus with its
        centroid in the margin is found as one inside the region is.

    Attributes
    ----------
    roi : shapely geometry
        The part of the region of interest inside the image.

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
        margin: int = 0,
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
        self.alignment = alignment
        image = shapely.box(0, 0, *image_size)
        if not shapely.covers(image, roi):
            roi = shapely.intersection(roi, image)
        self.roi = roi
        axes = [
            Axis.covering(
                max(low - margin, 0),
                min(high + margin, size),
                core_size,
                halo,
                alignment,
                start,
                size,
            )
            for (low, high), start, size in zip(ranges(roi), origin, image_size, strict=True)
        ]
        self._x, self._y = axes
        x0, y0 = np.meshgrid(self._x.cores, self._y.cores)
        squares = shapely.box(x0, y0, x0 + core_size, y0 + core_size)
        # The region has a margin in a square if it reaches into the square with this margin.
        grown = shapely.box(
            x0 - margin, y0 - margin, x0 + core_size + margin, y0 + core_size + margin
        )
        shapely.prepare(roi)
        rows, columns = np.nonzero(shapely.intersects(roi, grown) & ~shapely.touches(roi, grown))
        self._grid = np.full(squares.shape, -1, np.int64)
        self._grid[rows, columns] = np.arange(len(rows))
        # Most tiles of a large region lie inside it. They are not intersected with it, which would
        # take long for a region with many vertices.
        chosen = squares[rows, columns]
        parts = shapely.bounds(chosen).reshape(-1, 4)
        crossed = ~shapely.covers(roi, chosen)
        size = np.array(image_size)
        inside = bounds_inside(roi, grown[rows, columns][crossed])
        parts[crossed, :2] = np.maximum(np.maximum(inside[:, :2] - margin, parts[crossed, :2]), 0)
        parts[crossed, 2:] = np.minimum(
            np.minimum(inside[:, 2:] + margin, parts[crossed, 2:]), size
        )
        # (n, 2) each: the corners of cores and of views. A view is unbounded at the image border.
        self._core_low, self._core_high = np.floor(parts[:, :2]), np.ceil(parts[:, 2:])
        low = (self._core_low - halo) // alignment * alignment
        high = -((-self._core_high - halo) // alignment) * alignment
        self._low, self._high = (
            np.where(low <= 0, -np.inf, low),
            np.where(high >= size, np.inf, high),
        )
        self._tiles = [
            Tile(index, row, column, Box(*core), Box(*extent), Box(*view))
            for index, (row, column, core, extent, view) in enumerate(
                zip(
                    rows.tolist(),
                    columns.tolist(),
                    _integers(self._core_low, self._core_high),
                    _integers(low, high),
                    _integers(np.maximum(low, 0), np.minimum(high, size)),
                    strict=True,
                )
            )
        ]

    @classmethod
    def of_box(cls, box: Box, alignment: int) -> TilePlan:
        """Return a plan of one tile. Its view is a box, enlarged to the alignment.

        Parameters
        ----------
        box : Box
            A box within the image.
        alignment : int
            As for `TilePlan`.
        """
        size = max(box.width, box.height)
        limits = (box.x1 + size, box.y1 + size)
        return cls(box.polygon(), limits, size, 1, alignment, (box.x0, box.y0))

    def part(self, indices: Sequence[int]) -> TilePlan:
        """Return a plan of some tiles, with new numbers in the given order.

        Each tile keeps its core and its view. The owner of a nucleus, however, depends on all
        tiles, so only the whole plan can determine it.

        Parameters
        ----------
        indices : sequence of int
            Indices of tiles of this plan, without duplicates.
        """
        part = copy.copy(self)
        part._tiles = [replace(self._tiles[i], index=new) for new, i in enumerate(indices)]
        part._grid = np.full_like(self._grid, -1)
        for tile in part._tiles:
            part._grid[tile.row, tile.column] = tile.index
        chosen = np.asarray(indices, np.int64)
        part._core_low, part._core_high = self._core_low[chosen], self._core_high[chosen]
        part._low, part._high = self._low[chosen], self._high[chosen]
        return part

    def blocks(self, side: int) -> list[list[int]]:
        """Return the indices of the tiles in blocks of `side` by `side` tiles, row by row."""
        blocks: dict[tuple[int, int], list[int]] = {}
        for tile in self:
            blocks.setdefault((tile.row // side, tile.column // side), []).append(tile.index)
        return [blocks[position] for position in sorted(blocks)]

    def __len__(self) -> int:
        return len(self._tiles)

    def __iter__(self) -> Iterator[Tile]:
        return iter(self._tiles)

    def __repr__(self) -> str:
        return (
            f"<TilePlan of {number_of(len(self), 'tile')}, cores of up to {self.core_size} px, "
            f"halos of {self.halo} px>"
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
        """Return the tile that owns each of N nuclei.

        A tile contains a nucleus completely if the bounding box touches no side of the tile's view,
        except at the image border. The owner is the tile with the centroid in its half-open core,
        if it contains the nucleus completely. Otherwise it is the first tile of the plan that does.

        Parameters
        ----------
        boxes : (N, 4) float64 ndarray
            Bounding boxes: x0, y0, x1, y1.
        centroids : (N, 2) float64 ndarray
            x, y.

        Returns
        -------
        (N,) int64 ndarray
            Indices of tiles; -1 if no tile contains the nucleus completely.
        """
        owners = np.full(len(boxes), -1, np.int64)
        if len(self) == 0:
            return owners
        columns, rows = self._x.enclosing(boxes[:, 0::2]), self._y.enclosing(boxes[:, 1::2])
        # Candidates come in reverse order, so that the first tile of the plan is written last.
        deepest = int((rows[1] - rows[0]).max(initial=0))
        widest = int((columns[1] - columns[0]).max(initial=0))
        for down in reversed(range(deepest)):
            for right in reversed(range(widest)):
                row, column = rows[0] + down, columns[0] + right
                at = np.flatnonzero((row < rows[1]) & (column < columns[1]))
                self._assign(owners, boxes, at, self._grid[row[at], column[at]])
        tiles = self._tile_of(centroids)
        self._assign(owners, boxes, np.arange(len(boxes)), tiles)
        return owners

    def _assign(
        self,
        owners: npt.NDArray[np.int64],
        boxes: npt.NDArray[np.float64],
        at: npt.NDArray[np.int64],
        tiles: npt.NDArray[np.int64],
    ) -> None:
        """Assign the nuclei `at` to `tiles` if these contain them completely, in place."""
        is_complete = (tiles >= 0) & self._contains(tiles, boxes[at])
        owners[at[is_complete]] = tiles[is_complete]

    def _contains(
        self, tiles: npt.NDArray[np.int64] | int, boxes: npt.NDArray[np.float64]
    ) -> npt.NDArray[np.bool_]:
        """Return whether the border of a tile's view does not cut each box."""
        inside = (boxes[:, :2] > self._low[tiles]) & (boxes[:, 2:] < self._high[tiles])
        return np.asarray(inside.all(axis=1), bool)

    def _tile_of(self, centroids: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return the tile with each centroid in its core; -1 if there is none."""
        found = np.full(len(centroids), -1, np.int64)
        column, row = self._x.interval_of(centroids[:, 0]), self._y.interval_of(centroids[:, 1])
        rows, columns = self._grid.shape
        at = np.flatnonzero((column >= 0) & (column < columns) & (row >= 0) & (row < rows))
        tiles = self._grid[row[at], column[at]]
        at, tiles = at[tiles >= 0], tiles[tiles >= 0]
        inside = (centroids[at] >= self._core_low[tiles]).all(axis=1)
        inside &= (centroids[at] < self._core_high[tiles]).all(axis=1)
        found[at[inside]] = tiles[inside]
        return found

    def answers_for(self, centroids: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which of N centroids (x, y) lie in the core of a tile.

        All others lie outside the region of interest and its margin.
        """
        if len(self) == 0:
            return np.zeros(len(centroids), bool)
        inside: npt.NDArray[np.bool_] = self._tile_of(centroids) >= 0
        return inside

    def owner(
        self, box: tuple[float, float, float, float], centroid: tuple[float, float]
    ) -> int | None:
        """Return the index of the tile that owns a nucleus; None if no tile contains it."""
        index = int(self.owners(np.array([box], float), np.array([centroid], float))[0])
        return None if index < 0 else index

    def divide(
        self, tile: Tile, nuclei: NucleiTable
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Divide the nuclei found in a tile's view into owned and cut ones.

        Returns
        -------
        own : int64 ndarray
            Rows of the nuclei that the tile contains completely and owns.
        cut : int64 ndarray
            Rows of the nuclei that the border of its view cuts. All others belong to other tiles.
        """
        boxes = bounds(nuclei)
        whole = self._contains(tile.index, boxes)
        own = np.zeros(len(nuclei), bool)
        own[whole] = self.owners(boxes[whole], nuclei.take(whole).centroids()) == tile.index
        return np.flatnonzero(own), np.flatnonzero(~whole)

    def new_parts(self) -> list[Box | None]:
        """Return, for each tile, the box around the area that no earlier tile's box covers.

        Together, the boxes of a tile and its earlier neighbours cover its view, so that results of
        earlier tiles can be reused. They start and end at multiples of the alignment. A tile
        without a new area has None.
        """
        parts: list[Box | None] = []
        for tile in self:
            known = [parts[n.index] for n in self.neighbours(tile) if n.index < tile.index]
            unknown = shapely.difference(
                tile.view.polygon(),
                shapely.union_all([box.polygon() for box in known if box is not None]),
            )
            if shapely.is_empty(unknown):
                parts.append(None)
                continue
            x0, y0, x1, y1 = (limit / self.alignment for limit in unknown.bounds)
            corners = (math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
            parts.append(Box(*(corner * self.alignment for corner in corners)))
        return parts

    @contextmanager
    def errors_naming(self, tile: Tile) -> Iterator[None]:
        """Add the tile's position to errors of the ``with`` block."""
        where = f"tile {tile.index + 1} of {len(self)} at {tile.core[:2]}"
        try:
            yield
        except QpnucleiError as error:
            raise type(error)(f"{where}: {error.what}", error.hint) from error
        except Exception as error:
            error.add_note(f"in {where}")
            raise

    def neighbours(self, tile: Tile) -> list[Tile]:
        """Return the other tiles with views that overlap that of a tile, in plan order."""
        columns = self._x.overlapping(tile.column)
        rows = self._y.overlapping(tile.row)
        indices = self._grid[rows[0] : rows[1], columns[0] : columns[1]].ravel()
        indices = indices[(indices >= 0) & (indices != tile.index)]
        meets = (self._low[indices] < self._high[tile.index]).all(axis=1)
        meets &= (self._high[indices] > self._low[tile.index]).all(axis=1)
        return [self._tiles[i] for i in indices[meets].tolist()]


def _integers(
    low: npt.NDArray[np.float64], high: npt.NDArray[np.float64]
) -> list[tuple[int, int, int, int]]:
    """Return boxes from their (n, 2) lower and upper corners."""
    boxes: list[tuple[int, int, int, int]] = (
        np.concatenate([low, high], axis=1).astype(np.int64).tolist()
    )
    return boxes
