"""Classify each nucleus by its match: found, missed, false, split, merged, or inexact."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from qpnuclei.evaluation.matching import LabelMap, overlaps_of_maps


class Kind(StrEnum):
    """Kind of match of a nucleus.

    A nucleus is *inside* another one if more than half of its pixels are. Two nuclei are *related*
    if one is inside the other.
    """

    FOUND = "found"  #: annotated and predicted with IoU > 0.5
    MISSED = "missed"  #: annotated, and not related to any prediction
    FALSE = "false"  #: predicted, and not related to any annotated nucleus
    SPLIT = "split"  #: annotated, with several predictions inside; or one of these predictions
    MERGED = "merged"  #: predicted, with several annotated nuclei inside; or one of these nuclei
    INEXACT = "inexact"  #: one to one, but the outlines differ too much (IoU up to 0.5)


KindArray = npt.NDArray[np.object_]


@dataclass(frozen=True, eq=False)
class Agreement:
    """The nuclei of one image, by kind of match.

    Parameters
    ----------
    true, predicted : (H, W) int32 ndarray
        The instance maps; nucleus ``i`` has the label ``i + 1``.
    true_kind, predicted_kind : (T,) and (P,) object ndarray of Kind
        Annotated nuclei are never `Kind.FALSE`, predicted ones never `Kind.MISSED`.
    """

    true: npt.NDArray[np.int32]
    predicted: npt.NDArray[np.int32]
    true_kind: KindArray
    predicted_kind: KindArray

    def counts(self) -> dict[str, int]:
        """Count all annotated nuclei by kind, and false predictions."""
        of_true, of_predicted = Counter(self.true_kind), Counter(self.predicted_kind)
        return {str(kind): (of_predicted if kind is Kind.FALSE else of_true)[kind] for kind in Kind}


def classify(true: LabelMap, predicted: LabelMap) -> Agreement:
    """Classify every annotated and every predicted nucleus of one image.

    Parameters
    ----------
    true, predicted : (H, W) integer ndarray
        Instance maps, 0 = background.

    Raises
    ------
    ValueError
        If a map is not a 2-D array of non-negative integers, or the shapes differ.

    Notes
    -----
    Pairs with IoU > 0.5, which PQ and F1 count, take precedence. They are found, even if a further
    small prediction is inside the same nucleus (that one is then split).
    """
    o = overlaps_of_maps(true, predicted)
    t, p = o.pair_true, o.pair_predicted
    matched = o.iou > 0.5
    # In a matched pair, one nucleus is inside the other, so it counts among the "several", too.
    true_inside = 2 * o.pair_area > o.true_area[t]
    predicted_inside = 2 * o.pair_area > o.predicted_area[p]
    splits = np.bincount(t[predicted_inside], minlength=len(o.true_area)) > 1
    merges = np.bincount(p[true_inside], minlength=len(o.predicted_area)) > 1

    # Not np.full, which would convert the kinds to plain strings.
    true_kind = np.array([Kind.MISSED] * len(o.true_area), object)
    predicted_kind = np.array([Kind.FALSE] * len(o.predicted_area), object)
    related = true_inside | predicted_inside
    true_kind[t[related]] = Kind.INEXACT
    predicted_kind[p[related]] = Kind.INEXACT
    true_kind[splits] = Kind.SPLIT
    predicted_kind[p[predicted_inside & splits[t]]] = Kind.SPLIT
    true_kind[t[true_inside & merges[p]]] = Kind.MERGED
    predicted_kind[merges] = Kind.MERGED
    true_kind[t[matched]] = Kind.FOUND
    predicted_kind[p[matched]] = Kind.FOUND
    return Agreement(o.true, o.predicted, true_kind, predicted_kind)
