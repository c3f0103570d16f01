from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.tiling.tile_overlaps import TileOutlines, overlaps
from tests.segmentation.images import random_mask, regions


@settings(max_examples=40, deadline=None)
@given(
    seeds=st.tuples(st.integers(0, 2**32), st.integers(0, 2**32)),
    shape=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    density=st.floats(0.05, 0.9),
    corner=st.tuples(st.integers(-20, 20), st.integers(-20, 20)),
    turned=st.booleans(),
)
def test_areas_in_common_are_those_of_shapely(seeds, shape, density, corner, turned):
    a, _ = polygonise(regions(random_mask(seeds[0], shape, density, 3)), (100_000, 200_000))
    b, _ = polygonise(
        regions(random_mask(seeds[1], (30, 30), density, 2)),
        (100_000 + corner[0], 200_000 + corner[1]),
    )
    polygons, others = a.polygons(), b.polygons()
    if turned:  # whichever way the outlines run
        b = NucleiTable.from_polygons(shapely.reverse(others))
    common = np.zeros((len(a), len(b)))
    first, second, areas = overlaps(TileOutlines(a), TileOutlines(b))
    common[first, second] = areas
    expected = shapely.area(shapely.intersection(polygons[:, None], others[None, :]))
    np.testing.assert_array_equal(common, expected)
    np.testing.assert_array_equal(TileOutlines(b).areas, shapely.area(others))
    # Of some rows only, the same.
    rows = np.arange(0, len(b), 2)
    first, second, areas = overlaps(TileOutlines(a), TileOutlines(b), rows)
    assert np.isin(second, rows).all()
    assert areas.sum() == expected[:, rows].sum()
