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
    is_start = np.ones(labels.shape, bool)
    np.not_equal(flat[1:], flat[:-1], out=is_start.ravel()[1:])
    is_start[:, :1] = True
    starts = np.flatnonzero(is_start)
    lengths = np.diff(starts, append=labels.size)
    run_labels = flat[starts]
    found = run_labels != 0
    return Runs(run_labels[found], starts[found], lengths[found])
