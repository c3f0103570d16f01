from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpnuclei.training.sources import Source, find_sources
from qpnuclei.training.tile_index import TileIndex, build_tile_index

SCALES = (0.25, 0.5)


def paint_tissue(seed: int, size: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Pink tissue with dark blue discs of 12 px radius; the image and its instance map."""
    rng = np.random.default_rng(seed)
    rgb = np.empty((size, size, 3), np.uint8)
    rgb[:] = (225, 170, 200)
    labels = np.zeros((size, size), np.uint16)
    y, x = np.mgrid[:size, :size]
    for label in range(1, 31):
        cy, cx = rng.integers(0, size, 2)
        disc = (y - cy) ** 2 + (x - cx) ** 2 <= 12**2
        rgb[disc] = (80, 50, 140)
        labels[disc] = label
    noise = rng.integers(-12, 13, rgb.shape)
    return np.clip(rgb.astype(int) + noise, 0, 255).astype(np.uint8), labels


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three images of 400x400 px and their labels, split into train and val."""
    folder = tmp_path_factory.mktemp("dataset")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        rgb, labels = paint_tissue(seed)
        Image.fromarray(rgb).save(folder / "images" / f"{name}.png")
        Image.fromarray(labels).save(folder / "labels" / f"{name}.png")
    (folder / "splits.json").write_text('{"train": ["a", "b"], "val": ["c"]}')
    return folder


@pytest.fixture(scope="session")
def sources(dataset: Path) -> list[Source]:
    return find_sources([dataset], mpp=[0.25])


@pytest.fixture
def index(sources: list[Source]) -> TileIndex:
    return build_tile_index(sources, SCALES, 160, 0.7)
