"""Scale whole images; `qpnuclei.slides.resample` instead samples a region of a slide."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

_Image = TypeVar("_Image", npt.NDArray[np.uint8], npt.NDArray[np.float32])


def scaled(image: _Image, factor: float) -> _Image:
    """Scale an image by `factor`; its sides are rounded to px, at least 1. See `resized`."""
    height, width = (max(1, round(length * factor)) for length in image.shape[:2])
    return resized(image, height, width)


def resized(image: _Image, height: int, width: int) -> _Image:
    """Scale an image to a size in px: area averaging to reduce it, bilinear to enlarge it.

    Parameters
    ----------
    image : (H, W, C) uint8 or float32 ndarray
    height, width : int

    Returns
    -------
    (height, width, C) ndarray of the same dtype
        The image itself if it has this size.
    """
    if image.shape[:2] == (height, width):
        return image
    how = cv2.INTER_AREA if height * width < math.prod(image.shape[:2]) else cv2.INTER_LINEAR
    return cast(_Image, cv2.resize(image, (width, height), interpolation=how))
