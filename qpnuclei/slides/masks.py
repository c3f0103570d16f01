"""Masks of a reduced slide: outline them, and make them from outlines."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

Mask = npt.NDArray[np.bool_]

_RIM_PX = 2
#: OpenCV draws with coordinates in sixteenths (2**4) of a px.
_SHIFT = 4


def outline_mask(
    mask: Mask,
    pixel_size: tuple[float, float],
    slide_size: tuple[int, int],
    min_area: float,
    min_hole: float,
) -> shapely.MultiPolygon:
    """Outline a mask of a whole slide, without small pieces and holes.

    Parameters
    ----------
    mask : (H, W) bool ndarray
        May leave out less than a px of the slide on the right and below.
    pixel_size : (float, float)
        Width and height of a px of the mask, in level-0 px.
    slide_size : (width, height) of int
        In level-0 px.
    min_area, min_hole : float
        Smaller pieces are dropped and smaller holes filled, in px of the mask.

    Returns
    -------
    shapely.MultiPolygon
        In level-0 px, within the slide. Outlines are rounded and simplified, but pieces that touch
        the border of the mask end exactly at that of the slide.
    """
    if not mask.any():
        return shapely.MultiPolygon()
    from skimage.measure import find_contours  # imports half of SciPy

    # A piece at the border extends beyond it, and is clipped to the slide in the end: rounding and
    # simplifying do not change the border.
    rings = find_contours(  # type: ignore[no-untyped-call]
        np.pad(np.pad(mask.astype(np.uint8), _RIM_PX, "edge"), 1), 0.5
    )
    # Convert (row, column) of padded pixel centres to x, y of pixel corners.
    lines = [shapely.LineString(ring[:, ::-1] - (_RIM_PX + 0.5)) for ring in rings]
    pieces = shapely.get_parts(shapely.build_area(shapely.MultiLineString(lines)))
    kept = [
        shapely.Polygon(
            piece.exterior,
            [hole for hole in piece.interiors if shapely.Polygon(hole).area >= min_hole],
        )
        for piece in pieces
        if piece.area >= min_area
    ]
    outline = shapely.simplify(shapely.union_all(kept), 0.5)
    scaled = shapely.transform(outline, lambda xy: xy * pixel_size)
    return polygons_of(shapely.intersection(scaled, shapely.box(0, 0, *slide_size)))


def polygons_of(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """Return the polygons of any geometry."""
    parts = shapely.get_parts(geometry)
    return shapely.MultiPolygon([p for p in parts if p.geom_type == "Polygon" and not p.is_empty])


def rasterise(
    area: shapely.Geometry,
    shape: tuple[int, int],
    pixel_size: tuple[float, float],
    origin: tuple[float, float] = (0, 0),
) -> Mask:
    """Return the px of a mask that an area covers; those on its outline are included.

    Parameters
    ----------
    area : shapely.Geometry
        Its polygons may have holes and overlap; lines and points cover nothing.
    shape : (H, W) of int
        Size of the mask.
    pixel_size : (float, float)
        Width and height of a px of the mask, in the unit of `area`.
    origin : (x, y)
        Upper left corner of the mask, in the unit of `area`.

    Returns
    -------
    (H, W) bool ndarray
    """
    import cv2

    mask = np.zeros(shape, np.uint8)
    for polygon in polygons_of(area).geoms:
        corners = [
            ((shapely.get_coordinates(ring) - origin) / pixel_size - 0.5) * 2**_SHIFT
            for ring in shapely.get_rings(polygon)
        ]
        # All rings of one polygon in one call: by the even-odd rule its holes stay empty, and what
        # two polygons share does not.
        rings = [np.rint(ring).astype(np.int32) for ring in corners]
        cv2.fillPoly(mask, rings, 1, lineType=cv2.LINE_8, shift=_SHIFT)
    return mask > 0


def disk(radius: int) -> npt.NDArray[np.uint8]:
    """Return a disk for morphology: 1 if a pixel's centre is within `radius` px of the middle.

    scikit-image has the same function, but takes most of a second to import.

    Returns
    -------
    (2 * radius + 1, 2 * radius + 1) uint8 ndarray

    Examples
    --------
    >>> disk(1)
    array([[0, 1, 0],
           [1, 1, 1],
           [0, 1, 0]], dtype=uint8)
    """
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y <= radius * radius, np.uint8)
