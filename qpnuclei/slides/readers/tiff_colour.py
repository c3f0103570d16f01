"""Convert the pixels of a TIFF to RGB; unknown colour formats are refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from qpnuclei.errors import SlideError
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.readers.reader import CONVERT, over_white

Conversion = Callable[[npt.NDArray[np.uint8]], RGB]

#: Compressions that do not convert colours: none, LZW, deflate (two numbers), PackBits, LZMA,
#: Zstandard (two numbers).
_LOSSLESS = frozenset({1, 5, 8, 32946, 32773, 34925, 34926, 50000})
#: JPEG and Bio-Formats' number for it: the decoder converts YCbCr to RGB.
_JPEG = frozenset({7, 33007})
#: Codecs that are decoded to RGB: JPEG XR (two numbers), Aperio's JPEG 2000 in RGB, JPEG 2000, PNG,
#: WebP (two numbers), JPEG XL.
_RGB_CODECS = frozenset({22610, 34934, 33005, 34712, 34933, 34927, 50001, 50002})
#: Bio-Formats' numbers for JPEG 2000 with RGB in OME-TIFFs, lossless and lossy. Aperio uses the
#: first number for YCbCr.
_BIO_FORMATS_JPEG_2000 = frozenset({33003, 33004})
_APERIO_RGB = 33005
_OLD_JPEG = 6

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA = 1, 2


def conversion_to_rgb(
    path: Path, page: Any, planes: int, *, apart: bool, named_rgb: bool
) -> Conversion:
    """Return a function that converts the decoded pixels of a page to RGB.

    Parameters
    ----------
    path : Path
        Path of the file, for messages.
    page : tifffile.TiffPage
        A page with 8-bit pixels.
    planes : int
        Number of samples per pixel, or of grey pages that make up the image.
    apart : bool
        Whether the samples of a pixel are stored in separate planes.
    named_rgb : bool
        Whether the file names three grey planes red, green and blue.

    Raises
    ------
    qpnuclei.errors.SlideError
        If the colour format is unknown.
    """
    compression, photometric = int(page.compression), int(page.photometric)
    if compression == _OLD_JPEG:
        raise SlideError(f"{path} is compressed as old-style JPEG, which is not supported", CONVERT)
    stored = compression in _LOSSLESS
    by_bio_formats = compression in _BIO_FORMATS_JPEG_2000 and page.parent.is_ome
    if not (stored or compression in _JPEG | _RGB_CODECS or by_bio_formats):
        raise SlideError(
            f"{path} is compressed as {enum_name(tifffile.COMPRESSION, compression)}, "
            "which is not supported",
            CONVERT,
        )
    if photometric == _SEPARATED:
        raise SlideError(f"{path} is a CMYK image, not RGB", "export it as 8-bit RGB")
    if planes == 1 and photometric in (_MINISBLACK, _MINISWHITE):
        return _inverted_grey if photometric == _MINISWHITE else _grey
    if planes == 1 and photometric == _PALETTE and stored:
        return _palette(np.asarray(page.colormap))
    if planes == 3 and named_rgb:
        return np.ascontiguousarray
    if planes == 3 and photometric == _YCBCR and not apart:
        if stored:
            return _ycbcr(path, page)
        if compression in _JPEG or compression == _APERIO_RGB:
            return np.ascontiguousarray
    if planes in (3, 4) and photometric == _RGB:
        return _alpha(page) if planes == 4 else np.ascontiguousarray
    if planes == 3 and photometric == _MINISBLACK:
        raise SlideError(
            f"{path} is not an RGB image: it has three grey planes that are not named red, green "
            "and blue",
            "name its channels Red, Green and Blue and save it as OME-TIFF, or as RGB",
        )
    raise SlideError(
        f"{path} is not an RGB image: {enum_name(tifffile.PHOTOMETRIC, photometric)} with {planes} "
        f"samples, compressed as {enum_name(tifffile.COMPRESSION, compression)}",
        "qpnuclei reads brightfield images, not fluorescence, stacks or CMYK",
    )


def enum_name(names: Any, value: int) -> str:
    """Return the name of a tag's value; its number if it has no name."""
    try:
        return str(names(value).name)
    except ValueError:
        return str(value)


def _grey(pixels: npt.NDArray[np.uint8]) -> RGB:
    return np.repeat(pixels, 3, axis=2)


def _inverted_grey(pixels: npt.NDArray[np.uint8]) -> RGB:
    return np.repeat(255 - pixels, 3, axis=2)


def _palette(colormap: npt.NDArray[np.uint16]) -> Conversion:
    colours = np.asarray(colormap.T >> 8, np.uint8)
    return lambda pixels: colours[pixels[:, :, 0]]


def _alpha(page: Any) -> Conversion:
    kind = int(page.extrasamples[0]) if page.extrasamples else 0
    if kind in (_ASSOCIATED_ALPHA, _UNASSOCIATED_ALPHA):
        return lambda pixels: over_white(pixels, premultiplied=kind == _ASSOCIATED_ALPHA)
    # A fourth sample without a stated meaning is ignored.
    return lambda pixels: np.ascontiguousarray(pixels[:, :, :3])


def _ycbcr(path: Path, page: Any) -> Conversion:
    """Return the conversion that tags 529 and 532 describe (by default BT.601, full range)."""
    if page.is_subsampled:
        raise SlideError(
            f"{path} is YCbCr with subsampled colours but without JPEG, which is not supported",
            CONVERT,
        )
    red, green, blue = _rationals(page, 529, (0.299, 0.587, 0.114))
    black_y, white_y, black_cb, white_cb, black_cr, white_cr = _rationals(
        page, 532, (0.0, 255.0, 128.0, 255.0, 128.0, 255.0)
    )
    if green <= 0 or min(white_y - black_y, white_cb - black_cb, white_cr - black_cr) <= 0:
        raise SlideError(f"{path} is YCbCr with invalid coefficients", CONVERT)

    def convert(pixels: npt.NDArray[np.uint8]) -> RGB:
        y = (pixels[:, :, 0] - np.float32(black_y)) * np.float32(255 / (white_y - black_y))
        cb = (pixels[:, :, 1] - np.float32(black_cb)) * np.float32(127 / (white_cb - black_cb))
        cr = (pixels[:, :, 2] - np.float32(black_cr)) * np.float32(127 / (white_cr - black_cr))
        r = y + cr * np.float32(2 - 2 * red)
        b = y + cb * np.float32(2 - 2 * blue)
        g = (y - np.float32(red) * r - np.float32(blue) * b) / np.float32(green)
        rgb: RGB = np.clip(np.rint(np.stack([r, g, b], axis=-1)), 0, 255).astype(np.uint8)
        return rgb

    return convert


def _rationals(page: Any, tag: int, default: tuple[float, ...]) -> tuple[float, ...]:
    """Return the fractions of a tag; the default if they are missing or broken."""
    value = page.tags[tag].value if tag in page.tags else ()
    if not isinstance(value, tuple):
        return default
    pairs = list(zip(value[::2], value[1::2], strict=True)) if len(value) % 2 == 0 else []
    if len(pairs) != len(default) or any(denominator == 0 for _, denominator in pairs):
        return default
    return tuple(numerator / denominator for numerator, denominator in pairs)
