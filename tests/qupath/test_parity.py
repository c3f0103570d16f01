"""Both backends do the same, seen through the Protocol of `qpnuclei.qupath.model`.

The native half always runs. The paquo half needs a QuPath (0.4 or newer); it is run against the
version that is installed, on the projects of all versions.
"""

from __future__ import annotations

import json
import shutil
import uuid
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from qpnuclei.errors import ConflictError, FormatError, NotFoundError, SaveError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.backups import BACKUP_FOLDER
from qpnuclei.qupath.model import (
    Annotation,
    DetectionGroup,
    Edit,
    ImageObjects,
    NewAnnotation,
    PathClass,
    Project,
)
from qpnuclei.qupath.project import choose_backend, find_qupath, open_project
from tests.ids import nucleus_id, removal
from tests.qupath.samples import VERSIONS, copy_project

# QuPath 0.6 and newer round the vertices of some ROIs to this when they read them.
GRID_PX = 0.01

NUCLEUS = PathClass("Nucleus", -65536)


def skip_without_qupath() -> None:
    if choose_backend() != "paquo":
        pytest.skip("no QuPath 0.4 or newer found: set PAQUO_QUPATH_DIR")


@pytest.fixture(params=["native", pytest.param("paquo", marks=pytest.mark.qupath)])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "paquo":
        skip_without_qupath()
    return request.param


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def project_file(tmp_path: Path) -> Path:
    return copy_project("0.5.1", tmp_path)


@pytest.fixture
def both(tmp_path: Path) -> Callable[[str], tuple[Project, Project]]:
    """Open one copy of a sample project with each backend: native, paquo."""
    skip_without_qupath()

    def open_both(version: str) -> tuple[Project, Project]:
        files = [copy_project(version, tmp_path / name) for name in ("native", "paquo")]
        return open_project(files[0], "native"), open_project(files[1], "paquo")

    return open_both


def squares(count: int, x: float = 0, y: float = 0) -> NucleiTable:
    """Squares of 4 px side that stand 10 px apart from (x, y) on, with two measurements."""
    boxes = [shapely.box(x + 10 * i, y, x + 10 * i + 4, y + 4) for i in range(count)]
    missing = np.where(np.arange(count) % 2, np.nan, np.arange(count) / 3)
    return NucleiTable.from_polygons(boxes, {"Area µm^2": np.full(count, 16), "Odd": missing})


def ids(count: int, first: int = 0) -> list[uuid.UUID]:
    return [nucleus_id((first + i).to_bytes(10, "big")) for i in range(count)]


def data_file(project: Project, image: int = 0) -> Path:
    return project.path.parent / "data" / project.images[image].id / "data.qpdata"


def assert_same_geometry(a: shapely.Geometry, b: shapely.Geometry) -> None:
    # The order of vertices does not matter; shapes without area have no difference.
    assert a.geom_type == b.geom_type
    assert shapely.hausdorff_distance(a, b) <= 2 * GRID_PX
    assert a.area == pytest.approx(b.area, abs=2 * GRID_PX * max(a.length, 1))


def assert_same_annotation(a: Annotation, b: Annotation) -> None:
    for name in ("handle", "id", "name", "class_name", "roi_type", "locked", "color", "parent"):
        assert getattr(a, name) == getattr(b, name), name
    assert (a.z, a.t) == (b.z, b.t)
    assert_same_geometry(a.geometry, b.geometry)


def assert_same_objects(a: ImageObjects, b: ImageObjects) -> None:
    assert len(a.annotations) == len(b.annotations)
    for one, other in zip(a.annotations, b.annotations, strict=True):
        assert_same_annotation(one, other)
    assert a.detections.ids == b.detections.ids
    assert list(a.detections.kinds) == list(b.detections.kinds)
    assert list(a.detections.class_names) == list(b.detections.class_names)
    np.testing.assert_array_equal(a.detections.parents, b.detections.parents)
    np.testing.assert_array_equal(a.detections.planes, b.detections.planes)
    assert dict(a.properties) == dict(b.properties)
    # QuPath keeps the centroids of polygons as float32.
    np.testing.assert_allclose(a.detections.centroids, b.detections.centroids, atol=GRID_PX)
    for one, other in zip(a.detections.geometries, b.detections.geometries, strict=True):
        assert_same_geometry(one, other)
    assert set(a.detections.measurements) == set(b.detections.measurements)
    for name, column in a.detections.measurements.items():
        np.testing.assert_array_equal(column, b.detections.measurements[name])


@pytest.mark.qupath
def test_projects_and_images_are_the_same(
    both: Callable[[str], tuple[Project, Project]], version: str
) -> None:
    native, paquo = both(version)
    assert (native.backend, paquo.backend) == ("native", "paquo")
    assert native.version == paquo.version == version
    assert native.classes == paquo.classes
    for a, b in zip(native.images, paquo.images, strict=True):
        for name in ("id", "name", "server", "calibration", "image_type"):
            assert getattr(a, name) == getattr(b, name), name
        assert a.path is not None
        assert b.path is not None
        assert a.path.name == b.path.name
        assert a.stains is not None
        assert b.stains is not None
        assert (a.stains.name, a.stains.stain_names) == (b.stains.name, b.stains.stain_names)
        assert a.stains.background == b.stains.background
        for one, other in zip(a.stains.vectors, b.stains.vectors, strict=True):
            unit = np.asarray(one) / np.linalg.norm(one)  # QuPath normalises them
            np.testing.assert_allclose(unit, other, atol=1e-5)


@pytest.mark.qupath
def test_objects_are_the_same(both: Callable[[str], tuple[Project, Project]], version: str) -> None:
    native, paquo = both(version)
    for a, b in zip(native.images, paquo.images, strict=True):
        assert_same_objects(a.read(), b.read())


@pytest.mark.qupath
def test_edits_have_the_same_effect_and_each_reads_the_other(
    both: Callable[[str], tuple[Project, Project]], version: str
) -> None:
    projects = both(version)
    ring = shapely.Point(200, 200).buffer(9).difference(shapely.Point(200, 200).buffer(3))
    with_hole = NucleiTable.from_polygons(
        [shapely.box(0, 0, 4, 4), ring, shapely.box(9, 9, 12, 12)]
    )
    for project in projects:
        image = project.images[0]
        before = image.read()
        edit = Edit(
            add=[
                DetectionGroup(None, squares(5), ids(5), NUCLEUS),
                DetectionGroup(0, squares(7, y=50), ids(7, 5), PathClass("Tumor: Positive", -1)),
                DetectionGroup(3, with_hole, ids(3, 12), PathClass("Neu: Ganz", -456)),
                DetectionGroup(3, NucleiTable.empty(), [], NUCLEUS),
            ],
            annotations=[
                NewAnnotation(
                    shapely.Polygon([(1, 1), (50, 3), (30, 44)]),
                    uuid.UUID(int=7),
                    "Gewebe é",
                    PathClass("Tissue", -99),
                    locked=True,
                ),
                NewAnnotation(ring, uuid.UUID(int=8)),
            ],
            workflow_step=("qpnuclei run", "// a comment\n"),
        )
        image.write(edit, before.fingerprint)
        image.write(removal(image, ids(3, 4)), image.read().fingerprint)
    objects = [
        open_project(project.path, reader).images[0].read()
        for project in projects
        for reader in ("native", "paquo")
    ]
    kept = [i for i in objects[0].detections.ids if i is not None and is_ours(i)]
    assert sorted(kept) == sorted(ids(4) + ids(5, 7) + ids(3, 12))
    if version < "0.4":  # QuPath gives the old objects UUIDs when it saves
        objects = objects[:2]
    for other in objects[1:]:
        assert_same_objects(objects[0], other)


def test_added_detections_read_back(backend: str, version: str, tmp_path: Path) -> None:
    project = open_project(copy_project(version, tmp_path), backend)
    image = project.images[0]
    before = image.read()
    nuclei = squares(6, x=100, y=100)
    image.write(Edit(add=[DetectionGroup(3, nuclei, ids(6), NUCLEUS)]), before.fingerprint)

    image = open_project(project.path, backend).images[0]
    after = image.read()
    rows = [row for row, own_id in enumerate(after.detections.ids) if own_id in ids(6)]
    assert [after.detections.ids[row] for row in rows] == ids(6)
    assert [after.detections.class_names[row] for row in rows] == ["Nucleus"] * 6
    assert [after.detections.kinds[row] for row in rows] == ["detection"] * 6
    assert after.detections.parents[rows].tolist() == [3] * 6
    assert shapely.equals_exact(after.detections.geometries[rows], nuclei.polygons()).all()
    np.testing.assert_allclose(after.detections.centroids[rows], nuclei.centroids(), atol=1e-4)
    for name, column in nuclei.measurements.items():
        read = after.detections.measurements[name][rows]
        np.testing.assert_array_equal(read.astype(np.float32), column)
    assert len(after.detections) == len(before.detections) + 6
    for a, b in zip(before.annotations, after.annotations, strict=True):
        assert_same_annotation(a, replace(b, id=a.id))  # QuPath gives UUIDs to those without


def test_detections_in_an_annotation_of_the_same_edit(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[0]
    before = image.read()
    handle = len(before.annotations) + 1
    edit = Edit(
        add=[
            DetectionGroup(handle, squares(3), ids(3), None),
            DetectionGroup(None, squares(2, y=60), ids(2, 3), None),
        ],
        annotations=[
            NewAnnotation(shapely.box(300, 0, 309, 9), uuid.UUID(int=8)),
            NewAnnotation(shapely.box(0, 0, 300, 30), uuid.UUID(int=7), z=2, t=1),
        ],
    )
    image.write(edit, before.fingerprint)
    after = open_project(project_file, backend).images[0].read()
    new = after.annotations[handle]
    assert (new.id, new.z, new.t, new.parent) == (uuid.UUID(int=7), 2, 1, None)
    table = after.detections
    found = {own_id: row for row, own_id in enumerate(table.ids)}
    rows = [found[own_id] for own_id in ids(5)]
    assert table.parents[rows].tolist() == [handle] * 3 + [-1] * 2
    assert [table.class_names[row] for row in rows] == [None] * 5


def test_what_is_not_ours_stays_when_ours_go(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[0]
    before = image.read()
    groups = [DetectionGroup(0, squares(40), ids(40), NUCLEUS)]
    image.write(Edit(add=groups), before.fingerprint)
    image.write(removal(image, ids(40)), image.read().fingerprint)
    assert_same_objects(before, open_project(project_file, backend).images[0].read())


def test_new_classes_join_the_project(backend: str, project_file: Path) -> None:
    project = open_project(project_file, backend)
    known = [c.name for c in project.classes]
    assert "Tumor" in known
    assert "Fresh" not in known
    image = project.images[0]
    groups = [
        DetectionGroup(0, squares(1), ids(1), PathClass("Fresh", -16711936)),
        DetectionGroup(0, squares(1, y=9), ids(1, 1), PathClass("Tumor", -1)),
    ]
    image.write(Edit(add=groups), image.read().fingerprint)
    assert project.classes[-1] == PathClass("Fresh", -16711936)
    assert [c.name for c in open_project(project_file, "native").classes] == [*known, "Fresh"]


def test_the_workflow_step_is_recorded(backend: str, project_file: Path) -> None:
    project = open_project(project_file, backend)
    image = project.images[0]
    step = ("qpnuclei run", "// nuclei in Tumor")
    image.write(Edit(workflow_step=step), image.read().fingerprint)
    stream = data_file(project).read_bytes()
    assert step[0].encode() in stream
    assert step[1].encode() in stream


class OnDemand(Sequence[DetectionGroup]):
    """Groups of squares with UUIDs, made when they are asked for; counts those in memory."""

    def __init__(self, parents: Sequence[int | None], size: int) -> None:
        self.parents = parents
        self.size = size
        self.alive: weakref.WeakSet[NucleiTable] = weakref.WeakSet()
        self.most = 0

    def __len__(self) -> int:
        return len(self.parents)

    def __getitem__(self, index: Any) -> Any:
        nuclei = squares(self.size, y=20 * index)
        self.alive.add(nuclei)
        self.most = max(self.most, len(self.alive))
        return DetectionGroup(
            self.parents[index], nuclei, ids(self.size, self.size * index), NUCLEUS
        )


def test_properties_of_an_image(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[0]
    before = image.read().properties
    for values in ({"ours": "1", "long": "µ" * 70_000}, {"ours": "2"}):
        image.write(Edit(properties=values), image.read().fingerprint)
    after = dict(open_project(project_file, "native").images[0].read().properties)
    assert (after.pop("ours"), after.pop("long")) == ("2", "µ" * 70_000)
    assert after == before


def test_an_annotation_of_ours_is_replaced(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[0]
    objects = image.read()
    count = len(objects.annotations)
    first, second = ids(2, 1000)
    tissue = NewAnnotation(shapely.box(0, 0, 90, 90), first, None, PathClass("Tissue"), locked=True)
    edit = Edit(annotations=[tissue], add=[DetectionGroup(count, squares(3), ids(3), NUCLEUS)])
    image.write(edit, objects.fingerprint)
    other = replace(tissue, geometry=shapely.box(0, 0, 80, 80), id=second)
    groups = [DetectionGroup(count, squares(2, y=20), ids(2, 10), NUCLEUS)]
    edit = replace(removal(image, [first]), annotations=[other], add=groups)
    image.write(edit, image.read().fingerprint)
    after = image.read()
    assert [a.id for a in after.annotations] == [*(a.id for a in objects.annotations), second]
    parents = dict(zip(after.detections.ids, after.detections.parents.tolist(), strict=True))
    assert [parents[own_id] for own_id in ids(3)] == [-1] * 3  # they moved up
    assert [parents[own_id] for own_id in ids(2, 10)] == [count] * 2


def test_detections_on_a_plane_of_their_own(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[0]
    group = DetectionGroup(None, squares(3), ids(3), NUCLEUS, (2, 1))
    image.write(Edit(add=[group]), image.read().fingerprint)
    found = image.read().detections
    ours = [row for row, own_id in enumerate(found.ids) if is_ours(own_id)]
    assert found.planes[ours].tolist() == [[2, 1]] * 3


def test_groups_are_made_when_they_are_written(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[2]
    before = image.read()
    groups = OnDemand([0, None, 0, 0, None, 0], 4)
    image.write(Edit(add=groups), before.fingerprint)
    assert groups.most <= 2  # the next one is made before the last one is dropped
    after = open_project(project_file, backend).images[2].read().detections
    parent_of = dict(zip(after.ids, after.parents.tolist(), strict=True))
    for index, parent in enumerate(groups.parents):
        expected = -1 if parent is None else parent
        assert {parent_of[own_id] for own_id in ids(4, 4 * index)} == {expected}
    assert len(after) == len(before.detections) + 24


def test_the_summary_counts_the_new_detections(backend: str, project_file: Path) -> None:
    project = open_project(project_file, backend)
    image = project.images[0]
    summary = data_file(project).with_name("summary.json")
    counted = json.loads(summary.read_text())["hierarchy"]["objectTypeCounts"]["Detections"]
    groups = [DetectionGroup(None, squares(3), ids(3), NUCLEUS)]
    image.write(Edit(add=groups), image.read().fingerprint)
    after = json.loads(summary.read_text())["hierarchy"]["objectTypeCounts"]["Detections"]
    assert after == counted + 3


def test_what_was_replaced_is_kept(backend: str, project_file: Path) -> None:
    project = open_project(project_file, backend)
    content = data_file(project).read_bytes()
    image = project.images[0]
    groups = [DetectionGroup(None, squares(3), ids(3), NUCLEUS)]
    image.write(Edit(add=groups), image.read().fingerprint)
    (kept,) = (data_file(project).parent / BACKUP_FOLDER).iterdir()
    assert kept.read_bytes() == content


def test_the_project_file_is_not_touched(backend: str, project_file: Path) -> None:
    content = project_file.read_bytes()
    image = open_project(project_file, backend).images[0]
    groups = [DetectionGroup(None, squares(3), ids(3), NUCLEUS)]
    image.write(Edit(add=groups), image.read().fingerprint)
    assert project_file.read_bytes() == content


def test_an_image_that_was_never_saved(backend: str, project_file: Path) -> None:
    shutil.rmtree(project_file.parent / "data" / "1")
    project = open_project(project_file, backend)
    image = project.images[0]
    assert image.image_type is None
    assert image.stains is None
    objects = image.read()
    assert (len(objects.annotations), len(objects.detections)) == (0, 0)
    groups = [DetectionGroup(None, squares(3), ids(3), NUCLEUS)]
    image.write(Edit(add=groups), objects.fingerprint)
    assert open_project(project_file, backend).images[0].read().detections.ids == ids(3)


def test_a_file_that_changed_since_it_was_read(backend: str, project_file: Path) -> None:
    project = open_project(project_file, backend)
    image = project.images[0]
    fingerprint = image.read().fingerprint
    shutil.copyfile(data_file(project, 1), data_file(project))  # as QuPath would, saving
    changed = data_file(project).read_bytes()
    groups = [DetectionGroup(None, squares(3), ids(3), NUCLEUS)]
    with pytest.raises(ConflictError, match="changed"):
        image.write(Edit(add=groups), fingerprint)
    assert data_file(project).read_bytes() == changed


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (Edit(remove_annotations=frozenset([0])), "not written by qpnuclei"),
        (Edit(remove=frozenset([10**6])), "no detection number 1000000"),
        (Edit(add=[DetectionGroup(99, squares(1), ids(1), NUCLEUS)]), "no annotation number 99"),
        (Edit(add=[DetectionGroup(0, squares(2), ids(1) * 2, NUCLEUS)]), "the same UUID"),
    ],
)
def test_edits_that_contradict_the_image(
    backend: str, project_file: Path, edit: Edit, message: str
) -> None:
    project = open_project(project_file, backend)
    content = data_file(project).read_bytes()
    image = project.images[0]
    with pytest.raises(UsageError, match=message):
        image.write(edit, image.read().fingerprint)
    assert data_file(project).read_bytes() == content
    groups = [DetectionGroup(None, squares(1), ids(1), NUCLEUS)]
    image.write(Edit(add=groups), image.read().fingerprint)  # nothing of the failed edit is left
    assert sum(map(is_ours, image.read().detections.ids)) == 1


def test_a_uuid_that_is_taken(backend: str, project_file: Path) -> None:
    image = open_project(project_file, backend).images[0]
    groups = [DetectionGroup(0, squares(2), ids(2), NUCLEUS)]
    image.write(Edit(add=groups), image.read().fingerprint)
    with pytest.raises(UsageError, match="already has an object"):
        image.write(Edit(add=groups), image.read().fingerprint)
    replaced = replace(removal(image, ids(2)), add=groups)
    image.write(replaced, image.read().fingerprint)
    assert sum(map(is_ours, image.read().detections.ids)) == 2


@pytest.mark.parametrize("length", [0, 3, 200, 4000, -1])
def test_a_truncated_data_file(backend: str, project_file: Path, length: int) -> None:
    file = project_file.parent / "data" / "1" / "data.qpdata"
    content = file.read_bytes()
    file.write_bytes(content[:length])
    with pytest.raises(FormatError, match=r"data\.qpdata"):
        open_project(project_file, backend).images[0].read()
    shutil.copyfile(file, file.with_name("data.qpdata.bkp"))
    with pytest.raises(FormatError, match=r"QuPath left data\.qpdata\.bkp"):
        open_project(project_file, backend).images[0].read()


def test_a_corrupt_data_file(backend: str, project_file: Path) -> None:
    file = project_file.parent / "data" / "1" / "data.qpdata"
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 100] = b"\xff" * 100
    file.write_bytes(content)
    with pytest.raises(FormatError, match=r"data\.qpdata"):
        open_project(project_file, backend).images[0].read()


def test_a_save_that_qupath_did_not_finish(backend: str, project_file: Path) -> None:
    file = project_file.parent / "data" / "1" / "data.qpdata"
    file.rename(file.with_name("data.qpdata.bkp"))
    with pytest.raises(FormatError, match=r"data\.qpdata\.bkp"):
        open_project(project_file, backend).images[0].read()


def test_no_such_project(backend: str, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        open_project(tmp_path / "none.qpproj", backend)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"version": "0.5.1"}', b"\xff\xfe"])
def test_a_broken_project(backend: str, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "project.qpproj").write_bytes(content)
    with pytest.raises(FormatError, match=r"project\.qpproj"):
        open_project(tmp_path, backend)


def test_missing_images_are_found_below_the_image_root(backend: str, project_file: Path) -> None:
    images = project_file.parents[1] / "images"
    elsewhere = images.rename(project_file.parents[2] / "elsewhere")
    assert [image.path for image in open_project(project_file, backend).images] == [None] * 3
    project = open_project(project_file, backend, elsewhere)
    assert [image.path for image in project.images] == [
        elsewhere / name for name in ("he small.png", "pyramid.tif", "plain.tif")
    ]
    image = project.images[2]
    groups = [DetectionGroup(0, squares(3), ids(3), NUCLEUS)]
    image.write(Edit(add=groups), image.read().fingerprint)
    assert open_project(project_file, "native").images[2].read().detections.ids == ids(3)


def test_objects_of_missing_images(backend: str, project_file: Path) -> None:
    expected = open_project(project_file, "native").images[0].read()
    shutil.rmtree(project_file.parents[1] / "images")
    project = open_project(project_file, backend)
    content = data_file(project).read_bytes()
    image = project.images[0]
    objects = image.read()
    assert_same_objects(expected, objects)
    edit = Edit(add=[DetectionGroup(0, squares(3), ids(3), NUCLEUS)])
    installed = find_qupath()
    if backend == "paquo" and installed is not None and (installed.release or (0, 0)) < (0, 6):
        with pytest.raises(SaveError, match="cannot open") as raised:
            image.write(edit, objects.fingerprint)
        assert "--image-root" in raised.value.hint
        assert data_file(project).read_bytes() == content
    else:
        image.write(edit, objects.fingerprint)
        assert sum(map(is_ours, image.read().detections.ids)) == 3
