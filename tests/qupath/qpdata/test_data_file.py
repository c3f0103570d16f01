import uuid
from dataclasses import replace

import numpy as np
import pytest
import shapely

from qpnuclei.errors import FormatError
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass, Project
from qpnuclei.qupath.qpdata import data_file as data_file_module
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.hierarchy import annotations_of
from qpnuclei.qupath.qpdata.new_detections import Additions
from qpnuclei.qupath.qpdata.packed_records import Packed
from tests.paths import SAMPLES
from tests.qupath.qpdata.data_files import group, load, saved


def packed_below_annotations(data_file):
    views = annotations_of(data_file._root(), range(9)).values()
    return [child for view in views for child in view.children if isinstance(child, Packed)]


def test_many_are_packed_and_read_back():
    data_file = load()
    groups = [group(300), group(200, 3, ("a", "b"), 1000), group(100, None, (), 5000)]
    data_file.add(Edit(add=groups))
    again = DataFile.parse(saved(data_file), "again")
    bulk = packed_below_annotations(again)
    assert sum(map(len, bulk)) > 490  # the first of a group or two are nodes
    table = again.read().detections
    rows = {own_id: row for row, own_id in enumerate(table.ids)}
    for one in groups:
        found = [rows[i] for i in one.ids]
        assert all(shapely.equals_exact(table.geometries[found], one.nuclei.polygons()))
        np.testing.assert_allclose(table.centroids[found], one.nuclei.centroids(), atol=1e-3)
        for name in ("Area µm^2", "a", "b"):
            expected = one.nuclei.measurements.get(name, np.full(len(found), np.nan))
            np.testing.assert_array_equal(table.measurements[name][found], expected)


def rows_of(file, group):
    rows = {own_id: row for row, own_id in enumerate(file.read().detections.ids)}
    return [rows[own_id] for own_id in group.ids]


def test_edits_of_edits_round_trip_byte_for_byte():
    before = load()
    original = saved(before)
    before.add(Edit(add=[group(50)]))
    middle = DataFile.parse(saved(before), "middle")
    one = saved(middle)
    second = group(40, 2, start=700)
    middle.add(Edit(add=[second]))
    end = DataFile.parse(saved(middle), "end")
    end.remove(rows_of(end, second))
    assert saved(end) == one
    end.remove(rows_of(end, group(50)))
    assert saved(end) == original


def changed(group, **columns):
    return replace(group, nuclei=replace(group.nuclei, **columns))


def moved(group):
    vertices = group.nuclei.vertices.copy()
    vertices[7, 1] = np.nextafter(vertices[7, 1], np.float32(0))
    return changed(group, vertices=vertices)


def other_value(group):
    return changed(group, measurements={"Area µm^2": group.nuclei.measurements["Area µm^2"] + 1})


SQUARE = NewAnnotation(shapely.box(0, 0, 9, 9), uuid.UUID(int=7), "square", PathClass("Tumor"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"add": [moved(group(30)), group(30, 1, start=90)]}, "another outline"),
        (
            {"add": [other_value(group(30)), group(30, 1, start=90)]},
            "Area .*another value",
        ),
        ({"add": [group(30, names=("b",)), group(30, 1, start=90)]}, "other measurements"),
        ({"add": [group(30), group(30, 2, start=90)]}, r"missing: \d+ object"),
        ({"add": [group(30), group(31, 1, start=90)]}, r"missing: \d+ object"),
        ({"add": [group(30, start=1), group(30, 1, start=90)]}, "missing, or in another place"),
        ({"add": [replace(group(30), path_class=None), group(30, 1, start=90)]}, "another class"),
        ({"annotations": [replace(SQUARE, name="circle")]}, "annotation .*other values"),
        ({"annotations": [replace(SQUARE, locked=True)]}, "annotation .*other values"),
        ({"annotations": [SQUARE, SQUARE]}, "annotation .*another place"),
    ],
)
def test_what_reads_back_must_be_what_was_added(wrong, message):
    edit = Edit(add=[group(30), group(30, 1, start=90)], annotations=[SQUARE])
    data_file = load()
    original = saved(data_file)
    additions = data_file.add(edit)
    data = saved(data_file)
    good = DataFile.parse(data, "file")
    good.withdraw(additions)
    assert saved(good) == original
    edit = replace(edit, **wrong)
    counts = {}
    for index, one in enumerate(edit.add):
        counts.setdefault(one.parent, {})[index] = len(one.ids)
    other = Additions(edit, counts, [])
    with pytest.raises(FormatError, match=rf"file: .*{message}"):
        DataFile.parse(data, "file").withdraw(other)


def test_names_and_classes_are_shared_between_groups():
    """A closed list's names are stored once, however many detections have them."""
    data_file = load()
    data_file.add(Edit(add=[group(10, 0, ("Only here",)), group(10, 1, ("Only here",), 100)]))
    data = saved(data_file)
    assert data.count(b"Only here") == 1
    assert data.count(b"Nucleus\x70") == saved(load()).count(b"Nucleus\x70")  # their PathClass


def test_backend_keeps_the_protocol():
    from qpnuclei.qupath.native import open_project

    project: Project = open_project(SAMPLES / "0.5.1" / "project")
    members = {"path", "backend", "version", "classes", "images"}
    assert members <= set(dir(project))


@pytest.mark.parametrize(
    ("count", "loaded", "bulk"), [(400, False, False), (400, True, True), (700, False, True)]
)
def test_hundreds_are_parsed_and_more_are_packed(count, loaded, bulk, monkeypatch):
    # To load compiled loops takes longer than to parse a few; once they are there, it does not.
    monkeypatch.setattr(data_file_module, "_FEW", 500)
    monkeypatch.setattr(data_file_module, "loops_are_loaded", lambda: loaded)
    data_file = load()
    new = group(count)
    data_file.add(Edit(add=[new]))
    again = DataFile.parse(saved(data_file), "again")
    packed = packed_below_annotations(again)
    assert bool(packed) == bulk
    assert set(new.ids) <= set(again.read().detections.ids)
