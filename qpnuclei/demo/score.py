"""Precision and recall of nuclei against known outlines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.sparse
import shapely
from scipy.spatial import cKDTree

from qpnuclei.nuclei.table import NucleiTable

#: A predicted nucleus is a true one if they share at least this part of their union ...
MIN_IOU = 0.5
#: ... or, by the laxer criterion, if their centroids are this close.
MAX_DISTANCE_UM = 3.0


@dataclass(frozen=True)
class MatchCounts:
    """Counts under one criterion; matched pairs are one to one, and as many as possible."""

    n_matched: int
    n_predicted: int
    n_truth: int

    @property
    def precision(self) -> float:
        """Share of the predicted nuclei that are true; NaN if there are none."""
        return self.n_matched / self.n_predicted if self.n_predicted else float("nan")

    @property
    def recall(self) -> float:
        """Share of the true nuclei that were found; NaN if there are none."""
        return self.n_matched / self.n_truth if self.n_truth else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN if there are no nuclei at all."""
        total = self.n_predicted + self.n_truth
        return 2 * self.n_matched / total if total else float("nan")


@dataclass(frozen=True)
class NucleiScore:
    """Agreement of predicted with true nuclei.

    Parameters
    ----------
    iou : MatchCounts
        Pairs with an intersection over union of at least 0.5: found and well outlined.
    centroid : MatchCounts
        Pairs with centroids at most 3 µm apart: found, however outlined.
    mean_iou : float
        Over the pairs of `iou`; NaN if there are none.
    """

    iou: MatchCounts
    centroid: MatchCounts
    mean_iou: float


def match_nuclei(
    predicted: NucleiTable,
    truth: NucleiTable,
    region: shapely.Geometry | None,
    mpp: float,
) -> NucleiScore:
    """Compare the nuclei whose centroids lie in a region with the true ones there.

    Parameters
    ----------
    predicted, truth : NucleiTable
        In level-0 px.
    region : shapely geometry or None
        Where to count, in level-0 px; None for everywhere.
    mpp : float
        µm per level-0 px.
    """
    if region is not None:
        shapely.prepare(region)
        predicted, truth = (
            table.take(shapely.contains_xy(region, table.centroids()))
            for table in (predicted, truth)
        )
    n = len(predicted), len(truth)
    i, j, iou = _ious(_valid(predicted.polygons()), _valid(truth.polygons()))
    good = iou >= MIN_IOU
    pairs = _match(i[good], j[good], n)
    value = dict(zip(zip(i.tolist(), j.tolist(), strict=True), iou.tolist(), strict=True))
    near = _neighbours(predicted.centroids(), truth.centroids(), MAX_DISTANCE_UM / mpp)
    return NucleiScore(
        MatchCounts(len(pairs), *n),
        MatchCounts(len(_match(*near, n)), *n),
        float(np.mean([value[pair] for pair in pairs])) if pairs else float("nan"),
    )


def _valid(polygons: npt.NDArray[Any]) -> npt.NDArray[Any]:
    valid = shapely.is_valid(polygons)
    mended: npt.NDArray[Any] = np.where(valid, polygons, shapely.make_valid(polygons))
    return mended


def _ious(
    a: npt.NDArray[Any], b: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return indices and intersection over union of all pairs that touch."""
    i, j = shapely.STRtree(b).query(a, predicate="intersects")
    common = shapely.area(shapely.intersection(a[i], b[j]))
    return i, j, common / (shapely.area(a[i]) + shapely.area(b[j]) - common)


def _neighbours(
    a: npt.NDArray[np.float64], b: npt.NDArray[np.float64], distance: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    if len(a) == 0 or len(b) == 0:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    found = cKDTree(a).query_ball_tree(cKDTree(b), distance)
    counts = [len(f) for f in found]
    i = np.repeat(np.arange(len(a)), counts)
    return i, np.array([j for f in found for j in f], np.int64)


def _match(
    i: npt.NDArray[np.int64], j: npt.NDArray[np.int64], n: tuple[int, int]
) -> list[tuple[int, int]]:
    """Choose as many of the pairs (i, j) as possible so that none shares a member."""
    if len(i) == 0:
        return []
    # scipy's matching needs 32-bit indices, and did not always convert them itself.
    pairs = i.astype(np.int32), j.astype(np.int32)
    graph = scipy.sparse.csr_array((np.ones(len(i), np.int8), pairs), shape=n)
    partner = scipy.sparse.csgraph.maximum_bipartite_matching(graph, perm_type="column")
    return [(k, int(p)) for k, p in enumerate(partner) if p >= 0]
