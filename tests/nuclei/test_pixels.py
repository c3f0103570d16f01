from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.nuclei.pixels import pixels_of_polygons
from tests.masks import mask_of

LARGE, TOP, LEFT, SIZE = (120, 130), 40, 50, (30, 40)


@given(seed=st.integers(0, 2**32), is_rectangle=st.booleans())
def test_an_outline_beyond_the_image_has_the_pixels_that_a_larger_image_shows(
    seed: int, is_rectangle: bool
) -> None:
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 240, (3 + seed % 6, 2)) / 2
    outline = shapely.box(*points[:2].ravel()) if is_rectangle else shapely.Polygon(points)
    part = pixels_of_polygons(np.array([outline], dtype=object), SIZE, (LEFT, TOP))
    expected = mask_of(outline, LARGE)[TOP : TOP + SIZE[0], LEFT : LEFT + SIZE[1]]
    assert sorted(part.indices) == np.flatnonzero(expected).tolist()
    assert part.counts.tolist() == [expected.sum()]


@pytest.mark.parametrize("far", [1e9, 1e15])
def test_an_outline_that_reaches_far_beyond_the_image_costs_no_more_than_the_image(
    far: float,
) -> None:
    strip = shapely.Polygon([(10, 5), (20, 5), (20, far), (10, far + 1)])
    rectangle = shapely.box(10, 5, 20, far)
    for outline in (strip, rectangle):
        mask = mask_of(outline, SIZE)
        assert mask.sum() == 10 * (SIZE[0] - 5)
        assert mask[5:, 10:20].all()
