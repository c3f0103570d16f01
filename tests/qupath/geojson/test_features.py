from __future__ import annotations

import math

import pytest

from qpnuclei.qupath.model import PathClass
from tests.qupath.geojson.features_and_files import ID, POLYGON, feature, read


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
