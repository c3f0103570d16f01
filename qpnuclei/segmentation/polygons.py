"""Outlines of instances along pixel edges, in one canonical form.

A ring starts at its upper, then leftmost vertex, runs to the right first, and has a vertex only
where it turns: the same nucleus gives the same vertices, whichever tile it was seen in.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei import NucleiTable
from qpnuclei.segmentation.windows import IntArray, mixed_windows


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
        Where the upper left corner of the map lies.

    Returns
    -------
    nuclei : NucleiTable
        N closed rings in px of the map (shifted by `origin`), by rising label. The area of a
        polygon is the number of its pixels. Rings have a positive signed area in (x, y), as
        GeoJSON wants of exteriors.
    ids : (N,) int64 ndarray
        The labels.

    Raises
    ------
    ValueError
        If a label is in several parts, has a hole, or touches itself at a corner.

    Notes
    -----
    An outline turns at a grid point where one or three of the four pixels around it have the
    label. Such vertices on one grid line, taken in order and in pairs, are the ends of its edges
    on that line; so two sorts give both neighbours of every vertex.
    """
    corners, pixels = mixed_windows(labels)
    vertex_parts, label_parts = [], []
    for pixel in pixels:
        turns = (pixel.label != 0) & ~pixel.diagonal & (pixel.beside == pixel.below)
        pinched = (pixel.label != 0) & pixel.diagonal & ~pixel.beside & ~pixel.below
        if pinched.any():
            raise ValueError(f"label {pixel.label[pinched][0]} touches itself at a corner")
        vertex_parts.append(corners[turns])
        label_parts.append(pixel.label[turns].astype(np.int64))
    width = labels.shape[1] + 1
    vertices, owner = np.concatenate(vertex_parts), np.concatenate(label_parts)
    by_row = np.argsort(owner * (width * (labels.shape[0] + 1)) + vertices)
    vertices, owner = vertices[by_row], owner[by_row]
    y, x = np.divmod(vertices, width)

    ids, starts, counts = np.unique(owner, return_index=True, return_counts=True)
    across = np.arange(len(owner)) ^ 1  # consecutive in (label, y, x): the ends of one edge
    by_column = np.lexsort((y, x, owner))
    down = np.empty_like(across)
    down[by_column] = by_column[across]

    ring_offsets = np.zeros(len(ids) + 1, np.int64)
    np.cumsum(counts + 1, out=ring_offsets[1:])
    order = np.empty(ring_offsets[-1], np.int64)
    # All rings are walked at once, two vertices a step, until the last is back at its start.
    ring = np.arange(len(ids))
    at, out = starts, ring_offsets[:-1]
    while len(ring):
        order[out] = at
        order[out + 1] = turned = across[at]
        at, out = down[turned], out + 2
        home = at == starts[ring]
        if np.any(home != (out + 1 == ring_offsets[ring + 1])):
            wrong = ids[ring[home != (out + 1 == ring_offsets[ring + 1])][0]]
            raise ValueError(f"label {wrong} is not one region with a simple outline")
        if home.any():
            order[out[home]] = at[home]
            ring, at, out = ring[~home], at[~home], out[~home]
    outline = np.stack([x[order] + origin[0], y[order] + origin[1]], axis=1)
    nuclei = NucleiTable(
        outline.astype(np.float32).reshape(-1, 2), ring_offsets, np.arange(len(ids) + 1)
    )
    return nuclei, ids


def canonical(polygons: npt.NDArray[Any]) -> NucleiTable:
    """Bring the exteriors of N Shapely polygons along pixel edges into the form of `polygonise`.

    Holes are filled: only the exteriors are taken.
    """
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


def bounds(nuclei: NucleiTable) -> npt.NDArray[np.float64]:
    """Return the (N, 4) bounding boxes: x0, y0, x1, y1."""
    if len(nuclei) == 0:
        return np.empty((0, 4))
    starts = nuclei.ring_offsets[nuclei.polygon_offsets[:-1]]
    low = np.minimum.reduceat(nuclei.vertices, starts)
    high = np.maximum.reduceat(nuclei.vertices, starts)
    return np.concatenate([low, high], axis=1).astype(np.float64)


def simplify(nuclei: NucleiTable, tolerance: float) -> NucleiTable:
    """Leave out vertices so that no outline moves by more than `tolerance`.

    Parameters
    ----------
    nuclei : NucleiTable
    tolerance : float
        In the unit of the vertices; 0 returns the table as it is.

    Returns
    -------
    NucleiTable
        Valid polygons, none of them empty: where leaving out vertices would make one invalid or
        move it too far, it stays as it was.

    Notes
    -----
    Douglas-Peucker with GEOS's guard of the topology, polygon by polygon: neighbours that shared
    an edge may overlap by up to the tolerance afterwards.
    """
    if tolerance < 0:
        raise ValueError(f"tolerance must not be negative, but is {tolerance!r}")
    if tolerance == 0 or len(nuclei) == 0:
        return nuclei
    before = nuclei.polygons()
    after = shapely.simplify(before, tolerance, preserve_topology=True)
    # GEOS keeps small rings from collapsing, at times by moving them farther than it may.
    moved = shapely.hausdorff_distance(shapely.boundary(before), shapely.boundary(after))
    bad = ~shapely.is_valid(after) | (shapely.area(after) == 0) | (moved > tolerance)
    after[bad] = before[bad]
    return NucleiTable.from_polygons(after, nuclei.measurements)
