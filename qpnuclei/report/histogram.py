"""Histograms for a page: bars with heights in percent of the highest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpnuclei.report.pictures import round_length

_BINS = 40
#: This share of all values, the largest ones, is in the last bar.
_LARGEST = 0.005
#: If the range of the values is smaller, they count as equal.
_NARROWEST = 1e-9


@dataclass(frozen=True)
class Histogram:
    """The histogram of some values.

    Parameters
    ----------
    counts : tuple of int
        Counts in bins of equal width from `low` to `high`; the last bin also has all larger values.
    ticks : tuple of (float, str)
        Position on the axis in percent, and the number there.
    median, quartiles : float, (float, float)
    """

    title: str
    unit: str
    counts: tuple[int, ...]
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]
    median: float
    quartiles: tuple[float, float]

    @property
    def heights(self) -> list[float]:
        """Heights of the bars in percent."""
        most = max(self.counts) or 1
        return [100 * count / most for count in self.counts]

    @property
    def median_at(self) -> float:
        """Position of the median on the axis, in percent."""
        return 100 * min(max((self.median - self.low) / (self.high - self.low), 0.0), 1.0)


def histogram(title: str, unit: str, values: npt.NDArray[np.floating]) -> Histogram:
    """Count values; at least one of them must be finite.

    Parameters
    ----------
    values : (N,) ndarray
        NaN for nuclei without the value.
    """
    values = values[np.isfinite(values)].astype(np.float64)
    low = min(0.0, float(np.quantile(values, _LARGEST)))
    high = float(np.quantile(values, 1 - _LARGEST))
    if high - low < _NARROWEST:
        high = low + 1.0
    step = round_length((high - low) / 4)
    high = float(np.ceil(high / step) * step)
    low = float(np.floor(low / step) * step)
    counts, _ = np.histogram(np.clip(values, low, high), _BINS, (low, high))
    ticks = np.arange(round((high - low) / step) + 1) * step + low
    first, median, third = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return Histogram(
        title,
        unit,
        tuple(counts.tolist()),
        low,
        high,
        tuple((100 * (tick - low) / (high - low), f"{tick:.4g}") for tick in ticks.tolist()),
        median,
        (first, third),
    )
