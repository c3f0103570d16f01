"""RGB pixels: their type, and pictures of them."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from qpnuclei.system.files import atomic_file

#: (..., 3) uint8 array: red, green and blue.
RGB: TypeAlias = npt.NDArray[np.uint8]


def write_png(path: Path, rgb: RGB) -> None:
    """Write a picture atomically as PNG; missing folders are created.

    Parameters
    ----------
    path : Path
    rgb : (H, W, 3) uint8 ndarray

    Raises
    ------
    qpnuclei.errors.SaveError
        If it cannot be written.
    """
    from PIL import Image

    with atomic_file(path) as stream:
        Image.fromarray(rgb).save(stream, "PNG")
