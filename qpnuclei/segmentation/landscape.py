"""The landscape of the watershed: the distance to the background, with the centre map, smoothed.

Inner loops run over whole rows, so that the compiler turns them into vector instructions.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.quantised import CENTRE_STEPS, QuantisedCentre
from qpnuclei.system.compiled import compiled

#: Heights are integers in steps of 1/8192 px. The rounding errors of floating-point sums are far
#: smaller, so neither they nor the order of summation can change which of two pixels is higher.
STEPS_PER_PX = 8192
#: The Gaussian is cut off here, in standard deviations (the default of SciPy).
_TRUNCATE = 4.0

MaskArray = npt.NDArray[np.uint8]
LandscapeArray = npt.NDArray[np.int32]
FloatArray = npt.NDArray[np.float64]


def build_landscape(
    mask: MaskArray, parameters: PostProcessing, centre: QuantisedCentre | None
) -> LandscapeArray:
    """Return the smoothed distance to the background, mixed with the centre map.

    Parameters
    ----------
    mask : (H, W) uint8 ndarray
        Foreground (1) and background (0).
    parameters : PostProcessing
    centre : (H, W) uint16 ndarray or None
        Quantised; see `qpnuclei.segmentation.postprocess.segment_instances` for the formula.

    Returns
    -------
    (H, W) int32 ndarray
        Heights in steps of ``1 / STEPS_PER_PX`` px; 0 in the background.
    """
    everywhere = bool(mask.all())
    if centre is None:
        landscape = np.ones(mask.shape) if everywhere else _distances(mask)
    else:
        weight, radius = parameters.centre_weight, parameters.maxima_radius_px
        squared = np.ones(mask.shape, np.float32) if everywhere else _squared(mask, radius)
        of_square = (1 - weight) * np.sqrt(np.arange(radius**2 + 1))
        landscape = _mixed(squared, of_square, centre, weight * 2.0 * radius / CENTRE_STEPS)
    return _smooth_steps(landscape, mask, _gaussian(parameters.smoothing_sigma_px))


def gaussian_radius(sigma: float) -> int:
    """Return the radius, in px, at which the Gaussian is cut off."""
    return int(_TRUNCATE * sigma + 0.5)


def _gaussian(sigma: float) -> FloatArray:
    """Return the weights of the Gaussian, which add up to 1."""
    if sigma == 0:
        return np.ones(1)
    x = np.arange(-gaussian_radius(sigma), gaussian_radius(sigma) + 1)
    weights: FloatArray = np.exp(-0.5 * np.square(x / sigma))
    weights /= weights.sum()
    return weights


def _distances(mask: MaskArray) -> FloatArray:
    import cv2  # a dry run plans without it

    rounded = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    # OpenCV rounds the root to float32. The squared distance is an integer, so it can be restored.
    distances: FloatArray = np.sqrt(np.rint(np.square(rounded, dtype=np.float64)))
    return distances


@compiled
def _squared(mask: MaskArray, radius: int) -> npt.NDArray[np.float32]:
    """Return the squared distance to the nearest zero of a mask, at most `radius` squared.

    Distances are taken along columns first, then along rows. There are no zeros outside the array.
    """
    height, width = mask.shape
    zero, one, limit = np.float32(0), np.float32(1), np.float32(radius)
    in_column = np.empty((height, width), np.float32)
    for x in range(width):
        in_column[0, x] = limit if mask[0, x] else zero
    for y in range(1, height):
        for x in range(width):
            further = min(in_column[y - 1, x] + one, limit)
            in_column[y, x] = further if mask[y, x] else zero
    for y in range(height - 2, -1, -1):
        for x in range(width):
            in_column[y, x] = min(in_column[y, x], in_column[y + 1, x] + one)
    squared = np.empty((height, width), np.float32)
    row = np.full(width + 2 * radius, limit * limit)
    for y in range(height):
        out = squared[y]
        for x in range(width):
            square = in_column[y, x] * in_column[y, x]
            row[radius + x] = square
            out[x] = square
        for step in range(1, radius):
            left, right = row[radius - step :], row[radius + step :]
            more = np.float32(step * step)
            for x in range(width):
                out[x] = min(out[x], min(left[x], right[x]) + more)
    return squared


@compiled
def _mixed(
    squared: npt.NDArray[np.float32], of_square: FloatArray, centre: QuantisedCentre, scale: float
) -> FloatArray:
    """Return ``of_square[squared] + scale * centre``."""
    height, width = squared.shape
    landscape = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            landscape[y, x] = of_square[int(squared[y, x])] + scale * centre[y, x]
    return landscape


@compiled
def _smooth_steps(landscape: FloatArray, mask: MaskArray, weights: FloatArray) -> LandscapeArray:
    """Convolve with symmetric weights along both axes, reflecting at borders; round to steps."""
    height, width = mask.shape
    reach = len(weights) // 2
    steps = np.zeros((height, width), np.int32)
    row = np.empty(width + 2 * reach)
    out = np.empty(width)
    for y in range(height):
        if not mask[y].any():
            continue
        middle = row[reach : reach + width]
        for x in range(width):
            middle[x] = weights[reach] * landscape[y, x]
        for step in range(1, reach + 1):
            above, below = (
                landscape[_reflected(y - step, height)],
                landscape[_reflected(y + step, height)],
            )
            weight = weights[reach + step]
            for x in range(width):
                middle[x] += weight * (above[x] + below[x])
        for x in range(reach):
            row[x] = middle[_reflected(x - reach, width)]
            row[reach + width + x] = middle[_reflected(width + x, width)]
        for x in range(width):
            out[x] = weights[reach] * middle[x]
        for step in range(1, reach + 1):
            left, right = row[reach - step :], row[reach + step :]
            weight = weights[reach + step]
            for x in range(width):
                out[x] += weight * (left[x] + right[x])
        for x in range(width):
            if mask[y, x]:
                steps[y, x] = np.rint(out[x] * STEPS_PER_PX)
    return steps


@compiled
def _reflected(index: int, length: int) -> int:
    """Mirror an index outside the axis into it: ``c b a | a b c | c b a``."""
    index %= 2 * length
    return min(index, 2 * length - 1 - index)
