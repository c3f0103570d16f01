from __future__ import annotations

import json
import math
import uuid

import geojson
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import SaveError, UsageError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.areas import valid_area
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.geojson.writing import write_detections, write_objects
from qpnuclei.qupath.model import PathClass
from tests.qupath.geojson.features_and_files import ID, NUCLEUS, ids, table


def test_a_detection_letter_by_letter(tmp_path):
    path = tmp_path / "one.geojson"
    nuclei = table(
        shapely.Polygon([(10.123, 20), (12, 20), (12, 21.5)]),
        **{"Area µm^2": [0.1], "Hematoxylin: Mean": [math.nan], "Length µm": [1234.5678]},
    )
    write_detections(path, nuclei, [ID], NUCLEUS)
    assert path.read_text("utf-8") == (
        '{"type":"FeatureCollection","features":[\n'
        '{"type":"Feature","id":"71706e75-636c-8000-8000-000000000001",'
        '"geometry":{"type":"Polygon","coordinates":'
        "[[[10.12,20.0],[12.0,20.0],[12.0,21.5],[10.12,20.0]]]},"
        # 0.4 and later read the first of the two types, 0.3 the second.
        '"properties":{"objectType":"detection","object_type":"detection",'
        '"classification":{"name":"Nucleus","color":[0,176,80]},'
        # A list, for 0.3; not a number is left out.
        '"measurements":[{"name":"Area µm^2","value":0.1},'
        '{"name":"Length µm","value":1234.568}]}}\n'
        "]}\n"
    )
    assert geojson.loads(path.read_text("utf-8")).is_valid


def test_no_detections_are_an_empty_collection(tmp_path):
    write_detections(tmp_path / "none.geojson", NucleiTable.empty(["Area px^2"]), [], NUCLEUS)
    assert json.loads((tmp_path / "none.geojson").read_text())["features"] == []
    assert list(read_objects(tmp_path / "none.geojson")) == []


@pytest.mark.parametrize("suffix", [".geojson", ".geojson.gz", ".json", ".JSON.GZ"])
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"a.b{suffix}"
    rng = np.random.default_rng(0)
    centres = rng.uniform(0, 90_000, (5000, 2))
    nuclei = NucleiTable.from_polygons(
        shapely.buffer(shapely.points(centres), rng.uniform(1, 10, 5000), quad_segs=3),
        {"Area µm^2": rng.uniform(0, 100, 5000), "Eosin: Min": rng.normal(size=5000)},
    )
    write_detections(path, nuclei, ids(5000), NUCLEUS)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == suffix.lower().endswith(".gz")
    found = list(read_objects(path))
    assert [o.id for o in found] == ids(5000)
    assert {o.kind for o in found} == {"detection"}
    assert {o.path_class for o in found} == {NUCLEUS}
    again = NucleiTable.from_polygons([o.geometry for o in found])
    np.testing.assert_allclose(again.vertices, nuclei.vertices, atol=0.0101)
    for name, column in nuclei.measurements.items():
        values = np.array([o.measurements[name] for o in found], np.float32)
        np.testing.assert_allclose(values, column, rtol=1e-6)


def test_equal_nuclei_give_equal_files(tmp_path):
    for name in ("1.geojson.gz", "2.geojson.gz"):
        write_detections(tmp_path / name, table(shapely.box(0, 0, 2, 2)), [ID], NUCLEUS)
    assert (tmp_path / "1.geojson.gz").read_bytes() == (tmp_path / "2.geojson.gz").read_bytes()


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.003, 0.2))
def test_rounding_never_makes_a_ring_invalid(tmp_path_factory, seed, size):
    # Stars a few hundredths of a px wide: rounded to that grid, most would cross themselves.
    rng = np.random.default_rng(seed)
    angles = np.sort(rng.uniform(0, 2 * np.pi, 12))
    radii = rng.uniform(0.3, 1, 12) * size + 0.01
    star = shapely.Polygon(
        np.stack([5 + radii * np.cos(angles), 5 + radii * np.sin(angles)], axis=1)
    )
    nuclei = NucleiTable.from_polygons([shapely.union(star, shapely.box(4.98, 4.98, 5.02, 5.02))])
    path = tmp_path_factory.mktemp("stars") / "star.geojson"
    write_detections(path, nuclei, [ID], NUCLEUS)
    (found,) = read_objects(path)
    assert shapely.is_valid(found.geometry)
    assert found.geometry.geom_type == "Polygon"
    assert found.geometry.area > 0
    points = shapely.get_coordinates(found.geometry)
    np.testing.assert_array_equal(points, np.round(points, 2))


def test_a_nucleus_that_vanishes_is_an_error(tmp_path):
    speck = table(shapely.box(5.001, 5.001, 5.002, 5.002))
    with pytest.raises(ValueError, match="has no area on a grid"):
        write_detections(tmp_path / "speck.geojson", speck, [ID], NUCLEUS)
    assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_in_one_step_or_not_at_all(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text("before")
    with pytest.raises(ValueError, match="1 nucleus, but 2 ids"):
        write_detections(path, table(shapely.box(0, 0, 1, 1)), ids(2), NUCLEUS)
    with pytest.raises(UsageError, match=r"has no GeoJSON suffix.*\.geojson"):
        write_detections(tmp_path / "a.csv", table(shapely.box(0, 0, 1, 1)), [ID], NUCLEUS)
    (tmp_path / "file").touch()
    with pytest.raises(SaveError):
        write_objects(tmp_path / "file" / "b.geojson", [])
    assert path.read_text() == "before"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.geojson", "file"]


def test_annotations_of_every_kind(tmp_path):
    annotations = [
        GeoJsonObject(
            "annotation",
            shapely.Polygon([(0, 0), (9, 0), (9, 9), (0, 9)], [[(2, 2), (2, 4), (4, 4)]]),
            uuid.UUID(int=7),
            name='Ä "quoted"',
            path_class=PathClass("Tumor: Positive", -3657166),
            locked=True,
        ),
        GeoJsonObject("annotation", shapely.LineString([(0, 0), (1.234, 5.678)]), uuid.UUID(int=8)),
        GeoJsonObject("annotation", shapely.MultiPoint([(1, 2), (3, 4)]), uuid.UUID(int=9)),
        # Self-intersecting: a bow tie becomes two triangles.
        GeoJsonObject(
            "annotation", shapely.Polygon([(0, 0), (2, 2), (2, 0), (0, 2)]), uuid.UUID(int=10)
        ),
    ]
    write_objects(tmp_path / "a.geojson", annotations)
    found = list(read_objects(tmp_path / "a.geojson"))
    assert [o.kind for o in found] == ["annotation"] * 4
    assert found[0].name == 'Ä "quoted"'
    assert found[0].path_class == PathClass("Tumor: Positive", -3657166)
    assert [o.locked for o in found] == [True, False, False, False]
    assert found[0].geometry.equals(annotations[0].geometry)
    assert found[1].geometry.equals(shapely.LineString([(0, 0), (1.23, 5.68)]))
    assert found[3].geometry.geom_type == "MultiPolygon"
    assert found[3].geometry.area == pytest.approx(2)
    assert (
        "name"
        not in json.loads((tmp_path / "a.geojson").read_text("utf-8"))["features"][1]["properties"]
    )  # 0.3 cannot read a name that is null


def test_objects_of_every_kind(tmp_path, caplog):
    square = shapely.box(0, 0, 4, 3)
    objects = [
        GeoJsonObject("cell", square, ID, measurements={"A": 1.5, "B": math.nan}, z=2, t=1),
        GeoJsonObject("tile", square, path_class=PathClass("Half \ud800", None)),
        # Nothing of these is left on the grid, or was there before.
        GeoJsonObject("detection", shapely.box(1.001, 1.001, 1.002, 1.002), name="speck"),
        GeoJsonObject("annotation", shapely.Polygon(), name="empty"),
        GeoJsonObject("annotation", shapely.Point(math.nan, 1), name="nowhere"),
    ]
    write_objects(tmp_path / "a.geojson.gz", objects)
    cell, tile = read_objects(tmp_path / "a.geojson.gz")
    assert (cell.kind, cell.id, cell.z, cell.t) == ("cell", ID, 2, 1)
    assert cell.measurements == {"A": 1.5}
    assert (tile.kind, tile.id, tile.z) == ("tile", None, 0)
    assert tile.path_class.name == "Half \ufffd"
    assert [cell.geometry, tile.geometry] == [square, square]
    left_out = [record.getMessage() for record in caplog.records]
    assert len(left_out) == 3
    for name, message in zip(("speck", "empty", "nowhere"), left_out, strict=True):
        assert name in message


def boxes(*corners: tuple[int, int, int]) -> shapely.MultiPolygon:
    """Return squares, each of x, y and size in px, as parts of one outline."""
    return shapely.MultiPolygon([shapely.box(x, y, x + size, y + size) for x, y, size in corners])


@pytest.mark.parametrize(
    ("outline", "area"),
    [
        (boxes((50, 50, 40), (60, 60, 40)), 2300),  # they overlap
        (boxes((50, 50, 40), (60, 60, 10)), 1600),  # one contains the other
        (boxes((50, 50, 40), (50, 50, 40)), 1600),  # they are equal
        (boxes((50, 50, 40), (90, 50, 40)), 3200),  # they share an edge
        (boxes((50, 50, 40), (70, 70, 40), (60, 60, 40)), 3000),  # three share a place
        (boxes((50, 50, 40), (200, 50, 40)), 3200),
        (
            shapely.MultiPolygon(
                [
                    shapely.box(50, 50, 90, 90).difference(shapely.box(60, 60, 80, 80)),
                    shapely.box(55, 55, 75, 75),  # covers a part of the hole
                ]
            ),
            1425,
        ),
    ],
)
def test_an_outline_of_several_parts_keeps_the_area_that_counts(tmp_path, outline, area):
    assert valid_area(outline).area == area
    write_objects(tmp_path / "a.geojson", [GeoJsonObject("annotation", outline, ID)])
    (found,) = read_objects(tmp_path / "a.geojson")
    assert found.geometry.is_valid
    assert found.geometry.area == area
    assert found.geometry.equals(valid_area(outline))
