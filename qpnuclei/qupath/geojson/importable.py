"""Check whether an object can be imported, and whether two outlines show the same object."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import shapely

from qpnuclei.qupath.area_index import same_area
from qpnuclei.qupath.areas import same_box, valid_area
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.regions import same_outline

#: The largest part of an outline counts as the whole if it lacks at most this share of its area.
WHOLE_TOLERANCE = 1e-4
#: Largest coordinate. No image is as large. Detections are kept as float32, which is exact up to
#: here: farther away, an outline could collapse.
_FARTHEST_PX = 2.0**24


def nucleus_of(found: GeoJsonObject) -> shapely.Polygon | None:
    """Return the outline of the nucleus of a cell; None without one that can be imported."""
    if found.nucleus is None or found.nucleus.geom_type not in ("Polygon", "MultiPolygon"):
        return None
    if _is_too_far(found.nucleus):
        return None
    nucleus = only_part(found.nucleus)
    is_area = nucleus.is_valid or not valid_area(nucleus).is_empty
    return one_polygon(nucleus)[0] if is_area else None


def obstacle(found: GeoJsonObject, geometry: shapely.Geometry) -> str | None:
    """Return why an object cannot be imported; None if it can."""
    if found.kind == "tmaCore":
        return "TMA grids are not imported; use QuPath's TMA dearrayer"
    if _is_too_far(geometry):
        return "its coordinates lie outside any possible image"
    shape = geometry.geom_type
    if found.kind != "annotation":
        if shape not in ("Polygon", "MultiPolygon"):
            return f"a {found.kind} must be a polygon, not a {shape}"
        is_area = geometry.is_valid or not valid_area(geometry).is_empty
        return None if is_area else "it encloses no area"
    if shape not in ("Polygon", "MultiPolygon", "LineString", "Point", "MultiPoint"):
        return f"an annotation cannot be a {shape}"
    return None


def _is_too_far(geometry: shapely.Geometry) -> bool:
    return bool(np.abs(shapely.get_coordinates(geometry)).max(initial=0) > _FARTHEST_PX)


def only_part(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the only part of a collection with one part; otherwise the geometry itself."""
    if not geometry.geom_type.startswith(("Multi", "GeometryCollection")):
        return geometry
    parts = shapely.get_parts(geometry)
    return only_part(parts[0]) if len(parts) == 1 else geometry


def one_polygon(geometry: shapely.Geometry) -> tuple[shapely.Polygon, float]:
    """Return the largest valid polygon of an outline, and its share of the whole area."""
    if geometry.geom_type == "Polygon" and geometry.is_valid:
        return geometry, 1.0
    area = valid_area(geometry)
    largest = max(shapely.get_parts(area), key=shapely.area)
    return largest, float(largest.area / area.area)


def same_place(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two outlines are equal, as stored or after repair.

    An only part equals the collection of it: QuPath stores a point as points. Vertices on straight
    edges do not count: QuPath drops them.
    """
    a, b = only_part(a), only_part(b)
    # Most neighbours differ by their boxes. Repair may change the box of an invalid outline.
    if not same_box(a, b) and a.is_valid and b.is_valid:
        return False
    if same_outline(a, b):
        return True
    a, b = valid_area(a), valid_area(b)
    return not a.is_empty and same_area(a, b)


def same_detection(found: shapely.Geometry, existing: shapely.Geometry) -> bool:
    """Tell whether an existing detection is the found one, or its part that can be imported."""
    if same_place(found, existing):
        return True
    if found.is_valid and found.geom_type == "Polygon":
        return False
    return same_place(one_polygon(found)[0], existing)


def unread_properties(found: GeoJsonObject) -> Iterator[str]:
    """Yield the properties of a detection that cannot be imported."""
    if found.name is not None:
        yield "name"
    if found.color is not None:
        yield "own colour"
    if found.locked:
        yield "lock"
    if found.metadata:
        yield "metadata"
