"""Tissue detection."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.slides.masks import Mask, disk, outline_mask
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.scaling import reduced_grid
from qpnuclei.slides.slide import Slide

#: Resolution of the tissue mask in µm/px: fine enough for its outline, and most slides fit into
#: memory.
_MASK_MPP = 8.0

# Limits for Otsu's threshold on chroma (largest minus smallest 8-bit value). Glass, even with JPEG
# noise, is below the lower limit; everything above the upper limit is stained. The limits matter if
# a slide is all tissue or all glass, so that its histogram does not have two classes.
_MIN_CHROMA, _MAX_CHROMA = 10, 24

# Glass is bright, hardly varies within 40 µm, and is a part of the slide worth mentioning.
_GLASS_LEAST, _GLASS_RANGE, _GLASS_SHARE = 190, 5, 0.05

# Ink absorbs more red than green (blue and green pens), or all colours equally (black).
# Haematoxylin and eosin absorb green most.
_INK_DENSITY = 0.25
_INK_RED_TO_GREEN = 1.35
_BLACK_INK_DENSITY = 0.6
_BLACK_INK_SPREAD = 0.3

# Closing bridges gaps up to twice its radius, opening drops strands up to twice its radius.
_CLOSING_PX, _OPENING_PX = 2, 1

_HSV_MIN_SATURATION = 0.07
_HSV_MIN_VALUE = 0.15

#: Smaller pieces are dropped; of a small image, only those below a twentieth of it.
_MIN_PIECE_UM2, _SMALL_IMAGE_PARTS = 10_000.0, 20
#: Smaller holes are filled.
_MIN_HOLE_UM2 = 10_000.0


def find_tissue(slide: Slide, mpp: tuple[float, float]) -> shapely.MultiPolygon:
    """Outline the stained tissue of a slide, without glass and pen.

    The whole slide is reduced to about 8 µm/px, so that one threshold applies everywhere. Pieces
    below 10,000 µm² are dropped (of a small image, those below a twentieth of it), and holes below
    10,000 µm² are filled.

    Parameters
    ----------
    slide : Slide
    mpp : (float, float)
        Level-0 µm/px in x and y.

    Returns
    -------
    shapely.MultiPolygon
        In level-0 px; empty if there is none.
    """
    width, height, downsample = reduced_grid((slide.width, slide.height), mpp, _MASK_MPP)
    mask = tissue_mask(slide.read(0, 0, width, height, downsample))
    pixel_um2 = downsample[0] * mpp[0] * downsample[1] * mpp[1]
    min_piece_px = min(_MIN_PIECE_UM2 / pixel_um2, mask.size / _SMALL_IMAGE_PARTS)
    min_hole_px = _MIN_HOLE_UM2 / pixel_um2
    return outline_mask(mask, downsample, (slide.width, slide.height), min_piece_px, min_hole_px)


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
    smooth = _white_balanced(np.asarray(cv2.GaussianBlur(rgb, (0, 0), 1.0), np.uint8))
    chroma = (smooth.max(axis=2) - smooth.min(axis=2)).astype(np.uint8)
    ink = _dilate(_strokes(ink_of(smooth)), 3)
    candidates = chroma[~ink]
    threshold = _MIN_CHROMA
    if candidates.size:
        otsu, _ = cv2.threshold(candidates, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
        threshold = int(np.clip(otsu, _MIN_CHROMA, _MAX_CHROMA))
    stained = ((chroma > threshold) & ~ink).astype(np.uint8)
    # Closing treats the outside of the image as tissue, so a margin of glass is added.
    rim = 2 * _CLOSING_PX
    closed = cv2.morphologyEx(np.pad(stained, rim), cv2.MORPH_CLOSE, disk(_CLOSING_PX))
    opened = cv2.morphologyEx(closed[rim:-rim, rim:-rim], cv2.MORPH_OPEN, disk(_OPENING_PX))
    return np.asarray(opened > 0) & ~ink


def _white_balanced(smooth: RGB) -> RGB:
    """Return pixels whose glass is grey, if it has a colour and there is enough of it.

    Without a white balance, for example of an old lamp, all glass would be stained.
    """
    window = np.ones((5, 5), np.uint8)
    ranges = cv2.dilate(smooth, window) - cv2.erode(smooth, window)
    glass = smooth[(ranges.max(axis=2) <= _GLASS_RANGE) & (smooth.min(axis=2) >= _GLASS_LEAST)]
    if len(glass) < _GLASS_SHARE * smooth[..., 0].size:
        return smooth
    colour = np.median(glass, axis=0)
    # What absorbs green most is stained: pale tissue may be as even as glass.
    if np.ptp(colour) <= _MIN_CHROMA or colour.argmin() == 1:
        return smooth
    return np.asarray(np.rint(np.minimum(smooth * (colour.max() / colour), 255)), np.uint8)


def tissue_fraction(tiles: RGB) -> npt.NDArray[np.float64]:
    """Return the share of tissue in each tile, by thresholds in HSV (section 4.1 of the paper).

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


def ink_of(rgb: RGB) -> Mask:
    """Tell which pixels have the colours of a blue, green or black pen.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray

    Returns
    -------
    (H, W) bool ndarray
    """
    density = -np.log10(np.maximum(rgb, 1) / np.float32(255))
    red, green = density[..., 0], density[..., 1]
    coloured = (red > _INK_DENSITY) & (red > _INK_RED_TO_GREEN * green)
    low, high = density.min(axis=2), density.max(axis=2)
    black = (low > _BLACK_INK_DENSITY) & (high - low < _BLACK_INK_SPREAD * high)
    return np.asarray(coloured | black)


def _strokes(ink: Mask) -> Mask:
    """Keep broad strokes: single dark pixels are pigment or folds."""
    return np.asarray(cv2.morphologyEx(ink.astype(np.uint8), cv2.MORPH_OPEN, disk(2)) > 0)


def _dilate(mask: Mask, radius: int) -> Mask:
    return np.asarray(cv2.dilate(mask.astype(np.uint8), disk(radius)) > 0)
