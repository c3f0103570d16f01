"""Search the areas that runs have analysed in an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.qupath.analysed_area import AnalysedArea
from qpnuclei.qupath.areas import (
    ROUNDING_PX,
    Parts,
    multipolygon,
    same_box,
    union,
    valid_area,
    without_slivers,
)
from qpnuclei.qupath.regions import same_outline


class AreaIndex:
    """Finds areas among those of an image, which may be as many as its annotations.

    Parameters
    ----------
    areas : sequence of AnalysedArea
        Those of the first plane, in any order.
    """

    def __init__(self, areas: Sequence[AnalysedArea]) -> None:
        self._areas = areas

    def of_id(self, own_id: UUID | None) -> list[AnalysedArea]:
        """Return the areas of the annotation with a UUID."""
        return self._by_id.get(own_id, [])

    def with_outline(self, geometry: shapely.Geometry) -> list[AnalysedArea]:
        """Return the areas that have this outline."""
        if not self._areas or geometry.is_empty:
            return []
        bounds = np.array(geometry.bounds)
        order, known = self._by_left_edge
        begin, end = np.searchsorted(known[:, 0], bounds[0] + np.array([-1, 1]) * 2 * ROUNDING_PX)
        apart = np.abs(known[begin:end] - bounds).max(axis=1)
        near = np.sort(order[begin:end][apart <= ROUNDING_PX])
        return [self._areas[row] for row in near if same_area(self._areas[row].geometry, geometry)]

    def meeting(self, geometry: shapely.Geometry) -> list[AnalysedArea]:
        """Return the areas that meet a geometry."""
        return [self._areas[row] for row in self._parts_covered.meeting(geometry)]

    def is_covered(self, geometry: shapely.Geometry, after: int) -> bool:
        """Return whether the runs after a turn covered a geometry."""
        return _cover([area for area in self.meeting(geometry) if area.turn > after], geometry)

    def is_superseded(self, geometry: shapely.Geometry, after: int) -> bool:
        """Return whether the runs after a turn describe all nuclei in a geometry."""
        later = [area for area in self.meeting(geometry) if area.turn > after]
        return _cover([area for area in later if not area.keeps_earlier], geometry)

    def with_nuclei_in(
        self,
        geometry: shapely.Geometry,
        is_wanted: Callable[[AnalysedArea], bool],
        own: Sequence[AnalysedArea] = (),
    ) -> Iterator[AnalysedArea]:
        """Yield the wanted areas of those whose nuclei are in a geometry, the latest first.

        Each run has replaced the nuclei of those before it, unless it kept them. Of one run, `own`
        are more exact than the areas around them.
        """
        near = self.meeting(geometry)
        if not any(map(is_wanted, near)):
            return
        runs: dict[int, list[AnalysedArea]] = {}
        for area in near:
            runs.setdefault(area.turn, []).append(area)
        rounding = rounding_of(geometry)
        rest = geometry
        for turn in sorted(runs, reverse=True):
            of_run = rest
            for is_own in (True, False):
                level = [a for a in runs[turn] if any(a is one for one in own) == is_own]
                for area in filter(is_wanted, level):
                    analysed = area.analysed
                    overlap = shapely.intersection(analysed, of_run).area
                    if overlap > min(rounding_of(analysed), rounding):
                        yield area
                of_run = shapely.difference(of_run, union(valid_area(a.geometry) for a in level))
                if of_run.area <= rounding:
                    break
            # A run keeps earlier nuclei in all of its areas or in none.
            if not runs[turn][0].keeps_earlier:
                rest = of_run
            if rest.area <= rounding:
                break

    @cached_property
    def _by_id(self) -> dict[UUID | None, list[AnalysedArea]]:
        found: dict[UUID | None, list[AnalysedArea]] = {}
        for area in self._areas:
            if area.id is not None:
                found.setdefault(area.id, []).append(area)
        return found

    @cached_property
    def _by_left_edge(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """The areas in the order of their left edges, and their bounds."""
        bounds = np.array([area.geometry.bounds for area in self._areas])
        order = np.argsort(bounds[:, 0])
        return order, bounds[order]

    @cached_property
    def _parts_covered(self) -> Parts:
        return Parts(valid_area(area.geometry) for area in self._areas)


def _cover(areas: Iterable[AnalysedArea], geometry: shapely.Geometry) -> bool:
    """Return whether areas cover a geometry, up to rounding."""
    rest = shapely.difference(geometry, union(valid_area(area.geometry) for area in areas))
    return bool(without_slivers(rest).is_empty)


def same_area(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two outlines are equal, ignoring vertices that QuPath drops on saving."""
    if shapely.equals_exact(a, b, ROUNDING_PX):  # the usual case, of very many annotations
        return True
    a, b = multipolygon(a), multipolygon(b)
    if a.is_empty or b.is_empty:
        return bool(a.is_empty and b.is_empty)
    if not same_box(a, b):
        return False
    if abs(a.area - b.area) > ROUNDING_PX * a.length:
        return False
    return same_outline(a, b) or float(shapely.hausdorff_distance(a, b)) <= ROUNDING_PX


def rounding_of(geometry: shapely.Geometry) -> float:
    """Return the largest part of an area that may be due to rounding, px²."""
    return float(min(ROUNDING_PX * geometry.length, geometry.area / 2))
