"""Simulate the stain and scanner of another laboratory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import HE_MATRIX, HE_UNMIXING, optical_density


def recolour(rgb: RGB, rng: np.random.Generator) -> npt.NDArray[np.float32]:
    """Change stains, intensity and white balance more than they differ between most laboratories.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    rng : numpy.random.Generator
        One set of changes is drawn for the whole image.

    Returns
    -------
    (H, W, 3) float32 ndarray
        RGB in 0..1.

    Notes
    -----
    Optical densities are unmixed into haematoxylin, eosin and the residual by QuPath's default
    stain vectors. Then:

    * each stain is multiplied by 0.5 to 1.5;
    * each component of its vector changes by a normal deviate of 0.05;
    * up to ±0.05 is added to the density of each channel;
    * all densities are multiplied by e^-0.5 to e^0.5;
    * the intensities of each channel are multiplied by 0.9 to 1.08.
    """
    factors = rng.uniform(0.5, 1.5, 3)
    vectors = HE_MATRIX + rng.normal(0, 0.05, (3, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    shift = rng.uniform(-0.05, 0.05, 3).astype(np.float32)
    strength = np.float32(np.exp(rng.uniform(-0.5, 0.5)))
    white = rng.uniform(0.9, 1.08, 3).astype(np.float32)
    mix = (HE_UNMIXING @ np.diag(factors) @ vectors).astype(np.float32)
    density = optical_density(rgb) @ mix + shift
    np.maximum(density, 0, out=density)
    density *= -np.log(10, dtype=np.float32) * strength
    np.exp(density, out=density)
    density *= white
    return np.asarray(np.clip(density, 0, 1, out=density), np.float32)
