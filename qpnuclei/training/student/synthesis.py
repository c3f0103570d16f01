"""Make known nuclei harder to find: repaint them pale or clumpy, and paste them beside others.

The nuclei that can be trusted without labels are the easy ones: dark, uniform, separate. The
student has to find the others too. So trusted nuclei are repainted within their outline (pale, with
a rim and clumps of chromatin, with a nucleolus) and pasted elsewhere (larger, rotated, stretched,
touching others and each other). Their outline stays known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from qpnuclei.slides.masks import disk
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import HE_MATRIX, optical_density
from qpnuclei.training.student.pseudo_labels import (
    FloatMap,
    LabelMap,
    PseudoLabels,
    blur,
    distance_inside,
    nearest_object,
)

_HAEMATOXYLIN = HE_MATRIX[0].astype(np.float32)
#: Room around a nucleus that is cut out, so that its outline can be blended.
_MARGIN_PX = 3
#: A nucleus pasted beside another lies at most as far from it, in rows and columns.
_BESIDE_PX = 24
#: Along some axis a pasted nucleus becomes longer, and across it thinner, by at most the
#: exponential of this.
_LOG_STRETCH = 0.35


@dataclass(frozen=True, eq=False)
class CutNucleus:
    """One nucleus cut out of its image.

    Parameters
    ----------
    rgb : (h, w, 3) uint8 ndarray
    mask : (h, w) float32 ndarray
        1 on the nucleus, else 0.
    """

    rgb: RGB
    mask: FloatMap


def cut_nuclei(rgb: RGB, labels: LabelMap) -> list[CutNucleus]:
    """Cut every nucleus out of its image, those at the border left out.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    labels : (H, W) int32 ndarray
    """
    cuts = []
    boxes = ndimage.find_objects(labels)
    for number in np.unique(labels[labels > 0]):
        box = boxes[number - 1]
        y0, y1 = box[0].start - _MARGIN_PX, box[0].stop + _MARGIN_PX
        x0, x1 = box[1].start - _MARGIN_PX, box[1].stop + _MARGIN_PX
        if min(y0, x0) >= 0 and y1 <= labels.shape[0] and x1 <= labels.shape[1]:
            mask = (labels[y0:y1, x0:x1] == number).astype(np.float32)
            cuts.append(CutNucleus(rgb[y0:y1, x0:x1], mask))
    return cuts


def paste_nuclei(
    rgb: RGB,
    known: PseudoLabels,
    cuts: Sequence[CutNucleus],
    count: int,
    rng: np.random.Generator,
    *,
    log_scale: tuple[float, float] = (-0.35, 0.5),
    max_covered: float = 0.35,
) -> tuple[RGB, PseudoLabels]:
    """Paste nuclei, turned, scaled and stretched, most of them where others are.

    Two in five are pasted beside the one before, so that they form clumps, as many beside any
    nucleus, the others anywhere. Seven in ten bring 1 or 2 px of what surrounds them, as nuclei
    that touch are mostly parted by a thin bright line.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    known : PseudoLabels
        Of `rgb`.
    cuts : sequence of CutNucleus
        What to paste, drawn with replacement; of the same slide, so that the colours fit.
    count : int
        Number of attempts. One that would leave the image, or cover more than `max_covered` of a
        nucleus, is given up.
    rng : numpy.random.Generator
    log_scale : (float, float)
        Range of the natural logarithm of the scale.
    max_covered : float

    Returns
    -------
    rgb : (H, W, 3) uint8 ndarray
        A copy.
    known : PseudoLabels
        With the pasted nuclei on top; they have weight 1.
    """
    rgb, labels, weight = rgb.copy(), known.labels.copy(), known.weight.copy()
    if not cuts:
        return rgb, PseudoLabels(labels, weight)
    height, width = labels.shape
    neighbours = np.argwhere(labels > 0)
    number = int(labels.max())
    last: npt.NDArray[np.int64] | None = None
    for _ in range(count):
        cut = cuts[int(rng.integers(len(cuts)))]
        stretch = float(rng.uniform(-_LOG_STRETCH, _LOG_STRETCH))
        nucleus, mask = _deformed(cut, float(rng.uniform(*log_scale)), stretch, rng)
        where = rng.random()
        if where < 0.4 and last is not None:
            beside = last
        elif where < 0.8 and len(neighbours):
            beside = neighbours[rng.integers(len(neighbours))]
        else:
            beside = None
        if beside is None:
            centre = rng.integers((height, width))
        else:
            centre = beside + rng.integers(-_BESIDE_PX, _BESIDE_PX + 1, 2)
        y, x = (centre - np.array(mask.shape) // 2).tolist()
        if y < 0 or x < 0 or y + mask.shape[0] > height or x + mask.shape[1] > width:
            continue
        window = slice(y, y + mask.shape[0]), slice(x, x + mask.shape[1])
        inside = mask > 0.5
        gap = int(rng.integers(1, 3)) if rng.random() < 0.7 else 0
        brought = cv2.dilate(inside.astype(np.uint8), disk(gap)) > 0
        if _covered_share(labels[window], brought) > max_covered:
            continue
        number, last = number + 1, centre
        opacity = blur((brought if gap else mask).astype(np.float32), 0.7)[..., None]
        rgb[window] = (rgb[window] * (1 - opacity) + nucleus * opacity).astype(np.uint8)
        parted = brought & ~inside & (labels[window] > 0)
        labels[window][parted] = 0
        labels[window][inside] = number
        weight[window][parted | inside] = 1
    return rgb, PseudoLabels(labels, weight)


def _deformed(
    cut: CutNucleus, log_scale: float, log_stretch: float, rng: np.random.Generator
) -> tuple[RGB, FloatMap]:
    """Turn, mirror or not, scale and stretch a nucleus; in a rectangle with the margin around."""
    first, second = rng.uniform(0, 2 * np.pi, 2)
    mirror = -1 if rng.random() < 0.5 else 1
    scales = np.exp([log_scale + log_stretch, log_scale - log_stretch]) * (1, mirror)
    turn = _rotation(first) @ np.diag(scales) @ _rotation(second)
    height, width = cut.mask.shape
    corners = turn @ np.array([[0, width, 0, width], [0, 0, height, height]])
    size = np.ceil(np.ptp(corners, axis=1)).astype(int)
    matrix = np.hstack([turn, -corners.min(axis=1)[:, None]])
    rgb, mask = (
        cv2.warpAffine(
            np.ascontiguousarray(image), matrix, size.tolist(), borderMode=cv2.BORDER_REPLICATE
        )
        for image in (cut.rgb, cut.mask)
    )
    return np.asarray(rgb, np.uint8), np.asarray(mask, np.float32)


def _rotation(angle: float) -> npt.NDArray[np.float64]:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def _covered_share(labels: LabelMap, covered: npt.NDArray[np.bool_]) -> float:
    """Largest share of an object's pixels in the window that would be covered."""
    hidden = np.bincount(labels[covered])
    if len(hidden) < 2:
        return 0.0
    total = np.bincount(labels.ravel(), minlength=len(hidden))[: len(hidden)]
    return float((hidden[1:] / np.maximum(total[1:], 1)).max())


def repaint_nuclei(rgb: RGB, labels: LabelMap, rng: np.random.Generator, *, share: float) -> RGB:
    """Repaint nuclei within their outlines: fainter, pale inside, with a rim and clumps.

    Parameters
    ----------
    rgb : (H, W, 3) uint8 ndarray
    labels : (H, W) int32 ndarray
        Nuclei, numbered; 0 is background, which stays as it is (but for 2 px around nuclei).
    rng : numpy.random.Generator
    share : float
        Probability that a nucleus is repainted.

    Returns
    -------
    (H, W, 3) uint8 ndarray

    Notes
    -----
    In optical density, for each nucleus with its own random numbers: its contrast to its
    surroundings is reduced, down to a third (pale nuclei); then the inside, beyond a rim of 0.5 to
    3.5 px, is mixed with a tint of the surroundings or lighter (vesicular nuclei), except in the
    peaks of a random texture with the grain of chromatin (clumps, nucleoli).
    """
    if not labels.any():
        return rgb.copy()
    n = int(labels.max()) + 1
    density = optical_density(rgb)
    foreground = labels > 0
    outside, nearest = nearest_object(labels)
    ring = ~foreground & (outside > 2) & (outside <= 7)
    ring_count = np.bincount(nearest[ring], minlength=n)
    surroundings = np.stack(
        [
            np.bincount(nearest[ring], weights=density[..., channel][ring], minlength=n)
            for channel in range(3)
        ],
        axis=-1,
    )
    surroundings = (surroundings / np.maximum(ring_count, 1)[:, None]).astype(np.float32)

    def uniform(low: float, high: float) -> FloatMap:
        return rng.uniform(low, high, n).astype(np.float32)

    painted = (rng.random(n) < share) & (ring_count > 15)
    contrast = np.where(painted & (rng.random(n) < 0.5), uniform(0.35, 1.0), np.float32(1))
    hollow = painted & (rng.random(n) < 0.8)
    paleness = np.where(hollow, uniform(0, 1) ** np.float32(0.7), np.float32(0))
    clumps = 1 / (1 + np.exp(3 * (uniform(-0.3, 2.0)[labels] - _texture(labels.shape, rng))))
    depth = np.clip((distance_inside(labels) - 1 - uniform(0.5, 3.5)[labels]) / 1.5, 0, 1)
    emptied = (depth * paleness[labels] * (1 - clumps))[..., None]
    tint = uniform(0.4, 1.1)[:, None] * surroundings + uniform(0, 0.05)[:, None] * _HAEMATOXYLIN
    darker = 1 + 0.25 * rng.random() * clumps * (paleness[labels] > 0)
    soft_contrast = blur(np.where(foreground, contrast[nearest], np.float32(1)), 0.8)
    around = blur(surroundings[nearest], 1.0)
    inside = blur(tint[nearest], 1.0)
    new = around + (density - around) * (soft_contrast * darker)[..., None]
    new = new * (1 - emptied) + inside * emptied
    near = outside <= 2
    result = rgb.copy()
    result[near] = np.rint(255 * np.power(10, -np.maximum(new[near], 0))).astype(np.uint8)
    return result


def _texture(shape: tuple[int, ...], rng: np.random.Generator) -> FloatMap:
    """Noise of mean 0 and deviation 1 with grains of 1, 2 and 4 px, mixed at random."""
    total = np.zeros(shape, np.float32)
    for sigma in (1.0, 2.0, 4.0):
        noise = rng.standard_normal(shape, np.float32)
        noise = blur(noise, sigma)
        total += np.float32(rng.uniform(0.3, 1.0)) * noise / noise.std()
    return np.asarray(total / total.std(), np.float32)
