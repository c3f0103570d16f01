"""The nuclei found in an image, grouped by region and class as the project stores them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.ids import NucleusIds, free_id, hashed_ids
from qpnuclei.nuclei.overlap import are_in_place_of
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.inference.plausibility import Doubts
from qpnuclei.pipeline.planning.image_plan import ImagePlan
from qpnuclei.pipeline.positivity import NucleusClasses
from qpnuclei.pipeline.summary import StoredResult
from qpnuclei.qupath.model import DetectionGroup, ImageEntry
from qpnuclei.qupath.regions import region_of, same_outlines
from qpnuclei.system.sequences import MadeOnDemand

_NO_DOUBTS = Doubts()


@dataclass(frozen=True, eq=False)
class NewNuclei:
    """The N nuclei that are to be written into an image.

    Parameters
    ----------
    entry : ImageEntry
        The image.
    tables : sequence of NucleiTable
        S tables in which the nuclei are sorted by region.
    counts : (S, R) int64 ndarray
        How many of each table belong to each of the plan's regions.
    outside : int
        Nuclei outside all regions, which are not written.
    doubts : Doubts
        Doubts about the nuclei.
    as_locked : frozenset of UUID
        Nuclei not written because a locked nucleus of an earlier run is in the same place.
    again : frozenset of UUID
        Nuclei not written because an earlier run found them with the same outline, and they stay.
    renamed : mapping of UUID to UUID
        New UUIDs of nuclei whose own is in use by another object, for example a copy elsewhere.
    found : sequence of NucleiTable
        All nuclei found, including those left out.
    """

    entry: ImageEntry
    tables: Sequence[NucleiTable]
    counts: npt.NDArray[np.int64]
    outside: int
    doubts: Doubts = _NO_DOUBTS
    as_locked: frozenset[UUID] = frozenset()
    again: frozenset[UUID] = frozenset()
    renamed: Mapping[UUID, UUID] = field(default_factory=dict)
    found: Sequence[NucleiTable] = ()

    def __len__(self) -> int:
        return int(self.counts.sum())

    def ids_of(self, table: NucleiTable) -> NucleusIds:
        """Return the UUIDs of nuclei as they are written."""
        ids = ids_of(table, self.entry)
        if not self.renamed:
            return ids
        octets = b"".join(self.renamed.get(own_id, own_id).bytes for own_id in ids)
        return NucleusIds(np.frombuffer(octets, np.uint8).reshape(-1, 16)[:, 6:])

    def groups(
        self, parents: Sequence[int | None], classes: NucleusClasses
    ) -> Sequence[DetectionGroup]:
        """Return detections for a project, made on demand, table by table.

        Parameters
        ----------
        parents : (R,) sequence of int or None
            Handles of the regions' annotations.
        classes : NucleusClasses
            Classes of the nuclei of a table and region.
        """
        return _Groups(self, parents, classes)


class _Groups(MadeOnDemand[DetectionGroup]):
    """The groups of `NewNuclei.groups`: one for each table and region that have any, and class."""

    def __init__(
        self,
        nuclei: NewNuclei,
        parents: Sequence[int | None],
        classes: NucleusClasses,
    ) -> None:
        self._nuclei = nuclei
        self._parents = parents
        self._classes = classes
        self._at = [
            (*at, code)
            for at in np.argwhere(nuclei.counts).tolist()
            for code in range(len(classes))
        ]
        # Groups of one table are requested one after the other: cache the table read last. The last
        # group is cached too: it is requested repeatedly if there is only one.
        self._table = lru_cache(1)(nuclei.tables.__getitem__)
        self._codes = lru_cache(1)(lambda number: classes.codes(self._table(number)))
        # The first row of each region in a table; the regions may be very many.
        self._starts = lru_cache(1)(
            lambda number: np.concatenate([[0], np.cumsum(nuclei.counts[number])])
        )
        self._ids: dict[int, NucleusIds] = {}
        self._group = lru_cache(1)(self._make)

    def __len__(self) -> int:
        return len(self._at)

    def _item(self, index: int) -> DetectionGroup:
        return self._group(*self._at[index])

    def _make(self, number: int, region: int, code: int) -> DetectionGroup:
        table = self._table(number)
        if number not in self._ids:
            self._ids[number] = self._nuclei.ids_of(table)
        ids = self._ids[number]
        start, stop = self._starts(number)[region : region + 2].tolist()
        rows = (start + np.flatnonzero(self._codes(number)[start:stop] == code)).tolist()
        path_class = self._classes.classes[code]
        return DetectionGroup(self._parents[region], table.take(rows), ids.take(rows), path_class)


def new_nuclei(
    plan: ImagePlan,
    found: Sequence[NucleiTable],
    doubts: Doubts = _NO_DOUBTS,
    stored: StoredResult | None = None,
) -> NewNuclei:
    """Assign each nucleus to its regions; leave out nuclei that are in none.

    Nuclei are also left out if their overlap with a locked nucleus of an earlier run is more than
    half of the smaller of the two, and if a nucleus of an earlier run that stays has the same
    outline. The UUID of a nucleus is a hash of the image and its outline, so it is the same if
    found again, but not if the image was renamed or duplicated in between.

    Parameters
    ----------
    found : sequence of NucleiTable
        In level-0 px. They are read in order, and again when they are written.
    stored : StoredResult, optional
        Of the same nuclei, if the run has written them already: the same ones are left out.
    """
    known, renamed = frozenset[UUID](), dict[UUID, UUID]()
    taken = plan.staying.ids
    staying, locked = map(shapely.STRtree, (plan.staying.outlines, plan.locked.outlines))
    if stored is not None:
        known, renamed = frozenset(stored.again + stored.as_locked), dict(stored.renamed)
        taken = frozenset()
        staying = locked = shapely.STRtree([])
    counts = np.zeros((len(found), len(plan.regions)), np.int64)
    orders: list[npt.NDArray[np.int64] | None] = []
    outside = 0
    again: set[UUID] = set()
    as_locked: set[UUID] = set()
    for number, of_table in enumerate(counts):
        table = found[number]
        region = region_of(table.centroids(), plan.regions)
        outside += int(np.count_nonzero(region < 0))
        if known:
            ids = ids_of(table, plan.entry)
            region[np.fromiter((own_id in known for own_id in ids), bool, len(table))] = -1
        if len(locked):  # first, because they are among those that stay, too
            rows = np.flatnonzero(region >= 0)
            in_place = rows[are_in_place_of(table.polygons()[rows], locked)]
            as_locked.update(ids_of(table.take(in_place), plan.entry))
            region[in_place] = -1
        if len(staying):
            rows = np.flatnonzero(region >= 0)
            repeated = rows[_are_repeats(table.polygons()[rows], staying)]
            again.update(ids_of(table.take(repeated), plan.entry))
            region[repeated] = -1
        if taken:  # all UUIDs of a large table take long
            ids = ids_of(table.take(np.flatnonzero(region >= 0)), plan.entry)
            renamed |= {own_id: free_id(own_id.bytes, taken) for own_id in ids if own_id in taken}
        by_region = np.argsort(region, kind="stable")[np.count_nonzero(region < 0) :]
        as_it_is = np.array_equal(by_region, np.arange(len(table)))
        orders.append(None if as_it_is else by_region)
        of_table += np.bincount(region[by_region], minlength=len(of_table))
    tables = _Sorted(found, orders)
    return NewNuclei(
        plan.entry,
        tables,
        counts,
        outside,
        doubts,
        frozenset(as_locked if stored is None else stored.as_locked),
        frozenset(again if stored is None else stored.again),
        renamed,
        found,
    )


def _are_repeats(outlines: npt.NDArray[Any], earlier: shapely.STRtree) -> npt.NDArray[np.bool_]:
    """Tell which of N outlines are equal to earlier ones, up to rounding."""
    at, met = earlier.query(outlines)
    found = np.zeros(len(outlines), bool)
    found[at[same_outlines(outlines[at], earlier.geometries[met])]] = True
    return found


class _Sorted(MadeOnDemand[NucleiTable]):
    """Tables whose nuclei are sorted on demand."""

    def __init__(
        self, tables: Sequence[NucleiTable], orders: Sequence[npt.NDArray[np.int64] | None]
    ) -> None:
        self._tables = tables
        self._orders = orders

    def __len__(self) -> int:
        return len(self._tables)

    def _item(self, index: int) -> NucleiTable:
        table, order = self._tables[index], self._orders[index]
        return table if order is None else table.take(order)


def ids_of(table: NucleiTable, entry: ImageEntry) -> NucleusIds:
    """Return UUIDs that are hashes of the image and the outlines."""
    salt = f"{entry.id}/{entry.name}".encode()
    ends = 8 * table.ring_offsets[table.polygon_offsets]
    outlines = table.vertices.astype("<f4").tobytes()
    return hashed_ids(salt + outlines[a:b] for a, b in itertools.pairwise(ends.tolist()))
