"""The grid of squares for tiles, along x and along y, and the parts of a region in its squares.

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
        Size of the image along this axis.
    cores : (n,) int64 ndarray
        Starts of the intervals.
    extents : (n,) int64 ndarray
        Start of the largest extent around each interval.
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
        """Return the intervals of the grid through `origin` that cover low to high."""
        first = math.floor((low - origin) / core_size)
        last = math.ceil((high - origin) / core_size)
        cores = np.arange(first, last, dtype=np.int64) * core_size + origin
        starts = (cores - halo) // alignment * alignment
        reach = int((cores + core_size + halo - starts).max(initial=0))
        return cls(core_size, image_size, cores, starts, -(-reach // alignment) * alignment)

    def interval_of(self, x: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
        """Return the half-open interval of each x; -1 or n outside all intervals."""
        beyond = x >= self.cores[-1] + self.core_size
        found: npt.NDArray[np.int64] = np.searchsorted(self.cores, x, side="right") - ~beyond
        return found

    def enclosing(
        self, intervals: npt.NDArray[np.float64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the range of intervals whose extent may contain each (x0, x1).

        Returns
        -------
        (first, stop) : (N,) int64 ndarrays
            First interval, and one past the last.
        """
        low = np.where(self.extents <= 0, -np.inf, self.extents)
        ends = self.extents + self.extent_size
        high = np.where(ends >= self.image_size, np.inf, ends)
        return (
            np.searchsorted(high, intervals[:, 1], side="right"),
            np.searchsorted(low, intervals[:, 0], side="left"),
        )

    def overlapping(self, i: int) -> tuple[int, int]:
        """Return the first interval whose extent may overlap that of i, and one past the last."""
        start = int(self.extents[i])
        stop = start + self.extent_size
        return (
            int(np.searchsorted(self.extents, start - self.extent_size, side="right")),
            int(np.searchsorted(self.extents, stop, side="left")),
        )


def bounds_inside(
    roi: shapely.Geometry, squares: npt.NDArray[np.object_]
) -> npt.NDArray[np.float64]:
    """Return the bounds of the region within each of N squares, as an (N, 4) float64 ndarray.

    Each part of the region is intersected only with the squares near it. The time to intersect the
    whole region with every square would grow with the square of the number of parts.
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
