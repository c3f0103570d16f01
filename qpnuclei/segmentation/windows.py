"""The 2x2 windows of a label map that hold more than one label: where outlines run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class WindowPixel:
    """One of the four pixels of all M mixed windows, and how it relates to the other three.

    Parameters
    ----------
    label : (M,) int ndarray
        Label of the pixel.
    beside, below, diagonal : (M,) bool ndarray
        Whether the pixel in the same row, column, or neither, has the same label.
    """

    label: IntArray
    beside: BoolArray
    below: BoolArray
    diagonal: BoolArray


def mixed_windows(labels: IntArray) -> tuple[npt.NDArray[np.int64], Iterator[WindowPixel]]:
    """Find the windows of an (H, W) label map, framed by zeros, that hold several labels.

    Returns
    -------
    corners : (M,) int64 ndarray
        Index ``y * (W + 1) + x`` of the grid point in the middle of the window: the upper left
        corner of pixel (y, x). In rising order.
    pixels : iterator of WindowPixel
        Upper left, upper right, lower left, lower right.
    """
    framed = np.pad(labels, 1)
    a, b, c, d = framed[:-1, :-1], framed[:-1, 1:], framed[1:, :-1], framed[1:, 1:]
    corners = np.flatnonzero((a != b) | (a != c) | (a != d))
    at = corners // a.shape[1] * framed.shape[1] + corners % a.shape[1]
    flat = framed.ravel()
    a, b, c, d = flat[at], flat[at + 1], flat[at + framed.shape[1]], flat[at + framed.shape[1] + 1]
    ab, cd, ac, bd, ad, bc = a == b, c == d, a == c, b == d, a == d, b == c
    pixels = (
        WindowPixel(a, ab, ac, ad),
        WindowPixel(b, ab, bd, bc),
        WindowPixel(c, cd, ac, bc),
        WindowPixel(d, cd, bd, ad),
    )
    return corners, iter(pixels)
