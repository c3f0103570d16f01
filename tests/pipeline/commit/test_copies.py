"""The GeoJSON and Parquet copies hold what the run has added, also after a kill, or later."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from uuid import UUID

import pytest
import shapely
from typer.testing import CliRunner, Result

import qpnuclei
from qpnuclei.cli.app import app
from qpnuclei.errors import UsageError
from qpnuclei.pipeline.folder import RunFolder
from qpnuclei.pipeline.phases import commit_run
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, NativeProject, open_project
from tests.ids import own_ids, removal
from tests.pipeline.commit.runs import OPTIONS, run_killed_after_the_save
from tests.pipeline.killing import content, make_project
from tests.projects import lock


def copies(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def analysed(place: Path) -> tuple[NativeProject, NativeImage]:
    """Make a project of one image, and analyse it."""
    project = open_project(make_project(place, 1) / "project")
    analyse_project(project, project.images, OPTIONS)
    (image,) = project.images
    return project, image


def remove(image: NativeImage, ids: Iterable[UUID]) -> None:
    image.write(removal(image, ids), image.read().fingerprint)


def test_copies_of_an_appending_run_that_was_killed_after_the_save(tmp_path: Path) -> None:
    place = tmp_path / "place"
    project, image = analysed(place)
    lost = own_ids(image)[::2]
    remove(image, lost)  # the appending run finds all of them again

    appending = replace(OPTIONS, on_existing="append", geojson_dir=tmp_path / "copies",
                        parquet_dir=tmp_path / "copies")  # fmt: skip
    killed = Path(shutil.copytree(place, tmp_path / "elsewhere" / "place"))
    summary = analyse_project(project, project.images, appending)
    assert summary.nuclei == len(lost)
    expected = copies(tmp_path / "copies")
    assert len(expected) == 2
    shutil.rmtree(tmp_path / "copies")

    project = open_project(killed / "project")
    run_killed_after_the_save(project, appending)
    resumed = analyse_project(project, project.images, appending)

    assert (resumed.resumed, resumed.nuclei) == (1, len(lost))
    assert copies(tmp_path / "copies") == expected
    assert content(killed) == content(place)


@pytest.mark.parametrize("on_existing", ["append", "replace"])
def test_copies_that_are_asked_for_later_are_those_of_the_run(
    tmp_path: Path, on_existing: str
) -> None:
    place = tmp_path / "place"
    project, image = analysed(place)
    ours = own_ids(image)
    remove(image, ours[::2])
    lock(image, ours[1::4])  # the run finds those in their place and does not write them

    options = replace(OPTIONS, on_existing=on_existing)
    folder = RunFolder(qpnuclei.infer(qpnuclei.plan(project, options), device="cpu"))
    copying = replace(options, geojson_dir=tmp_path / "at once", parquet_dir=tmp_path / "at once")
    beside = open_project(shutil.copytree(place / "project", tmp_path / "beside"))
    copy = RunFolder(Path(shutil.copytree(folder.path, tmp_path / "run")))
    commit_run(beside, copy, copying)
    expected = copies(tmp_path / "at once")
    assert len(expected) == 2

    summary = commit_run(project, folder, options)
    # The user goes on working with the image.
    written = [own_id for own_id in own_ids(image) if own_id not in ours[1::2]]
    remove(image, written[::3])
    lock(image, written[1::3])
    before = content(place)
    later = replace(options, geojson_dir=tmp_path / "later", parquet_dir=tmp_path / "later")
    for _ in range(2):
        again = commit_run(project, folder, later)
        assert (again.state, again.resumed, again.nuclei) == ("done", 1, summary.nuclei)
        assert copies(tmp_path / "later") == expected
        next((tmp_path / "later").iterdir()).unlink()  # and a lost one is written again
    assert content(place) == before


def test_copies_that_the_folder_no_longer_has_the_nuclei_for_are_refused(tmp_path: Path) -> None:
    place = make_project(tmp_path / "place", 2)
    project = open_project(place / "project")
    folder = qpnuclei.infer(qpnuclei.plan(project, OPTIONS), device="cpu")

    def committed(*options: object) -> Result:
        command = ["commit", str(folder), "--no-report", *map(str, options)]
        return CliRunner().invoke(app, command)

    assert committed("--parquet", tmp_path / "p").exit_code == 0
    expected = copies(tmp_path / "p")
    assert len(expected) == 2
    shutil.rmtree(folder / "shards")  # as the next run does
    record = (folder / "run.json").read_bytes()
    refused = committed("--parquet", tmp_path / "p", "--geojson", tmp_path / "g")
    assert isinstance(refused.exception, UsageError)
    assert "no copies of the nuclei of image 0.tif" in refused.exception.what
    assert f"qpnuclei export {project.path} --by nucleus -o " in refused.exception.hint
    assert (folder / "run.json").read_bytes() == record
    assert not (tmp_path / "g").exists()
    # Those that are there need no shards.
    assert committed("--parquet", tmp_path / "p").exit_code == 0
    assert copies(tmp_path / "p") == expected


def test_a_run_that_only_removes_nuclei_and_was_killed_after_the_save(tmp_path: Path) -> None:
    place = tmp_path / "place"
    project, image = analysed(place)
    before = len(own_ids(image))
    whole = shapely.box(0, 0, 256, 256)
    pen = NewAnnotation(whole, UUID(int=9), path_class=PathClass("Ignore*"))
    image.write(Edit(annotations=[pen]), image.read().fingerprint)
    killed = Path(shutil.copytree(place, tmp_path / "elsewhere" / "place"))
    undisturbed = analyse_project(project, project.images, OPTIONS).images[0]
    assert (undisturbed.replaced, undisturbed.nuclei) == (before, 0)

    project = open_project(killed / "project")
    run_killed_after_the_save(project, OPTIONS)
    resumed = analyse_project(project, project.images, OPTIONS)

    assert resumed.resumed == 1
    assert resumed.images[0].replaced == before
    assert resumed.images[0].regions == undisturbed.regions == ()
    assert own_ids(project.images[0]) == []
    assert content(killed) == content(place)
