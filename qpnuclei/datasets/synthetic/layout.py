"""The layout of the synthetic slide: tissue, tumour, stroma, vessels, fat, pen, glass.

The layout is drawn once, in fractions of the slide, so that the annotations of the demonstration
fit it whatever the size. Only the small waves of the outlines depend on the seed. Regions are
fields of signed distance in level-0 px (positive inside) on a grid 16 times coarser than the slide.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import scipy.ndimage
import shapely

FloatMap = npt.NDArray[np.float32]
Unit = tuple[float, float]

#: Level-0 px per pixel of the coarse fields.
COARSE = 16

_TISSUE: tuple[Unit, ...] = (
    (0.05, 0.30), (0.10, 0.10), (0.28, 0.05), (0.48, 0.06), (0.60, 0.11), (0.66, 0.24),
    (0.78, 0.30), (0.93, 0.36), (0.96, 0.58), (0.93, 0.86), (0.78, 0.95), (0.55, 0.93),
    (0.42, 0.96), (0.22, 0.94), (0.07, 0.80), (0.04, 0.55),
)  # fmt: skip
_TUMOURS: tuple[tuple[Unit, ...], ...] = (
    (
        (0.12, 0.32), (0.20, 0.16), (0.34, 0.12), (0.45, 0.20), (0.49, 0.36), (0.45, 0.54),
        (0.33, 0.63), (0.19, 0.60), (0.12, 0.47),
    ),
    (
        (0.56, 0.54), (0.66, 0.43), (0.80, 0.43), (0.89, 0.55), (0.88, 0.73), (0.77, 0.85),
        (0.64, 0.83), (0.55, 0.71),
    ),
)  # fmt: skip
_LYMPHOID: tuple[tuple[Unit, float], ...] = (
    ((0.54, 0.29), 0.042),
    ((0.47, 0.75), 0.040),
    ((0.92, 0.47), 0.026),
)
#: Centre and radius (fraction of the width) of fat; the first fills the hole of an annotation.
_FAT: tuple[tuple[Unit, float], ...] = (((0.30, 0.38), 0.040), ((0.17, 0.80), 0.065))
#: Centre, half axes in level-0 px, angle of vessels.
_VESSELS: tuple[tuple[Unit, Unit, float], ...] = (
    ((0.40, 0.73), (150, 70), 0.5),
    ((0.535, 0.47), (190, 60), 1.3),
    ((0.60, 0.22), (110, 80), 2.3),
    ((0.10, 0.66), (90, 60), 0.2),
    ((0.68, 0.90), (170, 55), -0.1),
)
_PEN: tuple[Unit, ...] = (
    (0.71, 0.07), (0.735, 0.16), (0.78, 0.25), (0.84, 0.315), (0.90, 0.33), (0.97, 0.30),
)  # fmt: skip
_PEN_WIDTH_PX = 150


@dataclass(frozen=True, eq=False)
class Layout:
    """The regions of one synthetic slide.

    Parameters
    ----------
    width, height : int
        Of the slide, in level-0 px.
    tissue, nest, lymphoid, fat, pen : (height / 16, width / 16) float32 ndarray
        Signed distances in level-0 px; `nest` is where tumour cells lie: the tumour without the
        septa between nests.
    flow : (height / 16, width / 16) float32 ndarray
        A smooth potential: collagen runs along its contour lines.
    vessels : list of (N, 2) float64 ndarray
        Outlines of their lumina, level-0 px.
    """

    width: int
    height: int
    tissue: FloatMap
    nest: FloatMap
    lymphoid: FloatMap
    fat: FloatMap
    pen: FloatMap
    flow: FloatMap
    vessels: list[npt.NDArray[np.float64]]

    def at(self, field: FloatMap, points: npt.NDArray[np.floating[Any]]) -> FloatMap:
        """Sample a field at (N, 2) points given in level-0 px."""
        row_column = points[:, ::-1].T / COARSE - 0.5
        return np.asarray(
            scipy.ndimage.map_coordinates(field, row_column, order=1, mode="nearest"), np.float32
        )

    def rows(self, field: FloatMap, top: int, count: int, step: int = 1) -> FloatMap:
        """Enlarge `count` rows of a field, from row `top`, to pixels of `step` level-0 px."""
        return enlarge(field, step / COARSE, top, count, self.width // step)


def make_layout(size: tuple[int, int], rng: np.random.Generator) -> Layout:
    """Draw the regions of a slide of the given (width, height)."""
    width, height = size
    shape = -(-height // COARSE), -(-width // COARSE)

    def waves(sigma: float, amplitude: float) -> FloatMap:
        return smooth_noise(shape, sigma, rng) * np.float32(amplitude)

    def around(shapes: tuple[tuple[Unit, ...], ...]) -> FloatMap:
        return _signed_distance([_closed_curve(points, size) for points in shapes], shape)

    def discs(circles: tuple[tuple[Unit, float], ...]) -> FloatMap:
        return _signed_distance(
            [_ellipse(centre, (r * width, r * width), 0, size) for centre, r in circles], shape
        )

    tissue = around((_TISSUE,)) + waves(10, 60) + waves(2, 16)
    tumour = around(_TUMOURS) + waves(8, 45)
    fat = discs(_FAT) + waves(5, 25)
    lymphoid = np.minimum(discs(_LYMPHOID) + waves(5, 45), tissue - 40)
    septa = (waves(7, 1) + np.float32(0.62)) * 65
    nest = np.minimum.reduce([tumour, septa, -fat - 50, -lymphoid - 20, tissue - 20])
    flow = waves(22, 1) * 900 + np.clip(nest, -250, 60) * 3 + np.clip(fat, -200, 0) * 2
    pen = np.zeros((*shape,), np.uint8)
    stroke = np.round(np.asarray(_PEN) * (shape[1], shape[0])).astype(np.int32)
    cv2.polylines(pen, [stroke.reshape(-1, 1, 2)], False, 1, _PEN_WIDTH_PX // COARSE)
    vessels = [_ellipse(c, axes, angle, size, rng) for c, axes, angle in _VESSELS]
    return Layout(
        width,
        height,
        tissue=tissue,
        nest=nest,
        lymphoid=lymphoid,
        fat=np.minimum(fat, tissue - 30),
        pen=cv2.GaussianBlur(_distance(pen), (0, 0), 2.0).astype(np.float32) + waves(4, 6),
        flow=cv2.GaussianBlur(flow, (0, 0), 2.0).astype(np.float32),
        vessels=vessels,
    )


@dataclass(frozen=True)
class DemoAnnotation:
    """An annotation of the demonstration; `geometry` in level-0 px, `class_name` None if none."""

    name: str
    class_name: str | None
    geometry: shapely.Polygon


def demo_annotations(size: tuple[int, int]) -> tuple[DemoAnnotation, ...]:
    """Annotations that fit the synthetic slide: two Tumor, one Stroma, one unclassified.

    Parameters
    ----------
    size : (int, int)
        Width and height of the slide in level-0 px.

    Returns
    -------
    tuple of DemoAnnotation
        The first has a hole, around fat. Together about two fifths of the slide.
    """

    def area(*points: Unit) -> npt.NDArray[np.float64]:
        return np.round(_closed_curve(points, size), 2)

    hole = _ellipse((0.30, 0.38), (0.048 * size[0], 0.050 * size[0]), 0, size)
    return (
        DemoAnnotation(
            "Tumor 1",
            "Tumor",
            shapely.Polygon(
                area(
                    (0.12, 0.32), (0.20, 0.15), (0.34, 0.115), (0.45, 0.20), (0.485, 0.36),
                    (0.45, 0.54), (0.33, 0.63), (0.19, 0.60), (0.115, 0.47),
                ),
                [np.round(hole, 2)],
            ),
        ),
        DemoAnnotation(
            "Tumor 2",
            "Tumor",
            shapely.Polygon(
                area(
                    (0.56, 0.54), (0.66, 0.43), (0.80, 0.425), (0.89, 0.55), (0.88, 0.73),
                    (0.77, 0.855), (0.64, 0.835), (0.55, 0.71),
                )
            ),
        ),
        DemoAnnotation(
            "Stroma 1",
            "Stroma",
            shapely.Polygon(
                area(
                    (0.27, 0.69), (0.37, 0.67), (0.46, 0.59), (0.53, 0.64), (0.54, 0.80),
                    (0.46, 0.91), (0.32, 0.91), (0.25, 0.80),
                )
            ),
        ),
        DemoAnnotation(
            "Field 1",
            None,
            shapely.Polygon(
                area(
                    (0.49, 0.20), (0.57, 0.15), (0.64, 0.26), (0.70, 0.37), (0.60, 0.42),
                    (0.52, 0.40),
                )
            ),
        ),
    )  # fmt: skip


def enlarge(field: FloatMap, scale: float, top: int, count: int, width: int) -> FloatMap:
    """Return `count` rows, from row `top`, of a field enlarged by ``1 / scale``."""
    shift = scale / 2 - 0.5
    matrix = np.array([[scale, 0, shift], [0, scale, top * scale + shift]])
    return np.asarray(
        cv2.warpAffine(
            field,
            matrix,
            (width, count),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        ),
        np.float32,
    )


def smooth_noise(shape: tuple[int, int], sigma: float, rng: np.random.Generator) -> FloatMap:
    """Gaussian-filtered white noise of mean 0 and standard deviation 1."""
    noise = cv2.GaussianBlur(
        rng.standard_normal(shape, np.float32), (0, 0), sigma, borderType=cv2.BORDER_REFLECT
    )
    return np.asarray((noise - noise.mean()) / noise.std(), np.float32)


def _closed_curve(points: tuple[Unit, ...], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Draw a closed Catmull-Rom curve through points given in fractions of the size."""
    p = np.asarray(points) * size
    before, after, last = np.roll(p, 1, 0), np.roll(p, -1, 0), np.roll(p, -2, 0)
    t = np.linspace(0, 1, 8, endpoint=False)[None, :, None]
    before, p, after, last = (q[:, None, :] for q in (before, p, after, last))
    curve = 0.5 * (
        2 * p
        + (after - before) * t
        + (2 * before - 5 * p + 4 * after - last) * t**2
        + (3 * p - before - 3 * after + last) * t**3
    )
    return np.asarray(curve.reshape(-1, 2))


def _ellipse(
    centre: Unit,
    axes: Unit,
    angle: float,
    size: tuple[int, int],
    rng: np.random.Generator | None = None,
) -> npt.NDArray[np.float64]:
    t = np.linspace(0, 2 * np.pi, 48, endpoint=False)
    radius = np.ones_like(t)
    if rng is not None:
        for k in (2, 3, 5):
            radius += rng.normal(0, 0.1) * np.cos(k * t + rng.uniform(0, 6.28))
    x, y = axes[0] * radius * np.cos(t), axes[1] * radius * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack(
        [centre[0] * size[0] + cos * x - sin * y, centre[1] * size[1] + sin * x + cos * y], axis=1
    )


def _signed_distance(outlines: list[npt.NDArray[np.float64]], shape: tuple[int, int]) -> FloatMap:
    mask = np.zeros(shape, np.uint8)
    cv2.fillPoly(mask, [np.round(o / COARSE).astype(np.int32) for o in outlines], 1)
    return _distance(mask)


def _distance(mask: npt.NDArray[np.uint8]) -> FloatMap:
    return ((_to_zero(mask) - _to_zero(1 - mask)) * COARSE).astype(np.float32)


def _to_zero(mask: npt.NDArray[np.uint8]) -> npt.NDArray[np.float64]:
    """Return how far each pixel is from the nearest zero, in px."""
    rounded = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # How OpenCV rounds the root depends on where in memory the result lies, but slides of one seed
    # are equal. The squared distance is an integer: recover it.
    return np.asarray(np.sqrt(np.rint(np.square(rounded, dtype=np.float64))))
