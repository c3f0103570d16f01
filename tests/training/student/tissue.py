"""Painted tissue that a student learns from in seconds, and samples of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from skimage.draw import ellipse

from qpnuclei.training.sources import find_sources
from qpnuclei.training.student.patches import SlideSample, sample_slides


def tissue(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Purple nuclei on pink with some grain, and where they are."""
    rng = np.random.default_rng(seed)
    rgb = np.full((160, 160, 3), (220, 150, 190), np.int16)
    labels = np.zeros((160, 160), np.uint16)
    for number, place in enumerate(np.ndindex(3, 3), start=1):
        y, x = (30 + 50 * index for index in place)
        inside = ellipse(y, x, rng.integers(9, 14), rng.integers(8, 12))
        rgb[inside], labels[inside] = (85, 55, 130), number
    grain = rng.integers(-8, 9, (160, 160, 1))
    return (rgb + grain).clip(0, 255).astype(np.uint8), labels


def samples_of(
    source: Path, patch_px: int, patches_per_slide: int = 1, max_patches: int = 99
) -> list[SlideSample]:
    """Sample an image of 0.25 µm/px, or a folder of such images."""
    return sample_slides(
        find_sources([source], mpp=[0.25]),
        mpp=0.25,
        patch_px=patch_px,
        patches_per_slide=patches_per_slide,
        max_patches=max_patches,
        min_tissue=0.7,
        seed=0,
    )
