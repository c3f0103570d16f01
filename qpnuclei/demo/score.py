"""Precision and recall of nuclei against known outlines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.evaluation.matching import Counts, most_pairs, neighbours, overlaps_of_outlines
from qpnuclei.nuclei.table import NucleiTable

#: A predicted nucleus is a true one if they share at least this part of their union ...
MIN_IOU = 0.5
#: ... or, by the laxer criterion, if their centroids are this close.
MAX_DISTANCE_UM = 3.0


@dataclass(frozen=True)
class NucleiScore:
    """Agreement of predicted with true nuclei.

    Parameters
    ----------
    iou : Counts
        Pairs with an intersection over union of at least 0.5: found and well outlined.
    centroid : Counts
        Pairs with centroids at most 3 µm apart: found, however outlined.
    mean_iou : float
        Over the pairs of `iou`; NaN if there are none.
    """

    iou: Counts
    centroid: Counts
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
    found = overlaps_of_outlines(_valid(truth.polygons()), _valid(predicted.polygons()))
    iou = found.iou
    pairs = found.one_to_one(iou >= MIN_IOU)
    close = most_pairs(
        *neighbours(predicted.centroids(), truth.centroids(), MAX_DISTANCE_UM / mpp),
        (len(predicted), len(truth)),
    )
    return NucleiScore(
        found.counts(len(pairs)),
        found.counts(len(close)),
        float(iou[pairs].mean()) if len(pairs) else float("nan"),
    )


def _valid(polygons: npt.NDArray[Any]) -> npt.NDArray[Any]:
    valid = shapely.is_valid(polygons)
    repaired: npt.NDArray[Any] = np.where(valid, polygons, shapely.make_valid(polygons))
    return repaired
