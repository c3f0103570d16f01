from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from qpnuclei.training.attention.batches import Batches, batch_rng, draw_tiles
from qpnuclei.training.sources import Source
from qpnuclei.training.tile_index import build_tile_index
from qpnuclei.training.tile_reader import TileReader

TILES = [np.arange(0, 100), np.arange(100, 110), np.arange(110, 112)]


@pytest.fixture(scope="module")
def batches(sources: list[Source]) -> Batches:
    scales = (0.25, 0.5)
    index = build_tile_index(sources, scales, 112, 0.7)
    reader = TileReader(sources, index, scales, 112)
    return five_crops(reader)


def five_crops(reader: TileReader, rank: int = 0, world_size: int = 1) -> Batches:
    return Batches(
        reader,
        n_scales=2,
        batch_size=5,
        crop_px=96,
        hed_jitter=0.03,
        seed=7,
        rank=rank,
        world_size=world_size,
    )


@pytest.mark.parametrize("batch_size", [3, 4, 32])
def test_scales_are_equally_frequent_however_many_tiles_they_have(batch_size: int) -> None:
    totals: Counter[int] = Counter()
    for number in range(60):
        tiles, scales = draw_tiles(TILES, batch_size, np.random.default_rng(number))
        counts = Counter(scales.tolist())
        assert sum(counts.values()) == batch_size
        assert max(counts.values()) - min(counts.values()) <= 1
        totals += counts
        for tile, scale in zip(tiles, scales, strict=True):
            assert tile in TILES[scale]
    # What is left over goes to each scale in turn, not always to the first.
    assert max(totals.values()) - min(totals.values()) < 0.35 * 60


def test_a_batch_is_a_function_of_seed_and_number(batches: Batches) -> None:
    rgb, labels = batches[3]
    again, same = batches[3]
    assert rgb.shape == (5, 3, 96, 96)
    assert rgb.dtype == torch.uint8
    assert labels.dtype == torch.int64
    assert torch.equal(rgb, again)
    assert torch.equal(labels, same)
    assert not torch.equal(rgb, batches[4][0])


def test_the_shares_of_two_processes_make_up_the_batch(batches: Batches) -> None:
    rgb, labels = batches[3]
    for rank in (0, 1):
        share, own_labels = five_crops(batches._reader, rank, 2)[3]
        assert torch.equal(share, rgb[rank::2])
        assert torch.equal(own_labels, labels[rank::2])


def test_random_streams_differ_by_number_and_purpose() -> None:
    draws = [
        batch_rng(0, 1).random(),
        batch_rng(0, 2).random(),
        batch_rng(1, 1).random(),
        batch_rng(0, 1, "transform").random(),
    ]
    assert len(set(draws)) == 4
    assert batch_rng(0, 1).random() == draws[0]


def test_loading_starts_anywhere(batches: Batches) -> None:
    loaded = [rgb for rgb, _ in batches.load([2, 3], workers=0)]
    assert len(loaded) == 2
    assert torch.equal(loaded[0], batches[2][0])
    assert torch.equal(loaded[1], batches[3][0])


@pytest.mark.slow
def test_worker_processes_change_nothing(batches: Batches) -> None:
    alone = [rgb for rgb, _ in batches.load(range(3), workers=0)]
    together = [rgb for rgb, _ in batches.load(range(3), workers=2)]
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))
