"""The objects of a GeoJSON file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import shapely
import shapely.geometry

from qpnuclei.qupath.model import PathClass


@dataclass(frozen=True, eq=False)
class GeoJsonObject:
    """One object of a GeoJSON file.

    Parameters
    ----------
    kind : str
        ``"annotation"`` (also if the file names no kind), ``"detection"``, ``"cell"``,
        ``"tile"``, ``"tmaCore"`` or ``"root"``.
    geometry : shapely geometry
        In level-0 px, as stored: it may be invalid.
    id : UUID or None
    name : str or None
    path_class : PathClass or None
    locked : bool
    measurements : mapping of str to float
    z, t : int
        Plane.
    color : int or None
        The object's own colour, packed ARGB (int32).
    metadata : mapping of str to str
        Includes QuPath's description of an annotation.
    more : mapping of str to JSON value
        Further properties to write, which QuPath does not read.
    nucleus : shapely geometry or None
        Outline of the nucleus of a cell.
    image : (str, str) or None
        Name and entry ID of its image, in a file of the nuclei of several images.
    """

    kind: str
    geometry: shapely.Geometry
    id: UUID | None = None
    name: str | None = None
    path_class: PathClass | None = None
    locked: bool = False
    measurements: Mapping[str, float] = field(default_factory=dict)
    z: int = 0
    t: int = 0
    color: int | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    more: Mapping[str, Any] = field(default_factory=dict)
    nucleus: shapely.Geometry | None = None
    image: tuple[str, str] | None = None

    @property
    def label(self) -> str:
        """Name for messages: name, class or kind, and UUID."""
        text = self.name or (self.path_class and self.path_class.name) or "unclassified"
        return f"{text} ({self.id})" if self.id else text
