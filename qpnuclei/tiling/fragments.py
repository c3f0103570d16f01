"""Nuclei that no tile sees whole: their fragments are joined with Shapely."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.outlines import bounds, canonical
from qpnuclei.nuclei.table import NucleiTable, NucleiTables
from qpnuclei.tiling.plan import TilePlan
from qpnuclei.tiling.tile_overlaps import SAME_SHARE

IndexArray = npt.NDArray[np.int64]
GeometryArray = npt.NDArray[Any]


def join_fragments(plan: TilePlan, fragments: Mapping[int, NucleiTable]) -> NucleiTable:
    """Join the fragments of nuclei that no tile sees whole.

    Parameters
    ----------
    plan : TilePlan
    fragments : mapping of int to NucleiTable
        Fragments along pixel edges, by the index of the tile that cuts them.

    Returns
    -------
    NucleiTable
        As `Stitcher.finish` returns them.
    """
    if not fragments:
        return NucleiTable.empty()
    indices = sorted(fragments)
    polygons = {index: fragments[index].polygons() for index in indices}
    sizes = [len(polygons[index]) for index in indices]
    start = dict(zip(indices, np.cumsum([0, *sizes]).tolist(), strict=False))
    links: list[npt.NDArray[np.int64]] = [np.empty((2, 0), np.int64)]
    pieces = []
    for index in indices:
        tile, own = plan[index], polygons[index]
        for neighbour in plan.neighbours(tile):
            if neighbour.index > index and neighbour.index in polygons:
                shared = shapely.intersection(tile.view.polygon(), neighbour.view.polygon())
                first, second = _continuations(own, polygons[neighbour.index], shared)
                links.append(np.stack([first + start[index], second + start[neighbour.index]]))
        others = [n.core.polygon() for n in plan.neighbours(tile)]
        region = shapely.difference(tile.view.polygon(), shapely.union_all(others))
        pieces.append(shapely.intersection(own, region, grid_size=1))
    total = sum(sizes)
    first, second = np.concatenate(links, axis=1)
    nucleus = _connected(total, first, second)
    all_pieces = np.concatenate(pieces)
    order = np.argsort(nucleus, kind="stable")
    groups = np.split(all_pieces[order], np.cumsum(np.bincount(nucleus))[:-1])
    unions = [shapely.union_all(group, grid_size=1) for group in groups]
    joined = canonical(_parts(np.array(unions, dtype=object))[0])
    # From top to bottom, then left to right, by the first vertex.
    starts = joined.vertices[joined.ring_offsets[:-1]]
    joined = joined.take(np.lexsort((starts[:, 0], starts[:, 1])))
    # Taking the exterior fills holes, so a nucleus joined inside a hole is part of it.
    outlines = joined.polygons()
    first, second = _same(outlines, outlines)
    area = shapely.area(outlines)
    loses = (area[first] < area[second]) | ((area[first] == area[second]) & (first > second))
    return joined.take(np.setdiff1d(np.arange(len(joined)), first[loses]))


def _connected(total: int, first: IndexArray, second: IndexArray) -> npt.NDArray[np.integer[Any]]:
    """Return the number of the group of each of so many things, linked in pairs."""
    if len(first) == 0:
        return np.arange(total)
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(total, total))
    groups: npt.NDArray[np.integer[Any]] = connected_components(graph, directed=False)[1]
    return groups


def drop_duplicates(found: NucleiTables, joined: NucleiTable) -> tuple[npt.NDArray[np.bool_], int]:
    """Drop the smaller of a joined and a whole nucleus that are the same.

    Parameters
    ----------
    found : NucleiTables
        The whole ones, which are changed in place.
    joined : NucleiTable
        N nuclei in the same coordinates.

    Returns
    -------
    kept : (N,) bool ndarray
        Joined nuclei to keep.
    dropped : int
        Number of dropped nuclei of both kinds.
    """
    kept = np.ones(len(joined), bool)
    dropped = 0
    polygons = joined.polygons()
    area = shapely.area(polygons)
    tree = shapely.STRtree(polygons)
    for i in range(len(found) if len(joined) else 0):
        table = found[i]
        near = np.unique(tree.query(shapely.box(*bounds(table).T))[0])
        whole = table.take(near).polygons()
        first, second = _same(whole, polygons)
        loses = shapely.area(whole)[first] < area[second]
        kept[second[~loses]] = False
        lost = np.unique(near[first[loses]])
        if len(lost):
            found[i] = table.take(np.setdiff1d(np.arange(len(table)), lost))
        dropped += len(lost)
    return kept, dropped + int(np.count_nonzero(~kept))


def _same(a: GeometryArray, b: GeometryArray) -> tuple[IndexArray, IndexArray]:
    """Return the pairs of polygons of `a` and `b` that show the same nucleus."""
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    second, first = shapely.STRtree(a).query(b, predicate="intersects")
    common = shapely.area(shapely.intersection(a[first], b[second]))
    smaller = np.minimum(shapely.area(a)[first], shapely.area(b)[second])
    same = common > SAME_SHARE * smaller
    return first[same], second[same]


def _continuations(
    a: GeometryArray, b: GeometryArray, shared: shapely.Polygon
) -> tuple[IndexArray, IndexArray]:
    """Return the pairs of fragments of two tiles that show the same part of the shared area.

    A nucleus may have several parts in the shared area, and different ones in each tile: so parts
    are compared, not fragments.
    """
    parts_a, rows_a = _parts(shapely.intersection(a, shared, grid_size=1))
    parts_b, rows_b = _parts(shapely.intersection(b, shared, grid_size=1))
    first, second = _same(parts_a, parts_b)
    return rows_a[first], rows_b[second]


def _parts(geometries: GeometryArray) -> tuple[GeometryArray, IndexArray]:
    """Return the polygons of geometries (no points or lines), and the index of their geometry."""
    parts, rows = shapely.get_parts(geometries, return_index=True)
    # A part of an intersection may be a collection itself.
    parts, deeper = shapely.get_parts(parts, return_index=True)
    polygonal = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    polygonal &= ~shapely.is_empty(parts)
    return parts[polygonal], rows[deeper][polygonal]
