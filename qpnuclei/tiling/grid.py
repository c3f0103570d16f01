"""The grid of squares that tiles are made of, along x and along y, and a region in its squares.

All coordinates are in px of the working grid, in the image's frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import shapely


@dataclass(frozen=True, eq=False)
class Axis:
    """The grid along x or y: n intervals, and their largest extents.

    Parameters
    ----------
    core_size : int
        Length of an interval.
    image_size : int
        Of the image along this axis.
    cores : (n,) int64 ndarray
        Where the intervals start.
    extents : (n,) int64 ndarray
        Where the largest extent around each of them starts.
    extent_size : int
        Length of the largest extents.
    """

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
    ) -> Axis:
        """Return the intervals from `origin` on that cover low to high (see `TilePlan`)."""
        first = math.floor((low - origin) / core_size)
        last = math.ceil((high - origin) / core_size)
        cores = np.arange(first, last, dtype=np.int64) * core_size + origin
        starts = (cores - halo) // alignment * alignment
        reach = int((cores + core_size + halo - starts).max(initial=0))
        return cls(core_size, image_size, cores, starts, -(-reach // alignment) * alignment)

    def holding(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return which core holds each x (half-open); -1 or n outside of all."""
        beyond = x >= self.cores[-1] + self.core_size
        found: npt.NDArray[np.int64] = np.searchsorted(self.cores, x, side="right") - ~beyond
        return found

    def seeing(
        self, intervals: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the first and one past the last interval that may see each (x0, x1) whole."""
        low = np.where(self.extents <= 0, -np.inf, self.extents)
        ends = self.extents + self.extent_size
        high = np.where(ends >= self.image_size, np.inf, ends)
        return (
            np.searchsorted(high, intervals[:, 1], side="right"),
            np.searchsorted(low, intervals[:, 0], side="left"),
        )

    def overlapping(self, i: int) -> tuple[int, int]:
        """Return the first and one past the last interval whose view may overlap that of i."""
        start = int(self.extents[i])
        stop = start + self.extent_size
        return (
            int(np.searchsorted(self.extents, start - self.extent_size, side="right")),
            int(np.searchsorted(self.extents, stop, side="left")),
        )


def bounds_inside(
    roi: shapely.Geometry, squares: npt.NDArray[np.object_]
) -> npt.NDArray[np.float64]:
    """Return the bounds of what lies in each of N squares, as an (N, 4) float64 ndarray.

    Each part of the region is cut with the squares that it may meet: cutting the whole with every
    square takes time that grows as the square of the number of parts.
    """
    parts = shapely.get_parts(roi)
    square, part = shapely.STRtree(parts).query(squares)
    cut = shapely.bounds(shapely.intersection(parts[part], squares[square])).reshape(-1, 4)
    inside = np.full((len(squares), 4), np.nan)
    np.fmin.at(inside[:, :2], square, cut[:, :2])
    np.fmax.at(inside[:, 2:], square, cut[:, 2:])
    return inside


def ranges(roi: shapely.Geometry) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return (x0, x1) and (y0, y1) of a region; zeros if it is empty."""
    if shapely.is_empty(roi):
        return (0, 0), (0, 0)
    x0, y0, x1, y1 = shapely.bounds(roi).tolist()
    return (x0, x1), (y0, y1)
