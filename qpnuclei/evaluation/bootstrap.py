"""Bootstrap intervals of a mean over images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.stats import bootstrap

#: Number of resamples, and a fixed seed: the same figures give the same interval.
RESAMPLES, SEED = 10_000, 0


def bootstrap_interval(
    values: npt.ArrayLike, level: float = 0.95, resamples: int = RESAMPLES, seed: int = SEED
) -> tuple[float, float]:
    """Return the percentile bootstrap interval of the mean over images.

    Parameters
    ----------
    values : (N,) array_like of float
        One value per image. NaN (an undefined value) is left out, as in the mean.
    level : float
        Share of the resampled means within the interval.
    resamples : int
        Number of times that N images are drawn with replacement.
    seed : int

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
        confidence_level=level,
        n_resamples=resamples,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(low), float(high)
