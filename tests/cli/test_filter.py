"""Nuclei of which the model was not sure are removed, and nothing else."""

from __future__ import annotations

import json
import shlex
import uuid
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.affinity

from qpnuclei.choices import CERTAINTY
from qpnuclei.errors import UsageError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.analysed_area import AnalysedArea, Basis
from qpnuclei.qupath.model import DetectionGroup, Edit, PathClass
from qpnuclei.qupath.native import NativeImage, open_project
from tests.cli.conftest import Outcome, tree
from tests.ids import nucleus_id
from tests.projects import lock

Call = Callable[..., Outcome]

NATIVE = ("--backend", "native")
VALUES = (0.55, 0.65, 0.7, 0.7, 0.9, np.nan)
FOREIGN = uuid.UUID("0f8fad5b-d9cb-469f-a165-70867728950e")


@pytest.fixture
def project(sample: Callable[..., Path]) -> Path:
    """Return a project whose first image has six nuclei of ours, and others of its own."""
    folder = sample()
    entry = first_image(folder)
    squares = [shapely.box(10 * i, 0, 10 * i + 5, 5) for i in range(len(VALUES))]
    ids = [nucleus_id(bytes([i]) * 10) for i in range(len(VALUES))]
    nuclei = NucleiTable.from_polygons(squares, {CERTAINTY: VALUES})
    unsure = NucleiTable.from_polygons([shapely.box(0, 50, 5, 55)], {CERTAINTY: [0.1]})
    edit = Edit(
        add=[
            DetectionGroup(None, nuclei, ids, PathClass("Nucleus")),
            DetectionGroup(None, unsure, [FOREIGN], PathClass("Nucleus")),
        ]
    )
    entry.write(edit, entry.read().fingerprint)
    return folder


def first_image(folder: Path) -> NativeImage:
    return open_project(folder).images[0]


def test_only_our_own_below_the_value_go_and_a_backup_brings_them_back(
    qpnuclei: Call, project: Path
) -> None:
    before = first_image(project).read()
    done = qpnuclei("filter", project, "--min-certainty", "0.7", "--json", *NATIVE)
    assert done.exit_code == 0
    (said, *others) = json.loads(done.stdout)["images"]
    assert (said["nuclei"], said["removed"], said["without_certainty"]) == (6, 2, 1)
    assert [image["removed"] for image in others] == [0, 0]
    after = first_image(project).read()
    gone = {nucleus_id(bytes([i]) * 10) for i in (0, 1)}
    assert set(before.detections.ids) - set(after.detections.ids) == gone
    assert len(after.detections) == len(before.detections) - 2
    assert after.annotations == before.annotations
    assert FOREIGN in after.detections.ids
    qpnuclei("project", "restore", project, "--image", "1", "--latest")
    assert first_image(project).read().detections.ids == before.detections.ids


@pytest.mark.parametrize("name", ["same", "one's own.tif"])
def test_the_printed_undo_brings_them_back(qpnuclei: Call, project: Path, name: str) -> None:
    file = project / "project.qpproj"
    content = json.loads(file.read_text())
    for image, new in zip(content["images"], (name, "same", "other"), strict=True):
        image["imageName"] = new
    file.write_text(json.dumps(content))
    before = [image.read().detections.ids for image in open_project(project).images]
    done = qpnuclei("filter", project, "--min-certainty", "0.7", *NATIVE)
    assert [image.read().detections.ids for image in open_project(project).images] != before
    undo = shlex.split(done.stderr.strip().removeprefix("undo: qpnuclei "))
    assert qpnuclei(*undo).exit_code == 0
    assert [image.read().detections.ids for image in open_project(project).images] == before


def test_a_doubt_is_about_the_nuclei_before(qpnuclei: Call, project: Path) -> None:
    entry = first_image(project)
    outline = shapely.MultiPolygon([shapely.box(0, 0, 60, 5)])
    doubted = AnalysedArea(None, outline, "specks", bases=(Basis((0.5, 0.5)),))
    certain = replace(doubted, geometry=shapely.affinity.translate(outline, 0, 90), check="")
    record = Record((doubted, certain), UsedMpp((0.5, 0.5), "file", None), "specks", "a run")
    entry.write(Edit(properties=record.to_properties()), entry.read().fingerprint)

    def now() -> Record:
        return Record.of(first_image(project).read().properties, "a.svs")

    qpnuclei("filter", project, "--min-certainty", "0.5", *NATIVE)
    assert now() == record  # none was removed
    said = "before the filter: specks"
    expected = replace(record, areas=(replace(doubted, check=said), certain), check=said)
    for least in ("0.6", "0.7"):  # it is said once
        assert qpnuclei("filter", project, "--min-certainty", least, *NATIVE).exit_code == 0
        assert now() == expected


def test_a_dry_run_counts_and_changes_nothing(qpnuclei: Call, project: Path) -> None:
    before = tree(project)
    done = qpnuclei("filter", project, "--dry-run", "--min-certainty", "0.68", "--json", *NATIVE)
    assert tree(project) == before
    stay = json.loads(done.stdout)["images"][0]["stay"]
    assert stay == {
        "0.5": 6, "0.6": 5, "0.68": 4, "0.7": 4, "0.75": 2, "0.8": 2, "0.85": 2, "0.9": 2, "0.95": 1
    }  # fmt: skip
    assert "nuclei by qpnuclei that stay" in qpnuclei("filter", project, "--dry-run").stdout


def test_locked_ones_stay(qpnuclei: Call, project: Path) -> None:
    lock(first_image(project), [nucleus_id(bytes([0]) * 10)])
    done = qpnuclei("filter", project, "--min-certainty", "0.7", *NATIVE)
    assert "removed 1 of 6 nuclei by qpnuclei" in done.stdout
    assert "(kept in any case: 1 without a certainty, 1 locked)" in done.stdout
    assert nucleus_id(bytes([0]) * 10) in first_image(project).read().detections.ids


def test_only_in_some_annotations(qpnuclei: Call, project: Path) -> None:
    ids = first_image(project).read().detections.ids
    assert qpnuclei("filter", project, "--min-certainty", "1", "--roi", "Stroma").exit_code == 0
    # None of them lies in an annotation of this class.
    assert first_image(project).read().detections.ids == ids
    wrong = qpnuclei("filter", project, "--min-certainty", "1", "--roi", "Nowhere")
    assert isinstance(wrong.error, UsageError)
    assert isinstance(qpnuclei("filter", project).error, UsageError)
