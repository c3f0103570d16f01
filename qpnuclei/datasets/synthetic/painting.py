"""Paint the synthetic slide: concentrations of stains, then light through them (Beer-Lambert).

The slide is painted in strips of rows, so that memory does not grow with it. Everything random is
either a field or texture made beforehand or belongs to one nucleus, so strips fit without seams.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy.spatial import cKDTree

from qpnuclei.datasets.synthetic.cells import CELL_TYPES, TUMOUR, Nuclei
from qpnuclei.datasets.synthetic.layout import FloatMap, Layout, enlarge, smooth_noise
from qpnuclei.slides.pixels import RGB

# Optical density of red, green and blue per unit of stain.
_HAEMATOXYLIN = (0.64, 0.70, 0.32)
_EOSIN = (0.19, 0.80, 0.50)
_ERYTHROCYTE = (0.10, 0.72, 0.62)
_INK = (0.95, 0.55, 0.18)
_GLASS = (243.0, 241.0, 243.0)

_MARGIN = 16
#: Level-0 px per pixel of the collagen and cell-border textures.
_FIBRE_STEP, _CELL_STEP = 2, 4


@dataclass(frozen=True, eq=False)
class Round:
    """Round bodies without nucleus: N outlines with their strength.

    Parameters
    ----------
    centres : (N, 2) float64 ndarray
        In level-0 px.
    radii : (N,) float64 ndarray
    """

    centres: npt.NDArray[np.float64]
    radii: npt.NDArray[np.float64]

    def outlines(self, rng: np.random.Generator) -> list[npt.NDArray[np.float64]]:
        """Return slightly irregular outlines, level-0 px."""
        t = np.linspace(0, 2 * np.pi, 32, endpoint=False)
        result = []
        for centre, radius in zip(self.centres, self.radii, strict=True):
            r = 1 + sum(rng.normal(0, 0.04) * np.cos(k * t + rng.uniform(0, 6.28)) for k in (2, 3))
            result.append(centre + radius * np.stack([r * np.cos(t), r * np.sin(t)], axis=1))
        return result


class Painter:
    """Everything that is on the slide, ready to be painted strip by strip.

    Parameters
    ----------
    layout : Layout
    nuclei : Nuclei
    erythrocytes, vacuoles : list of (N, 2) ndarray
        Outlines, level-0 px.
    seed : int
    """

    def __init__(
        self,
        layout: Layout,
        nuclei: Nuclei,
        erythrocytes: list[npt.NDArray[np.float64]],
        vacuoles: list[npt.NDArray[np.float64]],
        seed: int,
    ) -> None:
        rng = np.random.default_rng([seed, 1])
        self._layout = layout
        self._nuclei = nuclei
        self._erythrocytes = erythrocytes
        self._vacuoles = vacuoles
        self._seed = seed
        # Periods without a common factor: their sums do not repeat within the slide.
        self._fine = _Texture(1013, 1.2, rng)
        self._grain = _Texture(911, 2.4, rng)
        self._clumps = _Texture(1201, 3.6, rng)
        self._web = _Texture(1103, 3.0, rng)
        coarse = layout.tissue.shape
        self._stain_h = 1 + 0.13 * smooth_noise(coarse, 55, rng)
        self._stain_e = 1 + 0.16 * smooth_noise(coarse, 45, rng)
        self._fibres, self._bundles = _collagen(layout, rng)
        self._borders, self._cell_tint = _cells(layout, nuclei, rng)

    def strips(self, height: int) -> Iterator[tuple[int, RGB]]:
        """Yield (top row, (rows, width, 3) uint8 ndarray) from top to bottom."""
        for top in range(0, self._layout.height, height):
            rows = min(height, self._layout.height - top)
            yield top, self._strip(top, rows)

    def _strip(self, top: int, rows: int) -> RGB:
        y0 = top - _MARGIN
        n = rows + 2 * _MARGIN
        haematoxylin, eosin = self._background(y0, n)
        self._paint_nuclei(haematoxylin, eosin, y0)
        blood = _fill(self._erythrocytes, y0, eosin.shape, soften=1.6)
        ink = self._ink(y0, n)
        gain_h, gain_e = (self._rows(f, y0, n) for f in (self._stain_h, self._stain_e))
        haematoxylin *= gain_h * (1 - blood)
        eosin *= gain_e * (1 - blood)
        blood *= 0.62 + 0.05 * self._grain.rows(y0, n, self._layout.width)
        strip = np.empty((*eosin.shape, 3), np.float32)
        for i in range(3):
            density = (
                _HAEMATOXYLIN[i] * haematoxylin
                + _EOSIN[i] * eosin
                + _ERYTHROCYTE[i] * blood
                + _INK[i] * ink
            )
            strip[..., i] = _GLASS[i] * np.exp(-np.log(10) * density)
        # The optics blur, and the scanner sharpens what they left.
        strip = np.asarray(cv2.GaussianBlur(strip, (0, 0), 0.7), np.float32)
        strip += np.float32(0.8) * (strip - cv2.GaussianBlur(strip, (0, 0), 1.3))
        strip = strip[_MARGIN:-_MARGIN]
        noise = np.random.default_rng([self._seed, 2, top])
        strip += noise.standard_normal(strip.shape, np.float32) * np.float32(1.6)
        return np.asarray(np.clip(np.rint(strip), 0, 255), np.uint8)

    def _rows(self, field: FloatMap, top: int, count: int) -> FloatMap:
        return self._layout.rows(field.astype(np.float32), top, count)

    def _background(self, y0: int, n: int) -> tuple[FloatMap, FloatMap]:
        """Haematoxylin and eosin of everything but nuclei."""
        layout, width = self._layout, self._layout.width
        fine = self._fine.rows(y0, n, width)
        grain = self._grain.rows(y0, n, width)
        tissue = _step(layout.rows(layout.tissue, y0, n) + 2 * grain, 12)
        nest = _step(layout.rows(layout.nest, y0, n) + 1.5 * grain, 14)
        lymphoid = _step(layout.rows(layout.lymphoid, y0, n), 90)
        fat = _step(layout.rows(layout.fat, y0, n), 25)
        fibres = enlarge(self._fibres, 1 / _FIBRE_STEP, y0, n, width)
        bundles = enlarge(self._bundles, 1 / _FIBRE_STEP, y0, n, width)
        borders = enlarge(self._borders, 1 / _CELL_STEP, y0, n, width)
        tint = enlarge(self._cell_tint, 1 / _CELL_STEP, y0, n, width)

        # Collagen: bundles of fibrils, with clefts between them.
        cleft = _step(-bundles - 1.35 + 0.3 * fibres, 0.7)
        collagen = np.clip(
            0.25 + 0.06 * bundles + 0.075 * fibres + 0.02 * grain + 0.022 * fine, 0.03, 1
        )
        collagen *= 1 - 0.85 * cleft
        # Cytoplasm: a fine web, bounded by pale gaps, each cell a little different.
        web = np.exp(-((self._web.rows(y0, n, width) / np.float32(0.6)) ** 2))
        cytoplasm = np.clip(0.15 + 0.05 * tint + 0.085 * web + 0.02 * grain + 0.024 * fine, 0.02, 1)
        cytoplasm *= 1 - 0.45 * borders
        eosin = collagen + (cytoplasm - collagen) * nest
        eosin += (0.13 + 0.06 * web + 0.02 * fine - eosin) * lymphoid * 0.8
        eosin += (0.10 - eosin) * fat * 0.8
        haematoxylin = np.clip(0.03 + 0.012 * fibres + 0.008 * fine, 0, 1) * (1 - cleft)
        haematoxylin += (
            0.075 + 0.025 * tint + 0.045 * web + 0.01 * grain + 0.015 * fine - haematoxylin
        ) * nest
        haematoxylin += (0.07 + 0.04 * web - haematoxylin) * lymphoid
        lumen = _fill(self._vacuoles, y0, eosin.shape, soften=1.5)
        wall = _fill(self._vacuoles, y0, eosin.shape, soften=5.0) * (1 - lumen)
        eosin = (eosin + 0.25 * wall) * (1 - lumen) * tissue
        haematoxylin = haematoxylin * (1 - lumen) * tissue
        return np.maximum(haematoxylin, 0), np.maximum(eosin, 0)

    def _ink(self, y0: int, n: int) -> FloatMap:
        pen = self._rows(self._layout.pen, y0, n)
        if pen.max() < -40:
            return np.zeros_like(pen)
        streaks = self._clumps.rows(y0, n, self._layout.width)
        return np.asarray(_step(pen, 14) * np.clip(0.52 + 0.05 * streaks, 0, 1), np.float32)

    def _paint_nuclei(self, haematoxylin: FloatMap, eosin: FloatMap, y0: int) -> None:
        tops = self._nuclei.outlines[:, :, 1].min(axis=1)
        bottoms = self._nuclei.outlines[:, :, 1].max(axis=1)
        occupied = np.zeros(eosin.shape, np.float32)
        for i in np.flatnonzero((bottoms > y0) & (tops < y0 + len(eosin))):
            self._paint_nucleus(int(i), haematoxylin, eosin, occupied, y0)

    def _paint_nucleus(
        self, i: int, haematoxylin: FloatMap, eosin: FloatMap, occupied: FloatMap, y0: int
    ) -> None:
        outline = self._nuclei.outlines[i]
        low = np.floor(outline.min(axis=0)).astype(int) - 4
        high = np.ceil(outline.max(axis=0)).astype(int) + 4
        size = high - low
        rng = np.random.default_rng([self._seed, 3, i])
        cover = _cover(outline - low, size, soften=rng.uniform(0.8, 1.7))
        density, pink = self._nucleoplasm(i, cover, rng)
        # The part of the patch that is on this strip.
        y, x = low[1] - y0, low[0]
        inside = (
            slice(max(0, y), min(len(eosin), y + size[1])),
            slice(max(0, x), min(eosin.shape[1], x + size[0])),
        )
        part = (
            slice(inside[0].start - y, inside[0].stop - y),
            slice(inside[1].start - x, inside[1].stop - x),
        )
        if part[0].stop <= part[0].start or part[1].stop <= part[1].start:
            return
        alpha, inner = cover[part], density[part]
        below, under = haematoxylin[inside], occupied[inside]
        # Where two nuclei overlap, light passes both.
        both = np.maximum(below, inner) + np.float32(0.35) * np.minimum(below, inner)
        below += (inner + (both - inner) * under - below) * alpha
        eosin[inside] += (pink[part] - eosin[inside]) * alpha
        np.maximum(under, alpha, out=under)

    def _nucleoplasm(
        self, i: int, cover: FloatMap, rng: np.random.Generator
    ) -> tuple[FloatMap, FloatMap]:
        """Haematoxylin and eosin inside of nucleus i, over its patch."""
        nuclei = self._nuclei
        cell = CELL_TYPES[nuclei.types[i]]
        mean = nuclei.haematoxylin[i]
        within = (cover > 0.5).astype(np.uint8)
        depth = np.asarray(cv2.distanceTransform(within, cv2.DIST_L2, 3), np.float32)
        grain = self._grain.patch(cover.shape, rng)
        fine = self._fine.patch(cover.shape, rng)
        clumps = self._clumps.patch(cover.shape, rng)
        contrast = cell.clumps * rng.uniform(0.7, 1.3)
        density = mean + contrast * (0.5 * clumps + 0.75 * grain + 0.55 * fine)
        rim = np.exp(-(((depth - 1.2) / 1.7) ** 2))
        if nuclei.vesicular[i]:
            density = density - 0.10 * np.clip(depth / 8, 0, 1) + rim * rng.uniform(0.10, 0.30)
        else:
            density = density + 0.08 * rim
        if cell is TUMOUR:
            for _ in range(rng.choice(4, p=(0.25, 0.4, 0.25, 0.1))):
                density = density + _nucleolus(depth, rng) * rng.uniform(0.3, 0.6)
        # A soft floor: the palest spots of pale nuclei keep their texture.
        density = 0.22 + 0.08 * np.logaddexp(0, (density - 0.22) / 0.08).astype(np.float32)
        # Chromatin takes up eosin too: pale parts let more light of every colour through.
        pink = np.float32(rng.uniform(0.26, 0.36)) * np.clip(density / np.float32(mean), 0.3, 1.4)
        return density, pink


class _Texture:
    """Periodic smooth noise of mean 0 and standard deviation 1."""

    def __init__(self, period: int, sigma: float, rng: np.random.Generator) -> None:
        margin = int(4 * sigma) + 1
        noise = np.pad(rng.standard_normal((period, period), np.float32), margin, "wrap")
        smooth = np.asarray(cv2.GaussianBlur(noise, (0, 0), sigma), np.float32)
        smooth = smooth[margin:-margin, margin:-margin]
        self._values = smooth / smooth.std()
        self._period = period

    def rows(self, top: int, count: int, width: int) -> FloatMap:
        """Return the (count, width) part of the plane that begins at row `top`."""
        y = np.arange(top, top + count) % self._period
        x = np.arange(width) % self._period
        return np.asarray(self._values[y[:, None], x], np.float32)

    def patch(self, shape: tuple[int, ...], rng: np.random.Generator) -> FloatMap:
        """Return a random part of the plane."""
        y, x = rng.integers(0, self._period - max(shape), 2)
        return np.asarray(self._values[y : y + shape[0], x : x + shape[1]])


def _collagen(layout: Layout, rng: np.random.Generator) -> tuple[FloatMap, FloatMap]:
    """Fibril and bundle texture along the contour lines of the layout's flow, at half size."""
    width, height = layout.width // _FIBRE_STEP, layout.height // _FIBRE_STEP
    dy, dx = np.gradient(layout.flow)
    length = np.hypot(dx, dy) + 1e-6
    along_x = layout.rows((-dy / length).astype(np.float32), 0, height, _FIBRE_STEP)
    along_y = layout.rows((dx / length).astype(np.float32), 0, height, _FIBRE_STEP)
    x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))

    def streaks(sigma: float, doublings: int) -> FloatMap:
        # The mean of an image and its shifted copy, again and again with twice the shift, is
        # the mean along a line (line integral convolution) in a few steps.
        lines = smooth_noise((height, width), sigma, rng)
        step = np.float32(sigma)
        for _ in range(doublings):
            moved = cv2.remap(
                lines,
                x + step * along_x,
                y + step * along_y,
                cv2.INTER_LINEAR,
                borderMode=cv2.BORDER_REFLECT,
            )
            lines = (lines + moved) * np.float32(0.5)
            step *= 2
        return np.asarray((lines - lines.mean()) / lines.std(), np.float32)

    return streaks(0.8, 6), streaks(4.0, 5)


def _cells(layout: Layout, nuclei: Nuclei, rng: np.random.Generator) -> tuple[FloatMap, FloatMap]:
    """Borders between tumour cells (1 on the border) and a tint per cell, at quarter size."""
    width, height = layout.width // _CELL_STEP, layout.height // _CELL_STEP
    borders, tint = np.zeros((2, height, width), np.float32)
    centres = nuclei.centres[nuclei.types == CELL_TYPES.index(TUMOUR)]
    if len(centres) < 2:
        return borders, tint
    y, x = np.nonzero(layout.rows(layout.nest, 0, height, _CELL_STEP) > -20)
    points = (np.stack([x, y], axis=1) + 0.5) * _CELL_STEP
    wobble = [layout.at(smooth_noise(layout.nest.shape, 1.2, rng), points) for _ in range(2)]
    found = cKDTree(centres).query(points + 4 * np.stack(wobble, axis=1), k=2)
    distance, nearest = (np.asarray(part) for part in found)
    apart = distance[:, 1] - distance[:, 0]
    borders[y, x] = np.exp(-((apart / 4.0) ** 2))
    tint[y, x] = np.clip(rng.standard_normal(len(centres)), -2, 2)[nearest[:, 0]]
    return borders, np.asarray(cv2.GaussianBlur(tint, (0, 0), 1.0), np.float32)


def _cover(
    outline: npt.NDArray[np.float64], size: npt.NDArray[np.int64], soften: float
) -> FloatMap:
    """Share of each pixel of a (width, height) patch that lies within the outline."""
    factor = 4
    fine = np.zeros((size[1] * factor, size[0] * factor), np.uint8)
    cv2.fillPoly(fine, [np.round(outline * factor - 0.5).astype(np.int32)], 255)
    small = cv2.resize(fine, (int(size[0]), int(size[1])), interpolation=cv2.INTER_AREA)
    return cv2.GaussianBlur(small, (0, 0), soften).astype(np.float32) / np.float32(255)


def _nucleolus(depth: FloatMap, rng: np.random.Generator) -> FloatMap:
    """Draw a blob that lies well within the nucleus."""
    y, x = np.nonzero(depth > min(7.0, 0.6 * float(depth.max())))
    k = rng.integers(len(x))
    radius = rng.uniform(2.0, 3.8)
    yy, xx = np.ogrid[: depth.shape[0], : depth.shape[1]]
    distance = (xx - x[k]) ** 2 + (yy - y[k]) ** 2
    return np.asarray(np.exp(-((distance / radius**2) ** 1.5)), np.float32)


def _fill(
    outlines: list[npt.NDArray[np.float64]], y0: int, shape: tuple[int, ...], soften: float
) -> FloatMap:
    """Fill outlines on the strip that begins at row y0, with softened edges."""
    mask = np.zeros(shape, np.uint8)
    on_strip = [
        np.round((outline - (0, y0) - 0.5) * 16).astype(np.int32)
        for outline in outlines
        if outline[:, 1].max() > y0 - 32 and outline[:, 1].min() < y0 + shape[0] + 32
    ]
    for outline in on_strip:  # one by one: together, overlaps would count as holes
        cv2.fillPoly(mask, [outline], 255, lineType=cv2.LINE_AA, shift=4)
    if not on_strip:
        return mask.astype(np.float32)
    return cv2.GaussianBlur(mask, (0, 0), soften).astype(np.float32) / np.float32(255)


def _step(field: FloatMap, width: float) -> FloatMap:
    """Go from 0 to 1 where the field passes zero, over the given width."""
    t = np.clip(field / np.float32(width) + np.float32(0.5), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)
