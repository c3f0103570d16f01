"""Objects with the same UUID, as a file that was loaded twice makes them, are told apart."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import numpy as np
import pytest
import shapely
import shapely.affinity

from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.certainty_filter import OwnNuclei
from qpnuclei.qupath.model import DetectionGroup, Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, NativeProject, open_project
from tests.ids import own_ids
from tests.pipeline.commit.runs import OPTIONS, assert_copied, run, run_killed_after_the_save
from tests.projects import lock

TISSUE = RunOptions(Selection(tissue=True), device="cpu", workers=1)
NUCLEUS = PathClass("Nucleus")
#: Beside all annotations.
ELSEWHERE = 300.0


def add_with_taken_ids(image: NativeImage, edit: Edit) -> None:
    """Add objects whose UUIDs are in use, as another program may do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("qpnuclei.qupath.qpdata.data_file.check_free", lambda *_: None)
        image.write(edit, image.read().fingerprint)


def copy_nuclei(image: NativeImage, shift: float = 0.0) -> None:
    """Add a copy of each of our nuclei, with its UUID and certainty, directly under the image."""
    found = image.read().detections
    rows = np.flatnonzero(found.ours)
    outlines = [shapely.affinity.translate(found.geometries[row], shift) for row in rows]
    measured = {"Attention: Mean": found.measurements["Attention: Mean"][rows]}
    nuclei = NucleiTable.from_polygons(outlines, measured)
    ids = [own_id for row in rows if (own_id := found.ids[row]) is not None]
    add_with_taken_ids(image, Edit(add=[DetectionGroup(None, nuclei, ids, NUCLEUS)]))


def outlines(image: NativeImage, rows: Sequence[int] | np.ndarray) -> list[bytes]:
    found: list[bytes] = shapely.to_wkb(image.read().detections.geometries[rows]).tolist()
    return found


@pytest.mark.parametrize("options", [OPTIONS, TISSUE], ids=["annotations", "tissue"])
def test_an_annotation_with_the_uuid_of_a_nucleus_stays(
    project: NativeProject, options: RunOptions
) -> None:
    (image,) = project.images
    number = run(project, options).nuclei
    found = image.read().detections
    row = int(np.flatnonzero(found.ours)[0])
    taken = found.ids[row]
    assert taken is not None
    mine = NewAnnotation(found.geometries[row], taken, "mine", PathClass("Held-out"), locked=True)
    add_with_taken_ids(image, Edit(annotations=[mine]))

    # The same nucleus is found again, and cannot have its UUID.
    for _ in range(2):
        (result,) = run(project, replace(options, tile_px=128)).images
        assert (result.replaced, result.nuclei) == (number, number)
        note = "1 nucleus got another UUID: other objects of the image have its own"
        assert note in result.notes
        ids = own_ids(image)
        assert len(set(ids)) == number
        assert taken not in ids
        (stays,) = (a for a in image.read().annotations if a.name == "mine")
        assert (stays.id, stays.class_name, stays.locked) == (taken, "Held-out", True)
    assert set(own_ids(image)) == set(ids)

    assert OwnNuclei.of(image).remove_below(2.0) == number
    assert own_ids(image) == []
    assert "mine" in [a.name for a in image.read().annotations]


def test_a_locked_nucleus_stays_if_a_copy_of_it_is_removed(project: NativeProject) -> None:
    (image,) = project.images
    number = run(project).nuclei
    kept = outlines(image, np.flatnonzero(image.read().detections.ours))
    lock(image, own_ids(image))
    for way in ("filter", "run"):
        copy_nuclei(image)
        assert (len(own_ids(image)), image.read().detections.locked.sum()) == (2 * number, number)
        if way == "filter":
            own = OwnNuclei.of(image)
            assert (len(own), own.remove_below(2.0)) == (2 * number, number)
        else:
            (result,) = run(project).images
            assert (result.replaced, result.locked, result.nuclei) == (number, number, 0)
        found = image.read().detections
        assert found.locked[found.ours].all()
        assert outlines(image, np.flatnonzero(found.ours)) == kept


def test_copies_elsewhere_stay(project: NativeProject, tmp_path: Path) -> None:
    (image,) = project.images
    number = run(project).nuclei
    copy_nuclei(image, ELSEWHERE)
    found = image.read().detections
    elsewhere = outlines(image, np.flatnonzero(found.centroids[:, 0] > ELSEWHERE))
    assert len(elsewhere) == number

    def stays() -> list[bytes]:
        return outlines(image, np.flatnonzero(image.read().detections.centroids[:, 0] > ELSEWHERE))

    # The run is killed after the save: what is written beside the project later is what is in it.
    copies = {"geojson_dir": tmp_path / "geojson", "parquet_dir": tmp_path / "parquet"}
    options = replace(OPTIONS, **copies)
    run_killed_after_the_save(project, options)
    summary = run(project, options)
    assert summary.resumed == 1
    (result,) = summary.images
    assert (result.replaced, result.nuclei) == (number, number)
    assert stays() == elsewhere
    found = image.read().detections
    new = [
        own_id
        for own_id, is_own, x in zip(found.ids, found.ours, found.centroids[:, 0], strict=True)
        if is_own and x < ELSEWHERE and own_id is not None
    ]
    assert len(set(own_ids(image))) == 2 * number
    assert_copied(tmp_path, new)

    (result,) = run(project, replace(OPTIONS, on_existing="append")).images
    assert result.nuclei == 0
    assert OwnNuclei.of(image, ["Tumor"]).remove_below(2.0) == number
    assert stays() == elsewhere


def test_appended_nuclei_are_written_if_only_their_uuids_are_in_use(
    project: NativeProject,
) -> None:
    (image,) = project.images
    number = run(project).nuclei
    copy_nuclei(image, ELSEWHERE)
    assert OwnNuclei.of(image, ["Tumor"]).remove_below(2.0) == number
    (result,) = run(project, replace(OPTIONS, on_existing="append")).images
    assert result.nuclei == number
    note = f"{number} nuclei got other UUIDs: other objects of the image have theirs"
    assert result.notes == (note,)
    assert len(set(own_ids(image))) == 2 * number


def test_edited_tissue_with_the_uuid_of_ours_stays(project: NativeProject) -> None:
    (image,) = project.images
    run(project, TISSUE)
    (tissue,) = (a for a in image.read().annotations if a.class_name == "Tissue")
    assert tissue.id is not None
    mine = NewAnnotation(shapely.box(0, 0, 90, 90), tissue.id, "mine", PathClass("Tissue"))
    hole = NewAnnotation(shapely.box(150, 60, 240, 240), uuid4(), None, PathClass("Ignore*"))
    add_with_taken_ids(image, Edit(annotations=[mine, hole]))
    run(project, TISSUE)
    names = [a.name for a in image.read().annotations if a.class_name == "Tissue"]
    assert sorted(map(str, names)) == ["None", "mine"]


@pytest.mark.parametrize("is_duplicated", [False, True])
def test_nuclei_are_not_appended_again_to_an_image_with_another_name(
    project: NativeProject, is_duplicated: bool
) -> None:
    (image,) = project.images
    number = run(project).nuclei
    # As QuPath does it: "Rename image", and "Duplicate image".
    content = json.loads(project.path.read_text())
    renamed = {**content["images"][0], "imageName": "Patient 17"}
    if is_duplicated:
        renamed["entryID"] = 2
        content["images"].append(renamed)
        shutil.copytree(image.folder, image.folder.with_name("2"))
    else:
        content["images"] = [renamed]
    project.path.write_text(json.dumps(content))
    again = open_project(project.path)
    append = replace(OPTIONS, on_existing="append")
    summary = run(again, append)
    assert [one.nuclei for one in summary.images] == [0] * len(again.images)
    assert [len(own_ids(one)) for one in again.images] == [number] * len(again.images)
    # A cell is the same nucleus.
    cells = replace(append, cell_expansion_um=2.0)
    assert [one.nuclei for one in run(again, cells).images] == [0] * len(again.images)
