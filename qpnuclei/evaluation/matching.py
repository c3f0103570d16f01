"""Match the nuclei of two sets: shared areas, pairs, precision and recall.

Both instance maps and outlines are converted to `Overlaps`; all matching and counting uses these.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import shapely
from scipy.spatial import cKDTree

from qpnuclei.evaluation.labelmap import consecutive
from qpnuclei.nuclei.overlap import shared_areas

LabelMap = npt.NDArray[np.integer]
Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Counts:
    """Numbers of predicted and true nuclei, and of one-to-one pairs of them."""

    n_matched: int
    n_predicted: int
    n_truth: int

    @property
    def precision(self) -> float:
        """Share of the predicted nuclei that are true; NaN without predicted nuclei."""
        return self.n_matched / self.n_predicted if self.n_predicted else float("nan")

    @property
    def recall(self) -> float:
        """Share of the true nuclei that were found; NaN without true nuclei."""
        return self.n_matched / self.n_truth if self.n_truth else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without any nuclei."""
        total = self.n_predicted + self.n_truth
        return 2 * self.n_matched / total if total else float("nan")


@dataclass(frozen=True, eq=False)
class Overlaps:
    """Areas of T true and P predicted nuclei, and of the K pairs that intersect.

    Attributes
    ----------
    true_area : (T,) ndarray
        In px². All areas are int64 for instance maps, and float64 for outlines.
    predicted_area : (P,) ndarray
    pair_true, pair_predicted : (K,) int64 ndarray
        Indices of both nuclei of each pair.
    pair_area : (K,) ndarray
        Shared area. Outlines that only touch are a pair with area 0.
    """

    true_area: npt.NDArray[Any]
    predicted_area: npt.NDArray[Any]
    pair_true: Indices
    pair_predicted: Indices
    pair_area: npt.NDArray[Any]

    @property
    def pair_union(self) -> npt.NDArray[Any]:
        """Area of the union of each pair."""
        both = self.true_area[self.pair_true] + self.predicted_area[self.pair_predicted]
        union: npt.NDArray[Any] = both - self.pair_area
        return union

    @property
    def pair_smaller(self) -> npt.NDArray[Any]:
        """Area of the smaller nucleus of each pair."""
        smaller: npt.NDArray[Any] = np.minimum(
            self.true_area[self.pair_true], self.predicted_area[self.pair_predicted]
        )
        return smaller

    @property
    def iou(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each pair."""
        iou: npt.NDArray[np.float64] = self.pair_area / self.pair_union
        return iou

    def one_to_one(self, good: npt.NDArray[np.bool_]) -> Indices:
        """Choose as many good pairs as possible so that no two share a nucleus.

        Parameters
        ----------
        good : (K,) bool ndarray
            Whether each pair may be chosen.

        Returns
        -------
        (M,) int64 ndarray
            Indices of the chosen pairs, in ascending order.
        """
        candidates = np.flatnonzero(good)
        chosen = most_pairs(
            self.pair_predicted[candidates],
            self.pair_true[candidates],
            (len(self.predicted_area), len(self.true_area)),
        )
        return candidates[chosen]

    def counts(self, n_matched: int) -> Counts:
        """Return the numbers of nuclei, with a number of matched pairs."""
        return Counts(n_matched, len(self.predicted_area), len(self.true_area))


@dataclass(frozen=True, eq=False)
class MapOverlaps(Overlaps):
    """Overlaps of two instance maps.

    Attributes
    ----------
    true, predicted : (H, W) int32 ndarray
        The maps with consecutive labels: nucleus ``i`` has the label ``i + 1``.
    """

    true: npt.NDArray[np.int32]
    predicted: npt.NDArray[np.int32]


def overlaps_of_maps(true: LabelMap, predicted: LabelMap) -> MapOverlaps:
    """Return which nuclei of two (H, W) instance maps share pixels, and how many pixels.

    Raises
    ------
    ValueError
        If a map is not a 2-D array of non-negative integers, or the shapes differ.

    Examples
    --------
    >>> import numpy as np
    >>> found = overlaps_of_maps(np.array([[1, 1, 2]]), np.array([[7, 0, 7]]))
    >>> found.pair_area.tolist(), found.iou.round(2).tolist()
    ([1, 1], [0.33, 0.5])
    """
    t, p = _consecutive(true, "true"), _consecutive(predicted, "predicted")
    if t.shape != p.shape:
        raise ValueError(f"the maps differ in shape: true {t.shape}, predicted {p.shape}")
    width = int(p.max(initial=0)) + 1
    height = int(t.max(initial=0)) + 1
    both = (t > 0) & (p > 0)
    pair, area = np.unique(t[both].astype(np.int64) * width + p[both], return_counts=True)
    return MapOverlaps(
        np.bincount(t.ravel(), minlength=height)[1:],
        np.bincount(p.ravel(), minlength=width)[1:],
        pair // width - 1,
        pair % width - 1,
        area.astype(np.int64),
        t,
        p,
    )


def _consecutive(labels: LabelMap, name: str) -> npt.NDArray[np.int32]:
    labels = np.asarray(labels)
    if labels.ndim != 2 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be a 2-D integer array, not {labels.dtype}{labels.shape}")
    if labels.min(initial=0) < 0:
        raise ValueError(f"{name} has the negative label {labels.min()}")
    return consecutive(labels)


def overlaps_of_outlines(true: npt.NDArray[Any], predicted: npt.NDArray[Any]) -> Overlaps:
    """Return which outlines of two sets intersect, and how much area they share.

    Parameters
    ----------
    true, predicted : (T,) and (P,) object ndarray of valid shapely geometries
        In px.

    Examples
    --------
    >>> import shapely
    >>> found = overlaps_of_outlines([shapely.box(0, 0, 4, 2)], [shapely.box(2, 0, 6, 2)])
    >>> found.pair_area.tolist(), found.iou.round(2).tolist()
    ([4.0], [0.33])
    """
    true, predicted = np.asarray(true, dtype=object), np.asarray(predicted, dtype=object)
    i, j, area = shared_areas(predicted, true)
    return Overlaps(shapely.area(true), shapely.area(predicted), j, i, area)


def neighbours(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], distance: float
) -> tuple[Indices, Indices]:
    """Return the indices of all pairs of points, (N, 2) and (M, 2), within a distance."""
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found = cKDTree(a).query_ball_tree(cKDTree(b), distance)
    counts = [len(f) for f in found]
    i = np.repeat(np.arange(len(a)), counts)
    return i, np.array([j for f in found for j in f], np.int64)


def most_pairs(i: Indices, j: Indices, n: tuple[int, int]) -> Indices:
    """Choose as many of the K pairs (i, j) as possible so that no two share a member.

    Parameters
    ----------
    i, j : (K,) int64 ndarray
        Members of each pair; all pairs differ.
    n : (int, int)
        Number of members on each side.

    Returns
    -------
    (M,) int64 ndarray
        Indices of the chosen pairs, in ascending order.
    """
    if len(i) == 0:
        return np.empty(0, np.int64)
    # scipy's matching needs 32-bit indices, and did not always convert them itself.
    pairs = i.astype(np.int32), j.astype(np.int32)
    graph = scipy.sparse.csr_array((np.ones(len(i), np.int8), pairs), shape=n)
    partner = scipy.sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column")
    return np.flatnonzero(partner[i] == j)
