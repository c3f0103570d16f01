"""Stains: optical density, colour deconvolution, stain vectors, colour transfer.

Statistics are estimated once per slide from a sample of its tissue, and then applied to its tiles,
pixel by pixel and in a fixed order. So overlapping tiles agree bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from qpnuclei.slides.pixels import RGB
from qpnuclei.system.compiled import compiled


@dataclass(frozen=True)
class Stains:
    """Colour deconvolution setting of an image.

    Parameters
    ----------
    name : str
        For example ``"H&E default"``.
    stain_names : (2 or 3,) tuple of str
        Names of the stains; the third, the residual, may be absent.
    vectors : (2 or 3,) tuple of (3,) tuples of float
        Optical density of red, green, blue per stain, as stored (need not be of unit length).
    background : (3,) tuple of float
        White of the slide, in 8-bit values.
    """

    name: str
    stain_names: tuple[str, ...]
    vectors: tuple[tuple[float, float, float], ...]
    background: tuple[float, float, float] = (255.0, 255.0, 255.0)


#: QuPath's default for Brightfield (H&E).
DEFAULT_HE = Stains(
    "H&E default",
    ("Hematoxylin", "Eosin"),
    ((0.65111, 0.70119, 0.29049), (0.2159, 0.8012, 0.5581)),
)

#: QuPath's default for Brightfield (H-DAB).
DEFAULT_H_DAB = Stains(
    "H-DAB default",
    ("Hematoxylin", "DAB"),
    ((0.65111, 0.70119, 0.29049), (0.26917, 0.56824, 0.77759)),
)


Float = npt.NDArray[np.float32]

_WHITE = (255.0, 255.0, 255.0)


def optical_density(rgb: RGB, background: tuple[float, float, float] = _WHITE) -> Float:
    """Return the optical density as in QuPath: ``max(0, -log10(max(v, 1) / background))``.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
    background : (float, float, float)
        White of the slide in 8-bit values.

    Returns
    -------
    (..., 3) float32 ndarray
    """
    table = _density_table(background).astype(np.float32)
    return np.stack([table[i][rgb[..., i]] for i in range(3)], axis=-1)


def stain_matrix(stains: Stains) -> npt.NDArray[np.float64]:
    """Return the unit stain vectors as rows; a missing third is their unit cross product.

    Returns
    -------
    (3, 3) float64 ndarray

    Raises
    ------
    ValueError
        If a vector has no length, or two are parallel.
    """
    vectors = [np.asarray(v, np.float64) for v in stains.vectors]
    for name, vector in zip(stains.stain_names, vectors, strict=False):
        if not np.linalg.norm(vector) > 0:
            raise ValueError(f"the stain vector of {name!r} in {stains.name!r} has no length")
    if len(vectors) == 2:
        vectors.append(np.cross(vectors[0], vectors[1]))
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths[2] < 1e-6:
        raise ValueError(f"the stain vectors of {stains.name!r} are parallel: {stains.vectors!r}")
    matrix: npt.NDArray[np.float64] = np.asarray(vectors) / lengths[:, None]
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError(f"the stains of {stains.name!r} lie in one plane: {stains.vectors!r}")
    return matrix


def separate(rgb: RGB, stains: Stains = DEFAULT_HE, n_stains: int = 2) -> Float:
    """Return the concentration of each stain, as QuPath's colour deconvolution computes it.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
    stains : Stains
    n_stains : int
        How many of the three to return: 2, or 3 with the residual.

    Returns
    -------
    (..., n_stains) float32 ndarray
        May be negative if the colour is not a mixture of the stains.

    References
    ----------
    .. [1] Ruifrok, Johnston: Quantification of histochemical staining by color deconvolution.
       Anal. Quant. Cytol. Histol. 23 (2001).
    """
    inverse = np.linalg.inv(stain_matrix(stains))[:, None, :n_stains]
    # One table per channel replaces logarithm and matrix product.
    tables = (_density_table(stains.background)[:, :, None] * inverse).astype(np.float32)
    return _summed(tables, rgb.reshape(-1, 3)).reshape(*rgb.shape[:-1], n_stains)


@compiled
def _summed(tables: Float, rgb: RGB) -> Float:
    """Look up M pixels in one table per channel, (3, 256, S), and return the (M, S) sums."""
    sums = np.empty((len(rgb), tables.shape[2]), np.float32)
    for i, (red, green, blue) in enumerate(rgb):
        for stain in range(tables.shape[2]):
            sums[i, stain] = (
                tables[0, red, stain] + tables[1, green, stain] + tables[2, blue, stain]
            )
    return sums


def estimate_macenko(
    rgb: RGB,
    *,
    background: tuple[float, float, float] = _WHITE,
    min_density: float = 0.15,
    percentile: float = 1.0,
) -> Stains:
    """Estimate a slide's haematoxylin and eosin vectors from a sample of its tissue.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
        Pixels from all over the slide's tissue.
    background : (float, float, float)
        White of the slide in 8-bit values.
    min_density : float
        Pixels with a smaller optical density in any channel are left out as too pale. This is
        Macenko's beta, but with decadic logarithms.
    percentile : float
        Share of outliers at each end of the range of angles, in percent (Macenko's alpha).

    Returns
    -------
    Stains
        Unit vectors. If the sample has fewer than 100 stained pixels or shows only one stain, these
        are QuPath's default vectors, with their name.

    References
    ----------
    .. [1] Macenko et al.: A method for normalizing histology slides for quantitative analysis.
       ISBI 2009.
    """
    density = optical_density(rgb, background).reshape(-1, 3).astype(np.float64)
    density = density[(density > min_density).all(axis=1)]
    if len(density) < 100:
        return _default_stains(background)
    _, axes = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = axes[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    projected = density @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    extremes = np.percentile(angles, [percentile, 100 - percentile])
    vectors = np.stack([np.cos(extremes), np.sin(extremes)], axis=1) @ plane.T
    if np.any(vectors <= 0) or np.degrees(np.ptp(extremes)) < 5:
        return _default_stains(background)
    # Haematoxylin absorbs more red than eosin does.
    order = np.argsort(-vectors[:, 0] / vectors.sum(axis=1))
    haematoxylin, eosin = (tuple(float(c) for c in vectors[i]) for i in order)
    return Stains(
        "H&E estimated",
        DEFAULT_HE.stain_names[:2],
        ((haematoxylin[0], haematoxylin[1], haematoxylin[2]), (eosin[0], eosin[1], eosin[2])),
        background,
    )


def _default_stains(background: tuple[float, float, float]) -> Stains:
    return Stains(DEFAULT_HE.name, DEFAULT_HE.stain_names, DEFAULT_HE.vectors, background)


def _density_table(background: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Return the optical density of every 8-bit value, per channel: (3, 256)."""
    values = np.maximum(np.arange(256), 1)
    return np.maximum(0, -np.log10(values[None] / np.asarray(background, np.float64)[:, None]))


# --- Reinhard ----------------------------------------------------------------------------------


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
