"""`qpnuclei run` and `export` end to end, on projects that each QuPath version wrote."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import LockedError, SaveError, UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.store import Shards, temporary_shards
from qpnuclei.pipeline.selection import our_tissue
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import Detections, Edit, ImageObjects, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, open_project
from qpnuclei.system.locks import LOCK_NAME, locked
from tests.cli.conftest import VERSIONS, Outcome, tree
from tests.ids import removal
from tests.paths import SAMPLES, SHARED

Call = Callable[..., Outcome]
Sample = Callable[[str], Path]

# The sample images are not calibrated, except the pyramid, whose file says 0.5.
RUN = (
    *("--roi", "Tumor", "--mpp", "0.5", "--device", "cpu", "--quiet"),
    *("--backend", "native", "--no-report"),
)


def objects(project: Path) -> list[ImageObjects]:
    return [entry.read() for entry in open_project(project).images]


def rows(detections: Detections, chosen: np.ndarray) -> list[tuple[object, ...]]:
    """Everything about the chosen detections, in a form that can be compared."""
    names = sorted(detections.measurements)
    return [
        (
            detections.ids[i],
            detections.kinds[i],
            detections.class_names[i],
            shapely.to_wkb(detections.geometries[i]),
            int(detections.parents[i]),
            [repr(detections.measurements[name][i]) for name in names],
        )
        for i in np.flatnonzero(chosen)
    ]


def ours(detections: Detections) -> np.ndarray:
    return np.array([is_ours(identity) for identity in detections.ids], bool)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run once on the sample of QuPath 0.5.1, for all tests that begin with such a run."""
    folder = tmp_path_factory.mktemp("finished") / "0.5.1"
    shutil.copytree(SAMPLES / "0.5.1", folder)
    result = CliRunner().invoke(app, ["run", str(folder / "project"), *RUN])
    assert result.exit_code == 0, result.exception
    return folder


@pytest.fixture
def analysed(finished: Path, tmp_path: Path) -> Path:
    """Copy the project of `finished`."""
    return Path(shutil.copytree(finished, tmp_path / "analysed")) / "project"


@pytest.mark.parametrize("version", VERSIONS)
def test_run_and_export_on_every_qupath_version(
    version: str, sample: Sample, qpnuclei: Call, tmp_path: Path
) -> None:
    project = sample(version)
    before = objects(project)

    assert qpnuclei("run", project, *RUN).exit_code == 0

    after = objects(project)
    total = 0
    for old, new in zip(before, after, strict=True):
        assert new.annotations == old.annotations
        mine = ours(new.detections)
        total += int(mine.sum())
        # All that was there before is there still; only the columns of ours are new to the table.
        kept = [row[:5] for row in rows(new.detections, ~mine)]
        assert kept == [row[:5] for row in rows(old.detections, ~ours(old.detections))]
        for name, column in old.detections.measurements.items():
            np.testing.assert_array_equal(new.detections.measurements[name][~mine], column)
        by_handle = {a.handle: a for a in new.annotations}
        for i in np.flatnonzero(mine):
            parent = by_handle[int(new.detections.parents[i])]
            assert parent.class_name == "Tumor"
            point = shapely.Point(new.detections.centroids[i])
            assert shapely.intersects(parent.geometry, point)
            assert new.detections.class_names[i] == "Nucleus"
            assert new.detections.kinds[i] == "detection"
        # In 0.5 µm pixels, area in µm² is a quarter of that in px²; names are QuPath's.
        areas = shapely.area(new.detections.geometries[mine])
        if len(areas):
            found = new.detections.measurements["Area µm^2"][mine]
            np.testing.assert_allclose(found, areas * 0.25, rtol=1e-4)
            assert np.isfinite(new.detections.measurements["Attention: Mean"][mine]).all()
    assert total > 0

    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    assert record["nuclei"] == total
    assert record["failures"] == []
    (model,) = record["models"]
    assert (model["name"], model["mpp"], len(model["sha256"])) == ("default-20x", 0.5, 64)
    counted = {r["id"]: r["nuclei"] for image in record["images"] for r in image["regions"]}

    table = tmp_path / "counts.json"
    assert qpnuclei("export", project, "-o", table, "--roi", "Tumor").exit_code == 0
    exported = json.loads(table.read_text())
    # Some of the sample's own detections are of class Nucleus, too: they count as well.
    assert sum(row["nuclei"] or 0 for row in exported) >= total
    for row in exported:
        if row["uuid"] is not None and row["uuid"] in counted:
            assert row["nuclei"] == counted[row["uuid"]]


def test_the_summary_says_which_model_was_taken(sample: Sample) -> None:
    project = sample("0.5.1")

    result = CliRunner().invoke(app, ["run", str(project), *RUN])

    assert "network: default-20x on cpu" in result.stderr  # of 0.5 µm/px
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    assert record["arguments"]["model"] == "default"
    assert [model["name"] for model in record["models"]] == ["default-20x"]


def test_second_run_replaces_the_first_and_nothing_else(analysed: Path, qpnuclei: Call) -> None:
    project = analysed
    first = objects(project)
    assert qpnuclei("run", project, *RUN).exit_code == 0
    second = objects(project)
    for a, b in zip(first, second, strict=True):
        assert sorted(map(str, rows(a.detections, ours(a.detections)))) == sorted(
            map(str, rows(b.detections, ours(b.detections)))
        )
        assert len(a.detections) == len(b.detections)


def test_append_adds_nothing_that_is_there(analysed: Path, qpnuclei: Call) -> None:
    project = analysed
    first = [len(o.detections) for o in objects(project)]
    assert qpnuclei("run", project, *RUN, "--on-existing", "append").exit_code == 0
    assert [len(o.detections) for o in objects(project)] == first


def test_skip_and_error_leave_existing_ones(analysed: Path, qpnuclei: Call) -> None:
    project = analysed
    before = {k: v for k, v in tree(project).items() if not k.startswith("qpnuclei")}
    skipped = qpnuclei("run", project, *RUN, "--on-existing", "skip")
    assert (skipped.exit_code, skipped.stdout) == (0, "")
    refused = qpnuclei("run", project, *RUN, "--on-existing", "error")
    assert refused.exit_code == 1
    assert refused.stdout == ""  # no table of nothing
    after = {k: v for k, v in tree(project).items() if not k.startswith("qpnuclei")}
    assert after == before


def test_another_class_does_not_touch_the_first(analysed: Path, qpnuclei: Call) -> None:
    project = analysed
    tumor = [set(o.detections.ids) for o in objects(project)]
    assert qpnuclei("run", project, "--roi", "Stroma", *RUN[2:]).exit_code == 0
    for old, new in zip(tumor, objects(project), strict=True):
        assert old <= set(new.detections.ids)


@pytest.mark.parametrize(
    ("given", "stored"),
    [("Nucleus ", "Nucleus"), (" Nucleus", "Nucleus"), ("A:  B", "A: B"), ("A:B", "A: B")],
)
def test_a_class_is_written_in_the_form_of_qupath(
    given: str, stored: str, sample: Sample, qpnuclei: Call
) -> None:
    project = sample("0.5.1")
    done = qpnuclei("run", project, *RUN, "--image", "he small*", "--class", given)
    assert done.exit_code == 0
    found = objects(project)[0].detections
    assert {found.class_names[row] for row in np.flatnonzero(ours(found))} == {stored}
    assert stored in [path_class.name for path_class in open_project(project).classes]
    assert not list(project.rglob("*.rescued.geojson.gz"))


@pytest.mark.parametrize("given", ["", "  ", " : ", os.fsdecode(b"N\xe4")])
def test_what_is_no_class_name_is_refused_at_the_start(
    given: str, sample: Sample, qpnuclei: Call
) -> None:
    project = sample("0.5.1")
    before = tree(project)
    done = qpnuclei("run", project, *RUN, "--class", given)
    assert isinstance(done.error, UsageError)
    assert done.error.what == f"{given!r} is not a class name"
    assert tree(project) == before


def test_derived_classes_only_when_asked(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    qpnuclei("run", project, *RUN, "--image", "he small*", "--roi-derived")
    found = objects(project)[0]
    parents = {a.handle: a.class_name for a in found.annotations}
    classes = {parents[int(p)] for p in found.detections.parents[ours(found.detections)]}
    assert "Tumor: Positive" in classes


def test_an_annotation_by_its_id_alone_and_progress_without_a_terminal(
    sample: Sample, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    project = sample("0.5.1")
    chosen = next(a for a in objects(project)[0].annotations if a.name == "polygon")
    done = program(
        "run", project, "--roi-id", chosen.id, "--mpp", "0.5", "--device", "cpu",
        "--backend", "native", "--tile", "128", "--no-report",
    )  # fmt: skip
    assert done.returncode == 0
    first, *others = objects(project)
    mine = ours(first.detections)
    assert set(first.detections.parents[mine].tolist()) == {chosen.handle}
    assert not any(ours(other.detections).any() for other in others)
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    assert record["arguments"]["selection"]["ids"] == [str(chosen.id)]
    # A line a minute, and one at the end.
    tiles = record["images"][0]["tiles"]
    assert tiles > 1
    assert f"he small.png: {tiles} of {tiles} tiles, " in done.stderr
    assert not set(done.stderr) & {"\r", "\x1b"}


TISSUE = ("--tissue", "--image", "he small.png", *RUN[2:])


def exported(qpnuclei: Call, project: Path, *options: object) -> list[dict[str, Any]]:
    table = project.parent / "counts.json"
    assert qpnuclei("export", project, "-o", table, *options).exit_code == 0
    rows: list[dict[str, Any]] = json.loads(table.read_text())
    return rows


def test_tissue_leaves_an_annotation_that_export_knows(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    before = objects(project)[0]

    assert qpnuclei("run", project, *TISSUE).exit_code == 0

    after = objects(project)[0]
    *kept, tissue = after.annotations
    assert tuple(kept) == before.annotations
    assert (tissue.class_name, tissue.locked, is_ours(tissue.id)) == ("Tissue", True, True)
    mine = ours(after.detections)
    assert mine.any()
    assert set(after.detections.parents[mine].tolist()) == {tissue.handle}
    assert "Tissue" in [c.name for c in open_project(project).classes]
    (row,) = exported(qpnuclei, project, "--roi", "Tissue")
    assert (row["status"], row["uuid"]) == ("analysed", str(tissue.id))
    assert row["area_mm2"] == pytest.approx(tissue.geometry.area * 0.25e-6)
    assert row["nuclei"] >= mine.sum()  # some of the sample's own are of class Nucleus
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    (region,) = record["images"][0]["regions"]
    assert (region["nuclei"], region["per_mm2"]) == (row["nuclei"], row["nuclei_per_mm2"])
    assert record["nuclei"] == mine.sum()
    # By image, the density is that of the tissue; other images were not analysed.
    rows = exported(qpnuclei, project, "--by", "image")
    assert [r["status"] for r in rows] == ["analysed", "not analysed", "not analysed"]
    assert rows[0]["nuclei_per_mm2"] == pytest.approx(row["nuclei_per_mm2"])
    assert rows[1]["nuclei"] is None


def paint_slide(path: Path, left: int) -> None:
    """Paint a slide of glass with a piece of tissue."""
    slide = Image.new("RGB", (700, 460), (243, 243, 243))
    slide.paste(Image.open(SAMPLES / "0.5.1/images/he small.png").convert("RGB"), (left, 40))
    slide.save(path)


def test_the_next_run_replaces_the_tissue(qpnuclei: Call, tmp_path: Path) -> None:
    slide, project = tmp_path / "slide.png", tmp_path / "project"
    paint_slide(slide, 20)
    assert qpnuclei("project", "create", project, slide, "--mpp", "0.5").exit_code == 0
    run = ("run", project, "--tissue", *RUN[4:])
    assert qpnuclei(*run).exit_code == 0
    (first,) = objects(project)
    assert qpnuclei(*run).exit_code == 0
    (second,) = objects(project)
    assert second.annotations == first.annotations
    assert sorted(map(str, second.detections.ids)) == sorted(map(str, first.detections.ids))
    # Another piece of tissue: the one before it goes, with its nuclei.
    paint_slide(slide, 170)
    assert qpnuclei(*run).exit_code == 0
    (third,) = objects(project)
    (tissue,) = third.annotations
    assert tissue.geometry.bounds[0] == pytest.approx(170, abs=30)
    assert set(third.detections.parents.tolist()) == {tissue.handle}
    (row,) = exported(qpnuclei, project, "--by", "image")
    assert row["status"] == "analysed"
    assert row["analysed_mm2"] == pytest.approx(tissue.geometry.area * 0.25e-6)
    assert row["analysed_mm2"] < row["area_mm2"] == pytest.approx(700 * 460 * 0.25e-6)
    assert row["nuclei"] == len(third.detections)


def test_a_tissue_to_which_the_user_added_something_is_the_users(
    sample: Sample, qpnuclei: Call
) -> None:
    project = sample("0.5.1")
    assert qpnuclei("run", project, *TISSUE).exit_code == 0
    objects = open_project(project).images[0].read()
    record = Record.of(objects.properties, "")
    (tissue,) = our_tissue(objects.annotations, record)
    for change in (
        {"name": "Section 1"},
        {"color": -1},
        {"metadata": {"ANNOTATION_DESCRIPTION": "seen"}},
        {"measurements": {"score": 1.0}},
    ):
        assert our_tissue([replace(tissue, **change)], record) == []


def test_a_tissue_that_the_user_edited_stays(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    qpnuclei("run", project, *TISSUE)
    image = open_project(project).images[0]
    tissue = image.read().annotations[-1]
    assert tissue.id is not None
    edited = NewAnnotation(
        shapely.box(0, 0, 300, 200), tissue.id, None, PathClass("Tissue"), locked=True
    )
    image.write(removal(image, [tissue.id]), image.read().fingerprint)
    image.write(Edit(annotations=[edited]), image.read().fingerprint)
    (row,) = exported(qpnuclei, project, "--roi", "Tissue")
    assert row["status"] == "changed since"

    assert qpnuclei("run", project, *TISSUE).exit_code == 0

    found = [a for a in objects(project)[0].annotations if a.class_name == "Tissue"]
    assert [a.geometry.equals(edited.geometry) for a in found] == [True, False]
    assert found[0].id == tissue.id
    rows = exported(qpnuclei, project, "--roi", "Tissue")
    assert rows[1]["status"] == "analysed"


def test_tissue_without_an_annotation(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    before = objects(project)[0]
    assert qpnuclei("run", project, *TISSUE, "--no-annotation").exit_code == 0
    after = objects(project)[0]
    assert after.annotations == before.annotations
    mine = ours(after.detections)
    assert mine.any()
    assert set(after.detections.parents[mine].tolist()) == {-1}
    (row, *_) = exported(qpnuclei, project, "--by", "image")
    assert row["status"] == "analysed"
    assert row["nuclei"] >= mine.sum()
    assert 0 < row["analysed_mm2"] <= row["area_mm2"] == pytest.approx(512 * 384 * 0.25e-6)


@pytest.mark.parametrize("version", ["0.3.2", "0.5.1"])
def test_each_annotation_has_one_number(version: str, sample: Sample, qpnuclei: Call) -> None:
    project = sample(version)
    arguments = ("--roi-all", "--mpp", "0.5", "--image", "he small.png", *RUN[4:])
    assert qpnuclei("run", project, *arguments).exit_code == 0
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    rows = exported(qpnuclei, project, "--image", "he small.png")
    areas = [row for row in rows if row["area_mm2"]]  # the others are lines and points
    assert [row["status"] for row in areas] == ["analysed"] * len(areas)
    assert {row["status"] for row in rows if row not in areas} == {"not analysed"}
    # "nested" lies in "polygon": its nuclei count in both.
    assert [(r["area_mm2"], r["nuclei"], r["per_mm2"]) for r in record["images"][0]["regions"]] == [
        (row["area_mm2"], row["nuclei"], row["nuclei_per_mm2"]) for row in areas
    ]
    assert sum(row["nuclei"] for row in areas) > record["nuclei"] > 0
    # The pixel size that the run was told is known to export and info.
    info = json.loads(qpnuclei("info", project, "--json").stdout)["images"][0]
    assert (info["pixel_width_um"], info["pixel_size_from"]) == (0.5, "an earlier run")
    by_class = {row["class"]: row for row in exported(
        qpnuclei, project, "--image", "he small.png", "--by", "class"
    )}  # fmt: skip
    for name, found in info["annotations"].items():
        assert found["area_mm2"] == by_class[name or None]["area_mm2"]


def test_most_nuclei_gone_is_said_with_the_way_back(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    qpnuclei("run", project, *RUN, "--image", "renamed*")
    found = objects(project)[1]
    # Ten times too large a pixel: nuclei of a fifth of a micrometre are none.
    again = ["run", str(project), *RUN[:2], "--mpp", "0.06", *RUN[4:], "--image", "renamed*"]
    result = CliRunner().invoke(app, again)
    said = next(line for line in result.stderr.splitlines() if "comes back with: " in line)
    assert f"{ours(found.detections).sum()} nuclei of earlier runs were replaced by" in said
    record = [json.loads(p.read_text()) for p in sorted((project / "qpnuclei").glob("*/run.json"))]
    assert any(note in said for note in record[-1]["images"][0]["notes"])
    # It is said as well if the run was killed after the save, and goes on.
    newest = max((project / "qpnuclei").glob("*/run.json"))
    newest.write_text(json.dumps({**record[-1], "state": "running", "images": []}))
    (known,) = (p for p in newest.parent.rglob("*.json") if '"is_saved"' in p.read_text())
    content = json.loads(known.read_text())
    content["result"]["notes"] = []
    known.write_text(json.dumps({**content, "is_saved": False}))
    assert said in CliRunner().invoke(app, again).stderr.splitlines()
    command = shlex.split(said.partition("comes back with: qpnuclei ")[2])
    assert qpnuclei(*command).exit_code == 0
    assert objects(project)[1].detections.ids == found.detections.ids


def test_pixel_sizes_of_many_images(sample: Sample, qpnuclei: Call, tmp_path: Path) -> None:
    project = sample("0.5.1")
    names = [entry.name for entry in open_project(project).images]
    (tmp_path / "mpp.csv").write_text(f"image,mpp\n{names[0]},0.6\n3,0.7\n")
    table = ("--mpp-table", tmp_path / "mpp.csv")
    rows = exported(qpnuclei, project, "--by", "image", *table)
    sizes = [
        (entry.server.width or 0) * (entry.server.height or 0) * 1e-6
        for entry in open_project(project).images
    ]

    def mpps(rows: list[dict[str, Any]]) -> list[float]:
        return [math.sqrt(row["area_mm2"] / size) for row, size in zip(rows, sizes, strict=True)]

    info = json.loads(qpnuclei("info", project, "--json").stdout)["images"]
    assert [(i["pixel_width_um"], i["pixel_size_from"]) for i in info] == [
        (None, None), (0.5, "slide"), (None, None)
    ]  # fmt: skip
    # The second one knows its own.
    assert mpps(rows) == pytest.approx([0.6, 0.5, 0.7])
    # One --mpp for all does not touch the one that is known.
    rows = exported(qpnuclei, project, "--by", "image", "--mpp", "0.25")
    assert mpps(rows) == pytest.approx([0.25, 0.5, 0.25])
    named = exported(qpnuclei, project, "--by", "image", "--mpp", "0.25", "--image", names[1])
    assert named[0]["area_mm2"] == pytest.approx(rows[1]["area_mm2"] / 4)


@pytest.mark.shared
def test_nested_annotations_of_a_real_slide(qpnuclei: Call, tmp_path: Path) -> None:
    slide = SHARED / "data/slides/CMU-1-Small-Region.svs"
    nest = SHARED / "data/faults/nest.geojson"
    project = tmp_path / "project"
    assert qpnuclei("project", "create", project, slide).exit_code == 0
    assert qpnuclei("geojson", "import", project, nest, "--image", slide.name).exit_code == 0
    created = json.loads((project / "project.qpproj").read_text())
    assert created["images"][0]["serverBuilder"]["metadata"]["magnification"] == 20
    before = exported(qpnuclei, project)
    assert [row["status"] for row in before] == ["not analysed"] * 2
    assert [row["nuclei"] for row in before] == [None] * 2

    quiet = ("--device", "cpu", "--quiet", "--backend", "native", "--no-report")
    assert qpnuclei("run", project, "--roi-all", *quiet).exit_code == 0

    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    rows = exported(qpnuclei, project)
    regions = record["images"][0]["regions"]
    assert [r["nuclei"] for r in regions] == [row["nuclei"] for row in rows]
    assert [r["per_mm2"] for r in regions] == [row["nuclei_per_mm2"] for row in rows]
    # Each nucleus is written once, and those of the inner annotation count in both.
    assert rows[0]["nuclei"] == record["nuclei"]
    assert 0 < rows[1]["nuclei"] < rows[0]["nuclei"]
    info = json.loads(qpnuclei("info", project, "--json").stdout)["images"][0]
    assert info["annotations"]["Tumor"]["area_mm2"] == pytest.approx(0.15936, abs=1e-5)


def test_copies_hold_the_same_nuclei(sample: Sample, qpnuclei: Call, tmp_path: Path) -> None:
    project = sample("0.6.0")
    outcome = qpnuclei(
        "run", project, *RUN, "--image", "renamed*",
        "--geojson", tmp_path / "g", "--parquet", tmp_path / "p",
    )  # fmt: skip
    assert outcome.exit_code == 0
    detections = objects(project)[1].detections
    expected = {i for i in detections.ids if is_ours(i)}
    (geojson,) = (tmp_path / "g").iterdir()
    assert {o.id for o in read_objects(geojson)} == expected
    (parquet,) = (tmp_path / "p").iterdir()
    table = pq.read_table(parquet)
    assert set(table["uuid"].to_pylist()) == {str(i) for i in expected}
    assert "Hematoxylin: Mean" in table.column_names


def test_nuclei_kept_on_disk_meanwhile_are_the_same(
    sample: Sample, qpnuclei: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, copies, tables = sample("0.5.1"), [], []
    for size in (20_000, 2):
        monkeypatch.setattr(
            "qpnuclei.pipeline.inference.join.temporary_shards", watched(size, tables)
        )
        copy = tmp_path / f"{size}"
        outcome = qpnuclei(
            "run", project, "--roi-all", *RUN[2:], "--image", "renamed*", "--tile", "128",
            "--parquet", copy,
        )  # fmt: skip
        assert outcome.exit_code == 0
        copies.append([pq.read_table(path).to_pylist() for path in sorted(copy.iterdir())])
    assert tables[0] == 1
    assert tables[-1] > 3
    for in_memory, on_disk in zip(*copies, strict=True):
        by_id = {row["uuid"]: row for row in in_memory}
        assert {row["uuid"]: row for row in on_disk} == by_id


def test_nuclei_on_disk_are_rescued_when_the_project_cannot_be_saved(
    sample: Sample, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    project, tables = sample("0.5.1"), []
    monkeypatch.setattr("qpnuclei.pipeline.inference.join.temporary_shards", watched(3, tables))

    def full(*_: object) -> None:
        raise SaveError("disk full")

    monkeypatch.setattr(NativeImage, "write", full)
    assert qpnuclei("run", project, *RUN, "--image", "renamed*", "--tile", "128").exit_code == 1
    assert tables[0] > 1  # all but the last are on disk
    (rescued,) = (project / "qpnuclei").rglob("*.rescued.geojson.gz")
    assert len(list(read_objects(rescued))) > 3


def watched(size: int, tables: list[int]) -> Callable[[Path], AbstractContextManager[Shards]]:
    """Return `temporary_shards` of a size that notes how many tables there are at its end."""

    @contextmanager
    def shards(parent: Path) -> Iterator[Shards]:
        with temporary_shards(parent, size) as kept:
            try:
                yield kept
            finally:
                tables.append(len(kept))

    return shards


@pytest.mark.parametrize("tile", [128, 300])
def test_the_same_nuclei_whatever_the_tile(sample: Sample, qpnuclei: Call, tile: int) -> None:
    found = []
    for size, version in ((tile, "0.5.1"), (4096, "0.7.0")):
        project = sample(version)
        qpnuclei("run", project, *RUN, "--image", "renamed*", "--tile", size)
        detections = objects(project)[1].detections
        found.append({i for i in detections.ids if is_ours(i)})
    # Their UUIDs are made from image and outline: equal sets are equal polygons.
    assert found[0] == found[1]
    assert found[0]


def test_averaging_over_flips_and_rotations(sample: Sample, qpnuclei: Call) -> None:
    found = []
    for version, extra in (
        ("0.5.1", ()),
        ("0.6.0", ("--tta",)),
        ("0.7.0", ("--tta", "--tile", 300)),
    ):
        project = sample(version)
        assert qpnuclei("run", project, *RUN, "--image", "renamed*", *extra).exit_code == 0
        found.append({i for i in objects(project)[1].detections.ids if is_ours(i)})
        record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
        assert record["device"].endswith(", 8 views") == bool(extra)
    plain, averaged, in_small_tiles = found
    assert averaged == in_small_tiles
    assert averaged - plain


def test_dry_run_changes_nothing(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    before = tree(project)
    outcome = qpnuclei("run", project, *RUN, "--dry-run")
    assert outcome.exit_code == 0
    assert "he small.png" in outcome.stdout
    assert tree(project) == before


@pytest.mark.parametrize(
    ("option", "needed"),
    [
        ("--dry-run", set()),
        # SciPy comes with Numba.
        ("--quiet", {"onnxruntime", "numba", "scipy", "pyarrow"}),
    ],
)
def test_what_a_run_does_not_need_is_not_loaded(
    option: str, needed: set[str], sample: Sample
) -> None:
    heavy = {"torch", "torchvision", "sympy", "paquo", "jpype", "numba", "scipy", "skimage"}
    heavy |= {"tiffslide", "zarr", "pandas", "matplotlib", "pyarrow", "jinja2", "onnxruntime"}
    code = f"""
import sys
from qpnuclei.cli.app import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    print("status:", end.code)
loaded = {{name.partition(".")[0] for name in sys.modules}}
print("loaded:", *sorted(loaded & {heavy}))
"""
    command = [sys.executable, "-c", code, "run", str(sample("0.5.1")), *RUN, option]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "he small.png" in done.stdout
    status, loaded = done.stdout.splitlines()[-2:]
    assert status == "status: 0" or not needed
    assert set(loaded.split()[1:]) == needed


#: Fifteen tiles of the slowest network there is. Not --quiet: it says how far it is.
SLOW = (
    *("--roi", "Tumor", "--mpp", "0.5", "--device", "cpu", "--backend", "native"),
    *("--image", "renamed*", "--tile", "128", "--model", "default", "--tta", "--no-report"),
)


def started(project: Path, *options: str, program: str = "") -> subprocess.Popen[str]:
    """Start a run that tells of every tile, after some lines of Python in its process."""
    every_tile = "from qpnuclei.cli import console\nconsole._LINE_EVERY_S = 0.0"
    code = f"from qpnuclei.__main__ import main\n{every_tile}\n{program}\nmain()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "run", str(project), *options],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def everything(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


LEFT = "interrupted: finished work is kept; run the same command again to continue\n"


def outside_of_runs(files: dict[str, bytes]) -> dict[str, bytes]:
    return {name: content for name, content in files.items() if not name.startswith("qpnuclei/")}


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_ctrl_c_leaves_the_project_untouched(sample: Sample, pause: float) -> None:
    project = sample("0.5.1")
    before, paths = tree(project), everything(project)
    with started(project, *SLOW) as run:
        assert run.stderr is not None
        lines = list(takewhile(lambda line: " 1 of " not in line, run.stderr))
        run.send_signal(signal.SIGINT)
        time.sleep(pause)
        run.send_signal(signal.SIGINT)  # someone impatient
        stdout, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, [*lines, stderr]
    # Of further tiles it may have told meanwhile.
    assert [line for line in stderr.splitlines(keepends=True) if " tiles, " not in line] == [LEFT]
    assert stderr.endswith(LEFT)
    assert stdout == ""
    assert outside_of_runs(tree(project)) == before
    assert everything(project) - everything(project / "qpnuclei") - {project / "qpnuclei"} == paths


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal there")
def test_a_run_that_is_killed_leaves_its_lock_alone_and_the_next_removes_it(
    sample: Sample, qpnuclei: Call
) -> None:
    project = sample("0.5.1")
    before, paths = tree(project), everything(project)
    with started(project, *SLOW) as run:
        assert run.stderr is not None
        assert any(" 1 of " in line for line in run.stderr)
        refused = qpnuclei("run", project, *SLOW, "--no-wait")
        assert isinstance(refused.error, LockedError)
        assert f"is in use by process {run.pid} on " in refused.error.what
        run.kill()
        run.communicate(timeout=60)
    assert run.returncode == -signal.SIGKILL
    lock = project / LOCK_NAME
    left = everything(project) - paths - everything(project / "qpnuclei")
    assert left == {lock, project / "qpnuclei"}
    with locked(project, wait=False):
        pass
    assert outside_of_runs(tree(project)) == before


@pytest.mark.skipif(sys.platform == "win32", reason="signals work differently there")
def test_a_batch_system_ends_a_run_and_the_next_goes_on(sample: Sample, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    before = tree(project)
    units_of_one_tile = "from qpnuclei.pipeline.planning import layout\nlayout.UNIT_SIDE = 1"
    with started(project, *SLOW, program=units_of_one_tile) as run:
        assert run.stderr is not None
        assert any(" 1 of " in line for line in run.stderr)
        run.terminate()
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 143, stderr
    assert "terminating: units in progress are finished first\n" in stderr
    assert "error: terminated: finished work is kept\n" in stderr
    assert outside_of_runs(tree(project)) == before
    (folder,) = (project / "qpnuclei").iterdir()
    record = json.loads((folder / "run.json").read_text())
    assert (record["state"], record["images"]) == ("stopped", [])
    assert [image["reason"] for image in record["not_done"]] == ["the run ended before"]
    # The unit at hand was finished. Another device and other workers are no other run.
    shards = {path: path.stat() for path in folder.glob("shards/*/*.parquet")}
    assert 0 < len(shards) < 15
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("qpnuclei.pipeline.planning.layout.UNIT_SIDE", 1)
        assert qpnuclei("run", project, *SLOW, "--quiet", "--workers", "1").exit_code == 0
    assert list((project / "qpnuclei").iterdir()) == [folder]
    assert {path: path.stat() for path in shards} == shards
    assert json.loads((folder / "run.json").read_text())["state"] == "done"


def test_ctrl_c_while_an_image_is_being_saved_waits_for_it(sample: Sample) -> None:
    project = sample("0.5.1")
    before = objects(project)
    interrupting = """
import signal
from qpnuclei.qupath.transaction import Transaction
commit = Transaction.commit
def interrupted(transaction):
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    commit(transaction)
Transaction.commit = interrupted
"""
    with started(project, *RUN, program=interrupting) as run:
        _, stderr = run.communicate(timeout=60)
    assert run.returncode == 130, stderr
    assert stderr.endswith(LEFT)
    assert "Traceback" not in stderr
    first, *others = objects(project)
    assert ours(first.detections).any()
    assert first.annotations == before[0].annotations
    assert not any(ours(other.detections).any() for other in others)


def test_smooth_outlines_stay_near_the_pixel_edges(sample: Sample, qpnuclei: Call) -> None:
    polygons = []
    for version, extra in (("0.5.1", ("--simplify", "0")), ("0.7.0", ())):
        project = sample(version)
        qpnuclei("run", project, *RUN, "--image", "renamed*", *extra)
        detections = objects(project)[1].detections
        polygons.append(detections.geometries[ours(detections)])
    pixel_outlines, smooth = polygons
    assert len(pixel_outlines) == len(smooth) > 0
    vertices = [shapely.get_num_coordinates(outlines).sum() for outlines in polygons]
    assert vertices[1] < 0.6 * vertices[0]
    # Working pixels are as large as the slide's; the nuclei come in the same order.
    assert shapely.hausdorff_distance(pixel_outlines, smooth).max() <= 1
    np.testing.assert_allclose(shapely.area(smooth), shapely.area(pixel_outlines), rtol=0.01)
    circularity = [4 * np.pi * shapely.area(p) / np.square(shapely.length(p)) for p in polygons]
    assert np.median(circularity[0]) < 0.65 < np.median(circularity[1])
