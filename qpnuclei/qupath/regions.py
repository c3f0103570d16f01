"""Assign detections to annotations by one rule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.qupath.areas import ROUNDING_PX, union
from qpnuclei.qupath.model import Annotation

#: A smaller share of an area is a rounding error.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Region:
    """The area of one annotation (or of the tissue), or a part of it.

    `annotation` is None for tissue; `geometry` is a valid Polygon or MultiPolygon in level-0 px.
    """

    annotation: Annotation | None
    geometry: shapely.Geometry

    @classmethod
    def of(cls, annotation: Annotation) -> Region:
        """Return the area of an annotation as a region; empty for lines and points."""
        return cls(annotation, annotation.area)

    @property
    def is_part(self) -> bool:
        """Whether the region is only a part of its annotation.

        The rest was excluded, or lies outside the image.
        """
        if self.annotation is None:
            return False
        whole = self.annotation.area.area
        return bool(whole - self.geometry.area > _ROUNDING * whole)

    @property
    def area_px2(self) -> float:
        """Area in level-0 px²; for a whole annotation, as QuPath computes it."""
        if self.annotation is None or self.is_part:
            return float(self.geometry.area)
        return area_px2([self.annotation])

    @property
    def plane(self) -> tuple[int, int]:
        """z-slice and time point; (0, 0) for tissue."""
        return (self.annotation.z, self.annotation.t) if self.annotation else (0, 0)

    @property
    def label(self) -> str:
        """Name for messages and the summary."""
        return self.annotation.label if self.annotation else "tissue"

    @property
    def handle(self) -> int | None:
        """Handle of the annotation, None for tissue."""
        return self.annotation.handle if self.annotation else None


def same_outline(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two geometries are equal up to the precision of stored coordinates."""
    if shapely.equals_exact(a, b, ROUNDING_PX):
        return True
    return bool(shapely.equals_exact(shapely.normalize(a), shapely.normalize(b), ROUNDING_PX))


def same_outlines(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Tell of each of N pairs of geometries whether they are equal, as `same_outline` does."""
    same: npt.NDArray[np.bool_] = shapely.equals_exact(a, b, ROUNDING_PX)
    others = np.flatnonzero(~same)
    a, b = shapely.normalize(a[others]), shapely.normalize(b[others])
    same[others] = shapely.equals_exact(a, b, ROUNDING_PX)
    return same


def rows_inside(
    regions: Sequence[Region],
    points: npt.NDArray[np.float64],
    planes: npt.NDArray[np.int64] | None = None,
) -> list[npt.NDArray[np.int64]]:
    """Return which centroids each region contains. All counts use this rule.

    It is QuPath's rule: a centroid on the border of the ROI, or of a hole in it, is inside. If
    regions overlap, a centroid counts for each region that contains it. A centroid on another plane
    is in no region.

    Parameters
    ----------
    regions : sequence of Region
    points : (N, 2) float64 ndarray
        Centroids in level-0 px.
    planes : (N, 2) int64 ndarray, optional
        z-slice and time point of each; by default all are on the first.

    Returns
    -------
    list of int64 ndarray
        For each region the indices of the points in it, ascending.
    """
    found = [np.empty(0, np.int64)] * len(regions)
    if planes is None:
        planes = np.zeros((len(points), 2), np.int64)
    finite = np.isfinite(points).all(axis=1)
    for plane in {region.plane for region in regions}:
        on_plane = np.flatnonzero(finite & (planes == plane).all(axis=1))
        if len(on_plane) == 0:
            continue
        tree = shapely.STRtree(shapely.points(points[on_plane]))
        for index, region in enumerate(regions):
            if region.plane == plane:
                inside = tree.query(region.geometry, predicate="intersects")
                found[index] = on_plane[np.sort(inside)]
    return found


def rows_in_any(
    regions: Sequence[Region],
    points: npt.NDArray[np.float64],
    planes: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Return the indices of the points that lie in at least one region, ascending.

    Parameters
    ----------
    regions, points, planes
        As in `rows_inside`.
    """
    inside = rows_inside(regions, points, planes)
    return np.unique(np.concatenate([np.empty(0, np.int64), *inside]))


def region_of(
    points: npt.NDArray[np.float64],
    regions: Sequence[Region],
    planes: npt.NDArray[np.int64] | None = None,
) -> npt.NDArray[np.int64]:
    """Return the region that each point is written under.

    If regions overlap, this is the smallest: QuPath nests objects in the innermost annotation.

    Parameters
    ----------
    points, planes
        As in `rows_inside`.

    Returns
    -------
    (N,) int64 ndarray
        Index of the region; -1 for none.
    """
    owner = np.full(len(points), -1, np.int64)
    inside = rows_inside(regions, points, planes)
    for index in sorted(range(len(regions)), key=lambda i: -regions[i].geometry.area):
        owner[inside[index]] = index
    return owner


def area_px2(annotations: Sequence[Annotation]) -> float:
    """Return the area of the union of annotations, level-0 px²."""
    areas = [annotation for annotation in annotations if annotation.is_area]
    if len(areas) == 1 and areas[0].roi_type == "EllipseROI":
        # QuPath uses the area of the ellipse itself, not of its polygon.
        x0, y0, x1, y1 = shapely.bounds(areas[0].geometry).tolist()
        return math.pi / 4 * float(x1 - x0) * float(y1 - y0)
    return covered_px2([Region.of(annotation) for annotation in areas])


def covered_px2(regions: Sequence[Region]) -> float:
    """Return the area of the union of regions, plane by plane, in level-0 px²."""
    if len(regions) == 1:
        return float(regions[0].geometry.area)
    planes: dict[tuple[int, int], list[shapely.Geometry]] = {}
    for region in regions:
        planes.setdefault(region.plane, []).append(region.geometry)
    return sum(float(union(geometries).area) for geometries in planes.values())
