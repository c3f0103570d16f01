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


def consecutive(labels: npt.NDArray[np.integer]) -> npt.NDArray[np.int32]:
    """Renumber the labels of an instance map from 1, in their order; 0 stays background.

    Examples
    --------
    >>> consecutive(np.array([[7, 0, 2**40]])).tolist()
    [[1, 0, 2]]
    """
    if labels.max(initial=0) > labels.size:
        # A table up to the largest label might not fit into memory.
        present = np.unique(labels[labels != 0])
        index = np.searchsorted(present, labels).astype(np.int32) + 1
        return np.where(labels == 0, np.int32(0), index)
    is_present = np.zeros(int(labels.max(initial=0)) + 1, bool)
    is_present[labels] = True
    is_present[0] = False
    new_label = np.cumsum(is_present, dtype=np.int32) * is_present
    renumbered: npt.NDArray[np.int32] = new_label[labels]
    return renumbered
