"""A run in phases, on several machines, ended and gone on with."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

import qpnuclei
from qpnuclei.choices import OnExisting
from qpnuclei.cli.app import app
from qpnuclei.errors import (
    FormatError,
    NotFoundError,
    QpnucleiError,
    SlideError,
    TerminatedError,
    UsageError,
    WorkerError,
)
from qpnuclei.pipeline.commit.same_image import check_same_image
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.inference import computing, units
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.phases import commit_run, infer_run, plan_run
from qpnuclei.pipeline.planning.layout import layout_of
from qpnuclei.pipeline.planning.plan_file import FORMAT, RunPlan
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.pipeline.summary import RunSummary, is_due
from qpnuclei.qupath import project_file
from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import pixel_size
from qpnuclei.segmentation.engine import Engine, EngineOptions, load_engine
from qpnuclei.system.threads import available_cores
from tests.ids import nucleus_id, removal
from tests.paths import ROOT
from tests.pipeline.inference.test_processes import workers
from tests.pipeline.killing import content, make_project
from tests.projects import IMAGE, annotate

OPTIONS = RunOptions(
    Selection(classes=("Tumor",)), device="cpu", tile_px=128, max_nucleus_um=8.0, workers=1
)

IGNORED = PathClass("Ignore*")


@pytest.fixture(autouse=True)
def units_of_one_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have four units in each of the small images."""
    monkeypatch.setattr("qpnuclei.pipeline.planning.layout.UNIT_SIDE", 1)


def shards(folder: Path, image: str = "*") -> dict[str, float]:
    found = folder.glob(f"shards/{image}/0*.parquet")
    return {f"{path.parent.name}/{path.stem}": path.stat().st_mtime_ns for path in found}


def test_phases_on_several_machines_are_one_run(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 2)
    shutil.copytree(place, tmp_path / "pristine")
    project = place / "project"
    options = replace(OPTIONS, run_dir=tmp_path / "run")
    assert qpnuclei.plan(project, options) == tmp_path / "run"
    assert shards(tmp_path / "run") == {}

    # Other machines have neither the project, nor the slides where they were.
    (tmp_path / "archive").mkdir()
    place.rename(tmp_path / "archive" / "cohort")
    machines = [Path(shutil.copytree(tmp_path / "run", tmp_path / f"machine-{n}")) for n in (1, 2)]
    qpnuclei.infer(machines[0], shard=(1, 2), device="cpu")
    first = json.loads((machines[0] / "failures.jsonl").read_text().splitlines()[0])
    assert first["error"] == f"the slide {place / '0.tif'} is not here"
    assert "--slides-from" in first["hint"]
    for number, machine in enumerate(machines, start=1):
        qpnuclei.infer(machine, shard=(number, 2), device="cpu", slides_from=tmp_path / "archive")
    assert [len(shards(machine)) for machine in machines] == [4, 4]
    (tmp_path / "archive" / "cohort").rename(place)

    # What is missing is named, and nothing is written of that image.
    summary = qpnuclei.commit(machines[0])
    assert [image.name for image in summary.images] == ["0.tif"]
    log = (machines[0] / "run.log").read_text().splitlines()
    assert log[-1].endswith(f"failed: 1 image; {summary.nuclei} nuclei in 1 image done")
    (failure,) = summary.failures
    assert "missing: 4 of 4 units, the first is" in failure.error.what
    assert str(machines[0] / "shards" / "2-1.tif" / "00000-") in failure.error.what

    # Copied together they are whole; a damaged one is named, one of another run as well.
    shutil.copytree(machines[1] / "shards", machines[0] / "shards", dirs_exist_ok=True)
    for path in (machines[0] / "shards").glob("2-*/image-*"):
        path.unlink()
    one, other, *_ = sorted((machines[0] / "shards" / "2-1.tif").iterdir())
    whole = one.read_bytes()
    for wrong, what in ((whole[:-9], "is damaged"), (other.read_bytes(), "does not belong")):
        one.write_bytes(wrong)
        refused = qpnuclei.commit(machines[0])
        (failure,) = refused.failures
        assert refused.device == summary.device == "cpu, float32"  # of the committed image
        assert str(one) in failure.error.what
        assert what in failure.error.what
    one.write_bytes(whole)
    assert qpnuclei.commit(machines[0]).failures == []
    committed = content(place)

    # Once more changes nothing.
    again = qpnuclei.commit(machines[0])
    assert (again.state, again.resumed, again.nuclei) == ("done", 2, summary.nuclei * 2)
    assert content(place) == committed

    # It is what one command does.
    shutil.rmtree(place)
    shutil.copytree(tmp_path / "pristine", place)
    directly = qpnuclei.run(project, options, resume=False)
    assert [i.regions for i in directly.images] == [i.regions for i in again.images]
    assert content(place) == committed
    # And it says what it did.
    log = (tmp_path / "run" / "run.log").read_text().splitlines()
    assert sum("unit 0000" in line for line in log) == 8
    assert log[-1].endswith(f"done: {directly.nuclei} nuclei")


def test_images_that_could_not_be_planned_are_in_the_record_of_the_commit(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 4)
    qpnuclei.run(place / "project", OPTIONS, images=["2.tif"])
    (place / "1.tif").rename(tmp_path / "away")
    options = replace(OPTIONS, on_existing="skip")
    copy = open_project(shutil.copytree(place / "project", tmp_path / "copy"))
    expected = analyse_project(copy, copy.images, options)
    assert [failure.name for failure in expected.failures] == ["1.tif"]
    assert [image["image"] for image in expected.not_done] == ["2.tif"]

    opened = open_project(place / "project")

    def phases() -> RunSummary:
        folder, *_ = plan_run(opened, opened.images, options, units.Conduct(resume=True))
        assert infer_run(folder, options) == []
        return commit_run(opened, folder, options)

    summary = phases()
    records = [json.loads((s.run_dir / "run.json").read_text()) for s in (summary, expected)]
    for key in ("state", "failures", "not_done"):
        assert records[0][key] == records[1][key]
    assert [image.name for image in summary.images] == ["0.tif", "3.tif"]

    # When the slide is back, the same commands do only what is missing.
    first = opened.images[0]
    objects = first.read()
    first.write(removal(first, objects.detections.ids[::2]), objects.fingerprint)
    data = [image.data_path.read_bytes() for image in opened.images]
    (tmp_path / "away").rename(place / "1.tif")
    again = phases()
    assert (again.run_dir, again.state, again.resumed) == (summary.run_dir, "done", 2)
    assert [image.name for image in again.images] == ["0.tif", "1.tif", "3.tif"]
    now = [image.data_path.read_bytes() for image in opened.images]
    assert [now[i] == data[i] for i in range(4)] == [True, False, True, True]
    # A finished run is not continued.
    assert plan_run(opened, opened.images, options)[0].path != summary.run_dir


def test_a_commit_that_is_asked_to_end_is_recorded_as_stopped(tmp_path: Path) -> None:
    project = open_project(make_project(tmp_path / "place", 2) / "project")
    folder = RunFolder(qpnuclei.infer(qpnuclei.plan(project, OPTIONS), device="cpu"))
    with pytest.raises(TerminatedError):
        commit_run(project, folder, OPTIONS, conduct=units.Conduct(stop=lambda: True))
    record = folder.record()
    assert record["state"] == "stopped"
    assert [image["name"] for image in record["images"]] == ["0.tif"]
    assert [image["image"] for image in record["not_done"]] == ["1.tif"]
    assert commit_run(project, folder, OPTIONS).state == "done"


def test_a_plan_without_any_image_that_can_be_read_fails(tmp_path: Path) -> None:
    project = make_project(tmp_path / "place", 1) / "project"
    (tmp_path / "place" / "0.tif").unlink()
    arguments = ["plan", str(project), "--roi", "Tumor", "--run-dir", str(tmp_path / "run")]
    assert CliRunner().invoke(app, arguments).exit_code == 1
    assert CliRunner().invoke(app, ["infer", str(tmp_path / "run")]).exit_code == 0
    for extra in ([], ["--fail-fast"]):
        done = CliRunner().invoke(app, ["commit", str(tmp_path / "run"), "--json", *extra])
        assert done.exit_code == 1
        record = json.loads(done.stdout)
        assert record["state"] == "failed"
        assert [failure["image"] for failure in record["failures"]] == ["0.tif"]


def test_copies_and_moved_slides_are_also_for_python(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 2)
    folder = qpnuclei.plan(place / "project", OPTIONS)
    (tmp_path / "slides").mkdir()
    for slide in place.glob("*.tif"):
        slide.rename(tmp_path / "slides" / slide.name)
    with pytest.raises(QpnucleiError, match=r"nowhere: .*slides on this machine"):
        qpnuclei.commit(folder, slides_from=tmp_path / "nowhere")
    qpnuclei.infer(folder, device="cpu", slides_from=str(tmp_path / "slides"))
    copies = tmp_path / "parquet"
    summary = qpnuclei.commit(
        folder, parquet_dir=str(copies), geojson_dir=tmp_path / "geojson", slides_from=str(tmp_path)
    )
    tables = [qpnuclei.read_nuclei(path) for path in sorted(copies.iterdir())]
    assert sum(map(len, tables)) == summary.nuclei > 0
    assert sorted(p.name for p in (tmp_path / "geojson").iterdir()) == [
        "1-0.tif.geojson.gz",
        "2-1.tif.geojson.gz",
    ]


def test_a_copy_of_the_project_is_committed_into(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")
    # As cp -r does, without the times of the files.
    copy = shutil.copytree(place / "project", tmp_path / "copy", copy_function=shutil.copyfile)
    summary = qpnuclei.commit(folder, copy)
    assert (summary.failures, summary.nuclei > 0) == ([], True)
    (image,) = open_project(copy).images
    assert len(image.read().detections) == summary.nuclei


def test_images_of_a_plan_are_chosen_and_a_plan_is_made_anew(tmp_path: Path) -> None:
    project = make_project(tmp_path / "place", 2) / "project"
    folder = qpnuclei.plan(project, OPTIONS, images=["1.*"])
    assert [image.name for image in RunPlan.read(folder / "plan.json").images] == ["1.tif"]
    assert qpnuclei.plan(project, OPTIONS, images=["1.*"]) == folder
    assert qpnuclei.plan(project, OPTIONS, images=["1.*"], resume=False) != folder


@pytest.mark.skipif(sys.platform == "win32", reason="processes there have no such limit")
def test_units_with_a_limit_are_computed_in_a_process_of_their_own(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    folder = qpnuclei.plan(place / "project", OPTIONS)
    small, limited = (Path(shutil.copytree(folder, tmp_path / name)) for name in "ab")
    for limit in ({"unit_minutes": 0.0}, {"unit_minutes": float("nan")}, {"unit_gib": 0.01}):
        with pytest.raises(UsageError, match="not in the range"):
            qpnuclei.infer(folder, device="cpu", **limit)
    with suppress(WorkerError):  # which is raised if no process can even start
        qpnuclei.infer(small, device="cpu", workers=1, unit_gib=0.1)
    assert shards(small) == {}

    separate: list[int] = []
    told: list[tuple[str, int, int, int]] = []

    def progress(image: str, done: int, tiles: int, nuclei: int) -> None:
        separate.append(len(workers()))
        told.append((image, done, tiles, nuclei))

    qpnuclei.infer(limited, device="cpu", workers=1, unit_minutes=60, progress=progress)
    assert max(separate) == 1
    assert told[-1][:3] == ("0.tif", 4, 4)
    separate.clear()
    qpnuclei.infer(folder, device="cpu", workers=1, progress=progress)
    assert max(separate) == 0
    assert shards(folder).keys() == shards(limited).keys()
    # Those outside of the annotation are not written.
    assert told[-1][3] >= qpnuclei.commit(folder).nuclei > 0


def test_progress_tells_of_what_this_start_computes(tmp_path: Path, quick: RunOptions) -> None:
    folder = qpnuclei.plan(make_project(tmp_path / "place", 1) / "project", quick)
    copies = [Path(shutil.copytree(folder, tmp_path / name)) for name in ("whole", "parts")]
    told: list[tuple[str, int, int, int]] = []

    def progress(image: str, done: int, tiles: int, nuclei: int) -> None:
        told.append((image, done, tiles, nuclei))

    qpnuclei.infer(copies[0], device="cpu", workers=1, progress=progress)
    tiles, nuclei = told[-1][2:]
    assert [done for _, done, _, _ in told] == list(range(1, tiles + 1))
    assert nuclei > 0
    rest = tiles - tiles // 4
    found = []
    for shard, computed in (((1, 4), tiles // 4), ((1, 1), rest)):
        told.clear()
        qpnuclei.infer(copies[1], shard=shard, device="cpu", workers=1, progress=progress)
        assert [(done, of) for _, done, of, _ in told] == [
            (done, computed) for done in range(1, computed + 1)
        ]
        found.append(told[-1][3])
    assert sum(found) == nuclei
    assert all(found)
    told.clear()
    qpnuclei.infer(copies[1], device="cpu", workers=1, progress=progress)
    assert told == []


@pytest.mark.parametrize("cores", [0, -1, 1.5, "2", True])
def test_an_impossible_number_of_cores_is_no_failure_of_a_unit(
    cores: Any, tmp_path: Path, quick: RunOptions
) -> None:
    folder = qpnuclei.plan(make_project(tmp_path / "place", 1) / "project", quick)
    with pytest.raises(UsageError, match=f"workers={cores!r}: not "):
        qpnuclei.infer(folder, device="cpu", workers=cores)
    assert not (folder / "failures.jsonl").exists()
    assert not shards(folder)


@pytest.mark.parametrize(
    "shard", [(0, 1), (2, 1), (-1, 1), (1, 0), (1,), (1, 1, 1), "1/2", "12", 1, None, (1.0, 2.0)]
)
def test_an_impossible_shard_is_refused(shard: Any, tmp_path: Path, quick: RunOptions) -> None:
    folder = qpnuclei.plan(make_project(tmp_path / "place", 1) / "project", quick)
    with pytest.raises(UsageError, match=re.escape(f"shard={shard!r}: not a part")) as caught:
        qpnuclei.infer(folder, device="cpu", shard=shard)
    assert caught.value.hint == "for the third of twenty parts: shard=(3, 20)"
    assert not shards(folder)
    qpnuclei.infer(folder, device="cpu", shard=(np.int64(1), np.int64(2)))
    assert len(shards(folder)) == 2


def test_infer_ends_with_the_number_of_units_that_are_there(
    tmp_path: Path, quick: RunOptions
) -> None:
    plan = qpnuclei.plan(make_project(tmp_path / "place", 1) / "project", quick)
    (image,) = RunPlan.read(plan / "plan.json").images
    units, half = len(image.units), len(image.units) // 2
    for arguments, there in (
        (["--shard", "1/2"], half),
        (["--shard", "1/2", "--quiet"], half),  # again: there is nothing to do
        ([], units),
        (["--shard", "2/2"], units),
    ):
        done = CliRunner().invoke(app, ["infer", str(plan), "--device", "cpu", *arguments])
        assert (done.exit_code, done.stdout) == (0, "")
        said = f"units: {there} of {units} are there; {units - there} missing"
        assert done.stderr.splitlines()[-1] == said
    # Only the joined nuclei are left, as after a copy without the units.
    for name in image.units:
        RunFolder(plan).shard(image, name).unlink()
    done = CliRunner().invoke(app, ["infer", str(plan), "--device", "cpu", "--json"])
    printed = json.loads(done.stdout)
    assert (printed["units"], printed["missing"]) == (units, 0)


@pytest.mark.parametrize("asked", [None, 3])
def test_as_many_cores_are_used_as_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None
) -> None:
    loaded: list[EngineOptions] = []

    def watched(model: str, options: EngineOptions) -> Engine:
        loaded.append(options)
        return load_engine(model, options)

    monkeypatch.setattr(computing, "load_engine", watched)
    folder = qpnuclei.plan(make_project(tmp_path / "place", 1) / "project", OPTIONS)
    qpnuclei.infer(folder, device="cpu", workers=asked)
    assert {options.workers for options in loaded} == {asked or available_cores()}


def test_an_image_that_left_the_project_does_not_keep_the_others_back(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 3)
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")
    path = place / "project" / "project.qpproj"
    content = json.loads(path.read_text())
    removed, renamed, _ = content["images"]
    renamed["imageName"] = "new name.tif"
    content["images"].remove(removed)
    path.write_text(json.dumps(content))
    summary = qpnuclei.commit(folder)
    assert summary.state == "failed"
    assert [image.name for image in summary.images] == ["2.tif"]
    assert [failure.name for failure in summary.failures] == ["0.tif", "1.tif"]
    assert f"has no image 1.tif with the ID {renamed['entryID']}" in summary.failures[1].error.what
    assert [len(i.read().detections) for i in open_project(path).images] == [0, summary.nuclei]
    assert summary.not_done == []


def test_another_project_than_the_planned_one_is_refused(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    folder = qpnuclei.plan(place / "project", OPTIONS)
    (tmp_path / "other").mkdir()
    slide = shutil.copy(IMAGE, tmp_path / "other" / "other.tif")
    other = create_from_slides(tmp_path / "other" / "project", [Path(slide)], mpp=0.25)
    with pytest.raises(UsageError, match="has none of the images of the plan"):
        qpnuclei.commit(folder, other)


def test_planning_loads_neither_torch_nor_weights(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    code = """
import sys
from qpnuclei.cli.app import app
app(sys.argv[1:], standalone_mode=False)
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"torch", "paquo", "jpype"}))
"""
    command = [sys.executable, "-c", code, "plan", str(place / "project"), "--roi", "Tumor"]
    command += ["--backend", "native", "--run-dir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [str(tmp_path / "run"), ""]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["state"] == "planned"


def test_pixel_sizes_are_given_by_name_or_id(tmp_path: Path) -> None:
    project = make_project(tmp_path / "place", 2) / "project"
    given = replace(OPTIONS, mpp_by_image={"0.tif": 0.4, "2": 0.3})
    content = json.loads((qpnuclei.plan(project, given) / "plan.json").read_text())
    assert [image["mpp"] for image in content["images"]] == [[0.4, 0.4], [0.3, 0.3]]
    for wrong, what in (
        ({"nosuch": 0.4}, "no image is called 'nosuch'"),
        ({"0.tif": 0.4, "1": 0.4}, "the image '1' has a pixel size already"),
    ):
        with pytest.raises(UsageError, match=f"mpp_by_image: {what}"):
            qpnuclei.plan(project, replace(OPTIONS, mpp_by_image=wrong))


def test_a_changed_annotation_concerns_its_image_alone(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 2)
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")
    before = shards(folder)
    assert len(before) == 8
    # The second annotation gets smaller, which changes the grid of tiles.
    (place / "project" / "data" / "2" / "data.qpdata").unlink()
    image = open_project(place / "project").images[1]
    annotate(image, shapely.box(20, 20, 140, 230), shapely.box(150, 60, 200, 240))
    # The same request goes on with the same folder.
    assert qpnuclei.plan(place / "project", OPTIONS) == folder
    plan = RunPlan.read(folder / "plan.json")
    there = [[f"{i.folder}/{name}" in before for name in i.units] for i in plan.images]
    assert all(there[0])
    assert not any(there[1])
    summary = qpnuclei.run(place / "project", OPTIONS)
    assert summary.run_dir == folder
    assert summary.failures == []
    now = shards(folder)
    assert {name: now[name] for name in before} == before
    # A finished run is not gone on with: the same command begins anew.
    assert qpnuclei.plan(place / "project", OPTIONS) != folder


def nuclei_of(project: Path) -> list[list[uuid.UUID]]:
    return [sorted(image.read().detections.ids) for image in open_project(project).images]


@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
def test_a_run_goes_on_though_another_folder_has_written_the_same_plan(
    tmp_path: Path, quick: RunOptions, on_existing: OnExisting
) -> None:
    project = make_project(tmp_path / "place", 1) / "project"
    options = replace(quick, on_existing=on_existing)
    folder = qpnuclei.plan(project, options)
    anew = qpnuclei.run(project, options, resume=False)
    found = nuclei_of(project)
    assert (anew.state, anew.nuclei > 0, anew.run_dir != folder) == ("done", True, True)
    assert qpnuclei.plan(project, options) == folder
    summary = qpnuclei.run(project, options)
    assert (summary.run_dir, summary.failures, summary.state) == (folder, [], "done")
    assert nuclei_of(project) == found
    counts = [region.nuclei for image in anew.images for region in image.regions]
    if on_existing == "skip":
        assert summary.images == []
    else:
        assert [r.nuclei for image in summary.images for r in image.regions] == counts


def test_an_image_is_finished_only_in_the_folder_that_has_its_nuclei(
    tmp_path: Path, quick: RunOptions
) -> None:
    project = make_project(tmp_path / "place", 2) / "project"
    folder = qpnuclei.infer(qpnuclei.plan(project, quick, images=["0.tif", "1.tif"]), device="cpu")
    second = RunPlan.read(folder / "plan.json").images[1]
    shutil.rmtree(folder / "shards" / second.folder)
    asked = replace(quick, images=("0.tif", "1.tif"))
    anew = qpnuclei.run(project, asked, resume=False)
    found = nuclei_of(project)
    assert anew.run_dir != folder
    # Without the nuclei of the second image, a commit says what is to be done, and that helps.
    summary = qpnuclei.commit(folder)
    assert [(image.name, image.nuclei) for image in summary.images] == [("0.tif", len(found[0]))]
    (failure,) = summary.failures
    assert (failure.name, "missing: 4 of 4 units" in failure.error.what) == ("1.tif", True)
    assert "qpnuclei infer" in failure.error.hint
    elsewhere = Path(shutil.copytree(folder, tmp_path / "elsewhere"))
    assert qpnuclei.commit(qpnuclei.infer(elsewhere, device="cpu"), project).failures == []
    # So does the run that goes on.
    summary = qpnuclei.run(project, asked)
    assert (summary.run_dir, summary.failures, summary.state) == (folder, [], "done")
    assert (summary.nuclei, summary.resumed) == (anew.nuclei, 1)
    assert nuclei_of(project) == found


@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
def test_a_copy_of_nuclei_that_are_gone_is_refused_and_the_image_left_as_it_is(
    tmp_path: Path, quick: RunOptions, on_existing: OnExisting
) -> None:
    project = make_project(tmp_path / "place", 1) / "project"
    options = replace(
        quick,
        on_existing=on_existing,
        run_dir=tmp_path / "run",
        parquet_dir=tmp_path / "copies",
    )
    qpnuclei.run(project, options)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**record, "state": "running"}))
    (copy,) = (tmp_path / "copies").iterdir()
    copy.unlink()
    shutil.rmtree(tmp_path / "run" / "shards")
    (image,) = open_project(project).images
    objects = image.read()
    image.write(Edit(remove=frozenset({0})), objects.fingerprint)
    left = nuclei_of(project)
    (failure,) = qpnuclei.run(project, options).failures
    assert re.search(r"no copies of .*shards/.*\.parquet was removed", failure.error.what)
    assert "qpnuclei export" in failure.error.hint
    assert nuclei_of(project) == left
    assert not copy.exists()


def test_a_commit_joins_the_units_of_an_image_that_another_copy_of_the_folder_has_written(
    tmp_path: Path, quick: RunOptions
) -> None:
    project = make_project(tmp_path / "place", 1) / "project"
    folder = qpnuclei.plan(project, quick)
    for share in (1, 2):
        qpnuclei.infer(folder, device="cpu", shard=(share, 2))
    (joined,) = folder.glob("shards/*/image-*")
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / joined.relative_to(folder)).unlink()
    first = qpnuclei.commit(folder)
    found = nuclei_of(project)
    second = qpnuclei.commit(copy)
    assert (second.failures, second.nuclei, second.resumed) == ([], first.nuclei, 1)
    assert nuclei_of(project) == found


def test_an_image_saved_since_the_plan_is_planned_again_or_forced(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    options = replace(OPTIONS, run_dir=tmp_path / "run")
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", options), device="cpu")
    (image,) = open_project(place / "project").images
    saved = NewAnnotation(shapely.box(1, 1, 5, 5), uuid.uuid4(), "mine")
    image.write(Edit(annotations=[saved]), image.read().fingerprint)
    before = shards(folder)
    (failure,) = qpnuclei.commit(folder).failures
    assert "changed on disk" in failure.error.what
    assert "run again" not in failure.error.hint
    for advice in (f"--run-dir {folder}", "plan", "infer", "commit --force"):
        assert advice in failure.error.hint
    # Each of the two ways works.
    elsewhere = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-forced"))
    summary = qpnuclei.commit(elsewhere / "run", elsewhere / "place" / "project", force=True)
    assert (summary.failures, summary.nuclei > 10) == ([], True)
    assert qpnuclei.plan(place / "project", options) == folder
    again = qpnuclei.commit(qpnuclei.infer(folder, device="cpu"))
    assert (again.failures, again.nuclei) == ([], summary.nuclei)
    now = shards(folder)
    assert {name: now[name] for name in before} == before


def edit_server(
    place: Path, edit: Callable[[dict[str, Any]], dict[str, Any]], number: int = 0
) -> None:
    """Change how the project file describes one of its images, as QuPath does."""
    path = place / "project" / "project.qpproj"
    content = json.loads(path.read_text())
    image = content["images"][number]
    image["serverBuilder"] = edit(image["serverBuilder"])
    path.write_text(json.dumps(content))


def with_mpp(server: dict[str, Any], mpp: float) -> dict[str, Any]:
    size = {"value": mpp, "unit": "µm"}
    calibration = {"pixelWidth": size, "pixelHeight": size}
    return {**server, "metadata": {**server["metadata"], "pixelCalibration": calibration}}


def with_slide(server: dict[str, Any], path: Path) -> dict[str, Any]:
    return {**server, "uri": path.absolute().as_uri()}


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are UTF-8 there")
def test_a_project_in_a_folder_whose_name_is_not_utf_8_is_planned_and_continued(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # Messages name the folder, and pytest-xdist cannot send captured messages that are not UTF-8.
    caplog.set_level(logging.CRITICAL, logger="qpnuclei")
    place = make_project(tmp_path / "place", 2).rename(tmp_path / os.fsdecode(b"place \xff\xfe"))
    project = place / "project"
    run_dir = qpnuclei.plan(project, OPTIONS)
    assert RunPlan.read(run_dir / "plan.json").project == str(project / "project.qpproj")
    qpnuclei.infer(run_dir, shard=(1, 2), device="cpu")
    finished = shards(run_dir)
    assert len(finished) == 4
    summary = qpnuclei.run(project, OPTIONS)  # continues it
    assert (summary.run_dir, summary.failures, len(summary.images)) == (run_dir, [], 2)
    assert qpnuclei.commit(run_dir).resumed == 2


@pytest.mark.parametrize("force", [False, True])
def test_an_image_that_the_project_describes_otherwise_than_planned_is_refused(
    tmp_path: Path, force: bool
) -> None:
    place = make_project(tmp_path / "place", 1)
    folder = qpnuclei.infer(
        qpnuclei.plan(place / "project", replace(OPTIONS, run_dir=tmp_path / "run")), device="cpu"
    )
    planned = (place / "project" / "project.qpproj").read_bytes()
    other = tmp_path / "other.tif"
    Image.open(IMAGE).transpose(Image.Transpose.ROTATE_180).save(other)
    data = open_project(place / "project").images[0].read().fingerprint
    changes: list[tuple[Callable[[dict[str, Any]], dict[str, Any]], str, str]] = [
        (lambda server: with_mpp(server, 0.5), "it is 0.5 µm/px, .* at 0.25 µm/px", "plan"),
        (lambda server: with_mpp(server, 0), "it is unknown, .* at 0.25 µm/px", "plan"),
        (lambda server: with_slide(server, other), "another slide .*/other.tif", "plan"),
        (lambda server: with_slide(server, tmp_path / "gone.tif"), "slide .*/gone.tif", "plan"),
        (lambda server: {**server, "args": ["--icc-profile"]}, "in another way", "plan"),
        (lambda server: {**server, "args": ["--series", "1"]}, "in another way", "plan"),
        (
            lambda server: {"builderType": "rotated", "rotation": "ROTATE_180", "builder": server},
            "rotated of uri",
            "export it from QuPath",
        ),
    ]
    for change, what, advice in changes:
        edit_server(place, change)
        (failure,) = qpnuclei.commit(folder, force=force).failures
        assert re.search(what, failure.error.what)
        assert advice in failure.error.hint
        assert "--force" not in failure.error.hint
        assert open_project(place / "project").images[0].read().fingerprint == data
        (place / "project" / "project.qpproj").write_bytes(planned)
    # Another slide in the place of the planned one is another slide, too.
    slide = Path(open_project(place / "project").images[0].path or "")
    slide.rename(slide.with_name("away"))
    shutil.copy(other, slide)
    (failure,) = qpnuclei.commit(folder, force=force).failures
    assert f"another slide than when it was planned: {slide}" in failure.error.what
    slide.with_name("away").replace(slide)
    # An address in another spelling is the same one.
    edit_server(place, lambda server: {**server, "uri": server["uri"].replace(".tif", ".t%69f")})
    slide = Path(open_project(place / "project").images[0].path or "")
    slide.rename(slide.with_name("away"))
    (image,) = RunPlan.read(folder / "plan.json").images
    check_same_image(open_project(place / "project").images[0], image)
    slide.with_name("away").rename(slide)
    (place / "project" / "project.qpproj").write_bytes(planned)
    # Moved, it is the same slide; the pixel size within a percent and the first series, which is
    # the default, are the same, too.
    moved = Path(shutil.copy(IMAGE, tmp_path / "moved.tif"))
    edit_server(place, lambda server: with_mpp(with_slide(server, moved), 0.2501))
    edit_server(place, lambda server: {**server, "args": []})
    summary = qpnuclei.commit(folder, force=force)
    assert (summary.failures, summary.nuclei > 10) == ([], True)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda server: with_mpp(server, 0.5), "it is 0.5 µm/px, .* at 0.25 µm/px"),
        (lambda server: with_slide(server, Path("gone.tif")), "slide .*/gone.tif"),
        (lambda server: {**server, "args": ["--icc-profile"]}, "in another way"),
        (None, "0.tif was removed from the project"),
    ],
)
def test_a_run_refuses_an_image_that_the_project_describes_otherwise_meanwhile(
    tmp_path: Path, change: Callable[[dict[str, Any]], dict[str, Any]] | None, what: str
) -> None:
    place = make_project(tmp_path / "place", 2)
    path = place / "project" / "project.qpproj"
    before, entries = path.read_bytes(), open_project(place / "project").images
    data = entries[0].read().fingerprint

    def edit(*_: object) -> None:
        """Change the first image in the project while its nuclei are searched."""
        if path.read_bytes() != before:
            return
        if change is not None:
            edit_server(place, change)
            return
        content = json.loads(before)
        path.write_text(json.dumps({**content, "images": content["images"][1:]}))

    summary = qpnuclei.run(place / "project", OPTIONS, progress=edit)
    (failure,) = summary.failures
    assert re.search(what, failure.error.what)
    assert "run again" in failure.error.hint
    assert entries[0].read().fingerprint == data
    assert [image.name for image in summary.images] == ["1.tif"]
    path.write_bytes(before)
    assert qpnuclei.run(place / "project", OPTIONS).failures == []


def test_the_project_is_not_read_again_for_each_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_project(tmp_path / "place", 3)
    real, read = project_file.read_project, []

    def counted(path: Path) -> dict[str, Any]:
        read.append(path)
        return real(path)

    monkeypatch.setattr(project_file, "read_project", counted)
    assert len(qpnuclei.run(place / "project", OPTIONS).images) == 3
    assert len(read) <= 2  # when it is opened, and before the first image is saved


def test_a_commit_refuses_an_image_that_the_project_describes_otherwise_meanwhile(
    tmp_path: Path,
) -> None:
    place = make_project(tmp_path / "place", 2)
    run_dir = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")

    def between_images() -> bool:
        edit_server(place, lambda server: with_mpp(server, 0.5), number=1)
        return False

    project, folder = open_project(place / "project"), RunFolder(run_dir)
    conduct = units.Conduct(stop=between_images)
    summary = commit_run(project, folder, folder.plan().options(), conduct=conduct)
    (failure,) = summary.failures
    assert "the pixel size of image 1.tif changed in the project" in failure.error.what
    assert [image.name for image in summary.images] == ["0.tif"]
    assert len(project.images[1].read().detections) == 0


def test_a_pixel_size_that_only_qupath_knows_does_not_change(tmp_path: Path) -> None:
    """QuPath takes it from the file where the project states none, as in projects of paquo."""
    place = make_project(tmp_path / "place", 1)
    run_dir = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")

    def without_metadata(server: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in server.items() if key != "metadata"}

    plan = json.loads((run_dir / "plan.json").read_text())
    (image,) = plan["images"]
    assert image["project_mpp"] == image["stated_mpp"] == [0.25, 0.25]
    image["stated_mpp"] = None  # as planned through QuPath, which reads 0.25 from the file
    (run_dir / "plan.json").write_text(json.dumps(plan))
    edit_server(place, lambda server: with_mpp(server, 0.5))
    (failure,) = qpnuclei.commit(run_dir).failures
    assert "it is 0.5 µm/px, and the nuclei were found at 0.25" in failure.error.what
    edit_server(place, without_metadata)
    summary = qpnuclei.commit(run_dir)
    assert (summary.failures, summary.nuclei > 0) == ([], True)


def test_a_pixel_size_stored_with_other_rounding_is_the_same_though_another_one_was_given(
    tmp_path: Path,
) -> None:
    place = make_project(tmp_path / "place", 1)
    edit_server(place, lambda server: with_mpp(server, 0.5))
    given = replace(OPTIONS, mpp=0.25, run_dir=tmp_path / "run")
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", given), device="cpu")
    edit_server(place, lambda server: with_mpp(server, 0.5001))
    (failure,) = qpnuclei.commit(folder).failures
    assert "it is 0.5001 µm/px" in failure.error.what
    edit_server(place, lambda server: with_mpp(server, 0.500000001))
    assert qpnuclei.commit(folder).failures == []


def test_a_pixel_size_corrected_after_the_plan_is_used_when_planned_again(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    options = replace(OPTIONS, run_dir=tmp_path / "run")
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", options), device="cpu")
    edit_server(place, lambda server: with_mpp(server, 0.5))
    assert len(qpnuclei.commit(folder).failures) == 1
    qpnuclei.plan(place / "project", options)
    (image,) = qpnuclei.commit(qpnuclei.infer(folder, device="cpu")).images
    assert (image.mpp, image.mpp_source, image.check) == ((0.5, 0.5), "project", "")
    for row in qpnuclei.count(place / "project"):
        annotation = next(r for r in image.regions if r.nuclei == row["nuclei"])
        assert row["area_mm2"] == pytest.approx(annotation.area_mm2)
        assert row["check"] is None
    # One that the user gives is not the project's to change; what the project said then is kept.
    given = replace(options, mpp=0.5, run_dir=tmp_path / "given")
    edit_server(place, lambda server: with_mpp(server, 0.25))
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", given), device="cpu")
    edit_server(place, lambda server: with_mpp(server, 0.5))
    assert qpnuclei.commit(folder).failures == []
    edit_server(place, lambda server: with_mpp(server, 0.4))
    (entry,) = open_project(place / "project").images
    record = Record.of(entry.read().properties, entry.name)
    assert record.used == UsedMpp((0.5, 0.5), "--mpp", (0.25, 0.25))
    assert pixel_size(entry, record) == ((0.4, 0.4), "project")


def test_a_new_excluded_annotation_is_heard_and_its_image_alone_is_done_again(
    tmp_path: Path,
) -> None:
    place = make_project(tmp_path / "place", 2)
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")
    earlier = RunPlan.read(folder / "plan.json")
    image = open_project(place / "project").images[1]
    area = shapely.box(30, 30, 120, 220)
    fold = NewAnnotation(area, uuid.UUID(int=9), path_class=IGNORED)
    image.write(Edit(annotations=[fold]), image.read().fingerprint)
    # The same request goes on with the same folder; the units hold whole tiles, and may stay.
    assert qpnuclei.plan(place / "project", OPTIONS) == folder
    plan = RunPlan.read(folder / "plan.json")
    assert plan.images[0] == earlier.images[0]
    assert plan.images[1].inputs != earlier.images[1].inputs
    assert qpnuclei.run(place / "project", OPTIONS).failures == []
    first, second = (i.read().detections.centroids for i in open_project(place / "project").images)
    assert shapely.contains_xy(area, *first.T).any()
    assert not shapely.contains_xy(area, *second.T).any()
    assert len(second) > 0


@pytest.mark.parametrize("on_existing", ["replace", "append", "skip"])
def test_a_forced_save_hears_what_else_of_the_tissue_is_excluded_now(
    tmp_path: Path, on_existing: OnExisting
) -> None:
    place = make_project(tmp_path / "place", 1)
    assert qpnuclei.run(place / "project", OPTIONS).failures == []  # a part is analysed
    pen = NewAnnotation(shapely.box(60, 180, 250, 250), nucleus_id(b"marker pen"), "pen", IGNORED)
    (image,) = open_project(place / "project").images
    image.write(Edit(annotations=[pen]), image.read().fingerprint)
    options = replace(
        OPTIONS,
        selection=Selection(tissue=True),
        on_existing=on_existing,
        run_dir=tmp_path / "run",
    )
    qpnuclei.infer(qpnuclei.plan(place / "project", options), device="cpu")
    shrunk = replace(pen, geometry=shapely.box(60, 180, 240, 250))
    beside = NewAnnotation(shapely.box(142, 100, 148, 120), uuid.UUID(int=10), "fold", IGNORED)
    mine = replace(beside, path_class=None)
    for number, (now, is_refused) in enumerate(
        [([pen, mine], False), ([pen, beside], True), ([shrunk], True), ([], True)]
    ):
        copy = shutil.copytree(tmp_path, tmp_path.with_name(f"{tmp_path.name}-{number}"))
        (image,) = open_project(copy / "place" / "project").images
        image.write(removal(image, [pen.id]), image.read().fingerprint)
        image.write(Edit(annotations=now), image.read().fingerprint)
        summary = qpnuclei.commit(copy / "run", copy / "place" / "project", force=True)
        reasons = [failure.error.what for failure in summary.failures]
        assert len(reasons) == is_refused, number
        assert all("what is excluded from the tissue changed" in reason for reason in reasons)


def test_a_unit_that_fails_is_tried_three_times_and_the_rest_goes_on(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.tif", tmp_path / "bad.tif"
    rgb = np.tile(np.asarray(Image.open(IMAGE).convert("RGB")), (2, 2, 1))
    for path in (bad, good):
        tifffile.imwrite(
            path, rgb, tile=(64, 64), photometric="rgb", compression="deflate", metadata=None
        )
    project = create_from_slides(tmp_path / "p", [bad, good], mpp=0.25)
    for image in open_project(project.path).images:
        annotate(image, shapely.box(20, 20, 500, 500))
    with tifffile.TiffFile(bad) as file:
        start, size = file.pages[0].dataoffsets[-1], file.pages[0].databytecounts[-1]
    content = bytearray(bad.read_bytes())
    content[start : start + size] = b"\xff" * size
    bad.write_bytes(content)

    summary = qpnuclei.run(project, OPTIONS)

    assert [image.name for image in summary.images] == ["good.tif"]
    assert [failure.name for failure in summary.failures] == ["bad.tif"]
    error = summary.failures[0].error
    assert isinstance(error, SlideError)
    assert "more of 16 units" in error.what
    failures = (summary.run_dir / "failures.jsonl").read_text().splitlines()
    entries = [json.loads(line) for line in failures]
    assert [entry["image"] for entry in entries] == ["bad.tif"] * len(entries)
    assert [entry["tries"] for entry in entries] == [3] * len(entries)
    done = shards(summary.run_dir, "1-bad.tif")
    assert len(done) + len(entries) == 16
    assert len(done) > len(entries) > 0
    # It is not tried again, unless that is asked for; what was done stays.
    again = qpnuclei.run(project, OPTIONS)
    assert (again.run_dir, again.resumed, again.state) == (summary.run_dir, 1, "failed")
    assert "failed before: " in again.failures[0].error.what
    assert "--retry-failed" in again.failures[0].error.hint
    assert (summary.run_dir / "failures.jsonl").read_text().splitlines() == failures
    assert shards(summary.run_dir, "1-bad.tif") == done
    tried = qpnuclei.run(project, OPTIONS, retry_failed=True)
    assert (tried.run_dir, tried.failures[0].error.what) == (summary.run_dir, error.what)
    qpnuclei.infer(summary.run_dir, device="cpu", retry_failed=True)
    retried = (summary.run_dir / "failures.jsonl").read_text().splitlines()
    assert len(retried) == len(failures)
    # A line that was cut, by a full disk, is as if it had not been written.
    path = summary.run_dir / "failures.jsonl"
    path.write_text("\n".join([retried[0], retried[1][:40]]))
    qpnuclei.infer(summary.run_dir, device="cpu")
    assert path.read_text().splitlines()[:2] == [retried[0], retried[1][:40]]
    assert {json.loads(line)["key"] for line in path.read_text().splitlines()[2:]} == {
        json.loads(line)["key"] for line in retried[1:]
    }
    assert qpnuclei.plan(project, OPTIONS, retry_failed=True) == summary.run_dir
    assert (summary.run_dir / "failures.jsonl").read_text() == ""
    qpnuclei.infer(summary.run_dir, device="cpu")  # tries them again
    assert len((summary.run_dir / "failures.jsonl").read_text().splitlines()) == len(failures)
    opened = open_project(project.path)
    with pytest.raises(QpnucleiError, match="failed before: "):
        analyse_project(opened, opened.images, OPTIONS, conduct=units.Conduct(fail_fast=True))


def test_annotations_without_nuclei_are_not_analysed_again(tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (243, 243, 243)).save(tmp_path / "glass.png")
    project = create_from_slides(tmp_path / "p", [tmp_path / "glass.png"], mpp=0.5)
    annotate(open_project(project.path).images[0], shapely.box(9, 9, 50, 50))
    assert qpnuclei.run(project, OPTIONS).nuclei == 0
    skipping = replace(OPTIONS, on_existing="skip")
    summary = qpnuclei.run(project, skipping)
    assert (summary.images, summary.state) == ([], "done")
    assert [entry["reason"] for entry in summary.not_done] == [
        "all chosen annotations were analysed by an earlier run"
    ]


def test_what_is_damaged_is_made_anew_by_the_run_that_goes_on(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 1)
    folder = qpnuclei.infer(qpnuclei.plan(place / "project", OPTIONS), device="cpu")
    whole = {path: path.read_bytes() for path in folder.glob("shards/*/*.parquet")}
    (joined,) = (path for path in whole if path.name.startswith("image-"))
    (unit, *_) = (path for path in whole if path != joined)
    for path in (joined, unit):
        content = bytearray(whole[path])
        content[len(content) // 3] ^= 255
        path.write_bytes(content)
    summary = qpnuclei.run(place / "project", OPTIONS)
    assert (summary.state, summary.run_dir) == ("done", folder)
    (image,) = open_project(place / "project").images
    assert len(image.read().detections) == summary.nuclei > 0
    # It is what another run finds.
    again = qpnuclei.run(place / "project", OPTIONS, resume=False)
    assert [i.regions for i in again.images] == [i.regions for i in summary.images]


def test_the_record_of_many_images_is_not_written_for_each() -> None:
    assert all(map(is_due, range(200)))
    assert sum(map(is_due, range(10_000))) < 1000


@pytest.fixture(scope="module")
def a_plan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = make_project(tmp_path_factory.mktemp("planned") / "place", 1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("qpnuclei.pipeline.planning.layout.UNIT_SIDE", 1)
        return qpnuclei.plan(place / "project", OPTIONS) / "plan.json"


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/b", "a\\b", "C:x", ""])
@pytest.mark.parametrize("place", ["folder", "units"])
def test_no_name_in_a_plan_leads_out_of_its_folder(
    a_plan: Path, tmp_path: Path, name: str, place: str
) -> None:
    plan = json.loads(a_plan.read_text())
    plan["images"][0][place] = [name] if place == "units" else name
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    refused = r"plan\.json is not the plan of a run: 'images\.0'.* is not a file name"
    with pytest.raises(FormatError, match=refused):
        qpnuclei.infer(tmp_path)


def test_a_plan_that_does_not_name_an_image_is_refused(a_plan: Path, tmp_path: Path) -> None:
    plan = json.loads(a_plan.read_text())
    plan["names"] = {}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FormatError, match="'names' lacks the image with the ID 1"):
        qpnuclei.commit(tmp_path)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"qpnuclei": "0.0.1"}, r"made by version '0\.0\.1' of qpnuclei, not by "),
        ({"qpnuclei": "0.0.1", "format": 1}, "made by version"),
        ({"format": 1}, f"has the format 1, not {FORMAT}"),
    ],
)
def test_a_plan_of_another_version_or_format_says_what_differs(
    a_plan: Path, tmp_path: Path, changed: dict[str, object], said: str
) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(json.loads(a_plan.read_text()) | changed))
    with pytest.raises(FormatError, match=rf"plan\.json .*{said}") as caught:
        qpnuclei.infer(tmp_path)
    assert caught.value.hint == "plan the run again"


@pytest.mark.parametrize("field", ["name", "stain_names", "vectors", "background"])
def test_a_plan_with_a_missing_or_misspelt_field_of_the_stains_is_refused(
    a_plan: Path, tmp_path: Path, field: str
) -> None:
    plan = json.loads(a_plan.read_text())
    stains = plan["images"][0]["stains"]
    for named, said in ((f"{field}s", "there is no such field"), (None, "it is missing")):
        changed = {name: value for name, value in stains.items() if name != field}
        plan["images"][0]["stains"] = changed if named is None else {**stains, named: 1}
        (tmp_path / "plan.json").write_text(json.dumps(plan))
        refused = rf"not the plan of a run: 'images\.0\.stains\.{named or field}'.*{said}"
        with pytest.raises(FormatError, match=refused):
            qpnuclei.infer(tmp_path)


def test_a_plan_with_a_misspelt_option_is_refused(a_plan: Path, tmp_path: Path) -> None:
    plan = json.loads(a_plan.read_text())
    plan["arguments"]["threshold_0"] = plan["arguments"].pop("threshold")
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(FormatError, match="no valid run options"):
        qpnuclei.infer(tmp_path)


def test_nor_does_a_link(a_plan: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copy(a_plan, run)
    (tmp_path / "outside").mkdir()
    (run / "shards").symlink_to(tmp_path / "outside")
    qpnuclei.infer(run, device="cpu")
    assert list((tmp_path / "outside").iterdir()) == []
    summary = qpnuclei.commit(run)
    assert "lies outside the run's folder" in summary.failures[0].error.what


def test_a_plan_of_other_regions_than_it_says_is_refused(a_plan: Path, tmp_path: Path) -> None:
    plan = json.loads(a_plan.read_text())
    plan["images"][0]["regions"] = plan["images"][0]["regions"][:1]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    summary = qpnuclei.commit(tmp_path)
    assert "the plan is damaged" in summary.failures[0].error.what


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_damaged_plan_is_one_error(
    tmp_path_factory: pytest.TempPathFactory, a_plan: Path, data: st.DataObject
) -> None:
    text = a_plan.read_bytes()
    at = data.draw(st.integers(0, len(text) - 1))
    damaged = text[:at] + data.draw(st.binary(max_size=3)) + text[at + 1 :]
    path = tmp_path_factory.mktemp("damaged") / "plan.json"
    path.write_bytes(damaged)
    try:
        plan = RunPlan.read(path)
        for image in plan.images:
            layout_of(image, plan.spec(image), plan.options())
    except FormatError as error:
        assert error.what  # noqa: PT017 - not all damage is an error


def test_a_folder_without_a_plan_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"plan\.json does not exist"):
        qpnuclei.infer(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pipeline.killing", str(tmp_path), "6", "3", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stderr.splitlines()[-1])
    assert summary["killed"] >= 3
    assert summary["runs"] == 1
