from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.pixels import pixels_of_polygons


def mask_of(polygon: shapely.Polygon, shape: tuple[int, int]) -> npt.NDArray[np.bool_]:
    """Return the (H, W) mask of the pixels that QuPath counts as inside a polygon."""
    mask = np.zeros(shape, bool)
    mask.ravel()[pixels_of_polygons(np.array([polygon], dtype=object), shape).indices] = True
    return mask
