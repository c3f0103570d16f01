"""Results are never written over slides or files of the project."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import Outcome, tree
from tests.pipeline.killing import make_project

Call = Callable[..., Outcome]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = make_project(tmp_path / "place", 1)
    (place / "link.ome.tif").symlink_to(place / "0.tif")
    return place


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("export project --by nucleus --format ome-tiff -o link.ome.tif", "slide of image 0.tif"),
        ("export project --by nucleus --format csv -o 0.tif", "slide of image 0.tif"),
        ("export project --by nucleus --format csv -o project/project.qpproj", "file of the"),
        ("export project -o project/classifiers/classes.json", "file of the project"),
        ("export project -o project/data/1/server.json", "file of the project"),
        ("export project -o project/data/new/counts.csv", "file of the project"),
        ("report project -o project/data/1/report.html", "file of the project"),
        ("preview project --roi Tumor -o project/data/1/p.html", "file of the project"),
        ("evaluate project --roi Tumor -o project/classifiers/classes.json", "file of the project"),
    ],
)
def test_no_result_takes_the_place_of_a_slide_or_of_a_file_of_the_project(
    place: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call, command: str, reason: str
) -> None:
    monkeypatch.chdir(place)
    before = tree(place)
    outcome = qpnuclei(*command.split())
    assert isinstance(outcome.error, UsageError)
    assert reason in outcome.error.what
    assert "would be lost" in outcome.error.what
    assert outcome.exit_code == 2
    assert tree(place) == before


def test_other_files_beside_them_are_written(
    place: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Call
) -> None:
    monkeypatch.chdir(place)
    for _ in range(2):
        for name in ("0.csv", "project/counts.csv", "project/project.qpproj.csv"):
            assert qpnuclei("export", "project", "-o", name).exit_code == 0
    assert len(open_project("project").images) == 1
