"""Artefacts become annotations that belong to whoever changes them."""

from dataclasses import replace
from uuid import uuid4

import numpy as np
import pytest
import shapely
from PIL import Image

from qpnuclei.choices import IGNORE_CLASS
from qpnuclei.errors import MppError, UsageError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.phases import plan_run
from qpnuclei.pipeline.planning import artefacts
from qpnuclei.pipeline.planning.artefacts import mark_artefacts
from qpnuclei.pipeline.planning.image_plan import plan_images
from qpnuclei.pipeline.selection import Selection
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import Edit, NewAnnotation, PathClass
from qpnuclei.qupath.pixel_size import AskedMpp

PEN = (50, 90, 170)
NOTHING_SAID = AskedMpp()


@pytest.fixture
def project(tmp_path):
    """One image of glass at 1 µm/px with two strokes of a pen."""
    rgb = np.full((320, 480, 3), 243, np.uint8)
    rgb[64:96, 32:448] = PEN
    rgb[192:256, 32:448] = PEN
    Image.fromarray(rgb).save(tmp_path / "pen.png")
    return create_from_slides(tmp_path / "project", [tmp_path / "pen.png"], 1.0)


def annotations(project):
    return project.images[0].read().annotations


def test_each_stroke_becomes_an_annotation_that_can_be_edited(project):
    done = mark_artefacts(project, project.images[0], NOTHING_SAID)
    assert (done.added, done.removed, done.kept) == (2, 0, 0)
    first, second = annotations(project)
    for annotation in (first, second):
        assert annotation.class_name == IGNORE_CLASS
        assert annotation.name == "Pen"
        assert not annotation.locked
    area = sum(a.geometry.area for a in (first, second)) * 1e-6
    assert done.area_mm2["pen"] == pytest.approx(area, rel=0.02)
    assert done.area_mm2["fold"] == done.area_mm2["blur"] == 0


def test_done_again_nothing_changes(project):
    mark_artefacts(project, project.images[0], NOTHING_SAID)
    before = project.images[0].read()
    done = mark_artefacts(project, project.images[0], NOTHING_SAID)
    assert (done.added, done.removed, done.kept) == (0, 0, 2)
    assert project.images[0].read().fingerprint == before.fingerprint


def test_what_is_not_found_any_more_goes(project, tmp_path):
    mark_artefacts(project, project.images[0], NOTHING_SAID)
    with Image.open(tmp_path / "pen.png") as image:
        rgb = np.array(image)
    rgb[:128] = 243
    Image.fromarray(rgb).save(tmp_path / "pen.png")
    done = mark_artefacts(project, project.images[0], NOTHING_SAID)
    assert (done.added, done.removed, done.kept) == (0, 1, 1)
    assert [a.geometry.centroid.y > 128 for a in annotations(project)] == [True]


def test_what_a_user_added_to_a_mark_makes_it_the_users(project):
    entry = project.images[0]
    mark_artefacts(project, entry, NOTHING_SAID)
    mark = annotations(project)[0]
    assert artefacts._is_as_made(mark, entry)
    for change in (
        {"locked": True},
        {"color": -1},
        {"metadata": {"ANNOTATION_DESCRIPTION": "seen"}},
        {"measurements": {"score": 1.0}},
        {"name": "mine"},
    ):
        assert not artefacts._is_as_made(replace(mark, **change), entry)


def test_what_someone_changed_or_drew_stays_and_is_not_found_again(project):
    entry = project.images[0]
    mark_artefacts(project, entry, NOTHING_SAID)
    upper, lower = sorted(annotations(project), key=lambda a: a.geometry.centroid.y)
    # The upper one is enlarged, as in QuPath's editor: its UUID stays. The lower one is drawn anew.
    larger = shapely.box(0, 40, 480, 120)
    drawn = lower.geometry.buffer(3)
    ignored = PathClass(IGNORE_CLASS, -1)
    entry.write(
        Edit(
            remove_annotations=frozenset({upper.handle, lower.handle}),
            annotations=[
                NewAnnotation(larger, upper.id, upper.name, ignored),
                NewAnnotation(drawn, lower.id, "mine", ignored),
            ],
        ),
        entry.read().fingerprint,
    )
    done = mark_artefacts(project, entry, NOTHING_SAID)
    assert (done.added, done.removed, done.kept) == (0, 0, 2)
    assert {a.name for a in annotations(project)} == {"Pen", "mine"}


def test_a_dry_run_changes_nothing(project):
    before = project.images[0].read()
    done = mark_artefacts(project, project.images[0], NOTHING_SAID, write=False)
    assert done.added == 2
    assert project.images[0].read().fingerprint == before.fingerprint


def test_a_pixel_size_is_needed(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 243, np.uint8)).save(tmp_path / "x.png")
    project = create_from_slides(tmp_path / "project", [tmp_path / "x.png"])
    with pytest.raises(MppError, match=r"x\.png"):
        mark_artefacts(project, project.images[0], NOTHING_SAID)
    assert mark_artefacts(project, project.images[0], AskedMpp(1.0)).added == 0


# --- run --qc ------------------------------------------------------------------------------------


@pytest.fixture
def boxed(project):
    """The same with an annotation of all the image."""
    entry = project.images[0]
    box = NewAnnotation(shapely.box(0, 0, 480, 320), uuid4(), path_class=PathClass("Box"))
    entry.write(Edit(annotations=[box]), entry.read().fingerprint)
    return project


QC = RunOptions(Selection(classes=("Box",)), qc=True, device="cpu", workers=1)


def test_a_run_leaves_out_what_it_marks_first_and_a_dry_run_knows_it(boxed):
    before = boxed.images[0].read()
    (shown,), failures = plan_images(boxed.images, QC)
    assert not failures
    assert boxed.images[0].read().fingerprint == before.fingerprint
    _, plan, summary = plan_run(boxed, boxed.images, QC)
    assert not summary.failures
    marked = [a for a in annotations(boxed) if a.class_name == IGNORE_CLASS]
    assert len(marked) == 2
    (planned,) = plan.images[0].regions
    ink = shapely.union_all([a.geometry for a in marked])
    assert planned.region().geometry.equals(shapely.box(0, 0, 480, 320) - ink)
    assert shown.regions[0].geometry.equals(planned.region().geometry)


def test_a_run_that_goes_on_keeps_what_it_marked(boxed):
    folder, plan, _ = plan_run(boxed, boxed.images, QC)
    state = boxed.images[0].read()
    again, same, _ = plan_run(boxed, boxed.images, QC)
    assert again.path == folder.path
    assert same.images == plan.images
    assert boxed.images[0].read().fingerprint == state.fingerprint
    # What someone takes away meanwhile is another run, and is marked again.
    gone = next(a.handle for a in state.annotations if a.class_name == IGNORE_CLASS)
    boxed.images[0].write(Edit(remove_annotations=frozenset({gone})), state.fingerprint)
    _, anew, _ = plan_run(boxed, boxed.images, QC)
    (old,), (new,) = plan.images[0].regions, anew.images[0].regions
    assert new.region().geometry.equals(old.region().geometry)
    assert {a.id for a in annotations(boxed)} == {a.id for a in state.annotations}


def test_marking_what_is_not_excluded_is_refused():
    with pytest.raises(UsageError, match="does not leave them out"):
        RunOptions(Selection(tissue=True, excluded=("Necrosis",)), qc=True)
    assert RunOptions(Selection(tissue=True, excluded=("Necrosis", "Ignore*")), qc=True).qc
