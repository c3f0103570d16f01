"""Density maps, in nuclei per mm², and their colours."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import shapely
from PIL import Image

from qpnuclei.slides.masks import rasterise

Floats = npt.NDArray[np.float64]

#: Longest side of a map in px. The largest detail is this share of the longest side.
_MAP_PX, _DETAIL = 480, 1 / 40
#: Most px per standard deviation. The map of a small area has fewer px: it is so smooth that they
#: show all of it.
_MOST_PX_OF_SIGMA = 24
#: Possible standard deviations of the Gaussian, in µm. A smaller one would show single nuclei.
_SIGMAS_UM = (25.0, 50.0, 100.0, 200.0, 400.0)
#: Index of the colour for areas that were not analysed.
_NOWHERE = 255


@dataclass(frozen=True, eq=False)
class DensityMap:
    """Nuclei per mm² over an area.

    Parameters
    ----------
    values : (H, W) float64 ndarray
        NaN outside the area.
    box : (x0, y0, x1, y1)
        Extent of the map, in level-0 px.
    sigma_um : float
        Standard deviation of the Gaussian that smooths the map.
    top : float
        Density of the last colour, a round number. At most a hundredth of the map is denser.
    """

    values: Floats
    box: tuple[float, float, float, float]
    sigma_um: float
    top: float

    def image(self) -> Image.Image:
        """Return the map in colours (viridis), transparent outside the area."""
        inside = ~np.isnan(self.values)
        levels = np.full(self.values.shape, _NOWHERE, np.uint8)
        levels[inside] = np.rint(np.minimum(self.values[inside] / self.top, 1) * (_NOWHERE - 1))
        picture = Image.fromarray(levels)
        picture.putpalette([*viridis(np.linspace(0, 1, _NOWHERE)).ravel().tolist(), 0, 0, 0])
        picture.info["transparency"] = _NOWHERE
        return picture


def density_map(
    centroids: Floats, area: shapely.Geometry, mpp: tuple[float, float]
) -> DensityMap | None:
    """Return the density of nuclei over an area; None if the area is empty.

    The Gaussian smooths both the counts and the area, and the density is their quotient. So the
    density is right at the border of the area, too.

    Parameters
    ----------
    centroids : (N, 2) float64 ndarray
        Positions in level-0 px; centroids outside the area are not counted.
    area : shapely.Polygon or shapely.MultiPolygon
        Analysed area in level-0 px.
    mpp : (float, float)
        µm per level-0 px.
    """
    if area.is_empty or not area.area > 0:
        return None
    um = np.array(mpp)
    x0, y0, x1, y1 = area.bounds
    extent = np.array([x1 - x0, y1 - y0]) * um
    sigma = min(_SIGMAS_UM, key=lambda s: abs(math.log(s / (float(extent.max()) * _DETAIL))))
    pixel = max(float(extent.max()) / _MAP_PX, sigma / _MOST_PX_OF_SIGMA)
    width, height = (max(1, math.ceil(length / pixel - 1e-9)) for length in extent)
    scale = um / pixel
    mask = rasterise(area, (height, width), (pixel / mpp[0], pixel / mpp[1]), (x0, y0))
    inside = centroids[shapely.intersects_xy(area, centroids)] if len(centroids) else centroids
    cells = ((inside - (x0, y0)) * scale).astype(np.int64)
    cells = np.clip(cells, 0, (width - 1, height - 1))
    # Blurring float32 takes a quarter of the time of float64.
    count = np.zeros((height, width), np.float32)
    np.add.at(count, (cells[:, 1], cells[:, 0]), 1)
    blurred, share = (
        np.asarray(
            cv2.GaussianBlur(of, (0, 0), max(sigma / pixel, 0.5), borderType=cv2.BORDER_CONSTANT)
        )
        for of in (count, mask.astype(np.float32))
    )
    values = np.full(mask.shape, np.nan)
    values[mask] = blurred[mask] / (share[mask] * (pixel / 1000) ** 2)
    top = _round_up(float(np.nanquantile(values, 0.99))) if mask.any() else 1.0
    corner = (x0 + width * pixel / mpp[0], y0 + height * pixel / mpp[1])
    return DensityMap(values, (x0, y0, *corner), sigma, top)


def viridis(levels: Floats) -> npt.NDArray[np.uint8]:
    """Return the (N, 3) RGB colours of N levels in 0 to 1, with evenly rising brightness."""
    steps = np.rint(np.clip(levels, 0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(steps[:, None], cv2.COLORMAP_VIRIDIS)
    return np.asarray(colours[:, 0, ::-1], np.uint8)


def viridis_steps() -> tuple[str, ...]:
    """Return nine colours of viridis for CSS, in even steps from level 0 to 1."""
    return tuple(f"rgb({r},{g},{b})" for r, g, b in viridis(np.linspace(0, 1, 9)).tolist())


def _round_up(value: float) -> float:
    """Return the lowest round number not below a value. Its quarters are round, too."""
    if not value > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10, 20) if step * power >= value
    )
