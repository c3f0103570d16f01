from __future__ import annotations

import numpy as np
import pytest

from qpnuclei.slides.scaling import resized, scaled


def test_scaling_down_averages_areas() -> None:
    # 4x4 in blocks of 2x2: each becomes its mean, (0 + 10 + 20 + 30) / 4.
    block = np.array([[0, 10], [20, 30]], np.uint8)
    rgb = np.repeat(np.tile(block, (2, 2))[..., None], 3, axis=2)
    np.testing.assert_array_equal(scaled(rgb, 0.5), np.full((2, 2, 3), 15))
    assert scaled(rgb, 1) is rgb


def test_enlarging_is_bilinear_between_pixel_centres() -> None:
    maps = np.zeros((1, 2, 2), np.float32)
    maps[0, 1] = 1, 8
    # Centres of the four new px are at -0.25, 0.25, 0.75 and 1.25 px from the first one's.
    enlarged = resized(maps, 1, 4)
    assert enlarged.dtype == np.float32
    np.testing.assert_array_equal(enlarged[0, :, 0], [0, 0.25, 0.75, 1])
    np.testing.assert_array_equal(enlarged[0, :, 1], [0, 2, 6, 8])


@pytest.mark.parametrize(("factor", "sides"), [(0.1, (1, 1)), (0.5, (2, 4)), (1.5, (4, 10))])
def test_sides_are_rounded_to_px_and_at_least_one(factor: float, sides: tuple[int, int]) -> None:
    assert scaled(np.zeros((3, 7, 3), np.uint8), factor).shape == (*sides, 3)
