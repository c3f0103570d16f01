"""The record of analysed areas, and the status of annotations that follows from it."""

from __future__ import annotations

import json
import logging
import uuid
from dataclasses import replace

import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.qupath.analysed import (
    PROPERTY,
    AnalysedArea,
    Record,
    Status,
    UsedMpp,
    overall,
    together,
)
from qpnuclei.qupath.model import Annotation
from qpnuclei.qupath.regions import Region

USED = UsedMpp((0.25, 0.25), "--mpp", None)
#: A bow tie: users draw such things, and QuPath keeps them.
BOW_TIE = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])


def annotation(geometry: shapely.Geometry, number: int | None = 1, **more: object) -> Annotation:
    own_id = None if number is None else uuid.UUID(int=number)
    return Annotation(0, own_id, None, "Tumor", "PolygonROI", geometry, **more)  # type: ignore[arg-type]


def after(*annotations: Annotation) -> Record:
    """Return what is read after a run of these annotations."""
    regions = [Region.of(each) for each in annotations]
    return Record.of(Record().with_run(regions, USED).to_properties())


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
    again = Record.of(record.to_properties())
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
    assert [area.id and area.id.int for area in second.areas] == [2, 1, None]
    assert second.status(moved) is Status.ANALYSED
    assert second.used is not None
    assert second.used.source == "project"
    # The tissue once more, and an annotation of ours that gave way to it.
    third = second.with_run([tissue], USED, frozenset([uuid.UUID(int=2)]))
    assert [area.id and area.id.int for area in third.areas] == [1, None]


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
        assert Record.of({PROPERTY: text}, "image a.svs") == Record()
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
    record = Record.of(noted.to_properties())
    assert record == Record.of(record.to_properties())
    assert record.check == "all of it"
    assert (record.doubts(left), record.doubts(right)) == ("", "few nuclei")
    later = annotation(shapely.box(5, 2, 25, 8), 3)
    assert record.doubts(later) == "few nuclei"
    assert record.doubts(annotation(shapely.box(5, 2, 9, 8), 3)) == ""
    again = record.with_run([Region.of(right)], USED, checks=[""])
    assert (again.check, again.doubts(right)) == ("", "")
    assert together(["a", "", "b", "a"]) == "a; b"
