"""The room on the disks is checked before a run."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import shapely

from qpnuclei.errors import SaveError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.phases import commit_run, infer_run, plan_run
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.pipeline.space import Need, need_of_results, need_of_shards
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.native import NativeImage, open_project
from tests.cli.conftest import tree
from tests.projects import annotate, make_project

Usage = namedtuple("Usage", "total used free")
OPTIONS = RunOptions(Selection(classes=("Tumor",)), device="cpu", workers=1)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Of one image, with an annotation of 0.01 mm², in which 50 nuclei are expected."""
    project = open_project(make_project(tmp_path, "a"))
    annotate(project.images[0], shapely.box(20, 20, 220, 220))
    return project


def test_what_is_needed_grows_with_area_and_with_what_is_kept(
    project: Project, tmp_path: Path
) -> None:
    folder, plan, _ = plan_run(project, project.images, OPTIONS)
    images = plan.images * 2
    assert need_of_shards(folder, images) == [Need(folder.path, pytest.approx(100 * 700))]
    assert need_of_shards(folder, images, (2, 4)) == [Need(folder.path, pytest.approx(25 * 700))]
    # Each data file is written anew and kept once, and the largest is there thrice while it is
    # replaced.
    data = project.images[0].data_path.stat().st_size
    home = project.path.parent
    assert need_of_results(project, images, OPTIONS) == [
        Need(home, pytest.approx(100 * 430 + 3 * data))
    ]
    cells = replace(OPTIONS, cell_expansion_um=5, geojson_dir=tmp_path / "g")
    assert need_of_results(project, images, cells) == [
        Need(home, pytest.approx(100 * 860 + 3 * data)),
        Need(tmp_path / "g", pytest.approx(100 * 440)),
    ]


def test_each_phase_is_refused_where_it_cannot_fit(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, free))
    with pytest.raises(SaveError, match=r"the run needs about 35\.0 kB"):
        plan_run(project, project.images, OPTIONS)
    free = 1_000_000_000
    folder, _, _ = plan_run(project, project.images, OPTIONS)
    free = 0
    with pytest.raises(SaveError, match=r"the run needs about 35\.0 kB"):
        infer_run(folder, OPTIONS)
    free = 1_000_000_000
    assert infer_run(folder, OPTIONS) == []
    free = 0
    infer_run(folder, OPTIONS)  # nothing is left to be computed
    with pytest.raises(SaveError, match="the run needs about"):
        commit_run(project, folder, OPTIONS)
    # A save that failed is still to be done.
    free = 1_000_000_000

    def refused(*_: object) -> None:
        raise SaveError("the disk was full")

    with monkeypatch.context() as patched:
        patched.setattr(NativeImage, "write", refused)
        (failure,) = commit_run(project, folder, OPTIONS).failures
    assert "the disk was full" in failure.error.what
    free = 0
    with pytest.raises(SaveError, match="the run needs about"):
        commit_run(project, folder, OPTIONS)
    free = 1_000_000_000
    assert commit_run(project, folder, OPTIONS).nuclei > 0
    free = 0
    assert commit_run(project, folder, OPTIONS).resumed == 1  # nothing is left to be written


def test_a_run_that_cannot_fit_is_refused_and_one_that_may_not_is_warned_of(
    project: Project,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    data = project.images[0].data_path.stat().st_size
    # 0.01 mm² at 0.5 µm/px: 50 nuclei, of 1130 bytes each.
    needed = 50 * 1130 + 2 * data
    before = tree(tmp_path)

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed // 5))
    with pytest.raises(SaveError, match=r"the run needs about .* are free") as error:
        analyse_project(project, project.images, OPTIONS)
    assert "--run-dir" in error.value.hint
    after = {name: held for name, held in tree(tmp_path).items() if "p/qpnuclei/" not in name}
    assert after == before

    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed // 2))
    with caplog.at_level(logging.WARNING, "qpnuclei"):
        assert analyse_project(project, project.images, OPTIONS).state == "done"
    assert "assuming 5000 nuclei per mm²" in caplog.text

    caplog.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed * 2))
    analyse_project(project, project.images, OPTIONS)
    assert "the run needs" not in caplog.text
