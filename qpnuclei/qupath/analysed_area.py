"""One area that a run has analysed, as the record of an image stores it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID

import numpy as np
import shapely

from qpnuclei.qupath.areas import polygons_in, valid_area

NO_AREA = shapely.MultiPolygon()

Mpp = tuple[float, float]


@dataclass(frozen=True)
class AnalysedArea:
    """One area that a run analysed.

    Parameters
    ----------
    id : UUID or None
        The annotation's UUID; None for tissue without an annotation, and in files of QuPath 0.2 and
        0.3.
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
    mpps : tuple of (float, float)
        The pixel sizes of these runs, µm per level-0 px in x and y. Of a record whose versions did
        not store them, that of the last run of the image.
    keeps_earlier : bool
        Whether the run left nuclei of earlier runs in the area that the record describes elsewhere:
        in the areas of those runs. Otherwise the area describes all nuclei in it.
    """

    id: UUID | None
    geometry: shapely.MultiPolygon
    check: str = ""
    excluded: shapely.MultiPolygon = NO_AREA
    turn: int = 0
    image_check: str = ""
    runs: tuple[str, ...] = ()
    mpps: tuple[Mpp, ...] = ()
    keeps_earlier: bool = False

    @property
    def analysed(self) -> shapely.Geometry:
        """The analysed part of the area: a valid geometry."""
        whole = valid_area(self.geometry)
        if self.excluded.is_empty:
            return whole
        return valid_area(shapely.difference(whole, valid_area(self.excluded)))

    def without(self, gone: shapely.Geometry) -> AnalysedArea:
        """Return the area with `gone` added to its excluded part."""
        part = shapely.intersection(valid_area(self.geometry), gone)
        if part.area == 0:
            return self
        return replace(self, excluded=multipolygon(shapely.union(valid_area(self.excluded), part)))

    @classmethod
    def of_json(cls, content: Any, usual: Mpp) -> AnalysedArea:
        """Return the area that `to_json` has written."""
        mpps = tuple(map(pair, content.get("um", ()))) or (usual,)
        return cls(
            None if content["id"] is None else UUID(content["id"]),
            _from_rings(content["coordinates"]),
            str(content.get("check", "")),
            _from_rings(content.get("excluded", [])),
            int(content.get("turn", 0)),
            str(content.get("image check", "")),
            tuple(map(str, content.get("runs", ()))),
            mpps,
            bool(content.get("keeps earlier", False)),
        )

    def to_json(self, usual: Mpp | None) -> dict[str, Any]:
        """Return the area as JSON types.

        Parameters
        ----------
        usual : (float, float) or None
            Pixel size of the last run of the image. An area states its own only if that differs:
            an image may have as many areas as annotations.
        """
        return {
            "id": None if self.id is None else str(self.id),
            "coordinates": _rings(self.geometry),
            **({"check": self.check} if self.check else {}),
            **({} if self.excluded.is_empty else {"excluded": _rings(self.excluded)}),
            **({"turn": self.turn} if self.turn else {}),
            **({"image check": self.image_check} if self.image_check else {}),
            **({"runs": self.runs} if self.runs else {}),
            **({} if self.mpps in ((), (usual,)) else {"um": self.mpps}),
            **({"keeps earlier": True} if self.keeps_earlier else {}),
        }


def multipolygon(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """Return the polygons of a geometry, without its lines and points."""
    return shapely.MultiPolygon(list(polygons_in(geometry)))


def pair(values: Any) -> Mpp:
    """Return two numbers of JSON as a pixel size.

    Raises
    ------
    ValueError, TypeError
        If they are not two numbers.
    """
    x, y = map(float, values)
    return x, y


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
