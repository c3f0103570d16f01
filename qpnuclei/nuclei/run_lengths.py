"""Run-length encoding of label maps: a run is adjacent pixels of a row with the same label."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, eq=False)
class Runs:
    """The R runs of an (H, W) label map, row by row from left to right, without the background.

    Parameters
    ----------
    labels : (R,) int ndarray
        Never 0.
    starts : (R,) int64 ndarray
        Row-major index of the first pixel.
    lengths : (R,) int64 ndarray
        Number of pixels.
    """

    labels: IntArray
    starts: npt.NDArray[np.int64]
    lengths: npt.NDArray[np.int64]


def runs_of_labels(labels: IntArray) -> Runs:
    """Return the runs of an (H, W) label map; 0 is background."""
    flat = labels.ravel()
    begins = np.ones(labels.shape, bool)
    np.not_equal(flat[1:], flat[:-1], out=begins.ravel()[1:])
    begins[:, :1] = True
    starts = np.flatnonzero(begins)
    lengths = np.diff(starts, append=labels.size)
    of_runs = flat[starts]
    found = of_runs != 0
    return Runs(of_runs[found], starts[found], lengths[found])
