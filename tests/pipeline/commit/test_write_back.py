"""How nuclei reach the project when something is in the way."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from qpnuclei.choices import OnExisting
from qpnuclei.errors import ConflictError, FormatError, QpnucleiError, SaveError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.commit.new_nuclei import NewNuclei, new_nuclei
from qpnuclei.pipeline.commit.replan import plan_again, regions_now
from qpnuclei.pipeline.commit.write_back import write_back
from qpnuclei.pipeline.folder import choose_folder
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import ImagePlan
from qpnuclei.pipeline.positivity import NucleusClasses
from qpnuclei.pipeline.selection import (
    Selection,
    ours_within,
    select_regions,
    without_excluded,
)
from qpnuclei.qupath import nucleus_rows
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.images import stains_of
from qpnuclei.qupath.model import Annotation, Edit, NewAnnotation, PathClass
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.native import NativeImage, NativeProject, open_project
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.hierarchy import annotations_of
from qpnuclei.qupath.qpdata.path_objects import PathObject
from qpnuclei.qupath.regions import Region, region_of
from qpnuclei.slides.resolution import Scale
from qpnuclei.system.files import atomic_file
from qpnuclei.tiling.plan import TilePlan
from tests.ids import nucleus_id, removal
from tests.paths import SAMPLES
from tests.qupath.samples import set_stains

#: Of the sample's nine annotations, the fourth ("nested") and fifth are of class Stroma.
OPTIONS = RunOptions(Selection(classes=("Stroma",)))


@pytest.fixture(params=["0.5.1", "0.3.2"])  # with UUIDs, and without
def project(request: pytest.FixtureRequest, tmp_path: Path) -> NativeProject:
    return open_project(Path(shutil.copytree(SAMPLES / request.param, tmp_path / "p")) / "project")


def plan_of(image: NativeImage, options: RunOptions = OPTIONS) -> ImagePlan:
    """Plan the image as a run does, without tiles: they are done with when nuclei are written."""
    objects = image.read()
    chosen = select_regions(options.selection, objects.annotations, 512, 384)
    regions, left_out = without_excluded(chosen, options.selection, objects.annotations)
    existing = ours_within(regions, objects.detections)
    scale = Scale((0.5, 0.5), (1.0, 1.0))
    tiles = TilePlan(shapely.box(0, 0, 512, 384), (512, 384), 512, 32)
    plan = ImagePlan(
        image,
        "default-40x",
        objects.fingerprint,
        (512, 384),
        scale,
        "--mpp",
        None,
        stains_of(image),
        regions,
        existing,
        tiles,
        left_out=left_out,
    )
    return plan.to_write(objects, options.on_existing)


def nuclei_of(plan: ImagePlan) -> NewNuclei:
    """Return two nuclei in "nested", each in a table of its own."""
    tables = [NucleiTable.from_polygons([shapely.box(x, 180, x + 5, 186)]) for x in (50, 60)]
    return new_nuclei(plan, tables)


def grid(step: int) -> NucleiTable:
    """Return small nuclei all over the sample image."""
    y, x = np.mgrid[2:380:step, 2:508:step].reshape(2, -1)
    columns = {"Area µm^2": np.arange(len(x))}
    return NucleiTable.from_polygons(shapely.box(x, y, x + 4, y + 5), columns)


def ids_of(nuclei: NewNuclei) -> list[UUID]:
    classes = NucleusClasses([PathClass("Nucleus")])
    groups = nuclei.groups([None] * nuclei.counts.shape[1], classes)
    return [own_id for group in groups for own_id in group.ids]


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


def test_every_nucleus_goes_under_its_region_from_whatever_table(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    options = replace(
        OPTIONS,
        selection=Selection(everything=True),
        geojson_dir=tmp_path / "geojson",
        parquet_dir=tmp_path / "parquet",
    )
    plan = plan_of(image, options)
    whole = grid(9)
    owner = region_of(whole.centroids(), plan.regions)
    assert len(np.unique(owner)) > 3
    assert np.any(owner < 0)
    split = np.random.default_rng(0).integers(0, 5, len(whole))
    tables = [whole.take(split == i) for i in range(5)]
    nuclei = new_nuclei(plan, tables)
    assert nuclei.outside == np.count_nonzero(owner < 0)
    assert len(nuclei) == len(whole) - nuclei.outside
    expected = [np.count_nonzero(owner == i) for i in range(len(plan.regions))]
    np.testing.assert_array_equal(nuclei.counts.sum(axis=0), expected)
    write_back(project, plan, nuclei, options, tmp_path)

    objects = image.read()
    rows = [row for row, own_id in enumerate(objects.detections.ids) if is_ours(own_id)]
    number = objects.detections.measurements["Area µm^2"][rows].astype(int)
    handles = np.array([region.handle for region in plan.regions])
    np.testing.assert_array_equal(objects.detections.parents[rows], handles[owner[number]])
    assert sorted(number) == np.flatnonzero(owner >= 0).tolist()
    # The copies hold the same, in the same order.
    written = ids_of(nuclei)
    (geojson,) = (tmp_path / "geojson").iterdir()
    assert [o.id for o in read_objects(geojson)] == written
    (parquet,) = (tmp_path / "parquet").iterdir()
    copy = pq.read_table(parquet)
    assert copy["uuid"].to_pylist() == list(map(str, written))
    number = copy["Area µm^2"].to_numpy().astype(int)
    # The annotation is named as in the export, so that the tables can be joined.
    columns = ["annotation", "annotation_class", "annotation_uuid"]
    exported = nucleus_rows.nuclei_of(project, image).table.select(["uuid", *columns]).to_pylist()
    by_id = {row.pop("uuid"): row for row in exported}
    assert copy.select(columns).to_pylist() == [by_id[own_id] for own_id in map(str, written)]
    annotations = [plan.regions[index].annotation for index in owner[number]]
    assert copy["annotation"].to_pylist() == [a.name for a in annotations if a]
    assert copy.column_names[:6] == [
        "uuid", "class", "annotation", "annotation_class", "annotation_uuid", "centroid_x_px",
    ]  # fmt: skip
    assert set(copy["class"].to_pylist()) == {"Nucleus"}
    outlines = shapely.from_wkb(np.array(copy["geometry"].to_pylist(), dtype=object))
    assert shapely.equals(outlines, whole.take(number).polygons()).all()
    np.testing.assert_array_equal(copy["centroid_x_px"].to_numpy(), whole.centroids()[number, 0])


def test_append_leaves_out_what_is_there(project: NativeProject, tmp_path: Path) -> None:
    image = project.images[0]
    write_back(project, plan_of(image), nuclei_of(plan_of(image)), OPTIONS, tmp_path)
    options = replace(OPTIONS, on_existing="append")
    plan = plan_of(image, options)
    tables = [NucleiTable.from_polygons(shapely.box([50, 70], 180, [55, 75], 186))]
    nuclei = new_nuclei(plan, tables)
    assert (len(nuclei), nuclei.outside) == (1, 0)
    write_back(project, plan, nuclei, options, tmp_path)
    assert written_into(image) == ["nested"] * 3


def test_an_image_without_nuclei_has_an_empty_parquet_table(
    project: NativeProject, tmp_path: Path
) -> None:
    options = replace(OPTIONS, parquet_dir=tmp_path / "parquet")
    plan = plan_of(project.images[0], options)
    none = NucleiTable.empty(["Area µm^2"])
    write_back(project, plan, new_nuclei(plan, [none]), options, tmp_path)
    (parquet,) = (tmp_path / "parquet").iterdir()
    copy = pq.read_table(parquet)
    assert copy.num_rows == 0
    assert copy.column_names[-2:] == ["geometry", "Area µm^2"]


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
    assert [o.id for o in read_objects(rescued)] == ids_of(nuclei_of(plan))


def test_force_writes_into_the_image_as_it_is_now_and_keeps_both(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    without_first_annotation(image)  # all handles are others now
    theirs, objects = image.data_path.read_bytes(), image.read()
    options = replace(OPTIONS, force=True)
    assert write_back(project, plan, nuclei_of(plan), options, tmp_path).replaced == 0
    assert written_into(image) == ["nested", "nested"]
    assert image.read().annotations == objects.annotations
    assert image.backups()[0].path.read_bytes() == theirs


def test_force_refuses_nuclei_measured_with_other_stain_vectors(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    renamed = replace(plan.stains, name="mine")
    set_stains(image.data_path, renamed)
    options = replace(OPTIONS, force=True)
    write_back(project, plan, nuclei_of(plan), options, tmp_path)
    set_stains(image.data_path, replace(renamed, background=(240.0, 240.0, 240.0)))
    theirs = image.data_path.read_bytes()
    with pytest.raises(ConflictError, match=r"stain vectors changed .*the nuclei are in"):
        write_back(project, plan, nuclei_of(plan), options, tmp_path)
    assert image.data_path.read_bytes() == theirs


def test_force_replaces_what_another_run_wrote_meanwhile(
    project: NativeProject, tmp_path: Path
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    write_back(project, plan, nuclei_of(plan), OPTIONS, tmp_path)  # the same nuclei
    options = replace(OPTIONS, force=True)
    assert write_back(project, plan, nuclei_of(plan), options, tmp_path).replaced == 2
    assert written_into(image) == ["nested", "nested"]
    options = replace(options, on_existing="append")
    assert write_back(project, plan, nuclei_of(plan), options, tmp_path).replaced == 0
    assert written_into(image) == ["nested", "nested"]
    with pytest.raises(ConflictError, match=r"into nested .* since it was planned"):
        write_back(project, plan, nuclei_of(plan), replace(options, on_existing="skip"), tmp_path)


NESTED = shapely.box(40, 170, 120, 230)
#: Of the image, the part without chosen annotations.
ELSEWHERE = shapely.box(300, 10, 340, 40)


def without_nested(image: NativeImage) -> UUID:
    """Save the image as someone does who has deleted "nested"; return its UUID, or a new one."""
    nested = next(a for a in image.read().annotations if a.name == "nested")
    data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    annotations_of(data_file._root(), range(9))[2].set_children([])
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)
    return nested.id or nucleus_id(b"0123456789")


def with_nested(image: NativeImage, times: int) -> None:
    """Save the image as someone does who has duplicated "nested", or deleted all but one."""
    data_file = DataFile.parse(image.data_path.read_bytes(), "file")
    found = annotations_of(data_file._root(), range(9))
    found[2].set_children([deepcopy(found[3].node) for _ in range(times)])
    with image.data_path.open("wb") as stream:
        data_file.write(stream.write)


def draw(
    image: NativeImage,
    geometry: shapely.Geometry,
    name: str,
    class_name: str | None,
    own_id: UUID | None = None,
) -> None:
    new = NewAnnotation(
        geometry,
        own_id or nucleus_id(name.encode().ljust(10)[:10]),
        name,
        None if class_name is None else PathClass(class_name),
    )
    image.write(Edit(annotations=[new]), image.read().fingerprint)


def outline_changed(image: NativeImage) -> None:
    own_id = without_nested(image)
    draw(image, shapely.box(40, 170, 121, 230), "nested", "Stroma", own_id)


def class_changed(image: NativeImage) -> None:
    own_id = without_nested(image)
    draw(image, NESTED, "nested", "Tumor", own_id)


def excluded(image: NativeImage) -> None:
    draw(image, shapely.box(30, 160, 80, 300), "pen", "Ignore*")


def wholly_excluded(image: NativeImage) -> None:
    draw(image, shapely.box(30, 160, 180, 300), "pen", "Ignore*")


def excluded_elsewhere(image: NativeImage) -> None:
    pen = next(a.id for a in image.read().annotations if a.name == "old pen")
    assert pen is not None
    image.write(removal(image, [pen]), image.read().fingerprint)
    draw(image, shapely.box(40, 200, 120, 230), "old pen", "Ignore*", pen)


def another_drawn(image: NativeImage) -> None:
    draw(image, ELSEWHERE, "new", "Stroma")


@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (without_nested, r"the annotation nested .* was deleted or its outline changed"),
        (outline_changed, r"the annotation nested .* was deleted or its outline changed"),
        (class_changed, r"the annotation nested .* is not chosen any more: its class or name"),
        (excluded, r"what is excluded from nested .* changed since"),
        (wholly_excluded, r"what is excluded from nested .* changed since"),
        (excluded_elsewhere, r"what is excluded from nested .* changed since"),
        (another_drawn, r"the annotation new .* is to be analysed, too"),
    ],
)
def test_force_refuses_when_other_areas_are_to_be_analysed(
    project: NativeProject,
    tmp_path: Path,
    change: Callable[[NativeImage], object],
    reason: str,
    on_existing: OnExisting,
) -> None:
    image = project.images[0]
    options = replace(OPTIONS, force=True, on_existing=on_existing)
    draw(image, shapely.box(40, 170, 120, 175), "old pen", "Ignore*")
    plan = plan_of(image, options)
    change(image)
    theirs = image.data_path.read_bytes()
    with pytest.raises(ConflictError, match=reason):
        write_back(project, plan, nuclei_of(plan), options, tmp_path)
    assert image.data_path.read_bytes() == theirs
    assert (tmp_path / "1-he small.png.rescued.geojson.gz").exists()


@pytest.mark.parametrize("project", ["0.3.2"], indirect=True)
@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
def test_force_tells_annotations_without_uuid_apart_that_are_alike(
    project: NativeProject, tmp_path: Path, on_existing: OnExisting
) -> None:
    image = project.images[0]
    with_nested(image, 2)
    options = replace(OPTIONS, force=True, on_existing=on_existing)
    plan = plan_of(image, options)
    names = [region.annotation and region.annotation.name for region in plan.regions]
    assert names.count("nested") == 2
    with_nested(image, 1)
    with pytest.raises(ConflictError, match=r"the annotation nested .* was deleted"):
        plan_again(plan, options)
    with_nested(image, 2)
    without_first_annotation(image)  # all handles are others now
    objects = image.read()
    present = [a.handle for a in objects.annotations if a.class_name == "Stroma"]
    assert [region.handle for region in plan_again(plan, options).regions] == present
    assert [region.handle for region in regions_now(plan, objects)] == present
    write_back(project, plan, nuclei_of(plan), options, tmp_path)
    assert written_into(image) == ["nested", "nested"]


#: An outline so long that slivers along it have together the area of many nuclei.
COMB = shapely.union_all(
    [shapely.box(10, 360, 500, 370), *(shapely.box(x, 10, x + 4, 360) for x in range(10, 490, 8))]
)


@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
def test_force_sees_a_small_excluded_annotation_in_a_long_outline(
    project: NativeProject, tmp_path: Path, on_existing: OnExisting
) -> None:
    image = project.images[0]
    options = RunOptions(Selection(names=("comb",)), force=True, on_existing=on_existing)
    draw(image, COMB, "comb", "Comb")
    plan = plan_of(image, options)
    nuclei = nuclei_of(plan)
    draw(image, shapely.box(100, 100, 124, 140), "pen", "Ignore*")
    with pytest.raises(ConflictError, match=r"what is excluded from comb .* changed since"):
        write_back(project, plan, nuclei, options, tmp_path)


@pytest.mark.parametrize("class_name", [None, "Tumor", "Ignore*"])
def test_force_allows_new_annotations_that_change_nothing_of_the_selection(
    project: NativeProject, tmp_path: Path, class_name: str | None
) -> None:
    image = project.images[0]
    plan = plan_of(image)
    draw(image, ELSEWHERE, "new", class_name)
    write_back(project, plan, nuclei_of(plan), replace(OPTIONS, force=True), tmp_path)
    assert written_into(image) == ["nested", "nested"]


@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
@pytest.mark.parametrize("is_annotated", [True, False])
def test_force_refuses_when_other_parts_of_the_tissue_are_excluded(
    project: NativeProject, tmp_path: Path, is_annotated: bool, on_existing: OnExisting
) -> None:
    image = project.images[0]
    options = replace(
        OPTIONS,
        selection=Selection(tissue=True),
        force=True,
        tissue_annotation=is_annotated,
        on_existing=on_existing,
    )
    own_id = nucleus_id(b"the tissue")
    tissue = Annotation(9, own_id, None, "Tissue", "GeometryROI", shapely.box(0, 0, 300, 380))
    region = Region(tissue if is_annotated else None, tissue.geometry)
    plan = replace(
        plan_of(image),
        regions=[region],
        existing=[frozenset()],
        tissue=tissue if is_annotated else None,
    )
    draw(image, ELSEWHERE, "beside", "Ignore*")
    tables = [NucleiTable.from_polygons([shapely.box(50, 180, 55, 186)])]
    nuclei = new_nuclei(plan, tables)
    draw(image, shapely.box(30, 160, 80, 300), "pen", "Ignore*")
    theirs = image.data_path.read_bytes()
    with pytest.raises(ConflictError, match="what is excluded from the tissue changed"):
        write_back(project, plan, nuclei, options, tmp_path)
    assert image.data_path.read_bytes() == theirs
    pen = next(a.id for a in image.read().annotations if a.name == "pen")
    assert pen is not None
    image.write(removal(image, [pen]), image.read().fingerprint)
    write_back(project, plan, nuclei, options, tmp_path)
    assert len(written_into(image)) == 1


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


def test_runs_of_one_second_have_a_folder_each(project: NativeProject) -> None:
    folders = []
    for _ in range(5):
        folders.append(choose_folder(project, OPTIONS).path)
        folders[-1].mkdir(parents=True)
        (folders[-1] / "run.json").write_text("{}")
    assert len(set(folders)) == 5


def test_folders_of_runs_that_were_killed_while_planning_are_removed(
    project: NativeProject,
) -> None:
    runs = project.path.parent / "qpnuclei"
    for name, files in {
        "2026-01-01T10-00-00": [],
        "2026-01-01T11-00-00": ["plan.json", "run.log"],
        "2026-01-01T12-00-00": ["plan.json", "run.json"],
        "2026-01-01T13-00-00": ["plan.json", "shards"],
        "notes": [],
    }.items():
        (runs / name).mkdir(parents=True)
        for file in files:
            (runs / name / file).touch()
    choose_folder(project, OPTIONS)
    left = sorted(path.name for path in runs.iterdir())
    assert left == ["2026-01-01T12-00-00", "2026-01-01T13-00-00", "notes"]


@pytest.mark.parametrize("saved_before", [True, False])
def test_a_drive_that_is_gone(
    project: NativeProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved_before: bool
) -> None:
    plan = plan_of(project.images[0])
    nuclei = nuclei_of(plan)
    if not saved_before:
        project.images[0].data_path.unlink()
        fingerprint = project.images[0].read().fingerprint
        plan = replace(plan, fingerprint=fingerprint, existing=[frozenset() for _ in plan.regions])
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

    monkeypatch.setattr("qpnuclei.qupath.geojson.writing.atomic_file", full)
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
