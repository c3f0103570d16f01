from __future__ import annotations

import numpy as np
from skimage.color import hed2rgb, rgb2hed

from qpnuclei.training.attention.augment import (
    jitter_stains,
    random_crop,
    random_flip_and_rotation,
    scale_stains,
)

RNG = np.random.default_rng(0)
TILE = RNG.integers(20, 236, (32, 32, 3), dtype=np.uint8)


def test_crops_are_parts_of_the_tile_and_reach_every_corner() -> None:
    tile = np.arange(16, dtype=np.uint8).reshape(4, 4, 1).repeat(3, axis=2)
    corners = {int(random_crop(tile, 3, RNG)[0, 0, 0]) for _ in range(100)}
    assert corners == {0, 1, 4, 5}  # upper left pixels of the four 3x3 windows of a 4x4 tile
    np.testing.assert_array_equal(random_crop(tile, 4, RNG), tile)


def test_all_eight_orientations_occur_and_no_other() -> None:
    tile = np.array([[1, 2], [3, 4]], np.uint8)[..., None].repeat(3, axis=2)
    seen = {tuple(random_flip_and_rotation(tile, RNG)[..., 0].ravel().tolist()) for _ in range(300)}
    assert seen == {
        (1, 2, 3, 4), (2, 4, 1, 3), (4, 3, 2, 1), (3, 1, 4, 2),
        (2, 1, 4, 3), (1, 3, 2, 4), (3, 4, 1, 2), (4, 2, 3, 1),
    }  # fmt: skip


def test_factors_of_one_change_nothing() -> None:
    np.testing.assert_array_equal(scale_stains(TILE, [1, 1, 1]), TILE)


def test_stains_scale_as_in_scikit_image() -> None:
    factors = np.array([1.2, 0.9, 1.05])
    hed = rgb2hed(TILE)
    # scikit-image cuts negative concentrations off; compare where there are none.
    comparable = (hed > 0).all(axis=2)
    assert comparable.sum() > 20
    expected = 255 * hed2rgb(hed * factors)
    found = scale_stains(TILE, factors)
    np.testing.assert_allclose(found[comparable], expected[comparable], atol=0.51)


def test_more_haematoxylin_is_darker_and_white_stays_white() -> None:
    purple = np.array([[[110, 70, 150]]], np.uint8)
    assert (scale_stains(purple, [1.3, 1, 1]) < purple).all()
    white = np.full((1, 1, 3), 255, np.uint8)
    np.testing.assert_array_equal(scale_stains(white, [2, 2, 2]), white)


def test_jitter_is_as_large_as_it_is_told() -> None:
    np.testing.assert_array_equal(jitter_stains(TILE, 0.0, RNG), TILE)
    changed = jitter_stains(TILE, 0.03, np.random.default_rng(1)).astype(int) - TILE
    assert 0 < np.abs(changed).max() < 40
