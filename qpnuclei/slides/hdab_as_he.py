"""Convert H-DAB images to the colours of H&E, for networks that were trained on H&E.

Experimental: evaluated on synthetic mixtures only (docs/qupath.md).
"""

from __future__ import annotations

import numpy as np

from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import HE_MATRIX, Stains, separate

#: QuPath's name of the stain.
DAB = "DAB"

#: Share of eosin that is added to the haematoxylin: real nuclei contain some, too.
_EOSIN_SHARE = 0.5


def has_dab(stains: Stains) -> bool:
    """Tell whether the second stain of an image is DAB."""
    return stains.stain_names[1] == DAB


def seen_by_network(pixels: PixelSource, stains: Stains) -> PixelSource:
    """Return the pixels for a network that was trained on H&E: converted if the image has DAB."""
    return HdabAsHe(pixels, stains) if has_dab(stains) else pixels


class HdabAsHe:
    """Pixels of an H-DAB image, in the colours of H&E: see `as_h_and_e`.

    Parameters
    ----------
    pixels : PixelSource
    stains : Stains
        Stains of the image: haematoxylin and DAB.
    """

    def __init__(self, pixels: PixelSource, stains: Stains) -> None:
        self.width, self.height = pixels.width, pixels.height
        self._pixels, self._stains = pixels, stains

    def read(self, x: int, y: int, width: int, height: int, downsample: tuple[float, float]) -> RGB:
        """Read a region of the working grid; see `qpnuclei.slides.slide.Slide.read`."""
        return as_h_and_e(self._pixels.read(x, y, width, height, downsample), self._stains)


def as_h_and_e(rgb: RGB, stains: Stains) -> RGB:
    """Convert haematoxylin and DAB to the colours of H&E.

    A nucleus has haematoxylin, DAB or both. Their sum becomes haematoxylin, and half of it eosin;
    the residual is left out. The result has QuPath's default H&E vectors, on a white background.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    stains : Stains
        Haematoxylin and DAB.
    """
    densities = np.maximum(separate(rgb, stains), 0)
    haematoxylin, eosin = HE_MATRIX[:2]
    mixed = (haematoxylin + _EOSIN_SHARE * eosin).astype(np.float32)
    density = densities.sum(axis=-1, keepdims=True) * mixed
    converted: RGB = np.rint(255 * np.power(np.float32(10), -density)).astype(np.uint8)
    return converted
