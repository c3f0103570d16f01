"""Random maps that look like attention."""

from __future__ import annotations

import numpy as np
from scipy import ndimage


def random_attention(seed, shape, nuclei_per_px=1 / 300, radius=(3, 9), noise=0.25):
    """Return an attention map of random ellipses, many of them touching, with soft ragged edges."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: shape[0], : shape[1]]
    field = np.full(shape, -1.0)
    for _ in range(max(1, int(shape[0] * shape[1] * nuclei_per_px))):
        cy, cx = rng.uniform(0, shape[0]), rng.uniform(0, shape[1])
        a, b = rng.uniform(*radius, size=2)
        angle = rng.uniform(0, np.pi)
        u = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle)
        v = (y - cy) * np.cos(angle) - (x - cx) * np.sin(angle)
        field = np.maximum(field, 1 - np.hypot(u / a, v / b))
    field += noise * ndimage.gaussian_filter(rng.normal(size=shape), 1.5) * 3
    return (1 / (1 + np.exp(-8 * field))).astype(np.float32)


def regions(mask):
    """Number the 4-connected regions of a mask, with holes (and anything in them) filled."""
    labels, _ = ndimage.label(mask)
    sizes = np.bincount(labels.ravel())
    for label in np.argsort(-sizes[1:], kind="stable") + 1:
        labels[ndimage.binary_fill_holes(labels == label)] = label
    return labels.astype(np.int32)


def random_mask(seed, shape, density, grain):
    """Return noise of a given grain (px), above the quantile that leaves `density` of it."""
    noise = np.random.default_rng(seed).random(shape)
    noise = ndimage.uniform_filter(noise, grain, mode="nearest")
    return noise < np.quantile(noise, density)
