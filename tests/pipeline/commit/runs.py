"""Runs of small projects: whole, killed after the save, and what they copied."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn
from uuid import UUID

import pyarrow.parquet as pq
import pytest

from qpnuclei.pipeline.commit import write_back
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.pipeline.summary import RunSummary
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import Project

OPTIONS = RunOptions(Selection(classes=("Tumor",)), device="cpu", workers=1)


class Killed(BaseException):
    """Ends a run as a kill does: nothing of it goes on."""


def kill(*_: object) -> NoReturn:
    raise Killed


def run(project: Project, options: RunOptions = OPTIONS) -> RunSummary:
    summary = analyse_project(project, project.images, options)
    assert summary.failures == []
    return summary


def run_killed_after_the_save(project: Project, options: RunOptions) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(write_back, "write_copies", kill)
        with pytest.raises(Killed):
            analyse_project(project, project.images, options)


def assert_copied(folder: Path, ids: Iterable[UUID]) -> None:
    """Assert that the one GeoJSON and the one Parquet file in a folder have these nuclei."""
    expected = sorted(ids)
    (geojson,) = (folder / "geojson").iterdir()
    assert sorted(found.id for found in read_objects(geojson) if found.id) == expected
    (parquet,) = (folder / "parquet").iterdir()
    assert sorted(pq.read_table(parquet)["uuid"].to_pylist()) == sorted(map(str, expected))
