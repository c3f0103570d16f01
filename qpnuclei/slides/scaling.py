"""Scale whole images; `qpnuclei.slides.resample` instead samples a region of a slide."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import cv2
import numpy as np
import numpy.typing as npt

_Image = TypeVar("_Image", npt.NDArray[np.uint8], npt.NDArray[np.float32])


def reduced_grid(
    size: tuple[int, int], mpp: tuple[float, float], grid_mpp: float
) -> tuple[int, int, tuple[float, float]]:
    """Return the grid of a whole slide at about a coarser pixel size.

    Parameters
    ----------
    size : (width, height) of int
        Of the slide, in level-0 px.
    mpp : (float, float)
        Level-0 µm/px in x and y.
    grid_mpp : float
        µm per px of the grid.

    Returns
    -------
    width, height : int
        Size in px of the grid, at least 1.
    downsample : (float, float)
        Level-0 px per px of the grid, so that it covers the slide exactly.

    Examples
    --------
    >>> reduced_grid((1000, 600), (0.5, 0.5), 8)
    (62, 38, (16.129032258064516, 15.789473684210526))
    """
    width, height = (
        max(1, round(length * axis / grid_mpp)) for length, axis in zip(size, mpp, strict=True)
    )
    return width, height, (size[0] / width, size[1] / height)


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
