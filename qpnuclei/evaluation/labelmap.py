"""Draw outlines into instance maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.nuclei.pixels import pixels_of_polygons


def label_map(
    polygons: Sequence[shapely.Polygon] | npt.NDArray[Any], shape: tuple[int, int]
) -> npt.NDArray[np.int32]:
    """Draw N outlines into an instance map.

    Parameters
    ----------
    polygons : sequence of shapely.Polygon
        In px of the map. They may cross themselves; the even-odd rule applies.
    shape : (H, W) of int

    Returns
    -------
    (H, W) int32 ndarray
        0 is background, polygon ``i`` has the label ``i + 1``. A pixel belongs to the first polygon
        that contains its centre.
    """
    labels = np.zeros(shape, np.int32)
    if len(polygons) == 0:
        return labels
    # Draw later ones first, so that the first one wins.
    pixels = pixels_of_polygons(np.asarray(polygons, dtype=object)[::-1], shape)
    labels.ravel()[pixels.indices] = np.repeat(np.arange(len(polygons), 0, -1), pixels.counts)
    return labels
