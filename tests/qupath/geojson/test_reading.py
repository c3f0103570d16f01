from __future__ import annotations

import gzip
import json
from contextlib import suppress

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import FormatError, NotFoundError
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.geojson.writing import write_detections, write_objects
from tests.paths import MEASUREMENTS
from tests.qupath.geojson.features_and_files import ID, NUCLEUS, POLYGON, feature, ids, read, table


def test_the_sample_objects_are_read():
    found = list(read_objects(MEASUREMENTS / "objects.geojson"))
    assert len(found) == 71
    assert found[0].name == "regular-00"
    assert found[0].kind == "detection"


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
