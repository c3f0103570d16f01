"""Tissue detection."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from skimage.measure import find_contours

from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.slide import Slide

Mask = npt.NDArray[np.bool_]

#: Tissue has no finer outline than this, and at this size most slides fit into memory.
_MASK_MPP = 8.0

# Limits for Otsu's threshold on chroma (largest minus smallest 8-bit value). Glass has less than
# the lower, JPEG noise included; anything above the upper is stained. They decide alone where a
# slide is all tissue or all glass and its histogram has no two classes.
_MIN_CHROMA, _MAX_CHROMA = 10, 24

# Ink absorbs more red than green (blue and green pens), or all colours alike (black).
# Haematoxylin and eosin absorb green most.
_INK_DENSITY = 0.25
_INK_RED_TO_GREEN = 1.35
_BLACK_INK_DENSITY = 0.6
_BLACK_INK_SPREAD = 0.3

# Gaps up to twice the first radius are bridged, strands up to twice the second are dropped.
_CLOSING_PX, _OPENING_PX = 2, 1

_RIM_PX = 2


_HSV_MIN_SATURATION = 0.07
_HSV_MIN_VALUE = 0.15


def find_tissue(
    slide: Slide,
    mpp: tuple[float, float],
    *,
    min_area_um2: float = 10_000.0,
    min_hole_um2: float = 10_000.0,
) -> shapely.MultiPolygon:
    """Outline the stained tissue of a slide: neither glass nor pen.

    The slide is reduced to about 8 µm/px as a whole, so one threshold holds everywhere.

    Parameters
    ----------
    slide : Slide
    mpp : (float, float)
        Level-0 µm/px in x and y.
    min_area_um2 : float
        Smaller pieces are dropped, in µm². On a small image, only pieces below a twentieth of the
        image are.
    min_hole_um2 : float
        Smaller holes are filled, in µm².

    Returns
    -------
    shapely.MultiPolygon
        In level-0 px; empty if there is none.
    """
    width = max(1, round(slide.width * mpp[0] / _MASK_MPP))
    height = max(1, round(slide.height * mpp[1] / _MASK_MPP))
    downsample = slide.width / width, slide.height / height
    mask = tissue_mask(slide.read(0, 0, width, height, downsample))
    pixel_um2 = downsample[0] * mpp[0] * downsample[1] * mpp[1]
    outline = _outline(
        mask, min(min_area_um2 / pixel_um2, mask.size / 20), min_hole_um2 / pixel_um2
    )
    scaled = shapely.transform(outline, lambda xy: xy * downsample)
    return _multi(shapely.intersection(scaled, shapely.box(0, 0, slide.width, slide.height)))


def tissue_mask(rgb: RGB) -> Mask:
    """Classify the pixels of a whole, reduced slide: stained tissue, or glass and pen.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
        At about 8 µm/px.

    Returns
    -------
    (H, W) bool ndarray
    """
    smooth = np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.0), np.uint8)
    chroma = (smooth.max(axis=2) - smooth.min(axis=2)).astype(np.uint8)
    ink = _dilate(_ink(smooth), 3)
    candidates = chroma[~ink]
    threshold = _MIN_CHROMA
    if candidates.size:
        otsu, _ = cv2.threshold(candidates, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        threshold = int(np.clip(otsu, _MIN_CHROMA, _MAX_CHROMA))
    stained = ((chroma > threshold) & ~ink).astype(np.uint8)
    # Closing treats the outside of the image as tissue: add a rim of glass.
    rim = 2 * _CLOSING_PX
    closed = cv2.morphologyEx(np.pad(stained, rim), cv2.MORPH_CLOSE, _disk(_CLOSING_PX))
    opened = cv2.morphologyEx(closed[rim:-rim, rim:-rim], cv2.MORPH_OPEN, _disk(_OPENING_PX))
    return np.asarray(opened > 0) & ~ink


def tissue_fraction(tiles: RGB) -> npt.NDArray[np.float64]:
    """Share of tissue per tile, by thresholds in HSV (section 4.1 of the paper).

    Parameters
    ----------
    tiles : (..., H, W, 3) uint8 ndarray

    Returns
    -------
    (...) float64 ndarray
        0 to 1. A pixel is tissue if it has some saturation and is not black.
    """
    return np.asarray(_is_stained(tiles).mean(axis=(-2, -1)))


def _is_stained(rgb: RGB) -> Mask:
    value = rgb.max(axis=-1).astype(np.float32)
    chroma = value - rgb.min(axis=-1)
    saturated = chroma >= _HSV_MIN_SATURATION * value
    return np.asarray(saturated & (value >= 255 * _HSV_MIN_VALUE))


def _ink(rgb: RGB) -> Mask:
    density = -np.log10(np.maximum(rgb, 1) / np.float32(255))
    red, green = density[..., 0], density[..., 1]
    coloured = (red > _INK_DENSITY) & (red > _INK_RED_TO_GREEN * green)
    low, high = density.min(axis=2), density.max(axis=2)
    black = (low > _BLACK_INK_DENSITY) & (high - low < _BLACK_INK_SPREAD * high)
    # A stroke is broad; single dark pixels are pigment or folds.
    strokes = cv2.morphologyEx((coloured | black).astype(np.uint8), cv2.MORPH_OPEN, _disk(2))
    return np.asarray(strokes > 0)


def _outline(mask: Mask, min_area: float, min_hole: float) -> shapely.Geometry:
    """Outline a mask in its own pixel coordinates, without small pieces and holes.

    Tissue that touches the border is extended beyond it, and the caller cuts it off. So the
    outline is rounded and simplified, but not along the border of the image.
    """
    rings = find_contours(  # type: ignore[no-untyped-call]
        np.pad(np.pad(mask.astype(np.uint8), _RIM_PX, "edge"), 1), 0.5
    )
    if not rings:
        return shapely.MultiPolygon()
    # From (row, column) of padded pixel centres to x, y of pixel corners.
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
    return shapely.simplify(shapely.union_all(kept), 0.5)


def _multi(geometry: shapely.Geometry) -> shapely.MultiPolygon:
    """Keep the polygons of any geometry."""
    parts = shapely.get_parts(geometry)
    return shapely.MultiPolygon([p for p in parts if p.geom_type == "Polygon" and not p.is_empty])


def _dilate(mask: Mask, radius: int) -> Mask:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), _disk(radius)) > 0)


def _disk(radius: int) -> npt.NDArray[Any]:
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return np.asarray(x * x + y * y <= radius * radius, np.uint8)
