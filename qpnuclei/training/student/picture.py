"""A picture of what a round of a student learns."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from skimage.segmentation import find_boundaries

from qpnuclei.slides.pixels import RGB, write_png
from qpnuclei.training.student.pseudo_labels import PseudoLabels

#: How much of the pseudo-labels it shows.
_PATCHES, _PX = 9, 512


def write_picture(path: Path, patches: Iterable[RGB], known: Sequence[PseudoLabels]) -> None:
    """Draw the first patches: trusted nuclei in yellow, unlabelled objects in blue."""
    tiles = []
    pairs = zip(patches, known, strict=True)
    for rgb, labels in itertools.islice(pairs, _PATCHES):
        tile = np.zeros((_PX, _PX, 3), np.uint8)
        height, width = (min(_PX, length) for length in rgb.shape[:2])
        crop = slice(height), slice(width)
        shown = rgb[crop].copy()
        shown[labels.weight[crop] == 0] //= 2
        shown[labels.weight[crop] == 0] += np.array([0, 0, 100], np.uint8)
        shown[find_boundaries(labels.labels[crop], mode="inner")] = (255, 255, 0)  # type: ignore[no-untyped-call]
        tile[crop] = shown
        tiles.append(tile)
    rows = [np.hstack(tiles[i : i + 3]) for i in range(0, len(tiles) - len(tiles) % 3, 3)]
    write_png(path, np.vstack(rows) if rows else np.hstack(tiles))
