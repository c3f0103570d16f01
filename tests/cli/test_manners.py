"""Names come from anyone, standard output goes to other programs, and images share names."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.cli.console import (
    LineHandler,
    LinePerMinute,
    PlainConsole,
    image_progress,
    print_error,
    stderr,
)
from qpnuclei.errors import QpnucleiError, UsageError
from qpnuclei.qupath.count_table import write_table
from qpnuclei.system.one_line import visible
from tests.cli.conftest import Outcome
from tests.pipeline.killing import make_project
from tests.segmentation.onnx_models import dark_in_onnx

Call = Callable[..., Outcome]
Sample = Callable[[str], Path]
Program = Callable[..., subprocess.CompletedProcess[str]]

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


def test_names_reach_neither_the_terminal_nor_markup(sample: Sample, program: Program) -> None:
    project = rename(sample("0.5.1"), [NAME])
    for arguments in (["info"], ["info", "--json"], ["doctor"], ["doctor", "--json"]):
        done = program(arguments[0], project, *arguments[1:], "--backend", "native")
        assert not steers(done.stdout)
        assert not steers(done.stderr)
        assert "[bold]x[/bold] :smile:" in done.stdout
        if "--json" in arguments and arguments[0] == "info":
            assert json.loads(done.stdout)["images"][0]["name"] == NAME
    unknown = program("export", project, "-o", "x.csv", "--image", "none", "--backend", "native")
    assert unknown.returncode == 2
    assert not steers(unknown.stderr)


def test_brackets_in_paths_are_no_markup(sample: Sample, tmp_path: Path, program: Program) -> None:
    folder = tmp_path / "slides [old] [/red]"
    shutil.copytree(sample("0.5.1").parent, folder)
    output = folder / "counts [b].csv"
    done = program("export", folder / "project", "-o", output, "--backend", "native")
    assert done.returncode == 0, done.stderr
    assert str(output) in done.stderr
    missing = program("info", folder / "nothing [i]there[/i]")
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


def test_a_name_of_two_lines_is_no_row_of_a_table(
    sample: Sample, qpnuclei: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    table = Table("image", title="of\ntwo lines")
    table.add_row("a\nfeigned 1")
    PlainConsole().print(table)
    said = capsys.readouterr().out
    assert "a\\nfeigned 1" in said
    assert "of\\ntwo lines" in said
    project = rename(sample("0.5.1"), ["a\nfeigned 2", "b", "c"])
    said = qpnuclei("filter", project, "--dry-run", "--backend", "native").stdout
    assert "a\\nfeigned 2" in said


def test_a_name_of_two_lines_is_one_line_of_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stderr, "_force_terminal", True)
    with image_progress("report", 2, quiet=False) as progress:
        progress(1, "a\nfeigned 1")
    assert "a\\nfeigned 1" in capsys.readouterr().err


def test_text_in_a_narrow_terminal_stays_whole_and_tables_are_fitted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    console = PlainConsole()
    console.print("a path/" * 20)
    console.print(Text("a path/" * 20))
    table = Table("first")
    table.add_row("word " * 20)
    console.print(table)
    first, second, *rest = capsys.readouterr().out.splitlines()
    assert first == second == "a path/" * 20
    assert max(map(len, rest)) <= 40


def test_a_warning_in_a_pipe_is_as_long_as_its_text(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    LineHandler().emit(
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


@pytest.mark.slow
def test_json_of_the_three_phases(sample: Sample, tmp_path: Path, qpnuclei: Call) -> None:
    project, folder = sample("0.5.1"), tmp_path / "the-run"
    native = ("--backend", "native")
    given = ("--roi", "Tumor", "--mpp", "0.5", "--run-dir", folder)
    planned = json.loads(qpnuclei("plan", project, *given, *native, "--json").stdout)
    found = json.loads(qpnuclei("infer", folder, "--device", "cpu", "--quiet", "--json").stdout)
    of_both = {key: planned[key] for key in ("run_dir", "images", "units", "failures")}
    assert found == {**of_both, "missing": 0}
    written = json.loads(qpnuclei("commit", folder, *native, "--quiet", "--json").stdout)
    assert len(written["images"]) == found["images"] > 0


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


def test_progress_in_a_log_file_is_a_line_a_minute(capsys: pytest.CaptureFixture[str]) -> None:
    seconds = 0.0
    progress = LinePerMinute(lambda: seconds)
    for image in ("one.svs", "two\nerror: feigned.svs"):
        for done in range(1, 11):
            seconds += 25.0
            progress(image, done, 10, 7 * done)
    assert capsys.readouterr().err.splitlines() == [
        "one.svs: 3 of 10 tiles, up to 21 nuclei, about 3 min left",
        "one.svs: 6 of 10 tiles, up to 42 nuclei, about 2 min left",
        "one.svs: 9 of 10 tiles, up to 63 nuclei, about 1 min left",
        "one.svs: 10 of 10 tiles, up to 70 nuclei",
        "two\\nerror: feigned.svs: 3 of 10 tiles, up to 21 nuclei, about 3 min left",
        "two\\nerror: feigned.svs: 6 of 10 tiles, up to 42 nuclei, about 2 min left",
        "two\\nerror: feigned.svs: 9 of 10 tiles, up to 63 nuclei, about 1 min left",
        "two\\nerror: feigned.svs: 10 of 10 tiles, up to 70 nuclei",
    ]


def test_the_time_left_is_right_if_two_images_are_computed_at_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    seconds = 0.0
    progress = LinePerMinute(lambda: seconds)
    for done in range(1, 6):  # as several devices do where one image ends and the next begins
        for image in ("one.svs", "two.svs"):
            seconds += 60.0
            progress(image, done, 10, 0)
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "one.svs: 5 of 10 tiles, up to 0 nuclei, about 9 min left",
        "two.svs: 5 of 10 tiles, up to 0 nuclei, about 9 min left",
    ]


def test_a_name_of_two_lines_feigns_none(
    sample: Sample, qpnuclei: Call, capsys: pytest.CaptureFixture[str]
) -> None:
    project = rename(sample("0.5.1"), ["a\nerror: all is lost", "b\r\nhint: pay", "c"])
    said = qpnuclei("info", project, "--backend", "native").stdout
    assert "a\\nerror: all is lost" in said
    said += qpnuclei(
        *("run", project, "--roi-all", "--dry-run", "--mpp", "0.5", "--backend", "native")
    ).stdout
    print_error(QpnucleiError("a\nerror: b", "c\nhint: d"), "e\nf: ")
    text = "x\ny\nTraceback z"
    LineHandler().emit(logging.LogRecord("qpnuclei", logging.ERROR, "", 1, text, (), None))
    said += capsys.readouterr().err
    assert "error: e\\nf: a\\nerror: b\nhint: c\\nhint: d\nERROR    x\\ny\\nTraceback z\n" in said
    starts = [line for line in said.splitlines() if line.startswith(("error: ", "hint: "))]
    assert len(starts) == 2  # those of print_error


@pytest.mark.parametrize(
    ("options", "warned", "informed"),
    [
        ([], True, True),
        (["--log-level", "info"], True, True),
        (["-v"], True, True),
        (["-q"], True, False),
        (["--log-level", "warning"], True, False),
        (["--log-level", "error"], False, False),
    ],
)
def test_log_levels(
    options: list[str], warned: bool, informed: bool, sample: Sample, qpnuclei: Call
) -> None:
    assert qpnuclei(*options, "project", "backups", sample("0.5.1")).exit_code == 0
    log = logging.getLogger("qpnuclei.anything")
    assert log.isEnabledFor(logging.WARNING) == warned
    assert log.isEnabledFor(logging.INFO) == informed


def test_quiet_commands_print_results_and_warnings_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: Program
) -> None:
    monkeypatch.chdir(make_project(tmp_path / "place", 1))
    request = ("--model", dark_in_onnx(tmp_path), "--roi", "Tumor", "--backend", "native")
    truth = ("--truth-class", "Nucleus", *request[:2])
    commands: list[tuple[tuple[object, ...], str]] = [
        (("plan", "project", *request, "--run-dir", "a"), "1 unit in 1 image"),
        (("infer", "a", "--device", "cpu"), "units: 1 of 1 are there; 0 missing"),
        (("commit", "a", "--no-report"), "nothing to do: "),
        (("run", "project", *request, "--device", "cpu", "--run-dir", "b"), "seams: "),
        (("export", "project", "-o", "counts.csv"), "counts.csv: 2 rows"),
        (("export", "project", "--by", "nucleus", "-o", "nuclei.csv"), "nuclei.csv: "),
        (("qc", "project"), ""),
        (("geojson", "export", "project", "-o", "files"), ""),
        (("report", "project", "-o", "report.html"), "report: report.html"),
        (("preview", "project", *request, "--fields", 1, "-o", "preview.html"), "page: "),
        (("evaluate", "project", "--roi", "Tumor", *truth, "-o", "e.json"), "written: "),
        (("filter", "project", "--min-certainty", "0.9"), ""),
    ]
    for command, status in commands:
        quiet = program("-q", *command)
        assert (quiet.returncode, quiet.stderr) == (0, "")
        assert status in program(*command).stderr
    export = ("export", make_project(tmp_path / "new", 1) / "project", "-o", "counts.csv")
    warning = "not analysed, without counts: 2 of them; run qpnuclei run"
    assert program("-q", *export).stderr.startswith(warning)
    assert program("--log-level", "error", *export).stderr == ""


def test_log_levels_that_contradict_each_other(sample: Sample, qpnuclei: Call) -> None:
    outcome = qpnuclei("-q", "-v", "project", "backups", sample("0.5.1"))
    assert outcome.exit_code == 2
    assert "--quiet" in str(outcome.error)


@pytest.mark.parametrize("no_color", [None, "1"])
def test_no_color(no_color: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color is not None:
        monkeypatch.setenv("NO_COLOR", no_color)
    console = PlainConsole()
    with console.capture() as captured:
        console.print("red", style="red")
    assert ("\x1b[31m" in captured.get()) == (no_color is None)


@pytest.mark.parametrize(
    ("option", "value", "said"),
    [
        ("--max-nucleus", "500", "500 µm is not in the range: 1 to 200 µm"),
        ("--max-nucleus", "nan", "nan µm"),
        ("--simplify", "-1", "-1 µm is not in the range: 0 to 5 µm"),
        ("--tile", "64", "64 px is not in the range: 128 to 8192 px"),
        ("--workers", "0", "0 cores is not in the range: 1 or more"),
    ],
)
def test_a_range_has_a_unit(option: str, value: str, said: str) -> None:
    outcome = CliRunner().invoke(app, ["run", "project", option, value], env={"COLUMNS": "120"})
    assert outcome.exit_code == 2
    assert said in outcome.output


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are none on this system")
def test_a_table_of_pixel_sizes_has_an_end(sample: Sample, tmp_path: Path, qpnuclei: Call) -> None:
    project, fifo = sample("0.5.1"), tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, Path("/dev/zero")):
        outcome = qpnuclei(
            *("run", project, "--roi", "Tumor", "--backend", "native", "--dry-run"),
            *("--mpp-table", path),
        )
        assert outcome.exit_code == 1
        assert f"{path} cannot be read: not a regular file" in str(outcome.error)


def test_an_input_whose_name_is_too_long_is_one_error(sample: Sample, program: Program) -> None:
    name = "x" * 300
    for command in (
        ("info", name),
        ("run", name),
        ("project", "add", sample("0.5.1"), name),
        ("geojson", "import", sample("0.6.0"), name),
        ("evaluate", name, "-o", "report.json"),
    ):
        done = program(*command)
        assert done.returncode == 1
        assert done.stderr.splitlines()[-2:] == [
            f"error: {name} cannot be read: File name too long",
            "hint: check the path, and the permissions of its folders",
        ]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no such device there")
@pytest.mark.parametrize("option", [(), ("--json",)])
def test_output_to_a_full_disk_is_one_error(sample: Sample, option: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "qpnuclei", "info", str(sample("0.5.1")), *option]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "error: output cannot be written: No space left on device",
        "hint: free space on the disk of standard output and temporary files",
    ]
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize("words", [("info",), ("info", "--json"), ("export", "--json")])
def test_a_closed_pipe_ends_a_command_without_a_message(
    sample: Sample, tmp_path: Path, words: tuple[str, ...]
) -> None:
    table = tmp_path / "counts.csv"
    more = ["--image", "2", "-o", str(table)] if words[0] == "export" else []
    command = [sys.executable, "-m", "qpnuclei", *words, str(sample("0.5.1")), *more]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if not line.startswith("not analysed, ")]
    assert said == []
    assert not more or len(table.read_text("utf-8").splitlines()) == 8
