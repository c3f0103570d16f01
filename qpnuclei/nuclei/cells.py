"""Cell outlines around nuclei: what lies near a nucleus, and nearer to it than to any other.

So does QuPath (``CellTools``): a nucleus is widened by a distance, and cut along the Voronoi
diagram of all nuclei. The diagram is that of points on their outlines.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.table import NucleiTable

#: Points on the outlines are at most so far apart, in µm.
_STEP_UM = 0.5
#: Vertices for a quarter of a circle around the corner of a nucleus, as in QuPath.
_QUARTER = 8

Geometries = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]


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
        Further nuclei that bound the cells: at least those within two distances.
    distance_um : float
        How far cells reach beyond their nuclei, in µm.
    mpp : (float, float)
        Pixel size along x and y, in µm.
    image_size : (int, int)
        Width and height in px; no cell reaches beyond.

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
    one, other = tree.query(every, predicate="dwithin", distance=2 * distance_um)
    crowded = np.unique(one[one != other])
    bounded = crowded[crowded < n]
    if len(bounded):
        faces = _nearest(every, crowded)[: len(bounded)]
        cells[bounded] = _areas(shapely.intersection(cells[bounded], faces))
    cells = _apart(cells, every, tree)
    points = shapely.point_on_surface(every)
    cells = _without_empty_holes(_parts_with(cells, points[:n]), points)
    return _rounded(shapely.transform(cells, lambda xy: xy / scale))


def _nearest(every: Geometries, chosen: npt.NDArray[np.int64]) -> Geometries:
    """Return, for each of some outlines, what lies nearer to it than to the others of them.

    It is unbounded where no other is near: the result then ends far away.
    """
    from scipy.spatial import Voronoi, cKDTree

    points, owner = _points(every[chosen])
    begin, end = points.min(axis=0), points.max(axis=0)
    centre, reach = (begin + end) / 2, 10 * (np.max(end - begin) + 1)
    # Four points far away bound all others.
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
    """Return (M, 2) points on outlines, and whose they are; none that two outlines share."""
    points, owner = shapely.get_coordinates(
        shapely.segmentize(outlines, _STEP_UM), return_index=True
    )
    points = np.round(points, 6)
    order = np.lexsort(points.T)
    points, owner = points[order], owner[order]
    starts = np.flatnonzero(np.append(True, np.any(points[1:] != points[:-1], axis=1)))
    alone = np.minimum.reduceat(owner, starts) == np.maximum.reduceat(owner, starts)
    return points[starts[alone]], owner[starts[alone]]


def _apart(cells: Geometries, every: Geometries, tree: shapely.STRtree) -> Geometries:
    """Take the other nuclei out of the cells of the first ones, and put their own in."""
    cell, nucleus = tree.query(cells, predicate="intersects")
    cell, nucleus = (v[cell != nucleus] for v in (cell, nucleus))
    order = np.argsort(cell, kind="stable")
    cell, nucleus = cell[order], nucleus[order]
    touched, starts = np.unique(cell, return_index=True)
    strangers = [shapely.union_all(part) for part in np.split(every[nucleus], starts[1:])]
    cells = cells.copy()
    if len(touched):
        cells[touched] = shapely.difference(cells[touched], strangers)
    return np.asarray(shapely.union(cells, every[: len(cells)]), dtype=object)


def _areas(geometries: Geometries) -> Geometries:
    """Return geometries without the lines and points in which two outlines touch."""
    mixed = shapely.get_type_id(geometries) == shapely.GeometryType.GEOMETRYCOLLECTION
    for row in np.flatnonzero(mixed).tolist():
        parts = shapely.get_parts(shapely.get_parts(geometries[row]))
        geometries[row] = shapely.multipolygons(parts[shapely.area(parts) > 0])
    return geometries


def _parts_with(areas: Geometries, points: Geometries) -> Geometries:
    """Return of each area the polygon that holds a point."""
    parts, of = shapely.get_parts(areas, return_index=True)
    holding = shapely.contains_properly(parts, points[of])
    result = np.full(len(areas), None, dtype=object)
    result[of[holding]] = parts[holding]
    return result


def _without_empty_holes(cells: Geometries, points: Geometries) -> Geometries:
    """Fill the holes that hold no point: mostly rounding, between nuclei that touch."""
    for row in np.flatnonzero(shapely.get_num_interior_rings(cells)).tolist():
        shell, *holes = shapely.get_rings(cells[row])
        kept = [h for h in holes if shapely.contains_xy(shapely.Polygon(h), *_xy(points)).any()]
        cells[row] = shapely.Polygon(shell, kept)
    return cells


def _xy(points: Geometries) -> FloatArray:
    coordinates: FloatArray = shapely.get_coordinates(points).T
    return coordinates


def _rounded(cells: Geometries) -> NucleiTable:
    """Return outlines as float32, valid."""
    polygons = NucleiTable.from_polygons(cells).polygons()
    for row in np.flatnonzero(~shapely.is_valid(polygons)).tolist():
        parts = shapely.get_parts(shapely.make_valid(polygons[row], method="structure"))
        cells[row] = max(shapely.get_parts(parts), key=shapely.area)
    return NucleiTable.from_polygons(cells)
