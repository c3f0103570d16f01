"""Random changes of tiles that keep their magnification (section 4.2, and the authors' code)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from skimage.color import hed_from_rgb, rgb_from_hed

from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import optical_density


def random_crop(tile: RGB, size: int, rng: np.random.Generator) -> RGB:
    """Cut a square of `size` px out of a (H, W, 3) tile, anywhere with equal probability."""
    y, x = (int(rng.integers(0, length - size + 1)) for length in tile.shape[:2])
    return tile[y : y + size, x : x + size]


def random_flip_and_rotation(tile: RGB, rng: np.random.Generator) -> RGB:
    """Turn a square (H, H, 3) tile into one of its eight mirror images and rotations."""
    turned = np.rot90(tile, int(rng.integers(4)))
    return turned[:, ::-1] if rng.integers(2) else turned


def scale_stains(tile: RGB, factors: npt.ArrayLike) -> RGB:
    """Multiply the concentrations of haematoxylin, eosin and the residual.

    Parameters
    ----------
    tile : (..., 3) uint8 ndarray
    factors : (3,) array_like
        1 changes nothing.

    Returns
    -------
    (..., 3) uint8 ndarray

    Notes
    -----
    Stains are separated by Ruifrok and Johnston's HED vectors, as scikit-image has them; to
    separate, scale and mix again is one 3x3 matrix on optical densities.
    """
    scaled = hed_from_rgb * np.asarray(factors, np.float64) @ rgb_from_hed
    density = optical_density(tile) @ scaled.astype(np.float32)
    np.multiply(density, -np.log(10, dtype=np.float32), out=density)
    rgb: RGB = np.rint(255 * np.clip(np.exp(density), 0, 1)).astype(np.uint8)
    return rgb


def jitter_stains(tile: RGB, deviation: float, rng: np.random.Generator) -> RGB:
    """Multiply each stain's concentration by its own factor from N(1, `deviation`)."""
    return scale_stains(tile, rng.normal(1.0, deviation, 3))
