"""Slides in, results out: `run slides/ -o results`, `project add`, and several projects at once."""

from __future__ import annotations

import csv
import json
import re
import shlex
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
from PIL import Image

import qpnuclei as package
from qpnuclei.errors import FormatError, LockedError, NotFoundError, SlideError, UsageError
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import Edit
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.results_folder import MARK, ResultsFolder
from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE
from qpnuclei.system.locks import locked
from tests.cli.conftest import Outcome, tree
from tests.cli.slide_runs import RUN, counts
from tests.projects import annotate
from tests.slides.pictures import edit_ome, paint, without_planes, write_ome

Call = Callable[..., Outcome]


def record(results: Path) -> dict[str, Any]:
    (path,) = (results / "qpnuclei").glob("*/run.json")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    paint(tmp_path / "slides" / "a.bmp", (80, 80), (170, 160))
    paint(tmp_path / "slides" / "b.png", (120, 120))
    return tmp_path / "slides"


def test_slides_in_results_out_and_the_same_command_adds_new_ones(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results = tmp_path / "new" / "results"
    command = ("run", slides, "-o", results, "--mpp", "0.25", *RUN)
    (slides / "broken.tif").write_bytes(b"II*\0")

    planned = qpnuclei(*command, "--dry-run")
    assert planned.exit_code == 1  # the broken one
    # Only the project that will be there is named.
    named = set(re.findall(r"\S*project\.qpproj\S*", planned.stdout + planned.stderr))
    assert named == {f"{results / 'project.qpproj'}:"}
    assert not results.exists()
    done = qpnuclei(*command)
    assert done.exit_code == 1
    assert f"not readable: 1 of 3 slides, for the reasons above: {slides / 'broken.tif'}" in (
        done.stderr.splitlines()
    )

    # A slide that cannot be read is named where others look for the results, without a count.
    assert counts(results / "counts.csv") == {"a.bmp": 2, "b.png": 1, "broken.tif": -1}
    with (results / "counts.csv").open(encoding="utf-8-sig", newline="") as stream:
        *_, broken = csv.DictReader(stream)
    assert (broken["status"], "broken.tif" in broken["check"]) == ("not analysed", True)
    page = (results / "report.html").read_text(encoding="utf-8")
    assert "a.bmp" in page
    assert "b.png" in page
    assert "broken.tif" in page
    project = open_project(results)
    assert [entry.calibration.mpp for entry in project.images] == [0.25, 0.25]
    first = project.images[0].data_path.read_bytes()

    (slides / "broken.tif").unlink()
    paint(slides / "c.png", (60, 60), (160, 60), (110, 180))
    again = qpnuclei(*command, "--json")
    assert again.exit_code == 0
    said = json.loads(again.stdout)
    assert (said["resumed"], len(said["images"]), said["unreadable"]) == (2, 3, [])
    assert (said["counts"], said["report"]) == (
        str(results / "counts.csv"),
        str(results / "report.html"),
    )
    assert counts(results / "counts.csv") == {"a.bmp": 2, "b.png": 1, "c.png": 3}
    assert project.images[0].data_path.read_bytes() == first
    assert record(results)["resumed"] == 2
    assert json.loads((results / "project.qpproj.backup").read_text())["lastID"] == 2


def test_a_slide_without_a_count_has_the_reason_in_the_table(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    table = tmp_path / "sizes.csv"
    table.write_text("image,mpp\na.bmp,0.25\nglass.png,0.25\n")
    Image.new("RGB", (200, 200), "white").save(slides / "glass.png")
    (slides / "broken.tif").write_bytes(b"II*\0")
    results = tmp_path / "results"
    done = qpnuclei("run", slides, "-o", results, "--mpp-table", table, *RUN, "--no-report")
    assert done.exit_code == 1
    with (results / "counts.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = {row["image"]: row for row in csv.DictReader(stream)}
    assert {name for name, row in rows.items() if row["status"] == "analysed"} == {"a.bmp"}
    assert "has no pixel size" in rows["b.png"]["check"]
    assert "no tissue" in rows["glass.png"]["check"]
    assert "broken.tif" in rows["broken.tif"]["check"]
    # The pixel size of one image, given later, was not given by a table.
    again = qpnuclei("run", slides / "b.png", "-o", results, "--mpp", "0.25", *RUN, "--json")
    (image,) = [i for i in json.loads(again.stdout)["images"] if i["name"] == "b.png"]
    assert image["mpp_source"] == "--mpp or --mpp-table"


def test_slides_that_were_moved_are_not_counted_twice(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results, moved = tmp_path / "results", tmp_path / "moved"
    options = ("-o", results, "--mpp", "0.25", *RUN)
    assert qpnuclei("run", slides, *options).exit_code == 0
    before = counts(results / "counts.csv")
    slides.rename(moved)
    paint(moved / "c.png", (60, 60))
    # Without a word on where they are, the two are not images of their own.
    planned = qpnuclei("run", moved, *options, "--dry-run", "--json")
    assert planned.exit_code == 1
    refused = [Path(slide["slide"]) for slide in json.loads(planned.stdout)["unreadable"]]
    assert refused == [moved / "a.bmp", moved / "b.png"]
    alone = qpnuclei("run", moved, *options)
    assert alone.exit_code == 1
    assert f"{moved / 'a.bmp'} may be the slide of the image a.bmp, moved" in alone.stderr
    assert counts(results / "counts.csv") == {**before, "c.png": 1}  # those of the first run
    names = [image.name for image in open_project(results).images]
    assert names == ["a.bmp", "b.png", "c.png"]
    found = qpnuclei("run", moved, *options, "--image-root", moved, "--json")
    assert found.exit_code == 0
    assert [image["name"] for image in json.loads(found.stdout)["images"]] == names
    assert counts(results / "counts.csv") == {**before, "c.png": 1}
    # The same by another way; a slide of another size is another one.
    added = qpnuclei("project", "add", results, moved / "b.png")
    assert added.exit_code == 1
    assert "may be the slide of the image b.png, moved" in str(added.error) + added.stderr
    Image.new("RGB", (99, 99), "white").save(tmp_path / "b.png")
    assert qpnuclei("project", "add", results, tmp_path / "b.png").exit_code == 0


def test_the_command_that_is_printed_after_a_run_can_be_typed(
    slides: Path, tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = qpnuclei("run", slides, "-o", "it's a folder", "--mpp", "0.25", *RUN, "--no-report")
    (command,) = re.findall(r"\(every nucleus: qpnuclei (.*)\)$", done.stderr, re.MULTILINE)
    assert qpnuclei(*shlex.split(command)).exit_code == 0
    assert pq.read_table(tmp_path / "nuclei.parquet").num_rows == 3


def test_results_are_written_without_a_reader_of_the_summary(
    slides: Path,
    tmp_path: Path,
    without_reader: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    done = without_reader("run", slides, "-o", tmp_path / "r", "--mpp", "0.25", *RUN)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert counts(tmp_path / "r" / "counts.csv") == {"a.bmp": 2, "b.png": 1}
    assert (tmp_path / "r" / "report.html").exists()


def test_slides_added_to_a_single_one_leave_it_as_it_is(tmp_path: Path, qpnuclei: Call) -> None:
    slides, results = tmp_path / "slides", tmp_path / "r"
    command = ("run", slides, "-o", results, "--mpp", "0.25", *RUN, "--no-report")
    paint(slides / "a.png", (80, 80), (170, 160))
    assert qpnuclei(*command).exit_code == 0
    image = open_project(results).images[0]
    objects = image.read()
    image.write(Edit(remove=frozenset([0])), objects.fingerprint)
    first = image.data_path.read_bytes()
    for number, name in enumerate(("b.png", "c.png"), start=2):
        paint(slides / name, (120, 120))
        again = json.loads(qpnuclei(*command, "--json").stdout)
        assert (again["resumed"], len(again["images"])) == (number - 1, number)
        assert image.data_path.read_bytes() == first
    assert counts(results / "counts.csv") == {"a.png": 1, "b.png": 1, "c.png": 1}
    assert record(results)["resumed"] == 2  # there is one run


def test_a_run_of_an_annotation_in_the_results_leaves_the_slides_finished(
    tmp_path: Path, qpnuclei: Call
) -> None:
    slides, results = tmp_path / "slides", tmp_path / "r"
    command = ("run", slides, "-o", results, "--mpp", "0.25", *RUN, "--no-report")
    paint(slides / "a.png", (80, 80), (170, 160), (60, 190))
    assert qpnuclei(*command).exit_code == 0
    image = open_project(results).images[0]
    objects = image.read()
    image.write(Edit(remove=frozenset([0])), objects.fingerprint)
    annotate(image, shapely.Point(objects.detections.centroids[-1]).buffer(30))
    assert qpnuclei("run", results, "--roi", "Tumor", *RUN, "--no-report").exit_code == 0
    data = image.data_path.read_bytes()
    again = json.loads(qpnuclei(*command, "--json").stdout)
    assert (again["resumed"], len(again["images"])) == (1, 1)
    assert image.data_path.read_bytes() == data
    paint(slides / "b.png", (120, 120))
    assert json.loads(qpnuclei(*command, "--json").stdout)["resumed"] == 1
    assert image.data_path.read_bytes() == data
    assert counts(results / "counts.csv") == {"a.png": 2, "b.png": 1}


def spoil(plan: Path, how: str) -> None:
    """Make a plan one of another version or format, or no JSON."""
    content = json.loads(plan.read_text(encoding="utf-8"))
    changed = {"another version": {"qpnuclei": "0.0.1"}, "an older format": {"format": 1}}
    text = json.dumps({**content, **changed.get(how, {})})
    plan.write_text(text[:99] if how == "damaged" else text, encoding="utf-8")


@pytest.mark.parametrize("how", ["another version", "damaged"])
def test_slides_are_added_although_the_earlier_plan_cannot_be_read(
    slides: Path, tmp_path: Path, qpnuclei: Call, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    results = tmp_path / "r"
    command = ("run", slides, "-o", results, "--mpp", "0.25", *RUN)
    assert qpnuclei(*command).exit_code == 0
    (plan,) = results.glob("qpnuclei/*/plan.json")
    spoil(plan, how)
    paint(slides / "c.png", (60, 60), (160, 60), (110, 180))
    done = qpnuclei(*command)
    assert (done.exit_code, done.error) == (0, None)
    assert f"{plan} " in caplog.text
    assert "it is replaced, and all images are planned anew" in caplog.text
    assert counts(results / "counts.csv") == {"a.bmp": 2, "b.png": 1, "c.png": 3}
    assert "c.png" in (results / "report.html").read_text(encoding="utf-8")
    caplog.clear()
    assert json.loads(qpnuclei(*command, "--json").stdout)["resumed"] == 3
    assert "planned anew" not in caplog.text


@pytest.mark.parametrize("how", ["another version", "an older format", "damaged"])
@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_plan_that_cannot_be_read_is_replaced_by_the_same_command(
    slides: Path,
    tmp_path: Path,
    qpnuclei: Call,
    caplog: pytest.LogCaptureFixture,
    command: str,
    how: str,
) -> None:
    project, folder = tmp_path / "p", tmp_path / "run"
    qpnuclei("project", "create", project, slides, "--mpp", "0.25")
    request = (project, "--tissue", "--backend", "native", "--run-dir", folder)
    assert qpnuclei("plan", *request).exit_code == 0
    spoil(folder / "plan.json", how)
    for phase in ("infer", "commit"):
        assert "plan the run again" in qpnuclei(phase, folder).error.hint
    assert qpnuclei(command, *request, *(RUN if command == "run" else ())).exit_code == 0
    assert "it is replaced, and all images are planned anew" in caplog.text
    if command == "plan":
        assert qpnuclei("infer", folder, "--device", "cpu").exit_code == 0
        assert qpnuclei("commit", folder, "--backend", "native").exit_code == 0
    qpnuclei("export", project, "--by", "image", "-o", tmp_path / "counts.csv")
    assert counts(tmp_path / "counts.csv") == {"a.bmp": 2, "b.png": 1}


def test_other_options_do_the_slides_anew(slides: Path, tmp_path: Path, qpnuclei: Call) -> None:
    results = tmp_path / "results"
    command = ("run", slides / "b.png", "-o", results, *RUN, "--no-report", "--json")
    qpnuclei(*command, "--mpp", "0.25")
    same = json.loads(qpnuclei(*command).stdout)
    assert same["resumed"] == 1
    done = qpnuclei(*command, "--mpp", "0.3")
    other = json.loads(done.stdout)
    assert (other["resumed"], other["images"][0]["mpp"]) == (0, [0.3, 0.3])
    assert (other["nuclei"], other["images"][0]["replaced"]) == (1, 1)
    assert "replaced: 1 detection of earlier runs" in done.stderr

    # Once more is told as what it is; the record stays that of the whole run.
    again = qpnuclei(*command, "--mpp", "0.3")
    assert json.loads(again.stdout)["images"] == other["images"]
    assert "nothing to do: the nuclei of 1 image are in the project already" in again.stderr
    assert not {"replaced:", "seams:", "predict"} & set(again.stderr.split())


def test_what_was_found_in_a_slide_that_is_gone_stays_in_the_record(
    slides: Path, tmp_path: Path, qpnuclei: Call, caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    command = ("run", slides, "-o", results, "--mpp", "0.25", *RUN, "--no-report")
    qpnuclei(*command)
    (before,) = (image for image in record(results)["images"] if image["name"] == "b.png")
    (slides / "b.png").rename(tmp_path / "b.png")
    paint(slides / "c.png", (60, 60), (160, 60), (110, 180))

    assert qpnuclei(*command).exit_code == 1

    now = record(results)
    assert {image["name"]: image["nuclei"] for image in now["images"]} == {
        "a.bmp": 2,
        "b.png": 1,
        "c.png": 3,
    }
    assert now["images"][1] == before
    assert [failure["image"] for failure in now["failures"]] == ["b.png"]
    assert (
        "not analysed again; its nuclei from the earlier run are kept: image 'b.png'" in caplog.text
    )
    assert counts(results / "counts.csv") == {"a.bmp": 2, "b.png": 1, "c.png": 3}

    # When it is there again, nothing of it is done again.
    (tmp_path / "b.png").rename(slides / "b.png")
    again = qpnuclei(*command, "--json")
    assert (again.exit_code, json.loads(again.stdout)["resumed"]) == (0, 3)


def test_why_an_image_was_not_analysed_is_said_once(
    slides: Path, tmp_path: Path, qpnuclei: Call, caplog: pytest.LogCaptureFixture
) -> None:
    results = tmp_path / "results"
    command = ("run", slides, "-o", results, *RUN, "--no-report")
    outcome = qpnuclei(*command)
    assert outcome.exit_code == 1
    assert (outcome.stderr + caplog.text).count("image b.png has no pixel size") == 1
    # Other commands name it once, too.
    marked = qpnuclei("qc", results, "--backend", "native")
    assert "error: image b.png has no pixel size" in marked.stderr

    damaged = open_project(results).images[1].data_path
    damaged.write_bytes(b"damaged")
    caplog.clear()
    outcome = qpnuclei(*command, "--mpp", "0.25")
    assert outcome.exit_code == 1
    assert (outcome.stderr + caplog.text).count(str(damaged)) == 1
    assert counts(results / "counts.csv") == {"a.bmp": 2}


def test_a_table_that_someone_has_changed_is_kept(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results = tmp_path / "results"
    command = ("run", slides / "b.png", "-o", results, "--mpp", "0.25", *RUN, "--no-report")
    qpnuclei(*command)
    (results / "counts.csv").write_text("mine")
    for _ in range(2):
        assert qpnuclei(*command).exit_code == 0
    assert (results / "counts.csv").read_text() == "mine"
    assert counts(results / "counts-2.csv") == {"b.png": 1}
    assert not (results / "counts-3.csv").exists()


@pytest.mark.parametrize("at", ["counts.csv", "results.json"])
def test_a_table_that_was_being_written_when_a_process_was_killed_is_replaced(
    at: str, slides: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = ResultsFolder(tmp_path / "results")
    folder.project_of([slides / "b.png"], AskedMpp(0.25), pytest.fail)
    real = Path.replace

    def killed(path: Path, target: Path) -> Path:
        if target.name == at:
            raise KeyboardInterrupt
        return real(path, target)

    def killed_after(path: Path, target: Path) -> Path:
        done = real(path, target)
        if target.name == at:
            raise KeyboardInterrupt
        return done

    table = table_written(folder, b"first")
    for end in (killed, killed_after):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "replace", end)
            with pytest.raises(KeyboardInterrupt):
                table_written(folder, b"second")
        assert table_written(folder, b"third") == table
        assert table.read_bytes() == b"third"
    table.write_bytes(b"mine")
    assert table_written(folder, b"fourth").name == "counts-2.csv"
    assert table.read_bytes() == b"mine"


def table_written(folder: ResultsFolder, content: bytes) -> Path:
    return folder.write("counts.csv", lambda path, save: save(path, content))


def results_listing(slide: Path, folder: ResultsFolder, digests: Callable[[str], object]) -> None:
    """Make results with a table, in whose list the digest stands in another way."""
    folder.project_of([slide], AskedMpp(0.25), pytest.fail)
    table_written(folder, b"first")
    mark = folder.path / MARK
    content = json.loads(mark.read_bytes())
    (digest,) = content["files"]["counts.csv"]
    content["files"]["counts.csv"] = digests(digest)
    mark.write_text(json.dumps(content))


@pytest.mark.parametrize(("found", "name"), [(b"first", "counts.csv"), (b"mine", "counts-2.csv")])
def test_a_table_that_an_older_version_listed_is_replaced_unless_it_was_changed(
    found: bytes, name: str, slides: Path, tmp_path: Path
) -> None:
    """They listed one digest, as a text."""
    folder = ResultsFolder(tmp_path / "results")
    results_listing(slides / "b.png", folder, lambda digest: digest)
    (folder.path / "counts.csv").write_bytes(found)
    assert table_written(folder, b"second").name == name
    assert (folder.path / name).read_bytes() == b"second"


@pytest.mark.parametrize("wrong", [None, 1, {}, [1], [None]])
def test_a_list_of_results_without_digests_is_refused(
    wrong: object, slides: Path, tmp_path: Path
) -> None:
    folder = ResultsFolder(tmp_path / "results")
    results_listing(slides / "b.png", folder, lambda _: wrong)
    with pytest.raises(FormatError, match=r"results\.json cannot be read: .* list of digests"):
        table_written(folder, b"second")
    assert (folder.path / "counts.csv").read_bytes() == b"first"


def test_annotations_drawn_in_the_results_are_analysed_where_they_are_named(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results = tmp_path / "results"
    command = ("run", slides / "a.bmp", "-o", results, "--mpp", "0.25", *RUN, "--no-report")
    qpnuclei(*command)
    annotate(open_project(results).images[0], shapely.box(40, 40, 120, 120))
    assert qpnuclei(*command, "--roi", "Tumor").exit_code == 0
    with (results / "counts.csv").open(encoding="utf-8-sig", newline="") as stream:
        rows = {row["class"]: row["nuclei"] for row in csv.DictReader(stream)}
    assert rows == {"Tumor": "1"}

    # A slide without such annotations has no row; that is said, here and by export.
    qpnuclei("project", "add", results, slides / "b.png", "--mpp", "0.25")
    left_out = (
        "no annotations of class Tumor in 1 of 2 images: b.png (export --by image, without --roi"
    )
    again = qpnuclei(*command, "--roi", "Tumor")
    assert (again.exit_code, left_out in again.stderr) == (0, True)
    table = tmp_path / "c.csv"
    done = qpnuclei("export", results, "-o", table, "--roi", "Tumor", "--json")
    assert left_out in done.stderr
    assert [i["image"] for i in json.loads(done.stdout)["without_annotations"]] == ["b.png"]


def test_the_pixel_sizes_of_slides_come_from_a_table_by_name(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    (tmp_path / "t.csv").write_text("image,mpp\na.bmp,0.25\nb.png,0.5\n")
    command = ("run", slides, "-o", tmp_path / "r", *RUN, "--no-report")
    assert qpnuclei(*command, "--mpp", "250").exit_code == 2
    assert not (tmp_path / "r").exists()
    assert qpnuclei(*command, "--mpp-table", tmp_path / "t.csv").exit_code == 0
    images = open_project(tmp_path / "r").images
    assert [entry.calibration.mpp for entry in images] == [0.25, 0.5]
    (tmp_path / "t.csv").write_text("image,mpp\nother.svs,0.25\n")
    error = qpnuclei(*command, "--mpp-table", tmp_path / "t.csv").error
    assert "no image is called 'other.svs'" in str(error)


def test_what_was_removed_since_is_not_counted_when_a_run_goes_on(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    results = tmp_path / "r"
    command = ("run", slides, "-o", results, "--mpp", "0.25", *RUN, "--no-report")
    assert qpnuclei(*command).exit_code == 0
    image = open_project(results).images[0]
    objects = image.read()
    image.write(Edit(remove=frozenset([0])), objects.fingerprint)
    for _ in range(2):
        again = json.loads(qpnuclei(*command, "--json").stdout)
        assert again["resumed"] == 2
        assert counts(results / "counts.csv") == {"a.bmp": 1, "b.png": 1}
        assert [i["regions"][0]["nuclei"] for i in again["images"]] == [1, 1]
        assert [i["nuclei"] for i in again["images"]] == [2, 1]  # it wrote so many
    assert "3 nuclei written, 2 counted" in qpnuclei(*command).stdout


def test_a_folder_that_holds_something_else_is_left_alone(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "counts.csv").write_text("precious")
    package.create_project(tmp_path / "project", [slides / "a.bmp"])
    before = tree(tmp_path)
    for name, said in (("full", "not an empty folder"), ("project", "not made from slides")):
        error = qpnuclei("run", slides, "-o", tmp_path / name, *RUN).error
        assert isinstance(error, UsageError)
        assert said in error.what
    assert tree(tmp_path) == before


def test_results_go_into_the_empty_working_folder_or_a_link_to_an_empty_folder(
    slides: Path, tmp_path: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there", target_is_directory=True)
    for folder, results in (("here", "."), (".", "link")):
        monkeypatch.chdir(tmp_path / folder)
        for _ in range(2):
            done = qpnuclei("run", slides, "-o", results, "--mpp", "0.25", *RUN, "--no-report")
            assert done.exit_code == 0
            assert counts(Path(results) / "counts.csv") == {"a.bmp": 2, "b.png": 1}
    assert (tmp_path / "there" / "project.qpproj").exists()
    assert (tmp_path / "link").is_symlink()


def test_each_slide_is_named_where_none_can_be_read(tmp_path: Path, qpnuclei: Call) -> None:
    bad = [tmp_path / "a.tif", tmp_path / "b.tif"]
    for path in bad:
        path.write_bytes(b"II*\0")
    for command in (
        ("run", *bad, "-o", tmp_path / "r"),
        ("project", "create", tmp_path / "r", *bad),
    ):
        done = qpnuclei(*command)
        assert done.exit_code == 1
        assert "a.tif" in done.stderr
        assert "b.tif" in str(done.error)
        assert not (tmp_path / "r").exists()


def test_what_is_neither_projects_nor_slides(slides: Path, tmp_path: Path, qpnuclei: Call) -> None:
    project = package.create_project(tmp_path / "p", [slides / "a.bmp"]).path
    results = tmp_path / "r"
    for arguments, kind, said in (
        ([slides], UsageError, "is not a QuPath project"),
        ([project, slides, "-o", results], UsageError, "is not"),
        ([project, "--tissue", "-o", results], UsageError, "--output is only for slides"),
        ([tmp_path / "absent.svs"], NotFoundError, "no such file"),
        ([tmp_path / "absent.svs", "-o", results], NotFoundError, "no such file"),
        ([tmp_path / "*.svs", "-o", results], NotFoundError, "no file matches"),
    ):
        error = qpnuclei("run", *arguments, *RUN).error
        assert isinstance(error, kind)
        assert said in error.what
    assert not results.exists()


def test_several_projects_stand_alone(slides: Path, tmp_path: Path, qpnuclei: Call) -> None:
    for name in "ab":
        slide = next(slides.glob(f"{name}.*"))
        package.create_project(tmp_path / name, [slide], mpp=0.25)
    tissue = ("--tissue", *RUN, "--no-report", "--json")
    pattern = qpnuclei("run", tmp_path / "?" / "project.qpproj", *tissue, "--dry-run")
    assert pattern.exit_code == 0
    assert len(json.loads(pattern.stdout)["projects"]) == 2
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "project.qpproj").write_text("{")

    done = qpnuclei("run", tmp_path / "a", tmp_path / "c", tmp_path / "b", *tissue)

    assert done.exit_code == 1
    a, c, b = json.loads(done.stdout)["projects"]
    assert (a["nuclei"], b["nuclei"]) == (2, 1)
    assert "is broken" in c["error"]
    assert c["project"] == str(tmp_path / "c")
    folder = qpnuclei("run", tmp_path / "a", tmp_path / "b", "--run-dir", tmp_path / "d", *tissue)
    assert isinstance(folder.error, UsageError)
    # What is wrong for all of them is said once.
    nobody = qpnuclei("run", tmp_path / "a", tmp_path / "b", "--model", "nobody", *tissue)
    assert "no model named 'nobody'" in str(nobody.error)
    hasty = qpnuclei("run", tmp_path / "c", tmp_path / "a", "--fail-fast", *tissue)
    assert "is broken" in str(hasty.error)
    # What is missing is said before the others are run; the order stays that of the command.
    two = ("run", tmp_path / "a", tmp_path / "d.qpproj", *tissue)
    before = tree(tmp_path / "a")
    assert "d.qpproj: no such file" in str(qpnuclei(*two, "--fail-fast").error)
    assert tree(tmp_path / "a") == before
    a, d = json.loads(qpnuclei(*two, "--dry-run").stdout)["projects"]
    assert (a["project"], d["project"]) == (str(tmp_path / "a"), str(tmp_path / "d.qpproj"))


def test_project_add(slides: Path, tmp_path: Path, qpnuclei: Call) -> None:
    project = package.create_project(tmp_path / "p", [slides / "a.bmp"], mpp=0.25).path
    annotate(open_project(project).images[0], shapely.box(1, 1, 9, 9))
    content = json.loads(project.read_text(encoding="utf-8"))
    project.write_text(json.dumps({**content, "ours": "kept"}), encoding="utf-8")
    # QuPath leaves the data of images that were removed from the list.
    (project.parent / "data" / "7").mkdir()
    other = shutil.copy(slides / "a.bmp", slides.parent / "a.bmp")
    before = tree(project.parent / "data")

    added = qpnuclei("project", "add", project, slides, other, "--mpp", "0.5", "--json")

    assert added.exit_code == 0
    assert json.loads(added.stdout)["added"] == [
        {"id": "8", "name": "b.png", "mpp": 0.5},
        {"id": "9", "name": f"{tmp_path.name}/a.bmp", "mpp": 0.5},
    ]
    after = tree(project.parent / "data")
    assert {name: after[name] for name in before} == before
    assert json.loads(project.read_text(encoding="utf-8"))["ours"] == "kept"
    images = open_project(project).images
    assert [entry.path for entry in images] == [slides / "a.bmp", slides / "b.png", Path(other)]
    assert images[1].image_type == "BRIGHTFIELD_H_E"
    again = qpnuclei("project", "add", project, slides)
    assert (again.exit_code, again.stdout.strip()) == (
        0,
        f"{project}, images: 3, of which new: 0",
    )
    (slides / "broken.tif").write_bytes(b"II*\0")
    assert qpnuclei("project", "add", project, slides).exit_code == 1
    assert len(open_project(project).images) == 3


def test_a_folder_that_is_a_zarr_image_is_refused_by_name(
    slides: Path, tmp_path: Path, qpnuclei: Call
) -> None:
    zarr = tmp_path / "x.ome.zarr"
    (zarr / "0").mkdir(parents=True)
    (zarr / ".zattrs").write_text("{}")
    project = package.create_project(tmp_path / "p", [slides / "a.bmp"], mpp=0.25).path
    for command in (
        ("run", zarr, "-o", tmp_path / "r"),
        ("run", slides, zarr, "-o", tmp_path / "r"),
        ("project", "create", tmp_path / "r", zarr),
        ("project", "add", project, zarr),
        ("info", zarr),
        ("preview", zarr),
    ):
        error = qpnuclei(*command).error
        assert isinstance(error, SlideError), command
        assert error.what == f"{zarr} is a Zarr image, which is not supported"
        assert "OME TIFF" in error.hint
    assert not (tmp_path / "r").exists()
    with pytest.raises(SlideError, match="is a Zarr image"):
        package.create_project(tmp_path / "r", [zarr])


@pytest.mark.parametrize("name", ["batch.lif", "batch.zarr"])
def test_a_folder_of_slides_may_have_the_suffix_of_a_format(
    name: str, tmp_path: Path, qpnuclei: Call
) -> None:
    paint(tmp_path / name / "a.bmp", (80, 80))
    made = qpnuclei("project", "create", tmp_path / "p", tmp_path / name)
    assert (made.exit_code, made.error) == (0, None)
    assert [entry.name for entry in open_project(tmp_path / "p").images] == ["a.bmp"]
    with pytest.raises(SlideError, match=r"cannot be read: .*too long"):
        open_slide(tmp_path / ("n" * 300 + ".lif"))


def test_an_ome_tiff_whose_first_image_has_no_pixels(tmp_path: Path, qpnuclei: Call) -> None:
    with Image.open(paint(tmp_path / "a.png", (80, 80), (170, 160))) as image:
        pixels = np.asarray(image)
    slide = write_ome(tmp_path / "x.ome.tif", (pixels[:32], "label", 1.0), (pixels, "b", 0.25))
    edit_ome(slide, lambda xml: without_planes(xml, 0))
    results = tmp_path / "results"
    assert qpnuclei("run", slide, "-o", results, *RUN).exit_code == 0
    assert counts(results / "counts.csv") == {"x.ome.tif": 2}
    assert qpnuclei("project", "create", tmp_path / "created", slide).exit_code == 0
    for project in (
        open_project(results),
        open_project(tmp_path / "created"),
        package.create_project(tmp_path / "p", [slide]),
    ):
        (entry,) = open_project(project.path).images
        assert entry.server.args == ("--series", "1")
        with open_image(entry) as opened:
            np.testing.assert_array_equal(opened.read(0, 0, 256, 256), pixels)


def test_project_add_of_haematoxylin_and_dab(slides: Path, tmp_path: Path, qpnuclei: Call) -> None:
    project = package.create_project(tmp_path / "p", [slides / "a.bmp"]).path
    assert qpnuclei("project", "add", project, slides, "--hdab").exit_code == 0
    first, added = open_project(project).images
    assert (first.image_type, first.stains) == ("BRIGHTFIELD_H_E", DEFAULT_HE)
    assert (added.image_type, added.stains) == ("BRIGHTFIELD_H_DAB", DEFAULT_H_DAB)


def test_a_run_of_slides_does_not_wait_for_others_if_told(qpnuclei: Call, tmp_path: Path) -> None:
    paint(tmp_path / "a.png", (80, 80))
    results = tmp_path / "results"
    command = ("run", tmp_path / "a.png", "-o", results, "--mpp", "0.25", *RUN)
    assert qpnuclei(*command).exit_code == 0
    is_held, may_go = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(results):
            is_held.set()
            may_go.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    try:
        assert is_held.wait(60)
        assert isinstance(qpnuclei(*command, "--no-wait").error, LockedError)
    finally:
        may_go.set()
        other.join()
    assert qpnuclei(*command, "--no-wait").exit_code == 0
