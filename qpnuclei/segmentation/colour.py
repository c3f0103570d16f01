"""Colour statistics of a whole region. Statistics of single tiles would make seams."""

from __future__ import annotations

import numpy as np

from qpnuclei.segmentation.engine import ReadPixels
from qpnuclei.slides.reinhard import ReinhardStatistics, reinhard_statistics
from qpnuclei.slides.tissue import tissue_fraction
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import TilePlan

#: Colours are measured on fields of the size of a training tile, as in training. The fields are
#: spread over the region and show enough tissue.
_FIELDS, _FIELD_PX, _MIN_TISSUE = 64, 224, 0.7


def colour_statistics(read: ReadPixels, tiles: TilePlan) -> ReinhardStatistics | None:
    """Measure the colours of a region for Reinhard's colour transfer.

    Parameters
    ----------
    read : callable
        Returns the pixels of a box of the working grid.
    tiles : TilePlan

    Returns
    -------
    ReinhardStatistics or None
        None if the plan has no tiles.
    """
    size = _FIELD_PX
    corners = [
        (x, y)
        for core in (tile.core for tile in tiles)
        for y in range(core.y0, core.y1, size)
        for x in range(core.x0, core.x1, size)
    ]
    if not corners:
        return None
    spread = np.unique(np.linspace(0, len(corners) - 1, _FIELDS).astype(int))
    fields = [Box(x, y, x + size, y + size) for x, y in (corners[i] for i in spread)]
    rgb = np.stack([read(field) for field in fields])
    stained = tissue_fraction(rgb) >= _MIN_TISSUE
    return reinhard_statistics(rgb[stained] if stained.any() else rgb)
