"""What a user has accepted by locking it in QuPath stays, whatever a run finds there."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
import shapely

from qpnuclei.choices import OnExisting
from qpnuclei.cli.tables import print_account, summary_table
from qpnuclei.errors import number_of
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.overlap import are_among
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, NativeProject
from qpnuclei.qupath.project_counts import count_project
from tests.ids import own_ids
from tests.pipeline.commit.runs import OPTIONS, Killed, assert_copied, kill, run
from tests.pipeline.killing import content
from tests.projects import lock


def test_locked_nuclei_stay_and_nothing_is_written_in_their_place(
    project: NativeProject, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (image,) = project.images
    earlier = run(project)
    chosen = set(own_ids(image)[::5])
    assert len(chosen) > 2
    lock(image, chosen)
    before = image.read().detections
    assert {i for i, locked in zip(before.ids, before.locked, strict=True) if locked} == chosen

    # With another threshold all outlines are others.
    options = replace(OPTIONS, threshold=0.3, geojson_dir=tmp_path / "copies")
    again = run(project, options)
    (result,) = again.images
    assert result.locked == len(chosen)
    assert result.as_locked >= len(chosen)
    assert result.replaced == earlier.nuclei - len(chosen)
    after = image.read().detections
    locked = np.array([own_id in chosen for own_id in after.ids])
    assert locked.sum() == len(chosen)
    np.testing.assert_array_equal(after.locked, locked)
    kept = dict(zip(before.ids, shapely.to_wkb(before.geometries), strict=True))
    shapes = dict(zip(after.ids, shapely.to_wkb(after.geometries), strict=True))
    assert all(shapes[own_id] == kept[own_id] for own_id in chosen)
    new = np.array([own_id is not None and is_ours(own_id) for own_id in after.ids]) & ~locked
    assert new.sum() == result.nuclei
    assert not are_among(after.geometries[new], after.geometries[locked]).any()

    # Everything counts, locked or not.
    rows = [row for row in count_project(project, project.images) if row["class"] == "Tumor"]
    assert [region.nuclei for region in result.regions] == [row["nuclei"] for row in rows]
    assert sum(row["nuclei"] for row in rows) == result.nuclei + len(chosen)
    table = summary_table(again)
    assert table.title == (f"{result.nuclei} nuclei written, {result.nuclei + len(chosen)} counted")
    assert f"also the {len(chosen)} that are locked, others of earlier runs" in str(table.caption)
    print_account(again)
    said = (
        f"kept: {len(chosen)} locked detections of earlier runs; not written in their place: "
        f"{result.as_locked} nucle"
    )
    assert said in " ".join(capsys.readouterr().err.split())

    # The same command once more: the same nuclei.
    assert run(project, options).images[0].nuclei == result.nuclei
    same = image.read().detections
    assert set(same.ids) == set(after.ids)
    assert {i for i, locked in zip(same.ids, same.locked, strict=True) if locked} == chosen

    # It was killed after it had saved, and goes on.
    there = content(project.path.parent.parent)
    (copy,) = (tmp_path / "copies").iterdir()
    written = copy.read_bytes()
    newest = max((project.path.parent / "qpnuclei").glob("*/run.json"))
    record = json.loads(newest.read_text())
    newest.write_text(json.dumps({**record, "state": "running", "images": []}))
    copy.unlink()
    for path in newest.parent.rglob("*.json"):
        if '"is_saved"' in path.read_text():
            path.unlink()
    resumed = run(project, options)
    assert resumed.resumed == 1
    assert copy.read_bytes() == written
    assert (resumed.images[0].nuclei, resumed.images[0].locked) == (result.nuclei, len(chosen))
    assert content(project.path.parent.parent) == there


@pytest.mark.parametrize("on_existing", ["replace", "append"])
def test_locked_nuclei_that_are_found_again_are_those_not_written_in_their_place(
    project: NativeProject, on_existing: OnExisting
) -> None:
    (image,) = project.images
    run(project)
    chosen = own_ids(image)[::5]
    lock(image, chosen)
    (result,) = run(project, replace(OPTIONS, on_existing=on_existing)).images
    assert (result.locked, result.as_locked) == (len(chosen), len(chosen)) == (5, 5)


def test_nothing_is_appended_in_the_place_of_locked_nuclei(project: NativeProject) -> None:
    (image,) = project.images
    run(project)
    chosen = set(own_ids(image))
    lock(image, chosen)
    again = run(project, replace(OPTIONS, threshold=0.3, on_existing="append"))
    (result,) = again.images
    assert result.as_locked > 0
    after = image.read().detections
    new = np.array([own_id is not None and own_id not in chosen for own_id in after.ids])
    new &= np.array([own_id is not None and is_ours(own_id) for own_id in after.ids])
    assert new.sum() == result.nuclei < len(chosen) / 2
    assert not are_among(after.geometries[new], after.geometries[~new]).any()
    counted = result.nuclei + len(chosen)
    written = number_of(result.nuclei, "nucleus")
    assert summary_table(again).title == f"{written} written, {counted} counted"


def test_nuclei_that_two_runs_outlined_are_doubtful(project: NativeProject) -> None:
    run(project)
    (result,) = run(project, replace(OPTIONS, threshold=0.3, on_existing="append")).images
    (again, *_) = (re.search(r"another run \((\d+)\)", region.check) for region in result.regions)
    assert again is not None
    assert result.nuclei / 2 < int(again[1]) <= result.nuclei
    (result,) = run(project).images
    assert {region.check for region in result.regions} == {""}


@pytest.mark.parametrize("is_killed", [False, True])
def test_nuclei_that_were_locked_meanwhile_stay_too(
    project: NativeProject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_killed: bool
) -> None:
    (image,) = project.images
    earlier = run(project)
    unlocked, *rest = own_ids(image)
    chosen = set(rest[:2])
    lock(image, {unlocked})
    before = image.read().detections
    real = NativeImage.write

    def locked_first(self: NativeImage, *arguments: Any) -> None:
        monkeypatch.undo()
        lock(image, chosen)
        lock(image, {unlocked}, is_locked=False)
        if is_killed:
            monkeypatch.setattr("qpnuclei.pipeline.commit.write_back.write_copies", kill)
        real(self, *arguments)

    monkeypatch.setattr(NativeImage, "write", locked_first)
    copies = {"geojson_dir": tmp_path / "geojson", "parquet_dir": tmp_path / "parquet"}
    options = replace(OPTIONS, threshold=0.3, force=True, **copies)
    if is_killed:
        with pytest.raises(Killed):
            run(project, options)
        monkeypatch.undo()
    summary = run(project, options)
    assert summary.resumed == is_killed
    after = image.read().detections
    assert {i for i, is_kept in zip(after.ids, after.locked, strict=True) if is_kept} == chosen
    others = np.array([own_id not in chosen for own_id in after.ids])
    assert not are_among(after.geometries[others], after.geometries[~others]).any()
    # What is no longer locked is replaced by what was found in its place.
    gone = before.geometries[[own_id == unlocked for own_id in before.ids]]
    assert are_among(gone, after.geometries[others]).all()

    # What is told of the run, and the copies, are what is in the project.
    new = set(own_ids(image)) - chosen
    (result,) = summary.images
    assert (result.locked, result.replaced) == (2, earlier.nuclei - 2)
    assert result.as_locked > 0
    assert summary.nuclei == result.nuclei == len(new)
    assert_copied(tmp_path, new)


def test_they_stay_when_the_tissue_around_them_is_another(project: NativeProject) -> None:
    (image,) = project.images
    tissue = RunOptions(Selection(tissue=True), device="cpu", workers=1)
    run(project, tissue)
    chosen = set(own_ids(image)[:3])
    lock(image, chosen)
    hole = NewAnnotation(shapely.box(150, 60, 240, 240), uuid4(), None, PathClass("Ignore*"))
    image.write(Edit(annotations=[hole]), image.read().fingerprint)
    (result,) = run(project, tissue).images
    assert result.locked == 3
    after = image.read()
    assert chosen < set(after.detections.ids)
    assert [a.class_name for a in after.annotations].count("Tissue") == 1
