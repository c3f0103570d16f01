"""Each image stands alone: what is wrong with one is said, and the others are done."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import shapely

from qpnuclei.nuclei.ids import is_ours
from qpnuclei.pipeline.commit import commit_image
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.native import open_project
from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE, Stains
from qpnuclei.system.locks import LOCK_NAME
from tests.cli.conftest import Outcome
from tests.projects import IMAGE, annotate, make_project
from tests.slides.dicom import write_series
from tests.slides.pictures import picture

Call = Callable[..., Outcome]

RUN = ("--device", "cpu", "--quiet", "--backend", "native", "--no-report")
SQUARE = shapely.box(60, 60, 190, 190)
CLICK = shapely.Polygon([(60, 60), (160, 60), (60, 60), (60, 60)])


def record(project: Path) -> dict[str, Any]:
    (path,) = (project / "qpnuclei").glob("*/run.json")
    content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    return content


def ours(project: Path) -> list[int]:
    return [
        sum(map(is_ours, image.read().detections.ids)) for image in open_project(project).images
    ]


def test_a_project_is_made_of_the_slides_that_can_be_read(tmp_path: Path, qpnuclei: Call) -> None:
    good = shutil.copy(IMAGE, tmp_path / "good.tif")
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"no slide")
    made = qpnuclei("project", "create", tmp_path / "p", bad, good, "--json")
    assert made.exit_code == 1
    content = json.loads(made.stdout)
    assert [image["name"] for image in content["images"]] == ["good.tif"]
    assert [failure["slide"] for failure in content["failures"]] == [str(bad)]
    assert [image.name for image in open_project(tmp_path / "p").images] == ["good.tif"]
    nothing = qpnuclei("project", "create", tmp_path / "q", bad)
    assert nothing.error is not None
    assert not (tmp_path / "q").exists()


def test_bad_images_are_reported_and_the_others_written(
    qpnuclei: Call,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    project = make_project(tmp_path, "good", "click", "damaged", "fault", "other", "last")
    good, click, damaged, fault, other, last = open_project(project).images
    annotate(good, SQUARE, CLICK)
    annotate(click, CLICK)
    annotate(damaged, SQUARE)
    damaged.data_path.write_bytes(damaged.data_path.read_bytes()[:-100])
    annotate(fault, SQUARE)
    annotate(other, SQUARE, class_name="Stroma")
    # No chosen annotation concerns it: that it has neither pixels nor their size is no matter.
    (tmp_path / "other.tif").unlink()
    annotate(last, SQUARE)
    real = commit_image.new_nuclei

    def faulty(plan: Any, *rest: Any) -> Any:
        if plan.entry.name == "fault.tif":
            raise ZeroDivisionError("division by zero")
        return real(plan, *rest)

    monkeypatch.setattr(commit_image, "new_nuclei", faulty)
    outcome = qpnuclei("run", project, "--roi", "Tumor", *RUN)
    assert outcome.exit_code == 1
    content = record(project)
    assert [image["name"] for image in content["images"]] == ["good.tif", "last.tif"]
    assert [len(image["regions"]) for image in content["images"]] == [1, 1]
    assert [failure["image"] for failure in content["failures"]] == ["damaged.tif", "fault.tif"]
    assert "data.qpdata: byte " in content["failures"][0]["error"]
    assert "unexpected ZeroDivisionError: division by zero" in content["failures"][1]["error"]
    assert content["not_done"] == [
        {"image": "click.tif", "entry": "2", "reason": "no chosen annotation encloses an area"}
    ]
    damaged.data_path.unlink()
    counts = ours(project)
    assert [count > 0 for count in counts] == [True, False, False, False, False, True]
    assert counts[0] == counts[-1] == content["images"][0]["nuclei"]


def test_the_plan_is_shown_whatever_is_wrong_with_one_image(qpnuclei: Call, tmp_path: Path) -> None:
    project = make_project(tmp_path, "good", "missing", "other")
    good, missing, other = open_project(project).images
    annotate(good, SQUARE)
    annotate(missing, SQUARE)
    annotate(other, SQUARE, class_name="Stroma")
    (tmp_path / "other.tif").unlink()
    plan = ("run", project, "--roi", "Tumor", "--dry-run", *RUN)
    outcome = qpnuclei(*plan)
    assert (outcome.exit_code, "other.tif" in outcome.stdout) == (0, False)
    (tmp_path / "missing.tif").unlink()
    outcome = qpnuclei(*plan)
    assert outcome.exit_code == 1
    assert "good.tif" in outcome.stdout
    assert not (project / "qpnuclei").exists()


def test_only_a_click_is_refused_by_what_it_is(qpnuclei: Call, tmp_path: Path) -> None:
    project = make_project(tmp_path, "click")
    annotate(open_project(project).images[0], CLICK)
    outcome = qpnuclei("run", project, "--roi", "Tumor", *RUN)
    assert outcome.exit_code == 2
    assert outcome.error is not None
    assert "encloses an area" in outcome.error.what


def test_without_pydicom_the_slides_that_are_not_dicom_are_taken(
    tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(IMAGE, tmp_path / "good.tif")
    levels = write_series(tmp_path, [picture(128, 64), picture(64, 32)], 0.5)
    monkeypatch.setitem(sys.modules, "pydicom", None)
    made = qpnuclei("project", "create", tmp_path / "p", tmp_path, "--json")
    assert made.exit_code == 1
    content = json.loads(made.stdout)
    assert [image["name"] for image in content["images"]] == ["good.tif"]
    assert [failure["slide"] for failure in content["failures"]] == [*map(str, levels)]
    assert {failure["hint"] for failure in content["failures"]} == {
        "pip install --force-reinstall pydicom"
    }


@pytest.mark.parametrize("moved", ["project", "folder"])
def test_a_project_that_vanishes_during_the_run(
    qpnuclei: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moved: str
) -> None:
    (tmp_path / "slides").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    project = make_project(tmp_path / "slides", "a", "b", "c", "d")
    for image in open_project(project).images:
        annotate(image, SQUARE)
    gone = project if moved == "project" else tmp_path / "slides"
    real = commit_image.new_nuclei

    def vanishing(plan: Any, *rest: Any) -> Any:
        if plan.entry.name == "b.tif":
            gone.rename(tmp_path / "away")
        return real(plan, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(commit_image, "new_nuclei", vanishing)
        assert qpnuclei("run", project, "--roi", "Tumor", *RUN).exit_code == 1
    assert not gone.exists()
    (path,) = (tmp_path / "here").glob("qpnuclei-*/run.json")
    content = json.loads(path.read_text("utf-8"))
    assert [image["name"] for image in content["images"]] == ["a.tif"]
    assert [f["image"] for f in content["failures"]] == ["b.tif", "c.tif", "d.tif"]
    assert content["not_done"] == []
    away = tmp_path / "away" / ("" if moved == "project" else "p")
    assert [count > 0 for count in ours(away)] == [True, False, False, False]
    # What was found when it vanished is not lost: when it is there again, the run goes on.
    (away / LOCK_NAME).unlink()  # that of this very process, which could not remove it
    (tmp_path / "away").rename(gone)
    (shard,) = (project / "qpnuclei").glob("*/shards/2-b.tif/00000-*.parquet")
    found = shard.stat()
    assert qpnuclei("run", project, "--roi", "Tumor", *RUN).exit_code == 0
    assert shard.stat() == found
    assert all(ours(project))


@pytest.mark.skipif(os.name == "nt", reason="there are no such files there")
@pytest.mark.parametrize("special", ["fifo", "device"])
def test_what_is_no_file_is_never_waited_for(qpnuclei: Call, tmp_path: Path, special: str) -> None:
    project = make_project(tmp_path, "good", "hangs")

    def put(path: Path) -> None:
        path.unlink(missing_ok=True)
        if special == "fifo":
            os.mkfifo(path)
        else:
            path.symlink_to("/dev/zero")

    data = project / "data" / "2" / "data.qpdata"
    put(data)
    # Of two images one: the other is described, and counted.
    outcome = qpnuclei("info", project, "--backend", "native", "--json")
    assert outcome.exit_code == 1
    good, hangs = json.loads(outcome.stdout)["images"]
    assert "error" not in good
    assert "not a regular file" in hangs["error"]
    table = tmp_path / "counts.csv"
    outcome = qpnuclei("export", project, "-o", table, "--by", "image", "--backend", "native")
    assert outcome.exit_code == 1
    assert "good.tif" in table.read_text()
    put(tmp_path / "objects.geojson")
    outcome = qpnuclei(
        "geojson", "import", project, tmp_path / "objects.geojson", "--image", "good.tif",
        "--backend", "native",
    )  # fmt: skip
    assert outcome.exit_code == 1
    (project / "classifiers").mkdir(exist_ok=True)
    put(project / "classifiers" / "classes.json")
    outcome = qpnuclei("info", project, "--backend", "native")
    assert outcome.error is not None
    assert "not a regular file" in outcome.error.what
    put(project / "project.qpproj")
    outcome = qpnuclei("info", project, "--backend", "native")
    assert outcome.error is not None
    assert "not a regular file" in outcome.error.what


def test_every_command_goes_on_after_a_damaged_image(qpnuclei: Call, tmp_path: Path) -> None:
    project = make_project(tmp_path, "bad", "good")
    bad, good = open_project(project).images
    annotate(bad, SQUARE)
    annotate(good, SQUARE)
    bad.data_path.write_bytes(b"damaged")
    native = ("--backend", "native")

    outcome = qpnuclei("info", project, *native)
    assert outcome.exit_code == 1
    assert "Tumor" in outcome.stdout

    outcome = qpnuclei("export", project, "-o", tmp_path / "counts.csv", "--roi", "Tumor", *native)
    assert outcome.exit_code == 1
    assert len((tmp_path / "counts.csv").read_text().splitlines()) == 2

    outcome = qpnuclei("doctor", project, *native)
    assert outcome.exit_code == 1
    assert "BAD  image 1: bad.tif" in outcome.stdout
    assert "ok   image 2: good.tif" in outcome.stdout

    # Why is said once, and which of several images once more at the end.
    outcome = qpnuclei("plan", project, "--roi", "Tumor", "--run-dir", tmp_path / "run", *native)
    assert outcome.exit_code == 1
    assert "not analysed: 1 of 2 images, for the reasons above: bad.tif" in outcome.stderr
    assert "error:" not in outcome.stderr
    (tmp_path / "good.tif").rename(tmp_path / "away.tif")
    outcome = qpnuclei("infer", tmp_path / "run", "--device", "cpu")
    assert outcome.exit_code == 1
    assert "error:" not in outcome.stderr
    (tmp_path / "away.tif").rename(tmp_path / "good.tif")

    folder = tmp_path / "geojson"
    outcome = qpnuclei("geojson", "export", project, "-o", folder, "--roi", "Tumor", *native)
    assert outcome.exit_code == 1
    assert [path.name for path in folder.iterdir()] == ["2-good.tif.geojson.gz"]


@pytest.mark.parametrize(
    ("stains", "reason"),
    [
        (dataclasses.replace(DEFAULT_HE, vectors=((1, 2, 3), (2, 4, 6))), "are parallel"),
        (dataclasses.replace(DEFAULT_HE, vectors=((0, 0, 0), (2, 4, 6))), "has no length"),
        (dataclasses.replace(DEFAULT_HE, vectors=((1, 2, 3), (2, float("nan"), 6))), "no length"),
        (dataclasses.replace(DEFAULT_HE, background=(0, 255, 255)), "is not above 0"),
        (dataclasses.replace(DEFAULT_H_DAB, vectors=((1, 2, 3), (1, 2, 3))), "are parallel"),
    ],
)
def test_an_image_with_impossible_stains_is_reported_and_the_others_written(
    qpnuclei: Call,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    stains: Stains,
    reason: str,
) -> None:
    slides = [Path(shutil.copy(IMAGE, tmp_path / name)) for name in ("bad.tif", "good.tif")]
    create_from_slides(tmp_path / "p", slides[:1], mpp=0.5, stains=stains)
    assert qpnuclei("project", "add", tmp_path / "p", slides[1], "--mpp", 0.5).exit_code == 0
    for image in open_project(tmp_path / "p").images:
        annotate(image, SQUARE)
    roi = ("--roi", "Tumor")
    outcome = qpnuclei("doctor", tmp_path / "p", "--backend", "native")
    assert "BAD  image 1: bad.tif" in outcome.stdout
    outcome = qpnuclei("preview", tmp_path / "p", *roi, "-o", tmp_path / "preview.html")
    assert outcome.exit_code == 1
    assert "image bad.tif: " in outcome.stderr
    assert reason in outcome.stderr
    assert "QuPath" in outcome.stderr
    assert (tmp_path / "preview.html").is_file()  # of the other image
    for options in (("--dry-run",), ()):
        caplog.clear()
        outcome = qpnuclei("run", tmp_path / "p", *roi, *RUN, *options)
        assert outcome.exit_code == 1
        said = outcome.stderr + caplog.text
        assert reason in said
        assert "unexpected" not in said
    bad, good = ours(tmp_path / "p")
    assert bad == 0
    assert good > 0
