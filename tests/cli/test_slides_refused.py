"""A run of slides: which pixel sizes it takes, and that a refusal leaves nothing behind."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import tifffile

from qpnuclei import add_slides, create_project
from qpnuclei.errors import QpnucleiError, SlideError, UsageError
from qpnuclei.qupath.native import NativeImage, open_project
from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE
from tests.cli.conftest import Outcome, tree
from tests.cli.slide_runs import RUN
from tests.projects import annotate
from tests.slides.pictures import paint

Call = Callable[..., Outcome]

QUIET = (*RUN, "--no-report", "--json")


def scan(path: Path, mpp: float) -> Path:
    """Write a small slide that states its pixel size."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rgb = np.full((96, 96, 3), (200, 120, 180), np.uint8)
    resolution = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(path, rgb, photometric="rgb", resolution=resolution, resolutionunit=3)
    return path


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    scan(tmp_path / "u" / "m0.4.tif", 0.4)
    scan(tmp_path / "u" / "m0.5.tif", 0.5)
    return tmp_path / "u"


def taken(outcome: Outcome) -> dict[str, float]:
    """Return the pixel sizes that a run or a plan has taken, by image."""
    content: dict[str, Any] = json.loads(outcome.stdout)
    images = content.get("images") or content["plan"]
    return {i.get("name", i.get("image")): pytest.approx(i["mpp"][0]) for i in images}


def test_mpp_is_for_the_slides_that_image_names(
    scans: Path, tmp_path: Path, qpnuclei: Call, caplog: pytest.LogCaptureFixture
) -> None:
    named = ("run", scans, "-o", tmp_path / "zz", "--image", "m0.5.tif", *QUIET)
    assert taken(qpnuclei(*named, "--mpp", "0.3", "--dry-run")) == {"m0.5.tif": 0.3}
    assert not (tmp_path / "zz").exists()
    with caplog.at_level(logging.WARNING):
        assert taken(qpnuclei(*named, "--mpp", "0.3")) == {"m0.5.tif": 0.3}
    assert "--mpp 0.3 is used, although the slide file says 0.5" in caplog.text
    sizes = [entry.calibration.mpp for entry in open_project(tmp_path / "zz").images]
    assert sizes == pytest.approx([0.4, 0.3])

    # The folder has a project now: also with a pixel size that the project says, but no run took.
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        planned = qpnuclei(*named, "--mpp", "0.35", "--dry-run")
    assert taken(planned) == {"m0.5.tif": 0.35}
    assert "--mpp 0.35 is used, although the project says 0.3" in caplog.text
    for mpp in (0.35, 0.3):
        assert taken(qpnuclei(*named, "--mpp", mpp)) == {"m0.5.tif": mpp}


def test_a_pixel_size_for_the_slides_without_one_leaves_the_others_done(
    tmp_path: Path, qpnuclei: Call
) -> None:
    paint(tmp_path / "u" / "none.png", (80, 80))
    scan(tmp_path / "u" / "m0.4.tif", 0.4)
    command = ("run", tmp_path / "u", "-o", tmp_path / "r", *QUIET)
    assert qpnuclei(*command).exit_code == 1
    first = json.loads(next((tmp_path / "r" / "qpnuclei").glob("*/run.json")).read_text())
    assert [image["name"] for image in first["images"]] == ["m0.4.tif"]

    again = json.loads(qpnuclei(*command, "--mpp", "0.25").stdout)
    assert {image["name"]: image["mpp"][0] for image in again["images"]} == {
        "m0.4.tif": pytest.approx(0.4),
        "none.png": 0.25,
    }
    assert again["resumed"] == 1
    assert again["failures"] == []
    # Another one for it is another input of it alone.
    other = qpnuclei(*command, "--mpp", "0.3", "--image", "none.png")
    assert [image["mpp"][0] for image in json.loads(other.stdout)["images"]] == [0.3]


def test_mpp_for_slides_without_one_says_where_it_is_not_used(
    scans: Path, tmp_path: Path, qpnuclei: Call, caplog: pytest.LogCaptureFixture
) -> None:
    command = ("run", scans, "-o", tmp_path / "r", *QUIET, "--mpp", "0.25", "--dry-run")
    with caplog.at_level(logging.WARNING):
        assert taken(qpnuclei(*command)) == {"m0.4.tif": 0.4, "m0.5.tif": 0.5}
        paint(scans / "none.png")
        scan(scans / "like.tif", 0.251)  # its own size, which differs by less than 1 %
        qpnuclei(*command)
    said = [line for line in caplog.messages if line.startswith("--mpp")]
    assert [line.partition(";")[0] for line in said] == [
        "--mpp 0.25 is for slides without a pixel size: 2 of 2 slides have another one and keep it",
        "--mpp 0.25 is for slides without a pixel size: 2 of 4 slides have another one and keep it",
    ]


def test_the_plan_of_a_new_slide_takes_nothing_that_is_said_of_another(
    scans: Path, tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "r"
    qpnuclei("run", scans / "m0.4.tif", "-o", results, *QUIET)
    (tmp_path / "t.csv").write_text("image,mpp\nm0.4.tif,0.3\n")
    # Each is the first image of its project: that of the results, and that of the plan alone.
    command = ("run", scans, "-o", results, *QUIET, "--mpp-table", tmp_path / "t.csv")
    planned = qpnuclei(*command, "--dry-run")
    assert taken(planned) == {"m0.4.tif": 0.3, "m0.5.tif": 0.5}
    models = [image["model"] for image in json.loads(planned.stdout)["plan"]]
    assert models == ["default-40x", "default-20x"]

    # That one of them is not of DAB does not stop the others.
    stains = property(lambda image: DEFAULT_H_DAB if image.name == "m0.4.tif" else DEFAULT_HE)
    monkeypatch.setattr(NativeImage, "stains", stains)
    planned = qpnuclei(*command, "--dry-run", "--positive-threshold", "0.2")
    assert taken(planned) == {"m0.4.tif": 0.3}
    (failure,) = json.loads(planned.stdout)["failures"]
    assert "m0.5.tif is not stained with haematoxylin and DAB" in failure["error"]


def test_a_table_of_slides_means_the_name_of_an_image_before_that_of_a_file(
    scans: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results = tmp_path / "r"
    qpnuclei("run", scans / "m0.5.tif", "-o", results, *QUIET)
    other = scan(tmp_path / "v" / "m0.5.tif", 0.5)
    command = ("run", scans / "m0.5.tif", other, "-o", results, *QUIET, "--dry-run")
    for rows, expected in (
        ("m0.5.tif,0.3", {"m0.5.tif": 0.3, "v/m0.5.tif": 0.5}),
        ("v/m0.5.tif,0.3", {"m0.5.tif": 0.5, "v/m0.5.tif": 0.3}),
    ):
        (tmp_path / "t.csv").write_text(f"image,mpp\n{rows}\n")
        assert taken(qpnuclei(*command, "--mpp-table", tmp_path / "t.csv")) == expected


REFUSED = {
    "annotations of new slides": (("--roi", "Tumor"), "no annotations"),
    "annotations and tissue": (("--roi-all", "--tissue"), "--tissue replaces"),
    "model": (("--model", "nosuch.safetensors"), "no model file"),
    "two networks": (("--speed", "fast", "--model", "default-40x"), "--speed fast"),
    "DAB": (("--positive-threshold", "0.2"), "haematoxylin and DAB"),
    "image": (("--image", "nomatch"), "no slide matches 'nomatch'"),
    "broken image": (("--image", "broken.tif"), "broken.tif"),
}


@pytest.mark.parametrize(("options", "said"), REFUSED.values(), ids=REFUSED)
def test_a_refusal_leaves_nothing_behind(
    options: tuple[str, ...], said: str, scans: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    (scans / "broken.tif").write_bytes(b"II*\0")
    before = tree(tmp_path)
    for more in ((), ("--dry-run",)):
        error = qpnuclei("run", scans, "-o", tmp_path / "new", *QUIET, *options, *more).error
        assert isinstance(error, QpnucleiError)
        assert said in error.what
        assert "--positive-threshold" not in options or "project create --hdab" in error.hint
    assert tree(tmp_path) == before


def test_a_device_that_is_not_there_leaves_nothing_behind(
    scans: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    before = tree(tmp_path)
    asked = ("run", scans, "-o", tmp_path / "new", *QUIET, "--device", "cuda:99")
    assert "'cuda:99' was requested" in str(qpnuclei(*asked).error)
    assert tree(tmp_path) == before


def test_new_slides_are_not_added_where_no_annotation_is_meant(
    scans: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results = tmp_path / "r"
    qpnuclei("run", scans / "m0.4.tif", "-o", results, *QUIET)
    named = ("run", scans, "-o", results, *QUIET, "--roi", "Tumor")
    before = tree(results)
    for more in ((), ("--dry-run",)):
        assert "no annotation of class 'Tumor'" in str(qpnuclei(*named, *more).error)
    assert tree(results) == before

    annotate(open_project(results).images[0], shapely.box(10, 10, 60, 60))
    for more in (("--dry-run",), ()):
        outcome = qpnuclei(*named, *more)
        assert taken(outcome) == {"m0.4.tif": 0.4}
        assert "new slides have no annotations and are not analysed: m0.5.tif" in outcome.stderr
    assert len(open_project(results).images) == 2


def named_in_latin_1(path: Path, *, name: str) -> Path:
    """Rename a file or folder to a name that is not UTF-8; skip where that is impossible."""
    renamed = path.with_name(os.fsdecode(name.encode("latin-1")))
    try:
        return path.rename(renamed)
    except OSError:
        pytest.skip("file names must be UTF-8 here")


def test_a_slide_whose_name_is_not_utf_8_leaves_the_others_analysed(
    tmp_path: Path, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    for name in ("a.png", "x.png"):
        paint(tmp_path / "slides" / name, (80, 80))
    bad = named_in_latin_1(tmp_path / "slides" / "x.png", name="Schnitt_ä.png")
    run = ("run", tmp_path / "slides", "-o", tmp_path / "r", "--mpp", "0.25", *QUIET)
    for command in ((*run, "--dry-run"), run, run):
        done = program(*command)
        assert done.returncode == 1
        (unread,) = json.loads(done.stdout)["unreadable"]
        assert unread["slide"] == str(bad)
        assert "its name is not UTF-8" in unread["error"]
        assert unread["hint"] == "rename it"
    assert [entry.name for entry in open_project(tmp_path / "r").images] == ["a.png"]
    alone = program("project", "create", tmp_path / "p", bad)
    assert (alone.returncode, alone.stderr.count("\n")) == (1, 2)
    assert "Schnitt_\\udce4.png: its name is not UTF-8, as QuPath requires" in alone.stderr
    with pytest.raises(SlideError, match="its name is not UTF-8"):
        add_slides(tmp_path / "r", [bad])
    assert not (tmp_path / "p").exists()


def test_a_folder_whose_name_is_not_utf_8_gets_no_project_but_is_analysed(
    tmp_path: Path, qpnuclei: Call, program: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    slide = paint(tmp_path / "a.png", (80, 80))
    (tmp_path / "x").mkdir()
    empty = named_in_latin_1(tmp_path / "x", name="r_ä")
    for command in (
        ("run", slide, "-o", empty, *QUIET, "--dry-run"),
        ("run", slide, "-o", empty, *QUIET),
        ("project", "create", empty / "p", slide),
    ):
        error = qpnuclei(*command).error
        assert isinstance(error, UsageError)
        assert "the name of this folder is not UTF-8" in error.what
    assert list(empty.iterdir()) == []

    create_project(tmp_path / "p", [slide], mpp=0.25)
    project = named_in_latin_1(tmp_path / "p", name="p_ä")
    done = program("run", project, "--tissue", *QUIET)
    assert [image["nuclei"] for image in json.loads(done.stdout)["images"]] == [1]

    inside = shutil.copy(slide, project / "b.png")
    with pytest.raises(SlideError, match="the name of its folder is not UTF-8"):
        add_slides(project, [inside])
