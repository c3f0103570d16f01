from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qpnuclei.datasets.synthetic.slide import make_slide
from qpnuclei.demo.demonstration import SYNTHETIC_SLIDE, Demonstration, demonstrate
from qpnuclei.errors import UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.native import open_project
from qpnuclei.slides.files import slides_in


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Demonstration:
    return demonstrate(tmp_path_factory.mktemp("demo"), size=(1500, 1200), device="cpu")


def test_most_of_the_known_nuclei_are_found(made: Demonstration) -> None:
    assert made.score is not None
    assert made.score.iou.n_truth > 100
    # The default model reaches about 0.9 here; far less means that coordinates are off.
    assert made.score.iou.precision > 0.7
    assert made.score.iou.recall > 0.7


def test_its_picture_is_not_taken_for_a_slide(made: Demonstration) -> None:
    assert made.picture.is_file()
    assert [path.name for path in slides_in(made.picture.parent)] == [SYNTHETIC_SLIDE]


def test_the_project_holds_what_the_table_says(made: Demonstration) -> None:
    (entry,) = open_project(made.project).images
    found = entry.read()
    assert [a.class_name for a in found.annotations] == ["Tumor", "Tumor", "Stroma", None]
    assert sum(map(is_ours, found.detections.ids)) == made.summary.nuclei
    with made.counts.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["nuclei"]) for row in rows) == made.summary.nuclei
    assert entry.calibration.mpp == pytest.approx(0.25)


def test_the_picture_shows_outlines(made: Demonstration) -> None:
    picture = np.asarray(Image.open(made.picture).convert("RGB")).astype(int)
    # The green of the outlines is a colour that no tissue has.
    green = (picture[..., 1] > 180) & (picture[..., 0] < 90) & (picture[..., 2] < 120)
    assert green.mean() > 0.005


def test_again_replaces_the_nuclei(made: Demonstration) -> None:
    again = demonstrate(made.counts.parent, size=(1500, 1200), device="cpu")
    assert again.summary.nuclei == made.summary.nuclei
    (image,) = again.summary.images
    assert image.replaced == made.summary.nuclei


def test_own_slide_with_its_tissue_as_annotation(tmp_path: Path) -> None:
    slide = make_slide(tmp_path / "synthetic.tif", (1200, 1000)).path
    made = demonstrate(tmp_path / "out", slide, device="cpu")
    assert made.score is None
    assert made.summary.nuclei > 20
    (entry,) = open_project(made.project).images
    assert entry.path == slide
    assert {a.class_name for a in entry.read().annotations} == {"Tissue"}
    other = make_slide(tmp_path / "other-synthetic.tif", (1200, 1000)).path
    with pytest.raises(UsageError, match="another slide"):
        demonstrate(tmp_path / "out", other, device="cpu")
    with pytest.raises(UsageError, match="another slide"):
        demonstrate(tmp_path / "out", device="cpu", size=(600, 600))
    assert not (tmp_path / "out" / SYNTHETIC_SLIDE).exists()
