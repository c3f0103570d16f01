"""Small annotated images, painted: dark discs on pink, like nuclei on stroma."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

SIZE = 128


def painted(seed: int, size: int = SIZE) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint16]]:
    """Return an H&E-like image of 16 nuclei of 6 to 8 px radius, and its instance map."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    labels = np.zeros((size, size), np.uint16)
    step = size // 4
    for label, (row, column) in enumerate(np.ndindex(4, 4), start=1):
        cy, cx = (np.array((row, column)) + 0.5) * step + rng.uniform(-3, 3, 2)
        labels[np.hypot(y - cy, x - cx) < rng.uniform(6, 8)] = label
    tint = ndimage.gaussian_filter((labels > 0).astype(float), 0.7)[..., None]
    rgb = (1 - tint) * (225, 165, 200) + tint * (95, 60, 140)
    rgb += rng.normal(0, 4, rgb.shape)
    return np.clip(rgb, 0, 255).astype(np.uint8), labels


def write_folder(folder: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    """Write images/ and labels/, and splits.json that keeps the last image for validation."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for seed, name in enumerate(names):
        rgb, labels = painted(seed)
        Image.fromarray(rgb).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    splits = {"train": list(names[:-1]), "val": [names[-1]]}
    (folder / "splits.json").write_text(json.dumps(splits))
    return folder
