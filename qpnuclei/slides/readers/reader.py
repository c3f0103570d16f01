"""The interface of readers, and their shared functions."""

from __future__ import annotations

import logging
import math
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import tifffile

from qpnuclei.errors import SlideError, short_reason
from qpnuclei.slides.pixels import RGB

#: Hint for files that cannot be read.
CONVERT = "convert it to a tiled, pyramidal 8-bit RGB TIFF (QuPath: Export images > OME TIFF)"
_COPY_AGAIN = "copy the slide again, or " + CONVERT
#: Hint for images with more than 8 bits.
CONVERT_TO_8_BIT = "qpnuclei reads brightfield images; export it as 8-bit RGB"

#: Exceptions of the file libraries for damaged or misnamed files.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,  # imagecodecs' errors, NotImplementedError and RecursionError
    StopIteration,
    SyntaxError,  # Pillow on broken PNG; ElementTree.ParseError
    EOFError,
    MemoryError,  # a damaged size in the file
    struct.error,
    tifffile.TiffFileError,  # not a ValueError in older versions
)
#: Packages whose modules have another name.
_PACKAGES = {"openslide": "openslide-python openslide-bin", "PIL": "pillow"}
#: Number of pixels that are composed over white at once; limits the memory for 16-bit copies.
_COMPOSED_PIXELS = 2**22


class SlideReader(Protocol):
    """An open slide file: reads 8-bit RGB regions of whole pixels within a level.

    `qpnuclei.slides.slide` does everything else (working grids, padding, cropping).
    """

    @property
    def vendor(self) -> str | None:
        """The library's name of the scanner's vendor."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """µm/px in x and y."""

    @property
    def magnification(self) -> float | None:
        """Magnification of the objective, as stated in the file."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """(width, height) per level, largest first."""

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """x, y, width, height of the scanned part of level 0; None if it is not stated."""

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile in the file; None if there is none."""

    @property
    def samples(self) -> int:
        """Samples per pixel in the file: 1 grey or palette, 3 colours, one more with alpha."""

    @property
    def series(self) -> int | None:
        """Number of the image in an OME-TIFF, from 0; None in other formats."""

    @property
    def unused_sizes(self) -> Sequence[tuple[int, int]]:
        """(width, height) of pages that look like levels, but show something else."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """Return a region of whole level pixels; it must lie within the level."""

    def close(self) -> None:
        """Close the file."""


@contextmanager
def reading(path: Path, trouble: str = "cannot be read", hint: str = _COPY_AGAIN) -> Iterator[None]:
    """Turn exceptions of the file libraries into a `SlideError` that names the file."""
    try:
        yield
    except SlideError:
        raise
    except _UNREADABLE as error:
        what = f"{path} {trouble}"
        # The text of these is only a key or an index.
        if not isinstance(error, KeyError | IndexError):
            reason = str(error).strip().splitlines() or [type(error).__name__]
            what += f": {reason[0]}"
        raise SlideError(what, hint) from error


@contextmanager
def needing_packages(path: Path) -> Iterator[None]:
    """Turn the error about a missing package into a `SlideError` that names file and package.

    `reading` lets it pass: where damaged metadata or a damaged level is no error, this is one.
    """
    try:
        yield
    except ImportError as error:
        module = (error.name or "imagecodecs").partition(".")[0]  # only its errors have no name
        raise SlideError(
            f"{path} needs a package that is missing or incomplete: {short_reason(error)}",
            f"pip install --force-reinstall {_PACKAGES.get(module, module)}",
        ) from error


@lru_cache(maxsize=4096)
def warn_once(log: logging.Logger, message: str) -> None:
    """Log a warning about a file only once, however often it is opened."""
    log.warning("%s", message)


def over_white(rgba: npt.NDArray[np.uint8], *, premultiplied: bool = False) -> RGB:
    """Compose pixels with an alpha channel over white.

    Parameters
    ----------
    rgba : (H, W, 4) uint8 ndarray
    premultiplied : bool
        Whether the colours are already multiplied by alpha ("associated alpha").
    """
    if rgba[:, :, 3].min(initial=255) == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    composed = np.empty((*rgba.shape[:2], 3), np.uint8)
    rows = max(1, _COMPOSED_PIXELS // max(1, rgba.shape[1]))
    for top in range(0, len(rgba), rows):
        part = rgba[top : top + rows]
        alpha = part[:, :, 3:].astype(np.uint16)
        if premultiplied:
            mixed = np.minimum(part[:, :, :3] + (255 - alpha), 255)
        else:
            mixed = (part[:, :, :3] * alpha + 255 * (255 - alpha) + 127) // 255
        composed[top : top + rows] = mixed
    return composed


def positive(value: object) -> float | None:
    """Parse a number in a file's metadata, with decimal point or comma; None unless positive."""
    try:
        number = float(value.strip().replace(",", ".") if isinstance(value, str) else value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number > 0 else None


def positive_pair(x: object, y: object) -> tuple[float, float] | None:
    """Parse two numbers as `positive` does; None unless both are positive."""
    pair = positive(x), positive(y)
    return None if pair[0] is None or pair[1] is None else (pair[0], pair[1])


def refuse_series(path: Path, series: int | None) -> None:
    """Refuse any series but the first, for formats without numbered images.

    Raises
    ------
    qpnuclei.errors.SlideError
    """
    if series:
        raise SlideError(
            f"series {series} of {path} cannot be read: only the first (0) can in this format",
            "save that series as a separate file (QuPath: Export images > OME TIFF)",
        )
