"""What runs have analysed of an image, and at which pixel size: kept with the image by QuPath.

An annotation without nuclei was analysed and is empty, or was never looked at: the nuclei alone do
not tell. So a run notes what it analysed in a property of the image, a text in ``data.qpdata``.
QuPath 0.2 to 0.7 read all properties and save them again, whatever they are called; unlike the
workflow, a property is replaced by the next run instead of growing; and annotations, which are the
user's, stay as they are.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.qupath.areas import valid_area
from qpnuclei.qupath.model import Annotation
from qpnuclei.qupath.regions import Region, same_outline

_log = logging.getLogger(__name__)

#: Name of the image's property.
PROPERTY = "qpnuclei analysed"

#: What of an outline may lie outside of the analysed area: a rim of this width, for rounding.
_RIM_PX = 0.02

Mpp = tuple[float, float]


class Status(StrEnum):
    """Whether what is counted is all there is."""

    ANALYSED = "analysed"
    NOT_ANALYSED = "not analysed"
    CHANGED = "changed since"
    #: Of several annotations some.
    PARTLY = "partly analysed"


@dataclass(frozen=True)
class AnalysedArea:
    """One area that a run analysed.

    Parameters
    ----------
    id : UUID or None
        Of its annotation; None for tissue without one, and in files of QuPath 0.2 and 0.3.
    geometry : shapely.MultiPolygon
        What the annotation enclosed then, level-0 px.
    check : str
        What the run found doubtful about it; empty if nothing.
    """

    id: UUID | None
    geometry: shapely.MultiPolygon
    check: str = ""


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
        What the project said then. When it says something else, the user has changed it since.
    """

    mpp: Mpp
    source: str
    project: Mpp | None


@dataclass(frozen=True)
class Record:
    """What runs have noted of one image; `check` is what the last of them doubted as a whole."""

    areas: tuple[AnalysedArea, ...] = ()
    used: UsedMpp | None = None
    check: str = ""

    @classmethod
    def of(cls, properties: Mapping[str, str], name: str = "the image") -> Record:
        """Read the record among the properties of an image; it is empty if there is none."""
        text = properties.get(PROPERTY)
        if text is None:
            return cls()
        try:
            content = json.loads(text)
            areas = tuple(
                AnalysedArea(
                    None if area["id"] is None else UUID(area["id"]),
                    shapely.MultiPolygon([(p[0], p[1:]) for p in area["coordinates"]]),
                    str(area.get("check", "")),
                )
                for area in content["areas"]
            )
            used = content["pixel size"]
            return cls(
                areas,
                UsedMpp(_pair(used["um"]), str(used["source"]), _pair_or_none(used["project"])),
                str(content.get("check", "")),
            )
        except (ValueError, TypeError, KeyError, IndexError, RecursionError, AttributeError):
            _log.warning(
                "%s: what earlier runs noted there is damaged, and left out of account", name
            )
            return cls()

    def to_properties(self) -> dict[str, str]:
        """Return the property that holds the record."""
        used = self.used
        content: dict[str, Any] = {
            "areas": [
                {
                    "id": None if area.id is None else str(area.id),
                    "coordinates": [
                        [
                            np.round(shapely.get_coordinates(ring), 3).tolist()
                            for ring in (polygon.exterior, *polygon.interiors)
                        ]
                        for polygon in area.geometry.geoms
                    ],
                    **({"check": area.check} if area.check else {}),
                }
                for area in self.areas
            ],
            "pixel size": used and {"um": used.mpp, "source": used.source, "project": used.project},
            **({"check": self.check} if self.check else {}),
        }
        return {PROPERTY: json.dumps(content, separators=(",", ":"))}

    def with_run(
        self,
        regions: Sequence[Region],
        used: UsedMpp,
        removed: frozenset[UUID] = frozenset(),
        check: str = "",
        checks: Sequence[str] = (),
    ) -> Record:
        """Return the record after a run of some regions.

        Parameters
        ----------
        removed : frozenset of UUID
            Annotations that the run removed.
        check, checks : str, sequence of str
            What the run found doubtful about the image, and about each region.
        """
        new = tuple(
            AnalysedArea(
                region.annotation.id if region.annotation else None,
                _multi(region.annotation.area if region.annotation else region.geometry),
                doubt,
            )
            for region, doubt in zip(regions, checks or [""] * len(regions), strict=True)
        )
        again = removed | {area.id for area in new if area.id is not None}
        run = Record(new)
        kept = (
            area for area in self.areas if area.id not in again and not run._alike(area.geometry)
        )
        return Record((*kept, *new), used, check)

    @cached_property
    def union(self) -> shapely.Geometry:
        """All that was analysed: valid, level-0 px, on the first plane."""
        return shapely.union_all([valid_area(area.geometry) for area in self.areas])

    def status(self, annotation: Annotation) -> Status:
        """Say whether an annotation was analysed as it is now.

        One that was drawn later is analysed where it lies wholly within what was.
        """
        region = Region.of(annotation)
        if not annotation.is_area or region.plane != (0, 0):
            return Status.NOT_ANALYSED
        for area in self.areas:
            if area.id is not None and area.id == annotation.id:
                is_same = _same(area.geometry, annotation.area)
                return Status.ANALYSED if is_same else Status.CHANGED
        if self._alike(annotation.area):
            return Status.ANALYSED  # QuPath gives a UUID to what was saved without one
        missing = shapely.difference(region.geometry, self.union).area
        if missing <= _RIM_PX * region.geometry.length:
            return Status.ANALYSED
        return Status.NOT_ANALYSED

    def _alike(self, geometry: shapely.Geometry) -> list[AnalysedArea]:
        """Return the areas that have this outline."""
        if not self.areas or geometry.is_empty:
            return []
        apart = np.abs(self._bounds - np.array(geometry.bounds)).max(axis=1)
        near = [self.areas[row] for row in np.flatnonzero(apart <= _RIM_PX)]
        return [area for area in near if _same(area.geometry, geometry)]

    @cached_property
    def _bounds(self) -> npt.NDArray[np.float64]:
        return np.array([area.geometry.bounds for area in self.areas])

    def doubts(self, annotation: Annotation) -> str:
        """Return what a run found doubtful about an annotation; empty if nothing.

        One that was drawn later has the doubts of the areas that it lies in.
        """
        own = [area for area in self.areas if area.id is not None and area.id == annotation.id]
        own = own or self._alike(annotation.area)
        if not own:
            outline = Region.of(annotation).geometry
            own = [
                area
                for area in self.areas
                if area.check and shapely.intersects(shapely.make_valid(area.geometry), outline)
            ]
        return together(area.check for area in own)


def together(doubts: Iterable[str]) -> str:
    """Return several doubts in one line, each once."""
    return "; ".join(dict.fromkeys(filter(None, doubts)))


def overall(statuses: Sequence[Status]) -> Status:
    """Return the status of several annotations together."""
    found = set(statuses)
    if len(found) == 1:
        return statuses[0]
    if Status.CHANGED in found:
        return Status.CHANGED
    return Status.PARTLY if found else Status.NOT_ANALYSED


def _same(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two outlines are the same, whatever vertices QuPath left out on saving."""
    a, b = _multi(a), _multi(b)
    if a.is_empty or b.is_empty:
        return bool(a.is_empty and b.is_empty)
    if not np.allclose(a.bounds, b.bounds, rtol=0, atol=_RIM_PX):
        return False
    if abs(a.area - b.area) > _RIM_PX * a.length:
        return False
    return same_outline(a, b) or float(shapely.hausdorff_distance(a, b)) <= _RIM_PX


def _multi(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    parts = shapely.get_parts(shapely.get_parts(geometry))
    return shapely.MultiPolygon([p for p in parts if p.geom_type == "Polygon" and not p.is_empty])


def _pair(values: Any) -> Mpp:
    x, y = map(float, values)
    return x, y


def _pair_or_none(values: Any) -> Mpp | None:
    return None if values is None else _pair(values)
