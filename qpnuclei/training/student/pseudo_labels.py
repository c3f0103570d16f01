"""Pseudo-labels: which pixels a student may learn from, and their class.

Two sources locate nuclei: a vote of many haematoxylin masks, and the previous student. Both are
often wrong, but a well separated, convex object is nearly always one nucleus. Only such objects are
labelled as nuclei. Other dark objects (dark stroma, clumps, fragments of pale nuclei) get no label,
neither nucleus nor background: the student decides there from the clear cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from skimage.filters import threshold_otsu

from qpnuclei.slides.masks import disk
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.stains import DEFAULT_HE, Stains, optical_density, separate

FloatMap = npt.NDArray[np.float32]
LabelMap = npt.NDArray[np.int32]

#: Gaussians (px) on the stain before a threshold, and windows (px) of the local thresholds.
_VOTE_SIGMAS = (1.0, 2.0)
_LOCAL_SIGMAS = (20.0, 40.0)
#: A slide whose stain varies by less, in optical density, has no nuclei to find.
_MIN_CONTRAST = 0.01
#: A pixel must exceed the local mean by this many local standard deviations.
_LOCAL_EXCESS = 0.2
#: Where between surroundings (0) and core (1) of an object its edge is, and how far, at most, the
#: outline moves outwards.
_EDGE_HEIGHT, _EDGE_REACH_PX = 0.45, 2
#: Pixels this close to two objects lie between them.
_SEAM_PX = 2


@dataclass(frozen=True, eq=False)
class PseudoLabels:
    """The pseudo-labels of one patch.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        The nuclei that are trusted, numbered; 0 elsewhere.
    weight : (H, W) float32 ndarray
        0..1, the weight of each pixel; 0 where the class is unknown.
    """

    labels: LabelMap
    weight: FloatMap


def haematoxylin_votes(patches: Sequence[RGB], stains: Stains) -> list[FloatMap]:
    """Return, for every pixel, the share of haematoxylin masks that hold it.

    Parameters
    ----------
    patches : sequence of (H, W, 3) uint8 ndarray
        Patches of one slide at the model's resolution. Thresholds are the slide's, not the
        patch's.
    stains : Stains
        The slide's own stain vectors.

    Returns
    -------
    list of (H, W) float32 ndarray
        0..1.

    Notes
    -----
    Eighteen masks: haematoxylin by the slide's stain vectors, by QuPath's default vectors, and
    the optical density of red (which eosin hardly absorbs); each after a Gaussian of 1 and 2 px;
    each above Otsu's threshold, alone and together with a local threshold of 20 and 40 px.
    """
    totals = [np.zeros(patch.shape[:2], np.float32) for patch in patches]
    default = Stains(DEFAULT_HE.name, DEFAULT_HE.stain_names, DEFAULT_HE.vectors, stains.background)
    channels = (
        [separate(patch, stains)[..., 0] for patch in patches],
        [separate(patch, default)[..., 0] for patch in patches],
        [optical_density(patch, stains.background)[..., 0] for patch in patches],
    )
    for densities in channels:
        for sigma in _VOTE_SIGMAS:
            blurred = [blur(density, sigma) for density in densities]
            # Every 7th pixel of a smooth map has the same histogram.
            sample = np.concatenate([density.ravel()[::7] for density in blurred])
            threshold = _otsu(sample)
            for total, density in zip(totals, blurred, strict=True):
                above = density > threshold
                total += above
                for local_sigma in _LOCAL_SIGMAS:
                    total += above & (density > _local_threshold(density, local_sigma))
    count = len(channels) * len(_VOTE_SIGMAS) * (1 + len(_LOCAL_SIGMAS))
    return [blur(total / np.float32(count), 0.7) for total in totals]


def _otsu(sample: FloatMap) -> float:
    """Otsu's threshold; infinite where all values are about the same."""
    if np.ptp(sample) < _MIN_CONTRAST:
        return float("inf")
    return float(threshold_otsu(sample))  # type: ignore[no-untyped-call]


def blur(values: npt.NDArray[Any], sigma: float) -> FloatMap:
    """Return a map or image after a Gaussian of `sigma` px."""
    values = np.ascontiguousarray(values)
    return np.asarray(cv2.GaussianBlur(values, (0, 0), sigma), np.float32)


def _local_threshold(density: FloatMap, sigma: float) -> FloatMap:
    """Local mean plus some local standard deviations, computed at a quarter of the resolution."""
    size = density.shape[::-1]
    small = [max(1, length // 4) for length in size]
    moments = []
    for values in (density, density * density):
        reduced = cv2.resize(values, small, interpolation=cv2.INTER_AREA)
        reduced = cv2.GaussianBlur(reduced, (0, 0), sigma / 4)
        moments.append(cv2.resize(reduced, size, interpolation=cv2.INTER_LINEAR))
    mean, square = moments
    deviation = np.sqrt(np.maximum(square - mean * mean, 0))
    return np.asarray(mean + np.float32(_LOCAL_EXCESS) * deviation, np.float32)


def snap_to_edges(labels: LabelMap, density: FloatMap) -> LabelMap:
    """Move the outline of every object to where its stain falls between inside and outside.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Objects, numbered; 0 is background.
    density : (H, W) float32 ndarray
        Haematoxylin, slightly blurred.

    Returns
    -------
    (H, W) int32 ndarray
        The same numbers. Objects without a core or without surroundings stay as they were.

    Notes
    -----
    The outline lies where the stain is 45 % up from the mean of the object's surroundings (a ring 2
    to 6 px outside) to the mean of its core (more than 2 px inside). It moves outwards by at most 2
    px; inwards there is no limit.

    A threshold of the slide puts the outlines of dark nuclei too far out and of pale ones too far
    in; about half the height of each object's own edge does neither.
    """
    foreground = labels > 0
    if not foreground.any() or foreground.all():
        return labels
    inside = cv2.distanceTransform(foreground.astype(np.uint8), cv2.DIST_L2, 5)
    outside, nearest = nearest_object(labels)
    n = int(labels.max()) + 1
    core = foreground & (inside > 2)
    ring = ~foreground & (outside > 1) & (outside <= 6)
    core_mean, core_count = _means(labels[core], density[core], n)
    ring_mean, ring_count = _means(nearest[ring], density[ring], n)
    known = (core_count > 10) & (ring_count > 10)
    threshold = ring_mean + _EDGE_HEIGHT * (core_mean - ring_mean)
    moved = (outside <= _EDGE_REACH_PX) & known[nearest] & (density > threshold[nearest])
    kept = foreground & ~known[labels]
    return np.where(moved | kept, nearest, 0).astype(np.int32)


def nearest_object(labels: LabelMap) -> tuple[FloatMap, LabelMap]:
    """Return every pixel's distance to the nearest object (0 inside) and which object that is.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Objects, numbered; at least one pixel must be 0.

    Returns
    -------
    distance : (H, W) float32 ndarray
        In px.
    nearest : (H, W) int32 ndarray
        The object's number.
    """
    distance, seeds = cv2.distanceTransformWithLabels(
        (labels == 0).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    # Every foreground pixel is a zero of the transform and has a number of its own.
    object_of_seed = np.zeros(int(seeds.max()) + 1, np.int32)
    foreground = labels > 0
    object_of_seed[seeds[foreground]] = labels[foreground]
    return distance, object_of_seed[seeds]


def _means(
    groups: npt.NDArray[np.int32], values: FloatMap, n: int
) -> tuple[FloatMap, npt.NDArray[np.int64]]:
    """Mean of the values of each of n groups (0 for an empty one), and their number."""
    count = np.bincount(groups, minlength=n)
    total = np.bincount(groups, weights=values, minlength=n)
    return (total / np.maximum(count, 1)).astype(np.float32), count


def fill_holes(probability: FloatMap, threshold: float, max_area_px: int) -> FloatMap:
    """Raise small holes in what lies above a threshold to the level of their surroundings.

    Parameters
    ----------
    probability : (H, W) float32 ndarray
    threshold : float
    max_area_px : int
        Larger holes stay.

    Returns
    -------
    (H, W) float32 ndarray
        1 in the holes that were filled; the same elsewhere.

    Notes
    -----
    A pale nucleus is a ring in the mask. A split of the ring by its distance transform would label
    it as several small nuclei.
    """
    background = (probability <= threshold).astype(np.uint8)
    _, labels, stats, _ = cv2.connectedComponentsWithStats(background, connectivity=4)
    left, top, width, height, area = stats.T
    inside = (left > 0) & (top > 0)
    inside &= (left + width < probability.shape[1]) & (top + height < probability.shape[0])
    is_hole = inside & (area <= max_area_px)
    is_hole[0] = False  # the foreground
    return np.where(is_hole[labels], np.float32(1), probability)


def solidity(labels: LabelMap) -> FloatMap:
    """Return the solidity of every object: its area over that of its convex hull.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Objects, numbered; 0 is background.

    Returns
    -------
    (N + 1,) float32 ndarray
        By number, N being the largest; 0 for the background and for numbers not in use.

    Notes
    -----
    The hull is that of the pixels' centres, grown by half a pixel (half of its perimeter is
    added), so that a digital disk comes out near 1.
    """
    result = np.zeros(int(labels.max(initial=0)) + 1, np.float32)
    boxes = ndimage.find_objects(labels)
    for number in np.unique(labels[labels > 0]):
        mask = (labels[boxes[number - 1]] == number).astype(np.uint8)
        points = cv2.findNonZero(mask)
        hull = cv2.convexHull(points)
        area = cv2.contourArea(hull) + cv2.arcLength(hull, closed=True) / 2 + 1
        result[number] = len(points) / area
    return result


def trusted_labels(
    labels: LabelMap,
    probability: FloatMap,
    *,
    min_solidity: float,
    min_area_px: int,
    max_area_px: int,
    min_probability: float,
    max_background: float,
) -> PseudoLabels:
    """Choose which objects and which background a student learns from.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Candidate nuclei, numbered; 0 is background.
    probability : (H, W) float32 ndarray
        0..1, how likely each pixel is nucleus.
    min_solidity : float
        Candidates that are less convex are not trusted.
    min_area_px, max_area_px : int
        Nor are smaller or larger ones.
    min_probability : float
        Nor those of a lower mean probability.
    max_background : float
        Background is trusted where the probability is lower.

    Returns
    -------
    PseudoLabels
        Weight 1 on trusted nuclei and trusted background; 0.5 in a rim of 3 px around trusted
        nuclei, however probable; 0 on candidates that are not trusted, 4 px around them, and in
        the gaps of up to 16 px between them (a pale nucleus falls apart into such pieces).
    """
    n = int(labels.max(initial=0)) + 1
    area = np.bincount(labels.ravel(), minlength=n)
    mean_probability, _ = _means(labels.ravel(), probability.ravel(), n)
    trusted = (
        (solidity(labels) >= min_solidity)
        & (area >= min_area_px)
        & (area <= max_area_px)
        & (mean_probability >= min_probability)
    )
    trusted[0] = False
    nuclei = np.where(trusted[labels], labels, 0).astype(np.int32)
    is_nucleus = nuclei > 0
    doubtful = ((labels > 0) & ~is_nucleus).astype(np.uint8)
    around_doubtful = cv2.dilate(cv2.morphologyEx(doubtful, cv2.MORPH_CLOSE, disk(8)), disk(4))
    is_doubtful = (around_doubtful > 0) & ~is_nucleus
    rim = (cv2.dilate(is_nucleus.astype(np.uint8), disk(3)) > 0) & ~is_nucleus
    weight = np.where(is_nucleus | (probability < max_background), 1.0, 0.0)
    weight[rim] = np.maximum(weight[rim], 0.5)
    weight[is_doubtful] = 0
    return PseudoLabels(nuclei, weight.astype(np.float32))


def centre_map(labels: LabelMap) -> FloatMap:
    """Return how far inside its object each pixel lies, over the largest such distance.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Objects, numbered, which may touch; 0 is background.

    Returns
    -------
    (H, W) float32 ndarray
        0 on background, rising to 1 at the innermost pixel of each object.
    """
    distance = distance_inside(labels)
    farthest = np.zeros(int(labels.max(initial=0)) + 1, np.float32)
    np.maximum.at(farthest, labels.ravel(), distance.ravel())
    return np.asarray(distance / np.maximum(farthest, 1)[labels], np.float32)


def seams(labels: LabelMap) -> npt.NDArray[np.bool_]:
    """Return where two objects, or more, lie within 2 px of a pixel.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Objects, numbered below 2**24; 0 is background.

    Returns
    -------
    (H, W) bool ndarray
    """
    largest = cv2.dilate(labels.astype(np.float32), disk(_SEAM_PX))
    numbers = np.where(labels > 0, labels, np.inf).astype(np.float32)
    smallest = cv2.erode(numbers, disk(_SEAM_PX))
    result: npt.NDArray[np.bool_] = (largest > 0) & (smallest < largest)
    return result


def distance_inside(labels: LabelMap) -> FloatMap:
    """Return the distance of each object's pixels to the nearest pixel that is not the object's.

    Parameters
    ----------
    labels : (H, W) int32 ndarray
        Objects, numbered, which may touch; 0 is background.

    Returns
    -------
    (H, W) float32 ndarray
        In px, to within about one; 1 on the outermost pixels, 0 on background.
    """
    interior = labels > 0
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        before, after = (slice(None, -1), slice(1, None))
        index = (slice(None),) * axis
        interior[(*index, before)] &= ~differs
        interior[(*index, after)] &= ~differs
    distance = cv2.distanceTransform(interior.astype(np.uint8), cv2.DIST_L2, 5)
    return np.asarray(distance + (labels > 0), np.float32)
