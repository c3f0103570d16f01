"""Bootstrap intervals of a mean over images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

#: Share of the resampled means within the interval.
LEVEL = 0.95
#: Number of times that all images are drawn with replacement, and a fixed seed: the same figures
#: give the same interval.
RESAMPLES, SEED = 10_000, 0


def bootstrap_interval(values: npt.ArrayLike) -> tuple[float, float]:
    """Return the 95 % percentile bootstrap interval of the mean over images.

    Parameters
    ----------
    values : (N,) array_like of float
        One value per image. NaN (an undefined value) is left out, as in the mean.

    Returns
    -------
    low, high : float
        NaN if there are fewer than two values: one image says nothing about others.

    References
    ----------
    .. [1] B. Efron, R. Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.
    """
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    if known.size < 2:
        return float("nan"), float("nan")
    low, high = bootstrap(
        (known,),
        np.mean,
        method="percentile",
        confidence_level=LEVEL,
        n_resamples=RESAMPLES,
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return float(low), float(high)
