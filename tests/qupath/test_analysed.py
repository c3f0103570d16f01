"""The record of analysed areas, and the status of annotations that follows from it."""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.qupath.analysed import (
    PROPERTY,
    Record,
    Status,
    UsedMpp,
    overall,
    together,
)
from qpnuclei.qupath.analysed_area import NO_AREA, AnalysedArea, Basis
from qpnuclei.qupath.areas import multipolygon, polygonal
from qpnuclei.qupath.model import Annotation
from qpnuclei.qupath.regions import Region
from qpnuclei.slides.stains import DEFAULT_H_DAB, DEFAULT_HE, stain_rows

USED = UsedMpp((0.25, 0.25), "--mpp", None)
#: A bow tie: users draw such things, and QuPath keeps them.
BOW_TIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])


def annotation(geometry: shapely.Geometry, number: int | None = 1, **more: object) -> Annotation:
    own_id = None if number is None else uuid.UUID(int=number)
    return Annotation(0, own_id, None, "Tumor", "PolygonROI", geometry, **more)  # type: ignore[arg-type]


def after(*annotations: Annotation) -> Record:
    """Return what is read after a run of these annotations."""
    regions = [Region.of(each) for each in annotations]
    return Record.of(Record().with_run(regions, USED).to_properties(), "a.svs")


@given(st.lists(st.tuples(*[st.integers(0, 10**7)] * 4), max_size=3), st.booleans())
def test_a_record_is_read_back(boxes: list[tuple[int, ...]], has_mpp: bool) -> None:
    areas = tuple(
        AnalysedArea(
            uuid.UUID(int=k) if k else None,
            shapely.MultiPolygon([shapely.box(x / 100, y / 100, x / 100 + w + 1, y / 100 + h + 1)]),
        )
        for k, (x, y, w, h) in enumerate(boxes)
    )
    record = Record(areas, USED if has_mpp else UsedMpp((0.1, 1 / 3), "slide", (0.5, 1 / 7)))
    again = Record.of(record.to_properties(), "a.svs")
    assert again.used == record.used
    assert [area.id for area in again.areas] == [area.id for area in areas]
    for found, expected in zip(again.areas, areas, strict=True):
        assert shapely.equals_exact(found.geometry, expected.geometry, 0.001)


def test_holes_parts_and_outlines_that_cross_themselves() -> None:
    ring = shapely.difference(shapely.box(0, 0, 30, 30), shapely.box(10, 10, 20, 20))
    two = shapely.MultiPolygon([shapely.box(40, 0, 50, 10), ring])
    for geometry in (ring, two, BOW_TIE):
        assert after(annotation(geometry)).status(annotation(geometry)) is Status.ANALYSED


def test_an_edited_outline_is_told_from_one_that_was_saved_less_exactly() -> None:
    drawn = annotation(shapely.Point(1000.123456, 70000.987654).buffer(300))
    record = after(drawn)
    rounded = replace(drawn, geometry=shapely.set_precision(drawn.geometry, 0.01))
    assert record.status(rounded) is Status.ANALYSED
    # QuPath leaves out vertices on straight lines.
    more = annotation(shapely.Polygon([(0, 0), (5, 0), (10, 0), (10, 10), (0, 10)]))
    assert after(more).status(annotation(shapely.box(0, 0, 10, 10))) is Status.ANALYSED
    moved = shapely.affinity.translate(drawn.geometry, 0.5, 0)
    assert record.status(replace(drawn, geometry=moved)) is Status.CHANGED
    # One vertex pulled in: same bounds, another area.
    notched = shapely.Polygon([(0, 0), (5, 3), (10, 0), (10, 10), (0, 10)])
    assert after(more).status(annotation(notched)) is Status.CHANGED


def test_annotations_that_no_run_has_seen() -> None:
    record = after(annotation(shapely.box(0, 0, 10, 10)), annotation(shapely.box(10, 0, 20, 10), 2))
    # Drawn afterwards inside the analysed area, even if that is in two pieces.
    assert record.status(annotation(shapely.box(5, 5, 15, 9), 3)) is Status.ANALYSED
    assert record.status(annotation(shapely.box(5, 5, 15, 11), 3)) is Status.NOT_ANALYSED
    assert record.status(annotation(shapely.box(0, 0, 5, 5), 3, z=1)) is Status.NOT_ANALYSED
    # Saved by QuPath 0.3 without a UUID, then by 0.4 with one.
    old = after(annotation(BOW_TIE, None))
    assert old.status(annotation(BOW_TIE, 7)) is Status.ANALYSED
    line = Annotation(0, None, None, None, "LineROI", shapely.LineString([(0, 0), (5, 5)]))
    assert record.status(line) is Status.NOT_ANALYSED
    assert Record().status(annotation(BOW_TIE)) is Status.NOT_ANALYSED


def test_a_run_replaces_what_it_did_again_and_keeps_the_rest() -> None:
    first = after(annotation(shapely.box(0, 0, 10, 10)), annotation(shapely.box(50, 0, 60, 10), 2))
    moved = annotation(shapely.box(5, 0, 15, 10))
    tissue = Region(None, shapely.MultiPolygon([shapely.box(80, 0, 90, 10)]))
    second = first.with_run([Region.of(moved), tissue], replace(USED, source="project"))
    # The run removed no nuclei where the annotation was: that is still analysed.
    assert [area.id and area.id.int for area in second.areas] == [None, 2, 1, None]
    assert second.areas[0].geometry.equals(shapely.box(0, 0, 5, 10))
    assert second.status(moved) is Status.ANALYSED
    assert second.used is not None
    assert second.used.source == "project"
    # The tissue once more, and an annotation of ours that gave way to it.
    third = second.with_run([tissue], USED, [annotation(shapely.box(50, 0, 60, 10), 2)])
    assert [area.id and area.id.int for area in third.areas] == [None, 1, None]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", '{"areas": 3, "pixel size": null}', "[" * 100_000,
        '{"areas": [{"id": "no uuid", "coordinates": []}], "pixel size": null}',
        '{"areas": [{"id": null, "coordinates": [[[[0, 0], [1]]]]}], "pixel size": null}',
        '{"areas": [], "pixel size": {"um": [1], "source": "", "project": null}}',
    ],
)  # fmt: skip
def test_a_damaged_record_counts_as_none(text: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert Record.of({PROPERTY: text}, "a.svs") == Record()
    assert "image a.svs: the record of earlier runs is damaged" in caplog.text


def test_records_are_json_that_scripts_can_read() -> None:
    content = json.loads(after(annotation(shapely.box(0, 0, 2, 1))).to_properties()[PROPERTY])
    assert content["areas"][0]["id"] == str(uuid.UUID(int=1))
    assert sorted(content["areas"][0]["coordinates"][0][0][:4]) == [[0, 0], [0, 1], [2, 0], [2, 1]]


def test_status_of_several() -> None:
    done, missing, changed = Status.ANALYSED, Status.NOT_ANALYSED, Status.CHANGED
    assert overall([done, done]) is done
    assert overall([missing]) is missing
    assert overall([done, missing]) is Status.PARTLY
    assert overall([done, missing, changed]) is changed
    assert overall([]) is missing


def test_doubts_are_recorded_and_read_back() -> None:
    left, right = annotation(shapely.box(0, 0, 10, 10)), annotation(shapely.box(20, 0, 30, 10), 2)
    regions = [Region.of(left), Region.of(right)]
    noted = Record().with_run(regions, USED, check="all of it", checks=["", "few nuclei"])
    record = Record.of(noted.to_properties(), "a.svs")
    assert record == Record.of(record.to_properties(), "a.svs")
    assert record.check == "all of it"
    assert (record.doubts(left), record.doubts(right)) == ("", "few nuclei")
    later = annotation(shapely.box(5, 2, 25, 8), 3)
    assert record.doubts(later) == "few nuclei"
    assert record.doubts(annotation(shapely.box(5, 2, 9, 8), 3)) == ""
    again = record.with_run([Region.of(right)], USED, checks=[""])
    assert (again.check, again.doubts(right)) == ("", "")
    assert together(["a", "", "b; c", "c; a"]) == "a; b; c"


def test_what_is_excluded_is_covered_but_not_analysed_and_survives_the_file():
    whole = annotation(shapely.box(0, 0, 100, 100))
    fold = shapely.box(40, 40, 60, 60)
    part = Region(whole, shapely.difference(whole.area, fold))
    before = Record().with_run(
        [Region.of(annotation(shapely.box(50, 0, 150, 100), number=2))], USED
    )
    record = Record.of(before.with_run([part], USED).to_properties(), "a.svs")
    assert record.status(whole) is Status.ANALYSED
    assert record.covered.area == 15_000
    # Of the other annotation too: the run removed what was found in the fold.
    assert record.union.area == 15_000 - 400
    assert record.left_out.equals(fold)
    assert record.analysed_part(Region.of(whole), Status.ANALYSED).geometry.area == 10_000 - 400
    # An annotation drawn later around the fold lies in what runs were asked to analyse.
    assert record.status(annotation(shapely.box(30, 30, 70, 70), number=3)) is Status.ANALYSED
    # Analysed again without exclusion.
    again = record.with_run([Region.of(whole)], USED)
    assert again.left_out.is_empty
    assert again.union.area == 15_000


TISSUE = annotation(shapely.box(-10, -10, 60, 60), 9)
HALF = annotation(shapely.box(5, -10, 60, 60), 9)
INSIDE = annotation(shapely.box(0, 0, 10, 10))
APART = annotation(shapely.box(40, 40, 50, 50), 2)


def run(before: Record, chosen: Annotation, doubt: str = "", **more: object) -> Record:
    """Return the record that is read after a run of one annotation."""
    done = before.with_run([Region.of(chosen)], USED, check=doubt, checks=[doubt], **more)  # type: ignore[arg-type]
    return Record.of(done.to_properties(), "a.svs")


def test_the_doubts_of_an_annotation_are_those_of_the_run_whose_nuclei_it_holds() -> None:
    good, doubtful = run(Record(), INSIDE), run(Record(), INSIDE, "old")
    assert run(good, TISSUE, "new").doubts(INSIDE) == "new"
    after_tissue = run(doubtful, TISSUE)
    assert (after_tissue.doubts(INSIDE), after_tissue.image_doubts()) == ("", "")
    assert run(doubtful, TISSUE, "new").image_doubts() == "new"
    # Only a part was replaced: both.
    both = run(doubtful, HALF, "new")
    assert (both.doubts(INSIDE), both.image_doubts()) == ("new; old", "new; old")
    assert run(doubtful, HALF).image_doubts() == "old"
    # Drawn later in the replaced part, and in the other.
    assert both.doubts(annotation(shapely.box(6, 1, 9, 9), 3)) == "new"
    assert both.doubts(annotation(shapely.box(1, 1, 4, 9), 3)) == "old"
    # Replaced by two runs, each of a half.
    halves = run(run(doubtful, HALF), annotation(shapely.box(-10, -10, 5, 60), 8))
    assert (halves.doubts(INSIDE), halves.image_doubts()) == ("", "")


def test_a_run_elsewhere_or_beside_an_annotation_leaves_its_doubts() -> None:
    doubtful = run(Record(), INSIDE, "old")
    elsewhere = run(doubtful, APART, "new")
    assert (elsewhere.doubts(INSIDE), elsewhere.doubts(APART)) == ("old", "new")
    assert elsewhere.image_doubts() == "new; old"
    beside = run(run(Record(), INSIDE), annotation(shapely.box(10, 0, 20, 10), 4), "new")
    assert beside.doubts(INSIDE) == ""


def test_a_doubt_about_the_image_as_a_whole_stays_until_all_its_nuclei_are_replaced() -> None:
    both = [Region.of(INSIDE), Region.of(APART)]
    doubtful = Record().with_run(both, USED, check="old", checks=["", ""])
    elsewhere = run(doubtful, annotation(shapely.box(80, 0, 90, 10), 5))
    half = run(elsewhere, INSIDE)
    for record in (doubtful, elsewhere, half):
        assert record.image_doubts() == "old"
        assert (record.doubts(INSIDE), record.doubts(APART)) == ("", "")
    assert half.filtered().image_doubts() == "before the filter: old"
    assert run(half, APART).image_doubts() == ""
    assert run(half, APART, "new", keeps_nuclei=True).image_doubts() == "new; old"


def test_annotations_inside_each_other_keep_the_doubts_of_their_run() -> None:
    for chosen, doubts in (([INSIDE, TISSUE], ["", "x"]), ([TISSUE, INSIDE], ["x", ""])):
        record = Record().with_run([Region.of(a) for a in chosen], USED, checks=doubts)
        assert (record.doubts(INSIDE), record.doubts(TISSUE)) == ("", "x")


def test_nuclei_that_stay_beside_new_ones_stay_doubtful() -> None:
    doubtful = run(Record(), INSIDE, "old")
    for chosen in (INSIDE, TISSUE):
        record = run(doubtful, chosen, "new", keeps_nuclei=True)
        assert set(record.doubts(INSIDE).split("; ")) == {"new", "old"}
        assert set(record.image_doubts().split("; ")) == {"new", "old"}


def test_records_of_versions_that_did_not_number_runs_are_read() -> None:
    numbered = run(run(Record(), INSIDE, "old"), APART)
    content = json.loads(numbered.to_properties()[PROPERTY])
    for area in content["areas"]:
        del area["turn"]
    record = Record.of({PROPERTY: json.dumps(content)}, "a.svs")
    assert (record.doubts(INSIDE), record.doubts(APART)) == ("old", "")
    assert record.image_doubts() == "old"
    assert run(record, TISSUE).image_doubts() == ""


def test_an_edited_annotation_that_a_later_run_covers_is_analysed() -> None:
    wider = annotation(shapely.box(0, 0, 20, 10))
    first = run(Record(), INSIDE)
    assert first.status(wider) is Status.CHANGED
    assert run(first, HALF).status(wider) is Status.CHANGED
    later = run(first, TISSUE)
    assert later.status(wider) is Status.ANALYSED
    # But no run has analysed just this outline: an edited annotation belongs to the user.
    assert later.has(INSIDE)
    assert not later.has(wider)
    # Edited after both runs, but still inside the second.
    assert later.status(annotation(shapely.box(0, 0, 30, 10))) is Status.ANALYSED
    # An earlier run around it does not help.
    assert run(run(Record(), TISSUE), INSIDE).status(wider) is Status.CHANGED


def test_an_annotation_without_an_analysed_part_is_not_analysed() -> None:
    fold = shapely.box(20, 20, 40, 40)
    part = Region(TISSUE, shapely.difference(TISSUE.area, fold))
    record = Record.of(Record().with_run([part], USED).to_properties(), "a.svs")
    assert record.status(annotation(fold, 3)) is Status.NOT_ANALYSED
    assert record.status(annotation(shapely.box(25, 25, 30, 30), 3)) is Status.NOT_ANALYSED
    assert record.status(annotation(shapely.box(25, 25, 45, 30), 3)) is Status.ANALYSED
    # Analysed by an earlier run, whose nuclei are gone.
    before = run(Record(), annotation(fold, 3))
    assert before.with_run([part], USED).status(annotation(fold, 3)) is Status.NOT_ANALYSED
    # Moved to where no run looked.
    assert run(Record(), INSIDE).status(replace(APART, id=INSIDE.id)) is Status.NOT_ANALYSED


LARGE, BESIDE = annotation(shapely.box(0, 0, 100, 100)), annotation(shapely.box(80, 0, 180, 100), 2)
HOLE, NESTED = shapely.box(40, 40, 60, 60), annotation(shapely.box(45, 45, 55, 55), 3)
AROUND_HOLE = Region(LARGE, shapely.difference(LARGE.area, HOLE))


def read(record: Record) -> Record:
    return Record.of(record.to_properties(), "a.svs")


@pytest.mark.parametrize("moved", [LARGE.area, shapely.box(10, 0, 110, 100)])
@pytest.mark.parametrize("keeps_doubts", [True, False])
def test_what_was_analysed_stays_so_after_a_run_that_keeps_the_nuclei(
    moved: shapely.Geometry, keeps_doubts: bool
) -> None:
    before = run(run(run(Record(), LARGE), BESIDE), NESTED)
    now = replace(LARGE, geometry=moved)
    part = Region(now, shapely.difference(now.area, HOLE))
    outdated = [BESIDE]
    kept = read(
        before.with_run([part], USED, outdated, keeps_nuclei=True, keeps_doubts=keeps_doubts)
    )
    assert shapely.difference(before.union, kept.union).area == 0
    assert shapely.difference(kept.union, shapely.union(before.union, now.area)).area == 0
    assert [kept.status(a) for a in (now, BESIDE, NESTED)] == [Status.ANALYSED] * 3
    # The same run, with the nuclei replaced.
    replaced = read(before.with_run([part], USED, outdated))
    assert shapely.intersection(replaced.union, HOLE).area == 0
    assert replaced.status(NESTED) is Status.NOT_ANALYSED


def test_what_no_run_has_analysed_stays_excluded_if_the_nuclei_are_kept() -> None:
    before = run(Record(), annotation(shapely.box(40, 40, 50, 60), 3))
    record = read(before.with_run([AROUND_HOLE], USED, keeps_nuclei=True))
    assert record.left_out.equals(shapely.box(50, 40, 60, 60))


def test_doubts_about_a_result_that_is_gone_are_not_told_of_what_is_added() -> None:
    doubtful = run(Record(), INSIDE, "old")
    added = run(doubtful, INSIDE, "new", keeps_nuclei=True, keeps_doubts=False)
    assert (added.doubts(INSIDE), added.image_doubts()) == ("new", "new")
    elsewhere = run(doubtful, APART, "new", keeps_nuclei=True, keeps_doubts=False)
    assert set(elsewhere.image_doubts().split("; ")) == {"new", "old"}


def test_an_annotation_that_a_run_leaves_out_wholly_is_not_analysed_any_more() -> None:
    before = Record().with_run(
        [Region.of(a) for a in (LARGE, BESIDE, NESTED)], USED, check="old", checks=["x", "", "x"]
    )
    record = read(before.with_run([], USED, left_out=LARGE.area))
    assert [record.status(a) for a in (LARGE, NESTED)] == [Status.NOT_ANALYSED] * 2
    assert record.status(BESIDE) is Status.ANALYSED
    assert record.union.equals(shapely.box(100, 0, 180, 100))
    assert not record.has_analysed(LARGE.area)
    assert record.has_analysed(shapely.box(99, 0, 101, 9))
    # Nuclei that were doubtful are left beside it alone.
    assert record.image_doubts() == "old"
    apart = annotation(shapely.difference(BESIDE.area, LARGE.area), 4)
    assert run(record, apart).image_doubts() == ""
    nothing = read(record.with_run([], USED, left_out=BESIDE.area))
    assert (nothing.areas, nothing.image_doubts()) == ((), "")
    assert nothing.status(BESIDE) is Status.NOT_ANALYSED


def test_tissue_without_an_annotation_is_known_once_whatever_is_excluded_from_it() -> None:
    tissue, rest = Region(None, LARGE.area), Region(None, AROUND_HOLE.geometry)
    before = Record().with_run([tissue], USED, checks=["old"])
    record = read(before.with_run([rest], USED, left_out=HOLE))
    assert [area.geometry for area in record.areas] == [multipolygon(rest.geometry)]
    assert (record.status(NESTED), record.doubts_in(rest)) == (Status.NOT_ANALYSED, "")
    assert before.doubts_in(tissue) == "old"


def test_the_part_that_no_run_has_analysed() -> None:
    record = run(Record(), LARGE)
    part = record.part_not_analysed(Region.of(BESIDE))
    assert part.annotation is BESIDE
    assert part.geometry.equals(shapely.box(100, 0, 180, 100))
    assert record.part_not_analysed(Region.of(NESTED)).geometry.is_empty
    # Coordinates are stored with three decimals: what remains along an outline is no area.
    rounded = annotation(shapely.box(0.0004, 0, 100.0004, 100), 5)
    assert record.part_not_analysed(Region.of(rounded)).geometry.is_empty
    assert Record().part_not_analysed(Region.of(NESTED)).geometry.equals(NESTED.area)


def test_a_run_is_known_until_later_ones_have_replaced_all_its_nuclei() -> None:
    both = [Region.of(INSIDE), Region.of(APART)]
    record = read(Record().with_run(both, USED, marker="a"))
    assert record.has_run("a")
    beside = annotation(shapely.box(80, 0, 90, 10), 5)
    for chosen, marker in ((beside, "b"), (INSIDE, "c")):
        record = run(record, chosen, marker=marker)
        assert record.has_run("a")
        assert record.has_run(marker)
    # The other area, with one around it or by itself.
    for chosen in (TISSUE, APART):
        replaced = run(record, chosen, marker="d")
        assert [replaced.has_run(marker) for marker in ("a", "b", "d")] == [False, True, True]
        assert [replaced.had_run(marker) for marker in "abcde"] == [True] * 4 + [False]
    assert not run(record, TISSUE, marker="d").has_run("c")


def test_a_run_is_known_while_others_add_to_its_nuclei() -> None:
    record = run(Record(), INSIDE, marker="a")
    # The same area, one around it, and one beside it.
    aside = annotation(shapely.box(60, 0, 70, 60), 6)
    for chosen, marker in ((INSIDE, "b"), (TISSUE, "c"), (aside, "d")):
        record = run(record, chosen, marker=marker, keeps_nuclei=True)
        assert [record.has_run(m) for m in "abcd"] == [m <= marker for m in "abcd"]
    replaced = run(record, TISSUE, marker="e")
    assert [replaced.has_run(m) for m in "abcde"] == [False, False, False, True, True]


def test_a_run_that_excluded_everything_is_known_while_it_is_the_last() -> None:
    before = Record().with_run([Region.of(INSIDE), Region.of(APART)], USED, marker="a")
    record = read(before.with_run([], USED, marker="b", left_out=INSIDE.area))
    assert [record.has_run(marker) for marker in "ab"] == [True, True]
    later = run(record, annotation(shapely.box(80, 0, 90, 10), 5), marker="c")
    assert [later.has_run(marker) for marker in "abc"] == [True, False, True]
    nothing = read(record.with_run([], USED, marker="c", left_out=APART.area))
    assert [nothing.has_run(marker) for marker in "abc"] == [False, False, True]


@pytest.mark.parametrize("keeps_nuclei", [False, True])
def test_the_last_run_of_a_record_without_the_runs_of_areas_is_known(keeps_nuclei: bool) -> None:
    content = json.loads(
        run(run(Record(), INSIDE, marker="a"), APART, marker="b").to_properties()[PROPERTY]
    )
    del content["earlier runs"]
    for area in content["areas"]:
        area.pop("runs", None)
    record = Record.of({PROPERTY: json.dumps(content)}, "a.svs")
    assert [record.has_run(marker) for marker in "ab"] == [False, True]
    later = run(record, TISSUE if keeps_nuclei else INSIDE, marker="c", keeps_nuclei=keeps_nuclei)
    assert [later.has_run(marker) for marker in "abc"] == [False, True, True]
    assert not run(later, TISSUE, marker="d").has_run("b")


def test_a_run_whose_nuclei_were_replaced_does_not_return_with_one_that_keeps_nuclei() -> None:
    replaced = run(run(Record(), INSIDE, marker="a"), TISSUE, marker="b")
    assert [replaced.has_run(marker) for marker in "ab"] == [False, True]
    kept = run(replaced, TISSUE, marker="c", keeps_nuclei=True)
    assert [kept.has_run(marker) for marker in "abc"] == [False, True, True]
    assert [kept.had_run(marker) for marker in "abc"] == [True, True, True]


COARSE = replace(USED, mpp=(0.5, 0.5))
FINE = Basis((0.25, 0.25))


def test_each_area_keeps_the_pixel_size_at_which_it_was_analysed() -> None:
    first = read(Record().with_run([Region.of(INSIDE)], COARSE))
    both = read(first.with_run([Region.of(APART)], USED))
    assert both.other_bases(Region.of(INSIDE), FINE) == (Basis((0.5, 0.5)),)
    assert both.other_bases(Region.of(APART), Basis((0.5, 0.5))) == (FINE,)
    for one in (INSIDE, APART):
        area = next(area for area in both.areas if area.id == one.id)
        assert not both.other_bases(Region.of(one), area.bases[0])
    assert both.image_other_bases(FINE) == (Basis((0.5, 0.5)),)
    # A smaller difference than 1 % is rounding.
    assert both.other_bases(Region.of(APART), Basis((0.252, 0.248))) == ()
    again = read(both.with_run([Region.of(INSIDE)], USED))
    assert again.image_other_bases(FINE) == ()


@pytest.mark.parametrize("keeps_doubts", [True, False])
def test_nuclei_that_are_added_to_others_have_both_pixel_sizes(keeps_doubts: bool) -> None:
    first = Record().with_run([Region.of(INSIDE)], COARSE)
    added = read(
        first.with_run([Region.of(INSIDE)], USED, keeps_nuclei=True, keeps_doubts=keeps_doubts)
    )
    expected = ((0.5, 0.5), (0.25, 0.25)) if keeps_doubts else ((0.25, 0.25),)
    (area,) = added.areas
    assert tuple(basis.mpp for basis in area.bases) == expected
    # A run that replaces the nuclei leaves one.
    (area,) = read(added.with_run([Region.of(INSIDE)], USED)).areas
    assert area.bases == (FINE,)


def sizes_in(record: Record, chosen: Annotation, mpp: tuple[float, float]) -> set[float]:
    found = record.other_bases(Region.of(chosen), Basis(mpp))
    return {basis.mpp[0] for basis in found if basis.mpp is not None}


def test_nuclei_found_at_one_pixel_size_are_not_doubted_for_what_was_added_beside_them() -> None:
    left, right = (
        annotation(shapely.box(0, 0, 50, 90), 1),
        annotation(shapely.box(60, 0, 99, 90), 3),
    )
    both = annotation(shapely.box(0, 0, 99, 99), 2)
    record = Record().with_run([Region.of(left), Region.of(right)], USED, checks=["", ""])
    record = record.with_run([Region.of(left)], COARSE, check="pale", checks=["pale"])
    record = read(record.with_run([Region.of(both)], USED, keeps_nuclei=True))
    for chosen, sizes, doubt in ((left, {0.5}, "pale"), (right, set(), ""), (both, {0.5}, "pale")):
        assert sizes_in(record, chosen, USED.mpp) == sizes
        assert record.doubts(chosen) == doubt
    # Replaced there, nothing is left of it.
    record = read(record.with_run([Region.of(left)], USED))
    assert not sizes_in(record, both, USED.mpp)
    assert (record.doubts(both), record.image_other_bases(FINE)) == ("", ())


def test_what_a_run_skips_does_not_get_its_pixel_size() -> None:
    first, second = annotation(shapely.box(0, 0, 50, 90)), annotation(shapely.box(40, 0, 99, 90), 2)
    record = Record().with_run([Region.of(first)], USED)
    rest = record.part_not_analysed(Region.of(second))
    record = read(record.with_run([rest], COARSE, keeps_nuclei=True))
    assert not sizes_in(record, first, USED.mpp)
    assert sizes_in(record, second, USED.mpp) == {0.5}
    assert record.part_not_analysed(Region.of(second)).geometry.is_empty
    assert record.left_out.is_empty


def test_the_record_does_not_grow_with_each_run_that_adds_the_same() -> None:
    record = run(run(Record(), INSIDE, "old"), TISSUE, keeps_nuclei=True)
    for _ in range(3):
        record = run(record, TISSUE, keeps_nuclei=True)
    assert [area.id for area in record.areas] == [INSIDE.id, TISSUE.id]
    assert (record.doubts(INSIDE), record.doubts(TISSUE)) == ("old", "old")


def test_where_an_annotation_was_stays_analysed_with_all_that_was_said_of_it() -> None:
    fold = shapely.box(0, 0, 20, 20)
    first = read(
        Record().with_run(
            [Region(LARGE, shapely.difference(LARGE.area, fold))],
            COARSE,
            check="pale",
            checks=["few"],
            marker="a",
            nuclei=[7],
            stains=stain_rows(DEFAULT_HE),
        )
    )
    moved = replace(LARGE, geometry=shapely.box(60, 0, 160, 100))
    record = run(first, moved, marker="b")
    former, now = record.areas
    assert (former.id, now.id) == (None, LARGE.id)
    assert former.geometry.equals(shapely.box(0, 0, 60, 100))
    assert former.excluded.equals(fold)
    assert (former.check, former.image_check, former.runs) == ("few", "pale", ("a",))
    assert former.bases == (Basis((0.5, 0.5), stain_rows(DEFAULT_HE)),)
    assert former.nuclei == 0  # how many of them were replaced is not known
    assert (record.status(moved), record.doubts(moved)) == (Status.ANALYSED, "")
    assert (record.status(NESTED), record.doubts(NESTED)) == (Status.ANALYSED, "few")
    assert record.status(annotation(fold, 8)) is Status.NOT_ANALYSED
    assert record.union.area == 60 * 100 - fold.area + 100 * 100
    # Back where it was, it is not as either run saw it.
    assert record.status(LARGE) is Status.CHANGED
    # The same outline less exactly, a larger one, and others that cover it together, leave nothing.
    rounded = replace(moved, geometry=shapely.box(60.01, 0, 160, 100))
    larger = replace(moved, geometry=shapely.box(0, 0, 160, 100))
    for chosen in (rounded, larger):
        assert [area.id for area in run(record, chosen).areas if area.turn > 1] == [LARGE.id]
    assert [area.id for area in run(record, larger).areas] == [LARGE.id]
    halves = [annotation(shapely.box(0, y, 60, y + 50), 10 + y) for y in (0, 50)]
    covered = run(run(record, halves[0]), halves[1])
    assert None not in [area.id for area in covered.areas]


def test_the_record_does_not_grow_with_each_move_in_the_same_place() -> None:
    shifts = np.random.default_rng(0).uniform(0, 50, (5, 2)).tolist()
    record, sizes = Record(), []
    for x, y in 6 * shifts:
        record = run(record, annotation(shapely.Point(100 + x, 100 + y).buffer(80)))
        sizes.append(len(record.areas))
    assert max(sizes) <= len(shifts)
    assert len(run(record, annotation(shapely.box(0, 0, 250, 250))).areas) == 1
    # An outline that moves by less than files round it leaves nothing either.
    still = Record()
    for x in np.linspace(0, 0.06, 9).tolist():
        still = run(still, annotation(shapely.Point(100 + x, 100).buffer(80)))
        assert len(still.areas) == 1


def test_what_tissue_that_a_run_removes_has_covered_is_analysed_no_more() -> None:
    tissue = annotation(shapely.box(0, 0, 100, 100), 9)
    apart, both = annotation(shapely.box(70, 0, 90, 20), 2), annotation(shapely.box(40, 0, 120, 9))
    record = run(run(run(Record(), tissue), apart), both)
    smaller = Region.of(annotation(shapely.box(0, 0, 50, 100), 10))
    record = read(record.with_run([smaller], USED, [tissue]))
    assert [area.id and area.id.int for area in record.areas] == [1, 10]
    assert record.status(apart) is Status.NOT_ANALYSED
    assert record.status(both) is Status.ANALYSED
    part = record.analysed_part(Region.of(both), Status.ANALYSED)
    assert part.geometry.area == (10 + 20) * 9


#: Side of a square of the grid below, px, and how many squares the grid has in a row.
SQUARE, SQUARES = 10, 6

Box = tuple[int, int, int, int]


@st.composite
def grid_boxes(draw: st.DrawFn) -> Box:
    edges = st.lists(st.integers(0, SQUARES), min_size=2, max_size=2, unique=True).map(sorted)
    (x0, x1), (y0, y1) = draw(edges), draw(edges)
    return x0, y0, x1, y1


def squares_of(bounds: Box) -> np.ndarray:
    x0, y0, x1, y1 = bounds
    squares = np.zeros((SQUARES, SQUARES), bool)
    squares[y0:y1, x0:x1] = True
    return squares


def outline_of(bounds: Box) -> shapely.Polygon:
    return shapely.box(*(SQUARE * edge for edge in bounds))


MODES = st.sampled_from(["replace", "append", "skip"])
SIZES = st.sampled_from([0.25, 0.3, 0.5])
STAINS = st.sampled_from([(), stain_rows(DEFAULT_HE), stain_rows(DEFAULT_H_DAB)])


@settings(max_examples=300, deadline=None)
@given(st.lists(grid_boxes(), min_size=1, max_size=4), st.data())
def test_what_is_told_of_nuclei_is_what_runs_said_of_them_on_a_grid(
    boxes: list[Box], data: Any
) -> None:
    """Each square of the grid has nuclei of the runs in `held`; each run has its own doubt.

    Between the runs, annotations are moved; a run may remove one with its nuclei, as old tissue.
    """
    drawn = [annotation(outline_of(bounds), k + 1) for k, bounds in enumerate(boxes)]
    held = np.empty((SQUARES, SQUARES), object)
    held[:] = [[frozenset()] * SQUARES] * SQUARES
    record = Record()
    bases: list[Basis] = []
    for turn in range(data.draw(st.integers(1, 5))):
        for k, bounds in data.draw(
            st.dictionaries(st.sampled_from(range(len(boxes))), grid_boxes(), max_size=2)
        ).items():
            boxes[k] = bounds
            drawn[k] = replace(drawn[k], geometry=outline_of(bounds))
        mode, mpp, stains = data.draw(MODES), data.draw(SIZES), data.draw(STAINS)
        chosen = data.draw(st.lists(st.sampled_from(range(len(boxes))), min_size=1, unique=True))
        others = sorted({*range(len(boxes))} - {*chosen})
        removed = data.draw(st.lists(st.sampled_from(others), max_size=1)) if others else []
        removed = [k for k in removed if record.has(drawn[k])]
        out = data.draw(st.none() | grid_boxes())
        out_squares = np.zeros((SQUARES, SQUARES), bool) if out is None else squares_of(out)
        out_area = NO_AREA if out is None else outline_of(out)
        regions = [
            Region(drawn[k], polygonal(shapely.difference(drawn[k].geometry, out_area)))
            for k in chosen
        ]
        left_out = NO_AREA
        if mode == "replace":
            of_all = shapely.union_all([drawn[k].geometry for k in chosen])
            left_out = polygonal(shapely.intersection(of_all, out_area))
        if mode == "skip":
            regions = [record.part_not_analysed(region) for region in regions]
        regions = [region for region in regions if not region.geometry.is_empty]
        if not regions and left_out.is_empty:
            continue
        asked = [squares_of(boxes[k]) for k in chosen]
        has_earlier = any(
            held[squares].any() for squares in asked if (squares & ~out_squares).any()
        )
        doubt = f"run {turn}"
        record = read(
            record.with_run(
                regions,
                UsedMpp((mpp, mpp), "--mpp", None),
                [drawn[k] for k in removed],
                checks=[doubt] * len(regions),
                marker=doubt,
                stains=stains,
                left_out=left_out,
                keeps_nuclei=mode != "replace",
                keeps_doubts=mode == "skip" or has_earlier,
            )
        )
        covered = np.any(asked, axis=0)
        if mode == "replace":
            for squares in (covered, *(squares_of(boxes[k]) for k in removed)):
                held[squares] = frozenset()
        for k in removed:
            drawn[k] = replace(drawn[k], id=uuid.uuid4())
        new = covered & ~out_squares
        if mode == "skip":
            new &= ~held.astype(bool)
        for at in np.argwhere(new).tolist():
            held[tuple(at)] |= {turn}
        bases += [Basis(None)] * (turn - len(bases)) + [Basis((mpp, mpp), stains)]
    if record.used is None:
        return
    analysed = [
        outline_of((x, y, x + 1, y + 1)) for y, x in np.argwhere(held.astype(bool)).tolist()
    ]
    assert shapely.symmetric_difference(record.union, shapely.union_all(analysed)).area == 0
    now = Basis(record.used.mpp, record.stains)
    assert now == bases[-1]

    def other_bases(turns: set[int]) -> set[Basis]:
        found = {bases[turn] for turn in turns}
        return {
            basis
            for basis in found
            if basis.mpp != now.mpp or (basis.stains and now.stains and basis.stains != now.stains)
        }

    for each, bounds in zip(drawn, boxes, strict=True):
        turns = set().union(*held[squares_of(bounds)])
        assert set(record.other_bases(Region.of(each), now)) == other_bases(turns)
        doubts = record.doubts(each)
        assert set(filter(None, doubts.split("; "))) == {f"run {turn}" for turn in turns}
    in_image = set().union(*held.ravel())
    assert set(record.image_other_bases(now)) == other_bases(in_image)
    assert {turn for turn in range(5) if record.has_run(f"run {turn}")} >= in_image


def test_areas_of_versions_without_their_own_pixel_size_have_that_of_the_last_run() -> None:
    record = Record().with_run([Region.of(INSIDE)], COARSE)
    content = json.loads(record.to_properties()[PROPERTY])
    assert "um" not in content["areas"][0]
    assert read(record) == record
    content = json.loads(record.with_run([Region.of(APART)], USED).to_properties()[PROPERTY])
    assert [area.get("um") for area in content["areas"]] == [[[0.5, 0.5]], None]
    for area in content["areas"]:
        area.pop("um", None)
    old = Record.of({PROPERTY: json.dumps(content)}, "a.svs")
    assert [area.bases for area in old.areas] == [(FINE,)] * 2


def test_areas_that_had_nuclei_and_have_none_are_found() -> None:
    left, right = annotation(shapely.box(0, 0, 40, 40)), annotation(shapely.box(60, 0, 99, 40), 2)
    regions = [Region.of(left), Region.of(right)]
    record = read(Record().with_run(regions, USED, nuclei=[3, 5]))

    def emptied(
        record: Record, *points: tuple[float, float], z: int = 0, ours: bool = True
    ) -> list[int]:
        centroids, planes = np.array(points).reshape(-1, 2), np.tile([z, 0], (len(points), 1))
        is_ours = np.full(len(points), ours)
        return [area.nuclei for area in record.emptied(centroids, planes, is_ours)]

    assert emptied(record) == [3, 5]
    assert emptied(record, (10, 10)) == [5]
    assert emptied(record, (10, 10), z=1) == [3, 5]
    # On the border by rounding, and beyond it.
    assert emptied(record, (40.01, 10), (59.9, 10)) == [5]
    # Removed by a filter, where something is excluded now, and maybe replaced by a later run.
    assert emptied(read(record.filtered())) == []
    without = record.with_run([], USED, left_out=shapely.box(0, 0, 10, 10))
    assert emptied(read(without)) == [5]
    over = annotation(shapely.box(30, 30, 50, 50), 3)
    later = record.with_run([Region.of(over)], USED, nuclei=[2], keeps_nuclei=True)
    assert emptied(read(later)) == [5, 2]
    assert emptied(read(record.with_run([Region.of(left)], USED, nuclei=[0]))) == [5]
    # A run that looked only beside them, and had another pixel size, has kept them.
    wider = annotation(shapely.box(0, 0, 42, 42), 4)
    margin = Region(wider, wider.area - left.area)
    around = read(record.with_run([margin], COARSE, nuclei=[3], keeps_nuclei=True))
    assert around.areas[-1].keeps_earlier
    assert emptied(around) == [5, 3]
    assert emptied(around, (10, 10)) == [5]
    # A locked nucleus stays in an excluded part.
    part = Region(left, shapely.box(0, 0, 20, 40))
    with_locked = read(Record().with_run([part], USED, nuclei=[1]))
    assert emptied(with_locked, (30, 10)) == []
    # One of another program counts in the analysed part alone.
    assert emptied(with_locked, (30, 10), ours=False) == [1]
    assert emptied(with_locked, (10, 10), ours=False) == []
    assert emptied(with_locked, (20.01, 10), ours=False) == []


def test_areas_of_versions_that_did_not_store_stains_have_unknown_ones() -> None:
    stains = stain_rows(DEFAULT_HE)
    first = Record().with_run([Region.of(INSIDE)], COARSE)
    record = first.with_run([Region.of(APART)], USED, stains=stains)
    content = json.loads(record.to_properties()[PROPERTY])
    assert content["areas"][0]["um"] == [[0.5, 0.5]]
    assert "stains" not in content["areas"][0]
    again = read(record)
    assert again == record
    assert again.other_bases(Region.of(INSIDE), Basis((0.5, 0.5), stains)) == ()
    dab = Basis((0.25, 0.25), stain_rows(DEFAULT_H_DAB))
    assert again.other_bases(Region.of(APART), dab) == (Basis((0.25, 0.25), stains),)


def test_a_part_that_is_new_is_seen_however_long_the_outline() -> None:
    comb = shapely.union_all([shapely.box(8 * i, 0, 8 * i + 4, 5_000) for i in range(60)])
    new = shapely.box(200, 5_000, 204, 5_040)
    larger = annotation(shapely.union(comb, new), 2)
    record = after(annotation(comb))
    assert record.status(larger) is Status.NOT_ANALYSED
    assert record.part_not_analysed(Region.of(larger)).geometry.equals(new)
    # What only rounding adds along the same outline is nothing new.
    rounded = annotation(shapely.affinity.translate(comb, 0.0004, 0.0004), 3)
    assert record.status(rounded) is Status.ANALYSED
