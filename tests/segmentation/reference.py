"""Section 3.4 of the paper, transcribed with SciPy and scikit-image, one thing after the other.

The tests compare `qpnuclei.segmentation.postprocess` with it, the benchmarks its speed, too.
"""

from __future__ import annotations

import numpy as np
from scipy import ndimage
from skimage.morphology import disk, reconstruction
from skimage.segmentation import watershed

FOUR = ndimage.generate_binary_structure(2, 1)
EIGHT = ndimage.generate_binary_structure(2, 2)


def opening(mask, element):
    eroded = ndimage.binary_erosion(mask, element, border_value=1)
    return ndimage.binary_dilation(eroded, element)


def closing(mask, element):
    dilated = ndimage.binary_dilation(mask, element)
    return ndimage.binary_erosion(dilated, element, border_value=1)


def reference_instances(attention, parameters, centre=None):
    """Return the expected result of `segment_instances`, up to numbering."""
    mask = attention > parameters.threshold
    for radius in (parameters.coarse_radius_px, parameters.fine_radius_px):
        mask = closing(opening(mask, disk(radius)), disk(radius))
    if not mask.any():
        return np.zeros(mask.shape, np.int32)
    distance = np.ones(mask.shape) if mask.all() else ndimage.distance_transform_edt(mask)
    if centre is not None:
        weight, radius = parameters.centre_weight, parameters.maxima_radius_px
        distance = (1 - weight) * np.minimum(distance, radius) + weight * 2 * radius * centre
    if parameters.smoothing_sigma_px > 0:
        distance = ndimage.gaussian_filter(distance, parameters.smoothing_sigma_px)
    distance = np.round(distance * 8192)  # equal is equal, whatever the rounding errors

    radius = parameters.maxima_radius_px
    markers, count = np.zeros(mask.shape, np.int32), 0
    components, _ = ndimage.label(mask, FOUR)
    for component, box in enumerate(ndimage.find_objects(components), start=1):
        inside = components[box] == component
        own = np.where(inside, distance[box], -1)
        window = ndimage.maximum_filter(own, footprint=disk(radius), mode="constant", cval=-1)
        plateaus, n = ndimage.label(inside & (own == window), EIGHT)
        for plateau in range(1, n + 1):
            y, x = np.argwhere(plateaus == plateau)[0]
            count += 1
            markers[box][y, x] = count

    # Ranks instead of heights: equal heights in row-major order.
    ranks = np.empty(mask.size)
    ranks[np.argsort(-distance.ravel(), kind="stable")] = np.arange(mask.size)
    ranks = ranks.reshape(mask.shape)
    labels = watershed(ranks, markers, mask=mask)
    if parameters.min_prominence_px > 0:
        kept = prominent(markers, distance, mask, np.ceil(parameters.min_prominence_px * 8192))
        labels = joined_to(kept, labels, ranks)

    by_size = np.argsort(-np.bincount(labels.ravel()), kind="stable")
    boxes = ndimage.find_objects(labels)
    for label in by_size[by_size > 0]:
        if (box := boxes[label - 1]) is not None:
            crop = labels[box]
            crop[ndimage.binary_fill_holes(crop == label)] = label
    for label, box in enumerate(boxes, start=1):
        if box is not None:
            of_label = labels[box] == label
            faint = of_label.any() and (
                attention[box][of_label].mean(dtype=float) < parameters.min_mean_attention
            )
            if of_label.sum() < parameters.min_area_px or faint:
                labels[box][of_label] = 0
    return labels


def prominent(markers, heights, mask, least):
    """Return the markers from which no way leads to a higher one without descending by `least`."""
    # In row-major order, equal heights are unequal by less than a step.
    order = np.arange(mask.size).reshape(mask.shape)
    heights = np.where(mask, heights + 0.5 - 0.5 * order / mask.size, -least - 1)
    lowered = np.where(markers > 0, heights - (least - 0.5), -least - 1)
    reached = reconstruction(lowered, heights, footprint=FOUR)
    return set(np.unique(markers[reached == lowered])) - {0}


def joined_to(kept, labels, ranks):
    """Join basins over the highest saddles until each holds a kept marker."""
    crossings = []
    for near, far in ((np.s_[:, :-1], np.s_[:, 1:]), (np.s_[:-1], np.s_[1:])):
        border = (labels[near] != labels[far]) & (labels[near] > 0) & (labels[far] > 0)
        a, b, rank_a, rank_b = (
            m[border] for m in (labels[near], labels[far], ranks[near], ranks[far])
        )
        crossings += zip(np.maximum(rank_a, rank_b), np.minimum(rank_a, rank_b), a, b, strict=True)
    group = {label: {label} for label in np.unique(labels[labels > 0])}
    for _, _, a, b in sorted(crossings):
        if group[a] is not group[b] and not (group[a] & kept and group[b] & kept):
            union = group[a] | group[b]
            group.update(dict.fromkeys(union, union))
    names = np.zeros(labels.max() + 1, np.int32)
    for label, members in group.items():
        names[label] = min(members)
    return names[labels]


def same_up_to_numbering(a, b):
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == pairs.shape[1] == len(np.unique(pairs[1])) and not np.any(
        (pairs[0] == 0) != (pairs[1] == 0)
    )
