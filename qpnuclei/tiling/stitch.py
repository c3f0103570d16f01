"""Join the nuclei of all tiles, so that every nucleus occurs once and whole.

A nucleus that some tile sees whole is taken only from the tile that owns it (`TilePlan.owners`),
unless a neighbour sees it differently (`tile_overlaps`). A nucleus that no tile sees whole is found
in fragments, which are cut to disjoint areas and joined (`fragments`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.tiling.fragments import join_fragments
from qpnuclei.tiling.plan import Tile, TilePlan
from qpnuclei.tiling.tile_overlaps import SAME_SHARE, TileOutlines, meets, overlaps, within

IndexArray = npt.NDArray[np.int64]


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
        self._whole: dict[int, TileOutlines] = {}
        self._fragments: dict[int, TileOutlines] = {}
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
        self._whole[tile.index] = TileOutlines(own)
        self._fragments[tile.index] = TileOutlines(cut)
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
        fragments = {index: of_tile.nuclei for index, of_tile in self._fragments.items()}
        return ready, join_fragments(self._plan, fragments), junctions

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
            reaching = meets(other.boxes, tile.view) & ~within(other.boxes, tile.view)
            first, _, common = overlaps(fragments, other, np.flatnonzero(reaching))
            covered_area += np.bincount(first, weights=common, minlength=len(covered_area))

            first, second, common = overlaps(own, other)
            mine, theirs = own.areas[first], other.areas[second]
            loses = (mine < theirs) | ((mine == theirs) & (tile.index > neighbour.index))
            dropped[first[loses & (common > SAME_SHARE * np.minimum(mine, theirs))]] = True
        self.overlapping += int(dropped.sum())
        # Views also show nuclei around the region.
        stays = ~dropped & self._plan.answers_for(own.nuclei.centroids())
        self._ready[tile.index] = self._results.pop(tile.index).take(stays)
        covered = covered_area > SAME_SHARE * fragments.areas
        self.covered += int(covered.sum())
        if not covered.all():
            self._fragments[tile.index] = TileOutlines(fragments.nuclei.take(~covered))
        else:
            self._junctions.pop(tile.index, None)
        for candidate in (tile, *neighbours):
            if self._all(candidate, self._settled):
                del self._whole[candidate.index]
