"""The pixels inside outlines and labels, by QuPath's rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.run_lengths import runs_of_labels

T = TypeVar("T", bound=np.generic)
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Pixels:
    """The pixels of N regions of an (H, W) image.

    Parameters
    ----------
    indices : (M,) int64 ndarray
        Row-major indices of the pixels, region after region.
    counts : (N,) int64 ndarray
        Number of pixels of each region.
    """

    indices: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]

    @property
    def regions(self) -> npt.NDArray[np.int64]:
        """(M,) region of every pixel."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def of(self, image: npt.NDArray[T]) -> npt.NDArray[T]:
        """Return the (M, ...) values of an (H, W, ...) image."""
        return np.take(image.reshape(-1, *image.shape[2:]), self.indices, axis=0)


def pixels_of_labels(labels: npt.NDArray[np.integer[Any]], ids: npt.ArrayLike) -> Pixels:
    """Return the pixels of the N labels `ids` in an (H, W) label map.

    They are the same as those of `pixels_of_polygons` for outlines along pixel edges.
    """
    ids = np.asarray(ids, dtype=np.int64)
    runs = runs_of_labels(labels)
    rank = np.full(int(max(runs.labels.max(initial=0), ids.max(initial=0))) + 1, -1, np.int64)
    rank[ids] = np.arange(len(ids))
    regions = rank[runs.labels]
    order = np.argsort(regions, kind="stable")
    order = order[regions[order] >= 0]
    lengths = runs.lengths[order]
    counts = np.bincount(regions[order], weights=lengths, minlength=len(ids)).astype(np.int64)
    # The index of pixel n is the start of its run, plus n, minus the number of pixels before it.
    before = np.cumsum(lengths) - lengths
    indices = np.repeat(runs.starts[order] - before, lengths)
    indices += np.arange(len(indices))
    return Pixels(indices, counts)


def pixels_of_polygons(
    polygons: npt.NDArray[Any], shape: tuple[int, int], origin: tuple[int, int] = (0, 0)
) -> Pixels:
    """Return the pixels that QuPath counts as inside N polygons.

    Parameters
    ----------
    polygons : (N,) object ndarray of shapely.Polygon
        In px; holes are allowed. Pixels outside of the image are left out.
    shape : (H, W) of int
        Size of the image.
    origin : (x, y) of int
        Upper left corner of the image. It does not change which pixels are inside, not even those
        with a centre on an outline.

    Notes
    -----
    Scan lines go through the pixel centres, and a centre is inside if it lies to the right of an
    odd number of edges. A centre on a left or upper edge is outside, one on a right or lower edge
    inside. QuPath turns a rectangle with sides along x and y into a RectangleROI. That covers
    ``ceil(width)`` columns from ``floor(x)``, and rows in the same way.
    """
    height, width = shape
    top, bottom = origin[1], origin[1] + height
    is_rectangle = _rectangles(polygons)
    region, row, x0, x1 = _scan(polygons, top, bottom)
    keep = ~is_rectangle[region]
    corner = np.floor(shapely.bounds(polygons[is_rectangle]).reshape(-1, 4)[:, :2]).astype(np.int64)
    end = corner + np.ceil(_sizes(polygons[is_rectangle])).astype(np.int64)
    first, last = np.clip(corner[:, 1], top, bottom), np.clip(end[:, 1], top, bottom)
    rectangle, step = _spread(last - first)
    region = np.concatenate([region[keep], np.flatnonzero(is_rectangle)[rectangle]])
    row = np.concatenate([row[keep], first[rectangle] + step])
    x0 = np.concatenate([x0[keep], corner[rectangle, 0]])
    x1 = np.concatenate([x1[keep], end[rectangle, 0]])

    row, x0, x1 = row - top, x0 - origin[0], x1 - origin[0]
    x0, x1 = np.clip(x0, 0, width), np.clip(x1, 0, width)
    keep = x1 > x0
    region, row, x0, x1 = region[keep], row[keep], x0[keep], x1[keep]
    order = np.argsort(region, kind="stable")
    region, row, x0, x1 = region[order], row[order], x0[order], x1[order]
    run, step = _spread(x1 - x0)
    counts = np.bincount(region, weights=x1 - x0, minlength=len(polygons)).astype(np.int64)
    return Pixels(row[run] * width + x0[run] + step, counts)


def _scan(
    polygons: npt.NDArray[Any], top: int, bottom: int
) -> tuple[
    npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]
]:
    """Return the runs of pixels inside: polygon, row, first column, one past the last.

    Rows are those from `top` to before `bottom`: an outline may reach far beyond the image.
    """
    rings, ring_polygon = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    is_edge = ring[1:] == ring[:-1]
    start, stop = points[:-1][is_edge], points[1:][is_edge]
    polygon = ring_polygon[ring[:-1][is_edge]]
    low = np.minimum(start[:, 1], stop[:, 1])
    high = np.maximum(start[:, 1], stop[:, 1])
    first, last = (
        np.clip(np.floor(y - 0.5) + 1, top, bottom).astype(np.int64) for y in (low, high)
    )
    edge, step = _spread(last - first)
    row = first[edge] + step
    start, stop = start[edge], stop[edge]
    slope = (stop[:, 0] - start[:, 0]) / (stop[:, 1] - start[:, 1])
    x = start[:, 0] + (row + 0.5 - start[:, 1]) * slope
    polygon = polygon[edge]
    order = np.lexsort((x, row, polygon))
    polygon, row, x = polygon[order][::2], row[order][::2], np.floor(x[order] - 0.5)
    column = x.astype(np.int64) + 1
    return polygon, row, column[::2], column[1::2]


def _spread(
    lengths: npt.NDArray[np.int64],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return (i, k) for every k in ``range(lengths[i])``, for every i."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - (np.cumsum(lengths) - lengths)[owner]


def _sizes(polygons: npt.NDArray[Any]) -> FloatArray:
    boxes = shapely.bounds(polygons).reshape(-1, 4)
    sizes: FloatArray = boxes[:, 2:] - boxes[:, :2]
    return sizes


def _rectangles(polygons: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell which polygons have four corners and sides along x and y."""
    found = shapely.get_num_coordinates(polygons) == 5
    boxes = shapely.bounds(polygons[found]).reshape(-1, 1, 2, 2)
    points = shapely.get_coordinates(polygons[found]).reshape(-1, 5, 2)
    at_corners = (points == boxes[:, :, 0]) | (points == boxes[:, :, 1])
    found[found] = at_corners.all(axis=(1, 2)) & (shapely.area(polygons[found]) > 0)
    rectangles: npt.NDArray[np.bool_] = found
    return rectangles
