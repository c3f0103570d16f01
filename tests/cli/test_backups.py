"""`qpnuclei project backups` and `restore`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import shapely

from qpnuclei.qupath.model import (
    Edit,
    NewAnnotation,
)
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import Outcome, tree
from tests.ids import nucleus_id

Call = Callable[..., Outcome]
Sample = Callable[[str], Path]


@pytest.fixture
def project(sample: Sample) -> Path:
    """A project whose first image was edited once."""
    folder = sample("0.5.1")
    image = open_project(folder).images[0]
    new = NewAnnotation(shapely.box(0, 0, 9, 9), nucleus_id(b"annotation"))
    image.write(Edit(annotations=[new]), image.read().fingerprint)
    return folder


def test_backups_are_listed(project: Path, qpnuclei: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    (backup,) = open_project(project).images[0].backups()
    listed = qpnuclei("project", "backups", project).stdout
    assert "he small.png" in listed
    assert backup.id in listed
    counted = qpnuclei("project", "backups", project, "--count").stdout
    row = next(line for line in counted.splitlines() if backup.id in line)
    assert [cell.strip() for cell in row.split("│")[-4:-1]] == ["9", "7", "0"]
    assert all(len(line) <= 80 for line in counted.splitlines())
    header = [line.split("┃")[-4:-1] for line in counted.splitlines() if "┃" in line]
    columns = [" ".join(map(str.strip, cells)).strip() for cells in zip(*header, strict=True)]
    assert columns == ["annotations", "detections", "by qpnuclei"]
    (described,) = json.loads(qpnuclei("project", "backups", project, "--count", "--json").stdout)
    assert described["detections_by_qpnuclei"] == 0


def test_no_backups(sample: Sample, qpnuclei: Call) -> None:
    assert "no run has replaced anything" in qpnuclei("project", "backups", sample("0.5.1")).stdout


def test_the_error_about_a_damaged_file_names_the_command_that_restores_it(
    project: Path, qpnuclei: Call
) -> None:
    (image, *_) = open_project(project).images
    image.data_path.write_bytes(image.data_path.read_bytes()[:3000])
    failed = qpnuclei("info", project, "--backend", "native")
    assert failed.exit_code == 1
    said = " ".join(failed.stdout.split())
    command = said.partition("UTC: qpnuclei ")[2].partition(" --latest")[0]
    assert qpnuclei(*shlex.split(command), "--latest").exit_code == 0
    assert len(open_project(project).images[0].read().annotations) == 9


@pytest.mark.parametrize("image", ["he small.png", "1"])
def test_restore(project: Path, qpnuclei: Call, image: str) -> None:
    entry = open_project(project).images[0]
    assert len(entry.read().annotations) == 10
    (backup,) = entry.backups()
    options = ("--image", image, "--backup", backup.id)
    assert qpnuclei("project", "restore", project, *options).exit_code == 0
    assert len(entry.read().annotations) == 9
    assert qpnuclei("project", "restore", project, "--image", image, "--latest").exit_code == 0
    assert len(entry.read().annotations) == 10


@pytest.mark.parametrize(
    ("options", "what", "hint"),
    [
        (["--image", "he small.png"], "which backup", "Z"),
        (["--image", "he small.png", "--latest", "--backup", "x"], "which backup", "Z"),
        (["--image", "he small.png", "--backup", "x"], "no backup 'x'", "Z"),
        (["--image", "plain.tif", "--latest"], "no backups", "project backups"),
        (["--image", "nobody", "--latest"], "no image is called 'nobody'", "renamed pyramid"),
    ],
)
def test_what_cannot_be_restored(
    project: Path, qpnuclei: Call, options: list[str], what: str, hint: str
) -> None:
    before = tree(project)
    outcome = qpnuclei("project", "restore", project, *options)
    assert outcome.exit_code == 2
    assert outcome.error is not None
    assert what in outcome.error.what
    assert hint in outcome.error.hint
    assert tree(project) == before
