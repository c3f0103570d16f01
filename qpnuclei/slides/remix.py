"""Haematoxylin and DAB in the colours of H&E: what a network sees that learned from H&E.

Experimental: judged on synthetic mixtures alone (docs/qupath.md).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.slides.slide import PixelSource
from qpnuclei.slides.stains import DEFAULT_HE, Stains, separate, stain_matrix

#: Name of the stain, as QuPath has it.
DAB = "DAB"

#: So much eosin is mixed to the haematoxylin: real nuclei hold some, too.
_EOSIN_SHARE = 0.5

_RGB = npt.NDArray[np.uint8]


def has_dab(stains: Stains) -> bool:
    """Tell whether the second stain of an image is DAB."""
    return stains.stain_names[1] == DAB


def seen_by_network(pixels: PixelSource, stains: Stains) -> PixelSource:
    """Return the pixels that a network of H&E is given: remixed if the image has DAB."""
    return Remixed(pixels, stains) if has_dab(stains) else pixels


class Remixed:
    """Pixels of haematoxylin and DAB, in the colours of haematoxylin and eosin.

    Parameters
    ----------
    pixels : PixelSource
    stains : Stains
        Of the image: haematoxylin and DAB.
    """

    def __init__(self, pixels: PixelSource, stains: Stains) -> None:
        self.width, self.height = pixels.width, pixels.height
        self._pixels, self._stains = pixels, stains

    def read(
        self, x: int, y: int, width: int, height: int, downsample: tuple[float, float]
    ) -> _RGB:
        """Read a region of the working grid; see `qpnuclei.slides.slide.Slide.read`."""
        return as_h_and_e(self._pixels.read(x, y, width, height, downsample), self._stains)


def as_h_and_e(rgb: _RGB, stains: Stains) -> _RGB:
    """Give haematoxylin and DAB the colours of H&E.

    A nucleus has haematoxylin, DAB or both. Their sum becomes haematoxylin, and half of it eosin;
    what is neither is left out. Both have QuPath's default vectors, on white.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    stains : Stains
        Haematoxylin and DAB.
    """
    densities = np.maximum(separate(rgb, stains), 0)
    haematoxylin, eosin = stain_matrix(DEFAULT_HE)[:2]
    mixed = (haematoxylin + _EOSIN_SHARE * eosin).astype(np.float32)
    density = densities.sum(axis=-1, keepdims=True) * mixed
    remixed: _RGB = np.rint(255 * np.power(np.float32(10), -density)).astype(np.uint8)
    return remixed
