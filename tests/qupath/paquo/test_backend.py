"""Details of the paquo backend; what both backends share is in test_parity."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from qpnuclei.errors import SaveError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.model import DetectionGroup, Edit, NewAnnotation, PathClass
from qpnuclei.qupath.paquo import image_entry, jvm
from qpnuclei.qupath.paquo.backend import open_project
from qpnuclei.qupath.paquo.editing import apply_edit
from qpnuclei.qupath.paquo.objects import stored_ids
from qpnuclei.qupath.project import choose_backend
from qpnuclei.qupath.qpdata import java_classes, java_fields, java_nodes, java_parser
from qpnuclei.qupath.qpdata.new_detections import Additions
from tests.ids import nucleus_id
from tests.qupath.samples import SAMPLES, contents, copy_project


def test_uuids_in_files_of_all_versions() -> None:
    # Entry 2 holds a root, an annotation, 50 detections and 6 TMA cores, in files of QuPath 0.4
    # and newer each with a UUID. Those of 0.2 and 0.3 have none.
    numbers = {
        folder.name: len(stored_ids(folder / "project" / "data" / "2" / "data.qpdata"))
        for folder in SAMPLES.iterdir()
    }
    assert {version for version, n in numbers.items() if n == 58} == {
        "0.4.4", "0.5.1", "0.6.0", "0.7.0",
    }  # fmt: skip
    assert {n for version, n in numbers.items() if version < "0.4"} == {0}


@pytest.fixture
def qupath() -> None:
    if choose_backend() != "paquo":
        pytest.skip("no QuPath 0.4 or newer found: set PAQUO_QUPATH_DIR")
    jvm.start()


def roi_by_qupath(geometry: shapely.Polygon, plane: jvm.JavaObject) -> jvm.JavaObject:
    import jpype

    if not geometry.interiors:
        x, y = (jpype.JArray.of(np.array(axis[:-1])) for axis in geometry.exterior.xy)
        return jvm.java_class("qupath.lib.roi.ROIs").createPolygonROI(x, y, plane)
    tools = jvm.java_class("qupath.lib.roi.GeometryTools")
    reader = jvm.java_class("org.locationtech.jts.io.WKBReader")(tools.getDefaultFactory())
    return tools.geometryToROI(reader.read(shapely.to_wkb(geometry)), plane)


def made_by_qupath(made: jvm.JavaObject, own_id: uuid.UUID) -> jvm.JavaObject:
    made.setID(jvm.java_class("java.util.UUID").fromString(str(own_id)))
    return made


UNMODIFIABLE = (java_classes.UNMODIFIABLE_LIST, "java.util.CollSer")


def saved(objects: list[jvm.JavaObject]) -> Any:
    """What QuPath saves of objects, but for which of them share equal parts, and where rings begin.

    QuPath 0.6 and newer turn outlines with holes when they read them, and use another class of
    lists that cannot be changed than they read.
    """

    def unfold(node: Any) -> Any:
        if isinstance(node, java_nodes.JavaObject) and node.class_name in UNMODIFIABLE:
            return [unfold(item) for item in java_fields.list_items(node)]
        if isinstance(node, java_nodes.JavaObject):
            parts = [(p.primitives, p.references, p.contents or []) for p in node.parts]
            return node.class_name, [
                (values, *([unfold(item) for item in items] for items in rest))
                for values, *rest in parts
            ]
        if isinstance(node, java_nodes.JavaArray) and node.desc.name == "[B":
            return shapely.normalize(shapely.from_wkb(node.data)).wkt
        if isinstance(node, java_nodes.JavaArray):
            return node.desc.name, node.data, [unfold(item) for item in node.items or ()]
        return getattr(node, "data", node)

    buffer = jvm.java_class("java.io.ByteArrayOutputStream")()
    stream = jvm.java_class("java.io.ObjectOutputStream")(buffer)
    stream.writeObject(jvm.java_class("java.util.ArrayList")(objects))
    stream.close()
    return unfold(java_parser.parse(bytes(buffer.toByteArray()), "saved").items[0])


@pytest.mark.qupath
@pytest.mark.usefixtures("qupath")
def test_new_objects_are_as_qupath_makes_them() -> None:
    path_objects = jvm.java_class("qupath.lib.objects.PathObjects")
    path_class = jvm.java_class("qupath.lib.objects.classes.PathClass")
    plane = jvm.java_class("qupath.lib.regions.ImagePlane").getPlane(2, 1)
    known = path_class.fromString("Known: Part", jvm.box(-123))
    ring = shapely.Polygon(shapely.box(0, 0, 9, 9).exterior, [shapely.box(3, 3, 6, 6).exterior])
    shapes = [shapely.box(0.5, 0, 9, 4), shapely.Polygon([(1, 1), (5, 3.25), (3, 4)]), ring]
    columns = {"Area µm^2": [34.0, 7.5, 72.0], "Odd": [np.nan, 1 / 3, -2.0]}
    edit = Edit(
        annotations=[
            NewAnnotation(shapes[0], uuid.UUID(int=7), "Gewebe", None, locked=True, z=2, t=1),
            NewAnnotation(ring, uuid.UUID(int=8), None, PathClass("New", -99), z=2, t=1),
        ],
        add=[
            DetectionGroup(
                0,
                NucleiTable.from_polygons(shapes, columns),
                [nucleus_id(b"%10d" % number) for number in range(3)],
                PathClass("Known: Part", -1),
            )
        ],
    )
    hierarchy = jvm.java_class("qupath.lib.objects.hierarchy.PathObjectHierarchy")()
    apply_edit(*Additions.of(edit), hierarchy)
    annotations = list(hierarchy.getRootObject().getChildObjects())
    detections = list(annotations[0].getChildObjects())
    assert hierarchy.nObjects() == 5

    measurement_lists = jvm.java_class("qupath.lib.measurements.MeasurementListFactory")
    kind = jvm.java_class("qupath.lib.measurements.MeasurementList$MeasurementListType").FLOAT
    expected = []
    for row, (shape, own_id) in enumerate(zip(shapes, edit.add[0].ids, strict=True)):
        measurements = measurement_lists.createMeasurementList(2, kind)
        for name, column in columns.items():
            measurements.put(name, float(column[row]))
        measurements.close()
        made = path_objects.createDetectionObject(roi_by_qupath(shape, plane), known, measurements)
        expected.append(made_by_qupath(made, own_id))
    assert saved(detections) == saved(expected)
    identity = jvm.java_class("java.lang.System").identityHashCode
    assert {identity(detection.getPathClass()) for detection in detections} == {identity(known)}
    assert known.getColor() == -123  # a class that QuPath has keeps its colour

    annotations[0].clearChildObjects()
    for new, own in zip(edit.annotations, annotations, strict=True):
        new_class = path_class.fromString("New") if new.path_class else None
        made = path_objects.createAnnotationObject(roi_by_qupath(new.geometry, plane), new_class)
        made.setName(new.name)
        made.setLocked(new.locked)
        assert saved([own]) == saved([made_by_qupath(made, new.id)])
    assert annotations[1].getPathClass().getColor() == -99


def reclassify(hierarchy: jvm.JavaObject) -> None:
    """Change one of the new detections."""
    other = jvm.java_class("qupath.lib.objects.classes.PathClass").fromString("Other")
    list(hierarchy.getRootObject().getChildObjects())[-1].setPathClass(other)


def lose_an_annotation(hierarchy: jvm.JavaObject) -> None:
    hierarchy.removeObject(next(iter(hierarchy.getAnnotationObjects())), True)


@pytest.mark.qupath
@pytest.mark.usefixtures("qupath")
@pytest.mark.parametrize(
    ("spoil", "message"), [(reclassify, "another class"), (lose_an_annotation, "objects instead")]
)
def test_what_is_saved_otherwise_than_meant_is_put_back(
    spoil: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def apply_and_spoil(additions: Any, new_ids: Any, hierarchy: jvm.JavaObject) -> Any:
        before = apply_edit(additions, new_ids, hierarchy)
        spoil(hierarchy)
        return before

    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    nuclei = NucleiTable.from_polygons([shapely.box(i, 0, i + 4, 4) for i in range(3)])
    ids = [nucleus_id(b"%10d" % number) for number in range(3)]
    edit = Edit(add=[DetectionGroup(None, nuclei, ids, PathClass("Nucleus", -1))])
    found = image.read()
    before = contents(image.data_file.parent)
    monkeypatch.setattr(image_entry, "apply_edit", apply_and_spoil)
    with pytest.raises(SaveError, match=message):
        image.write(edit, found.fingerprint)
    assert contents(image.data_file.parent) == before
