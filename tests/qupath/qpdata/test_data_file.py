import uuid
from dataclasses import replace

import numpy as np
import pytest
import shapely

from qpnuclei.errors import FormatError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.model import DetectionGroup, Edit, NewAnnotation, PathClass, Project
from qpnuclei.qupath.qpdata import data_file as data_file_module
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata import java_nodes, java_parser, java_writer
from qpnuclei.qupath.qpdata.annotations import id_metadata
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.new_detections import Additions
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import split_children
from qpnuclei.qupath.qpdata.rois import Plane, make_roi
from qpnuclei.qupath.qpdata.stains import format_stains, parse_stains
from qpnuclei.slides.stains import DEFAULT_HE
from tests.ids import nucleus_id
from tests.paths import SAMPLES
from tests.qupath.samples import dump

FILE = SAMPLES / "0.5.1" / "project" / "data" / "1" / "data.qpdata"
GRID = SAMPLES / "0.5.1" / "project" / "data" / "2" / "data.qpdata"


def load(path=FILE):
    return DataFile.parse(path.read_bytes(), "file")


def saved(data_file):
    buffer = bytearray()
    data_file.write(buffer.extend)
    return bytes(buffer)


def group(n, parent=0, names=("Area µm^2",), start=0):
    rng = np.random.default_rng(start)
    polygons = [
        shapely.Point(rng.uniform(0, 400, 2)).buffer(5, quad_segs=int(rng.integers(1, 6)))
        for _ in range(n)
    ]
    ids = [nucleus_id((start + i).to_bytes(4, "big") * 3) for i in range(n)]
    columns = {name: rng.random(n).astype(np.float32) for name in names}
    table = NucleiTable.from_polygons(polygons, columns)
    return DetectionGroup(parent, table, ids, PathClass("Nucleus", -7146))


def test_packed_detections_read_like_single_ones():
    """What QuPath wrote packed (48 of 50 detections) must equal the node-by-node dump."""
    objects = load(GRID).read()
    flat = [o for o in dump(GRID.read_bytes())["root"]["children"] if o["cls"].endswith("onObject")]
    detections = [o for o in flat if o["cls"] == "PathDetectionObject"]
    table = objects.detections
    assert [str(i) for i in table.ids] == [o["id"] for o in detections]
    assert list(table.class_names) == [o["class"][0] for o in detections]
    for name, values in table.measurements.items():
        expected = [dict(o["meas"]).get(name, np.nan) for o in detections]
        np.testing.assert_array_equal(values, np.array(expected, float))
    for geometry, item in zip(table.geometries, detections, strict=True):
        points = item["roi"][4]
        assert geometry.equals_exact(shapely.Polygon(points))


def test_many_are_packed_and_read_back():
    data_file = load()
    groups = [group(300), group(200, 3, ("a", "b"), 1000), group(100, None, (), 5000)]
    data_file.add(Edit(add=groups))
    again = DataFile.parse(saved(data_file), "again")
    bulk = [c for v in again._annotations() for c in v.children if isinstance(c, Packed)]
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


def test_edits_of_edits_round_trip_byte_for_byte():
    before = load()
    original = saved(before)
    before.add(Edit(add=[group(50)]))
    middle = DataFile.parse(saved(before), "middle")
    one = saved(middle)
    second = group(40, 2, start=700)
    middle.add(Edit(add=[second]))
    end = DataFile.parse(saved(middle), "end")
    end.remove(frozenset(second.ids))
    assert saved(end) == one
    end.remove(frozenset(group(50).ids))
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
        ({"add": [group(30), group(30, 2, start=90)]}, "objects are missing"),
        ({"add": [group(30), group(31, 1, start=90)]}, "objects are missing"),
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


def test_columns_are_made_when_they_are_asked_for():
    data_file = load()
    data_file.add(Edit(add=[group(50)]))
    detections = DataFile.parse(saved(data_file), "file").read().detections
    columns = {"ids", "kinds", "class_names", "geometries", "centroids", "parents", "measurements"}
    assert len(detections) == 50 + len(load().read().detections)
    assert not columns & vars(detections).keys()
    assert len(detections.ids) == len(detections)
    assert columns & vars(detections).keys() == {"ids"}


def test_an_error_in_an_object_names_its_byte():
    """One of many packed detections has one y less than x."""
    data_file = load()
    data_file.add(Edit(add=[group(50)]))
    items = java_parser.parse(saved(data_file), "file").items
    wanted = str(group(50).ids[30]).encode()

    def detections(stream):
        return [
            node
            for node in java_parser.parse(stream, "file").nodes
            if isinstance(node, java_nodes.JavaObject) and node.class_name == jc.DETECTION
        ]

    data = java_writer.dump(items)
    index, node = next(
        (i, node) for i, node in enumerate(detections(data)) if wanted in java_writer.dump([node])
    )
    start = data.index(wanted)
    points = len(group(50).nuclei.polygons()[30].exterior.coords) - 1
    y_length = points.to_bytes(4, "big")
    at = data.index(y_length, data.index(y_length, start) + 4 * points)
    shorter = data[:at] + (points - 1).to_bytes(4, "big") + data[at + 8 :]
    broken = DataFile.parse(shorter, "file", lambda: "try again").read().detections
    assert len(broken.ids) == len(broken)
    with pytest.raises(FormatError, match=rf"^file: byte {node.offset}: .*x and y have") as error:
        broken.geometries  # noqa: B018
    assert error.value.hint == "try again"
    assert detections(shorter)[index].offset == node.offset


@pytest.mark.parametrize("at", [0, 1, 2, 30, 49, 50])
def test_children_are_split_anywhere(at):
    data_file = load()
    data_file.add(Edit(add=[group(50)]))
    children = DataFile.parse(saved(data_file), "file")._annotations()[0].children
    first, rest = split_children(children, at)
    sizes = [[len(c) if isinstance(c, Packed) else 1 for c in part] for part in (first, rest)]
    assert [sum(s) for s in sizes] == [at, sum(map(sum, sizes)) - at]
    assert java_writer.dump([*first, *rest]) == java_writer.dump(children)
    with pytest.raises(FormatError, match="1 objects are missing"):
        split_children(children, sum(map(sum, sizes)) + 1)


def test_names_and_classes_are_shared_between_groups():
    """A closed list's names are stored once, however many detections have them."""
    data_file = load()
    data_file.add(Edit(add=[group(10, 0, ("Only here",)), group(10, 1, ("Only here",), 100)]))
    data = saved(data_file)
    assert data.count(b"Only here") == 1
    assert data.count(b"Nucleus\x70") == saved(load()).count(b"Nucleus\x70")  # their PathClass


def test_new_file_is_read_by_the_same_rules():
    stains = replace(DEFAULT_HE, background=(255.0, 254.0, 253.0))
    builder = {"builderType": "uri"}
    new = DataFile.new(
        builder, "BRIGHTFIELD_H_E", stains, qupath_version="0.5.1", entry_property="p::1"
    )
    again = DataFile.parse(saved(new), "again")
    assert again.image_type == "BRIGHTFIELD_H_E"
    assert again.stains == stains
    assert DataFile.parse_header(saved(new), "again").stains == stains
    assert again.read().summary()["nObjects"] == 1


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[1]", '{"Name" : 1}', '{"Name" : "x", "Stain 1" : "H", "Values 1" : "1 0"}'],
)
def test_broken_stains(text):
    with pytest.raises(FormatError, match="stains"):
        parse_stains(text)


def test_stains_are_written_as_qupath_writes_them():
    text = dump((SAMPLES / "0.5.1/project/data/1/data.qpdata").read_bytes())["stains"]
    assert format_stains(parse_stains(text)) == text


def test_no_cycle_in_the_hierarchy():
    data_file = load()
    view = data_file._annotations()[0]
    view.set_children([view.node])
    with pytest.raises(FormatError, match="its own ancestor"):
        data_file.read()


def test_wrong_number_of_children():
    data_file = load()
    contents = jf.contents(data_file._root())
    index = next(i for i, c in enumerate(contents) if isinstance(c, java_nodes.BlockData))
    contents[index] = java_nodes.BlockData(b"\x7f\xff\xff\xff")
    with pytest.raises(FormatError, match=r"file: .*the number of its children is wrong"):
        data_file.read()


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
    packed = [c for v in again._annotations() for c in v.children if isinstance(c, Packed)]
    assert bool(packed) == bulk
    assert set(new.ids) <= set(again.read().detections.ids)


@pytest.mark.parametrize("shared", [True, False])
def test_locks_of_packed_detections(shared):
    """QuPath refers to one TRUE and one FALSE; another writer may spell each out."""
    catalog = Catalog()
    locked = [i % 3 == 0 for i in range(40)]
    nodes = []
    for i, lock in enumerate(locked):
        node = catalog.path_object(
            jc.DETECTION,
            metadata=id_metadata(catalog, nucleus_id(bytes([i]) * 10)),
            is_locked=lock,
            roi=make_roi(catalog, shapely.box(i, 0, i + 1, 1), Plane()),
        )
        if not shared:
            at = next(
                k for k, item in enumerate(jf.contents(node))
                if getattr(item, "class_name", None) == jc.BOOLEAN
            )  # fmt: skip
            jf.contents(node)[at] = catalog.make(jc.BOOLEAN, {"value": lock})
        nodes.append(node)
    data = saved(DataFile.of_objects(catalog, nodes))
    # The end mark, which objects alone do not need.
    items = [*java_parser.parse(data, "file").items, java_nodes.JavaString(b"EOF")]
    buffer = bytearray()
    java_writer.write(items, buffer.extend)
    detections = DataFile.parse(bytes(buffer), "file").read().detections
    assert detections.locked.tolist() == locked
    assert load().read().detections.locked.tolist() == [False] * 7
