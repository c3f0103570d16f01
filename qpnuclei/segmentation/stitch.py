"""Joining what the tiles found: every nucleus once and whole.

A nucleus that some tile sees whole comes from the tile that owns it (`TilePlan.owners`), and from
it alone. What is larger than any tile's view comes in fragments; they are cut to disjoint areas
and joined with Shapely.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from qpnuclei.nuclei import NucleiTable, concatenate
from qpnuclei.segmentation.polygons import bounds, canonical
from qpnuclei.segmentation.tiles import Box, Tile, TilePlan

#: Two outlines are of the same nucleus if more than this share of the smaller one is common.
_SAME = 0.5

GeometryArray = npt.NDArray[Any]
IndexArray = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class StitchReport:
    """What stitching did.

    Parameters
    ----------
    whole : int
        Nuclei that one tile saw whole.
    joined : int ndarray
        Rows of the nuclei that were joined from fragments and have no measurements yet.
    fragments : int
        Pieces cut by the border of a tile's view, of whatever nucleus.
    covered : int
        Fragments that were dropped because another tile saw their nucleus whole.
    overlapping : int
        Nuclei that were dropped because they overlap a larger one of another tile by more than
        half: the two tiles saw the same nucleus differently.
    """

    whole: int
    joined: IndexArray
    fragments: int
    covered: int
    overlapping: int


class Stitcher:
    """Collects the nuclei of the tiles of a plan, in whatever order they come.

    Memory holds the result, and beside it the fragments of tiles whose neighbours have not all
    come yet, and those of nuclei that are larger than any tile's view.

    Parameters
    ----------
    plan : TilePlan
    """

    def __init__(self, plan: TilePlan) -> None:
        self._plan = plan
        self._whole: dict[int, NucleiTable] = {}
        self._dropped: dict[int, npt.NDArray[np.bool_]] = {}
        self._fragments: dict[int, GeometryArray] = {}
        self._settled: set[int] = set()
        self._fragment_count = 0
        self._covered_count = 0

    def add(self, tile: Tile, own: NucleiTable, cut: NucleiTable) -> None:
        """Take what one tile found, as `TilePlan.divide` splits it.

        Parameters
        ----------
        tile : Tile
        own : NucleiTable
            Nuclei that the tile sees whole and owns, in px of the plan, with measurements.
        cut : NucleiTable
            Nuclei that the border of its view cuts.

        Raises
        ------
        ValueError
            If the tile was added before.
        """
        if tile.index in self._whole:
            raise ValueError(f"tile {tile.index} was added twice")
        self._whole[tile.index] = own
        self._fragments[tile.index] = cut.polygons()
        self._fragment_count += len(cut)
        for candidate in (tile, *self._plan.neighbours(tile)):
            if candidate.index in self._whole and all(
                neighbour.index in self._whole for neighbour in self._plan.neighbours(candidate)
            ):
                self._settle(candidate)

    def finish(self) -> tuple[NucleiTable, StitchReport]:
        """Join the fragments and return all nuclei whose centroid lies in the core of a tile.

        Returns
        -------
        nuclei : NucleiTable
            By owning tile in the order of the plan, then in the order the tile gave them; the
            joined ones at the end, from top to bottom, their measurements NaN. The order in which
            tiles were added plays no part.
        report : StitchReport
        """
        for index in sorted(self._whole.keys() - self._settled):
            self._settle(self._plan[index])
        joined = self._join()
        joined_dropped = np.zeros(len(joined), bool)
        joined_polygons = joined.polygons()
        joined_area = shapely.area(joined_polygons)
        tree = shapely.STRtree(joined_polygons)
        for index, whole in self._whole.items():
            near = np.unique(tree.query(shapely.box(*bounds(whole).T))[0])
            polygons = whole.take(near).polygons()
            first, second = _same(polygons, joined_polygons)
            loses = shapely.area(polygons)[first] < joined_area[second]
            self._dropped[index][near[first[loses]]] = True
            joined_dropped[second[~loses]] = True
        kept = [self._whole[i].take(~self._dropped[i]) for i in sorted(self._whole)]
        overlapping = sum(int(d.sum()) for d in self._dropped.values()) + int(joined_dropped.sum())
        # Around the region, nuclei are seen, too; at its outer border only parts of them.
        kept = [part.take(self._plan.answers_for(part.centroids())) for part in kept]
        joined = joined.take(~joined_dropped)
        joined = joined.take(self._plan.answers_for(joined.centroids()))
        whole_count = sum(map(len, kept))
        nuclei = concatenate([*kept, joined])
        report = StitchReport(
            whole=whole_count,
            joined=np.arange(whole_count, len(nuclei)),
            fragments=self._fragment_count,
            covered=self._covered_count,
            overlapping=overlapping,
        )
        return nuclei, report

    def _settle(self, tile: Tile) -> None:
        """Drop the fragments and nuclei of a tile that its neighbours, now known, make void."""
        self._settled.add(tile.index)
        own = self._whole[tile.index]
        fragments = self._fragments.pop(tile.index)
        own_boxes = bounds(own)
        dropped = np.zeros(len(own), bool)
        covered_area = np.zeros(len(fragments))
        for neighbour in self._plan.neighbours(tile):
            if neighbour.index not in self._whole:
                continue
            other = self._whole[neighbour.index]
            boxes = bounds(other)
            # A fragment in this view is of a nucleus that reaches across the border of it.
            reaching = _meets(boxes, tile.view) & ~_within(boxes, tile.view)
            first, _, common = _overlaps(fragments, other.take(reaching).polygons())
            covered_area += np.bincount(first, weights=common, minlength=len(fragments))

            theirs = np.flatnonzero(_meets(boxes, _hull(own_boxes)))
            mine = np.flatnonzero(_meets(own_boxes, _hull(boxes[theirs])))
            my_polygons, their_polygons = own.take(mine).polygons(), other.take(theirs).polygons()
            first, second = _same(my_polygons, their_polygons)
            my_area, their_area = shapely.area(my_polygons), shapely.area(their_polygons)
            loses = (my_area[first] < their_area[second]) | (
                (my_area[first] == their_area[second]) & (tile.index > neighbour.index)
            )
            dropped[mine[first[loses]]] = True
        self._dropped[tile.index] = dropped
        covered = covered_area > _SAME * shapely.area(fragments)
        self._covered_count += int(covered.sum())
        if not covered.all():
            self._fragments[tile.index] = fragments[~covered]

    def _join(self) -> NucleiTable:
        """Join the fragments of nuclei that no tile sees whole."""
        if not self._fragments:
            return NucleiTable.empty()
        indices = sorted(self._fragments)
        sizes = [len(self._fragments[index]) for index in indices]
        start = dict(zip(indices, np.cumsum([0, *sizes]).tolist(), strict=False))
        links: list[npt.NDArray[np.int64]] = [np.empty((2, 0), np.int64)]
        pieces = []
        for index in indices:
            tile, fragments = self._plan[index], self._fragments[index]
            for neighbour in self._plan.neighbours(tile):
                if neighbour.index > index and neighbour.index in self._fragments:
                    shared = shapely.intersection(tile.view.polygon(), neighbour.view.polygon())
                    first, second = _continuations(
                        fragments, self._fragments[neighbour.index], shared
                    )
                    links.append(np.stack([first + start[index], second + start[neighbour.index]]))
            others = [n.core.polygon() for n in self._plan.neighbours(tile)]
            region = shapely.difference(tile.view.polygon(), shapely.union_all(others))
            pieces.append(shapely.intersection(fragments, region, grid_size=1))
        total = sum(sizes)
        first, second = np.concatenate(links, axis=1)
        graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(total, total))
        count, nucleus = connected_components(graph, directed=False)
        all_pieces = np.concatenate(pieces)
        order = np.argsort(nucleus, kind="stable")
        groups = np.split(all_pieces[order], np.cumsum(np.bincount(nucleus, minlength=count))[:-1])
        unions = [shapely.union_all(group, grid_size=1) for group in groups]
        joined = canonical(_parts(np.array(unions, dtype=object))[0])
        # From top to bottom, then left to right, by the first vertex.
        starts = joined.vertices[joined.ring_offsets[:-1]]
        joined = joined.take(np.lexsort((starts[:, 0], starts[:, 1])))
        # An exterior fills the holes: what was joined inside of one is part of it.
        polygons = joined.polygons()
        first, second = _same(polygons, polygons)
        area = shapely.area(polygons)
        loses = (area[first] < area[second]) | ((area[first] == area[second]) & (first > second))
        return joined.take(np.setdiff1d(np.arange(len(joined)), first[loses]))


def _overlaps(
    a: GeometryArray, b: GeometryArray
) -> tuple[IndexArray, IndexArray, npt.NDArray[np.float64]]:
    """Return the pairs of rows of `a` and `b` that intersect, and the area in common."""
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0)
    second, first = shapely.STRtree(a).query(b, predicate="intersects")
    common = shapely.area(shapely.intersection(a[first], b[second]))
    return first, second, common


def _same(a: GeometryArray, b: GeometryArray) -> tuple[IndexArray, IndexArray]:
    """Return the pairs of rows of `a` and `b` that overlap as only one nucleus does."""
    first, second, common = _overlaps(a, b)
    smaller = np.minimum(shapely.area(a)[first], shapely.area(b)[second])
    same = common > _SAME * smaller
    return first[same], second[same]


def _continuations(
    a: GeometryArray, b: GeometryArray, shared: shapely.Polygon
) -> tuple[IndexArray, IndexArray]:
    """Return the pairs of fragments of two tiles that show the same part of the shared area.

    A nucleus that winds in and out of the shared area may be in several parts there, and in
    different ones for each tile: parts are compared, not fragments.
    """
    parts_a, rows_a = _parts(shapely.intersection(a, shared, grid_size=1))
    parts_b, rows_b = _parts(shapely.intersection(b, shared, grid_size=1))
    first, second = _same(parts_a, parts_b)
    return rows_a[first], rows_b[second]


def _parts(geometries: GeometryArray) -> tuple[GeometryArray, IndexArray]:
    """Return the polygons that geometries consist of (no points or lines), and whose they are."""
    parts, rows = shapely.get_parts(geometries, return_index=True)
    # A part of an intersection may be a collection itself.
    parts, deeper = shapely.get_parts(parts, return_index=True)
    polygonal = shapely.get_type_id(parts) == shapely.GeometryType.POLYGON
    polygonal &= ~shapely.is_empty(parts)
    return parts[polygonal], rows[deeper][polygonal]


def _hull(boxes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the box around boxes; one that nothing meets if there are none."""
    low = boxes[:, :2].min(axis=0, initial=np.inf)
    high = boxes[:, 2:].max(axis=0, initial=-np.inf)
    return np.concatenate([low, high])


def _meets(
    boxes: npt.NDArray[np.float64], other: Box | npt.NDArray[np.float64]
) -> npt.NDArray[np.bool_]:
    """Tell which boxes share an area with another one."""
    x0, y0, x1, y1 = other
    meets: npt.NDArray[np.bool_] = (
        (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
    )
    return meets


def _within(boxes: npt.NDArray[np.float64], other: Box) -> npt.NDArray[np.bool_]:
    """Tell which boxes lie inside another one without touching its border."""
    x0, y0, x1, y1 = other
    within: npt.NDArray[np.bool_] = (
        (boxes[:, 0] > x0) & (boxes[:, 2] < x1) & (boxes[:, 1] > y0) & (boxes[:, 3] < y1)
    )
    return within
