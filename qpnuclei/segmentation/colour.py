"""Colour statistics of a whole region. Statistics of single tiles would make seams."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.segmentation.engine import ReadPixels
from qpnuclei.slides.reinhard import ReinhardStatistics, reinhard_statistics
from qpnuclei.slides.tissue import tissue_fraction
from qpnuclei.tiling.box import Box

#: Colours are measured on fields of the size of a training tile, as in training. The fields are
#: spread over the region and show enough tissue.
_FIELDS, _FIELD_PX, _MIN_TISSUE = 64, 224, 0.7


def colour_statistics(read: ReadPixels, roi: shapely.Geometry) -> ReinhardStatistics | None:
    """Measure the colours of a region for Reinhard's colour transfer.

    Only pixels with their centre in the region are measured; all pixels that it meets, if it is too
    small to contain a centre. They do not depend on the tiles.

    Parameters
    ----------
    read : callable
        Returns the pixels of a box of the working grid.
    roi : shapely geometry
        Region of interest inside the image, in px of the working grid.

    Returns
    -------
    ReinhardStatistics or None
        None if the region is empty.
    """
    fields = _fields(roi)
    if not fields:
        return None
    samples = [read(field)[inside] for field in fields if (inside := _inside(roi, field)).any()]
    samples = samples or [read(field).reshape(-1, 3) for field in fields]
    stained = [s for s in samples if tissue_fraction(s[None]) >= _MIN_TISSUE]
    return reinhard_statistics(np.concatenate(stained or samples))


def _fields(roi: shapely.Geometry) -> list[Box]:
    """Return some squares of a fixed grid that meet a region, cut to its bounds."""
    if roi.is_empty:
        return []
    low, high = np.array(roi.bounds).reshape(2, 2) // _FIELD_PX
    x, y = np.meshgrid(*(np.arange(a, b + 1) * _FIELD_PX for a, b in zip(low, high, strict=True)))
    squares = shapely.box(x, y, x + _FIELD_PX, y + _FIELD_PX)
    shapely.prepare(roi)
    squares = squares[shapely.intersects(roi, squares)]
    spread = np.unique(np.linspace(0, len(squares) - 1, _FIELDS).astype(int))
    x0, y0, x1, y1 = roi.bounds
    bounds = Box(math.floor(x0), math.floor(y0), math.ceil(x1), math.ceil(y1))
    fields = (Box(*map(int, corners)) for corners in shapely.bounds(squares[spread]))
    return [common for field in fields if (common := field.intersection(bounds))]


def _inside(roi: shapely.Geometry, field: Box) -> npt.NDArray[np.bool_]:
    """Return which pixels of a field, (H, W), have their centre in a region."""
    # A part has fewer vertices: a whole outline of tissue would take seconds.
    part = shapely.intersection(roi, field.polygon())
    x, y = np.meshgrid(np.arange(field.x0, field.x1) + 0.5, np.arange(field.y0, field.y1) + 0.5)
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(part, x, y)
    return inside
