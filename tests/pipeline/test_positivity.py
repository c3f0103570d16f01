"""Positive and negative nuclei, by DAB."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely
import tifffile
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.errors import UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.image_plan import plan_images
from qpnuclei.pipeline.positivity import classes_of_nuclei, grades_of
from qpnuclei.pipeline.run import analyse_project
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.adding import add_slides
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeProject, open_project
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.slides.stains import DEFAULT_H_DAB
from tests.pipeline.killing import make_project
from tests.projects import annotate, lock
from tests.qupath.counted import detections
from tests.slides.test_hdab_as_he import SIZE, tissue

OPTIONS = RunOptions(
    Selection(classes=("Tumor",)), device="cpu", workers=1, positive_thresholds=(0.3,)
)


@pytest.mark.parametrize("with_cells", [False, True])
def test_from_the_threshold_on_a_nucleus_is_positive(with_cells: bool) -> None:
    # As float32, 0.7 is a little less; QuPath compares it as double.
    values = np.array([0.1, 0.25, 0.26, 0.5, 0.7, 0.9, np.nan], np.float32)
    nuclei = NucleiTable.from_polygons([shapely.box(0, 0, 4, 4)] * 7)
    if with_cells:
        nuclei = replace(nuclei, measurements={"Nucleus: DAB: Mean": values}, cells=nuclei)
    else:
        nuclei = replace(nuclei, measurements={"DAB: Mean": values})

    def names(*thresholds: float) -> list[str]:
        classes = classes_of_nuclei("Nucleus", thresholds)
        found = [classes.classes[code].name for code in classes.codes(nuclei)]
        return [name.removeprefix("Nucleus: ") for name in found]

    assert names() == ["Nucleus"] * 7
    assert names(0.25) == ["Negative", *["Positive"] * 5, "Nucleus"]
    assert names(0.25, 0.5, 0.7) == ["Negative", "1+", "1+", "2+", "2+", "3+", "Nucleus"]
    # The same of detections in a project.
    saved = detections([(2, 2)] * 7, measurements={**nuclei.measurements})
    for thresholds in [(0.25,), (0.25, 0.5, 0.7)]:
        expected = [name.replace("Nucleus", "") for name in names(*thresholds)]
        assert grades_of(saved, thresholds).tolist() == expected
    assert grades_of(saved, ()).tolist() == [""] * 7


@pytest.mark.parametrize(
    ("thresholds", "class_name", "said"),
    [
        ((0.2, 0.4), "Nucleus", "was given 2 times"),
        ((0.4, 0.2, 0.6), "Nucleus", "must increase"),
        ((0.2, 0.2, 0.6), "Nucleus", "must increase"),
        ((0.0,), "Nucleus", "above 0, at most 5"),
        ((float("nan"),), "Nucleus", "above 0, at most 5"),
        ((0.2,), "Tumor: Positive", "Negative classes of the class 'Tumor: Positive'"),
        ((0.2,), "Tumor:Positive ", "Negative classes of the class 'Tumor: Positive'"),
        ((0.2,), "Ignore*", "no Positive and Negative classes of the class"),
    ],
)
def test_thresholds_that_make_no_classes_are_refused(
    thresholds: tuple[float, ...], class_name: str, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        replace(OPTIONS, positive_thresholds=thresholds, class_name=class_name)


@pytest.fixture
def stained(tmp_path: Path) -> NativeProject:
    """Return a project with a picture of blue and brown nuclei."""
    picture, _, _ = tissue()
    path = tmp_path / "stained.tif"
    tifffile.imwrite(path, picture.read(0, 0, SIZE, SIZE, (1.0, 1.0)), photometric="rgb")
    command = ["project", "create", str(tmp_path / "project"), str(path), "--mpp", "0.25", "--hdab"]
    assert CliRunner().invoke(app, command).exit_code == 0
    project = open_project(tmp_path / "project")
    (image,) = project.images
    assert image.image_type == "BRIGHTFIELD_H_DAB"
    assert image.stains == DEFAULT_H_DAB
    annotate(image, shapely.box(0, 0, SIZE, SIZE), shapely.box(400, 400, 401, 401))
    return project


def test_shares_of_a_picture_with_known_nuclei(stained: NativeProject, tmp_path: Path) -> None:
    _, brown, centres = tissue()
    options = replace(OPTIONS, geojson_dir=tmp_path / "geojson", parquet_dir=tmp_path / "tables")
    summary = analyse_project(stained, stained.images, options)
    assert (summary.nuclei, summary.failures) == (25, [])
    found = stained.images[0].read().detections
    nearest = np.hypot(*(found.centroids[:, None] - centres).transpose(2, 0, 1)).argmin(axis=1)
    expected = ["Nucleus: Positive" if brown[i] else "Nucleus: Negative" for i in nearest]
    assert list(found.class_names) == expected
    positive = int(brown.sum())
    assert 5 < positive < 20
    (row,) = count_project(stained, stained.images, "image")
    assert row["nuclei"] == row["Num Nucleus (base)"] == 25
    assert (row["Num Nucleus: Positive"], row["Num Nucleus: Negative"]) == (positive, 25 - positive)
    assert row["Nucleus: Positive %"] == pytest.approx(100 * positive / 25)
    assert "Nucleus: H-score" not in row
    # QuPath's red and blue.
    classes = {
        PathClass("Nucleus: Positive", -3657166), PathClass("Nucleus: Negative", -10855756)
    }  # fmt: skip
    assert classes <= set(open_project(stained.path).classes)
    (path,) = (tmp_path / "geojson").iterdir()
    written = Counter(item.path_class.name for item in read_objects(path))
    assert written == Counter(expected)
    (path,) = (tmp_path / "tables").iterdir()
    table = pq.read_table(path)
    of_id = dict(zip(map(str, found.ids), found.class_names, strict=True))
    assert table["class"].to_pylist() == [of_id[own_id] for own_id in table["uuid"].to_pylist()]

    # Another run, with grades and cells, has them in place of these, in the project's colours.
    classes_path = stained.classes_path
    content = json.loads(classes_path.read_text())
    content["pathClasses"].append({"name": "Nucleus: 2+", "color": -1})
    classes_path.write_text(json.dumps(content))
    stained = open_project(stained.path)
    # All brown nuclei are some 0.6: 2+.
    graded = replace(OPTIONS, positive_thresholds=(0.2, 0.4, 0.8), cell_expansion_um=2.0)
    summary = analyse_project(stained, stained.images, graded)
    assert (summary.nuclei, summary.images[0].replaced) == (25, 25)
    cells = stained.images[0].read().detections
    assert set(cells.kinds) == {"cell"}
    assert all(map(is_ours, cells.ids))
    assert set(cells.ids) == set(found.ids)
    names = Counter(cells.class_names)
    assert names == {"Nucleus: 2+": positive, "Nucleus: Negative": 25 - positive}
    (row,) = count_project(stained, stained.images, "image")
    assert row["nuclei"] == 25
    assert row["Nucleus: H-score"] == pytest.approx(2 * 100 * positive / 25)
    assert row["Nucleus: Positive %"] == pytest.approx(100 * positive / 25)
    assert [c.color for c in stained.classes if c.name == "Nucleus: 2+"] == [-1]


def test_an_image_without_dab_is_refused(tmp_path: Path) -> None:
    project = open_project(make_project(tmp_path / "place", 1) / "project")
    with pytest.raises(UsageError, match="no chosen image is of haematoxylin and DAB"):
        analyse_project(project, project.images, OPTIONS)
    asked = ["run", str(project.path), "--backend", "native", "--roi", "Tumor", "--dry-run"]
    error = CliRunner().invoke(app, [*asked, "--positive-threshold", "0.2"]).exception
    assert isinstance(error, UsageError)
    assert "Brightfield (H-DAB)" in error.hint
    error = CliRunner().invoke(app, [*asked, *("--positive-threshold", "0.2") * 2]).exception
    assert isinstance(error, UsageError)
    assert "was given 2 times" in error.what
    assert not (project.path.parent / "qpnuclei").exists()

    brown = shutil.copy(tmp_path / "place" / "0.tif", tmp_path / "brown.tif")
    project, _ = add_slides(project.path, [brown], 0.25, stains=DEFAULT_H_DAB)
    annotate(project.images[1], shapely.box(20, 20, 140, 230), shapely.box(150, 60, 240, 240))
    plans, failed = plan_images(project.images, OPTIONS)
    assert [plan.entry.name for plan in plans] == ["brown.tif"]
    ((entry, error),) = failed
    assert entry.name == "0.tif"
    assert "is not stained with haematoxylin and DAB" in error.what


#: The brown nuclei of the picture have about 0.6, the blue ones 0.
DARK, PALE = (0.9,), (0.3,)
BROWN = 11


def notes_of(project: NativeProject, options: RunOptions) -> list[str]:
    """Return what a run says of classes that stay."""
    (image,) = analyse_project(project, project.images, options).images
    return [note for note in image.notes if "another class" in note]


def methods_of(project: NativeProject, tmp_path: Path) -> str:
    page = tmp_path / "report.html"
    assert CliRunner().invoke(app, ["report", str(project.path), "-o", str(page)]).exit_code == 0
    return " ".join(re.sub(r"<[^>]+>", " ", page.read_text()).split())


@pytest.mark.parametrize(
    ("more", "keeps"),
    [
        ({"positive_thresholds": DARK}, BROWN),
        ({"positive_thresholds": PALE}, 0),
        ({"positive_thresholds": ()}, 25),
        ({"class_name": "Cell"}, 25),
        ({"class_name": "Cell", "positive_thresholds": ()}, 25),
    ],
)
def test_nuclei_found_again_keep_their_class_and_the_run_says_so(
    stained: NativeProject, tmp_path: Path, more: dict[str, Any], keeps: int
) -> None:
    first = replace(OPTIONS, positive_thresholds=PALE)
    assert notes_of(stained, first) == []
    before = Counter(stained.images[0].read().detections.class_names)
    assert before == {"Nucleus: Positive": BROWN, "Nucleus: Negative": 25 - BROWN}
    second = replace(first, on_existing="append", **more)
    notes = notes_of(stained, second)
    assert Counter(stained.images[0].read().detections.class_names) == before
    assert notes == [
        f"{keeps} nuclei of earlier runs keep another class than this run gives; --on-existing "
        "replace replaces those that are not locked"
    ] * bool(keeps)
    text = methods_of(stained, tmp_path)
    assert (f"The thresholds do not hold for {BROWN} nuclei" in text) == (
        second.positive_thresholds == DARK
    )
    # One that replaces them gives what its options say.
    assert notes_of(stained, replace(second, on_existing="replace")) == []
    assert "do not hold" not in methods_of(stained, tmp_path)


def test_nuclei_beside_those_of_a_run_keep_their_class_and_the_run_says_so(
    stained: NativeProject,
) -> None:
    (image,) = stained.images
    first = replace(OPTIONS, class_name="Cell", positive_thresholds=())
    assert notes_of(stained, first) == []
    # None is found again: all are too small for the later run.
    found = image.read().detections
    later = replace(first, class_name="Nucleus", on_existing="append", min_area_um2=1000)
    assert notes_of(stained, later) == [
        "25 nuclei of earlier runs keep another class than this run gives; --on-existing "
        "replace replaces those that are not locked"
    ]
    assert image.read().detections.class_names == found.class_names == ["Cell"] * 25


def test_a_locked_nucleus_keeps_its_class_and_the_run_says_so(
    stained: NativeProject, tmp_path: Path
) -> None:
    (image,) = stained.images
    assert notes_of(stained, replace(OPTIONS, positive_thresholds=PALE)) == []
    found = image.read().detections
    chosen = found.ids[found.class_names.index("Nucleus: Positive")]
    assert chosen is not None
    lock(image, [chosen])
    assert notes_of(stained, replace(OPTIONS, positive_thresholds=DARK)) == [
        "1 nucleus of earlier runs keeps another class than this run gives: locked"
    ]
    assert "The thresholds do not hold for 1 nucleus," in methods_of(stained, tmp_path)


def test_the_methods_say_that_nuclei_beside_those_of_a_run_have_other_thresholds(
    stained: NativeProject, tmp_path: Path
) -> None:
    (image,) = stained.images
    left = NewAnnotation(shapely.box(0, 0, SIZE / 2, SIZE), UUID(int=7), "B", PathClass("Left"))
    image.write(Edit(annotations=[left]), image.read().fingerprint)
    pale = replace(OPTIONS, selection=Selection(classes=("Left",)), positive_thresholds=PALE)
    assert notes_of(stained, pale) == []
    earlier = image.read().detections.class_names.count("Nucleus: Positive")
    assert 2 < earlier < BROWN
    assert "do not hold" not in methods_of(stained, tmp_path)
    dark = replace(OPTIONS, positive_thresholds=DARK, on_existing="skip")
    notes_of(stained, dark)
    assert len(image.read().detections) == 25
    text = methods_of(stained, tmp_path)
    assert f"The thresholds do not hold for {earlier} nuclei, whose classes are from" in text
