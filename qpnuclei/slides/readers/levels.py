"""Decide which pages of a file are levels of its pyramid: their sizes and pixels must agree.

The libraries take any page with half the size for a level, even one that shows something else.
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

#: `_GRID` x `_GRID` windows of the level are compared. A window has `_WINDOW` x `_WINDOW` px, and
#: is reduced to `_MEANS` x `_MEANS` means.
_GRID = 3
_WINDOW = 32
_MEANS = 4
#: Largest mean difference of a window's means, in grey levels. True levels differ by up to 4 if the
#: scanner subsampled or sharpened; images of other tissue differ by 20 and more.
_MAX_DIFFERENCE = 10.0
#: Rounding error of the width and height of a level, in px.
_ROUNDING = 2.0
#: Largest width and height of a window in the finer level, in px.
_MAX_FINE_PX = 1024

#: Differences of pages that this process has compared, by state of the file and offsets of pages.
_differences: dict[tuple[object, int, int], float] = {}


def matching_levels(path: Path, levels: Sequence[TiffLevel]) -> list[TiffLevel]:
    """Return the levels that show the same image as the first, in descending order of size."""
    matching = [levels[0]]
    status = path.stat()
    file = path, status.st_size, status.st_mtime_ns, status.st_ino
    for level in levels[1:]:
        reason = _mismatch(path, matching[-1], level, levels[0].size, file)
        if reason:
            width, height = level.size
            warn_once(
                _log,
                f"{path}: its page of {width} x {height} px is not used: it is not a level of the "
                f"slide ({reason})",
            )
        else:
            matching.append(level)
    return matching


def _mismatch(
    path: Path, finer: TiffLevel, level: TiffLevel, full: tuple[int, int], file: object
) -> str:
    """Return why a page is not a level; empty if it is one."""
    if not all(0 < small < large for small, large in zip(level.size, finer.size, strict=True)):
        return "it is not smaller than the level before"
    least = max(f / (s + _ROUNDING) for f, s in zip(full, level.size, strict=True))
    most = min(f / max(s - _ROUNDING, 0.5) for f, s in zip(full, level.size, strict=True))
    if least > most:
        return "its sides are not in proportion"
    # Compare only once: a run opens each slide three times.
    known = file, finer.offset, level.offset
    if known not in _differences:
        _differences[known] = _difference(path, finer, level)
    if _differences[known] > _MAX_DIFFERENCE:
        return "it shows something else"
    return ""


def _difference(path: Path, finer: TiffLevel, level: TiffLevel) -> float:
    """Return the largest mean difference of several windows of the level, in grey levels.

    Windows that cannot be decoded are ignored here; reading them later raises the error.
    """
    (width, height), (finer_width, finer_height) = level.size, finer.size
    factor_x, factor_y = finer_width / width, finer_height / height
    window = max(_MEANS, min(_WINDOW, int(_MAX_FINE_PX / max(factor_x, factor_y))))
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
    """Return the means of `_MEANS` x `_MEANS` equal parts. A dry run does without OpenCV."""
    height, width, _ = pixels.shape
    rows = np.tensordot(_shares(height), pixels.astype(np.float32), axes=1)
    means: npt.NDArray[np.float32] = np.matmul(_shares(width), rows)
    return means


def _shares(size: int) -> npt.NDArray[np.float32]:
    """Return the (`_MEANS`, size) weights of pixels in the means of equal parts of a side."""
    ends = np.linspace(0, size, _MEANS + 1)[:, None]
    pixels = np.arange(size)
    covered = np.minimum(ends[1:], pixels + 1) - np.maximum(ends[:-1], pixels)
    return np.asarray(np.clip(covered, 0, None) * (_MEANS / size), np.float32)
