"""Annotations of excluded classes are left out of the run, its record, and counts."""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import shapely
from PIL import Image

from qpnuclei import create_project
from qpnuclei.errors import UsageError
from qpnuclei.pipeline.selection import Selection, choose_images
from qpnuclei.qupath.model import Edit, ImageObjects, NewAnnotation, PathClass
from qpnuclei.qupath.native import NativeImage, open_project
from tests.cli.conftest import Outcome
from tests.paths import ROOT
from tests.slides.pictures import paint

Call = Callable[..., Outcome]

RUN = ("--device", "cpu", "--backend", "native", "--quiet")
NUCLEI = ((80, 80), (170, 160))
PX_MM2 = 0.25e-3**2
TUMOR = shapely.box(10, 10, 250, 250)
FOLD = shapely.box(140, 130, 200, 190)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a project with two nuclei in a Tumor annotation, one of them in an Ignore* one."""
    slide = paint(tmp_path / "tissue.png", *NUCLEI)
    made = create_project(tmp_path / "project", [slide], mpp=0.25)
    (entry,) = made.images
    annotations = [
        NewAnnotation(
            shapely.box(10, 10, 250, 250), uuid.UUID(int=1), path_class=PathClass("Tumor")
        ),
        NewAnnotation(FOLD, uuid.UUID(int=2), path_class=PathClass("Ignore*")),
    ]
    entry.write(Edit(annotations=annotations), entry.read().fingerprint)
    return made.path


def tumor(qpnuclei: Call, project: Path) -> dict[str, object]:
    table = project.parent / "counts.json"
    assert qpnuclei("export", project, "-o", table, "--backend", "native").exit_code == 0
    return next(row for row in json.loads(table.read_text()) if row["class"] == "Tumor")


def test_what_is_excluded_has_neither_nuclei_nor_area(qpnuclei: Call, project: Path) -> None:
    whole = 240 * 240 * PX_MM2
    all_of_it = qpnuclei("run", project, "--roi", "Tumor", "--exclude", "", *RUN, "--json")
    assert json.loads(all_of_it.stdout)["nuclei"] == 2
    row = tumor(qpnuclei, project)
    assert (row["nuclei"], row["status"]) == (2, "analysed")
    assert row["analysed_mm2"] == pytest.approx(whole)

    # Again, by default without it: what the first run found there is gone.
    done = json.loads(qpnuclei("run", project, "--roi", "Tumor", *RUN, "--json").stdout)
    assert done["nuclei"] == 1
    row = tumor(qpnuclei, project)
    assert (row["nuclei"], row["Num Detections"], row["status"]) == (1, 1, "analysed")
    assert row["area_mm2"] == pytest.approx(whole)
    left = whole - FOLD.area * PX_MM2
    assert row["analysed_mm2"] == pytest.approx(left)
    assert row["nuclei_per_mm2"] == pytest.approx(1 / left)

    # Chosen by its class, it is not excluded; with --roi-all it is, and not chosen either.
    assert (
        json.loads(qpnuclei("run", project, "--roi", "Ignore*", *RUN, "--json").stdout)["nuclei"]
        == 1
    )
    done = json.loads(qpnuclei("run", project, "--roi-all", *RUN, "--json").stdout)
    assert done["nuclei"] == 1
    assert (row := tumor(qpnuclei, project))["nuclei"] == 1
    assert row["analysed_mm2"] == pytest.approx(left)


def test_what_a_run_leaves_out_is_not_told_to_be_analysed(qpnuclei: Call, project: Path) -> None:
    (entry,) = open_project(project).images
    ignored = NewAnnotation(FOLD, uuid.UUID(int=3), path_class=PathClass("Ignored"))
    entry.write(Edit(annotations=[ignored]), entry.read().fingerprint)
    table = project.parent / "counts.csv"
    said = " ".join(qpnuclei("export", project, "-o", table, "--backend", "native").stderr.split())
    assert "without counts: 2 of them, because a run leaves out the class Ignore*" in said
    assert "not analysed, without counts: 1 of them" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--roi", "Tumor", "--exclude", "Fold"), "no class 'Fold' to exclude"),
        (("--roi", "Tumor", "--exclude", "Fold*"), "no class 'Fold*' to exclude"),
        (("--roi", "Tumor", "--exclude", "Tum*"), "both chosen and excluded"),
    ],
)
def test_wrong_requests(
    qpnuclei: Call, project: Path, arguments: tuple[str, ...], reason: str
) -> None:
    done = qpnuclei("run", project, *arguments, *RUN)
    assert isinstance(done.error, UsageError)
    assert reason in str(done.error)


def test_the_hint_about_missing_counts_names_the_classes_that_exist(
    qpnuclei: Call, project: Path
) -> None:
    table = project.parent / "counts.json"
    export = ("export", project, "-o", table, "--roi", "Tumor", "--backend", "native")
    hint = "not analysed, without counts: 1 of them; run qpnuclei run"
    assert f"{hint}\n" in qpnuclei(*export).stderr
    name = "Nucleus: Positive"
    assert qpnuclei("run", project, "--roi", "Ignore*", "--class", name, *RUN).exit_code == 0
    existing = f", or count existing detections with --class '{name}'\n"
    assert hint + existing in qpnuclei(*export).stderr
    assert qpnuclei(*export, "--class", name).exit_code == 0
    (row,) = json.loads(table.read_text())
    assert row["nuclei"] == 1


def test_an_annotation_inside_an_excluded_one_has_no_counts(qpnuclei: Call, project: Path) -> None:
    assert qpnuclei("run", project, "--roi", "Tumor", *RUN).exit_code == 0
    table = project.parent / "counts.json"
    assert qpnuclei("export", project, "-o", table, "--backend", "native").exit_code == 0
    _, fold = json.loads(table.read_text())
    assert (fold["status"], fold["nuclei"], fold["analysed_mm2"]) == ("not analysed", None, 0)


def with_a_second_image(qpnuclei: Call, project: Path, class_name: str) -> None:
    """Add an image that has an annotation of a class, which the class list lacks."""
    slide = project.parent.parent / "other.png"
    Image.new("RGB", (256, 256), (235, 200, 225)).save(slide)
    assert qpnuclei("project", "add", project, slide, "--mpp", 0.25).exit_code == 0
    other = open_project(project).images[1]
    annotation = NewAnnotation(FOLD, uuid.UUID(int=4), path_class=PathClass(class_name))
    other.write(Edit(annotations=[annotation]), other.read().fingerprint)
    classes = project.parent / "classifiers" / "classes.json"
    content = json.loads(classes.read_text())
    content["pathClasses"] = [c for c in content["pathClasses"] if c["name"] != class_name]
    classes.write_text(json.dumps(content))


@pytest.mark.parametrize("command", ["run", "preview"])
def test_a_class_of_another_image_may_be_excluded(
    qpnuclei: Call, project: Path, command: str
) -> None:
    with_a_second_image(qpnuclei, project, "Scratch")
    options = RUN if command == "run" else RUN[2:4]
    this = ("--image", "tissue.png", "--roi", "Tumor", *options)
    assert qpnuclei(command, project, *this, "--exclude", "Scr*").exit_code == 0
    error = qpnuclei(command, project, *this, "--exclude", "Skratch").error
    assert isinstance(error, UsageError)
    assert error.what == f"no class 'Skratch' to exclude in {project}"
    assert "Scratch" in error.hint
    # An image that is not chosen may be damaged.
    open_project(project).images[1].data_path.write_bytes(b"damaged")
    assert qpnuclei(command, project, *this, "--exclude", "Necrosis").exit_code == 0
    error = qpnuclei(command, project, *this, "--exclude", "Scratch").error
    assert isinstance(error, UsageError)
    assert "not all images could be read" in error.what


def test_a_misspelt_class_to_exclude_from_tissue_is_a_warning(
    qpnuclei: Call, project: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with_a_second_image(qpnuclei, project, "Scratch")
    this = ("run", project, "--image", "tissue.png", "--tissue", "--device", "cpu", "--dry-run")
    assert qpnuclei(*this, "--exclude", "Scratch").exit_code == 0
    assert "to exclude" not in caplog.text
    assert qpnuclei(*this, "--exclude", "Skratch").exit_code == 0
    assert f"no class 'Skratch' to exclude in {project}: nothing is excluded by it" in caplog.text


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_new_slides_may_have_the_options_of_later_runs(
    qpnuclei: Call, tmp_path: Path, caplog: pytest.LogCaptureFixture, more: tuple[str, ...]
) -> None:
    Image.new("RGB", (96, 96), (235, 200, 225)).save(tmp_path / "new.png")
    results = tmp_path / "results"
    this = ("run", tmp_path / "new.png", "-o", results, "--mpp", 0.25, *RUN[2:], *more)
    assert qpnuclei(*this, "--exclude", "Artefact").exit_code == 0
    said = [line for line in caplog.messages if "to exclude" in line]
    place = results / "project.qpproj"
    named = f"no class 'Artefact' to exclude in {place}: nothing is excluded by it"
    assert [line.startswith(named) for line in said] == [True] * (not more)


@pytest.mark.parametrize(("excluded", "reads"), [("Necrosis", 1), ("Scratch", 2), ("Skratch", 2)])
def test_other_images_are_only_read_if_their_classes_matter(
    qpnuclei: Call, project: Path, monkeypatch: pytest.MonkeyPatch, excluded: str, reads: int
) -> None:
    with_a_second_image(qpnuclei, project, "Scratch")
    read: list[str] = []
    whole = NativeImage.read

    def counted(image: NativeImage) -> ImageObjects:
        read.append(image.id)
        return whole(image)

    monkeypatch.setattr(NativeImage, "read", counted)
    opened = open_project(project)
    wanted = Selection(classes=("Tumor",), excluded=(excluded,))
    with suppress(UsageError):
        choose_images(opened, ("tissue.png",), wanted)
    assert len(read) == reads


def test_the_example_of_the_settings_in_qupath_can_be_used(qpnuclei: Call, project: Path) -> None:
    text = (ROOT / "qupath_scripts" / "settings.groovy").read_text("utf-8")
    (example,) = re.findall(r'for example: (--[^"]+)"', text)
    done = qpnuclei("run", project, "--image=tissue.png", "--roi-all", *shlex.split(example), *RUN)
    assert done.exit_code == 0


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (("run",), ("--dry-run",)),
        (("export",), ("-o", "x.csv")),
        (("export",), ("--by", "nucleus", "-o", "x.csv")),
        (("geojson", "export"), ("-o", "x")),
        (("evaluate",), ("-o", "x.json")),
    ],
)
def test_a_class_of_another_image_is_not_told_to_be_missing_in_the_project(
    qpnuclei: Call, project: Path, command: tuple[str, ...], options: tuple[str, ...]
) -> None:
    with_a_second_image(qpnuclei, project, "Scratch")
    this = (*command, project, *options)
    error = qpnuclei(*this, "--roi", "Scratch", "--image", "tissue.png").error
    assert isinstance(error, UsageError)
    assert "no annotation of class 'Scratch'" in error.what
    assert f"in the chosen images of {project}" in error.what
    assert error.hint.startswith("classes there: Ignore*, Tumor")
    error = qpnuclei(*this, "--roi", "Skratch").error
    assert isinstance(error, UsageError)
    assert f"in {project}" in error.what
