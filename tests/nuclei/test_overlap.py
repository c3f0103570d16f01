"""Which nuclei are in the place of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.nuclei.overlap import are_among, are_in_place_of


def outlines(seed: int, number: int, corners: int, spread: float) -> npt.NDArray[Any]:
    """Return polygons of random corners, most of which cross themselves."""
    rng = np.random.default_rng(seed)
    centres = rng.uniform(0, spread, (number, 1, 2))
    # Whole numbers: edges meet, and some outlines enclose nothing.
    return np.array(shapely.polygons((centres + rng.normal(0, 3, (number, corners, 2))).round()))


@given(
    st.integers(0, 2**32),
    st.integers(0, 30),
    st.integers(0, 8),
    st.integers(3, 8),
    st.floats(0, 60),
)
def test_outlines_need_not_be_valid_and_few_are_mended(
    seed: int, n_found: int, n_locked: int, corners: int, spread: float
) -> None:
    found = outlines(seed, n_found, corners, spread)
    locked = shapely.make_valid(outlines(seed + 1, n_locked, corners, spread))
    real = shapely.make_valid
    mended: list[shapely.Geometry] = []

    def counted(some: npt.NDArray[Any]) -> npt.NDArray[Any]:
        mended.extend(some)
        return np.asarray(real(some))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shapely, "make_valid", counted)
        in_place = are_in_place_of(found, shapely.STRtree(locked))
    np.testing.assert_array_equal(in_place, are_among(real(found), locked))
    boxes = shapely.box(*shapely.bounds(locked).T)
    near = [shapely.intersects(shapely.envelope(one), boxes).any() for one in found]
    assert len(mended) == sum(near)
