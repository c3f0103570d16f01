"""Colour transfer between slides, after Reinhard.

Statistics are measured once per slide from a sample of its tissue, and then applied to its tiles,
pixel by pixel and in a fixed order. So overlapping tiles agree bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from qpnuclei.slides.pixels import RGB

Float = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ReinhardStatistics:
    """Colour of a slide's tissue.

    Parameters
    ----------
    brightness : float
        90th percentile of the 8-bit values of the sample, over all channels. First of all, values
        are multiplied by 255 / brightness.
    mean, std : (float, float, float)
        Mean and standard deviation of L*, a*, b* (D65; L* from 0 to 100) after that.
    """

    brightness: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def reinhard_statistics(rgb: RGB) -> ReinhardStatistics:
    """Measure the colour of a sample of one slide's tissue pixels.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray

    Raises
    ------
    ValueError
        If there are no pixels.
    """
    if rgb.size == 0:
        raise ValueError("the colour of no pixels cannot be measured")
    brightness = max(1.0, float(np.percentile(rgb, 90)))
    lab = [channel.astype(np.float64) for channel in _rgb_to_lab(rgb, brightness)]
    mean, std = [float(c.mean()) for c in lab], [float(c.std()) for c in lab]
    return ReinhardStatistics(brightness, (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]))


def reinhard_transfer(
    rgb: RGB,
    source: ReinhardStatistics,
    target_mean: tuple[float, float, float],
    target_std: tuple[float, float, float],
) -> RGB:
    """Transfer the target's colour statistics to pixels of a slide.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
        Any pixels of the slide that `source` was measured on.
    source : ReinhardStatistics
        Statistics of the whole slide, never of a single tile.
    target_mean, target_std : (float, float, float)
        Mean and standard deviation of L*, a*, b*.

    Returns
    -------
    (..., 3) uint8 ndarray

    References
    ----------
    .. [1] Reinhard et al.: Color transfer between images. IEEE CG&A 21 (2001).
    """
    lab = _rgb_to_lab(rgb, source.brightness)
    for channel, mean, std, new_mean, new_std in zip(
        lab, source.mean, source.std, target_mean, target_std, strict=True
    ):
        gain = np.float32(new_std / std if std > 0 else 1.0)
        channel -= np.float32(mean)
        channel *= gain
        channel += np.float32(new_mean)
    return _lab_to_rgb(*lab)


# sRGB to linear light and back, D65 white (IEC 61966-2-1).
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_XYZ_WHITE = _TO_XYZ.sum(axis=1)
_LAB_EPSILON = 6 / 29
# 16-bit tables replace the roots: steps of 1.5e-5 of white are finer than 8-bit colours.
_TABLE_MAX = 65535


@cache
def _lab_table() -> Float:
    t = np.arange(_TABLE_MAX + 1) / _TABLE_MAX
    linear = t / (3 * _LAB_EPSILON**2) + 4 / 29
    return np.where(t > _LAB_EPSILON**3, np.cbrt(t), linear).astype(np.float32)


@cache
def _gamma_table() -> RGB:
    linear = np.arange(_TABLE_MAX + 1) / _TABLE_MAX
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.asarray(np.rint(255 * encoded), np.uint8)


def _rgb_to_lab(rgb: RGB, brightness: float) -> tuple[Float, Float, Float]:
    values = np.rint(np.minimum(np.arange(256) * (255 / brightness), 255)) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    f: list[Float] = []
    for weights, white in zip(_TO_XYZ, _XYZ_WHITE, strict=True):
        tables = (weights[:, None] / white * linear[None] * _TABLE_MAX).astype(np.float32)
        amount = tables[0][rgb[..., 0]]
        amount += tables[1][rgb[..., 1]]
        amount += tables[2][rgb[..., 2]]
        f.append(_lab_table()[_to_index(amount)])
    fx, fy, fz = f
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def _lab_to_rgb(lightness: Float, a: Float, b: Float) -> RGB:
    fy = (lightness + np.float32(16)) / np.float32(116)
    xyz = [
        _from_lab_root(root) * np.float32(white)
        for root, white in zip(
            (fy + a / np.float32(500), fy, fy - b / np.float32(200)), _XYZ_WHITE, strict=True
        )
    ]
    rgb = np.empty((*lightness.shape, 3), np.uint8)
    for channel, weights in enumerate(np.linalg.inv(_TO_XYZ) * _TABLE_MAX):
        amount = xyz[0] * np.float32(weights[0])
        amount += xyz[1] * np.float32(weights[1])
        amount += xyz[2] * np.float32(weights[2])
        rgb[..., channel] = _gamma_table()[_to_index(amount)]
    return rgb


def _from_lab_root(root: Float) -> Float:
    linear = (root - np.float32(4 / 29)) * np.float32(3 * _LAB_EPSILON**2)
    return np.where(root > _LAB_EPSILON, root * root * root, linear)


def _to_index(amount: Float) -> npt.NDArray[np.uint16]:
    np.rint(amount, out=amount)
    return np.clip(amount, 0, _TABLE_MAX, out=amount).astype(np.uint16)
