"""The area that an outline encloses, whether the outline is valid or not.

Outlines come from a mouse, a file or another program: they may cross themselves, have no extent,
lie within each other or be empty. All code computes their area here, so that the result is the same
everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

#: Largest difference between coordinates of the same outline, in px. GeoJSON and some ROIs round to
#: 0.01 px, others to float32.
ROUNDING_PX = 0.02


def polygons_in(geometry: shapely.Geometry) -> npt.NDArray[np.object_]:
    """Return the polygons of a geometry as they are, without empty ones, lines and points."""
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection may contain multipolygons
    is_area = (shapely.get_type_id(parts) == shapely.GeometryType.POLYGON) & ~shapely.is_empty(
        parts
    )
    polygons: npt.NDArray[np.object_] = parts[is_area]
    return polygons


def same_box(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether the bounding boxes of two geometries are equal up to `ROUNDING_PX`."""
    return all(abs(p - q) <= ROUNDING_PX for p, q in zip(a.bounds, b.bounds, strict=True))


def multipolygon(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """Return the areas of a geometry as a MultiPolygon, without lines and points."""
    return shapely.MultiPolygon(list(polygons_in(geometry)))


def polygonal(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the areas of a geometry as a Polygon or MultiPolygon, without lines and points."""
    areas = polygons_in(geometry)
    return areas[0] if len(areas) == 1 else shapely.MultiPolygon(list(areas))


def without_slivers(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """Return the areas of a geometry without slivers, which are due to rounding.

    Each is judged by itself: slivers along an outline of 20 mm have the area of a nucleus together.
    """
    areas = polygons_in(geometry)
    is_wide = shapely.area(areas) > ROUNDING_PX * shapely.length(areas)
    # A sliver may also join a wide area, and be much longer than it.
    is_wide[~is_wide] = ~shapely.is_empty(shapely.buffer(areas[~is_wide], -ROUNDING_PX))
    return shapely.MultiPolygon(list(areas[is_wide]))


def union(areas: Iterable[shapely.Geometry]) -> shapely.Geometry:
    """Return the union of valid areas, which need not be a Polygon or MultiPolygon.

    Areas that are apart from each other are only collected: 40,000 boxes take 0.2 s. They take 8 s
    in `shapely.union_all`.
    """
    return shapely.disjoint_subset_union_all(np.array(list(areas), dtype=object))


class Parts:
    """An area of many parts, of which only a few are near any one place.

    Parameters
    ----------
    areas : iterable of shapely geometries
        Valid areas; the area is their union.
    """

    def __init__(self, areas: Iterable[shapely.Geometry]) -> None:
        self._areas = np.array(list(areas), dtype=object)
        self._tree = shapely.STRtree(self._areas)

    def meeting(self, geometry: shapely.Geometry) -> npt.NDArray[np.int64]:
        """Return the indices of the areas that meet a geometry, ascending."""
        return np.sort(self._tree.query(geometry, predicate="intersects"))

    def near(self, geometry: shapely.Geometry) -> shapely.Geometry:
        """Return the union of the areas that meet a geometry."""
        return union(self._areas[self.meeting(geometry)])


def valid_area(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the area that a geometry encloses, as a valid Polygon or MultiPolygon.

    The even-odd rule applies to a ring that crosses itself: a bow tie is two triangles. Parts that
    overlap or contain each other are merged. A geometry without area (lines, points, a collapsed
    ring, a coordinate that is not finite) gives an empty MultiPolygon.
    """
    if shapely.get_dimensions(geometry) < 2:
        return shapely.MultiPolygon()
    if geometry.geom_type == "Polygon" and shapely.is_valid(geometry):
        return geometry  # the usual case
    with np.errstate(over="ignore", invalid="ignore"):  # a damaged file may contain any number
        if not np.isfinite(shapely.get_coordinates(geometry)).all():
            return shapely.MultiPolygon()
        if shapely.is_valid(geometry):
            return polygonal(geometry)
        try:
            parts = shapely.make_valid(polygons_in(geometry))
            return polygonal(shapely.union_all([polygonal(part) for part in parts]))
        except shapely.GEOSException:  # coordinates too large to compute with
            return shapely.MultiPolygon()


def valid_areas(geometries: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return `valid_area` of each of N geometries, as an (N,) ndarray of objects."""
    areas = np.empty(len(geometries), dtype=object)
    areas[:] = [valid_area(geometry) for geometry in geometries]
    return areas
