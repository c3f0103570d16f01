from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

import qpnuclei
from qpnuclei.nuclei.table import NucleiTable, concatenate


def test_segment_from_the_top_of_the_package() -> None:
    rgb = np.full((256, 256, 3), (235, 225, 235), np.uint8)
    yy, xx = np.mgrid[:256, :256]
    for y, x in ((80, 80), (160, 170)):  # two dark round nuclei of 8 µm
        rgb[(yy - y) ** 2 + (xx - x) ** 2 < 16**2] = (90, 60, 140)
    engine = qpnuclei.load_engine("default", qpnuclei.EngineOptions(device="cpu"))
    nuclei = qpnuclei.segment(engine, rgb, mpp=0.25)
    assert len(nuclei) == 2
    found = nuclei.centroids()[np.argsort(nuclei.centroids()[:, 0])]
    np.testing.assert_allclose(found, [(80, 80), (170, 160)], atol=2)
    np.testing.assert_allclose(nuclei.measurements["Max diameter µm"], 8, rtol=0.25)


RING = shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(3, 3), (3, 6), (6, 6), (6, 3)]])
BOX = shapely.box(20, 20, 22, 24)


def test_table_round_trip_take_and_concatenate() -> None:
    table = NucleiTable.from_polygons([RING, BOX], {"a": [1, 2]})
    assert len(table) == 2
    assert [p.equals(q) for p, q in zip(table.polygons(), [RING, BOX], strict=True)] == [True, True]
    (second,) = table.take([1]).polygons()
    assert second.equals(BOX)
    both = concatenate([table.take(np.array([False, True])), NucleiTable.from_polygons([RING])])
    assert [p.area for p in both.polygons()] == [8, 72]
    # The column that one table lacks is NaN there.
    np.testing.assert_array_equal(both.measurements["a"], [2, np.nan])
    np.testing.assert_allclose(table.centroids(), [(4.5, 4.5), (21, 22)])


def shapely_centroids(table: NucleiTable) -> np.ndarray:
    return shapely.get_coordinates(shapely.centroid(table.polygons()))


@settings(deadline=None)
@given(st.data())
def test_centroids_are_those_of_shapely(data: st.DataObject) -> None:
    coordinate = st.integers(0, 300_000) | st.floats(0, 300_000, width=32)
    kind = data.draw(st.sampled_from([st.integers(0, 300_000), coordinate]))
    polygons = []
    for _ in range(data.draw(st.integers(1, 5))):
        x, y, right, down, turned = (data.draw(k) for k in (kind, kind, *[st.integers(3, 99)] * 3))
        hole = [(x + 1, y + 1), (x + 2, y + 1), (x + 1, y + 2)]
        exterior = shapely.box(x, y, x + right, y + down).exterior.coords
        holes = [] if turned % 3 else [hole[:: 1 if turned % 2 else -1]]
        polygon = shapely.Polygon(exterior, holes)
        polygons.append(shapely.reverse(polygon) if turned % 2 else polygon)
    table = NucleiTable.from_polygons(polygons)
    if np.array_equal(table.vertices, np.round(table.vertices)):
        np.testing.assert_array_equal(table.centroids(), shapely_centroids(table))
    else:
        np.testing.assert_allclose(table.centroids(), shapely_centroids(table), atol=1e-5)


def test_centroids_of_what_encloses_nothing_and_of_nothing() -> None:
    line = shapely.Polygon([(0, 0), (4, 0), (0, 0), (0, 0)])
    table = NucleiTable.from_polygons([BOX, line, RING])
    np.testing.assert_array_equal(table.centroids(), [(21, 22), (2, 0), (4.5, 4.5)])
    assert NucleiTable.empty().centroids().shape == (0, 2)


@pytest.mark.parametrize("polygons", [[shapely.Point(0, 0)], [shapely.Polygon()], [RING, None]])
def test_table_takes_polygons_only(polygons: list[object]) -> None:
    with pytest.raises(ValueError, match="Polygon"):
        NucleiTable.from_polygons(polygons)


def test_table_checks_itself() -> None:
    vertices, offsets = np.zeros((4, 2), np.float32), np.array([0, 4])
    with pytest.raises(ValueError, match="measurement 'a'"):
        NucleiTable(vertices, offsets, np.array([0, 1]), {"a": np.zeros(2, np.float32)})
    with pytest.raises(ValueError, match="ring_offsets"):
        NucleiTable(vertices, np.array([0, 3]), np.array([0, 1]))
    with pytest.raises(ValueError, match="decrease"):
        NucleiTable(vertices, np.array([0, 5, 4]), np.array([0, 2]))
