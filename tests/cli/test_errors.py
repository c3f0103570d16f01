"""Every kind of bad input gives one clear error, the right exit code, and changes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from safetensors.numpy import save_file

from qpnuclei.qupath.model import (
    Edit,
    NewAnnotation,
    PathClass,
)
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import SAMPLES, Outcome, tree
from tests.ids import nucleus_id
from tests.paths import ROOT, SHARED

Call = Callable[..., Outcome]
Sample = Callable[[str], Path]
Program = Callable[..., subprocess.CompletedProcess[str]]

QUICK = (
    *("--mpp", "0.5", "--device", "cpu", "--quiet"),
    *("--backend", "native", "--no-report"),
)
WEIGHTS = ROOT / "qpnuclei" / "weights" / "default.safetensors"


def refused(outcome: Outcome, exit_code: int, *parts: str) -> None:
    assert outcome.error is not None
    assert outcome.exit_code == exit_code
    text = f"{outcome.error.what} | {outcome.error.hint}"
    for part in parts:
        assert part in text
    assert outcome.error.hint


@pytest.fixture
def project(sample: Sample) -> Path:
    return sample("0.5.1")


def annotate(project: Path, geometry: shapely.Geometry, class_name: str) -> None:
    entry = open_project(project).images[0]
    new = NewAnnotation(geometry, nucleus_id(b"annotation"), path_class=PathClass(class_name, -1))
    entry.write(Edit(annotations=[new]), entry.read().fingerprint)


# --- the project ---------------------------------------------------------------------------------


def test_no_such_file(qpnuclei: Call, tmp_path: Path) -> None:
    refused(qpnuclei("run", tmp_path / "no.qpproj", "--roi-all", *QUICK), 2, "no.qpproj")


@pytest.mark.parametrize(
    "command",
    [
        *("run {}", "run {} -o out", "run {} other.qpproj other.tif", "run other {} other2"),
        *("plan {}", "preview {}", "filter {}", "evaluate {} -o e.json", "qc {}", "info {}"),
        *("export {} -o t.csv", "report {}", "doctor {}", "geojson export {} -o g"),
        *(
            "geojson import {} no.geojson",
            "geojson import other.qpproj {}",
            "project backups {}",
            "project restore {} --image a",
        ),
        *("project add {} no.tif", "train {} -o t", "adapt {} -o t", "infer {}", "commit {}"),
    ],
)
def test_what_is_not_there_is_said_before_all_else(
    qpnuclei: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    there = {"other": b"", "other.qpproj": b"", "other.tif": b""}
    for name in there:
        Path(name).touch()
    outcome = qpnuclei(*command.format("nowhere.qpproj").split())
    refused(outcome, 2, "nowhere.qpproj: no such f")
    assert tree(tmp_path) == there


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("info {} --image-root nowhere", "nowhere: no such folder"),
        ("run {} --roi Tumor --image-root other.tif", "other.tif: not a folder"),
        ("export {} -o t.csv --mpp-table nowhere", "nowhere: no such file"),
        ("report {} -o r.html --mpp-table folder", "folder cannot be read"),
        ("geojson import {} --image 1 folder", "folder is a folder"),
        ("run {} --roi Tumor --mpp 0.5 --run-dir other.tif", "other.tif is not a folder"),
        ("export {} -o other.tif/t.csv", "other.tif is not a folder"),
        ("evaluate other.tif -o e.json", "other.tif: not a folder"),
        ("infer other.tif", "other.tif: not a folder"),
    ],
)
def test_files_and_folders_that_are_not_what_they_should_be(
    qpnuclei: Call, project: Path, monkeypatch: pytest.MonkeyPatch, command: str, said: str
) -> None:
    monkeypatch.chdir(project.parent)
    Path("folder").mkdir()
    Path("other.tif").touch()
    before = tree(project)
    outcome = qpnuclei(*command.format(project).split())
    assert outcome.exit_code in (1, 2)
    refused(outcome, outcome.exit_code, said)
    assert tree(project) == before


@pytest.mark.parametrize(
    "command",
    [
        *("report {} -o file/r.html", "report {} -o folder.html"),
        *("preview {} --roi Tumor -o file/p.html", "preview {} --roi Tumor -o picture.html"),
        *("export {} -o file/t.csv", "export {} -o folder.csv"),
        *("export {} --by nucleus -o file/n.csv", "export {} --by nucleus -o folder.parquet"),
        *("export {} --by nucleus -o file/n.geojson", "export {} --by nucleus -o file/n.zarr"),
        "export {} --by nucleus --format ome-tiff -o file",
        "geojson export {} -o file",
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_an_image_is_read(
    qpnuclei: Call, project: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    if ".zarr" in command:
        pytest.importorskip("spatialdata")
    monkeypatch.chdir(project.parent)
    Path("file").touch()
    for name in ("folder.html", "picture.png", "folder.csv", "folder.parquet"):
        Path(name).mkdir()
    shutil.rmtree("images")
    for data in project.glob("data/*/data.qpdata"):
        data.write_bytes(b"damaged")
    before = tree(project.parent)
    refused(qpnuclei(*command.format(project).split()), 1, "cannot be written: ")
    assert tree(project.parent) == before


@pytest.mark.parametrize(
    "words",
    [
        ("run", ""),
        ("run", "{}", "--roi", "Tumor", "--mpp", "0.5", "--run-dir", ""),
        ("run", "{}", "--roi", "Tumor", "--mpp", "0.5", "--geojson="),
        ("run", "{}/../images", "-o", ""),
        ("geojson", "export", "{}", "-o", ""),
        ("project", "create", "new", "{}/../images", ""),
        ("infer", ""),
    ],
)
def test_an_empty_path_is_not_this_folder(
    program: Program, project: Path, words: tuple[str, ...]
) -> None:
    before = tree(project.parent)
    done = program(*(word.format(project) for word in words))
    assert done.returncode == 2
    assert "the path is empty" in done.stderr
    assert tree(project.parent) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "{}", "--roi", ""), "no annotation of class ''"),
        (("run", "{}", "--roi-name", ""), "no annotation named ''"),
        (("run", "{}", "--roi-all", "--image", ""), "matches ''"),
        (("run", "{}", "--roi-all", "--class", ""), "'' is not a class name"),
        (("run", "{}", "--roi-all", "--model", ""), "no model named ''"),
        (("run", "{}", "--roi-all", "--dask", ""), "--dask ''"),
        (("export", "{}", "-o", "x.csv", "--roi", ""), "no annotation of class ''"),
        (("filter", "{}", "--dry-run", "--roi", ""), "no annotation of class ''"),
        (("geojson", "export", "{}", "-o", "x", "--roi", ""), "no annotation of class ''"),
        (("geojson", "import", "{}", "1.geojson", "--image", ""), "no image is called ''"),
        (("geojson", "import", "{}", "1.geojson", "--class", ""), "'' is not a class name"),
        (("infer", "the-run", "--model", ""), "no model named ''"),
        (("project", "restore", "{}", "--latest", "--image", ""), "no image is called ''"),
    ],
)
def test_an_empty_text_does_not_mean_that_the_option_is_missing(
    qpnuclei: Call,
    project: Path,
    words: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "1.geojson").write_text('{"type": "FeatureCollection", "features": []}')
    plan = ("plan", project, "--roi", "Tumor", "--mpp", "0.5", "--run-dir", "the-run")
    assert words[0] != "infer" or qpnuclei(*plan).exit_code == 0
    before = tree(tmp_path)
    refused(qpnuclei(*(word.format(project) for word in words)), 2, said)
    assert tree(tmp_path) == before


def test_slides_of_a_plan_that_are_not_there(qpnuclei: Call, project: Path) -> None:
    folder = project.parent / "the-run"
    plan = qpnuclei("plan", project, "--roi", "Tumor", "--mpp", "0.5", "--run-dir", folder)
    assert plan.exit_code == 0
    for command in ("infer", "commit"):
        nowhere = project.parent / "nowhere"
        refused(qpnuclei(command, folder, "--slides-from", nowhere), 2, "nowhere: no such folder")


def test_a_slide_has_no_annotations_to_preview(qpnuclei: Call, project: Path) -> None:
    slide = project.parent / "images" / "plain.tif"
    refused(qpnuclei("preview", slide, "--roi", "Tumor"), 2, "plain.tif is a slide", "--roi")


def test_a_plan_that_is_refused_leaves_no_folder(qpnuclei: Call, project: Path) -> None:
    folder = project.parent / "the-run"
    given = ("--roi", "Tumor", "--mpp", "0.5", "--model", "no.safetensors", "--run-dir", folder)
    refused(qpnuclei("plan", project, *given), 2, "no.safetensors")
    assert not folder.exists()


def test_not_a_project(qpnuclei: Call, tmp_path: Path) -> None:
    other = tmp_path / "notes.qpproj"
    other.write_text('{"hello": 1}')
    refused(qpnuclei("run", other, "--roi-all", *QUICK), 1, "notes.qpproj")


def test_broken_json(qpnuclei: Call, project: Path) -> None:
    file = project / "project.qpproj"
    file.write_text(file.read_text()[:500])
    refused(qpnuclei("run", project, "--roi-all", *QUICK), 1, "project.qpproj")


def test_truncated_data_offers_its_backup(qpnuclei: Call, project: Path) -> None:
    data = project / "data" / "1" / "data.qpdata"
    shutil.copy(data, data.with_name("data.qpdata.bkp"))
    data.write_bytes(data.read_bytes()[:-200])
    before = tree(project)
    only = ("--roi-all", "--image", "he small.png", *QUICK)
    refused(qpnuclei("run", project, *only), 1, "data.qpdata", ".bkp")
    assert tree(project) == before


def test_corrupt_data_says_where(qpnuclei: Call, project: Path) -> None:
    data = project / "data" / "1" / "data.qpdata"
    content = bytearray(data.read_bytes())
    content[1000:1400] = bytes(400)  # 0 is no tag of the stream
    data.write_bytes(content)
    only = ("--roi-all", "--image", "he small.png", *QUICK)
    refused(qpnuclei("run", project, *only), 1, "data.qpdata", "byte 996")


# --- the choice ----------------------------------------------------------------------------------


def test_nothing_chosen(qpnuclei: Call, project: Path) -> None:
    refused(qpnuclei("run", project, *QUICK), 2, "--roi")


def test_class_that_no_annotation_has(qpnuclei: Call, project: Path) -> None:
    outcome = qpnuclei("run", project, "--roi", "Tumour", *QUICK)
    refused(outcome, 2, "'Tumour'", "Stroma", "Tumor")


@pytest.mark.parametrize("command", ["export {} -o t.csv", "report {} -o r.html"])
def test_class_that_no_nucleus_has(
    qpnuclei: Call,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    command: str,
) -> None:
    monkeypatch.chdir(project.parent)
    words = (*command.format(project).split(), "--mpp", "0.5", "--class")
    assert qpnuclei(*words, "Nucleu").exit_code == 0
    assert (
        "no detection has the class 'Nucleu'; classes of the detections: unclassified, "
        in caplog.text
    )
    caplog.clear()
    assert qpnuclei(*words, "Tumor: Positive").exit_code == 0
    assert "no detection has" not in caplog.text


def test_only_lines_and_points(qpnuclei: Call, project: Path) -> None:
    annotate(project, shapely.LineString([(1, 1), (50, 60)]), "Axis")
    refused(qpnuclei("run", project, "--roi", "Axis", *QUICK), 2, "PolylineROI")


def test_annotation_outside_of_the_image(program: Program, project: Path) -> None:
    annotate(project, shapely.box(9000, 9000, 9100, 9100), "Far")
    text = run_fails(program, project, "--roi", "Far", *QUICK)
    assert text.startswith("1 ")
    assert "Far" in text
    assert "outside" in text


def test_self_intersecting_outline_is_mended_and_said(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    annotate(project, shapely.Polygon([(9, 9), (99, 99), (99, 9), (9, 99)]), "Bow")
    outcome = qpnuclei("run", project, "--roi", "Bow", *QUICK)
    assert outcome.exit_code == 0
    assert "repaired" in caplog.text


def test_image_pattern_that_matches_nothing(qpnuclei: Call, project: Path) -> None:
    outcome = qpnuclei("run", project, "--roi-all", "--image", "*.svs", *QUICK)
    refused(outcome, 2, "'*.svs'", "plain.tif")


# --- the slide -----------------------------------------------------------------------------------


def run_fails(program: Program, *arguments: object) -> str:
    done = program("run", *arguments)
    assert "Traceback" not in done.stderr
    assert done.returncode in (1, 2)
    return f"{done.returncode} {' '.join(done.stderr.split())}"


def test_missing_slide_is_named_and_the_others_go_on(program: Program, project: Path) -> None:
    (project.parent / "images" / "plain.tif").unlink()
    text = run_fails(program, project, "--roi", "Tumor", *QUICK)
    assert text.startswith("1 ")
    assert "plain.tif" in text
    assert "--image-root" in text
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    assert len(record["images"]) == 2
    assert [failure["image"] for failure in record["failures"]] == ["plain.tif"]


def test_image_root_finds_it_again(qpnuclei: Call, project: Path, tmp_path: Path) -> None:
    (tmp_path / "archive").mkdir()
    moved = tmp_path / "archive" / "plain.tif"
    (project.parent / "images" / "plain.tif").rename(moved)
    arguments = ("--roi", "Tumor", "--image", "plain.tif", "--image-root", moved.parent, *QUICK)
    assert qpnuclei("run", project, *arguments).exit_code == 0


def test_unreadable_slide(program: Program, project: Path) -> None:
    slide = project.parent / "images" / "plain.tif"
    slide.write_bytes(b"this is no image")
    text = run_fails(program, project, "--roi", "Tumor", "--image", "plain.tif", *QUICK)
    assert "plain.tif" in text


def test_unsupported_server_is_refused_by_name(program: Program, project: Path) -> None:
    file = project / "project.qpproj"
    content = json.loads(file.read_text())
    inner = content["images"][2]["serverBuilder"]
    content["images"][2]["serverBuilder"] = {
        "builderType": "rotated", "builder": inner, "rotation": "ROTATE_90",
    }  # fmt: skip
    file.write_text(json.dumps(content))
    text = run_fails(program, project, "--roi", "Tumor", "--image", "plain.tif", *QUICK)
    assert "rotated" in text


def test_missing_and_absurd_pixel_sizes(program: Program, project: Path) -> None:
    only = ("--roi", "Tumor", "--image", "plain.tif", "--device", "cpu", "--backend", "native")
    text = run_fails(program, project, *only)
    assert text.startswith("1 ")
    assert "--mpp" in text
    for value in ("25", "nan"):
        text = run_fails(program, project, *only, "--mpp", value)
        assert text.startswith("2 ")
        assert f"'--mpp': {value} µm/px is not in the range: 0.05 to 2.5" in text


@pytest.mark.shared
def test_real_slide_without_mpp(program: Program, tmp_path: Path) -> None:
    shared = SHARED / "data" / "slides"
    slide = shared / "TCGA-CR-7395-01A-01-TS1_reduced.svs"
    if not slide.exists():
        pytest.skip(f"the development data is not at {shared}")
    assert program("project", "create", tmp_path / "p", slide).returncode == 0
    text = run_fails(program, tmp_path / "p", "--tissue", "--device", "cpu")
    assert text.startswith("1 ")
    assert "--mpp" in text


# --- model, device, output -----------------------------------------------------------------------


def test_models(qpnuclei: Call, project: Path, tmp_path: Path) -> None:
    only = ("run", project, "--roi", "Tumor", *QUICK)
    refused(qpnuclei(*only, "--model", "nonesuch"), 2, "'nonesuch'", "default")
    refused(qpnuclei(*only, "--model", tmp_path / "no.safetensors"), 2, "no.safetensors")
    text = tmp_path / "text.safetensors"
    text.write_text("weights")
    refused(qpnuclei(*only, "--model", text), 1, "text.safetensors", "safetensors")
    bare = tmp_path / "bare.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, bare)
    refused(qpnuclei(*only, "--model", bare), 1, "bare.safetensors", "metadata")
    assert not (project / "qpnuclei").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_that_is_not_there(qpnuclei: Call, project: Path) -> None:
    outcome = qpnuclei("run", project, "--roi", "Tumor", "--mpp", "0.5", "--device", "cuda")
    refused(outcome, 2, "CUDA", "--device")


def test_output_folders_that_cannot_be_written(
    qpnuclei: Call, project: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    before = tree(project)
    for option in ("--geojson", "--parquet", "--run-dir"):
        outcome = qpnuclei("run", project, "--roi", "Tumor", *QUICK, option, tmp_path / "file")
        refused(outcome, 1, str(tmp_path / "file"))
        assert not (project / "qpnuclei").exists()
    (project / "qpnuclei").write_text("in the way")
    outcome = qpnuclei("run", project, "--roi", "Tumor", *QUICK)
    refused(outcome, 1, str(project / "qpnuclei"))
    assert tree(project) == {**before, "qpnuclei": b"in the way"}


def test_a_run_in_which_every_image_fails_shows_no_table(program: Program, project: Path) -> None:
    (project.parent / "images" / "he small.png").unlink()
    only = ("--roi", "Tumor", "--image", "he small.png", *QUICK)
    done = program("run", project, *only)
    assert done.returncode == 1
    assert done.stdout == ""
    assert "he small.png" in done.stderr


def test_demo_of_a_slide_without_its_resolution_makes_nothing(
    qpnuclei: Call, project: Path, tmp_path: Path
) -> None:
    slide = project.parent / "images" / "he small.png"
    outcome = qpnuclei("demo", tmp_path / "out", "--slide", slide, "--device", "cpu")
    refused(outcome, 2, "he small.png", "--mpp")
    assert not (tmp_path / "out").exists()


def test_save_that_fails_keeps_the_project_and_rescues_the_nuclei(
    qpnuclei: Call,
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = tree(project)
    real = os.fsync

    def full(descriptor: int) -> None:
        if "/data/3/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
            raise OSError(28, "No space left on device")
        real(descriptor)

    if not Path("/proc/self/fd").exists():
        pytest.skip("needs /proc to tell which file is being saved")
    monkeypatch.setattr(os, "fsync", full)
    outcome = qpnuclei("run", project, "--roi", "Tumor", "--image", "plain.tif", *QUICK)
    monkeypatch.undo()
    assert outcome.exit_code == 1
    after = tree(project)
    # Our own copies of what was there do no harm.
    assert {k: v for k, v in after.items() if "qpnuclei" not in k} == before
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    assert "No space left" in record["failures"][0]["error"]
    (rescued,) = (project / "qpnuclei").glob("*/*.rescued.geojson.gz")
    assert str(rescued) in record["failures"][0]["error"]


def test_project_changed_since_it_was_read(project: Path) -> None:
    from qpnuclei.errors import ConflictError

    entry = open_project(project).images[0]
    read = entry.read()
    data = project / "data" / "1" / "data.qpdata"
    other = (SAMPLES / "0.6.0" / "project" / "data" / "1" / "data.qpdata").read_bytes()
    data.write_bytes(other)
    with pytest.raises(ConflictError, match=r"data\.qpdata"):
        entry.write(Edit(), read.fingerprint)
    assert data.read_bytes() == other


# --- cheap to ask --------------------------------------------------------------------------------


CHEAP = (
    (["--help"], 0),
    (["run", "--help"], 0),
    (["train", "--help"], 0),
    (["run"], 2),
    (["run", "nowhere.qpproj", "--roi", "Tumor"], 2),
    (["run", "PROJECT", "--roi", "Tumour"], 2),
    (["run", "PROJECT", "--roi", "Tumor", "--on-existing", "perhaps"], 2),
    (["run", "PROJECT"], 2),
    (["run", "PROJECT", "--roi", "Tumor", "--mpp", "0.5", "--dry-run"], 0),
    (["export", "PROJECT", "-o", "counts.docx"], 2),
    (["export", "PROJECT", "-o", "COUNTS"], 0),
    (["info", "PROJECT"], 0),
)


def test_answers_without_importing_the_heavy_libraries(project: Path) -> None:
    """In one process for all: what one of them loads would be there for the others, too."""
    code = """
import json, sys
from qpnuclei.cli.app import main
for words in json.loads(sys.argv[1]):
    sys.argv = ["qpnuclei", *words]
    try:
        main()
    except SystemExit as end:
        status = end.code or 0
    else:
        status = 0
    heavy = {"torch", "jpype", "tiffslide", "skimage", "scipy", "numba", "pyarrow"}
    heavy |= {"cv2", "importlib.metadata", "jinja2", "xml.etree", "tomllib"}
    print("LOADED", sorted(heavy & set(sys.modules)), "STATUS", status)
"""
    places = {"PROJECT": str(project), "COUNTS": str(project / "counts.csv")}
    calls = [[places.get(word, word) for word in words] for words, _ in CHEAP]
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(calls)],
        capture_output=True,
        text=True,
        check=False,
    )
    answers = [line for line in done.stdout.splitlines() if line.startswith("LOADED")]
    assert answers == [f"LOADED [] STATUS {code}" for _, code in CHEAP], done.stdout + done.stderr
    assert "Traceback" not in done.stderr
