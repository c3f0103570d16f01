"""Decide which pages of a file are levels of its pyramid: their sizes and pixels must agree.

The libraries take any page of half the size for a level, even one that shows something else.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import SlideError
from qpnuclei.slides.readers.reader import reading, warn_once
from qpnuclei.slides.readers.tiff_level import TiffLevel

_log = logging.getLogger(__name__)

#: Windows are compared on a grid of `_GRID` x `_GRID` over the level. A window has `_WINDOW` px per
#: side, of which `_MEANS` x `_MEANS` means are compared.
_GRID = 3
_WINDOW = 32
_MEANS = 4
#: Largest mean difference of a window's means, in grey levels. True levels differ by up to 4, if
#: the scanner subsampled or sharpened; images of other tissue differ by 20 and more.
_MOST_DIFFERENCE = 10.0
#: Pixels by which the sides of a level may differ from a common factor, because of rounding.
_ROUNDING = 2.0
#: Largest side of a window in the finer level, in px.
_MOST_FINE = 1024

#: How much pages differ that were compared in this process: by file, as it was, and their places.
_differences: dict[tuple[object, int, int], float] = {}


def matching_levels(path: Path, levels: Sequence[TiffLevel]) -> list[TiffLevel]:
    """Return the levels that show the same image as the first, each smaller than the one before."""
    matching = [levels[0]]
    status = path.stat()
    file = path, status.st_size, status.st_mtime_ns, status.st_ino
    for level in levels[1:]:
        reason = _mismatch(path, matching[-1], level, levels[0].size, file)
        if reason:
            width, height = level.size
            warn_once(
                _log,
                f"{path}: its page of {width} x {height} px is not a level of the slide ({reason}) "
                "and not used",
            )
        else:
            matching.append(level)
    return matching


def _mismatch(
    path: Path, finer: TiffLevel, level: TiffLevel, full: tuple[int, int], file: object
) -> str:
    """Return why a page is not a level; empty if it is one."""
    if not all(0 < small < large for small, large in zip(level.size, finer.size, strict=True)):
        return "it is not smaller than the one before"
    least = max(f / (s + _ROUNDING) for f, s in zip(full, level.size, strict=True))
    most = min(f / max(s - _ROUNDING, 0.5) for f, s in zip(full, level.size, strict=True))
    if least > most:
        return "its sides are not in proportion"
    # A run opens a slide three times.
    known = file, finer.place, level.place
    if known not in _differences:
        _differences[known] = _difference(path, finer, level)
    if _differences[known] > _MOST_DIFFERENCE:
        return "it shows something else"
    return ""


def _difference(path: Path, finer: TiffLevel, level: TiffLevel) -> float:
    """Return the largest mean difference of windows spread over the level, in grey levels.

    Windows that cannot be decoded are ignored here; reading them later raises the error.
    """
    (width, height), (finer_width, finer_height) = level.size, finer.size
    factor_x, factor_y = finer_width / width, finer_height / height
    window = max(_MEANS, min(_WINDOW, int(_MOST_FINE / max(factor_x, factor_y))))
    window = min(window, width, height)
    largest = 0.0
    for row, column in itertools.product(range(_GRID), repeat=2):
        x = (width - window) * (2 * column + 1) // (2 * _GRID)
        y = (height - window) * (2 * row + 1) // (2 * _GRID)
        left, top = int(x * factor_x), int(y * factor_y)
        right = min(left + max(1, round(window * factor_x)), finer_width)
        bottom = min(top + max(1, round(window * factor_y)), finer_height)
        with contextlib.suppress(SlideError), reading(path):
            coarse = level.read(x, y, window, window)
            fine = finer.read(left, top, right - left, bottom - top)
            largest = max(largest, float(np.abs(_means(coarse) - _means(fine)).mean()))
    return largest


def _means(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    import cv2  # many commands open slides and read no pixels

    size = (_MEANS, _MEANS)
    means = cv2.resize(pixels.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.asarray(means, np.float32)
