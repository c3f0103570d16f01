"""The room on the disks is checked before a run."""

from __future__ import annotations

import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import shapely

from qpnuclei.errors import SaveError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.pipeline.space import space_needed
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import tree
from tests.cli.test_one_bad_apple import annotate, make_project

Usage = namedtuple("Usage", "total used free")
OPTIONS = RunOptions(Selection(classes=("Tumor",)), device="cpu", workers=1)


def test_what_is_needed_grows_with_area_and_with_what_is_kept() -> None:
    needed = space_needed(2.0, [1_000_000, 3_000_000], OPTIONS)
    # 10,000 nuclei; each data file is written anew and kept once, and the largest is there thrice
    # while it is replaced.
    assert needed == {
        "run": 7_000_000,
        "project": 4_300_000 + 4_000_000 + 3_000_000,
        "parquet": 0,
        "geojson": 0,
    }
    cells = RunOptions(OPTIONS.selection, cell_expansion_um=5, geojson_dir=Path("g"))
    assert space_needed(2.0, [], cells)["project"] == 8_600_000
    assert space_needed(2.0, [], cells)["geojson"] == 4_400_000


def test_a_run_that_cannot_fit_is_refused_and_one_that_may_not_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    project = open_project(make_project(tmp_path, "a"))
    annotate(project.images[0], shapely.box(20, 20, 220, 220))
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
    assert "5000 nuclei per mm² are assumed" in caplog.text

    caplog.clear()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed * 2))
    analyse_project(project, project.images, OPTIONS)
    assert "the run needs" not in caplog.text
