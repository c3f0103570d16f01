"""Stains: optical density, colour deconvolution, stain vectors.

Pixels are converted one by one and in a fixed order. So overlapping tiles agree bit for bit.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    background: tuple[float, float, float]


_WHITE = (255.0, 255.0, 255.0)

#: Unit vectors of the stains of an image, and its background: rows of red, green, blue.
StainRows = tuple[tuple[float, float, float], ...]

#: Rows of stains agree up to these differences, absolute and relative: programs round vectors.
_ROUNDING, _RELATIVE_ROUNDING = 1e-3, 2e-3

#: QuPath's default for Brightfield (H&E).
DEFAULT_HE = Stains(
    "H&E default",
    ("Hematoxylin", "Eosin"),
    ((0.65111, 0.70119, 0.29049), (0.2159, 0.8012, 0.5581)),
    _WHITE,
)

#: QuPath's default for Brightfield (H-DAB).
DEFAULT_H_DAB = Stains(
    "H-DAB default",
    ("Hematoxylin", "DAB"),
    ((0.65111, 0.70119, 0.29049), (0.26917, 0.56824, 0.77759)),
    _WHITE,
)


Float = npt.NDArray[np.float32]

#: Macenko's beta, but with decadic logarithms: pixels with a smaller optical density in any channel
#: are too pale.
_MIN_DENSITY = 0.15
#: Macenko's alpha: share of outliers at each end of the range of angles, in percent.
_OUTLIERS = 1.0


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
        If a vector has no length or is not finite, or two are parallel.
    """
    vectors = [np.asarray(v, np.float64) for v in stains.vectors]
    for name, vector in zip(stains.stain_names, vectors, strict=False):
        if not 0 < np.linalg.norm(vector) < np.inf:
            raise ValueError(
                f"the stain vector of {name!r} in {stains.name!r} has no length: {tuple(vector)}"
            )
    if len(vectors) == 2:
        vectors.append(np.cross(vectors[0], vectors[1]))
    lengths = np.linalg.norm(vectors, axis=1)
    if lengths[2] < 1e-6:
        raise ValueError(f"the stain vectors of {stains.name!r} are parallel: {stains.vectors!r}")
    matrix: npt.NDArray[np.float64] = np.asarray(vectors) / lengths[:, None]
    if abs(np.linalg.det(matrix)) < 1e-6:
        raise ValueError(f"the stains of {stains.name!r} lie in one plane: {stains.vectors!r}")
    return matrix


#: Unit vectors of haematoxylin, eosin and the residual in `DEFAULT_HE`, as rows; optical densities
#: times `HE_UNMIXING` are their concentrations.
HE_MATRIX = stain_matrix(DEFAULT_HE)
HE_UNMIXING = np.linalg.inv(HE_MATRIX)


def check_stains(stains: Stains) -> None:
    """Refuse stains that `separate` cannot use.

    Raises
    ------
    ValueError
        As for `stain_matrix`; also if the background is not above 0.
    """
    stain_matrix(stains)
    if not all(0 < white < np.inf for white in stains.background):
        raise ValueError(f"the background of {stains.name!r} is not above 0: {stains.background}")


def stain_rows(stains: Stains) -> StainRows:
    """Return what the concentrations of stains depend on, without names and lengths of vectors.

    Examples
    --------
    >>> stain_rows(DEFAULT_HE)[1:]
    ((0.2159, 0.8012, 0.5581), (255.0, 255.0, 255.0))
    """
    units = [np.divide(vector, np.linalg.norm(vector)) for vector in stains.vectors]
    return tuple((r, g, b) for r, g, b in np.round([*units, stains.background], 4).tolist())


def stains_agree(a: StainRows, b: StainRows) -> bool:
    """Tell whether two results of `stain_rows` are equal up to rounding."""
    return len(a) == len(b) and np.allclose(a, b, rtol=_RELATIVE_ROUNDING, atol=_ROUNDING)


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

    Raises
    ------
    ValueError
        As for `stain_matrix`.

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


def estimate_macenko(rgb: RGB) -> Stains:
    """Estimate a slide's haematoxylin and eosin vectors from a sample of its tissue.

    Parameters
    ----------
    rgb : (..., 3) uint8 ndarray
        Pixels from all over the slide's tissue.

    Returns
    -------
    Stains
        Unit vectors. `DEFAULT_HE` if the sample has fewer than 100 stained pixels or shows only one
        stain.

    References
    ----------
    .. [1] Macenko et al.: A method for normalizing histology slides for quantitative analysis.
       ISBI 2009.
    """
    density = optical_density(rgb).reshape(-1, 3).astype(np.float64)
    density = density[(density > _MIN_DENSITY).all(axis=1)]
    if len(density) < 100:
        return DEFAULT_HE
    _, axes = np.linalg.eigh(np.cov(density, rowvar=False))
    plane = axes[:, [2, 1]]
    plane = plane * np.where(plane.sum(axis=0) < 0, -1, 1)
    projected = density @ plane
    angles = np.arctan2(projected[:, 1], projected[:, 0])
    extremes = np.percentile(angles, [_OUTLIERS, 100 - _OUTLIERS])
    vectors = np.stack([np.cos(extremes), np.sin(extremes)], axis=1) @ plane.T
    if np.any(vectors <= 0) or np.degrees(np.ptp(extremes)) < 5:
        return DEFAULT_HE
    # Haematoxylin absorbs more red than eosin does.
    order = np.argsort(-vectors[:, 0] / vectors.sum(axis=1))
    haematoxylin, eosin = (tuple(float(c) for c in vectors[i]) for i in order)
    return Stains(
        "H&E estimated",
        DEFAULT_HE.stain_names[:2],
        ((haematoxylin[0], haematoxylin[1], haematoxylin[2]), (eosin[0], eosin[1], eosin[2])),
        _WHITE,
    )


def _density_table(background: tuple[float, float, float]) -> npt.NDArray[np.float64]:
    """Return the optical density of every 8-bit value, per channel: (3, 256)."""
    values = np.maximum(np.arange(256), 1)
    return np.maximum(0, -np.log10(values[None] / np.asarray(background, np.float64)[:, None]))
