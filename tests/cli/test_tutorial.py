"""The commands of the tutorial, in its order, on a small synthetic slide."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import pytest
import shapely

from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.qupath.native import open_project
from tests.cli.conftest import Outcome
from tests.paths import ROOT
from tests.projects import annotate
from tests.test_docs import commands

TUTORIAL = ROOT / "docs" / "tutorial.md"


@pytest.mark.skipif(not TUTORIAL.is_file(), reason="not in a checkout")
def test_the_tutorial_goes_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, qpnuclei: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("slides").mkdir()
    make_slide("slides/synthetic.tif", size=(640, 512), seed=3)

    done = []
    for words in commands(TUTORIAL.read_text(encoding="utf-8")):
        if "Tumor" in words:  # what the reader draws in QuPath
            image = open_project(Path("results")).images[0]
            annotate(image, shapely.box(100, 100, 540, 400))
        outcome = qpnuclei(*words)
        assert (outcome.exit_code, outcome.error) == (0, None), words
        done.append(words[0])
    assert done == ["run", "qc", "run", "preview", "run", "export", "export"]

    for name in ("counts.csv", "report.html", "project.qpproj", "qpnuclei/preview.png"):
        assert (Path("results") / name).stat().st_size > 0
    with Path("results/tumor.csv").open(encoding="utf-8-sig", newline="") as stream:
        (tumor,) = (row for row in csv.DictReader(stream) if row["class"] == "Tumor")
    assert tumor["status"] == "analysed"
    with Path("results/nuclei.csv").open(encoding="utf-8-sig", newline="") as stream:
        inside = [row for row in csv.DictReader(stream) if row["annotation_class"] == "Tumor"]
    assert len(inside) == int(tumor["nuclei"]) > 0
