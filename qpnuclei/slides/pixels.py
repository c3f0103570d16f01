"""RGB pixels: their type, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qpnuclei.system.files import atomic_file, open_regular

#: (..., 3) uint8 array: red, green and blue.
RGB: TypeAlias = npt.NDArray[np.uint8]

_PNG = b"\x89PNG\r\n\x1a\n"
#: A chunk of PNG that names the program; it lies in the first bytes of the file.
_MARK, _HEAD = b"tEXtSoftware\0qpnuclei", 256
#: The title at the start of a page of ``qpnuclei preview``, and the end of the page.
_PREVIEW = b"<title>Preview of ", b"<footer>Made by qpnuclei "


def write_png(path: Path, rgb: RGB) -> None:
    """Write a picture atomically as PNG; missing folders are created.

    It is marked (see `is_picture`), so that it is not taken for a slide.

    Parameters
    ----------
    path : Path
    rgb : (H, W, 3) uint8 ndarray

    Raises
    ------
    qpnuclei.errors.SaveError
        If it cannot be written.
    """
    from PIL import Image, PngImagePlugin

    mark = PngImagePlugin.PngInfo()
    mark.add_text("Software", "qpnuclei")
    with atomic_file(path) as stream:
        Image.fromarray(rgb).save(stream, "PNG", pnginfo=mark)


def is_picture(path: Path) -> bool:
    """Tell whether a file is a picture that qpnuclei made; False if it cannot be read.

    It has the mark of `write_png`, or lies beside the page of its preview: earlier versions did not
    mark pictures.
    """
    if path.suffix.lower() != ".png":  # spares a look into each of many slides
        return False
    try:
        with open_regular(path) as stream:
            head = stream.read(_HEAD)
    except OSError:
        return False
    if not head.startswith(_PNG):
        return False
    return _MARK in head or any(_is_preview(path.with_suffix(s)) for s in (".html", ".htm"))


def _is_preview(page: Path) -> bool:
    try:
        with open_regular(page) as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, stream.seek(0, 2) - _HEAD))
            return _PREVIEW[0] in head and _PREVIEW[1] in stream.read()
    except OSError:
        return False
