"""How unlike colours are to people with any kind of colour vision."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from PIL import ImageColor
from skimage.color import deltaE_ciede2000, rgb2lab

#: Linear RGB as seen without one kind of cone: G. M. Machado, M. M. Oliveira, L. A. F. Fernandes,
#: "A Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE Transactions on
#: Visualization and Computer Graphics 15(6), 2009, severity 1.
_SEEN = {
    "all cones": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def least_difference(colours: Iterable[str]) -> float:
    """Return CIEDE2000 of the two that are most alike to those who tell them apart worst."""
    rgb = np.array([ImageColor.getrgb(colour) for colour in colours]) / 255
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    least = np.inf
    for matrix in _SEEN.values():
        lab = rgb2lab(_encoded(linear @ np.transpose(matrix)))
        for a, b in itertools.combinations(lab, 2):
            least = min(least, float(deltaE_ciede2000(a, b)))
    return least


def _encoded(linear: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    clipped = np.clip(linear, 0, 1)
    encoded: npt.NDArray[np.float64] = np.where(
        clipped <= 0.0031308, 12.92 * clipped, 1.055 * clipped ** (1 / 2.4) - 0.055
    )
    return encoded
