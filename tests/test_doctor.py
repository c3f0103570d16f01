from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from qpnuclei import doctor
from qpnuclei.cli.app import app
from qpnuclei.doctor import Status, check_installation, check_project
from qpnuclei.errors import SaveError
from qpnuclei.models.metadata import read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.qupath.project import open_project
from tests.pipeline.killing import make_project


@pytest.mark.parametrize("network", ["default-40x", "default-20x"])
def test_the_networks_of_the_model_are_named_with_their_quality(network: str) -> None:
    (check,) = (c for c in check_installation() if c.name == f"model {network}")

    aji = read_metadata(resolve_model(network)).validation["mean"]["AJI"]
    assert check.status is Status.OK
    assert f"AJI {aji:.3f}" in check.found


def test_a_project_that_cannot_be_written_is_bad(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = open_project(make_project(tmp_path / "place", 1) / "project", backend="native")
    assert {check.status for check in check_project(project)} == {Status.OK}

    def refuse(folder: Path) -> None:
        raise SaveError(f"cannot write to the folder {folder}", "change its permissions")

    monkeypatch.setattr(doctor, "check_folder_target", refuse)
    folder, image = check_project(project)
    assert (folder.status, image.status) == (Status.BAD, Status.OK)
    assert str(project.path.parent) in folder.found
    assert folder.remedy == "change its permissions"


def test_what_is_wrong_with_qupath_is_said_although_the_project_cannot_be_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_project(tmp_path / "place", 1)
    monkeypatch.setenv("PAQUO_QUPATH_DIR", str(tmp_path / "nowhere"))
    outcome = CliRunner().invoke(app, ["doctor", str(place / "project")])
    assert outcome.exit_code != 0
    (line,) = [line for line in outcome.output.splitlines() if " QuPath" in line][:1]
    assert line.startswith("BAD")
    assert "nowhere" in outcome.output
    assert "reinstall" not in outcome.output
