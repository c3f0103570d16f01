from __future__ import annotations

import numpy as np
import pytest
import shapely

from qpnuclei.slides.masks import rasterise

RING = shapely.box(0, 0, 90, 70) - shapely.box(20, 20, 70, 50)
DISC = shapely.Point(75, 65).buffer(40)


@pytest.mark.parametrize(
    "area",
    [
        pytest.param(RING, id="a hole"),
        pytest.param(shapely.MultiPolygon([RING, shapely.box(10, 10, 40, 60)]), id="overlap"),
        pytest.param(shapely.MultiPolygon([RING, shapely.box(40, 30, 50, 40)]), id="in a hole"),
        pytest.param(DISC - DISC.buffer(-25), id="beyond the mask"),
        pytest.param(shapely.GeometryCollection([RING, shapely.LineString([(0, 95), (95, 95)])])),
        pytest.param(shapely.MultiPolygon(), id="nothing"),
    ],
)
def test_px_inside_are_covered_and_px_outside_are_not(area: shapely.Geometry) -> None:
    mask = rasterise(area, (30, 20), (5, 3), (-5, 4))
    x, y = np.meshgrid(np.arange(20) * 5 - 5, np.arange(30) * 3 + 4)
    squares = shapely.box(x, y, x + 5, y + 3)
    polygons = shapely.union_all([p for p in shapely.get_parts(area) if p.area])
    assert mask[shapely.covers(polygons, squares)].all()
    # Px on an outline may be covered or not.
    assert not mask[shapely.distance(squares, polygons) > 1].any()
    assert mask.any() == (not area.is_empty)
