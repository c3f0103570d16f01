import errno
import hashlib
import json
import os
import time
import uuid
import weakref
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import ConflictError, FormatError, NotFoundError, SaveError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.backups import BACKUP_COUNT, BACKUP_FOLDER
from qpnuclei.qupath.model import DetectionGroup, Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.hierarchy import annotations_of, remove_objects
from qpnuclei.qupath.qpdata.workflow import add_step
from qpnuclei.system.files import read_regular, temporary_prefix
from qpnuclei.system.processes import Process
from tests.ids import nucleus_id, removal
from tests.paths import SAMPLES, SHARED
from tests.qupath.samples import VERSIONS, copy_project, dump

NUCLEUS = PathClass("Our nucleus", -256)


def new_id(seed):
    return nucleus_id(hashlib.sha256(repr(seed).encode()).digest())


def group(parent=None, n=5, seed=0, path_class=NUCLEUS, holes=False):
    squares = [shapely.box(10 * i, seed, 10 * i + 5.5, seed + 6.25) for i in range(n)]
    if holes:
        squares[1] -= shapely.box(11, seed + 1, 12, seed + 2)
    values = np.arange(n, dtype=np.float32)
    table = NucleiTable.from_polygons(squares, {"Area µm^2": values, "Prob": values * np.nan})
    return DetectionGroup(parent, table, [new_id((seed, i)) for i in range(n)], path_class)


def flat(tree, level=0):
    """Return all objects of a dump as (level, object without children)."""
    yield level, {k: v for k, v in tree.items() if k != "children"}
    for child in tree["children"]:
        yield from flat(child, level + 1)


def without(tree, ids):
    children = [without(c, ids) for c in tree["children"] if c.get("id") not in ids]
    return {**tree, "children": children}


@pytest.mark.parametrize("version", VERSIONS)
def test_opens_the_projects_of_every_version(version, tmp_path):
    project = open_project(copy_project(version, tmp_path))
    assert project.version == version
    assert project.backend == "native"
    assert [c.name for c in project.classes] == ["Tumor", "Stroma", "Tumor: Positive", "Nucleus"]
    first, second, third = project.images
    assert (first.id, first.name) == ("1", "he small.png")
    assert first.server.builder_types == ("uri",)
    assert first.server.provider.endswith("BioFormatsServerBuilder")
    assert first.server.args == ("--series", "0")
    assert (first.server.width, first.server.height) == (512, 384)
    assert first.calibration.mpp is None
    assert first.image_type == "BRIGHTFIELD_H_E"
    assert first.stains.background == (243, 243, 243)
    assert first.stains.stain_names == ("Hematoxylin", "Eosin")
    np.testing.assert_allclose(first.stains.vectors[1], (0.215899, 0.801196, 0.558097), atol=1e-6)
    assert third.image_type == "BRIGHTFIELD_H_DAB"
    # The samples are moved projects: the images lie beside them, as they did.
    images = tmp_path / version / "images"
    assert [i.path for i in project.images] == [
        images / n for n in ("he small.png", "pyramid.tif", "plain.tif")
    ]
    objects = first.read()
    assert [a.roi_type for a in objects.annotations] == [
        "RectangleROI",
        "EllipseROI",
        "PolygonROI",
        "RectangleROI",
        "GeometryROI",
        "GeometryROI",
        "PolylineROI",
        "PointsROI",
        "LineROI",
    ]
    assert [a.parent for a in objects.annotations] == [None, None, None, 2, *[None] * 5]
    assert [a.is_area for a in objects.annotations] == [True] * 6 + [False] * 3
    assert objects.annotations[0].locked
    assert objects.annotations[0].geometry.equals(shapely.box(10.5, 20.25, 110.5, 100.25))
    assert objects.annotations[2].class_name == "Tumor: Positive"
    assert objects.annotations[8].color == -16711936
    assert (objects.annotations[0].id is None) == (version in ("0.2.3", "0.3.2"))
    table = objects.detections
    assert table.kinds == ["detection"] * 3 + ["cell"] * 2 + ["tile", "detection"]
    assert table.parents.tolist() == [3] * 5 + [-1] * 2
    # A cell is located by its nucleus, a square from (65, 205) to (75, 215).
    assert table.centroids[3].tolist() == [70, 210]
    np.testing.assert_array_equal(table.measurements["Area"], [101.25, 94.25, *[np.nan] * 5])
    grid = second.read()
    assert len(grid.annotations) == 1  # cores of a TMA are no annotations
    assert len(grid.detections) == 50


@pytest.mark.parametrize("entry", [0, 1, 2])
@pytest.mark.parametrize("version", VERSIONS)
def test_after_adding_detections_only_they_differ(version, entry, tmp_path):
    image = open_project(copy_project(version, tmp_path)).images[entry]
    before = dump(image.data_path.read_bytes())
    objects = image.read()
    groups = [group(0, seed=1, holes=True), group(None, 1, seed=50), group(0, n=0)]
    new = NewAnnotation(shapely.box(1, 1, 9, 9), uuid.uuid4(), "tissue", PathClass("Tissue: A", 7))
    edit = Edit(add=groups, annotations=[new], workflow_step=("qpnuclei run", "// a step"))
    image.write(edit, objects.fingerprint)
    after = dump(image.data_path.read_bytes())
    ids = {str(i) for g in groups for i in g.ids} | {str(new.id)}
    added = [o for o in flat(after["root"]) if o[1].get("id") in ids]
    assert len(added) == 7
    step = after["workflow"].pop()
    assert step == ["qpnuclei run", "// a step"]
    after["root"] = without(after["root"], ids)
    assert after == before
    for _, item in added[:-1]:
        assert item["class"] == ["Our nucleus", -256]
        assert [m[0] for m in item["meas"]] == ["Area µm^2", "Prob"]
        assert item["cls"] == "PathDetectionObject"
    assert added[-1][1]["class"] == ["Tissue: A", 7]
    kinds = [item["roi"][0] for _, item in added]
    # Those without holes come first; the one with a hole after them.
    assert kinds == ["PolygonROI"] * 4 + ["GeometryROI", "PolygonROI", "PolygonROI"]
    assert added[0][1]["roi"][1:4] == [-1, 0, 0]
    assert added[0][1]["roi"][4] == [[5.5, 1.0], [5.5, 7.25], [0.0, 7.25], [0.0, 1.0]]

    # And taken away again, every byte but the step and the annotation is as it was.
    read = image.read()
    ours = {i for i in read.detections.ids if is_ours(i)}
    assert len(ours) == 6
    assert read.annotations[-1].geometry.equals(new.geometry)
    image.write(removal(image, ours), read.fingerprint)
    again = dump(image.data_path.read_bytes())
    assert without(again["root"], {str(new.id)}) == before["root"]


@pytest.mark.parametrize("version", VERSIONS)
def test_adding_and_removing_gives_the_same_bytes(version, tmp_path):
    image = open_project(copy_project(version, tmp_path)).images[0]
    before = image.data_path.read_bytes()
    added = group(3, n=40)
    image.write(Edit(add=[added]), image.read().fingerprint)
    image.write(removal(image, added.ids), image.read().fingerprint)
    assert image.data_path.read_bytes() == before


def test_replacing_part_of_ours(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    first = group(1, n=30)
    image.write(Edit(add=[first]), image.read().fingerprint)
    second = group(4, n=20, seed=9)
    gone = frozenset(first.ids[::3])
    image.write(replace(removal(image, gone), add=[second]), image.read().fingerprint)
    table = image.read().detections
    ours = [i for i in table.ids if is_ours(i)]
    assert ours == [i for i in first.ids if i not in gone] + list(second.ids)
    assert [p for i, p in zip(table.ids, table.parents, strict=True) if is_ours(i)] == (
        [1] * 20 + [4] * 20
    )


def test_detections_lie_in_the_plane_of_their_annotation(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    part = jf.part_with(annotations_of(data_file._root(), range(9))[1].roi, "z")
    values = np.frombuffer(part.primitives, jf.primitives_dtype(part.desc)).copy()
    values["z"], values["t"] = 3, 2
    part.primitives = values.tobytes()
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)
    objects = image.read()
    assert (objects.annotations[1].z, objects.annotations[1].t) == (3, 2)
    image.write(Edit(add=[group(1, holes=True)]), objects.fingerprint)
    tree = dump(image.data_path.read_bytes())["root"]
    rois = [o["roi"] for _, o in flat(tree) if o["class"] == ["Our nucleus", -256]]
    assert [roi[1:4] for roi in rois] == [[-1, 3, 2]] * 5


def test_what_someone_nested_below_ours_survives(tmp_path):
    """In QuPath, "resolve hierarchy" may put an annotation below a detection of ours."""
    from qpnuclei.qupath.qpdata.data_file import DataFile
    from qpnuclei.qupath.qpdata.path_objects import PathObject

    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    mine = group(None, n=3)
    image.write(Edit(add=[mine]), image.read().fingerprint)
    data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    root = PathObject.of(data_file._root())
    annotation, *others, first, second, third = root.children
    PathObject.of(first).set_children([annotation])
    root.set_children([*others, first, second, third])
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)
    names = [a.name for a in image.read().annotations]
    assert names[-1] == "rect"
    image.write(removal(image, mine.ids), image.read().fingerprint)
    objects = image.read()
    assert [a.name for a in objects.annotations] == names
    assert not any(map(is_ours, objects.detections.ids))


def test_summary_and_classes_are_updated(tmp_path):
    project = open_project(copy_project("0.5.1", tmp_path))
    image = project.images[0]
    classes = json.loads(project.classes_path.read_text())
    old = json.loads((image.folder / "summary.json").read_text())
    image.write(Edit(add=[group(0, n=5)]), image.read().fingerprint)
    new = json.loads((image.folder / "summary.json").read_text())
    assert new["hierarchy"]["nObjects"] == old["hierarchy"]["nObjects"] + 5
    assert new["hierarchy"]["detectionClassificationCounts"]["Our nucleus"] == 5
    assert new["timestamp"] == image.data_path.stat().st_mtime_ns // 1_000_000
    assert {**old, "timestamp": 0, "hierarchy": 0} == {**new, "timestamp": 0, "hierarchy": 0}
    added = {"name": "Our nucleus", "color": -256}
    assert json.loads(project.classes_path.read_text())["pathClasses"] == [
        *classes["pathClasses"],
        added,
    ]
    assert project.classes[-1] == NUCLEUS


def test_a_project_without_class_list_keeps_qupaths_default_classes(tmp_path):
    project = open_project(copy_project("0.5.1", tmp_path))
    project.classes_path.unlink()
    assert list(project.classes) == []
    image = project.images[0]
    image.write(Edit(add=[group(0)]), image.read().fingerprint)
    names = [c.name for c in project.classes]
    assert names[:3] == ["Tumor", "Stroma", "Immune cells"]
    assert names[-1] == "Our nucleus"


@pytest.mark.parametrize("version", VERSIONS)
def test_an_image_that_was_never_saved(version, tmp_path):
    image = open_project(copy_project(version, tmp_path)).images[0]
    image.data_path.unlink()
    assert image.image_type is None
    assert image.stains is None
    objects = image.read()
    assert objects.annotations == ()
    assert len(objects.detections) == 0
    image.write(Edit(add=[group()], workflow_step=("run", "//")), objects.fingerprint)
    assert image.image_type == "UNSET"
    assert len(image.read().detections) == 5


def test_stains_come_from_the_read_of_the_objects_unless_the_file_changes(tmp_path, monkeypatch):
    image, _, other = open_project(copy_project("0.5.1", tmp_path)).images
    original, changed = image.data_path.read_bytes(), other.data_path.read_bytes()
    read = []

    def noted(path):
        read.append(path)
        return read_regular(path)

    monkeypatch.setattr("qpnuclei.qupath.native.read_regular", noted)
    image.read()
    assert image.image_type == "BRIGHTFIELD_H_E"
    assert image.stains is not None
    assert read == [image.data_path]
    image.data_path.write_bytes(changed)
    assert image.image_type == "BRIGHTFIELD_H_DAB"

    def changed_meanwhile(path):
        data = read_regular(path)
        path.write_bytes(changed)
        return data

    image.data_path.write_bytes(original)
    monkeypatch.setattr("qpnuclei.qupath.native.read_regular", changed_meanwhile)
    assert len(image.read().annotations) > 0
    assert image.image_type == "BRIGHTFIELD_H_DAB"


def test_classes_that_another_save_adds_meanwhile_stay(tmp_path, monkeypatch):
    project = open_project(copy_project("0.5.1", tmp_path))
    first, second, _ = project.images
    fingerprints = first.read().fingerprint, second.read().fingerprint
    verify = type(first)._verify

    def meanwhile(self, *arguments):
        monkeypatch.undo()
        second.write(Edit(add=[group(0, path_class=PathClass("Theirs", 1))]), fingerprints[1])
        return verify(self, *arguments)

    monkeypatch.setattr(type(first), "_verify", meanwhile)
    first.write(Edit(add=[group(0, path_class=PathClass("Ours", 2))]), fingerprints[0])
    assert {"Theirs", "Ours"} <= {c.name for c in project.classes}


class Groups(Sequence):
    """Groups that are made when asked for, and how many of them are in memory at most."""

    def __init__(self, *arguments):
        self.arguments = arguments
        self.alive = weakref.WeakSet()
        self.most = 0

    def __len__(self):
        return len(self.arguments)

    def __getitem__(self, index):
        parent, n, seed, holes = self.arguments[index]
        made = group(parent, n, seed, holes=holes)
        self.alive.add(made.nuclei)
        self.most = max(self.most, len(self.alive))
        return made


@pytest.mark.parametrize("entry", [0, 1])
def test_groups_made_on_demand_are_written_as_those_in_memory(entry, tmp_path):
    arguments = [(i % 3 - 1, 5 + i, 20 * i, i % 2 == 1) for i in range(12)]
    arguments = [(None if a < 0 else 0, *rest) for a, *rest in arguments]
    groups = Groups(*arguments)
    images = [
        open_project(copy_project("0.5.1", tmp_path / name)).images[entry]
        for name in ("lazy", "table")
    ]
    images[0].write(Edit(add=groups), images[0].read().fingerprint)
    assert 1 <= groups.most <= 2  # the next one is made before the last one is dropped
    images[1].write(Edit(add=list(groups)), images[1].read().fingerprint)
    assert images[0].data_path.read_bytes() == images[1].data_path.read_bytes()
    table = images[0].read().detections
    ours = [i for i, own_id in enumerate(table.ids) if is_ours(own_id)]
    assert {table.ids[i] for i in ours} == {own_id for g in groups for own_id in g.ids}


def test_groups_that_change_between_two_accesses_are_not_written(tmp_path):
    class Fickle(Groups):
        def __getitem__(self, index):
            made = super().__getitem__(index)
            self.arguments = ((0, len(made.ids) + 1, 0, False),)
            return made

    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = snapshot(tmp_path, ignore="none")
    with pytest.raises(ValueError, match="group 0 of the edit has changed"):
        image.write(Edit(add=Fickle((0, 5, 0, False))), image.read().fingerprint)
    assert snapshot(tmp_path, ignore="none") == before


def test_backups_hold_what_was_replaced(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    original = image.data_path.read_bytes()
    states = []
    for seed in range(BACKUP_COUNT + 2):
        states.append(image.data_path.read_bytes())
        image.write(Edit(add=[group(0, 2, seed)]), image.read().fingerprint)
    backups = sorted((image.folder / BACKUP_FOLDER).iterdir())
    assert [b.read_bytes() for b in backups] == states[-BACKUP_COUNT:]
    assert states[0] == original


def test_a_bkp_that_qupath_left_is_moved_to_the_backups(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    left = image.folder / "data.qpdata.bkp"
    left.write_bytes(b"left by a save that failed")
    image.write(Edit(add=[group(0)]), image.read().fingerprint)
    assert not left.exists()
    (kept,) = (image.folder / BACKUP_FOLDER).glob("*.bkp")
    assert kept.read_bytes() == b"left by a save that failed"


# Bad input


def test_no_such_project(tmp_path):
    with pytest.raises(NotFoundError, match="no such file"):
        open_project(tmp_path / "none.qpproj")


def test_a_folder_with_one_project_is_that_project(tmp_path):
    path = copy_project("0.5.1", tmp_path)
    assert open_project(path.parent).path == path
    (path.parent / "other.qpproj").write_text("{}")
    match = r"contains 2 QuPath projects: other\.qpproj, project\.qpproj"
    with pytest.raises(UsageError, match=match):
        open_project(path.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty (0 bytes)"),
        ("{", "broken at line 1, column 2"),
        ("[]", "is a list, not an object"),
        ("{}", "no list of images"),
        ('{"images": [], "lastID": 0', "broken at line 1"),
        ('{"version": "0.5.1", "images": [{}]}', "image 1 has no server"),
        ("[" * 100_000, "is broken"),
        ('{"a": ' + "9" * 5000 + "}", "is broken"),
        ("\xff", "not UTF-8"),
    ],
)
def test_broken_projects(text, message, tmp_path):
    path = tmp_path / "project.qpproj"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(FormatError) as error:
        open_project(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("entry_id", ["../../etc", "1/2", "..", "", None, -1, 1.5, True, "٣"])
def test_an_entry_id_never_leads_outside(entry_id, tmp_path):
    entry = {"serverBuilder": {"uri": "file:/x"}, "entryID": entry_id, "imageName": "../x"}
    path = tmp_path / "project.qpproj"
    path.write_text(json.dumps({"version": "0.5.1", "images": [entry]}))
    with pytest.raises(FormatError, match="entryID"):
        open_project(path)


def test_two_entries_with_one_id(tmp_path):
    entry = {"serverBuilder": {"uri": "file:/x"}, "entryID": 1}
    path = tmp_path / "project.qpproj"
    path.write_text(json.dumps({"version": "0.5.1", "images": [entry, entry]}))
    with pytest.raises(FormatError, match="two images"):
        open_project(path)


def test_wrapped_servers(tmp_path):
    inner = {
        "builderType": "uri",
        "providerClassName": "P",
        "uri": "file:/x",
        "args": ["--no-crop"],
    }
    size = {"value": 0.25, "unit": "µm"}
    metadata = {
        "width": 10,
        "height": 20,
        "pixelCalibration": {"pixelWidth": size, "pixelHeight": {"value": 0.5, "unit": "µm"}},
    }
    rotated = {"builderType": "rotated", "builder": inner, "metadata": metadata}
    regions = [{"resolutions": [{"serverBuilder": inner}, {"serverBuilder": {"uri": "file:/y"}}]}]
    sparse = {"builderType": "sparse", "regions": regions}
    entries = [
        {"serverBuilder": rotated, "entryID": 1},
        {"serverBuilder": sparse, "entryID": 2, "imageName": "s"},
    ]
    path = tmp_path / "project.qpproj"
    path.write_text(json.dumps({"version": "0.6.0", "images": entries}), encoding="utf-8")
    first, second = open_project(path).images
    assert first.server.builder_types == ("rotated", "uri")
    assert first.server.uris == ("file:/x",)
    assert first.server.args == ("--no-crop",)
    assert first.server.provider == "P"
    assert (first.server.width, first.server.height) == (10, 20)
    assert first.calibration.mpp == 0.375
    assert first.path is None
    assert second.server.builder_types == ("sparse",)
    assert second.server.uris == ("file:/x", "file:/y")
    assert second.calibration.mpp is None


def test_truncated_data_names_file_offset_and_backup(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    whole = image.data_path.read_bytes()
    image.data_path.write_bytes(whole[:5000])
    with pytest.raises(FormatError, match=r"data\.qpdata: byte \d+: ") as error:
        image.read()
    assert "no data.qpdata.bkp" in error.value.hint
    image.data_path.with_name("data.qpdata.bkp").write_bytes(whole)
    with pytest.raises(FormatError) as error:
        image.read()
    assert "readable, with 9 annotations and 7 detections" in error.value.hint
    image.data_path.with_name("data.qpdata.bkp").write_bytes(whole[:100])
    with pytest.raises(FormatError) as error:
        image.read()
    assert "is unreadable too" in error.value.hint


def test_missing_data_with_a_backup_is_not_an_empty_image(tmp_path):
    """QuPath was killed between moving the old file away and writing the new one."""
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    image.data_path.rename(image.data_path.with_name("data.qpdata.bkp"))
    with pytest.raises(FormatError, match="is missing") as error:
        image.read()
    assert "readable, with 9 annotations" in error.value.hint


@pytest.mark.parametrize(
    "content", [b"", b"PK\3\4", bytes.fromhex("aced0005"), bytes.fromhex("aced0005740003454f46")]
)
def test_not_a_data_file(content, tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    image.data_path.write_bytes(content)
    with pytest.raises(FormatError, match=r"data\.qpdata"):
        image.read()


@settings(max_examples=150)
@given(st.integers(4, 9000), st.binary(min_size=1, max_size=8))
def test_mutated_data_is_read_or_refused(position, patch):
    data = (SAMPLES / "0.5.1" / "project" / "data" / "1" / "data.qpdata").read_bytes()
    data = data[:position] + patch + data[position + len(patch) :]
    try:
        data_file = DataFile.parse(data, "file")
        table = data_file.read().detections
        columns = ("ids", "kinds", "class_names", "geometries", "centroids", "planes", "parents")
        for column in columns:
            assert len(getattr(table, column)) == len(table)
        assert all(len(values) == len(table) for values in table.measurements.values())
        assert data_file.image_type != ""  # None where the class of it is what changed
    except FormatError as error:
        refusal = str(error)
    else:
        refusal = "file: "
    assert "file: " in refusal


@pytest.mark.parametrize("version", VERSIONS)
def test_properties_of_an_image(version, tmp_path):
    image = open_project(copy_project(version, tmp_path)).images[0]
    before = dump(image.data_path.read_bytes())
    long = "µ𝄞\n" * 50_000  # longer than what Java writes as a short string
    for values in ({"ours": "1", "long": long}, {"ours": "2"}):
        image.write(Edit(properties=values), image.read().fingerprint)
    read = image.read().properties
    assert (read["ours"], read["long"]) == ("2", long)
    after = dump(image.data_path.read_bytes())
    assert after.pop("props") == sorted([*before.pop("props"), ["long", long], ["ours", "2"]])
    assert after == before


def test_properties_of_an_image_that_was_never_saved(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    image.data_path.unlink()
    assert image.read().properties == {}
    image.write(Edit(properties={"a": "b"}), image.read().fingerprint)
    assert image.read().properties["a"] == "b"


def test_an_annotation_of_ours_is_removed_and_what_is_below_it_moves_up(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = dump(image.data_path.read_bytes())
    count = len(image.read().annotations)
    ours = NewAnnotation(shapely.box(0, 0, 200, 200), new_id("tissue"), None, PathClass("Tissue"))
    edit = Edit(annotations=[ours], add=[group(count)])
    image.write(edit, image.read().fingerprint)
    # Another takes its place, and the detections go below that one.
    other = NewAnnotation(shapely.box(0, 0, 150, 150), new_id("other"), None, PathClass("Tissue"))
    edit = replace(removal(image, [ours.id]), annotations=[other], add=[group(count, seed=1)])
    image.write(edit, image.read().fingerprint)
    objects = image.read()
    assert [a.id for a in objects.annotations[count:]] == [other.id]
    below = dict(zip(objects.detections.ids, objects.detections.parents.tolist(), strict=True))
    assert {below[new_id((0, i))] for i in range(5)} == {-1}
    assert {below[new_id((1, i))] for i in range(5)} == {count}
    image.write(
        removal(image, [other.id, *(new_id((s, i)) for s in (0, 1) for i in range(5))]),
        objects.fingerprint,
    )
    assert dump(image.data_path.read_bytes())["root"] == before["root"]
    objects = image.read()
    theirs = Edit(remove_annotations=frozenset([0]))
    with pytest.raises(UsageError, match="not written by qpnuclei"):
        image.write(theirs, objects.fingerprint)


# Edits that contradict the file


def test_what_is_not_ours_is_not_removed(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    objects = image.read()
    with pytest.raises(UsageError, match="not written by qpnuclei"):
        image.write(Edit(remove=frozenset([0])), objects.fingerprint)
    for edit in (
        Edit(remove=frozenset([0, len(objects.detections)])),
        Edit(remove=frozenset([-1])),
        Edit(remove_annotations=frozenset([len(objects.annotations)])),
    ):
        with pytest.raises(UsageError, match=r"has no (detection|annotation) number"):
            image.write(edit, objects.fingerprint)
    with pytest.raises(UsageError, match="no annotation number 99"):
        image.write(Edit(add=[group(99)]), objects.fingerprint)
    for name, hint in (("Nucleus ", "give 'Nucleus'"), ("A:B", "give 'A: B'")):
        odd = NewAnnotation(shapely.box(0, 0, 9, 9), new_id(2), path_class=PathClass(name))
        for edit in (Edit(add=[group(path_class=odd.path_class)]), Edit(annotations=[odd])):
            with pytest.raises(UsageError, match="not QuPath's form of a class name") as error:
                image.write(edit, objects.fingerprint)
            assert error.value.hint == hint
    assert image.read().fingerprint == objects.fingerprint


def test_a_uuid_is_never_there_twice(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    with pytest.raises(UsageError, match="same UUID"):
        image.write(Edit(add=[group(0), group(1)]), image.read().fingerprint)
    image.write(Edit(add=[group(0)]), image.read().fingerprint)
    with pytest.raises(UsageError, match="already has an object"):
        image.write(Edit(add=[group(1)]), image.read().fingerprint)


# Saving


def snapshot(folder: Path, ignore=BACKUP_FOLDER):
    return {
        str(p.relative_to(folder)): p.read_bytes()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and ignore not in p.parts
    }


def test_a_changed_file_is_a_conflict(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    fingerprint = image.read().fingerprint
    image.write(Edit(properties={"of": "another program"}), fingerprint)
    before = snapshot(tmp_path)
    with pytest.raises(ConflictError, match="changed on disk"):
        image.write(Edit(add=[group(0)]), fingerprint)
    assert snapshot(tmp_path) == before


def test_a_file_that_changes_while_we_save_is_a_conflict(tmp_path, monkeypatch):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    fingerprint = image.read().fingerprint
    theirs = image.data_path.read_bytes() + b" "
    verify = type(image)._verify

    def meanwhile(self, *arguments):
        image.data_path.write_bytes(theirs)
        return verify(self, *arguments)

    monkeypatch.setattr(type(image), "_verify", meanwhile)
    with pytest.raises(ConflictError):
        image.write(Edit(add=[group(0)]), fingerprint)
    assert image.data_path.read_bytes() == theirs


def test_a_file_that_qupath_is_saving_is_a_conflict(tmp_path, monkeypatch):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    fingerprint = image.read().fingerprint
    verify = type(image)._verify

    def meanwhile(self, *arguments):
        image.data_path.rename(image.folder / "data.qpdata.bkp")  # what QuPath does first
        return verify(self, *arguments)

    monkeypatch.setattr(type(image), "_verify", meanwhile)
    with pytest.raises(ConflictError):
        image.write(Edit(add=[group(0)]), fingerprint)
    assert not image.data_path.exists()


def test_leftovers_of_a_killed_save_are_removed_when_old(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    old, fresh = (image.folder / f".qpnuclei-{name}.tmp" for name in ("old", "fresh"))
    old.touch()
    fresh.touch()
    os.utime(old, (time.time() - 7200,) * 2)
    image.write(Edit(add=[group(0)]), image.read().fingerprint)
    assert not old.exists()
    assert fresh.exists()  # may belong to a save that goes on


def test_leftovers_of_killed_processes_are_removed_wherever_the_project_is_saved(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    name = temporary_prefix().replace(Process.this().begun, "00000000")
    project = image.folder.parent.parent
    left = [f / f"{name}1.tmp" for f in (image.folder, project, project / "classifiers")]
    for path in left:
        path.touch()
    image.write(Edit(add=[group(0)]), image.read().fingerprint)
    assert not [path for path in left if path.exists()]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root may give files away"
)
def test_what_root_saves_stays_its_owners(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    paths = [image.folder, image.data_path, image.folder / "summary.json"]
    for path in paths:
        os.chown(path, 12345, 23456)
    image.write(Edit(add=[group(0)]), image.read().fingerprint)
    (backup,) = image.backups()
    for path in (*paths, backup.path, backup.path.parent):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 23456)


class Failing:
    """Let the n-th call of some functions fail."""

    def __init__(self, monkeypatch, fail_at):
        self.calls = 0
        self.fail_at = fail_at
        self.monkeypatch = monkeypatch

    def wrap(self, owner, name):
        real = getattr(owner, name)

        def call(*arguments, **options):
            self.calls += 1
            if self.calls == self.fail_at:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*arguments, **options)

        self.monkeypatch.setattr(owner, name, call)


def failing(monkeypatch, fail_at):
    from qpnuclei.qupath import transaction

    faults = Failing(monkeypatch, fail_at)
    faults.wrap(os, "fsync")
    faults.wrap(Path, "replace")
    faults.wrap(Path, "mkdir")
    faults.wrap(transaction.shutil, "copyfile")
    real_open = Path.open

    def open_failing(path, mode="r", **options):
        stream = real_open(path, mode, **options)
        if "x" in mode:
            # The stream is new: its writes count too.
            class Stream:
                def write(self, data):
                    faults.calls += 1
                    if faults.calls == faults.fail_at:
                        stream.write(data[: len(data) // 2])
                        raise OSError(errno.ENOSPC, "No space left on device")
                    return stream.write(data)

                def __getattr__(self, name):
                    return getattr(stream, name)

                def __enter__(self):
                    return self

                def __exit__(self, *exception):
                    stream.close()

            return Stream()
        return stream

    monkeypatch.setattr(Path, "open", open_failing)
    return faults


def count_steps(tmp_path, monkeypatch):
    image = open_project(copy_project("0.3.2", tmp_path / "count")).images[2]
    fingerprint = image.read().fingerprint
    with monkeypatch.context() as context:
        faults = failing(context, 0)
        image.write(Edit(add=[group(0, 2)]), fingerprint)
    return faults.calls


def test_a_failure_at_any_step_leaves_everything_as_it_was(tmp_path, monkeypatch):
    total = count_steps(tmp_path, monkeypatch)
    assert total > 100  # writes, fsyncs, renames
    # Every step is the same call as its neighbours while the file is written; the last ones,
    # where the new files take their places, are each tried.
    steps = [*range(1, total - 40, 23), *range(total - 40, total + 1)]
    image = open_project(copy_project("0.3.2", tmp_path)).images[2]
    before = snapshot(tmp_path / "0.3.2", ignore="none")
    for step in steps:
        fingerprint = image.read().fingerprint
        with monkeypatch.context() as context:
            failing(context, step)
            with pytest.raises(SaveError) as error:
                image.write(Edit(add=[group(0, 2)]), fingerprint)
        assert "No space left on device" in str(error.value), step
        assert snapshot(tmp_path / "0.3.2", ignore="none") == before, step


# The first rename is that of the backup; the new files take their places after it.
@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_keyboard_interrupt_between_renames_leaves_everything_as_it_was(at, tmp_path, monkeypatch):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = snapshot(tmp_path, ignore="none")
    fingerprint = image.read().fingerprint
    real, calls = Path.replace, []

    def interrupt(self, target):
        calls.append(target)
        if len(calls) == at:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        image.write(Edit(add=[group(0)]), fingerprint)
    assert snapshot(tmp_path, ignore="none") == before
    assert not (image.folder / BACKUP_FOLDER).exists()


@pytest.mark.parametrize(
    ("written", "read"), [(b"// a step", b"// a stop"), (b"Prob", b"Prop")], ids=["step", "name"]
)
def test_a_file_that_does_not_read_back_is_not_put_in_place(written, read, tmp_path, monkeypatch):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = snapshot(tmp_path)
    fingerprint = image.read().fingerprint
    real = Path.read_bytes

    def rotten(path):
        data = real(path)
        if path.suffix == ".tmp":
            assert written in data
            data = data.replace(written, read)
        return data

    monkeypatch.setattr(Path, "read_bytes", rotten)
    with pytest.raises(SaveError, match="its bytes differ from those written"):
        image.write(Edit(add=[group(0)], workflow_step=("run", "// a step")), fingerprint)
    monkeypatch.undo()
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("fault", ["a detection is lost", "a step is added"])
def test_a_file_with_more_changed_than_was_asked_for_is_not_put_in_place(
    fault, tmp_path, monkeypatch
):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    before = snapshot(tmp_path)
    objects = image.read()
    real = DataFile.add

    def faulty(data_file, edit):
        if fault == "a step is added":
            add_step(data_file._workflow(), data_file._catalog, "not asked for", "// by anyone")
        else:
            remove_objects(data_file._root(), [0], [])
        return real(data_file, edit)

    monkeypatch.setattr(DataFile, "add", faulty)
    with pytest.raises(SaveError, match="objects outside the edit have changed"):
        image.write(Edit(add=[group(0)]), objects.fingerprint)
    assert snapshot(tmp_path) == before


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(tmp_path):
    image = open_project(copy_project("0.5.1", tmp_path)).images[0]
    fingerprint = image.read().fingerprint
    image.folder.chmod(0o555)
    try:
        with pytest.raises(SaveError, match="could not be saved"):
            image.write(Edit(add=[group(0)]), fingerprint)
    finally:
        image.folder.chmod(0o755)


# Real projects


@pytest.mark.shared
def test_real_projects():
    fish = open_project(SHARED / "data/qupath-real" / "hepatovac_fish_liver_v0.7.0")
    assert [len(i.read().annotations) for i in fish.images] == [1] * 4
    assert fish.images[0].calibration.mpp == 0.264317
    assert fish.images[0].path is None
    assert fish.images[0].stains is not None
    area = fish.images[0].read().annotations[0]
    assert area.class_name == "TISSUE"
    assert area.is_area
    cells = open_project(SHARED / "data/qupath-real" / "stardist_example_v0.2")
    assert [i.path.name for i in cells.images] == [
        p.name for p in sorted((SHARED / "data/qupath-real/stardist_example_v0.2/images").iterdir())
    ]
    assert [len(i.read().annotations) for i in cells.images] == [19, 32]
    assert cells.images[0].image_type == "FLUORESCENCE"
    assert cells.images[0].stains is None
