"""A run means the same files, from whatever folder its commands are given."""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qpnuclei.qupath.native import open_project
from tests.cli.conftest import Outcome, tree
from tests.pipeline.killing import make_project
from tests.segmentation.onnx_models import dark_in_onnx

Call = Callable[..., Outcome]

#: Options of `plan` and of `run`.
REQUEST = ("--roi", "Tumor", "--backend", "native", "--tile", "128", "--max-nucleus", "8")
OF = {"plan": (), "run": ("--device", "cpu", "--workers", "1", "--quiet")}


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with a project, a model, and another folder."""
    folder = make_project(tmp_path / "place", 1)
    dark_in_onnx(folder)
    (folder / "other").mkdir()
    (folder / "link").symlink_to(folder / "project", target_is_directory=True)
    return folder


@pytest.mark.parametrize("command", list(OF))
@pytest.mark.parametrize(
    ("folder", "project"),
    [
        (".", "project/project.qpproj"),
        (".", "project"),
        (".", "other/../project"),
        (".", "link/project.qpproj"),
        ("project", "."),
        ("project", "project.qpproj"),
        ("other", "../project/project.qpproj"),
        ("link", "../project/project.qpproj"),
    ],
)
def test_a_run_goes_on_for_any_spelling_of_its_paths(
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    qpnuclei: Call,
    command: str,
    folder: str,
    project: str,
) -> None:
    model = next(place.glob("*.onnx"))
    monkeypatch.chdir(place)
    of_run = ("--model", f"onnx:{model.name}", "--run-dir", "the-run")
    assert qpnuclei("plan", place / "project", *REQUEST, *of_run).exit_code == 0
    assert qpnuclei("infer", "the-run", "--device", "cpu").exit_code == 0
    plan = json.loads(Path("the-run/plan.json").read_text())
    before = tree(place / "the-run" / "shards")
    monkeypatch.chdir(place / folder)
    back = os.path.relpath(place)
    of_run = ("--model", f"onnx:{back}/{model.name}", "--run-dir", f"{back}/the-run")
    done = qpnuclei(command, project, *REQUEST, *of_run, *OF[command])
    assert (done.exit_code, done.error) == (0, None)
    again = json.loads((place / "the-run" / "plan.json").read_text())
    assert again["request"] == plan["request"]
    assert [image["inputs"] for image in again["images"]] == [
        image["inputs"] for image in plan["images"]
    ]
    assert tree(place / "the-run" / "shards") == before
    committed = qpnuclei("commit", place / "the-run", "--backend", "native", "--json")
    assert json.loads(committed.stdout)["resumed"] == (command == "run")


@pytest.mark.parametrize(
    ("folder", "project"),
    [("project", "."), ("project", "project.qpproj"), ("other", "../project"), (".", "project")],
)
def test_tables_and_pages_name_the_project(
    place: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call, folder: str, project: str
) -> None:
    monkeypatch.chdir(place / folder)
    counts, page = place / "counts.csv", place / "page.html"
    assert qpnuclei("export", project, "-o", counts).exit_code == 0
    with counts.open(encoding="utf-8-sig", newline="") as file:
        assert {row["project"] for row in csv.DictReader(file)} == {"project/project.qpproj"}
    assert qpnuclei("report", project, "-o", page).exit_code == 0
    assert "<bdi>project/project.qpproj</bdi>" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize("command", list(OF))
def test_another_project_of_the_same_name_does_not_take_the_folder_of_a_run(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call, command: str
) -> None:
    of_run = ("--model", f"onnx:{next(place.glob('*.onnx'))}", "--run-dir", tmp_path / "the-run")
    given = (command, "project.qpproj", *REQUEST, *of_run, *OF[command])
    monkeypatch.chdir(place / "project")
    assert qpnuclei(*given).exit_code == 0
    before = tree(tmp_path / "the-run")
    monkeypatch.chdir(shutil.copytree(place / "project", tmp_path / "copy"))
    refused = qpnuclei(*given)
    assert refused.exit_code == 2
    assert refused.error is not None
    expected = f"holds a run of another project, {place / 'project' / 'project.qpproj'}"
    assert expected in refused.error.what
    assert tree(tmp_path / "the-run") == before


def test_a_project_in_a_damaged_record_is_another_one(
    place: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call
) -> None:
    monkeypatch.chdir(place)
    Path("run").mkdir()
    Path("run/run.json").write_text(json.dumps({"project": "a\0b"}))
    refused = qpnuclei("plan", "project", *REQUEST, "--run-dir", "run")
    assert refused.exit_code == 2
    assert "holds a run of another project" in str(refused.error)


def test_slides_in_the_project_are_known_for_any_spelling_of_the_model(
    place: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call
) -> None:
    model = next(place.glob("*.onnx")).name
    common = ("--backend", "native", "--mpp", "0.25", "--json", *OF["run"])
    monkeypatch.chdir(place)
    given = ("-o", "results", "--model", f"onnx:{model}")
    assert qpnuclei("run", "0.tif", *given, *common).exit_code == 0
    monkeypatch.chdir("other")
    given = ("-o", "../results", "--model", f"onnx:../{model}")
    again = qpnuclei("run", "../0.tif", *given, *common)
    assert (again.exit_code, again.error) == (0, None)
    assert json.loads(again.stdout)["resumed"] == 1


def test_the_phases_of_a_run_may_be_called_from_different_folders(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call
) -> None:
    monkeypatch.chdir(place)
    of_run = ("--model", f"onnx:{next(place.glob('*.onnx')).name}", "--run-dir", "project/run")
    assert qpnuclei("plan", "project/project.qpproj", *REQUEST, *of_run).exit_code == 0
    monkeypatch.chdir(tmp_path)
    assert qpnuclei("infer", "place/project/run", "--device", "cpu").exit_code == 0
    monkeypatch.chdir(place / "project")
    done = qpnuclei("commit", "run", "--backend", "native", "--no-report", "--json")
    assert (done.exit_code, done.error) == (0, None)
    (image,) = open_project(place / "project").images
    assert len(image.read().detections) == json.loads(done.stdout)["nuclei"] > 0
    monkeypatch.chdir(place / "other")
    page = tmp_path / "report.html"
    assert qpnuclei("report", "../project/run", "-o", page).exit_code == 0
    assert "0.tif" in page.read_text(encoding="utf-8")
    # The files of the run say where everything is.
    run, plan = (
        json.loads((place / "project" / "run" / f"{n}.json").read_text()) for n in ("run", "plan")
    )
    project, model = place / "project" / "project.qpproj", next(place.glob("*.onnx"))
    for content in (run, plan):
        assert content["project"] == str(project)
        assert content["arguments"]["model"] == f"onnx:{model}"
        assert content["arguments"]["run_dir"] == str(place / "project" / "run")
    assert list(plan["engines"]) == [plan["images"][0]["model"]] == [f"onnx:{model}"]
