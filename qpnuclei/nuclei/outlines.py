"""Outlines of instances along pixel edges, in canonical form.

A ring starts at its uppermost, then leftmost vertex, goes to the right first, and has a vertex only
where it turns. So the same nucleus has the same vertices in every tile.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.run_lengths import IntArray, runs_of_labels
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.system.compiled import compiled

#: Instead of a number of sides: the label touches itself at a corner.
_PINCHED = -1


def polygonise(
    labels: IntArray, origin: tuple[int, int] = (0, 0)
) -> tuple[NucleiTable, npt.NDArray[np.int64]]:
    """Trace the outline of every label along the edges of its pixels.

    Parameters
    ----------
    labels : (H, W) int ndarray
        0 is background. Every label is one region with a simple outline, as
        `qpnuclei.segmentation.postprocess.segment_instances` makes them.
    origin : (x, y) of int
        Upper left corner of the map.

    Returns
    -------
    nuclei : NucleiTable
        N closed rings in px of the map (shifted by `origin`), in ascending order of labels. The
        area of a polygon is the number of its pixels. The signed area in (x, y) is positive, as
        GeoJSON requires of exteriors.
    ids : (N,) int64 ndarray
        The labels.

    Raises
    ------
    ValueError
        If a label is in several parts, has a hole, or touches itself at a corner.

    Notes
    -----
    A ring is traced from the first pixel of its label. It is the whole outline if it passes both
    ends of every run of the label. If the label had another part or a hole, the ring would miss
    some of these ends.
    """
    runs = runs_of_labels(labels)
    ids, first, n_runs = np.unique(runs.labels, return_index=True, return_counts=True)
    vertices, ring_offsets, n_sides = _walk(
        np.ascontiguousarray(labels), runs.starts[first], 4 * len(runs.starts) + len(ids)
    )
    if np.any(n_sides == _PINCHED):
        raise ValueError(f"label {ids[n_sides == _PINCHED][0]} touches itself at a corner")
    if np.any(n_sides != 2 * n_runs):
        wrong = ids[n_sides != 2 * n_runs][0]
        raise ValueError(f"label {wrong} is not one region with a simple outline")
    vertices += np.asarray(origin)
    nuclei = NucleiTable(vertices.astype(np.float32), ring_offsets, np.arange(len(ids) + 1))
    return nuclei, ids.astype(np.int64)


@compiled
def _walk(
    labels: IntArray, firsts: npt.NDArray[np.int64], capacity: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Trace N regions, each from the first pixel of its label in row-major order.

    Returns
    -------
    vertices : (V, 2) int64 ndarray
        x and y of the corners where the rings turn; each ring ends with its first vertex.
    ring_offsets : (N + 1,) int64 ndarray
        Offsets of the rings in `vertices`.
    n_sides : (N,) int64 ndarray
        Number of vertical pixel edges of each ring, or `_PINCHED`.

    Notes
    -----
    The region is on the right-hand side. The two pixels ahead, right and left, determine the next
    direction. `capacity` is the largest possible number of vertices, four per run and one per
    region: a run has two vertical edges with two ends each, and a ring repeats one vertex.
    """
    height, width = labels.shape
    vertices = np.empty((capacity, 2), np.int64)
    ring_offsets = np.zeros(len(firsts) + 1, np.int64)
    n_sides = np.zeros(len(firsts), np.int64)
    size = 0
    for ring, first in enumerate(firsts):
        y0, x0 = divmod(first, width)
        label = labels[y0, x0]
        vertices[size, 0], vertices[size, 1] = x0, y0
        size += 1
        x, y, dx, dy = x0 + 1, y0, 1, 0
        while x != x0 or y != y0:
            # The centres of the two pixels ahead: half a pixel forward, half a pixel to the side.
            right_x, right_y = x + (dx - dy - 1) // 2, y + (dy + dx - 1) // 2
            left_x, left_y = x + (dx + dy - 1) // 2, y + (dy - dx - 1) // 2
            right = 0 <= right_x < width and 0 <= right_y < height
            right = right and labels[right_y, right_x] == label
            left = 0 <= left_x < width and 0 <= left_y < height
            left = left and labels[left_y, left_x] == label
            if left and not right:
                n_sides[ring] = _PINCHED
                break
            if left or not right:
                vertices[size, 0], vertices[size, 1] = x, y
                size += 1
                dx, dy = (dy, -dx) if left else (-dy, dx)
            n_sides[ring] += abs(dy)
            x, y = x + dx, y + dy
        vertices[size, 0], vertices[size, 1] = x0, y0
        size += 1
        ring_offsets[ring + 1] = size
    return vertices[:size], ring_offsets, n_sides


def canonical(polygons: npt.NDArray[Any]) -> NucleiTable:
    """Return N Shapely polygons along pixel edges in canonical form, with their holes filled."""
    rings = []
    for exterior in shapely.get_exterior_ring(polygons):
        points = shapely.get_coordinates(exterior)[:-1]
        before, after = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
        points = points[before[:, 0] * after[:, 1] != before[:, 1] * after[:, 0]]
        if not shapely.is_ccw(exterior):
            points = points[::-1]
        start = np.lexsort((points[:, 0], points[:, 1]))[0]
        points = np.roll(points, -start, axis=0)
        rings.append(np.concatenate([points, points[:1]]))
    if not rings:
        return NucleiTable.empty()
    ring_offsets = np.zeros(len(rings) + 1, np.int64)
    np.cumsum([len(ring) for ring in rings], out=ring_offsets[1:])
    vertices = np.concatenate(rings).astype(np.float32)
    return NucleiTable(vertices, ring_offsets, np.arange(len(rings) + 1))


def cut_to_image(
    nuclei: NucleiTable, image_size: tuple[int, int]
) -> tuple[NucleiTable, npt.NDArray[np.int64]]:
    """Cut N outlines in level-0 px at the right and lower border of the image.

    The last working pixels reach beyond the image if it is not a whole number of them.

    Parameters
    ----------
    image_size : (int, int)
        Width and height in level-0 px.

    Returns
    -------
    nuclei : NucleiTable
        The outlines inside the image; of an outline in several parts, the largest.
    rows : int64 ndarray
        Their rows in the table given: outlines entirely outside are left out.
    """
    beyond = np.flatnonzero((bounds(nuclei)[:, 2:] > image_size).any(axis=1))
    if not len(beyond):
        return nuclei, np.arange(len(nuclei))
    polygons = nuclei.polygons()
    cut = shapely.intersection(polygons[beyond], shapely.box(0, 0, *image_size))
    polygons[beyond] = shapely.orient_polygons([_largest_part(area) for area in cut])
    rows = np.flatnonzero(shapely.area(polygons) > 0)
    return rounded(polygons[rows], nuclei.take(rows).measurements), rows


def rounded(
    polygons: npt.NDArray[Any], measurements: Mapping[str, npt.NDArray[np.float32]] | None = None
) -> NucleiTable:
    """Round N Shapely polygons to the float32 of a table, and make them valid again."""
    table = NucleiTable.from_polygons(polygons, measurements)
    in_table = table.polygons()
    invalid = np.flatnonzero(~shapely.is_valid(in_table))
    if not len(invalid):
        return table
    polygons = polygons.copy()
    for row in invalid.tolist():
        polygons[row] = _largest_part(shapely.make_valid(in_table[row], method="structure"))
    return NucleiTable.from_polygons(polygons, measurements)


def _largest_part(area: shapely.Geometry) -> shapely.Polygon:
    """Return the largest polygon of an area; an empty one if there is none."""
    polygons = [part for part in shapely.get_parts(area) if part.geom_type == "Polygon"]
    return max(polygons, key=shapely.area, default=shapely.Polygon())


def bounds(nuclei: NucleiTable) -> npt.NDArray[np.float64]:
    """Return the (N, 4) bounding boxes: x0, y0, x1, y1."""
    if len(nuclei) == 0:
        return np.empty((0, 4))
    starts = nuclei.ring_offsets[nuclei.polygon_offsets[:-1]]
    low = np.minimum.reduceat(nuclei.vertices, starts)
    high = np.maximum.reduceat(nuclei.vertices, starts)
    return np.concatenate([low, high], axis=1).astype(np.float64)
