"""From an attention map to instances: post-processing of section 3.4, made fast and local.

Every step looks at a bounded neighbourhood of a pixel, or at the connected component of the
foreground that the pixel belongs to, and every tie is broken by the order of rows and columns. So
an instance comes out the same from a tile as from the whole image, as long as the tile shows its
component with `interaction_radius_px` around it (and what encloses it, if anything does). Of a
component that the tile cuts, the instances that lie more than about one nucleus away from the cut
do not notice it either.
"""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.morphology import disk
from skimage.segmentation import watershed

from qpnuclei.nn.metadata import PostProcessing
from qpnuclei.segmentation.windows import mixed_windows

#: Heights are compared in steps of 1/8192 px. Rounding errors, which depend on where in an array
#: a pixel lies, are far below it, and heights up to 2048 px are exact in float32.
_STEPS_PER_PX = 8192.0
#: Where the Gaussian is cut off, in standard deviations (the default of SciPy).
_TRUNCATE = 4.0

MaskArray = npt.NDArray[np.uint8]
HeightArray = npt.NDArray[np.float32]
LabelArray = npt.NDArray[np.int32]


def segment_instances(
    attention: npt.NDArray[np.float32],
    parameters: PostProcessing,
    centre: npt.NDArray[np.float32] | None = None,
) -> LabelArray:
    """Split the foreground of an attention map into nuclei.

    Parameters
    ----------
    attention : (H, W) float32 ndarray
        In 0..1.
    parameters : PostProcessing
        Threshold and radii, in px of `attention`.
    centre : (H, W) float32 ndarray, optional
        Map that rises from 0 at the border of a nucleus to 1 at its centre, where the model has
        one.

    Returns
    -------
    (H, W) int32 ndarray
        0 is background, the N instances are 1 to N. Every instance is one 4-connected region, and
        so is what it leaves of the plane: its outline along pixel edges is one simple ring. An
        instance that another one encloses becomes part of it.

    Raises
    ------
    ValueError
        If an array is not 2-D, or the two differ in shape.

    Notes
    -----
    The steps of section 3.4 of [1]_: threshold; binary opening and closing with a disk of the
    coarse, then of the fine radius; Euclidean distance transform, smoothed by a Gaussian; its
    maxima in a disk are the markers of a watershed of the negated distance. What the paper leaves
    open is settled here:

    * Beyond the array is neither foreground nor background: no erosion eats into the foreground
      there, and no distance ends there. (Where there is no background at all, it is 1.)
    * A maximum must be one among the pixels of its own 4-connected component, so that a small
      nucleus beside a large one is not lost. Adjacent maxima (there are such on a plateau) are one
      marker.
    * The watershed floods through 4-neighbours. Of two pixels of equal height the upper, then the
      left one is flooded first.
    * With a centre map, heights are ``(1 - w) * min(distance, r) + w * 2 * r * centre`` with
      ``r = maxima_radius_px``. Distances end at r because where nuclei crowd together the farthest
      pixels from the background lie between them.
    * Not in the paper, and off by default: the basin of a maximum that rises less than
      `min_prominence_px` above the highest saddle on the way to a higher one (its *dynamics*, [2]_)
      joins what lies beyond that saddle. Along the ridge of an elongated nucleus, maxima lie far
      apart but hardly rise.

    References
    ----------
    .. [1] Sahasrabudhe et al., "Self-Supervised Nuclei Segmentation in Histopathological Images
       Using Attention", MICCAI 2020.
    .. [2] Grimaud, "A new measure of contrast: the dynamics", SPIE 1769, 1992.
    """
    if attention.ndim != 2:
        raise ValueError(f"attention must be (H, W), not {attention.shape}")
    if centre is not None and centre.shape != attention.shape:
        raise ValueError(f"centre has shape {centre.shape}, attention {attention.shape}")
    mask = foreground_mask(attention, parameters)
    if not mask.any():
        return np.zeros(attention.shape, np.int32)
    if mask.all() and centre is None:
        labels = np.ones(attention.shape, np.int32)
    else:
        heights = _heights(mask, parameters, centre)
        labels = _flood(mask, heights, parameters)
        _fill_holes(labels)
    return _drop(labels, attention, parameters)


def foreground_mask(
    attention: npt.NDArray[np.float32], parameters: PostProcessing
) -> npt.NDArray[np.uint8]:
    """Return the (H, W) uint8 foreground (0 or 1): threshold, openings and closings."""
    mask = (attention > parameters.threshold).astype(np.uint8)
    for radius in (parameters.coarse_radius_px, parameters.fine_radius_px):
        if radius:
            element = _disk(radius)
            for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
                mask = np.asarray(cv2.morphologyEx(mask, operation, element), np.uint8)
    return mask


def interaction_radius_px(parameters: PostProcessing) -> int:
    """Return how far beyond its connected component the attention can change an instance, in px.

    Two openings and two closings reach four times the two radii. The Gaussian lets the distances
    of a neighbouring component leak in from as far as it reaches; across the gap between the two,
    these depend on the mask as far again.
    """
    morphology = 4 * (parameters.coarse_radius_px + parameters.fine_radius_px)
    return morphology + 2 * _gaussian_radius(parameters.smoothing_sigma_px) + 1


def _disk(radius: int) -> MaskArray:
    element: MaskArray = disk(radius)  # type: ignore[no-untyped-call]
    return element


def _gaussian_radius(sigma: float) -> int:
    return int(_TRUNCATE * sigma + 0.5)


def _heights(
    mask: MaskArray, parameters: PostProcessing, centre: npt.NDArray[np.float32] | None
) -> HeightArray:
    """Return the smoothed distance (mixed with the centre map) in whole steps; 0 off the mask."""
    # What is expensive is computed on the foreground alone.
    at = np.flatnonzero(mask)
    if len(at) == mask.size:
        distance = np.ones(mask.size)
    else:
        rounded = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE).ravel()[at]
        # OpenCV rounds the root to float32; the squared distance is a whole number.
        distance = np.sqrt(np.rint(np.square(rounded, dtype=np.float64)))
    if centre is None:
        heights = np.zeros(mask.shape)
        heights.ravel()[at] = distance
    else:
        weight, radius = parameters.centre_weight, parameters.maxima_radius_px
        heights = np.multiply(centre, np.float32(weight * 2.0 * radius)).astype(np.float64)
        heights.ravel()[at] += (1 - weight) * np.minimum(distance, radius)
    if parameters.smoothing_sigma_px > 0:
        reach = _gaussian_radius(parameters.smoothing_sigma_px)
        x = np.arange(-reach, reach + 1)
        kernel = np.exp(-0.5 * np.square(x / parameters.smoothing_sigma_px))
        kernel /= kernel.sum()
        heights = np.asarray(
            cv2.sepFilter2D(heights, -1, kernel, kernel, borderType=cv2.BORDER_REFLECT), np.float64
        )
    steps = np.zeros(mask.shape, np.float32)
    steps.ravel()[at] = np.rint(heights.ravel()[at] * _STEPS_PER_PX)
    return steps


def _flood(mask: MaskArray, heights: HeightArray, parameters: PostProcessing) -> LabelArray:
    """Run the watershed from the maxima in a disk, where a component has more than one."""
    radius = parameters.maxima_radius_px
    components = np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)
    peaks = _peaks(mask, heights, components, radius)
    of_peak = components.ravel()[peaks]
    counts = np.bincount(of_peak, minlength=int(components.max()) + 1)
    numbers = np.zeros(len(counts), np.int32)
    numbers[of_peak] = np.arange(1, len(peaks) + 1)
    labels: LabelArray = np.where(counts == 1, numbers, 0).astype(np.int32)[components]
    markers = np.zeros(mask.shape, np.int32)
    markers.ravel()[peaks] = np.arange(1, len(peaks) + 1)
    # One key per pixel that no other has: the flood's order, and with it the result, does not
    # depend on what else is in the queue.
    order = np.arange(mask.size, dtype=np.float64).reshape(mask.shape)
    order -= heights * np.float64(mask.size)
    boxes = ndimage.find_objects(components)
    for component in np.flatnonzero(counts > 1).tolist():
        # One by one: a short queue is served twice as fast.
        box = boxes[component - 1]
        inside = components[box] == component
        labels[box] += watershed(order[box], markers[box] * inside, mask=inside)  # type: ignore[no-untyped-call]
    if parameters.min_prominence_px > 0:
        least = parameters.min_prominence_px * _STEPS_PER_PX
        labels = _without_low_peaks(labels, order, peaks, heights, least)
    return labels


def _without_low_peaks(
    labels: LabelArray,
    order: npt.NDArray[np.float64],
    peaks: npt.NDArray[np.int64],
    heights: HeightArray,
    least: float,
) -> LabelArray:
    """Give the basin of every peak that is not prominent to the one beyond its highest saddle.

    Parameters
    ----------
    order : (H, W) float64 ndarray
        In which the watershed floods pixels, the highest first.
    peaks : (N,) int64 ndarray
        Of the labels 1 to N, as row-major indices.
    least : float
        Prominence that a peak needs, in steps.
    """
    sides, crossings = [], []
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        at = (labels[near] != labels[far]) & (labels[near] > 0) & (labels[far] > 0)
        sides.append(np.stack([labels[near][at], labels[far][at]], axis=1))
        crossings.append(np.sort(np.stack([order[near][at], order[far][at]], axis=1), axis=1))
    crossing = np.concatenate(crossings)
    saddles = -(crossing[:, 1] // heights.size)  # the lower of both pixels
    peak_heights = heights.ravel()[peaks]
    taken_by = np.arange(len(peaks) + 1)

    def basin_of(label: int) -> int:
        while taken_by[label] != label:
            label = taken_by[label]
        return label

    flooded = np.lexsort(crossing.T)
    # A peak that is prominent at its first crossing to another basin is so at all that follow.
    pairs = np.sort(np.concatenate(sides)[flooded], axis=1)
    _, decisive = np.unique(pairs @ np.array([len(taken_by), 1]), return_index=True)
    decisive.sort()
    for (first, second), saddle in zip(
        pairs[decisive].tolist(), saddles[flooded[decisive]].tolist(), strict=True
    ):
        basins = basin_of(first), basin_of(second)
        low, high = sorted(basins, key=lambda basin: order.flat[peaks[basin - 1]], reverse=True)
        if low != high and peak_heights[low - 1] - saddle < least:
            taken_by[low] = high
    joined: LabelArray = np.array([basin_of(i) for i in range(len(taken_by))], np.int32)[labels]
    return joined


def _peaks(
    mask: MaskArray, heights: HeightArray, labelled: npt.NDArray[np.int32], radius: int
) -> npt.NDArray[np.int64]:
    """Find the maxima in a disk within each component, as row-major indices in rising order.

    Of adjacent ones, only the first is returned.
    """
    # 4-neighbours in the mask are of the same component: what is lower than one is no maximum.
    candidates = np.flatnonzero((heights >= cv2.dilate(heights, _disk(1))) & mask.view(bool))
    width = mask.shape[1] + 2 * radius
    padded = np.pad(heights, radius).ravel()
    components = np.pad(labelled, radius).ravel()
    at = (candidates // mask.shape[1] + radius) * width + candidates % mask.shape[1] + radius
    y, x = np.nonzero(_disk(radius)) - np.array(radius)
    # The nearest first: they rule out most candidates, and the few that remain see the whole disk.
    window = (y * width + x)[np.argsort(np.hypot(y, x), kind="stable")]
    for part in np.array_split(window, max(1, len(window) // 16)):
        seen = at[:, None] + part
        own = components[seen] == components[at, None]
        beaten = (own & (padded[seen] > padded[at, None])).any(axis=1)
        at, candidates = at[~beaten], candidates[~beaten]
    # Adjacent maxima of one component are one marker.
    links = []
    for step in (1, width - 1, width, width + 1):
        beside = np.minimum(np.searchsorted(at, at + step), max(len(at) - 1, 0))
        linked = (at[beside] == at + step) & (components[at[beside]] == components[at])
        links.append(np.stack([np.flatnonzero(linked), beside[linked]]))
    first, second = np.concatenate(links, axis=1)
    graph = coo_array((np.ones(len(first), bool), (first, second)), shape=(len(at), len(at)))
    _, plateaus = connected_components(graph, directed=False)
    _, first = np.unique(plateaus, return_index=True)
    peaks: npt.NDArray[np.int64] = candidates[np.sort(first)]
    return peaks


def _fill_holes(labels: LabelArray) -> None:
    """Give each 4-connected label, in place, what it separates 4-connectedly from the outside.

    Two labels are apart or one encloses the other, so the order does not matter.
    """
    holed = np.flatnonzero(_holes(labels)[1:] > 0) + 1
    if len(holed) == 0:
        return
    boxes = ndimage.find_objects(labels)
    for label in holed:
        crop = labels[boxes[label - 1]]
        crop[ndimage.binary_fill_holes(crop == label)] = label


def _holes(labels: LabelArray) -> npt.NDArray[np.int64]:
    """Count the holes of each 4-connected label (holes are 4-connected, too).

    Notes
    -----
    One minus the Euler number of 8-connected objects, from counts of 2x2 windows (Gray, "Local
    Properties of Binary Images in Two Dimensions", IEEE Trans. Computers, 1971): those with one
    pixel of the label, less those with three, less twice those with two on a diagonal; over four.
    """
    n = int(labels.max()) + 1
    total = np.zeros(n, np.int64)
    _, pixels = mixed_windows(labels)
    for pixel in pixels:
        same = pixel.beside.astype(np.int8) + pixel.below + pixel.diagonal
        # Three pixels share a window of three, two a diagonal one: 12 times the Euler number.
        total += 3 * np.bincount(pixel.label[same == 0], minlength=n)
        total -= np.bincount(pixel.label[same == 2], minlength=n)
        total -= 3 * np.bincount(pixel.label[pixel.diagonal & (same == 1)], minlength=n)
    return 1 - total // 12


def _drop(
    labels: LabelArray, attention: npt.NDArray[np.float32], parameters: PostProcessing
) -> LabelArray:
    """Drop what is too small or too faint and number the others without gaps."""
    at = np.flatnonzero(labels)
    of_pixel = labels.ravel()[at]
    area = np.bincount(of_pixel)
    keep = area >= max(1, parameters.min_area_px)
    if parameters.min_mean_attention > 0:
        total = np.bincount(of_pixel, weights=attention.ravel()[at], minlength=len(area))
        keep &= total >= parameters.min_mean_attention * area
    numbers = np.zeros(len(area), np.int32)
    numbers[keep] = np.arange(1, np.count_nonzero(keep) + 1)
    renumbered = np.zeros_like(labels)
    renumbered.ravel()[at] = numbers[of_pixel]
    return renumbered
