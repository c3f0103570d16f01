"""Agreement of predicted with annotated nuclei: AJI, ADC, AHD, PQ, F1, count.

Both are instance maps: integer arrays of the same shape in which 0 is background and every other
value is one nucleus (the values need not be consecutive). All scores are computed from one table:
the number of pixels that each annotated nucleus shares with each predicted one.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from qpnuclei.evaluation.matching import LabelMap, MapOverlaps, overlaps_of_maps


@dataclass(frozen=True)
class Scores:
    """Agreement of the predicted nuclei of one image with the annotated ones.

    Attributes
    ----------
    AJI : float
        Aggregated Jaccard index [1]_. As in the code that its authors published, every true nucleus
        is matched to the prediction with the largest IoU (the first of equals), even if another
        true nucleus is matched to it, too. The area of unmatched predictions is added to the
        denominator.
    ADC : float
        Dice coefficient of the two foregrounds.
    AHD : float
        Mean directed Hausdorff distance in px, over the annotated nuclei that predictions overlap;
        NaN if none is overlapped. The distance of a nucleus is the largest one to any of these
        predictions: from the pixel of the nucleus that is farthest from the prediction.
    AHD_within : float
        The same, but to the part of each prediction within the nucleus, as in the code of
        Sahasrabudhe et al.; never smaller. It is comparable with their figures.
    PQ, DQ, SQ : float
        Panoptic, detection and segmentation quality at IoU > 0.5 [2]_; ``PQ = DQ * SQ``.
    F1, precision, recall : float
        Detection of nuclei at IoU > 0.5. F1 is the same number as DQ.
    true_count, predicted_count : int
        Number of nuclei in each map.
    count_error : float
        ``(predicted_count - true_count) / true_count``; NaN without annotated nuclei.

    References
    ----------
    .. [1] N. Kumar et al., "A dataset and a technique for generalized nuclear segmentation for
           computational pathology", IEEE TMI 36(7), 2017, algorithm 1.
    .. [2] A. Kirillov et al., "Panoptic segmentation", CVPR 2019.
    """

    AJI: float
    ADC: float
    AHD: float
    AHD_within: float
    PQ: float
    DQ: float
    SQ: float
    F1: float
    precision: float
    recall: float
    true_count: int
    predicted_count: int
    count_error: float


def _aji(o: MapOverlaps) -> float:
    """Return `Scores.AJI`."""
    # Pairs are sorted by IoU, so the first one of each true nucleus is its best.
    iou = o.iou
    order = np.lexsort((o.pair_predicted, -iou, o.pair_true))
    matched, first = np.unique(o.pair_true[order], return_index=True)
    best = order[first]
    unmatched = np.ones(len(o.true_area), bool)
    unmatched[matched] = False
    unused = np.ones(len(o.predicted_area), bool)
    unused[o.pair_predicted[best]] = False
    union = o.pair_union[best].sum() + o.true_area[unmatched].sum() + o.predicted_area[unused].sum()
    return float(o.pair_area[best].sum() / union) if union else 1.0


def foreground_dice(true: LabelMap, predicted: LabelMap) -> float:
    """Return the Dice coefficient of the foregrounds (label > 0); 1 if both are empty."""
    t, p = np.asarray(true) > 0, np.asarray(predicted) > 0
    if t.shape != p.shape:
        raise ValueError(f"the maps differ in shape: true {t.shape}, predicted {p.shape}")
    total = int(t.sum()) + int(p.sum())
    return float(2 * np.sum(t & p) / total) if total else 1.0


def _hausdorff(o: MapOverlaps) -> tuple[float, float]:
    """Return `Scores.AHD` and `Scores.AHD_within`."""
    if len(o.pair_area) == 0:
        return float("nan"), float("nan")
    boxes = ndimage.find_objects(o.true)
    farthest = np.zeros((len(o.true_area), 2))
    for i, j in zip(o.pair_true, o.pair_predicted, strict=True):
        nucleus = o.true[boxes[i]] == i + 1
        common = nucleus & (o.predicted[boxes[i]] == j + 1)
        within = float(ndimage.distance_transform_edt(~common)[nucleus].max())
        # No pixel of the prediction that is further away is the nearest one. A prediction may cover
        # the whole image: its other pixels are left out.
        reach = math.ceil(within)
        box = tuple(slice(max(0, b.start - reach), b.stop + reach) for b in boxes[i])
        distance = ndimage.distance_transform_edt(o.predicted[box] != j + 1)
        to_whole = float(distance[o.true[box] == i + 1].max())
        farthest[i] = np.maximum(farthest[i], (to_whole, within))
    whole, within = farthest[np.unique(o.pair_true)].mean(axis=0)
    return float(whole), float(within)


def score(true: LabelMap, predicted: LabelMap) -> Scores:
    """Return all scores of one image's predicted nuclei.

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
    Without any true or predicted nuclei the agreement is perfect, and every quality is 1. If both
    maps have nuclei but none matches, SQ is 0.

    Examples
    --------
    >>> import numpy as np
    >>> true = np.array([[1, 1, 0, 2]])
    >>> score(true, np.array([[1, 1, 0, 0]])).AJI  # 2 px agree; nucleus 2 is missed
    0.6666666666666666
    """
    o = overlaps_of_maps(true, predicted)
    iou = o.iou
    matched = o.one_to_one(iou > 0.5)  # each nucleus has at most one such pair
    counts = o.counts(len(matched))
    nothing_to_find = counts.n_truth + counts.n_predicted == 0
    ahd, ahd_within = _hausdorff(o)
    dq = 1.0 if nothing_to_find else counts.f1
    sq = float(iou[matched].mean()) if len(matched) else float(nothing_to_find)
    return Scores(
        AJI=_aji(o),
        ADC=foreground_dice(true, predicted),
        AHD=ahd,
        AHD_within=ahd_within,
        PQ=dq * sq,
        DQ=dq,
        SQ=sq,
        F1=dq,
        precision=counts.precision if counts.n_predicted else float(nothing_to_find),
        recall=counts.recall if counts.n_truth else float(nothing_to_find),
        true_count=counts.n_truth,
        predicted_count=counts.n_predicted,
        count_error=(counts.n_predicted - counts.n_truth) / counts.n_truth
        if counts.n_truth
        else float("nan"),
    )


def mean_scores(images: Iterable[Scores]) -> Mapping[str, float]:
    """Return the mean of every score over images, with equal weights.

    Images with an undefined score (NaN) are left out of its mean. The mean is NaN if the score is
    undefined for all images.

    Raises
    ------
    ValueError
        If there are no images.
    """
    rows = [asdict(image) for image in images]
    if not rows:
        raise ValueError("no images to average")
    means = {}
    for name in (f.name for f in fields(Scores)):
        means[name] = mean_of_known([row[name] for row in rows])
    return means


def mean_of_known(values: npt.ArrayLike) -> float:
    """Return the mean of the values that are not NaN; NaN if there are none."""
    values = np.asarray(values, np.float64)
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
