"""How nuclei reach the project when something is in the way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely

from qpnuclei.detect import Scale
from qpnuclei.errors import ConflictError, FormatError, QpnucleiError, SaveError, UsageError
from qpnuclei.files import atomic_file
from qpnuclei.nuclei import NucleiTable
from qpnuclei.planning import ImagePlan, RunOptions
from qpnuclei.qupath.geojson import read_objects
from qpnuclei.qupath.model import DEFAULT_HE, Edit, NewAnnotation, is_ours, nucleus_id
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.native import NativeImage, NativeProject, open_project
from qpnuclei.qupath.native.data_file import DataFile
from qpnuclei.qupath.native.path_objects import PathObject
from qpnuclei.roi import RoiSelection, ours_within, select_regions
from qpnuclei.segmentation.tiles import TilePlan
from qpnuclei.writeback import NewNuclei, new_nuclei, write_back

SAMPLES = Path(__file__).parent / "data" / "qupath-samples"
#: Of the sample's nine annotations, the fourth ("nested") and fifth are of class Stroma.
OPTIONS = RunOptions(RoiSelection(classes=("Stroma",)))


@pytest.fixture(params=["0.5.1", "0.3.2"])  # with UUIDs, and without
def project(request: pytest.FixtureRequest, tmp_path: Path) -> NativeProject:
    return open_project(Path(shutil.copytree(SAMPLES / request.param, tmp_path / "p")) / "project")


def plan_of(image: NativeImage, options: RunOptions = OPTIONS) -> ImagePlan:
    """Plan the image as a run does, without tiles: they are done with when nuclei are written."""
    objects = image.read()
    regions = select_regions(options.selection, objects.annotations, 512, 384)
    existing = [ours_within(region, objects.detections) for region in regions]
    scale = Scale((0.5, 0.5), (1.0, 1.0))
    tiles = TilePlan(shapely.box(0, 0, 512, 384), (512, 384), 512, 32)
    return ImagePlan(image, objects, scale, "--mpp", DEFAULT_HE, regions, existing, tiles)


def nuclei_of(plan: ImagePlan, options: RunOptions = OPTIONS) -> NewNuclei:
    """Return two nuclei in "nested"."""
    (nested,) = (i for i, r in enumerate(plan.regions) if r.annotation.name == "nested")
    table = NucleiTable.from_polygons([shapely.box(x, 180, x + 5, 186) for x in (50, 60)])
    return new_nuclei(plan, table, np.array([nested, nested]), options)


def without_first_annotation(image: NativeImage) -> None:
    """Save the image as someone else does who has deleted the first annotation."""
    data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    root = PathObject.of(data_file._root())
    root.set_children(root.children[1:])
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)


def written_into(image: NativeImage) -> list[str | None]:
    """Return the names of the annotations that our detections are in."""
    objects = image.read()
    rows = [row for row, own_id in enumerate(objects.detections.ids) if is_ours(own_id)]
    return [objects.annotations[p].name for p in objects.detections.parents[rows].tolist()]


def test_a_conflict_leaves_the_project_and_saves_the_nuclei(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    without_first_annotation(image)
    theirs = image.data_path.read_bytes()
    with pytest.raises(ConflictError, match=r"changed on disk.*the nuclei are in") as error:
        write_back(project, plan, nuclei_of(plan), OPTIONS, tmp_path)
    assert image.data_path.read_bytes() == theirs
    rescued = tmp_path / "1-he small.png.rescued.geojson.gz"
    assert str(rescued) in error.value.what
    assert [o.id for o in read_objects(rescued)] == nuclei_of(plan).ids


def test_force_writes_into_the_image_as_it_is_now_and_keeps_both(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    without_first_annotation(image)  # all handles are others now
    theirs, objects = image.data_path.read_bytes(), image.read()
    options = replace(OPTIONS, force=True)
    assert write_back(project, plan, nuclei_of(plan), options, tmp_path) == 0
    assert written_into(image) == ["nested", "nested"]
    assert image.read().annotations == objects.annotations
    assert image.backups()[0].path.read_bytes() == theirs


def test_force_replaces_what_another_run_wrote_meanwhile(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    write_back(project, plan, nuclei_of(plan), OPTIONS, tmp_path)  # the same nuclei
    options = replace(OPTIONS, force=True)
    assert write_back(project, plan, nuclei_of(plan), options, tmp_path) == 2
    assert written_into(image) == ["nested", "nested"]
    options = replace(options, on_existing="append")
    assert write_back(project, plan, nuclei_of(plan, options), options, tmp_path) == 0
    assert written_into(image) == ["nested", "nested"]
    with pytest.raises(ConflictError, match=r"wrote detections into nested .* meanwhile"):
        write_back(project, plan, nuclei_of(plan), replace(options, on_existing="skip"), tmp_path)


@pytest.mark.parametrize("geometry", [None, shapely.box(40, 170, 121, 230)])
def test_force_refuses_when_an_annotation_is_not_where_it_was(
    project: NativeProject, tmp_path: Path, geometry: shapely.Geometry | None
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    polygon = data_file._annotations()[2]
    polygon.set_children([])
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)
    if geometry is not None:
        own_id = plan.objects.annotations[3].id or nucleus_id(b"0123456789")
        new = NewAnnotation(geometry, own_id, "nested")
        image.write(Edit(annotations=[new]), image.read().fingerprint)
    theirs = image.data_path.read_bytes()
    with pytest.raises(ConflictError, match=r"nested .* is gone, or has another"):
        write_back(project, plan, nuclei_of(plan), replace(OPTIONS, force=True), tmp_path)
    assert image.data_path.read_bytes() == theirs
    assert (tmp_path / "1-he small.png.rescued.geojson.gz").exists()


@pytest.mark.parametrize(
    "error", [SaveError("disk full"), FormatError("gone"), UsageError("there already")]
)
def test_nuclei_are_saved_wherever_there_is_room(
    project: NativeProject,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: QpnucleiError,
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    (tmp_path / "run").write_text("no folder: nothing can be written below it")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(NativeImage, "write", fail)
    with pytest.raises(type(error), match=error.what) as raised:
        write_back(project, plan, nuclei_of(plan), OPTIONS, tmp_path / "run")
    (rescued,) = (tmp_path / "here").iterdir()
    assert str(rescued) in raised.value.what
    assert len(list(read_objects(rescued))) == 2


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_drive_that_is_gone(
    project: NativeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_before: bool
) -> None:
    plan = plan_of(project.images[0])
    nuclei = nuclei_of(plan)
    if not saved_before:
        project.images[0].data_path.unlink()
        plan = replace(plan, objects=project.images[0].read(), existing=[])
    folder = project.path.parent
    (folder / "qpnuclei").mkdir()
    folder.rename(tmp_path / "away")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(SaveError, match=r"project\.qpproj is no longer there") as raised:
        write_back(project, plan, nuclei, OPTIONS, folder / "qpnuclei")
    assert "drive" in raised.value.hint
    assert not folder.exists()
    assert len(list(read_objects(tmp_path / "here" / "1-he small.png.rescued.geojson.gz"))) == 2


def test_nothing_can_be_written_anywhere(
    project: NativeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path) -> None:
        raise SaveError(f"{path} cannot be written: No space left on device")

    monkeypatch.setattr("qpnuclei.qupath.geojson.atomic_file", full)
    plan = plan_of(project.images[0])
    without_first_annotation(project.images[0])
    with pytest.raises(ConflictError, match="could not be saved elsewhere"):
        write_back(project, plan, nuclei_of(plan), OPTIONS, tmp_path)


def test_file_names_of_images(project: NativeProject, tmp_path: Path) -> None:
    image = project.images[0]
    for name in ("../../etc/passwd", "a\\b:c*?.svs", "组织" * 200, "end. ", "half \ud800", "\0\n"):
        image.name = name
        stem = file_stem(image)
        assert stem.startswith("1-")
        path = tmp_path / f"{stem}.rescued.geojson.gz"
        assert path.parent == tmp_path
        with atomic_file(path) as stream:  # its temporary name is longer still
            stream.write(b"x")
        assert path.exists()
    image.name = "end. "
    assert file_stem(image) == "1-end"
