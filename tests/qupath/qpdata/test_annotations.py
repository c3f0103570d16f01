"""Annotations are read together, and the result is that of reading each one for itself."""

import re
import uuid
from dataclasses import asdict, replace

import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import FormatError
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.qpdata import data_file as data_file_module
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.annotations import id_metadata
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.hierarchy import annotations_of
from qpnuclei.qupath.qpdata.java_nodes import JavaObject
from qpnuclei.qupath.qpdata.new_data_file import new_data_file
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import PathObject, are_annotations
from tests.ids import nucleus_id
from tests.qupath.qpdata.data_files import group, load, saved
from tests.qupath.qpdata.test_rois import legacy_areas
from tests.qupath.samples import DATA_FILES

GEOMETRIES = (
    shapely.box(1, 2, 4, 6),
    shapely.Polygon([(0, 0), (9, 1.5), (3, 7), (2, 2)]),
    shapely.box(0, 0, 9, 9) - shapely.box(3, 3, 6, 6),
    shapely.LineString([(0, 0), (3, 4), (3, 8)]),
    shapely.MultiPoint([(0, 0), (3, 4)]),
)


@pytest.fixture(autouse=True)
def _packs_from_the_first(monkeypatch):
    monkeypatch.setattr(data_file_module, "_FEW", 0)


def annotations(rows):
    return [
        NewAnnotation(geometry=geometry, id=nucleus_id(number.to_bytes(5, "big") * 2), **own)
        for number, (geometry, own) in enumerate(rows)
    ]


def same(count, **own):
    boxes = [shapely.box(i, 0, i + 5, 5) for i in range(count)]
    return annotations([(box, {"name": f"a{i}", **own}) for i, box in enumerate(boxes)])


def parsed(data, *, packed=True):
    if packed:
        return DataFile.parse(data, "file")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(data_file_module, "packed_kind", lambda _: "")
        return DataFile.parse(data, "file")


def packed_annotations(data_file):
    children = PathObject.of(data_file._root()).children
    return [item for item in children if isinstance(item, Packed) and are_annotations(item)]


def check_read_singly(data):
    """Check that packed annotations read as the nodes do, with all their values."""
    together, singly = parsed(data), parsed(data, packed=False)
    found, expected = together.read(), singly.read()
    assert found.type_counts == expected.type_counts
    for a, b in zip(found.annotations, expected.annotations, strict=True):
        assert shapely.equals_identical(a.geometry, b.geometry)
        assert repr(asdict(replace(a, geometry=None))) == repr(asdict(replace(b, geometry=None)))
    assert list(found.detections.parents) == list(expected.detections.parents)
    assert saved(together) == data == saved(singly)


@settings(max_examples=25)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(GEOMETRIES),
            st.fixed_dictionaries(
                {
                    "name": st.none() | st.text(max_size=3),
                    "path_class": st.sampled_from([None, *map(PathClass, ("A", "B", "A: B"))]),
                    "locked": st.booleans(),
                    "z": st.integers(0, 2),
                    "color": st.none() | st.integers(-3, 3),
                    "metadata": st.dictionaries(st.sampled_from("kl"), st.text(max_size=2)),
                    "measurements": st.dictionaries(
                        st.sampled_from("mn"), st.floats(allow_nan=False)
                    ),
                }
            ),
        ),
        max_size=20,
    )
)
def test_annotations_of_any_kind_are_read_back(rows):
    data_file = new_data_file({}, "UNSET", None, qupath_version="0.5.1", entry_property="p::1")
    new = annotations(rows)
    edit = Edit(annotations=new)
    before = saved(data_file)
    additions = data_file.add(edit)
    data = saved(data_file)
    check_read_singly(data)
    for own, made in zip(parsed(data).read().annotations, new, strict=True):
        assert (own.id, own.name, own.locked, own.z, own.color) == (
            made.id, made.name, made.locked, made.z, made.color
        )  # fmt: skip
        assert own.class_name == (None if made.path_class is None else made.path_class.name)
        assert (own.metadata, own.measurements) == (made.metadata, made.measurements)
        assert own.geometry.equals(made.geometry)
    again = parsed(data)
    again.withdraw(additions)
    assert saved(again) == before


@pytest.mark.parametrize("path", DATA_FILES, ids=lambda p: "-".join(p.parts[-5:-1:3]))
def test_files_of_qupath_read_the_same_packed(path):
    check_read_singly(path.read_bytes())


def test_many_annotations_are_packed_and_not_detections_with_them():
    data_file = load()
    data_file.add(Edit(annotations=same(20), add=[group(10, None, start=500)]))
    again = parsed(saved(data_file))
    assert sum(map(len, packed_annotations(again))) >= 18
    for packed in packed_annotations(again):
        assert {known.shape.example.class_name for known in packed.shapes} == {jc.ANNOTATION}
    assert (
        again.read().summary()["objectTypeCounts"]["Annotations"]
        == len(load().read().annotations) + 20
    )


def test_detections_are_added_below_packed_annotations():
    data_file = load()
    first = len(data_file.read().annotations)
    data_file.add(Edit(annotations=same(20, z=1)))
    before = saved(data_file)
    again = parsed(before)
    parents = (first + 7, None, first + 19)
    edit = Edit(add=[group(3, parent, start=500 + 9 * i) for i, parent in enumerate(parents)])
    additions = again.add(edit)
    data = saved(again)
    check_read_singly(data)
    objects = parsed(data).read()
    assert objects.annotations[first + 7].name == "a7"
    found = dict(zip(objects.detections.ids, objects.detections.parents.tolist(), strict=True))
    for one in edit.add:
        assert {found[own_id] for own_id in one.ids} == {-1 if one.parent is None else one.parent}
    below = [i in edit.add[0].ids for i in objects.detections.ids]
    assert set(objects.detections.planes[below][:, 0].tolist()) == {1}
    checked = parsed(data)
    checked.withdraw(additions)
    assert saved(checked) == before


def test_packed_annotations_are_removed():
    data_file = load()
    before, first = saved(data_file), len(data_file.read().annotations)
    data_file.add(Edit(annotations=same(20)))
    again = parsed(saved(data_file))
    again.remove((), range(first + 5, first + 9))
    check_read_singly(saved(again))
    assert [a.name for a in again.read().annotations[-16:]] == [
        f"a{i}" for i in range(20) if not 5 <= i < 9
    ]
    again.remove((), range(first, first + 16))
    assert saved(again) == before


def test_a_damaged_one_among_many_is_named():
    data_file = load()
    data_file.add(Edit(annotations=same(20)))
    view = annotations_of(data_file._root(), [len(load().read().annotations) + 12])
    (roi,) = (own.roi for own in view.values())
    y = jf.array_field(roi, "y", jc.FLOAT_ARRAY)
    y.data = y.data[:-4]
    errors = []
    for packed in (True, False):
        again = parsed(saved(data_file), packed=packed)
        with pytest.raises(FormatError) as error:
            again.read()
        errors.append(error.value.what)
    assert errors[0] == errors[1]
    assert re.match(r"file: byte \d+: \S+PolygonROI\S+: x and y have different lengths", errors[0])


@pytest.mark.parametrize("class_name", [jc.ANNOTATION, jc.DETECTION])
def test_legacy_areas_of_packed_objects_differ(class_name):
    data_file = load()
    catalog = data_file._catalog
    boxes = [[shapely.box(i, 0, i + 9, 9), shapely.box(i + 1, 1, i + 3, 3)] for i in range(9)]
    nodes: list[JavaObject] = [
        catalog.path_object(class_name, metadata=id_metadata(catalog, uuid.UUID(int=i)), roi=roi)
        for i, roi in enumerate(legacy_areas(catalog, boxes))
    ]
    root = PathObject.of(data_file._root())
    root.set_children([*root.children, *nodes])
    data = saved(data_file)
    check_read_singly(data)
    again = parsed(data)
    assert any(isinstance(item, Packed) for item in PathObject.of(again._root()).children)
    objects = again.read()
    if class_name == jc.ANNOTATION:
        areas = [annotation.geometry for annotation in objects.annotations[-9:]]
    else:
        rows = [objects.detections.ids.index(uuid.UUID(int=i)) for i in range(9)]
        areas = objects.detections.geometries[rows].tolist()
    for area, (outer, inner) in zip(areas, boxes, strict=True):
        assert area.equals(outer - inner)
