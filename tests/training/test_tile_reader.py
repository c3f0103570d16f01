"""Tiles are those of the index, kept within bounds, and all in the colours of one target."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpnuclei.errors import UsageError
from qpnuclei.slides.reinhard import reinhard_statistics, reinhard_transfer
from qpnuclei.slides.slide import open_slide
from qpnuclei.training.sources import Source, find_sources
from qpnuclei.training.tile_index import TileIndex, build_tile_index
from qpnuclei.training.tile_reader import ColourTransfer, TileReader
from tests.training.conftest import SCALES


def test_tiles_are_read_where_the_index_says(sources: list[Source], index: TileIndex) -> None:
    reader = TileReader(sources, index, SCALES, 160)
    for tile in (4, 9):  # one of each scale of the first image
        downsample = 1.0 if index.scale[tile] == 0 else 2.0
        with open_slide(sources[0].path) as slide:
            expected = slide.read(
                int(index.x[tile]), int(index.y[tile]), 160, 160, (downsample, downsample)
            )
        np.testing.assert_array_equal(reader.read(tile), expected)
        np.testing.assert_array_equal(reader.read(tile), expected)  # from the cache
    reader.close()


def test_the_cache_is_bounded(
    monkeypatch: pytest.MonkeyPatch, sources: list[Source], index: TileIndex
) -> None:
    monkeypatch.setattr("qpnuclei.training.tile_reader._CACHE_BYTES", 3 * 160 * 160 * 3)
    reader = TileReader(sources, index, SCALES, 160)
    for tile in range(8):
        reader.read(tile)
    assert list(reader._tiles) == [5, 6, 7]
    reader.close()


def test_a_reader_pickles_without_what_it_has_open(sources: list[Source], index: TileIndex) -> None:
    reader = TileReader(sources, index, SCALES, 160)
    expected = reader.read(3)
    copy = pickle.loads(pickle.dumps(reader))
    assert not copy._tiles
    np.testing.assert_array_equal(copy.read(3), expected)
    reader.close()
    copy.close()


def test_images_without_colours_have_none_to_transfer(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(100, 200, (400, 400, 1), np.uint8)
    Image.fromarray(noise.repeat(3, axis=2)).save(tmp_path / "grey.png")
    sources = find_sources([tmp_path], mpp=[0.25])
    reader = TileReader(sources, build_tile_index(sources, SCALES, 160, 0.0), SCALES, 160)
    with pytest.raises(UsageError, match="no colours") as caught:
        ColourTransfer.measured(reader)
    assert "--set colour=none" in caught.value.hint
    reader.close()


def test_every_slide_gets_the_colours_of_the_target(
    sources: list[Source], index: TileIndex
) -> None:
    plain = TileReader(sources, index, SCALES, 160)
    colour = ColourTransfer.measured(plain)
    assert len(colour.statistics) == 2
    # The first image is measured on its nine tiles at the finest scale.
    whole = reinhard_statistics(np.stack([plain.read(tile) for tile in range(9)]))
    assert colour.statistics[0] == whole
    np.testing.assert_allclose(
        colour.target_mean, np.mean([s.mean for s in colour.statistics], axis=0)
    )
    reader = plain.with_colour(colour)
    expected = reinhard_transfer(plain.read(4), whole, colour.target_mean, colour.target_std)
    np.testing.assert_array_equal(reader.read(4), expected)
    plain.close()
    reader.close()
