from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.qupath.project import open_project
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.slides.calibration import PixelCalibration
from tests.paths import SAMPLES
from tests.qupath.counted import RECTANGLE, annotation, detections, image, nuclei


class Entry:
    id = "1"
    name = "a.svs"
    calibration = PixelCalibration(0.5, 0.5)
    stains = None
    server = SimpleNamespace(width=100, height=50)

    def __init__(self, classes=("Nucleus",)):
        found = detections([(15, 15)] * len(classes), list(classes))
        analysed = None if classes else []
        self.objects = image([annotation(RECTANGLE)], found, analysed=analysed).objects

    def read(self):
        return self.objects


def test_images_of_a_project():
    project = SimpleNamespace(path=Path("/data/Study 1/project.qpproj"), images=[Entry()])
    rows = count_project(project, [Entry(), Entry()], roi_classes=["Tumor"])
    assert [(row["project"], row["nuclei"]) for row in rows] == [("Study 1/project.qpproj", 1)] * 2
    with pytest.raises(UsageError, match=r"'Stroma'.*classes there: Tumor"):
        count_project(project, [Entry()], roi_classes=["Tumor", "Stroma"])


@pytest.mark.parametrize("version", ["0.2.3", "0.3.2", "0.4.4", "0.5.1", "0.6.0", "0.7.0"])
def test_counts_in_a_project_of_each_qupath_version(version):
    samples = SAMPLES
    project = open_project(samples / version / "project", "native")
    rows = count_project(project, project.images, nucleus_classes=["Nucleus"])
    # As QuPath nests them: five detections in the annotation "nested", which lies in "polygon".
    rows = [row for row in rows if row["type"] == "annotation"]
    found = {row["annotation"]: row["Num Detections"] for row in rows if row["Num Detections"]}
    assert found == {"nested": 5, "polygon": 5, None: 1}
    by_image = count_project(project, project.images, "image", nucleus_classes=["Nucleus"])
    assert nuclei(by_image) == [3, 50, 0]
    # No run of ours has looked there: unless a class is named, there are no numbers.
    rows = count_project(project, project.images)
    assert {row["status"] for row in rows} == {"not analysed"}
    assert {row["nuclei"] for row in rows} == {row["Num Detections"] for row in rows} == {None}


def table_of(*images, **options):
    """Count images of one annotation each, whose detections have these classes."""
    project = SimpleNamespace(path=Path("/data/Study 1/project.qpproj"), images=[Entry()])
    return count_project(project, [Entry(classes) for classes in images], **options)


@pytest.mark.parametrize("by", ["annotation", "class", "image"])
def test_an_image_without_nuclei_of_a_class_has_none_of_them(by):
    mixed = ["Nucleus: Positive", "Nucleus: Negative", "Tumor: Positive"]
    rows = table_of(mixed, ["Nucleus: Negative", "Nucleus", "Tumor", "Tumor"], [], by=by)
    first, second, third = ({n: v for n, v in r.items() if n.startswith("Num ")} for r in rows)
    assert second == {
        "Num Detections": 4, "Num Nucleus (base)": 2, "Num Tumor (base)": 2, "Num Nucleus": 1,
        "Num Nucleus: Negative": 1, "Num Nucleus: Positive": 0, "Num Tumor": 2,
        "Num Tumor: Positive": 0,
    }  # fmt: skip
    assert list(first) == list(second)
    assert (first["Num Nucleus"], first["Num Tumor"]) == (0, 0)
    assert (rows[1]["Nucleus: Positive %"], rows[0]["Nucleus: Positive %"]) == (0, 50)
    # Of what was not analysed, nothing is known.
    assert rows[2]["status"] == "not analysed"
    assert set(third.values()) == {None}


def test_the_h_score_of_negative_nuclei_alone():
    negative = ["Nucleus: Negative"] * 2
    graded, none, without = table_of(["Nucleus: 2+"], negative, ["Nucleus: Positive", *negative])
    assert (graded["Nucleus: H-score"], none["Nucleus: H-score"]) == (200, 0)
    assert "Nucleus: H-score" not in without  # its positive nuclei have no grade
    assert not any("H-score" in name for row in table_of(negative, ["Other"]) for name in row)


def test_a_class_called_as_a_column_of_another_image_keeps_its_count():
    rows = table_of(["Tumor: Positive"], ["Tumor (base)", "Tumor"])
    assert [row["Num Tumor (base)"] for row in rows] == [1, 1]
    assert [row["Num Tumor (base) (class)"] for row in rows] == [0, 1]
