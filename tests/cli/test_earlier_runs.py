"""What a run leaves of earlier ones: where it analyses nothing any more, and beside its nuclei."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from PIL import Image

from qpnuclei import create_project
from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.backups import list_backups
from qpnuclei.qupath.counted_image import CountedImage
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, open_project
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.stains import DEFAULT_HE
from tests.cli.conftest import Outcome
from tests.ids import removal
from tests.projects import IMAGE, lock, reclassify, reshape
from tests.qupath.samples import set_stains

Call = Callable[..., Outcome]

RUN = ("--device", "cpu", "--backend", "native", "--quiet", "--no-report")
TUMOR = ("--roi", "Tumor")
LEFT, RIGHT = shapely.box(10, 10, 150, 150), shapely.box(120, 60, 246, 246)
INNER = shapely.box(40, 40, 90, 90)
BESIDE = shapely.box(10, 160, 110, 246)
OVER_LEFT, OVER_ALL = shapely.box(5, 5, 155, 155), shapely.box(0, 0, 256, 256)

Row = dict[str, Any]

OTHER_STAINS = replace(DEFAULT_HE, name="mine", vectors=((0.5, 0.75, 0.43), (0.2, 0.9, 0.4)))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with two overlapping Tumor annotations, and a Stroma one in the first."""
    slide = Path(shutil.copy(IMAGE, tmp_path / "slide.tif"))
    path = create_project(tmp_path / "project", [slide], mpp=0.25).path
    annotate(path, LEFT, 1, "Tumor")
    annotate(path, RIGHT, 2, "Tumor")
    annotate(path, INNER, 3, "Stroma")
    return path


def image_of(project: Path) -> NativeImage:
    (image,) = open_project(project).images
    return image


def annotate(project: Path, outline: shapely.Geometry, number: int, class_name: str) -> None:
    image = image_of(project)
    new = NewAnnotation(outline, UUID(int=number), f"A{number}", PathClass(class_name))
    image.write(Edit(annotations=[new]), image.read().fingerprint)


def fresh_copy(project: Path) -> Path:
    """Return a copy of a project in which no run has been yet."""
    return Path(shutil.copytree(project.parent, project.parent.with_name("fresh"))) / project.name


def ours(project: Path) -> set[UUID]:
    return {own_id for own_id in image_of(project).read().detections.ids if is_ours(own_id)}


def exported(qpnuclei: Call, project: Path, by: str = "annotation", *more: str) -> list[Row]:
    table = project.parent.parent / "table.json"
    done = qpnuclei("export", project, "-o", table, "--by", by, *more, "--backend", "native")
    assert done.exit_code == 0
    rows: list[Row] = json.loads(table.read_text())
    return [{key: row[key] for key in row if key != "project"} for row in rows]


def one(qpnuclei: Call, project: Path, name: str) -> Row:
    return next(row for row in exported(qpnuclei, project) if row["annotation"] == name)


def record_of(project: Path) -> Row:
    record = max((project.parent / "qpnuclei").glob("*/run.json"))
    (image,) = json.loads(record.read_text())["images"]
    found: Row = image
    return found


@pytest.mark.parametrize("excluded", [OVER_LEFT, OVER_ALL, shapely.box(0, 0, 140, 256)])
@pytest.mark.parametrize(
    "chosen", [TUMOR, ("--tissue",), ("--tissue", "--no-annotation")], ids=" ".join
)
def test_what_is_excluded_later_is_as_if_it_had_never_been_analysed(
    qpnuclei: Call,
    project: Path,
    chosen: tuple[str, ...],
    excluded: shapely.Geometry,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fresh = fresh_copy(project)
    assert qpnuclei("run", project, *chosen, *RUN).exit_code == 0
    assert ours(project)
    for path in (project, fresh):
        annotate(path, excluded, 9, "Ignore*")
        assert qpnuclei("run", path, *chosen, *RUN).exit_code == 0
    assert ours(project) == ours(fresh)
    assert len(image_of(project).read().annotations) == len(image_of(fresh).read().annotations)
    for by in ("annotation", "class", "image"):
        assert exported(qpnuclei, project, by) == exported(qpnuclei, fresh, by)
    caplog.clear()
    assert qpnuclei("run", project, *chosen, *RUN).exit_code == 0
    if excluded is OVER_ALL:
        why = "all tissue is excluded" if chosen != TUMOR else "encloses an area that is not"
        assert why in caplog.text


def all_tables(qpnuclei: Call, project: Path) -> list[list[Row]]:
    """Return the rows of each kind of table."""
    nuclei = project.parent.parent / "nuclei.parquet"
    assert qpnuclei("export", project, "--by", "nucleus", "-o", nuclei).exit_code == 0
    rows: list[Row] = pq.read_table(nuclei).to_pylist()
    return [rows, *(exported(qpnuclei, project, by) for by in ("annotation", "class", "image"))]


IMMUNE, LEAVING_OUT = ("--roi", "Immune"), ("--exclude", "Immune", "--exclude", "Ignore*")


@pytest.mark.parametrize(
    ("first", "later", "is_reclassified"),
    [
        (("--roi-all",), (), True),
        (("--roi-all",), LEAVING_OUT, False),
        (IMMUNE, LEAVING_OUT, False),
        (("--tissue", "--no-annotation"), (), True),
    ],
)
def test_all_is_as_if_what_is_excluded_beside_it_had_never_been_analysed(
    qpnuclei: Call,
    project: Path,
    first: tuple[str, ...],
    later: tuple[str, ...],
    is_reclassified: bool,
) -> None:
    annotate(project, BESIDE, 4, "Immune")
    fresh = fresh_copy(project)
    assert qpnuclei("run", project, *first, *RUN).exit_code == 0
    assert one(qpnuclei, project, "A4")["nuclei"] > 0
    for path in (project, fresh):
        if is_reclassified:
            reclassify(image_of(path), UUID(int=4), "Ignore*")
        assert qpnuclei("run", path, "--roi-all", *later, *RUN).exit_code == 0
    assert one(qpnuclei, project, "A4")["status"] == "not analysed"
    if first[0] != "--tissue":  # which is larger than all annotations
        assert ours(project) == ours(fresh)
        assert all_tables(qpnuclei, project) == all_tables(qpnuclei, fresh)


def test_what_is_excluded_beside_the_chosen_annotations_stays(
    qpnuclei: Call, project: Path
) -> None:
    annotate(project, BESIDE, 4, "Immune")
    assert qpnuclei("run", project, "--roi-all", *RUN).exit_code == 0
    reclassify(image_of(project), UUID(int=4), "Ignore*")
    before, row = ours(project), one(qpnuclei, project, "A4")
    assert qpnuclei("run", project, *TUMOR, "--roi", "Stroma", *RUN).exit_code == 0
    for on_existing in ("append", "skip", "error"):
        keeping = ("--on-existing", on_existing)
        assert qpnuclei("run", project, "--roi-all", *keeping, *RUN).exit_code in (0, 1)
    assert ours(project) == before
    assert (row["status"], one(qpnuclei, project, "A4")) == ("analysed", row)


@pytest.mark.parametrize("is_locked", [True, False])
def test_all_is_cleared_where_nothing_is_left_to_analyse(
    qpnuclei: Call, project: Path, is_locked: bool
) -> None:
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    kept = set(sorted(ours(project))[::4]) if is_locked else set()
    lock(image_of(project), kept)
    for number in (1, 2, 3):
        reclassify(image_of(project), UUID(int=number), "Ignore*")
    before = len(ours(project))
    planned = qpnuclei("run", project, "--roi-all", *RUN, "--dry-run")
    removed = f"analysed any more: {before - len(kept)} nuclei of earlier runs"
    assert removed in " ".join(planned.stdout.split())
    done = qpnuclei("run", project, "--roi-all", *RUN)
    assert (done.exit_code, ours(project)) == (0, kept)
    assert {row["status"] for row in exported(qpnuclei, project)} == {"not analysed"}
    if not is_locked:  # as in a project in which no run has been yet
        error = qpnuclei("run", project, "--roi-all", *RUN).error
        assert error is not None
        assert "no chosen annotation in " in error.what
        assert "encloses an area" in error.what


def test_a_plan_for_all_clears_what_is_excluded_beside_it(
    qpnuclei: Call, project: Path, tmp_path: Path
) -> None:
    annotate(project, BESIDE, 4, "Immune")
    fresh = fresh_copy(project)
    assert qpnuclei("run", project, *IMMUNE, *RUN).exit_code == 0
    commits = []
    for path in (project, fresh):
        reclassify(image_of(path), UUID(int=4), "Ignore*")
        folder = tmp_path / path.parent.name
        native = ("--backend", "native")
        assert qpnuclei("plan", path, "--roi-all", "--run-dir", folder, *native).exit_code == 0
        assert qpnuclei("infer", folder).exit_code == 0
        commits.append(("commit", folder, "--project", path, "--force", *native))
        # An annotation that excludes what no run has analysed changes nothing.
        annotate(path, shapely.box(112, 200, 118, 206), 5, "Ignore*")
    for commit in commits:
        assert qpnuclei(*commit).exit_code == 0
    assert ours(project) == ours(fresh)
    assert all_tables(qpnuclei, project) == all_tables(qpnuclei, fresh)


def test_a_plan_for_all_is_refused_if_more_results_of_earlier_runs_are_excluded_now(
    qpnuclei: Call, project: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert qpnuclei("run", project, "--tissue", "--no-annotation", *RUN).exit_code == 0
    folder, native = tmp_path / "run", ("--backend", "native")
    assert qpnuclei("plan", project, "--roi-all", "--run-dir", folder, *native).exit_code == 0
    assert qpnuclei("infer", folder).exit_code == 0
    annotate(project, shapely.box(10, 200, 60, 250), 9, "Ignore*")
    before = ours(project)
    assert qpnuclei("commit", folder, "--force", *native).exit_code == 1
    assert "what is excluded from the chosen annotations changed" in caplog.text
    assert ours(project) == before


def test_nuclei_of_an_excluded_annotation_are_removed_by_each_way_to_run(
    qpnuclei: Call, project: Path, tmp_path: Path
) -> None:
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    before = len(ours(project))
    annotate(project, OVER_ALL, 9, "Ignore*")
    planned = qpnuclei("run", project, *TUMOR, *RUN, "--dry-run")
    removed = f"removed where nothing is analysed any more: {before} nuclei of earlier runs"
    assert removed in " ".join(planned.stdout.split())
    assert len(ours(project)) == before
    folder = tmp_path / "run"
    settings = ("--cell-expansion", 3, "--run-dir", folder, "--backend", "native")
    assert qpnuclei("plan", project, *TUMOR, *settings).exit_code == 0
    for share in ("1/2", "2/2"):
        assert qpnuclei("infer", folder, "--shard", share).exit_code == 0
    done = qpnuclei("commit", folder, "--backend", "native", "--parquet", tmp_path / "copies")
    assert done.exit_code == 0
    assert removed in " ".join(done.stderr.split())
    assert "network" not in done.stderr
    assert ours(project) == set()
    assert image_of(project).read().properties
    (copy,) = (tmp_path / "copies").iterdir()
    assert pq.read_table(copy).num_rows == 0
    # Repeated: it is in the project already.
    assert qpnuclei("commit", folder, "--backend", "native").exit_code == 0
    assert qpnuclei("report", project, "--backend", "native").exit_code == 0


@pytest.mark.parametrize("place", [shapely.box(160, 5, 250, 50), shapely.box(70, 10, 210, 150)])
def test_an_annotation_that_was_moved_leaves_its_nuclei_and_their_counts_where_it_was(
    qpnuclei: Call, project: Path, place: shapely.Geometry, caplog: pytest.LogCaptureFixture
) -> None:
    annotate(project, shapely.box(15, 15, 65, 140), 4, "Immune")
    chosen = ("--roi-name", "A1", *RUN)
    assert qpnuclei("run", project, *chosen).exit_code == 0
    before, row = ours(project), one(qpnuclei, project, "A4")
    assert (row["status"], row["nuclei"] > 0) == ("analysed", True)
    reshape(image_of(project), UUID(int=1), place)
    assert qpnuclei("run", project, *chosen).exit_code == 0
    assert before & ours(project)
    assert one(qpnuclei, project, "A4") == row
    moved = one(qpnuclei, project, "A1")
    assert (moved["status"], moved["analysed_mm2"]) == ("analysed", moved["area_mm2"])
    (whole,) = exported(qpnuclei, project, "image")
    assert whole["nuclei"] == len(ours(project))
    area_px2 = shapely.union(LEFT, place).area
    assert whole["analysed_mm2"] == pytest.approx(area_px2 * 0.25e-3**2)
    caplog.clear()
    skip = ("--roi", "Immune", "--on-existing", "skip")
    assert qpnuclei("run", project, *skip, *RUN).exit_code == 0
    assert "all chosen annotations were analysed by an earlier run" in caplog.text


def test_nuclei_go_with_tissue_that_is_not_found_again_and_so_does_what_was_analysed_there(
    qpnuclei: Call, project: Path
) -> None:
    for chosen in (("--tissue",), ("--roi", "Stroma")):
        assert qpnuclei("run", project, *chosen, *RUN).exit_code == 0
    assert one(qpnuclei, project, "A3")["nuclei"] > 0
    slide = project.parent.parent / "slide.tif"
    pixels = tifffile.imread(slide)
    pixels[:, :100] = 243  # glass
    tifffile.imwrite(slide, pixels, photometric="rgb")
    assert qpnuclei("run", project, "--tissue", *RUN).exit_code == 0
    row = one(qpnuclei, project, "A3")
    assert (row["status"], row["nuclei"]) == ("not analysed", None)
    (whole,) = exported(qpnuclei, project, "image")
    assert whole["nuclei"] == len(ours(project)) > 0
    assert whole["analysed_mm2"] < 160 * 256 * 0.25e-3**2


def test_a_preview_without_any_area_to_analyse_is_refused(qpnuclei: Call, project: Path) -> None:
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    annotate(project, OVER_ALL, 9, "Ignore*")
    error = qpnuclei("preview", project, *TUMOR, "--backend", "native").error
    assert error is not None
    assert "nothing to analyse" in error.what


@pytest.mark.parametrize("on_existing", ["append", "skip", "error"])
def test_what_stays_in_the_project_stays_analysed(
    qpnuclei: Call, project: Path, on_existing: str
) -> None:
    """Excluded or not: only a run that replaces nuclei removes any."""
    assert qpnuclei("run", project, *TUMOR, "--roi", "Stroma", *RUN).exit_code == 0
    before, rows = ours(project), exported(qpnuclei, project)
    annotate(project, OVER_ALL, 9, "Ignore*")
    keeping = ("--on-existing", on_existing)
    assert qpnuclei("run", project, *TUMOR, *RUN, *keeping).exit_code == 0
    assert qpnuclei("run", project, "--tissue", *RUN, *keeping).exit_code == 0
    assert ours(project) == before
    assert exported(qpnuclei, project)[:3] == rows


def test_appending_around_an_excluded_annotation_leaves_its_counts(
    qpnuclei: Call, project: Path
) -> None:
    assert qpnuclei("run", project, *TUMOR, "--roi", "Stroma", *RUN).exit_code == 0
    before, rows = ours(project), exported(qpnuclei, project)
    assert (rows[2]["status"], rows[2]["nuclei"] > 0) == ("analysed", True)
    appending = ("--exclude", "Stroma", "--on-existing", "append")
    assert qpnuclei("run", project, *TUMOR, *RUN, *appending).exit_code == 0
    assert ours(project) == before
    assert exported(qpnuclei, project) == rows
    regions = record_of(project)["regions"]
    assert [region["nuclei"] for region in regions] == [row["nuclei"] for row in rows[:2]]


@pytest.mark.parametrize("on_existing", ["append", "skip"])
def test_nothing_is_found_beside_the_nuclei_of_an_earlier_run(
    qpnuclei: Call, project: Path, on_existing: str
) -> None:
    slide = project.parent.parent / "slide.tif"
    pixels = tifffile.imread(slide)
    pixels[156:, :110] = 243  # glass
    tifffile.imwrite(slide, pixels, photometric="rgb")
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    before = ours(project)
    annotate(project, shapely.box(2, 200, 60, 250), 4, "Empty")
    done = qpnuclei("run", project, "--roi", "Empty", "--on-existing", on_existing, *RUN)
    assert done.exit_code == 0
    row = one(qpnuclei, project, "A4")
    assert (row["nuclei"], row["status"]) == (0, "analysed")
    assert ours(project) == before


def test_skip_analyses_what_merely_overlaps_an_analysed_annotation(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fresh = fresh_copy(project)
    assert qpnuclei("run", fresh, *TUMOR, *RUN).exit_code == 0
    assert qpnuclei("run", project, "--roi-name", "A1", *RUN).exit_code == 0
    first = ours(project)
    skipping = (*TUMOR, *RUN, "--on-existing", "skip")
    assert "A2" in qpnuclei("run", project, *skipping, "--dry-run").stdout
    assert qpnuclei("run", project, *skipping).exit_code == 0
    assert first < ours(project) == ours(fresh)
    assert exported(qpnuclei, project) == exported(qpnuclei, fresh)
    (region,) = record_of(project)["regions"]
    assert region["nuclei"] == one(qpnuclei, fresh, "A2")["nuclei"]
    assert qpnuclei("run", project, *skipping).exit_code == 0
    assert "all chosen annotations were analysed by an earlier run" in caplog.text
    assert ours(project) == ours(fresh)


def test_skip_analyses_what_an_earlier_run_has_excluded(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # All but a strip: 1 % of the annotation.
    annotate(project, shapely.box(11.4, 0, 256, 256), 9, "Ignore*")
    fresh = fresh_copy(project)
    chosen = ("--roi-name", "A1", *RUN)
    assert qpnuclei("run", fresh, *chosen, "--exclude", "").exit_code == 0
    assert qpnuclei("run", project, *chosen).exit_code == 0
    assert len(ours(project)) < len(ours(fresh))
    skipping = (*chosen, "--on-existing", "skip")
    nothing = "all chosen annotations were analysed by an earlier run"
    assert qpnuclei("run", project, *skipping).exit_code == 0
    assert nothing in caplog.text
    caplog.clear()
    assert qpnuclei("run", project, *skipping, "--exclude", "").exit_code == 0
    assert nothing not in caplog.text
    assert ours(project) == ours(fresh)
    # Now all of it is analysed, whatever is excluded.
    for exclude in ((), ("--exclude", "")):
        caplog.clear()
        assert qpnuclei("run", project, *skipping, *exclude).exit_code == 0
        assert nothing in caplog.text


def test_skip_names_annotations_with_nuclei_that_no_recorded_run_has_found(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert qpnuclei("run", project, "--roi-name", "A2", *RUN).exit_code == 0
    image = image_of(project)
    image.write(Edit(properties=Record().to_properties()), image.read().fingerprint)
    before = ours(project)
    reason = "of qpnuclei where no recorded run has looked: skipped"
    for more in (("--dry-run",), ()):
        caplog.clear()
        skipped = qpnuclei("run", project, *TUMOR, *RUN, "--on-existing", "skip", *more)
        assert skipped.exit_code == 0
        named = [message for message in caplog.messages if reason in message]
        assert [message.split(" (")[0] for message in named] == [
            "image slide.tif: A1",
            "image slide.tif: A2",
        ]
        assert "no chosen annotation is without nuclei of earlier runs" in caplog.text
        assert "analysed by an earlier run" not in caplog.text
    assert ours(project) == before


def test_the_doubts_of_nuclei_that_stay_are_told_as_in_export(
    qpnuclei: Call, project: Path
) -> None:
    every = ("--roi-all", *RUN)
    assert qpnuclei("run", project, *every, "--mpp", 0.9, "--threshold", 0.2).exit_code == 0
    doubtful = record_of(project)["check"]
    assert "the median nucleus has" in doubtful
    done = qpnuclei("run", project, *every, "--mpp", 0.25, "--on-existing", "append")
    assert done.exit_code == 0
    result = record_of(project)
    assert doubtful in result["check"]
    assert doubtful in done.stderr
    (whole,) = exported(qpnuclei, project, "image")
    assert result["check"] == whole["check"]
    checks = {row["annotation"]: row["check"] or "" for row in exported(qpnuclei, project)}
    assert len(checks) == 3
    names = (region["name"].split(" ")[0] for region in result["regions"])
    assert dict(zip(names, (r["check"] for r in result["regions"]), strict=True)) == checks


def project_with_pen(folder: Path, end: int) -> Path:
    """Make a project of 160 x 160 px of glass at 1 µm/px, with ink from 32 to `end` px."""
    rgb = np.full((160, 160, 3), 243, np.uint8)
    rgb[32:end, 32:end] = (50, 90, 170)
    Image.fromarray(rgb).save(folder / "slide.png")
    return create_project(folder / "project", [folder / "slide.png"], mpp=1.0).path


def test_an_annotation_that_artefacts_cover_is_not_analysed_any_more(
    qpnuclei: Call, tmp_path: Path
) -> None:
    project = project_with_pen(tmp_path, 128)
    annotate(project, shapely.box(50, 50, 110, 110), 1, "Tumor")
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    assert one(qpnuclei, project, "A1")["status"] == "analysed"
    assert qpnuclei("run", project, *TUMOR, *RUN, "--qc").exit_code == 0
    row = one(qpnuclei, project, "A1")
    assert (row["status"], row["nuclei"], ours(project)) == ("not analysed", None, set())


def test_artefacts_beside_all_annotations_are_not_analysed_any_more(
    qpnuclei: Call, tmp_path: Path
) -> None:
    project = project_with_pen(tmp_path, 96)
    annotate(project, shapely.box(40, 40, 90, 90), 1, "Tumor")
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    reshape(image_of(project), UUID(int=1), shapely.box(120, 120, 150, 150))
    areas = []
    for chosen in (TUMOR, ("--roi-all",)):
        assert qpnuclei("run", project, *chosen, *RUN, "--qc").exit_code == 0
        areas.append(exported(qpnuclei, project, "image")[0]["analysed_mm2"])
    assert areas == pytest.approx([(50**2 + 30**2) * 1e-6, 30**2 * 1e-6])


def test_locked_nuclei_stay_in_an_annotation_that_is_excluded(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    chosen = set(sorted(ours(project))[::4])
    assert chosen
    lock(image_of(project), chosen)
    annotate(project, OVER_ALL, 9, "Ignore*")
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    assert ours(project) == chosen
    assert one(qpnuclei, project, "A1")["status"] == "not analysed"
    # Once they are all that is left, there is nothing to do.
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    assert "encloses an area that is not excluded" in caplog.text


@pytest.mark.parametrize("chosen", [TUMOR, ("--tissue",)])
def test_nuclei_are_removed_from_the_state_that_an_image_has_now(
    qpnuclei: Call, project: Path, tmp_path: Path, chosen: tuple[str, ...]
) -> None:
    fresh = fresh_copy(project)
    assert qpnuclei("run", project, *chosen, *RUN).exit_code == 0
    folder = tmp_path / "run"
    for path in (project, fresh):
        annotate(path, OVER_LEFT, 9, "Ignore*")
    planned = qpnuclei("plan", project, *chosen, "--run-dir", folder, "--backend", "native")
    assert planned.exit_code == 0
    assert qpnuclei("infer", folder).exit_code == 0
    for path in (project, fresh):
        annotate(path, shapely.box(200, 5, 210, 9), 10, "Other")
    assert qpnuclei("commit", folder, "--backend", "native", "--force").exit_code == 0
    assert qpnuclei("run", fresh, *chosen, *RUN).exit_code == 0
    assert ours(project) == ours(fresh)
    assert exported(qpnuclei, project) == exported(qpnuclei, fresh)


def test_appending_in_a_part_of_the_tissue_leaves_the_counts_of_the_image(
    qpnuclei: Call, project: Path
) -> None:
    assert qpnuclei("run", project, "--tissue", *RUN).exit_code == 0
    before, rows = ours(project), exported(qpnuclei, project, "image")
    annotate(project, OVER_LEFT, 9, "Ignore*")
    done = qpnuclei("run", project, "--tissue", *RUN, "--on-existing", "append")
    assert done.exit_code == 0
    assert "removed" not in done.stderr
    assert ours(project) == before
    assert exported(qpnuclei, project, "image") == rows


def test_a_second_commit_after_another_run_changes_nothing(
    qpnuclei: Call, project: Path, tmp_path: Path
) -> None:
    folder, first, second = tmp_path / "tr", tmp_path / "first", tmp_path / "second"
    native = ("--backend", "native")
    planned = qpnuclei("plan", project, "--roi-name", "A1", "--run-dir", folder, *native)
    assert planned.exit_code == 0
    assert qpnuclei("infer", folder, "--device", "cpu", "--quiet").exit_code == 0
    commit = ("commit", folder, "--quiet", "--no-report", *native)
    assert qpnuclei(*commit, "--parquet", first).exit_code == 0
    before = list_backups(image_of(project).data_path)[0]
    image = json.loads((folder / "run.json").read_text())["images"][0]
    assert image["nuclei"] > 0

    def commit_again(*options: str | Path) -> Row:
        """Return the entry of the image, after a commit that must change nothing."""
        data = image_of(project).data_path.read_bytes()
        done = qpnuclei(*commit, *options)
        assert (done.exit_code, done.error) == (0, None)
        assert image_of(project).data_path.read_bytes() == data
        assert not list(folder.glob("*.rescued.*"))
        summary = json.loads((folder / "run.json").read_text())
        assert (summary["state"], summary["resumed"]) == ("done", 1)
        found: Row = summary["images"][0]
        return found

    # Beside the area, replacing a part of its nuclei.
    assert qpnuclei("run", project, "--roi-name", "A2", "--exclude", "", *RUN).exit_code == 0
    again = commit_again("--parquet", second)
    assert (again["nuclei"], again["notes"]) == (image["nuclei"], image["notes"])
    (one_copy,), (other_copy,) = first.iterdir(), second.iterdir()
    assert one_copy.read_bytes() == other_copy.read_bytes()

    # All of them.
    assert qpnuclei("run", project, "--roi-name", "A1", "--threshold", "0.9", *RUN).exit_code == 0
    for options in ((), ("--parquet", tmp_path / "third")):
        replaced = commit_again(*options)
        assert replaced.pop("notes") == ["later runs have replaced or removed these nuclei"]
        assert replaced == {key: value for key, value in again.items() if key != "notes"}
    (third_copy,) = (tmp_path / "third").iterdir()
    assert third_copy.read_bytes() == one_copy.read_bytes()

    # In the state before the run it has not been written yet.
    restore = ("project", "restore", project, "--image", "slide.tif", "--backup", before.id)
    restored = qpnuclei(*restore)
    assert restored.exit_code == 0
    assert not ours(project)
    assert qpnuclei(*commit).exit_code == 0
    assert len(ours(project)) == image["nuclei"]


def test_a_run_at_another_pixel_size_makes_earlier_counts_doubtful(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotate(project, shapely.box(160, 5, 250, 50), 4, "Other")
    assert qpnuclei("run", project, "--roi-name", "A3", *RUN).exit_code == 0
    other = ("run", project, "--roi-name", "A4", *RUN, "--mpp", "0.5")
    assert qpnuclei(*other).exit_code == 0
    note = "analysed at 0.25 µm/px, counted at 0.5: run again"
    assert "the nuclei in A3 (00000000) were found at 0.25 µm/px, and this run uses 0.5" in (
        caplog.text
    )
    assert record_of(project)["check"].endswith(note)
    assert one(qpnuclei, project, "A3")["check"].endswith(note)
    assert note not in str(one(qpnuclei, project, "A4")["check"])
    (whole,) = exported(qpnuclei, project, "image")
    assert whole["check"].endswith(note)
    nuclei = project.parent.parent / "nuclei.parquet"
    assert qpnuclei("export", project, "--by", "nucleus", "-o", nuclei).exit_code == 0
    checks = {row["annotation"]: row["check"] for row in pq.read_table(nuclei).to_pylist()}
    assert checks["A3"].endswith(note)
    # A run that keeps earlier nuclei says so, and leaves them.
    before = ours(project)
    for kept in ("skip", "append"):
        caplog.clear()
        again = ("--roi-name", "A3", "--on-existing", kept, "--mpp", "0.5")
        assert qpnuclei("run", project, *again, *RUN).exit_code == 0
        assert before <= ours(project)
        assert "nuclei in A3 (00000000) were found at 0.25 µm/px" in caplog.text
        assert note in one(qpnuclei, project, "A3")["check"]
    caplog.clear()
    assert qpnuclei("run", project, "--roi-name", "A3", *RUN).exit_code == 0
    assert "were found at" not in caplog.text
    assert note not in str(one(qpnuclei, project, "A3")["check"])


def test_an_annotation_whose_nuclei_were_all_removed_is_doubtful(
    qpnuclei: Call, project: Path
) -> None:
    annotate(project, shapely.box(155, 155, 250, 250), 4, "Stroma")
    for name in ("A1", "A4"):
        assert qpnuclei("run", project, "--roi-name", name, *RUN).exit_code == 0
    note = "all nuclei of an area are gone since the run ({}): run again, unless they were removed "
    number, other = (one(qpnuclei, project, name)["nuclei"] for name in ("A1", "A4"))
    image = image_of(project)
    objects = image.read()
    within = shapely.intersects_xy(LEFT, objects.detections.centroids)
    ids = [
        own_id
        for own_id, is_in in zip(objects.detections.ids, within, strict=True)
        if is_in and own_id is not None
    ]
    assert len(ids) == number > 1
    saved = image.data_path.read_bytes()
    image.write(removal(image, ids[1:]), objects.fingerprint)
    assert "gone" not in str(one(qpnuclei, project, "A1")["check"])
    image.write(removal(image, ids[:1]), image.read().fingerprint)
    row = one(qpnuclei, project, "A1")
    assert (row["nuclei"], row["status"]) == (0, "analysed")
    assert note.format(number) in row["check"]
    assert "gone" not in str(one(qpnuclei, project, "A4")["check"])
    (whole,) = exported(qpnuclei, project, "image")
    assert whole["nuclei"] == other
    assert note.format(number) in whole["check"]
    (tumor,) = [row for row in exported(qpnuclei, project, "class") if row["class"] == "Tumor"]
    assert note.format(number) in tumor["check"]
    assert "gone" not in str(exported(qpnuclei, project, "annotation", "--class", "Star"))
    # They may have been deleted with their annotation.
    objects = image.read()
    left = replace(objects, annotations=[a for a in objects.annotations if a.name != "A1"])
    without = CountedImage("", "slide.tif", left, PixelCalibration(0.25, 0.25))
    assert "gone" not in without.image_doubts()
    assert "gone" in replace(without, objects=objects).image_doubts()
    # Nuclei that a run or a filter removes are not missed.
    assert qpnuclei("run", project, "--roi-name", "A1", *RUN).exit_code == 0
    again = one(qpnuclei, project, "A1")
    assert again["nuclei"] == number
    assert "gone" not in str(again["check"])
    image.data_path.write_bytes(saved)
    assert qpnuclei("filter", project, "--min-certainty", "1").exit_code == 0
    assert not ours(project)
    assert "gone" not in str(exported(qpnuclei, project))


def test_nuclei_that_a_run_kept_are_not_missed_where_it_analysed_a_margin(
    qpnuclei: Call, project: Path
) -> None:
    annotate(project, shapely.box(8, 8, 152, 152), 4, "Necrosis")
    assert qpnuclei("run", project, "--roi-name", "A1", *RUN).exit_code == 0
    # What is known of the margin differs from what is known of the rest.
    skip = ("--roi", "Necrosis", "--on-existing", "skip", "--mpp", "0.2")
    assert qpnuclei("run", project, *skip, *RUN).exit_code == 0
    assert record_of(project)["nuclei"] == 0
    row = one(qpnuclei, project, "A4")
    assert row["nuclei"] > 1
    assert "analysed at 0.25" in row["check"]
    assert "gone" not in row["check"]
    assert "gone" not in exported(qpnuclei, project, "image")[0]["check"]
    image = image_of(project)
    image.write(removal(image, list(ours(project))), image.read().fingerprint)
    note = f"all nuclei of an area are gone since the run ({row['nuclei']})"
    assert note in one(qpnuclei, project, "A4")["check"]


def test_nuclei_that_a_run_kept_are_not_missed_in_tissue_found_again(
    qpnuclei: Call, tmp_path: Path
) -> None:
    slide = make_slide(tmp_path / "synthetic.tif", (600, 600)).path
    results = tmp_path / "results"
    run = ("run", slide, "-o", results, "--image", slide.name, "--mpp", "0.5", *RUN)
    assert qpnuclei(*run).exit_code == 0
    project = results / "project.qpproj"
    again = ("run", project, "--tissue", "--mpp", "0.25", "--on-existing", "skip", *RUN)
    assert qpnuclei(*again).exit_code == 0
    for row in (*exported(qpnuclei, project), *exported(qpnuclei, project, "image")):
        assert row["nuclei"] > 1
        assert "gone" not in str(row["check"])


def test_stain_vectors_changed_after_a_run_make_its_stain_measurements_doubtful(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotate(project, shapely.box(160, 5, 250, 50), 4, "Stroma")
    assert qpnuclei("run", project, "--roi-name", "A3", *RUN).exit_code == 0
    note = "stains measured with other vectors than the image has now: run again"
    former = one(qpnuclei, project, "A3")
    assert note not in str(former["check"])
    set_stains(image_of(project).data_path, OTHER_STAINS)
    assert note in one(qpnuclei, project, "A3")["check"]
    warning = "the nuclei in A3 (00000000) were measured with other stain vectors"
    assert qpnuclei("run", project, "--roi-name", "A4", *RUN).exit_code == 0
    assert warning in caplog.text
    assert note in record_of(project)["check"]
    caplog.clear()
    skip = ("--roi-name", "A4", "--on-existing", "skip")
    assert qpnuclei("run", project, *skip, *RUN).exit_code == 0
    assert warning in caplog.text
    checks = {name: one(qpnuclei, project, name)["check"] for name in ("A3", "A4")}
    assert note in checks["A3"]
    assert note not in str(checks["A4"])
    (stroma,) = [row for row in exported(qpnuclei, project, "class") if row["class"] == "Stroma"]
    (whole,) = exported(qpnuclei, project, "image")
    assert note in stroma["check"]
    assert note in whole["check"]
    caplog.clear()
    assert qpnuclei("run", project, "--roi-name", "A3", *RUN).exit_code == 0
    assert "other stain vectors" not in caplog.text
    again = one(qpnuclei, project, "A3")
    assert note not in str(again["check"])
    column = "Hematoxylin: Mean (mean)"
    assert again["nuclei"] == former["nuclei"]
    assert again[column] != pytest.approx(former[column], rel=0.05)


def test_a_plan_works_out_the_record_after_it_only_for_a_warning_that_may_apply(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert qpnuclei("run", project, *TUMOR, *RUN).exit_code == 0
    with_run = Record.with_run
    calls = []

    def count(*given: Any, **options: Any) -> Record:
        calls.append(given)
        return with_run(*given, **options)

    monkeypatch.setattr(Record, "with_run", count)
    plan = ("run", project, *TUMOR, *RUN, "--on-existing", "append", "--dry-run")
    assert qpnuclei(*plan).exit_code == 0
    assert not calls
    assert qpnuclei(*plan, "--mpp", "0.5").exit_code == 0
    assert calls
    assert "were found at 0.25 µm/px, and this run uses 0.5" in caplog.text


def test_a_pixel_size_that_is_given_only_to_export_makes_counts_doubtful(
    qpnuclei: Call, project: Path
) -> None:
    assert qpnuclei("run", project, "--roi-name", "A3", *RUN).exit_code == 0
    table = project.parent.parent / "counts.json"
    for mpp in ("0.251", "0.4"):
        done = qpnuclei("export", project, "-o", table, "--roi", "Stroma", "--mpp", mpp)
        assert done.exit_code == 0
        (row,) = json.loads(table.read_text())
        note = f"analysed at 0.25 µm/px, counted at {mpp}: run again"
        assert (note in str(row["check"])) == (mpp == "0.4")
