"""The pixel size that `benchmarks.pixel_size` reads off the size of nuclei."""

import math

import pytest

from benchmarks.pixel_size import crossing


def test_the_size_lies_between_those_whose_areas_are_on_either_side() -> None:
    # Areas grow with the square of the assumed size.
    sizes = [0.1, 0.2, 0.4]
    areas = [1000 * size**2 for size in sizes]

    assert crossing(sizes, areas, 1000 * 0.25**2) == pytest.approx(0.25)


def test_of_several_the_last_counts_and_none_is_nan() -> None:
    assert crossing([0.1, 0.2, 0.3, 0.4], [10, 30, 15, 40], 20) == pytest.approx(0.3, abs=0.05)
    assert math.isnan(crossing([0.1, 0.2], [10, 15], 20))
