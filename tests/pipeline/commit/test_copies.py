"""The GeoJSON and Parquet copies hold what the run has added, also after a kill."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.nuclei.ids import is_ours
from qpnuclei.pipeline.commit import write_back
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.qupath.model import Edit
from qpnuclei.qupath.native import open_project
from tests.pipeline.commit.test_locked import OPTIONS, Killed
from tests.pipeline.killing import content, make_project


def copies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_copies_of_an_appending_run_that_was_killed_after_the_save(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = make_project(tmp_path / "place", 1)
    project = open_project(place / "project")
    (image,) = project.images
    analyse_project(project, project.images, OPTIONS)
    objects = image.read()
    ours = list(filter(is_ours, objects.detections.ids))
    lost = frozenset(ours[::2])  # the appending run finds all of them again
    image.write(Edit(remove=lost), objects.fingerprint)

    appending = replace(OPTIONS, on_existing="append", geojson_dir=tmp_path / "copies",
                        parquet_dir=tmp_path / "copies")  # fmt: skip
    killed = Path(shutil.copytree(place, tmp_path / "elsewhere" / "place"))
    summary = analyse_project(project, project.images, appending)
    assert summary.nuclei == len(lost)
    expected = copies(tmp_path / "copies")
    assert len(expected) == 2
    shutil.rmtree(tmp_path / "copies")

    project = open_project(killed / "project")

    def kill(*_: object) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(write_back, "write_copies", kill)
        with pytest.raises(Killed):
            analyse_project(project, project.images, appending)
    resumed = analyse_project(project, project.images, appending)

    assert (resumed.resumed, resumed.nuclei) == (1, len(lost))
    assert copies(tmp_path / "copies") == expected
    assert content(killed) == content(place)
