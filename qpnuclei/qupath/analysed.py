"""The record of which areas of an image were analysed, with which pixel sizes and stain vectors.

An annotation without nuclei is either empty or was never analysed; the nuclei alone do not show
which. A run therefore stores the analysed areas as an image property, a text in ``data.qpdata``.
QuPath 0.2 to 0.7 keep unknown properties when they save. A property is replaced by the next run; an
entry in QuPath's workflow would instead be added by every run. The user's annotations stay
unchanged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from itertools import compress
from types import MappingProxyType
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.qupath.analysed_area import (
    NO_AREA,
    AnalysedArea,
    Basis,
    pair,
    rows_of_json,
)
from qpnuclei.qupath.area_index import AreaIndex, rounding_of, same_area
from qpnuclei.qupath.areas import (
    ROUNDING_PX,
    Parts,
    multipolygon,
    polygonal,
    union,
    valid_area,
    without_slivers,
)
from qpnuclei.qupath.doubts import before_filter, by_place, together
from qpnuclei.qupath.model import Annotation
from qpnuclei.qupath.regions import Region, rows_inside
from qpnuclei.slides.calibration import Mpp
from qpnuclei.slides.stains import StainRows

_log = logging.getLogger(__name__)

#: Name of the image's property.
PROPERTY = "qpnuclei analysed"


class Status(StrEnum):
    """Whether a count covers the whole area."""

    ANALYSED = "analysed"
    NOT_ANALYSED = "not analysed"
    CHANGED = "changed since"
    #: Of several annotations, only some were analysed.
    PARTLY = "partly analysed"


@dataclass(frozen=True)
class UsedMpp:
    """The pixel size of the last run.

    Parameters
    ----------
    mpp : (float, float)
        µm per level-0 px in x and y.
    source : str
        Where it came from, for example ``"--mpp"``.
    project : (float, float) or None
        The project's pixel size at that time. If it differs now, the user has changed it since.
    """

    mpp: Mpp
    source: str
    project: Mpp | None

    @classmethod
    def of_json(cls, content: Any) -> UsedMpp:
        """Return the pixel size that `to_json` has written."""
        project = content["project"]
        return cls(
            pair(content["um"]),
            str(content["source"]),
            None if project is None else pair(project),
        )

    def to_json(self) -> dict[str, Any]:
        """Return the pixel size as JSON types."""
        return {"um": self.mpp, "source": self.source, "project": self.project}


@dataclass(frozen=True)
class Record:
    """The record of one image.

    Parameters
    ----------
    areas : tuple of AnalysedArea
    used : UsedMpp or None
        None if no run has analysed the image.
    check : str
        Why the last run found the whole image doubtful; empty if it did not.
    run : str
        Identifies the last run. A run that is resumed recognises its own results by it.
    earlier_runs : tuple of str
        Identify the runs before it, oldest first.
    stains : StainRows
        Those of the last run; empty for records of versions that did not store them.
    """

    areas: tuple[AnalysedArea, ...] = ()
    used: UsedMpp | None = None
    check: str = ""
    run: str = ""
    earlier_runs: tuple[str, ...] = ()
    stains: StainRows = ()

    @classmethod
    def of(cls, properties: Mapping[str, str], name: str) -> Record:
        """Read the record from the properties of an image; it is empty if there is none.

        A damaged record is ignored, with a warning that gives the image's `name`.
        """
        text = properties.get(PROPERTY)
        if text is None:
            return cls()
        try:
            content = json.loads(text)
            used = UsedMpp.of_json(content["pixel size"])
            stains = rows_of_json(content.get("stains", ()))
            usual = Basis(used.mpp, stains)
            return cls(
                tuple(AnalysedArea.of_json(area, usual) for area in content["areas"]),
                used,
                str(content.get("check", "")),
                str(content.get("run", "")),
                tuple(map(str, content.get("earlier runs", ()))),
                stains,
            )
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError):
            _log.warning("image %s: the record of earlier runs is damaged and was ignored", name)
            return cls()

    def to_properties(self) -> dict[str, str]:
        """Return the record as an image property."""
        usual = None if self.used is None else Basis(self.used.mpp, self.stains)
        content: dict[str, Any] = {
            "areas": [area.to_json(usual) for area in self.areas],
            "pixel size": self.used and self.used.to_json(),
            **({"stains": self.stains} if self.stains else {}),
            **({"check": self.check} if self.check else {}),
            **({"run": self.run} if self.run else {}),
            **({"earlier runs": self.earlier_runs} if self.earlier_runs else {}),
        }
        return {PROPERTY: json.dumps(content, separators=(",", ":"))}

    def with_run(
        self,
        regions: Sequence[Region],
        used: UsedMpp,
        removed: Sequence[Annotation] = (),
        check: str = "",
        checks: Sequence[str] = (),
        marker: str = "",
        *,
        nuclei: Sequence[int] = (),
        stains: StainRows = (),
        left_out: shapely.Geometry = NO_AREA,
        keeps_nuclei: bool = False,
        keeps_doubts: bool = True,
    ) -> Record:
        """Return the record after a run of some regions.

        Parameters
        ----------
        removed : sequence of Annotation
            Those that the run removed, with the nuclei in them unless it keeps nuclei.
        check, checks : str, sequence of str
            Why the run found the image, and each region, doubtful.
        marker : str
            Identifies the run.
        nuclei : sequence of int
            How many nuclei of qpnuclei each region has after the run.
        stains : StainRows
            With which it measured.
        left_out : shapely geometry
            The area that the run was asked for and excluded, also where it leaves no region.
        keeps_nuclei : bool
            Whether the nuclei of earlier runs stay, and so the areas where they were found.
        keeps_doubts : bool
            With `keeps_nuclei`, whether the regions contain results of earlier runs, so that the
            doubts about these, their pixel sizes and their stains stay.
        """
        turn = 1 + self._last_turn
        new = tuple(
            AnalysedArea(
                region.annotation.id if region.annotation else None,
                multipolygon(_whole(region)),
                doubt,
                _left_out_of(region),
                turn,
                bases=(Basis(used.mpp, stains),),
                nuclei=number,
            )
            for region, doubt, number in zip(
                regions,
                checks or [""] * len(regions),
                nuclei or [0] * len(regions),
                strict=True,
            )
        )
        earlier = (*self.earlier_runs, self.run) if self.run else self.earlier_runs
        if keeps_nuclei:
            if keeps_doubts:
                check = together([check, self.image_doubts()])
                new = self._with_earlier(new)
            return Record(tuple(self._beside(new, marker)), used, check, marker, earlier, stains)
        areas = (*self._left_after(new, removed, left_out), *new)
        index = AreaIndex(areas)
        # An area without a UUID tells nothing more once later runs have covered it.
        kept = tuple(
            area
            for area in areas
            if area.id or area.turn == turn or not index.is_superseded(area.analysed, area.turn)
        )
        return Record(kept, used, check, marker, earlier, stains)

    def _left_after(
        self,
        new: Sequence[AnalysedArea],
        removed: Sequence[Annotation],
        left_out: shapely.Geometry,
    ) -> Iterator[AnalysedArea]:
        """Yield what is left of the areas of earlier runs after a run that replaced nuclei."""
        of_run = AreaIndex(new)
        again = Parts(valid_area(area.geometry) for area in new)
        # There the run removed earlier nuclei, whichever annotation they belong to.
        gone = Parts(
            [
                *(valid_area(area.excluded) for area in new),
                left_out,
                *(polygonal(shapely.difference(a.area, again.near(a.area))) for a in removed),
            ]
        )
        edited = {area.id for area in new} | {annotation.id for annotation in removed}
        for area in self._of_earlier_runs():
            if of_run.with_outline(area.geometry):
                continue
            whole = valid_area(area.geometry)
            left = area.without(gone.near(whole))
            if area.id is not None and area.id in edited:
                left = left.outside(again.near(whole))
            if left.analysed.area > rounding_of(left.geometry):
                yield left

    def _beside(self, new: Sequence[AnalysedArea], marker: str) -> Iterator[AnalysedArea]:
        """Yield the areas after a run that removed no nuclei: what was analysed stays so."""
        of_run = AreaIndex(new)
        for area in self._of_earlier_runs():
            again = of_run.with_outline(area.geometry)
            if not any(_takes_the_place_of(one, area) for one in again):
                yield area
        for area in new:
            earlier = dict.fromkeys(self.runs_in(valid_area(area.geometry)))
            runs = (*earlier, marker) if earlier else ()
            # Beside the areas of earlier runs, this one says where its own run has looked.
            excluded = area.excluded if area.keeps_earlier else self._not_analysed_of(area.excluded)
            yield replace(area, excluded=excluded, runs=runs)

    def _with_earlier(self, new: Sequence[AnalysedArea]) -> tuple[AnalysedArea, ...]:
        """Return new areas with what is known of the nuclei of earlier runs that stay in them.

        If pixel sizes, stains or doubts hold only in a part of an area, they are left to the
        earlier areas, and no area of the run hides those.
        """
        joined = tuple(map(self._joined, new))
        if None in joined:
            return tuple(replace(area, keeps_earlier=True) for area in new)
        return tuple(area for area in joined if area is not None)

    def _joined(self, area: AnalysedArea) -> AnalysedArea | None:
        """Return a new area with what is known of all of it; None if that holds only in parts."""
        geometry = valid_area(area.geometry)
        told = (area.check, area.bases)
        others = self._index.with_nuclei_in(geometry, lambda one: (one.check, one.bases) != told)
        if next(others, None) is None:
            return area
        earlier = list(self._index.with_nuclei_in(geometry, lambda _: True))
        if not all(
            one.excluded.is_empty and same_area(one.geometry, area.geometry)
            for one in [area, *earlier]
        ):
            return None
        check = together([area.check, *(one.check for one in earlier)])
        bases = dict.fromkeys(basis for one in [*earlier, area] for basis in one.bases)
        return replace(area, check=check, bases=tuple(bases))

    def _not_analysed_of(self, geometry: shapely.Geometry) -> shapely.MultiPolygon:
        """Return the part of an area that no run has analysed, without slivers from rounding."""
        area = valid_area(geometry)
        return without_slivers(shapely.difference(area, self._parts_analysed.near(area)))

    def filtered(self) -> Record:
        """Return the record after nuclei were removed: marks doubts as older, forgets numbers."""
        areas = tuple(
            replace(
                area,
                check=before_filter(area.check),
                image_check=before_filter(area.image_check),
                nuclei=0,
            )
            for area in self.areas
        )
        return replace(self, areas=areas, check=before_filter(self.check))

    @cached_property
    def _last_turn(self) -> int:
        return max((area.turn for area in self.areas), default=0)

    def _of_earlier_runs(self) -> Iterator[AnalysedArea]:
        """Yield the areas; those of the last run also have what the record says of that run."""
        last = self._last_turn
        for area in self.areas:
            if area.turn != last:
                yield area
                continue
            # A run that only removes nuclei has no area: then the last ones have their own doubt.
            doubt = self.check or area.image_check
            yield replace(area, image_check=doubt, runs=self._runs_of(area))

    def _runs_of(self, area: AnalysedArea) -> tuple[str, ...]:
        """Return the runs whose nuclei are in an area, as far as they are known."""
        is_of_last = self.run and area.turn == self._last_turn
        return area.runs or ((self.run,) if is_of_last else ())

    def runs_in(self, geometry: shapely.Geometry) -> Iterator[str]:
        """Yield the runs whose nuclei are in a valid geometry (level-0 px), maybe repeatedly."""
        for area in self._index.meeting(geometry):
            valid = valid_area(area.geometry)
            part = polygonal(shapely.intersection(valid, geometry))
            is_part = part.area > min(rounding_of(valid), rounding_of(geometry))
            # Later runs have replaced the nuclei of a covered part, or name the run themselves.
            if is_part and not self._index.is_superseded(part, area.turn):
                yield from self._runs_of(area)

    def has_run(self, marker: str) -> bool:
        """Return whether the image holds the result of a run, or a part of it.

        It does not if no area of the run is left, or later runs have analysed all of them again.
        A run that excluded everything has no area: it is known while it is the last one.
        """
        return self.run == marker or any(
            marker in area.runs and not self._index.is_superseded(area.analysed, area.turn)
            for area in self.areas
        )

    def had_run(self, marker: str) -> bool:
        """Return whether a run was saved in the image; later ones may have replaced its result."""
        return marker == self.run or marker in self.earlier_runs

    @cached_property
    def covered(self) -> shapely.Geometry:
        """The areas that runs were asked to analyse, on the first plane: a valid geometry."""
        return union(valid_area(area.geometry) for area in self.areas)

    @cached_property
    def union(self) -> shapely.Geometry:
        """The analysed area of the first plane: a valid geometry, level-0 px."""
        return union(area.analysed for area in self.areas)

    @cached_property
    def left_out(self) -> shapely.Geometry:
        """The covered area that was excluded: a valid geometry, usually empty."""
        if all(area.excluded.is_empty for area in self.areas):
            return NO_AREA
        return valid_area(shapely.difference(self.covered, self.union))

    def analysed_part(self, region: Region, status: Status) -> Region:
        """Return the part of an annotation that was analysed, from its whole area and its status.

        It lacks what was excluded and, if the annotation was changed, what was added to it since.
        Its area and the nuclei in it make the density.
        """
        if status is Status.CHANGED:
            return Region(region.annotation, polygonal(self.intersection(region.geometry)))
        if self.left_out.is_empty:
            return region
        gone = self._parts_left_out.near(region.geometry)
        if gone.is_empty:
            return region
        rest = valid_area(shapely.difference(region.geometry, gone))
        return Region(region.annotation, rest)

    def intersection(self, geometry: shapely.Geometry) -> shapely.Geometry:
        """Return the part of a geometry that runs have analysed."""
        return shapely.intersection(geometry, self._parts_analysed.near(geometry))

    def part_not_analysed(self, region: Region) -> Region:
        """Return the part of a region that no run has analysed; it may be empty."""
        return Region(region.annotation, polygonal(self._not_analysed_of(region.geometry)))

    def has_analysed(self, geometry: shapely.Geometry) -> bool:
        """Return whether a run has analysed a part of a geometry."""
        return bool(self.intersection(geometry).area > rounding_of(geometry))

    def status(self, annotation: Annotation) -> Status:
        """Return whether an annotation was analysed with its present outline.

        An annotation drawn later counts as analysed if it lies entirely inside the analysed area.
        One that was edited counts as analysed if a later run has analysed all of its present area.
        """
        region = Region.of(annotation)
        if not self.areas or not annotation.is_area or region.plane != (0, 0):
            return Status.NOT_ANALYSED
        own = self._index.of_id(annotation.id)
        if self.has(annotation) or self._index.is_covered(
            region.geometry, own[-1].turn if own else -1
        ):
            status = Status.ANALYSED
        else:
            status = Status.CHANGED if own else Status.NOT_ANALYSED
        if status is Status.CHANGED or not self.left_out.is_empty:
            analysed = self.intersection(region.geometry).area
            if analysed <= rounding_of(region.geometry):
                return Status.NOT_ANALYSED
        return status

    def has(self, annotation: Annotation) -> bool:
        """Return whether a run has analysed an annotation itself, with its present outline."""
        return bool(self.areas_of(annotation))

    def areas_of(self, annotation: Annotation) -> list[AnalysedArea]:
        """Return the areas that are an annotation itself, with its present outline."""
        own = self._index.of_id(annotation.id)
        if own:
            return [area for area in own if same_area(area.geometry, annotation.area)]
        # QuPath adds missing UUIDs, so compare outlines.
        return self._index.with_outline(annotation.area)

    def emptied(
        self,
        centroids: npt.NDArray[np.float64],
        planes: npt.NDArray[np.int64],
        ours: npt.NDArray[np.bool_],
    ) -> list[AnalysedArea]:
        """Return the areas that had nuclei after their run, and have none of N given ones.

        A nucleus of another program is in an area only where nuclei count. Areas that meet those of
        later runs are left out: these may have replaced their nuclei.

        Parameters
        ----------
        centroids : (N, 2) float64 ndarray
            Level-0 px.
        planes : (N, 2) int64 ndarray
            z-slice and time point of each.
        ours : (N,) bool ndarray
            Whether qpnuclei wrote each.
        """
        had = [
            area
            for area in self.areas
            if area.nuclei
            and not any(later.turn > area.turn for later in self._index.meeting(area.geometry))
        ]
        whole = [Region(None, valid_area(area.geometry)) for area in had]
        counted = [self.analysed_part(region, Status.ANALYSED) for region in whole]
        has_none = _have_none(counted, centroids, planes)
        # Kept and locked nuclei of qpnuclei are in the stored number also where they do not count.
        has_none[has_none] = _have_none(
            list(compress(whole, has_none)), centroids[ours], planes[ours]
        )
        return list(compress(had, has_none))

    @cached_property
    def _index(self) -> AreaIndex:
        return AreaIndex(self.areas)

    @cached_property
    def _parts_analysed(self) -> Parts:
        return Parts(area.analysed for area in self.areas)

    @cached_property
    def _parts_left_out(self) -> Parts:
        return Parts(shapely.get_parts(self.left_out))

    def doubts_in(self, region: Region) -> str:
        """Return the `doubts` about a region, which may be tissue without an annotation."""
        if region.annotation is None:
            return self._doubts_in(region.geometry)
        return self.doubts(region.annotation)

    def doubts(self, annotation: Annotation) -> str:
        """Return why runs found the nuclei doubtful that are now in an annotation; empty if none.

        An annotation that was drawn later inherits the doubts of the areas that it overlaps.
        """
        if Region.of(annotation).plane != (0, 0):
            return ""
        return self._doubts_in(annotation.area, self._own_of(annotation))

    def _own_of(self, annotation: Annotation) -> Sequence[AnalysedArea]:
        return self._index.of_id(annotation.id) or self._index.with_outline(annotation.area)

    def other_bases(self, region: Region, now: Basis) -> tuple[Basis, ...]:
        """Return pixel sizes and stains unlike `now` of runs whose nuclei are now in a region."""
        if region.plane != (0, 0):
            return ()
        own = () if region.annotation is None else self._own_of(region.annotation)
        return _unlike(
            now,
            self._index.with_nuclei_in(
                region.geometry, lambda area: bool(_unlike(now, [area])), own
            ),
        )

    def has_other_bases(self, now: Basis) -> bool:
        """Return whether an area has others than `now`, maybe of nuclei replaced since."""
        return bool(_unlike(now, self.areas))

    def image_other_bases(self, now: Basis) -> tuple[Basis, ...]:
        """Return pixel sizes and stains unlike `now` of runs whose nuclei are now in the image."""
        return _unlike(
            now,
            (
                area
                for area in self.areas
                if _unlike(now, [area]) and not self._index.is_superseded(area.analysed, area.turn)
            ),
        )

    def image_doubts(self, names: Mapping[UUID | None, str] = MappingProxyType({})) -> str:
        """Return why runs found the nuclei doubtful that are now in the image; empty if none.

        Parameters
        ----------
        names : mapping of uuid.UUID to str
            Names of annotations, for doubts that are not about the whole image.
        """
        # A doubt about the image includes those about the areas of the same run.
        doubts = (
            ("", area.image_check) if area.image_check else (names.get(area.id, ""), area.check)
            for area in self._of_earlier_runs()
            if (area.image_check or area.check)
            and not self._index.is_superseded(area.analysed, area.turn)
        )
        return by_place([("", self.check), *doubts])

    def _doubts_in(self, geometry: shapely.Geometry, own: Sequence[AnalysedArea] = ()) -> str:
        """Return the doubts about the nuclei in a geometry."""
        doubted = self._index.with_nuclei_in(geometry, lambda area: bool(area.check), own)
        return together(area.check for area in doubted)


def _takes_the_place_of(new: AnalysedArea, earlier: AnalysedArea) -> bool:
    """Tell whether a new area says all that an earlier one with the same outline says."""
    if not new.keeps_earlier:
        return True
    told = [(area.check, area.bases) for area in (new, earlier)]
    return earlier.keeps_earlier and new.excluded.is_empty and told[0] == told[1]


def _have_none(
    regions: Sequence[Region], centroids: npt.NDArray[np.float64], planes: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which regions have none of N nuclei, neither inside nor within rounding of them."""
    has_none = np.ones(len(regions), bool)
    for margin in (0.0, ROUNDING_PX):  # a wider region is made only if it decides
        indices = np.flatnonzero(has_none)
        near = [regions[i] for i in indices.tolist()]
        if margin:
            near = [Region(None, shapely.buffer(region.geometry, margin)) for region in near]
        inside = rows_inside(near, centroids, planes)
        has_none[indices] = [len(rows) == 0 for rows in inside]
    return has_none


def _unlike(now: Basis, areas: Iterable[AnalysedArea]) -> tuple[Basis, ...]:
    """Return the pixel sizes and stains of areas that differ from `now`, each once."""
    bases = dict.fromkeys(basis for area in areas for basis in area.bases)
    return tuple(basis for basis in bases if basis.is_other(now))


def overall(statuses: Sequence[Status]) -> Status:
    """Return the combined status of several annotations."""
    found = set(statuses)
    if len(found) == 1:
        return statuses[0]
    if Status.CHANGED in found:
        return Status.CHANGED
    return Status.PARTLY if found else Status.NOT_ANALYSED


def _whole(region: Region) -> shapely.Geometry:
    return region.annotation.area if region.annotation else region.geometry


def _left_out_of(region: Region) -> shapely.MultiPolygon:
    if region.annotation is None or not region.is_part:
        return NO_AREA
    return multipolygon(shapely.difference(region.annotation.area, region.geometry))
