"""One area that a run has analysed, as the record of an image stores it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import numpy as np
import shapely

from qpnuclei.qupath.areas import multipolygon, valid_area, without_slivers
from qpnuclei.slides.calibration import Mpp
from qpnuclei.slides.resolution import agree
from qpnuclei.slides.stains import StainRows, stains_agree

NO_AREA = shapely.MultiPolygon()


@dataclass(frozen=True)
class Basis:
    """What the measurements of a run depend on, and what may be corrected in QuPath afterwards.

    Parameters
    ----------
    mpp : (float, float) or None
        µm per level-0 px in x and y; None if it is unknown.
    stains : StainRows
        Stain vectors and background; empty if they are unknown, as in records of versions that did
        not store them.
    """

    mpp: Mpp | None
    stains: StainRows = ()

    def has_other_mpp(self, other: Basis) -> bool:
        """Tell whether both pixel sizes are known and differ."""
        if self.mpp is None or other.mpp is None:
            return False
        return not agree(self.mpp, other.mpp)

    def has_other_stains(self, other: Basis) -> bool:
        """Tell whether the stains of both are known and differ."""
        if not (self.stains and other.stains):
            return False
        return not stains_agree(self.stains, other.stains)

    def is_other(self, other: Basis) -> bool:
        """Tell whether pixel sizes or stains differ."""
        return self.has_other_mpp(other) or self.has_other_stains(other)


@dataclass(frozen=True)
class AnalysedArea:
    """One area that a run analysed.

    Parameters
    ----------
    id : UUID or None
        The annotation's UUID; None for tissue without an annotation, for what is left where an
        annotation was before it was edited and analysed again, and in files of QuPath 0.2 and 0.3.
    geometry : shapely.MultiPolygon
        The annotation's area at the time of the run, level-0 px.
    check : str
        Why the run found the result doubtful; empty if it did not.
    excluded : shapely.MultiPolygon
        The part that was not analysed, because it lies in an annotation of an excluded class or
        outside the image.
    turn : int
        Number of the run among those of the image, from 1; 0 for runs of versions that did not
        number them.
    image_check : str
        Why the run found the whole image doubtful, if a later run has analysed another place.
        Until then, the record has it.
    runs : tuple of str
        Identify the runs whose nuclei are in the area: the one that analysed it last, and those
        before it if it kept their nuclei. Empty if it is the last run of the image alone, and for
        earlier runs of versions that did not store them.
    bases : tuple of Basis
        Pixel sizes and stains of these runs. Of a record whose versions did not store them, that of
        the last run of the image.
    keeps_earlier : bool
        Whether the run left nuclei of earlier runs in the area that the record describes elsewhere:
        in the areas of those runs. Otherwise the area describes all nuclei in it.
    nuclei : int
        How many nuclei of qpnuclei were in its whole geometry after the run; of several areas
        around a new nucleus, the smallest counts it. 0 if that is unknown, or some were removed
        since.
    """

    id: UUID | None
    geometry: shapely.MultiPolygon
    check: str = ""
    excluded: shapely.MultiPolygon = NO_AREA
    turn: int = 0
    image_check: str = ""
    runs: tuple[str, ...] = ()
    bases: tuple[Basis, ...] = ()
    keeps_earlier: bool = False
    nuclei: int = 0

    @property
    def analysed(self) -> shapely.Geometry:
        """The analysed part of the area: a valid geometry."""
        whole = valid_area(self.geometry)
        if self.excluded.is_empty:
            return whole
        return valid_area(shapely.difference(whole, valid_area(self.excluded)))

    def without(self, gone: shapely.Geometry) -> AnalysedArea:
        """Return the area with `gone`, where nuclei were removed, added to its excluded part."""
        part = shapely.intersection(valid_area(self.geometry), gone)
        if part.area == 0:
            return self
        excluded = multipolygon(shapely.union(valid_area(self.excluded), part))
        return replace(self, excluded=excluded, nuclei=0)

    def outside(self, again: shapely.Geometry) -> AnalysedArea:
        """Return the part outside of `again`, where a run has replaced the nuclei.

        It has no UUID: its annotation was edited since, and is elsewhere now.
        """
        rest = without_slivers(shapely.difference(valid_area(self.geometry), again))
        excluded = multipolygon(shapely.intersection(valid_area(self.excluded), rest))
        return replace(self, id=None, geometry=rest, excluded=excluded, nuclei=0)

    @classmethod
    def of_json(cls, content: Any, usual: Basis) -> AnalysedArea:
        """Return the area that `to_json` has written."""
        mpps = tuple(map(pair, content.get("um", ())))
        stains = [rows_of_json(rows) for rows in content.get("stains", [()] * len(mpps))]
        bases = tuple(Basis(*own) for own in zip(mpps, stains, strict=True)) or (usual,)
        return cls(
            None if content["id"] is None else UUID(content["id"]),
            _from_rings(content["coordinates"]),
            str(content.get("check", "")),
            _from_rings(content.get("excluded", [])),
            int(content.get("turn", 0)),
            str(content.get("image check", "")),
            tuple(map(str, content.get("runs", ()))),
            bases,
            bool(content.get("keeps earlier", False)),
            int(content.get("nuclei", 0)),
        )

    def to_json(self, usual: Basis | None) -> dict[str, Any]:
        """Return the area as JSON types.

        Parameters
        ----------
        usual : Basis or None
            That of the last run of the image. An area states its own only if that differs: an image
            may have as many areas as annotations.
        """
        mpps = [basis.mpp for basis in self.bases]
        stains = [basis.stains for basis in self.bases]
        own = {"um": mpps, **({"stains": stains} if any(stains) else {})}
        return {
            "id": None if self.id is None else str(self.id),
            "coordinates": _rings(self.geometry),
            **({"check": self.check} if self.check else {}),
            **({} if self.excluded.is_empty else {"excluded": _rings(self.excluded)}),
            **({"turn": self.turn} if self.turn else {}),
            **({"image check": self.image_check} if self.image_check else {}),
            **({"runs": self.runs} if self.runs else {}),
            **({} if self.bases in ((), (usual,)) else own),
            **({"keeps earlier": True} if self.keeps_earlier else {}),
            **({"nuclei": self.nuclei} if self.nuclei else {}),
        }


def pair(values: Any) -> Mpp:
    """Return two numbers of JSON as a pixel size.

    Raises
    ------
    ValueError, TypeError
        If they are not two numbers.
    """
    x, y = map(float, values)
    return x, y


def rows_of_json(rows: Any) -> StainRows:
    """Return lists of three numbers of JSON as rows of stains.

    Raises
    ------
    ValueError, TypeError
        If they are something else.
    """
    return tuple((r, g, b) for r, g, b in (map(float, row) for row in rows))


def _rings(geometry: shapely.MultiPolygon) -> list[list[list[list[float]]]]:
    return [
        [
            np.round(shapely.get_coordinates(ring), 3).tolist()
            for ring in (polygon.exterior, *polygon.interiors)
        ]
        for polygon in geometry.geoms
    ]


def _from_rings(polygons: Any) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([(rings[0], rings[1:]) for rings in polygons])
