"""Cell outlines around nuclei, by the rule of QuPath (``CellTools``).

A nucleus is expanded by a distance, and cut along the Voronoi diagram of all nuclei. The diagram is
computed from points on their outlines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.outlines import rounded
from qpnuclei.nuclei.table import NucleiTable

#: Largest distance between neighbouring points on the outlines, in µm.
_STEP_UM = 0.5
#: Segments per quarter circle around the corner of a nucleus, as in QuPath.
_QUARTER = 8

Geometries = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


def reach_um(distance_um: float) -> float:
    """Return how far from a nucleus another one can limit its cell, in µm.

    A point of a cell is at most `distance_um` from the nucleus, so another nucleus that is nearer
    to the point is within twice that distance. The points that stand for outlines add `_STEP_UM`.
    """
    return 2 * distance_um + _STEP_UM


def cell_outlines(
    nuclei: NucleiTable,
    others: NucleiTable,
    distance_um: float,
    mpp: tuple[float, float],
    image_size: tuple[int, int],
) -> NucleiTable:
    """Return the outline of the cell around each of N nuclei.

    Parameters
    ----------
    nuclei : NucleiTable
        In level-0 px. None may overlap another by more than rounding.
    others : NucleiTable
        Further nuclei that bound the cells: at least those within `reach_um`. Those farther away
        change nothing.
    distance_um : float
        Expansion of the nuclei, in µm.
    mpp : (float, float)
        Pixel size along x and y, in µm.
    image_size : (int, int)
        Width and height in px; cells are cut at the image border.

    Returns
    -------
    NucleiTable
        N outlines in level-0 px, without measurements. Each contains its nucleus, and none overlaps
        another or its nucleus, up to the rounding to float32.
    """
    if len(nuclei) == 0:
        return NucleiTable.empty()
    n, scale = len(nuclei), np.array(mpp)
    every = np.concatenate([nuclei.polygons(), others.polygons()])
    every = shapely.transform(every, lambda xy: xy * scale)
    shapely.prepare(every)
    width, height = image_size * scale
    cells = shapely.buffer(every[:n], distance_um, quad_segs=_QUARTER)
    cells = _areas(shapely.intersection(cells, shapely.box(0, 0, width, height)))
    tree = shapely.STRtree(every)
    pairs = tree.query(every[:n], predicate="dwithin", distance=reach_um(distance_um))
    crowded = np.unique(pairs[:, pairs[0] != pairs[1]])
    bounded = crowded[crowded < n]
    if len(bounded):
        faces = _voronoi_cells(every, crowded)[: len(bounded)]
        cells[bounded] = _areas(shapely.intersection(cells[bounded], faces))
    cells = _apart(cells, every, tree)
    points = shapely.point_on_surface(every)
    cells = _without_empty_holes(_parts_with(cells, points[:n]), points)
    return rounded(shapely.transform(cells, lambda xy: xy / scale))


def _voronoi_cells(every: Geometries, chosen: npt.NDArray[np.int64]) -> Geometries:
    """Return, for each chosen outline, the area nearer to it than to the other chosen ones.

    An unbounded area is cut far away from all outlines.
    """
    from scipy.spatial import Voronoi, cKDTree

    points, owner = _points(every[chosen])
    low, high = points.min(axis=0), points.max(axis=0)
    centre, reach = (low + high) / 2, 10 * (np.max(high - low) + 1)
    # Four points far away bound the areas of all others.
    corners = centre + reach * np.array([(-1, -1), (-1, 1), (1, -1), (1, 1)])
    diagram = Voronoi(np.concatenate([points, corners]) - centre)
    owner = np.append(owner, [-1] * 4)
    ends = np.array(diagram.ridge_vertices)
    ends = ends[np.ptp(owner[diagram.ridge_points], axis=1) > 0]
    lines = shapely.linestrings(diagram.vertices[ends[(ends >= 0).all(axis=1)]])
    faces = shapely.get_parts(shapely.polygonize(lines))
    inside = shapely.get_coordinates(shapely.point_on_surface(faces))
    of_face = owner[cKDTree(diagram.points).query(inside)[1]]
    order = np.flatnonzero(of_face >= 0)
    order = order[np.argsort(of_face[order], kind="stable")]
    of, starts = np.unique(of_face[order], return_index=True)
    result = np.full(len(chosen), shapely.MultiPolygon(), dtype=object)
    parts = np.split(faces[order], starts[1:])
    result[of] = [p[0] if len(p) == 1 else shapely.multipolygons(p) for p in parts]
    return np.asarray(shapely.transform(result, lambda xy: xy + centre), dtype=object)


def _points(outlines: Geometries) -> tuple[FloatArray, npt.NDArray[np.int64]]:
    """Return (M, 2) points on outlines, with the index of each outline.

    Points that two outlines share are left out.
    """
    points, owner = shapely.get_coordinates(
        shapely.segmentize(outlines, _STEP_UM), return_index=True
    )
    points = np.round(points, 6)
    order = np.lexsort(points.T)
    points, owner = points[order], owner[order]
    starts = np.flatnonzero(np.append(True, np.any(points[1:] != points[:-1], axis=1)))
    is_unshared = np.minimum.reduceat(owner, starts) == np.maximum.reduceat(owner, starts)
    return points[starts[is_unshared]], owner[starts[is_unshared]]


def _apart(cells: Geometries, every: Geometries, tree: shapely.STRtree) -> Geometries:
    """Subtract all other nuclei from each cell, and add its own nucleus."""
    cell, nucleus = tree.query(cells, predicate="intersects")
    cell, nucleus = (v[cell != nucleus] for v in (cell, nucleus))
    order = np.argsort(cell, kind="stable")
    cell, nucleus = cell[order], nucleus[order]
    touched, starts = np.unique(cell, return_index=True)
    others = [shapely.union_all(part) for part in np.split(every[nucleus], starts[1:])]
    cells = cells.copy()
    if len(touched):
        cells[touched] = shapely.difference(cells[touched], others)
    return np.asarray(shapely.union(cells, every[: len(cells)]), dtype=object)


def _areas(geometries: Geometries) -> Geometries:
    """Return geometries without lines and points, where two outlines touch."""
    mixed = shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION
    for row in np.flatnonzero(mixed).tolist():
        parts = shapely.get_parts(shapely.get_parts(geometries[row]))
        geometries[row] = shapely.multipolygons(parts[shapely.area(parts) > 0])
    return geometries


def _parts_with(areas: Geometries, points: Geometries) -> Geometries:
    """Return the polygon of each area that contains the point of that area."""
    parts, area = shapely.get_parts(areas, return_index=True)
    contains = shapely.contains_properly(parts, points[area])
    result = np.full(len(areas), None, dtype=object)
    result[area[contains]] = parts[contains]
    return result


def _without_empty_holes(cells: Geometries, points: Geometries) -> Geometries:
    """Fill holes without a point; most come from rounding between nuclei that touch."""
    for row in np.flatnonzero(shapely.get_num_interior_rings(cells)).tolist():
        shell, *holes = shapely.get_rings(cells[row])
        kept = [h for h in holes if shapely.contains_xy(shapely.Polygon(h), *_xy(points)).any()]
        cells[row] = shapely.Polygon(shell, kept)
    return cells


def _xy(points: Geometries) -> FloatArray:
    coordinates: FloatArray = shapely.get_coordinates(points).T
    return coordinates
