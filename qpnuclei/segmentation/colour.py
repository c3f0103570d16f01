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
from qpnuclei.tiling.plan import TilePlan

#: Colours are measured on fields of the size of a training tile, as in training. The fields are
#: spread over the region and show enough tissue.
_FIELDS, _FIELD_PX, _MIN_TISSUE = 64, 224, 0.7
#: Steps of a lattice that spreads evenly over a plane: M. Roberts, "The unreasonable effectiveness
#: of quasirandom sequences", 2018 (R2).
_LATTICE = (0.7548776662466927, 0.5698402909980532)


def colour_statistics(read: ReadPixels, plan: TilePlan) -> ReinhardStatistics | None:
    """Measure the colours of a region for Reinhard's colour transfer.

    Only pixels with their centre in the region are measured. If these are fewer than in one field,
    all pixels of the fields that the region meets are: a nucleus alone does not show how tissue is
    stained.

    Parameters
    ----------
    read : callable
        Returns the pixels of a box of the working grid.
    plan : TilePlan
        Has the region and the size of the image; its tiles do not matter.

    Returns
    -------
    ReinhardStatistics or None
        None if the region is empty.
    """
    fields = _fields(plan.roi, plan.image_size)
    if not fields:
        return None
    inside = [_inside(plan.roi, field) for field in fields]
    if sum(map(np.count_nonzero, inside)) < _FIELD_PX**2:
        inside = [np.full_like(pixels, True) for pixels in inside]
    chosen = [(field, pixels) for field, pixels in zip(fields, inside, strict=True) if pixels.any()]
    samples = [read(field)[pixels] for field, pixels in chosen]
    stained = [s for s in samples if tissue_fraction(s[None]) >= _MIN_TISSUE]
    return reinhard_statistics(np.concatenate(stained or samples))


def _fields(roi: shapely.Geometry, image_size: tuple[int, int]) -> list[Box]:
    """Return some squares of a fixed grid that meet a region, cut to the image."""
    if roi.is_empty:
        return []
    x0, y0, x1, y1 = np.array(roi.bounds) / _FIELD_PX
    columns, rows = (np.arange(math.floor(a), math.ceil(b)) for a, b in ((x0, x1), (y0, y1)))
    column, row = (places.ravel() for places in np.meshgrid(columns, rows))
    corners = np.stack([column, row, column + 1, row + 1], axis=1) * _FIELD_PX
    shapely.prepare(roi)
    meets = shapely.intersects(roi, shapely.box(*corners.T))
    spread = np.argsort((column * _LATTICE[0] + row * _LATTICE[1])[meets] % 1, kind="stable")
    image = Box(0, 0, *image_size)
    fields = (Box(*map(int, corners[meets][place])) for place in sorted(spread[:_FIELDS]))
    return [common for field in fields if (common := field.intersection(image))]


def _inside(roi: shapely.Geometry, field: Box) -> npt.NDArray[np.bool_]:
    """Return which pixels of a field, (H, W), have their centre in a region."""
    # A part has fewer vertices: a whole outline of tissue would take seconds.
    part = shapely.clip_by_rect(roi, *field.polygon().bounds)
    x, y = np.meshgrid(np.arange(field.x0, field.x1) + 0.5, np.arange(field.y0, field.y1) + 0.5)
    inside: npt.NDArray[np.bool_] = shapely.contains_xy(part, x, y)
    return inside
