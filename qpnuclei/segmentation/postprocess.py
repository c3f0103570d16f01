"""From an attention map to instances: the post-processing of section 3.4 of the paper.

Every step depends only on a bounded neighbourhood of a pixel, or on the connected component of the
foreground around it. Ties are broken by the order of rows and columns. So an instance is the same
in a tile and in the whole image if the tile shows its component, and whatever encloses it, with a
margin of `interaction_radius_px`. If the tile cuts the component, instances more than about one
nucleus away from the cut are still the same.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.labels import fill_holes
from qpnuclei.segmentation.landscape import (
    STEPS_PER_PX,
    MaskArray,
    build_landscape,
    gaussian_radius,
)
from qpnuclei.segmentation.quantised import (
    ATTENTION_STEPS,
    AttentionMap,
    CentreMap,
    QuantisedAttention,
    QuantisedCentre,
    check_finite,
    first_level_above,
    quantise_attention,
    quantise_centre,
)
from qpnuclei.segmentation.watershed import LabelArray, find_peaks, renumbered, watershed
from qpnuclei.slides.masks import disk
from qpnuclei.system.compiled import compiled


def segment_instances(
    attention: AttentionMap,
    parameters: PostProcessing,
    centre: CentreMap | None = None,
) -> LabelArray:
    """Split the foreground of an attention map into nuclei.

    Parameters
    ----------
    attention : (H, W) float32 or uint8 ndarray
        In 0..1, or already quantised (`qpnuclei.segmentation.quantised`).
    parameters : PostProcessing
        Threshold and radii, in px of `attention`.
    centre : (H, W) float32 or uint16 ndarray, optional
        Rises from 0 at the border of a nucleus to 1 at its centre, or is already quantised. Given
        if the model predicts a centre map.

    Returns
    -------
    (H, W) int32 ndarray
        0 is background; the N instances are 1 to N. Every instance is one 4-connected region
        without holes, so its outline along pixel edges is one simple ring. An instance inside
        another one becomes part of it.

    Raises
    ------
    ValueError
        If an array is not 2-D, or the shapes of the two arrays differ.
    qpnuclei.errors.ModelError
        If a map is not finite.

    Notes
    -----
    Section 3.4 of [1]_ has these steps. The map is thresholded, then opened and closed with a disk
    of the coarse radius and with one of the fine radius. Its Euclidean distance transform is
    smoothed by a Gaussian. The maxima of the distance within a disk are the markers of a watershed
    of the negated distance. The paper leaves some details open. They are settled as follows:

    * The outside of the array is neither foreground nor background: nothing is eroded from there,
      and no distance is measured to there. (Without any background, every distance is 1.)
    * A maximum is compared with the pixels of its own 4-connected component only, so that a small
      nucleus beside a large one is not lost. Adjacent maxima (on a plateau) are one marker.
    * The watershed spreads through 4-neighbours. Of two pixels of equal height, the upper one is
      taken first; in the same row, the left one.
    * With a centre map, the height is ``(1 - w) * min(distance, r) + w * 2 * r * centre`` with
      ``r = maxima_radius_px``. Distances are limited to r: in dense groups of nuclei, the pixels
      farthest from the background lie between nuclei.
    * One step is not in the paper, and off by default: merging shallow basins. The dynamics [2]_ of
      a maximum is its height above the highest saddle on the way to a higher maximum. If it is less
      than `min_prominence_px`, the basin of the maximum is merged with the basin beyond that
      saddle. Along the ridge of an elongated nucleus, maxima lie far apart but hardly rise.

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
    levels = quantise_attention(attention)
    check_finite(levels)
    mask = foreground_mask(levels, parameters)
    if not mask.any():
        return np.zeros(levels.shape, np.int32)
    if mask.all() and centre is None:
        labels = np.ones(levels.shape, np.int32)
    else:
        labels = _split(mask, parameters, None if centre is None else quantise_centre(centre))
        fill_holes(labels)
    return _drop(labels, levels, parameters)


def foreground_mask(levels: QuantisedAttention, parameters: PostProcessing) -> MaskArray:
    """Return the (H, W) uint8 foreground (0 or 1): threshold, openings and closings."""
    import cv2  # a dry run plans without it

    mask = (levels >= first_level_above(parameters.threshold)).view(np.uint8)
    for radius in (parameters.coarse_radius_px, parameters.fine_radius_px):
        if radius:
            element = disk(radius)
            for operation in (cv2.MORPH_OPEN, cv2.MORPH_CLOSE):
                mask = np.asarray(cv2.morphologyEx(mask, operation, element), np.uint8)
    return mask


def interaction_radius_px(parameters: PostProcessing) -> int:
    """Return how far beyond its connected component the attention can change an instance, in px.

    Two openings and two closings reach four times the sum of the two radii. The Gaussian reaches
    distances of a neighbouring component; these depend on the mask as far again.
    """
    morphology = 4 * (parameters.coarse_radius_px + parameters.fine_radius_px)
    return morphology + 2 * gaussian_radius(parameters.smoothing_sigma_px) + 1


def _split(
    mask: MaskArray, parameters: PostProcessing, centre: QuantisedCentre | None
) -> LabelArray:
    """Divide the foreground among the maxima of the landscape."""
    import cv2

    landscape = build_landscape(mask, parameters, centre)
    components = np.asarray(cv2.connectedComponents(mask, connectivity=4)[1], np.int32)
    peaks = find_peaks(landscape, components, parameters.maxima_radius_px)
    return watershed(components, landscape, peaks, parameters.min_prominence_px * STEPS_PER_PX)


def _drop(labels: LabelArray, levels: QuantisedAttention, parameters: PostProcessing) -> LabelArray:
    """Drop instances that are too small or too faint, and number the others without gaps."""
    area, total = _areas_and_sums(labels, levels)
    keep = area >= max(1, parameters.min_area_px)
    keep &= total + 0.5 * area >= parameters.min_mean_attention * ATTENTION_STEPS * area
    keep[0] = False
    numbers = np.zeros(len(area), np.int32)
    numbers[keep] = np.arange(1, np.count_nonzero(keep) + 1)
    return renumbered(labels, numbers)


@compiled
def _areas_and_sums(
    labels: LabelArray, levels: QuantisedAttention
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return the number of pixels of each label, and the sum of their levels."""
    height, width = labels.shape
    area = np.zeros(labels.max() + 1, np.int64)
    total = np.zeros(len(area), np.int64)
    for y in range(height):
        for x in range(width):
            area[labels[y, x]] += 1
            total[labels[y, x]] += levels[y, x]
    return area, total
