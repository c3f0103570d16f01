from __future__ import annotations

import gzip
import json
import math
import uuid
from contextlib import suppress

import geojson
import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import FormatError, NotFoundError, SaveError, UsageError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.geojson.writing import write_detections, write_objects
from qpnuclei.qupath.model import PathClass
from tests.paths import MEASUREMENTS

NUCLEUS = PathClass("Nucleus", -16732080)  # 0xFF00B050
ID = uuid.UUID("71706e75-636c-8000-8000-000000000001")


def table(*polygons, **measurements):
    return NucleiTable.from_polygons(list(polygons), measurements)


def ids(count):
    return [uuid.UUID(int=i + 1) for i in range(count)]


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
    with pytest.raises(ValueError, match="vanishes on a grid"):
        write_detections(tmp_path / "speck.geojson", speck, [ID], NUCLEUS)
    assert list(tmp_path.iterdir()) == []


def test_files_are_replaced_in_one_step_or_not_at_all(tmp_path):
    path = tmp_path / "a.geojson"
    path.write_text("before")
    with pytest.raises(ValueError, match="1 nuclei, but 2 ids"):
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


def test_the_sample_objects_are_read():
    found = list(read_objects(MEASUREMENTS / "objects.geojson"))
    assert len(found) == 71
    assert found[0].name == "regular-00"
    assert found[0].kind == "detection"


POLYGON = {"type": "Polygon", "coordinates": [[[0, 0], [4, 0], [4, 4], [0, 0]]]}


def feature(properties, **more):
    return {"type": "Feature", "geometry": POLYGON, "properties": properties, **more}


def read(tmp_path, value, name="x.geojson"):
    path = tmp_path / name
    path.write_text(value if isinstance(value, str) else json.dumps(value), "utf-8")
    return list(read_objects(path))


@pytest.mark.parametrize(
    "value",
    [
        {"type": "FeatureCollection", "features": [feature({})]},
        {"features": [feature(None)], "type": "FeatureCollection", "crs": {"a": [1]}},
        feature({}),
        POLYGON,
        [feature({})],
        [POLYGON],
        "\ufeff\n" + json.dumps([POLYGON], indent=2) + "\n",
    ],
)
def test_every_container_that_qupath_takes(tmp_path, value):
    (found,) = read(tmp_path, value)
    assert found.kind == "annotation"
    assert found.geometry.area == 8
    assert found.path_class is None
    assert found.measurements == {}


@pytest.mark.parametrize(
    ("classification", "expected"),
    [
        ("Tumor: Positive", PathClass("Tumor: Positive")),
        ({"name": "Tumor", "color": [200, 0, 0]}, PathClass("Tumor", -3670016)),
        ({"names": ["Tumor", "Positive"], "color": [200, 0, 0]},
         PathClass("Tumor: Positive", -3670016)),
        # 0.2 and 0.3
        ({"name": "Tumor", "colorRGB": -3670016}, PathClass("Tumor", -3670016)),
        ({"name": "Positive", "colorRGB": 5, "parentClass": {"name": "Tumor", "colorRGB": 6}},
         PathClass("Tumor: Positive", 5)),
        (None, None),
        ({}, None),
    ],
)  # fmt: skip
def test_classes_of_every_version(tmp_path, classification, expected):
    (found,) = read(tmp_path, feature({"classification": classification}))
    assert found.path_class == expected


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (feature({}, id="PathDetectionObject"), "detection"),  # 0.2
        (feature({"object_type": "cell"}), "cell"),  # 0.3
        (feature({"objectType": "tile", "type": "cell"}), "tile"),
        (feature({"type": "tma_core"}), "tmaCore"),
        (feature({"objectType": "something"}), "annotation"),
        (feature({}, id=[1]), "annotation"),
    ],
)
def test_object_types_of_every_version(tmp_path, value, kind):
    assert read(tmp_path, value)[0].kind == kind


@pytest.mark.parametrize(
    "measurements",
    [{"A": 1.5, "B": "NaN"}, [{"name": "A", "value": 1.5}, {"name": "B", "value": math.nan}]],
)
def test_measurements_of_every_version(tmp_path, measurements):
    (found,) = read(tmp_path, feature({"measurements": measurements}))
    assert found.measurements["A"] == 1.5
    assert math.isnan(found.measurements["B"])


def test_planes_children_and_ids(tmp_path):
    value = feature({"childObjects": [feature({"name": "child"})], "name": "parent"}, id=str(ID))
    value["geometry"] = {**POLYGON, "plane": {"c": -1, "z": 2, "t": 3}}
    parent, child = read(tmp_path, value)
    assert (parent.id, parent.name, parent.z, parent.t) == (ID, "parent", 2, 3)
    assert (child.id, child.name, child.z) == (None, "child", 0)


GOOD = json.dumps(feature({}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "feature 0: the file holds neither"),
        ("no json", "feature 0: the file holds neither"),
        (f'{{"features":[{GOOD},{GOOD[:50]}', "feature 1: .*(ends|not JSON)"),
        (f'{{"features":[{GOOD} {GOOD}]}}', "feature 1: expected ']'"),
        (f'{{"features":[{GOOD}', "feature 1: expected ']', found the end of the file"),
        (f"[{GOOD}] tail", "feature 1: there is more text"),
        (f"[{GOOD}, 7]", "feature 1: expected a feature, found '7'"),
        ('{"type":"Feature","properties":{}}', "feature 0: it has no geometry"),
        ('{"type":"Feature","geometry":null}', "feature 0: it has no geometry"),
        ('{"type":"Polygon","coordinates":[[[0,0],[1,1]]]}', "its Polygon is not a geometry"),
        ('{"type":"Polygon","coordinates":"abc"}', "its Polygon is not a geometry"),
        ('{"type":"Polygon","coordinates":[]}', "its Polygon is empty"),
        ('{"type":"Circle","coordinates":[1,2]}', "its Circle is not a geometry"),
        ('{"type":"Point","coordinates":[1e999,2]}', "is not a number"),
        ('{"type":"Point","coordinates":[NaN,2]}', "is not a number"),
        (json.dumps(feature({"measurements": [{"name": "A"}]})), "measurements are not numbers"),
        (json.dumps(feature({"classification": 3})), "classification must be"),
        (json.dumps(feature({"classification": {"name": "A", "color": [1, 2, 900]}})), "colour"),
        (json.dumps(feature([1])), "properties must be an object"),
        ("[" * 100_000, "nested too deeply"),
        ('{"a":' + "1" * 5000 + "}", "feature 0"),
    ],
)
def test_broken_files_give_one_clear_line(tmp_path, text, message):
    with pytest.raises(FormatError, match=message) as raised:
        read(tmp_path, text, "broken.geojson")
    assert "broken.geojson" in raised.value.what
    assert "\n" not in str(raised.value)


def test_broken_gzip_and_missing_files(tmp_path):
    path = tmp_path / "x.geojson.gz"
    write_detections(
        path, table(*[shapely.box(0, 0, i + 1, 3) for i in range(99)]), ids(99), NUCLEUS
    )
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(FormatError, match=r"x\.geojson\.gz"):
        list(read_objects(path))
    path.write_bytes(b"\x1f\x8bgarbage")
    with pytest.raises(FormatError, match=r"x\.geojson\.gz"):
        list(read_objects(path))
    path.write_bytes(b'{"features":["\xff"]}')
    with pytest.raises(FormatError, match=r"x\.geojson\.gz"):
        list(read_objects(path))
    with pytest.raises(NotFoundError, match="no such file"):
        list(read_objects(tmp_path / "nothing.geojson"))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_mutated_files_are_read_or_refused(tmp_path_factory, data):
    text = json.dumps(
        {
            "type": "FeatureCollection",
            "features": [
                feature(
                    {
                        "classification": {"name": "A", "color": [1, 2, 3]},
                        "measurements": [{"name": "A", "value": 1}],
                    }
                )
            ]
            * 2,
        }
    )
    mutated = bytearray(text.encode())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(mutated) - 1))
        if data.draw(st.booleans()):
            mutated[at] = data.draw(st.integers(0, 255))
        else:
            del mutated[at : at + data.draw(st.integers(1, 30))]
        if not mutated:
            break
    path = tmp_path_factory.mktemp("mutated") / "m.geojson"
    path.write_bytes(bytes(mutated))
    with suppress(FormatError):
        for found in read_objects(path):
            assert shapely.is_valid_input(found.geometry)


def test_objects_longer_than_the_read_buffer_are_read_whole(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 100_000, endpoint=False)
    circle = shapely.Polygon(10_000 * np.stack([np.cos(angles), np.sin(angles)], axis=1))
    write_objects(tmp_path / "big.geojson", [GeoJsonObject("annotation", circle, ID)] * 3)
    assert (tmp_path / "big.geojson").stat().st_size > 3 * (1 << 20)
    found = list(read_objects(tmp_path / "big.geojson"))
    assert len(found) == 3
    assert shapely.get_num_coordinates(found[2].geometry) == 100_001


def test_a_gzipped_file_may_have_any_name(tmp_path):
    path = tmp_path / "x.geojson"
    path.write_bytes(gzip.compress(json.dumps(POLYGON).encode()))
    assert len(list(read_objects(path))) == 1
