"""Join the nuclei of all tiles, so that every nucleus occurs once and whole.

A nucleus that some tile sees whole is taken only from the tile that owns it (`TilePlan.owners`). A
nucleus that no tile sees whole is found in fragments, which are cut to disjoint areas and joined
with Shapely. Nuclei of neighbouring tiles are compared by the area of their intersection. Outlines
follow pixel edges, so that area is a sum over vertical edges, computed in compiled loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.outlines import bounds, canonical
from qpnuclei.nuclei.table import NucleiTable, NucleiTables
from qpnuclei.system.compiled import compiled
from qpnuclei.tiling.plan import Box, Tile, TilePlan

#: Two outlines show the same nucleus if they share more than this part of the smaller one.
_SAME = 0.5

GeometryArray = npt.NDArray[Any]
IndexArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class StitchReport:
    """Counts of a stitching.

    Parameters
    ----------
    fragments : int
        Nuclei cut by the border of a tile's view.
    covered : int
        Fragments that were dropped because another tile saw their nucleus whole.
    joined : int
        Nuclei that were joined from fragments.
    overlapping : int
        Nuclei that were dropped because they overlap a larger one of another tile by more than
        half: the two tiles saw the same nucleus differently.
    """

    fragments: int
    covered: int
    joined: int
    overlapping: int


class Stitcher:
    """Collects the nuclei of tiles in any order, and returns final nuclei in plan order.

    Memory holds the nuclei of tiles with missing neighbours, and the fragments of nuclei that no
    tile sees whole.

    Parameters
    ----------
    plan : TilePlan
    """

    def __init__(self, plan: TilePlan) -> None:
        self._plan = plan
        self._added: set[int] = set()
        self._settled: set[int] = set()
        #: Nuclei of the tiles that were added, until the tile and its neighbours are settled.
        self._whole: dict[int, _Outlines] = {}
        self._fragments: dict[int, _Outlines] = {}
        #: What the nuclei of `_whole` become.
        self._results: dict[int, NucleiTable] = {}
        self._junctions: dict[int, IndexArray] = {}
        #: Final nuclei that wait until those of all earlier tiles have been returned.
        self._ready: dict[int, NucleiTable] = {}
        self._given = 0
        self.fragments = 0
        self.covered = 0
        self.overlapping = 0

    def add(
        self,
        tile: Tile,
        own: NucleiTable,
        cut: NucleiTable,
        result: NucleiTable | None = None,
        junctions: IndexArray | None = None,
    ) -> list[NucleiTable]:
        """Add the nuclei of one tile, as split by `TilePlan.divide`.

        Parameters
        ----------
        tile : Tile
        own : NucleiTable
            Nuclei that the tile sees whole and owns, in px of the plan, along pixel edges and
            without holes, as `polygonise` makes them.
        cut : NucleiTable
            Nuclei that the border of its view cuts, likewise.
        result : NucleiTable, optional
            Returned in place of `own`, row by row, for example smoothed and measured; by default
            `own` itself.
        junctions : (J, 2) int64 ndarray, optional
            Where the outlines of `cut` meet others (`qpnuclei.nuclei.smoothing.junctions`).

        Returns
        -------
        list of NucleiTable
            The nuclei (with their centroid in the core of a tile) of tiles that are now final, one
            table each. Over all calls and `finish`, tables have the order of the plan, regardless
            of the order in which tiles are added.

        Raises
        ------
        ValueError
            If the tile was added before.
        """
        if tile.index in self._added:
            raise ValueError(f"tile {tile.index} was added twice")
        self._added.add(tile.index)
        self._whole[tile.index] = _Outlines(own)
        self._fragments[tile.index] = _Outlines(cut)
        self._results[tile.index] = own if result is None else result
        if junctions is not None and len(junctions):
            self._junctions[tile.index] = junctions
        self.fragments += len(cut)
        for candidate in (tile, *self._plan.neighbours(tile)):
            if self._all(candidate, self._added):
                self._settle(candidate)
        given = []
        while self._given in self._ready:
            given.append(self._ready.pop(self._given))
            self._given += 1
        return given

    def finish(self) -> tuple[list[NucleiTable], NucleiTable, IndexArray]:
        """Return the remaining nuclei after the last tile.

        Returns
        -------
        whole : list of NucleiTable
            As `add` returns them.
        joined : NucleiTable
            Nuclei joined from fragments, along pixel edges, from top to bottom, without
            measurements. Some may be duplicates of whole ones: see `drop_duplicates`.
        junctions : (J, 2) int64 ndarray
            Where the outlines of their fragments meet others.
        """
        for index in sorted(self._added - self._settled):
            self._settle(self._plan[index])
        ready = [self._ready[index] for index in sorted(self._ready)]
        nowhere = np.empty((0, 2), np.int64)
        junctions = np.concatenate(
            [nowhere, *(self._junctions[i] for i in sorted(self._junctions))]
        )
        return ready, self._join(), junctions

    def _all(self, tile: Tile, indices: set[int]) -> bool:
        """Return whether a set contains a tile and its neighbours."""
        return tile.index in indices and all(
            neighbour.index in indices for neighbour in self._plan.neighbours(tile)
        )

    def _settle(self, tile: Tile) -> None:
        """Drop fragments and nuclei of a tile that its neighbours supersede."""
        self._settled.add(tile.index)
        own, fragments = self._whole[tile.index], self._fragments.pop(tile.index)
        dropped = np.zeros(len(own.nuclei), bool)
        covered_area = np.zeros(len(fragments.nuclei))
        neighbours = self._plan.neighbours(tile)
        for neighbour in neighbours:
            if neighbour.index not in self._added:
                continue
            other = self._whole[neighbour.index]
            # A fragment in this view belongs to a nucleus that crosses its border.
            reaching = _meets(other.boxes, tile.view) & ~_within(other.boxes, tile.view)
            first, _, common = _overlaps(fragments, other, np.flatnonzero(reaching))
            covered_area += np.bincount(first, weights=common, minlength=len(covered_area))

            first, second, common = _overlaps(own, other)
            mine, theirs = own.areas[first], other.areas[second]
            loses = (mine < theirs) | ((mine == theirs) & (tile.index > neighbour.index))
            dropped[first[loses & (common > _SAME * np.minimum(mine, theirs))]] = True
        self.overlapping += int(dropped.sum())
        # Views also show nuclei around the region.
        stays = ~dropped & self._plan.answers_for(own.nuclei.centroids())
        self._ready[tile.index] = self._results.pop(tile.index).take(stays)
        covered = covered_area > _SAME * fragments.areas
        self.covered += int(covered.sum())
        if not covered.all():
            self._fragments[tile.index] = _Outlines(fragments.nuclei.take(~covered))
        else:
            self._junctions.pop(tile.index, None)
        for candidate in (tile, *neighbours):
            if self._all(candidate, self._settled):
                del self._whole[candidate.index]

    def _join(self) -> NucleiTable:
        """Join the fragments of nuclei that no tile sees whole."""
        if not self._fragments:
            return NucleiTable.empty()
        indices = sorted(self._fragments)
        polygons = {index: self._fragments[index].nuclei.polygons() for index in indices}
        sizes = [len(polygons[index]) for index in indices]
        start = dict(zip(indices, np.cumsum([0, *sizes]).tolist(), strict=False))
        links: list[npt.NDArray[np.int64]] = [np.empty((2, 0), np.int64)]
        pieces = []
        for index in indices:
            tile, fragments = self._plan[index], polygons[index]
            for neighbour in self._plan.neighbours(tile):
                if neighbour.index > index and neighbour.index in polygons:
                    shared = shapely.intersection(tile.view.polygon(), neighbour.view.polygon())
                    first, second = _continuations(fragments, polygons[neighbour.index], shared)
                    links.append(np.stack([first + start[index], second + start[neighbour.index]]))
            others = [n.core.polygon() for n in self._plan.neighbours(tile)]
            region = shapely.difference(tile.view.polygon(), shapely.union_all(others))
            pieces.append(shapely.intersection(fragments, region, grid_size=1))
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


@dataclass(frozen=True, eq=False)
class _Outlines:
    """Nuclei of a tile, with the data for comparing them."""

    nuclei: NucleiTable

    @cached_property
    def boxes(self) -> FloatArray:
        """(N, 4) bounding boxes."""
        return bounds(self.nuclei)

    @cached_property
    def hull(self) -> FloatArray:
        """The box around all of them."""
        return _hull(self.boxes)

    @cached_property
    def areas(self) -> FloatArray:
        """(N,) areas."""
        if len(self.nuclei) == 0:
            return np.empty(0)
        starts, stops = self.exteriors
        x, y = self.nuclei.vertices.T.astype(np.float64)
        strips = np.append(x[:-1] * np.diff(y), 0)
        strips[stops] = 0  # from the end of one outline to the start of the next
        return np.abs(np.add.reduceat(strips, starts))

    @cached_property
    def exteriors(self) -> tuple[IndexArray, IndexArray]:
        """First and last vertex of each outline."""
        rings, ring_offsets = self.nuclei.polygon_offsets[:-1], self.nuclei.ring_offsets
        return ring_offsets[rings], ring_offsets[rings + 1] - 1


def _overlaps(
    a: _Outlines, b: _Outlines, rows: IndexArray | None = None
) -> tuple[IndexArray, IndexArray, FloatArray]:
    """Return the pairs of rows of `a` and `b` whose boxes overlap, and their common area.

    If rows of `b` are given, only those are compared.
    """
    near = _meets(b.boxes if rows is None else b.boxes[rows], a.hull)
    theirs = np.flatnonzero(near) if rows is None else rows[near]
    mine = np.flatnonzero(_meets(a.boxes, _hull(b.boxes[theirs])))
    first, second = np.nonzero(_meets(a.boxes[mine, None], b.boxes[theirs].T))
    first, second = mine[first], theirs[second]
    common = _areas_in_common(
        a.nuclei.vertices, *a.exteriors, first, b.nuclei.vertices, *b.exteriors, second
    )
    return first, second, common


@compiled
def _areas_in_common(
    a: npt.NDArray[np.float32],
    a_starts: IndexArray,
    a_stops: IndexArray,
    first: IndexArray,
    b: npt.NDArray[np.float32],
    b_starts: IndexArray,
    b_stops: IndexArray,
    second: IndexArray,
) -> FloatArray:
    """Return the area in common of rings ``first[k]`` of a and ``second[k]`` of b.

    Both run along pixel edges. In every pixel row, a ring's indicator function is a sum of step
    functions, from 1 to 0 at each vertical edge, with the sign of the edge's direction. The product
    of two such steps ends at the edge farther left.
    """
    common = np.empty(len(first))
    for pair in range(len(first)):
        area = 0.0
        for i in range(a_starts[first[pair]], a_stops[first[pair]]):
            x, y0, y1 = np.float64(a[i, 0]), a[i, 1], a[i + 1, 1]
            if y0 == y1:
                continue
            for j in range(b_starts[second[pair]], b_stops[second[pair]]):
                v0, v1 = b[j, 1], b[j + 1, 1]
                height = min(max(y0, y1), max(v0, v1)) - max(min(y0, y1), min(v0, v1))
                if height > 0:
                    width = min(x, b[j, 0])
                    area += height * width if (y1 > y0) == (v1 > v0) else -height * width
        common[pair] = abs(area)
    return common


def _same(a: GeometryArray, b: GeometryArray) -> tuple[IndexArray, IndexArray]:
    """Return the pairs of polygons of `a` and `b` that show the same nucleus."""
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    second, first = shapely.STRtree(a).query(b, predicate="intersects")
    common = shapely.area(shapely.intersection(a[first], b[second]))
    smaller = np.minimum(shapely.area(a)[first], shapely.area(b)[second])
    same = common > _SAME * smaller
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


def _hull(boxes: FloatArray) -> FloatArray:
    """Return the bounding box of boxes; one that intersects nothing if there are none."""
    low = boxes[:, :2].min(axis=0, initial=np.inf)
    high = boxes[:, 2:].max(axis=0, initial=-np.inf)
    return np.concatenate([low, high])


def _meets(boxes: FloatArray, other: Box | FloatArray) -> npt.NDArray[np.bool_]:
    """Return which boxes overlap another one: x0, y0, x1, y1, or an array of each."""
    x0, y0, x1, y1 = other
    meets: npt.NDArray[np.bool_] = (
        (boxes[..., 0] < x1) & (boxes[..., 2] > x0) & (boxes[..., 1] < y1) & (boxes[..., 3] > y0)
    )
    return meets


def _within(boxes: FloatArray, other: Box) -> npt.NDArray[np.bool_]:
    """Return which boxes lie inside another one without touching its border."""
    x0, y0, x1, y1 = other
    within: npt.NDArray[np.bool_] = (
        (boxes[:, 0] > x0) & (boxes[:, 2] < x1) & (boxes[:, 1] > y0) & (boxes[:, 3] < y1)
    )
    return within
