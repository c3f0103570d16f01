"""Intensity statistics of the pixels inside outlines, with QuPath's names and definitions.

The definitions are those of QuPath's ``ObjectMeasurements`` at downsample 1. Values differ from
QuPath's only by its float32 arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from qpnuclei.measure.shape import Measurements
from qpnuclei.nuclei.pixels import Pixels
from qpnuclei.system.compiled import compiled

#: Statistics of every channel, in QuPath's order.
STATISTICS = ("Mean", "Median", "Min", "Max", "Std.Dev.")


def intensity_measurements(
    values: npt.NDArray[np.float32], names: Sequence[str], pixels: Pixels
) -> Measurements:
    """Measure the channels of an image in N regions.

    Parameters
    ----------
    values : (M, C) float32 ndarray
        Values of the pixels in C channels (`Pixels.of`), for example stain densities.
    names : sequence of C str
        For example ``("Hematoxylin", "Eosin")``.
    pixels : Pixels
        From `pixels_of_labels` or `pixels_of_polygons`.

    Returns
    -------
    dict of str to (N,) float32 ndarray
        ``"Hematoxylin: Mean"`` and so on, for all of `STATISTICS`. The standard deviation is that
        of a sample (n - 1), and 0 for one pixel. All are NaN for a region without pixels, or with a
        value that is not finite.

    Raises
    ------
    ValueError
        If the numbers of names and channels differ.
    """
    if values.ndim != 2 or values.shape[1] != len(names):
        raise ValueError(f"values of shape {values.shape} do not fit the names {names!r}")
    columns = _statistics(values, pixels.counts)
    return {
        f"{name}: {statistic}": columns[channel, i]
        for channel, name in enumerate(names)
        for i, statistic in enumerate(STATISTICS)
    }


def mean_measurement(name: str, values: npt.NDArray[np.float32], pixels: Pixels) -> Measurements:
    """Return the mean of (M,) pixel values in N regions, as a column `name`."""
    filled = pixels.counts > 0
    n = pixels.counts[filled]
    mean = np.full(len(filled), np.nan, np.float32)
    if len(n):
        mean[filled] = np.add.reduceat(values, np.cumsum(n) - n, dtype=np.float64) / n
    return {name: mean}


@compiled
def _statistics(
    values: npt.NDArray[np.float32], counts: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Return the (C, 5, N) `STATISTICS` of N regions; their (M, C) values follow each other."""
    statistics = np.full((values.shape[1], 5, len(counts)), np.float32(np.nan))
    stop = 0
    for region, n in enumerate(counts):
        start, stop = stop, stop + n
        for channel in range(values.shape[1]):
            in_region = values[start:stop, channel]
            low, high, total = np.inf, -np.inf, 0.0
            for value in in_region:
                low, high = min(low, value), max(high, value)
                total += value
            if n == 0 or not np.isfinite(total):
                continue
            mean, squares = total / n, 0.0
            for value in in_region:
                squares += (value - mean) ** 2
            statistics[channel, 0, region] = mean
            statistics[channel, 1, region] = _median(in_region, low, high)
            statistics[channel, 2, region] = low
            statistics[channel, 3, region] = high
            statistics[channel, 4, region] = np.sqrt(squares / max(n - 1, 1))
    return statistics


@compiled
def _median(values: npt.NDArray[np.float32], low: float, high: float) -> float:
    """Return the median of values from `low` to `high`; for an even number, the mean of two.

    Notes
    -----
    A histogram of 256 bins shows in which bin (or two) the median lies. Only the values in these
    bins are sorted.
    """
    if low == high:
        return low
    per_step = 255 / (high - low)
    steps, sizes = np.empty(len(values), np.uint8), np.zeros(256, np.int64)
    for i, value in enumerate(values):
        steps[i] = np.uint8((value - low) * per_step)
        sizes[steps[i]] += 1
    lower, upper = (len(values) - 1) // 2, len(values) // 2
    first, below = 0, 0
    while below + sizes[first] <= lower:
        below += sizes[first]
        first += 1
    last, up_to = first, below + sizes[first]
    while up_to <= upper:
        last += 1
        up_to += sizes[last]
    middle = np.empty(up_to - below)
    found = 0
    for i, value in enumerate(values):
        if first <= steps[i] <= last:
            middle[found] = value
            found += 1
    middle = np.sort(middle)
    return float(middle[lower - below] + middle[upper - below]) / 2
