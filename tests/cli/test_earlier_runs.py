"""What a run leaves of earlier ones: where it analyses nothing any more, and beside its nuclei."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import shapely

from qpnuclei import create_project
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, open_project
from tests.cli.conftest import Outcome
from tests.cli.test_one_bad_apple import IMAGE

Call = Callable[..., Outcome]

RUN = ("--device", "cpu", "--backend", "native", "--quiet", "--no-report")
TUMOR = ("--roi", "Tumor")
LEFT, RIGHT = shapely.box(10, 10, 150, 150), shapely.box(120, 60, 246, 246)
INNER = shapely.box(40, 40, 90, 90)
OVER_LEFT, OVER_ALL = shapely.box(5, 5, 155, 155), shapely.box(0, 0, 256, 256)

Row = dict[str, Any]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with two overlapping Tumor annotations, and a Stroma one in the first."""
    slide = Path(shutil.copy(IMAGE, tmp_path / "slide.tif"))
    path = create_project(tmp_path / "project", [slide], mpp=0.25).path
    annotate(path, LEFT, 1, "Tumor")
    annotate(path, RIGHT, 2, "Tumor")
    annotate(path, INNER, 3, "Stroma")
    return path


def image_of(project: Path) -> NativeImage:
    (image,) = open_project(project).images
    return image


def annotate(project: Path, outline: shapely.Geometry, number: int, class_name: str) -> None:
    image = image_of(project)
    new = NewAnnotation(outline, UUID(int=number), f"A{number}", PathClass(class_name))
    image.write(Edit(annotations=[new]), image.read().fingerprint)


def fresh_copy(project: Path) -> Path:
    """Return a copy of a project in which no run has been yet."""
    return Path(shutil.copytree(project.parent, project.parent.with_name("fresh"))) / project.name


def ours(project: Path) -> set[UUID]:
    return {own_id for own_id in image_of(project).read().detections.ids if is_ours(own_id)}


def exported(qpnuclei: Call, project: Path, by: str = "annotation") -> list[Row]:
    table = project.parent.parent / "table.json"
    done = qpnuclei("export", project, "-o", table, "--by", by, "--backend", "native")
    assert done.exit_code == 0
    rows: list[Row] = json.loads(table.read_text())
    return [{key: row[key] for key in row if key != "project"} for row in rows]


def one(qpnuclei: Call, project: Path, name: str) -> Row:
    return next(row for row in exported(qpnuclei, project) if row["annotation"] == name)


def record_of(project: Path) -> Row:
    record = max((project.parent / "qpnuclei").glob("*/run.json"))
    (image,) = json.loads(record.read_text())["images"]
    found: Row = image
    return found


def test_the_doubts_of_nuclei_that_stay_are_told_as_in_export(
    qpnuclei: Call, project: Path
) -> None:
    every = ("--roi-all", *RUN)
    assert qpnuclei("run", project, *every, "--mpp", 0.9, "--threshold", 0.2).exit_code == 0
    doubtful = record_of(project)["check"]
    assert "the median nucleus has" in doubtful
    done = qpnuclei("run", project, *every, "--mpp", 0.25, "--on-existing", "append")
    assert done.exit_code == 0
    result = record_of(project)
    assert doubtful in result["check"]
    assert doubtful in done.stderr
    (whole,) = exported(qpnuclei, project, "image")
    assert result["check"] == whole["check"]
    checks = {row["annotation"]: row["check"] or "" for row in exported(qpnuclei, project)}
    assert len(checks) == 3
    names = (region["name"].split(" ")[0] for region in result["regions"])
    assert dict(zip(names, (r["check"] for r in result["regions"]), strict=True)) == checks
