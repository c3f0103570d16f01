"""Read PNG, JPEG and BMP with Pillow."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qpnuclei.errors import SlideError
from qpnuclei.slides.readers.jpeg_end import file_lacks_end
from qpnuclei.slides.readers.memory import ArrayReader
from qpnuclei.slides.readers.reader import (
    CONVERT,
    CONVERT_TO_8_BIT,
    SlideReader,
    over_white,
    reading,
    refuse_series,
    warn_once,
)

if TYPE_CHECKING:
    from PIL import Image

_log = logging.getLogger(__name__)

_PNG = b"\x89PNG\r\n\x1a\n"
SIGNATURES = (_PNG, b"\xff\xd8\xff", b"BM")
_FORMATS = ("PNG", "JPEG", "BMP")
#: Offset of the bits per sample in a PNG.
_PNG_BIT_DEPTH = 24


def open_plain(path: Path, series: int | None = None) -> SlideReader:
    """Decode an image into memory.

    Raises
    ------
    qpnuclei.errors.SlideError
        If it is damaged, too large, or not 8-bit grey or RGB.
    """
    refuse_series(path, series)
    with reading(path, "is damaged"):
        if file_lacks_end(path):
            raise SlideError(
                f"{path} is damaged: zeros are in the place of its end", "copy it again"
            )
        with pillow_image(path, CONVERT) as image:
            return _decoded(path, image)


def pillow_image(path: Path, instead: str) -> Image.Image:
    """Open a PNG, JPEG or BMP with Pillow.

    Slides are large: Pillow's warning about large images is ignored, but its hard limit is kept.

    Parameters
    ----------
    path : pathlib.Path
    instead : str
        What to do with an image beyond the limit.

    Raises
    ------
    qpnuclei.errors.SlideError
        If the image is larger than the limit, or the checksums of a PNG do not fit; other errors
        are Pillow's.
    """
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_FORMATS) as image:
                if image.format == "PNG":
                    image.verify()  # reading does not compare the checksums of the pixels
            return Image.open(path, formats=_FORMATS)
        except SyntaxError as error:
            raise SlideError(f"{path} is damaged: {error}", "copy it again") from error
        except Image.DecompressionBombError as error:
            raise SlideError(
                f"{path} is too large for an untiled image: {error}", instead
            ) from error


def _decoded(path: Path, image: Image.Image) -> SlideReader:
    if image.mode in ("I", "F") or image.mode.startswith("I;") or _has_16_bit(path):
        raise SlideError(
            f"{path} has {image.mode} pixels (16 or 32 bit), not 8-bit RGB", CONVERT_TO_8_BIT
        )
    if image.mode == "CMYK":
        raise SlideError(f"{path} is a CMYK image, not RGB", "export it as 8-bit RGB")
    if image.mode in ("1", "L", "LA"):
        warn_once(_log, f"{path} is grey: haematoxylin and eosin cannot be distinguished")
    transparent = image.has_transparency_data
    pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
    # The printing resolution (dpi) in a PNG or JPEG is not the pixel size of the tissue.
    return ArrayReader(
        over_white(pixels) if transparent else pixels,
        icc_profile=image.info.get("icc_profile") or None,
        samples=len(image.getbands()),
    )


def _has_16_bit(path: Path) -> bool:
    """Tell whether a PNG has 16 bits per sample. Pillow would silently drop the lower eight."""
    with path.open("rb") as file:
        head = file.read(_PNG_BIT_DEPTH + 1)
    return head.startswith(_PNG) and head[_PNG_BIT_DEPTH] > 8
