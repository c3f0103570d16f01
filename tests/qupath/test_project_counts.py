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
    server = SimpleNamespace(width=100, height=50)

    def read(self):
        return image([annotation(RECTANGLE)], detections([(15, 15)])).objects


def test_images_of_a_project():
    project = SimpleNamespace(path=Path("/data/Study 1/project.qpproj"))
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
