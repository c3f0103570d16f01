"""Objects of a project to GeoJSON and back: what is exported is imported as it was."""

from __future__ import annotations

import json
import math
import re
import shutil
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import shapely.geometry

from qpnuclei.errors import FormatError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.geojson import importing
from qpnuclei.qupath.geojson.exporting import export_image
from qpnuclei.qupath.geojson.file_names import image_of_file
from qpnuclei.qupath.geojson.importing import OtherImage, import_file
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.problems import Problems
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.geojson.writing import write_objects
from qpnuclei.qupath.model import DetectionGroup, Edit, ImageEntry, ImageObjects, PathClass, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.nucleus_files import write_nuclei_of
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.java_nodes import JavaString
from qpnuclei.qupath.qpdata.path_objects import PathObject, walk
from qpnuclei.qupath.regions import Region, rows_inside
from tests.ids import nucleus_id
from tests.paths import FAULTS, SAMPLES

VERSIONS = sorted(path.name for path in SAMPLES.iterdir())


def copy(version: str, folder: Path) -> Project:
    return open_project(Path(shutil.copytree(SAMPLES / version, folder)) / "project")


def annotations(objects: ImageObjects) -> list[tuple[Any, ...]]:
    return [(a.id, a.name, a.class_name, a.locked, a.z, a.t) for a in objects.annotations]


def assert_same_place(found: shapely.Geometry, expected: shapely.Geometry) -> None:
    """Compare outlines; files keep them to 0.01 px, and QuPath to float32."""
    assert found.geom_type == expected.geom_type
    assert shapely.equals_exact(found, expected, 0.0101)


@pytest.mark.parametrize("version", VERSIONS)
def test_exported_and_imported_objects_are_the_same(version: str, tmp_path: Path) -> None:
    source, empty = copy(version, tmp_path / "source"), copy(version, tmp_path / "empty")
    for image, target in zip(source.images, empty.images, strict=True):
        exported = export_image(source, image, tmp_path / "geojson")
        (Path(empty.path).parent / "data" / target.id / "data.qpdata").unlink()
        imported = import_file(empty, image_of_file(empty, exported.path), exported.path)
        before, after = image.read(), target.read()
        assert (exported.annotations, exported.detections) == (
            imported.annotations,
            imported.detections,
        )
        assert not imported.left_out
        assert len(after.annotations) == len(before.annotations) == exported.annotations
        if version >= "0.4":  # before, objects had no UUIDs
            assert annotations(after) == annotations(before)
        else:
            assert [a[1:] for a in annotations(after)] == [a[1:] for a in annotations(before)]
        for a, b in zip(after.annotations, before.annotations, strict=True):
            assert_same_place(a.geometry, b.geometry)
        # They are imported by class and position, not in the order of the file.
        order = [
            sorted(range(len(o.detections)), key=lambda i, d=o.detections: tuple(d.centroids[i]))
            for o in (after, before)
        ]
        assert len(order[0]) == len(order[1]) == exported.detections
        for i, j in zip(*order, strict=True):
            assert_same_place(after.detections.geometries[i], before.detections.geometries[j])
            assert after.detections.class_names[i] == before.detections.class_names[j]
            if version >= "0.4":
                assert after.detections.ids[i] == before.detections.ids[j]
        nothing = np.full(len(after.detections), np.nan)  # what is not a number is not written
        for name, column in before.detections.measurements.items():
            found = after.detections.measurements.get(name, nothing)
            np.testing.assert_allclose(found[order[0]], column[order[1]], rtol=1e-6)
        # A tile and a cell without a nucleus are imported as outlines; a cell with one is a cell.
        kinds = [
            [o.detections.kinds[i] for i in rows]
            for o, rows in zip((after, before), order, strict=True)
        ]
        assert imported.outlines == sum(a != b for a, b in zip(*kinds, strict=True))
        for i, j in zip(*order, strict=True):
            if after.detections.kinds[i] == "cell":
                found, expected = (
                    o.detections.nucleus_geometries[k] for o, k in ((after, i), (before, j))
                )
                assert_same_place(found, expected)
        assert kinds[0].count("cell") == (1 if image.name == "he small.png" else 0)


def test_importing_again_adds_nothing(tmp_path: Path) -> None:
    project = copy("0.5.1", tmp_path / "p")
    image = project.images[0]
    before = image.read()
    exported = export_image(project, image, tmp_path)
    imported = import_file(project, image, exported.path)
    assert imported.already_there == 16
    assert (imported.annotations, imported.detections) == (0, 0)
    assert image.read().fingerprint == before.fingerprint


def square(x: float, y: float, size: float = 4) -> shapely.Polygon:
    return shapely.box(x, y, x + size, y + size)


def imported(project: Project, tmp_path: Path, *objects: GeoJsonObject, **options: Any) -> Any:
    path = tmp_path / "objects.geojson"
    write_objects(path, objects)
    return import_file(project, project.images[0], path, **options)


def test_detections_go_into_the_smallest_annotation_that_holds_them(
    project: Project, tmp_path: Path
) -> None:
    tumor, our_id = PathClass("Tumor", -1), nucleus_id(b"0123456789")
    done = imported(
        project,
        tmp_path,
        # The file's own annotation comes after the detection in it, and is inside of another.
        GeoJsonObject("detection", square(260, 110), our_id, path_class=tumor),
        GeoJsonObject("annotation", square(255, 105, 20), name="mine", z=0),
        GeoJsonObject("annotation", square(250, 100, 80), name="larger"),
        GeoJsonObject("detection", square(20, 30), measurements={"Area": 16.5, "B": 1}),  # rect
        GeoJsonObject("cell", square(500, 370)),  # in none
    )
    assert (done.annotations, done.detections, done.outlines) == (2, 3, 1)
    objects = project.images[0].read()
    names = [a.name for a in objects.annotations]
    assert names[-2:] == ["mine", "larger"]
    table = objects.detections
    by_place = {tuple(c): i for i, c in enumerate(table.centroids.tolist())}
    rows = [by_place[c] for c in [(262.0, 112.0), (22.0, 32.0), (502.0, 372.0)]]
    parents = table.parents[rows].tolist()
    assert [None if p < 0 else names[p] for p in parents] == ["mine", "rect", None]
    assert [table.class_names[row] for row in rows] == ["Tumor", None, None]
    assert [table.kinds[row] for row in rows] == ["detection"] * 3
    assert table.ids[rows[0]] == our_id
    assert is_ours(our_id)
    assert table.measurements["Area"][rows].tolist()[1] == 16.5
    # The class is the project's own, whatever colour the file gives it.
    assert [c for c in project.classes if c.name == "Tumor"] == [PathClass("Tumor", -3670016)]


def test_a_uuid_of_another_object_is_not_taken_over(project: Project, tmp_path: Path) -> None:
    before = project.images[0].read()
    taken = before.annotations[0].id
    twice = uuid.uuid4()
    done = imported(
        project,
        tmp_path,
        GeoJsonObject("annotation", square(1, 1), taken),  # same UUID, elsewhere
        GeoJsonObject("annotation", square(9, 1), twice),
        GeoJsonObject("annotation", square(19, 1), twice),
        GeoJsonObject("detection", square(29, 1), None),
    )
    assert done.annotations == 3
    after = project.images[0].read()
    new = [a.id for a in after.annotations[-3:]]
    assert new[1] == twice
    assert len({*new, taken}) == 4
    assert after.annotations[:-3] == before.annotations


def test_a_nucleus_with_a_uuid_in_use_stays_ours_and_is_imported_once(
    project: Project, tmp_path: Path
) -> None:
    own_id, foreign = nucleus_id(b"0123456789"), uuid.uuid4()
    first = [GeoJsonObject("detection", square(1, 1), i) for i in (own_id, foreign)]
    assert imported(project, tmp_path, *first).new_ids == 0
    others = [
        GeoJsonObject("detection", square(50, 1), own_id),
        GeoJsonObject("detection", square(60, 1), foreign),
        GeoJsonObject("detection", square(70, 1)),
    ]
    done = imported(project, tmp_path, *others)
    assert (done.detections, done.new_ids) == (3, 2)
    detections = project.images[0].read().detections
    ours = {
        x: is_ours(own)
        for (x, y), own in zip(detections.centroids.tolist(), detections.ids, strict=True)
        if y == 3
    }
    assert [ours[x] for x in (52, 62, 72)] == [True, False, False]
    again = imported(project, tmp_path, *others)
    assert (again.detections, again.already_there) == (0, 3)


def test_an_object_that_the_file_repeats_is_imported_once(project: Project, tmp_path: Path) -> None:
    named = uuid.uuid4()
    done = imported(
        project,
        tmp_path,
        GeoJsonObject("detection", square(1, 1), named),
        GeoJsonObject("detection", square(1, 1), named),
        GeoJsonObject("detection", square(1, 1)),
        GeoJsonObject("cell", square(0, 0, 8), nucleus=square(1, 1)),
        GeoJsonObject("annotation", square(1, 1)),
        GeoJsonObject("annotation", square(1, 1)),
        GeoJsonObject("annotation", square(1, 1), name="another"),
        GeoJsonObject("detection", square(1, 1), z=1),
        # Two UUIDs are two objects, as in the file that QuPath writes of such a project.
        GeoJsonObject("detection", square(1, 1), uuid.uuid4()),
    )
    assert (done.annotations, done.detections, done.already_there) == (2, 3, 4)
    assert done.left_out == done.losses == []


def test_a_class_for_everything(project: Project, tmp_path: Path) -> None:
    imported(
        project,
        tmp_path,
        GeoJsonObject("annotation", square(1, 1)),
        GeoJsonObject("detection", square(2, 2, 1), path_class=PathClass("Tumor", -1)),
        class_name=" Necrosis :  old",
    )
    objects = project.images[0].read()
    assert objects.annotations[-1].class_name == "Necrosis: old"
    assert "Necrosis: old" in objects.detections.class_names
    assert project.classes[-1].name == "Necrosis: old"
    with pytest.raises(UsageError, match="not a class name"):
        imported(project, tmp_path, class_name=" : ")


def test_planes(project: Project, tmp_path: Path) -> None:
    done = imported(
        project,
        tmp_path,
        GeoJsonObject("annotation", square(300, 350, 20), name="deep", z=2, t=1),
        GeoJsonObject("detection", square(305, 355), z=2, t=1),
        GeoJsonObject("detection", square(315, 355)),
        GeoJsonObject("detection", square(315, 355), z=1),
    )
    objects = project.images[0].read()
    deep = objects.annotations[-1]
    assert (deep.name, deep.z, deep.t) == ("deep", 2, 1)
    found = objects.detections
    places = np.column_stack([found.parents, found.planes])[-3:].tolist()
    assert sorted(places) == [[-1, 0, 0], [-1, 1, 0], [deep.handle, 2, 1]]
    assert (done.detections, done.left_out) == (3, [])
    # They keep their planes on the way out, too.
    path = export_image(project, project.images[0], tmp_path / "again").path
    planes = [(o.z, o.t) for o in read_objects(path) if o.kind == "detection"]
    assert sorted(planes)[-2:] == [(1, 0), (2, 1)]


def test_objects_that_cannot_be_imported_are_named(project: Project, tmp_path: Path) -> None:
    before = project.images[0].read()
    far = shapely.transform(square(0, 0), lambda xy: xy + 3e9)
    line = shapely.LineString([(0, 0), (9, 9)])
    done = imported(
        project,
        tmp_path,
        GeoJsonObject("tmaCore", square(1, 1), name="A-1"),
        GeoJsonObject("root", square(0, 0, 512)),  # stands for the image itself
        GeoJsonObject("detection", line, path_class=PathClass("Nucleus", -1)),
        GeoJsonObject("annotation", far),
        GeoJsonObject("annotation", shapely.MultiLineString([[(0, 0), (1, 1)], [(2, 2), (3, 3)]])),
        # As float32, it would be a line.
        GeoJsonObject("detection", shapely.transform(square(0, 0), lambda xy: xy + 1e9)),
    )
    assert [text.split(":")[0] for text in done.left_out] == [
        "object 1, tmaCore A-1",
        "object 2, detection Nucleus",
        "object 3, annotation unclassified",
        "object 4, annotation unclassified",
        "object 5, detection unclassified",
    ]
    assert project.images[0].read().fingerprint == before.fingerprint


@pytest.mark.parametrize("nucleus", [square(0, 0, 1e308), shapely.LineString([(1, 1), (2, 2)])])
def test_a_cell_whose_nucleus_cannot_be_imported_is_its_outline_alone(
    project: Project, tmp_path: Path, nucleus: shapely.Geometry
) -> None:
    before = len(project.images[0].read().detections)
    done = imported(project, tmp_path, GeoJsonObject("cell", square(1, 1), nucleus=nucleus))
    (loss,) = done.losses
    assert loss == "1 cell or tile: only the outlines were imported"
    after = project.images[0].read().detections
    assert len(after) == before + 1
    assert any(shapely.equals(outline, square(1, 1)) for outline in after.geometries)


def test_hostile_names_are_imported_harmlessly(project: Project, tmp_path: Path) -> None:
    imported(
        project,
        tmp_path,
        GeoJsonObject("annotation", square(1, 1), path_class=PathClass("../a\nb:c", None)),
        GeoJsonObject("annotation", square(2, 1), path_class=PathClass(" : ", None)),
    )
    first, second = project.images[0].read().annotations[-2:]
    assert (first.class_name, second.class_name) == ("../a b: c", None)


def test_measurements_of_annotations_are_kept_as_double_and_those_of_detections_as_float(
    project: Project, tmp_path: Path
) -> None:
    exact = {"p": 1e-50, "q": 1e-40, "large": 1e300, "third": 1 / 3}
    done = imported(
        project,
        tmp_path,
        GeoJsonObject("annotation", square(1, 1), measurements=exact),
        GeoJsonObject("detection", square(5, 5), measurements={"p": 1e-50, "r": 0.0}),
        GeoJsonObject("detection", square(9, 5), measurements={"p": 0.5, "r": -1e300}),
    )
    objects = project.images[0].read()
    assert objects.annotations[-1].measurements == exact
    assert [objects.detections.measurements[name][-2:].tolist() for name in "pr"] == [
        [0.0, 0.5],
        [0.0, -math.inf],
    ]
    reason = "QuPath keeps those of detections as 32-bit numbers"
    assert done.losses == [
        f"measurement 'p' of 1 detection is too large or too small: {reason}",
        f"measurement 'r' of 1 detection is too large or too small: {reason}",
    ]


def test_a_broken_file_changes_nothing(project: Project, tmp_path: Path) -> None:
    before = project.images[0].read()
    path = tmp_path / "he small.geojson"
    write_objects(path, [GeoJsonObject("annotation", square(1, 1))] * 3)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(FormatError, match="feature 2"):
        import_file(project, project.images[0], path)
    assert project.images[0].read().fingerprint == before.fingerprint


def read_fault(project: Project, name: str) -> tuple[Any, ImageObjects]:
    """Import a file twice into an image without objects: what came in, and what is there."""
    image = project.images[0]
    (project.path.parent / "data" / "1" / "data.qpdata").unlink()
    done = import_file(project, image, FAULTS / name)
    there = image.read()
    again = import_file(project, image, FAULTS / name)
    assert (again.annotations, again.detections) == (0, 0)
    assert again.already_there == done.annotations + done.detections
    assert image.read().fingerprint == there.fingerprint
    assert len(there.annotations) == done.annotations
    assert len(there.detections) == done.detections
    return done, there


def test_a_root_object_is_the_image_and_its_children_are_imported(project: Project) -> None:
    done, there = read_fault(project, "a_root_child.geojson")
    assert (done.annotations, done.detections, done.left_out) == (1, 1, [])
    assert there.annotations[0].name == "good"


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("c_meas_null.geojson", "feature 1: .*'DAB' is None"),
        ("meas_nested.geojson", "feature 0: .*'Area' is {'mean': 1}"),
    ],
)
def test_an_invalid_measurement_is_left_out_alone(project: Project, name: str, odd: str) -> None:
    done, there = read_fault(project, name)
    (loss,) = done.losses
    assert re.match(odd, loss)
    assert (done.detections, done.left_out) == (1, [])
    measured = {name: column.tolist() for name, column in there.detections.measurements.items()}
    assert measured == ({"Area": [12.5]} if name.startswith("c") else {})


@pytest.mark.parametrize(
    ("name", "color"),
    [
        ("d_color_float.geojson", -3670016),  # 200, 0, 0
        ("e_rgb_unsigned.geojson", -3670016),  # the same as an unsigned number
        ("d2_color_over.geojson", None),
    ],
)
def test_colours_of_classes(project: Project, name: str, color: int | None) -> None:
    (found,) = read_objects(FAULTS / name, Problems())
    assert found.path_class == PathClass("Tumor", color)
    done, there = read_fault(project, name)
    assert there.annotations[0].class_name == "Tumor"
    odd = "feature 0: its class has an invalid colour [300, -1, 0]"
    assert done.losses == ([odd] if color is None else [])


def test_a_feature_without_a_shape_is_left_out_by_name(project: Project) -> None:
    done, there = read_fault(project, "g_empty_coords.geojson")
    assert done.left_out == ["feature 1: its Polygon is empty"]
    assert [a.name for a in there.annotations] == ["good"]


@pytest.mark.parametrize("name", ["l_latin1.geojson", "m_zip.geojson.zip"])
def test_text_that_is_not_utf8_and_a_zip(project: Project, name: str) -> None:
    done, there = read_fault(project, name)
    (annotation,) = there.annotations
    assert (annotation.name, annotation.class_name) == ("Pr\u00e4parat", "\u00dcbergang")
    assert ["not UTF-8" in loss for loss in done.losses] == [True] * name.startswith("l")


def test_annotations_keep_their_properties_and_losses_of_detections_are_listed(
    project: Project, tmp_path: Path
) -> None:
    done, there = read_fault(project, "n_metadata.geojson")
    lost = ("name", "own colour", "lock", "metadata")
    assert done.losses == [f"{what} of 1 detection" for what in lost]
    assert done.left_out == []
    exported = export_image(project, project.images[0], tmp_path)
    assert (exported.left_out, exported.losses) == ((), ())
    other = project.images[2]
    import_file(project, other, exported.path)
    for annotation in (there.annotations[0], other.read().annotations[-1]):
        assert annotation.name == "with notes"
        assert annotation.metadata == {
            "ANNOTATION_DESCRIPTION": "margin uncertain, see report", "case": "B-17",
        }  # fmt: skip
        assert annotation.color == -16711165  # 1, 2, 3
        assert annotation.measurements == {"score": 3.0}
        assert not annotation.locked


def test_outlines_of_every_kind_are_exported_and_imported(project: Project, tmp_path: Path) -> None:
    done, there = read_fault(project, "u_bowtie.geojson")
    assert [a.name for a in there.annotations] == ["bow", "spike", "zero area"]
    assert [a.area.area for a in there.annotations] == [5000, 10_000, 0]
    (triangle,) = there.detections.geometries
    assert (triangle.is_valid, triangle.area) == (True, 25)
    assert done.losses == [
        "object 2, detection bowdet: a detection is one polygon, so only its largest part "
        "was imported, 50% of its area",
        "name of 1 detection",
    ]
    assert done.left_out == ["object 5, detection unclassified: it encloses no area"]
    # Objects without area are in no file; all others come back, here and elsewhere.
    exported = export_image(project, project.images[0], tmp_path)
    (left_out,) = exported.left_out
    assert left_out.startswith("annotation zero area")
    assert (exported.annotations, exported.detections) == (2, 1)
    again = import_file(project, project.images[0], exported.path)
    assert (again.already_there, again.left_out) == (3, [])
    elsewhere = import_file(project, project.images[2], exported.path)
    assert (elsewhere.annotations, elsewhere.detections, elsewhere.left_out) == (2, 1, [])


def test_a_detection_of_two_parts_that_the_image_has_is_exported_and_imported(
    project: Project, tmp_path: Path
) -> None:
    """QuPath keeps a bow tie as it was drawn; what is exported of it is two triangles."""
    image = project.images[0]
    bow = shapely.Polygon([(200, 0), (210, 10), (210, 0), (200, 10)])
    edit = Edit(
        add=[DetectionGroup(None, NucleiTable.from_polygons([bow]), [uuid.UUID(int=5)], None)]
    )
    image.write(edit, image.read().fingerprint)
    exported = export_image(project, image, tmp_path)
    assert import_file(project, image, exported.path).already_there == 17
    (found,) = [o for o in read_objects(exported.path) if o.id == uuid.UUID(int=5)]
    assert (found.geometry.geom_type, found.geometry.area) == ("MultiPolygon", 50)
    elsewhere = import_file(project, project.images[2], exported.path)
    assert elsewhere.left_out == []
    assert any("50% of its area" in loss for loss in elsewhere.losses)


def test_properties_of_detections_that_no_file_keeps_are_reported(
    project: Project, tmp_path: Path
) -> None:
    image = project.images[0]
    data = image.data_path.read_bytes()
    data_file = DataFile.parse(data, "data")
    (view, *_) = [
        view
        for view, _ in walk(data_file._root())
        if isinstance(view, PathObject) and view.kind == "cell"
    ]
    contents = jf.contents(view.node)
    contents[contents.index(view.name)] = JavaString.of("a name")
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)
    exported = export_image(project, image, tmp_path)
    assert exported.losses == ("name of 1 detection of the image",)
    assert export_image(project, project.images[0], tmp_path, detections=False).losses == ()


def test_an_annotation_of_overlapping_parts_counts_the_same_after_export_and_import(
    project: Project, tmp_path: Path
) -> None:
    image, other = project.images[0], project.images[2]
    imported(
        project,
        tmp_path,
        GeoJsonObject(
            "annotation", shapely.MultiPolygon([square(50, 50, 40), square(60, 60, 40)]), name="two"
        ),
        GeoJsonObject("detection", square(72, 72), path_class=PathClass("Nucleus", None)),
    )
    exported = export_image(project, image, tmp_path / "out")
    again = import_file(project, image, exported.path)
    assert (again.annotations, again.detections) == (0, 0)
    import_file(project, other, exported.path)
    for entry in (image, other):
        objects = entry.read()
        (two,) = [a for a in objects.annotations if a.name == "two"]
        (nucleus,) = rows_inside([Region.of(two)], objects.detections.centroids)
        assert two.area.area == 2300
        assert [74, 74] in objects.detections.centroids[nucleus].tolist()


BOW_TIE = shapely.Polygon([(5, 5), (9, 9), (9, 5), (5, 9)])
HOLED = shapely.Polygon(square(5, 5, 20).exterior, [square(9, 9).exterior])
COLLINEAR = shapely.Polygon([(5, 5), (7, 5), (9, 5), (9, 9), (9, 9), (5, 9)])
LINE = shapely.LineString([(5, 5.125), (9, 9), (20, 3)])
FORMS = {
    "polygon": [
        square(5, 5),
        square(5, 5).reverse(),
        shapely.Polygon([(9, 9), (5, 9), (5, 5), (9, 5)]),
        COLLINEAR,  # QuPath drops vertices on straight edges
        shapely.MultiPolygon([square(5, 5)]),
        shapely.MultiPolygon([COLLINEAR]),
        shapely.GeometryCollection([square(5, 5)]),
        shapely.GeometryCollection([shapely.MultiPolygon([square(5, 5)])]),
    ],
    "hole": [HOLED, shapely.MultiPolygon([HOLED])],
    "bow tie": [BOW_TIE, shapely.make_valid(BOW_TIE)],
    "parts": [
        shapely.MultiPolygon([square(5, 5), square(50, 5)]),
        shapely.MultiPolygon([square(50, 5), COLLINEAR]),
    ],
    "overlapping parts": [
        shapely.MultiPolygon([square(5, 5), square(7, 7)]),
        square(5, 5).union(square(7, 7)),
    ],
    "no area": [shapely.Polygon([(5, 5), (9, 9), (5, 5)])],
    "line": [LINE, LINE.reverse(), shapely.MultiLineString([LINE])],
    "point": [
        shapely.Point(5.125, 7),
        shapely.MultiPoint([(5.125, 7)]),
        shapely.GeometryCollection([shapely.Point(5.125, 7)]),
    ],
    "points": [shapely.MultiPoint([(5, 7), (3, 3)]), shapely.MultiPoint([(3, 3), (5, 7)])],
}


def feature_of(kind: str, own_id: uuid.UUID | None, geometry: shapely.Geometry) -> dict[str, Any]:
    return {
        "type": "Feature",
        "geometry": shapely.geometry.mapping(geometry),
        "properties": {"objectType": kind},
        **({} if own_id is None else {"id": str(own_id)}),
    }


@pytest.mark.parametrize("own_id", [None, uuid.UUID(int=77)])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [*(("annotation", shape) for shape in FORMS), ("detection", "polygon"), ("detection", "hole")],
)
def test_an_object_is_imported_once_in_whatever_form(
    kind: str, shape: str, own_id: uuid.UUID | None, project: Project, tmp_path: Path
) -> None:
    def added(entry: ImageEntry, geometry: shapely.Geometry) -> tuple[int, int]:
        """Import the object as another program writes it; how many are new, and already there."""
        (tmp_path / "a.geojson").write_text(json.dumps(feature_of(kind, own_id, geometry)))
        done = import_file(project, entry, tmp_path / "a.geojson")
        assert done.left_out == []
        return done.annotations + done.detections, done.already_there

    forms = FORMS[shape]
    for entry, first, others in (
        (project.images[0], forms[0], forms[1:]),
        (project.images[2], forms[-1], forms[:-1]),
    ):
        assert added(entry, first) == (1, 0)
        assert [added(entry, form) for form in [first, *others]] == [(0, 1)] * len(forms)
        assert added(entry, shapely.transform(first, lambda xy: xy + np.array([1, 0]))) == (1, 0)


@pytest.mark.parametrize("is_last_first", [False, True])
@pytest.mark.parametrize("own_id", [None, uuid.UUID(int=77)])
@pytest.mark.parametrize(
    ("kind", "shape"),
    [*(("annotation", shape) for shape in FORMS), ("detection", "polygon"), ("detection", "hole")],
)
def test_forms_of_one_object_in_one_file(
    kind: str,
    shape: str,
    own_id: uuid.UUID | None,
    is_last_first: bool,
    project: Project,
    tmp_path: Path,
) -> None:
    forms = FORMS[shape][::-1] if is_last_first else FORMS[shape]
    rounded = [shapely.transform(form, lambda xy: xy - 0.01) for form in forms]
    moved = [shapely.transform(form, lambda xy: xy + np.array([1, 0])) for form in forms]
    features = [feature_of(kind, own_id, form) for form in (*forms, *rounded, *moved)]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    done = import_file(project, project.images[0], tmp_path / "a.geojson")
    added = done.annotations + done.detections
    assert (added, done.already_there, done.left_out) == (2, len(features) - 2, [])


def test_an_annotation_is_compared_only_with_those_at_its_place(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = [
        GeoJsonObject("annotation", square(10 * column + 0.004, 10 * row))
        for column in range(12)
        for row in range(12)
    ]
    points = [GeoJsonObject("annotation", shapely.Point(10 * i + 7.004, 7)) for i in range(12)]
    assert imported(project, tmp_path, *tiles, *points).annotations == 156
    compared: list[tuple[shapely.Geometry, shapely.Geometry]] = []
    real = importing.same_place

    def counted(a: shapely.Geometry, b: shapely.Geometry) -> bool:
        compared.append((a, b))
        return real(a, b)

    monkeypatch.setattr(importing, "same_place", counted)
    # Contours and shapes that share a corner.
    nested = [
        GeoJsonObject(
            "annotation", shapely.MultiPolygon([square(200, 200, i), square(201 + i, 201 + i)])
        )
        for i in range(1, 30)
    ]
    assert imported(project, tmp_path, *nested).annotations == 29
    assert len(compared) < 60
    compared.clear()
    # Coordinates that differ by rounding: the points do not meet.
    moved = [
        replace(o, geometry=shapely.transform(o.geometry, lambda xy: xy + 0.01))
        for o in (*tiles, *points)
    ]
    again = imported(project, tmp_path, *moved)
    assert (again.annotations, again.already_there) == (0, 156)
    assert len(compared) == 156


def nuclei_of_two_images(project: Project, path: Path) -> list[int]:
    """Write the nuclei of the first two images into one file; return how many each has."""
    done = write_nuclei_of(project, project.images[:2], path)
    return [done.nuclei[entry.id] for entry in project.images[:2]]


def test_nuclei_of_other_images_are_left_out(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "all.geojson"
    numbers = nuclei_of_two_images(project, path)
    names = [entry.name for entry in project.images]
    other = copy("0.5.1", tmp_path / "other")
    for entry in other.images:
        (other.path.parent / "data" / entry.id / "data.qpdata").unlink()
    for here in (0, 1):
        there = 1 - here
        done = import_file(other, other.images[here], path)
        assert done.detections == numbers[here]
        assert done.other_images == [OtherImage(names[there], str(there + 1), numbers[there])]
        assert done.left_out == []
        assert len(other.images[here].read().detections) == numbers[here]
    own_ids = set(other.images[0].read().detections.ids)
    assert own_ids == {o.id for o in read_objects(path) if o.image == (names[0], "1")}


def test_an_image_knows_its_nuclei_though_tables_cannot_have_its_name(
    project: Project, tmp_path: Path
) -> None:
    text = project.path.read_text("utf-8")
    text = text.replace(json.dumps(project.images[0].name), json.dumps("a\0b"))
    project.path.write_text(text, "utf-8")
    project = open_project(project.path)
    assert project.images[0].name == "a\0b"
    path = tmp_path / "all.geojson"
    here, there = nuclei_of_two_images(project, path)
    done = import_file(project, project.images[0], path)
    assert (done.detections, done.already_there) == (0, here)
    assert [other.objects for other in done.other_images] == [there]


def test_a_file_of_other_images_alone_is_refused(project: Project, tmp_path: Path) -> None:
    path = tmp_path / "all.geojson"
    one, two = nuclei_of_two_images(project, path)
    entry = project.images[2]
    before = entry.read()
    reason = (
        f"all.geojson: nothing in it belongs to {entry.name}, but {one} objects of image "
        f"'he small.png' (ID 1), {two} objects of image 'renamed pyramid' (ID 2)"
    )
    with pytest.raises(UsageError, match=re.escape(reason)) as refused:
        import_file(project, entry, path)
    assert "--image" in refused.value.hint
    assert "renamed since" in refused.value.hint
    many = [GeoJsonObject("annotation", square(1, 1), image=(f"{i}.svs", "9")) for i in range(7)]
    with pytest.raises(UsageError, match=r"'4\.svs' \(ID 9\), others of 2 more images"):
        imported(project, tmp_path, *many)
    assert entry.read().fingerprint == before.fingerprint


def test_the_image_of_an_object_is_known_by_its_name_and_among_equal_names_by_its_id(
    project: Project, tmp_path: Path
) -> None:
    name = project.images[0].name
    marks = [(name, "1"), (name, "77"), (name, "2"), ("elsewhere.svs", "1"), None]
    objects = [
        GeoJsonObject("annotation", square(10 * i, 1), name=f"{i}", image=mark)
        for i, mark in enumerate(marks)
    ]
    write_objects(tmp_path / "a.geojson", objects)
    assert [o.image for o in read_objects(tmp_path / "a.geojson")] == marks

    def named(entry: ImageEntry) -> set[str | None]:
        return {a.name for a in entry.read().annotations} & set("01234")

    # In a copy of the project, the same image may have another ID.
    done = import_file(project, project.images[0], tmp_path / "a.geojson")
    assert done.other_images == [OtherImage("elsewhere.svs", "1", 1)]
    assert named(project.images[0]) == {"0", "1", "2", "4"}
    # Another image is called the same.
    text = project.path.read_text("utf-8")
    text = text.replace(json.dumps(project.images[1].name), json.dumps(name))
    project.path.write_text(text, "utf-8")
    project = open_project(project.path)
    assert [entry.name for entry in project.images[:2]] == [name, name]
    done = import_file(project, project.images[1], tmp_path / "a.geojson")
    assert named(project.images[1]) == {"1", "2", "4"}
    assert done.other_images == [OtherImage(name, "1", 1), OtherImage("elsewhere.svs", "1", 1)]


def test_properties_of_other_programs_name_no_image(tmp_path: Path) -> None:
    odd = [{"image": "a.svs"}, {"image_id": "1"}, {"image": 5, "image_id": "1"}, {"image": {}}]
    features = [
        {"type": "Feature", "geometry": shapely.geometry.mapping(square(1, 1)), "properties": more}
        for more in odd
    ]
    (tmp_path / "a.geojson").write_text(json.dumps(features))
    assert [o.image for o in read_objects(tmp_path / "a.geojson")] == [None] * len(odd)
