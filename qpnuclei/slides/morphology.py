"""Structuring elements; scikit-image has the same, and takes most of a second to import."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def disk(radius: int) -> npt.NDArray[np.uint8]:
    """Return a disk: 1 where a pixel's centre lies within `radius` px of the middle one's.

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
