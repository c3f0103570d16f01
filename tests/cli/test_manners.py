"""Names come from anyone, standard output goes to other programs, and images share names."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from qpnuclei.cli.console import LineHandler, PlainConsole, visible
from qpnuclei.errors import UsageError
from qpnuclei.qupath.count_table import write_table
from tests.cli.conftest import Outcome

Call = Callable[..., Outcome]
Sample = Callable[[str], Path]
Shell = Callable[..., subprocess.CompletedProcess[str]]

#: Clears the screen, sets the title of the window, and turns the reading order around.
NAME = "\x1b[2Jslide\x1b]0;owned\x07\u202egnp.\x9b2J [bold]x[/bold] :smile:"


def steers(text: str) -> bool:
    return any(
        unicodedata.category(c) == "Cc" or unicodedata.bidirectional(c) in _DIRECTIONS
        for c in text.replace("\n", "")
    )


_DIRECTIONS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(st.text())
def test_nothing_that_steers_a_terminal_stays(text: str) -> None:
    shown = visible(text)
    assert not steers(shown)
    if not steers(text) and not any(c in text for c in "\u061c\u200e\u200f\u2028\u2029"):
        assert shown == text


def rename(project: Path, names: list[str]) -> Path:
    file = project / "project.qpproj"
    content = json.loads(file.read_text())
    for image, name in zip(content["images"], names, strict=False):
        image["imageName"] = name
    file.write_text(json.dumps(content))
    return file


def test_names_reach_neither_the_terminal_nor_markup(sample: Sample, shell: Shell) -> None:
    project = rename(sample("0.5.1"), [NAME])
    for arguments in (["info"], ["info", "--json"], ["doctor"], ["doctor", "--json"]):
        done = shell(arguments[0], project, *arguments[1:], "--backend", "native")
        assert not steers(done.stdout)
        assert not steers(done.stderr)
        assert "[bold]x[/bold] :smile:" in done.stdout
        if "--json" in arguments and arguments[0] == "info":
            assert json.loads(done.stdout)["images"][0]["name"] == NAME
    unknown = shell("export", project, "-o", "x.csv", "--image", "none", "--backend", "native")
    assert unknown.returncode == 2
    assert not steers(unknown.stderr)


def test_brackets_in_paths_are_no_markup(sample: Sample, tmp_path: Path, shell: Shell) -> None:
    folder = tmp_path / "slides [old] [/red]"
    shutil.copytree(sample("0.5.1").parent, folder)
    output = folder / "counts [b].csv"
    done = shell("export", folder / "project", "-o", output, "--backend", "native")
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stderr
    missing = shell("info", folder / "nothing [i]there[/i]")
    assert "nothing [i]there[/i]" in missing.stderr
    assert missing.returncode == 2


def test_a_table_in_a_pipe_is_whole(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    table = Table("first", "second")
    table.add_row("a" * 300, "b" * 300)
    PlainConsole().print(table)
    lines = capsys.readouterr().out.splitlines()
    assert sum("a" * 300 in line and "b" * 300 in line for line in lines) == 1
    assert max(map(len, lines)) < 700  # and no wider than it needs


def test_a_warning_in_a_pipe_is_as_long_as_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    handler = LineHandler(console=PlainConsole(stderr=True))
    handler.emit(
        logging.LogRecord("qpnuclei", logging.WARNING, "", 1, "%s [b]", ("x" * 300,), None)
    )
    assert capsys.readouterr().err == "WARNING  " + "x" * 300 + " [b]\n"


def test_json_is_all_of_standard_output(sample: Sample, tmp_path: Path, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    native = ("--backend", "native")
    info = json.loads(qpnuclei("info", project, "--json", *native).stdout)
    assert [image["id"] for image in info["images"]]
    checks = json.loads(qpnuclei("doctor", project, "--json", *native).stdout)
    assert {check["status"] for check in checks} <= {"ok", "note", "bad"}
    assert checks[0]["name"] == "Python"
    assert json.loads(qpnuclei("project", "backups", project, "--json").stdout) == []
    slides = sorted(p for p in project.parent.rglob("*") if p.suffix in (".png", ".tif"))
    made = qpnuclei("project", "create", tmp_path / "new", *slides, "--mpp", "0.5", "--json")
    content = json.loads(made.stdout)
    assert content["project"] == str(tmp_path / "new" / "project.qpproj")
    assert [image["name"] for image in content["images"]] == [slide.name for slide in slides]
    assert [image["mpp"] for image in content["images"]] == [0.5] * len(slides)


def test_json_of_objects_that_go_out_and_come_in(
    sample: Sample, tmp_path: Path, qpnuclei: Call
) -> None:
    project, native = sample("0.5.1"), ("--backend", "native")
    out = json.loads(
        qpnuclei("geojson", "export", project, "-o", tmp_path, "--json", *native).stdout
    )
    assert out
    assert {"image", "image_id", "path", "annotations", "detections"} <= out[0].keys()
    back = qpnuclei("geojson", "import", project, *(o["path"] for o in out), "--json", *native)
    came = json.loads(back.stdout)
    assert [(o["image"], o["annotations"], o["detections"]) for o in came] == [
        (o["image"], 0, 0) for o in out
    ]  # all were there already
    table = tmp_path / "t.csv"
    made = json.loads(qpnuclei("export", project, "-o", table, "--json", *native).stdout)
    assert made["table"] == str(table)
    assert made["failures"] == []
    assert len(made["rows"]) == len(table.read_text().splitlines()) - 1


@pytest.mark.slow
def test_json_of_a_run_is_its_record(sample: Sample, tmp_path: Path, qpnuclei: Call) -> None:
    project = sample("0.5.1")
    run = (
        "run",
        project,
        "--roi",
        "Tumor",
        "--mpp",
        "0.5",
        "--device",
        "cpu",
        "--model",
        "default",
    )
    run += ("--quiet", "--backend", "native", "--run-dir", tmp_path, "--json")
    plan = json.loads(qpnuclei(*run, "--dry-run").stdout)
    assert plan["failures"] == []
    assert plan["plan"][0]["mpp"] == [0.5, 0.5]
    assert plan["plan"][0]["annotations"][0]["area_mm2"] > 0
    printed = json.loads(qpnuclei(*run).stdout)
    written = json.loads((tmp_path / "run.json").read_text())
    assert printed["images"] == written["images"]
    assert printed["nuclei"] > 0


def test_a_project_of_a_folder_and_of_a_pattern(
    sample: Sample, tmp_path: Path, qpnuclei: Call
) -> None:
    folder = tmp_path / "my [slides]"
    folder.mkdir()
    slide = next(p for p in sample("0.5.1").parent.rglob("*") if p.suffix == ".png")
    for name in ("b.png", "a.png", "notes.txt"):
        shutil.copy(slide, folder / name)
    plain = Path(shutil.copytree(folder, tmp_path / "plain"))
    for number, source in enumerate([folder, plain / "*.png", plain / "?.png", folder / "a.png"]):
        made = qpnuclei("project", "create", tmp_path / str(number), source, "--json")
        names = [image["name"] for image in json.loads(made.stdout)["images"]]
        assert names == (["a.png"] if source.name == "a.png" else ["a.png", "b.png"])
    (tmp_path / "empty").mkdir()
    for source, message in ((tmp_path / "empty", "no slide"), (plain / "*.svs", "no file matches")):
        refused = qpnuclei("project", "create", tmp_path / "other", source)
        assert refused.error is not None
        assert message in refused.error.what
        assert refused.exit_code == 2


def test_images_of_one_name_are_told_apart_by_their_ids(sample: Sample, qpnuclei: Call) -> None:
    project = rename(sample("0.5.1"), ["same", "same"])
    content = json.loads(project.read_text())
    ids = [str(image["entryID"]) for image in content["images"]]
    table = project.parent / "counts.json"
    for wanted in ids[:2]:
        arguments = ("--by", "image", "--image", wanted, "--backend", "native")
        assert qpnuclei("export", project, "-o", table, *arguments).exit_code == 0
        assert len(json.loads(table.read_text())) == 1
    refused = qpnuclei("export", project, "-o", table, "--image", "999", "--backend", "native")
    assert isinstance(refused.error, UsageError)
    assert f"same (ID {ids[0]}), same (ID {ids[1]})" in refused.error.hint


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_no_cell_begins_a_formula(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    evil = ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\rx", "\t=1"]
    write_table([{"=name": text, "number": -1.5, "plain": "a=b"} for text in evil], path)
    text = path.read_bytes().decode("utf-8-sig")
    separator = "," if suffix == ".csv" else "\t"
    for line in text.splitlines():
        assert not line.startswith(("=", "+", "@"))
    assert text.startswith(f"'=name{separator}number{separator}plain\n'=cmd|")
    assert text.count(f"{separator}-1.5{separator}a=b\n") == len(evil)  # numbers stay numbers
