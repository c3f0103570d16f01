"""What an image tells of the filters of its nuclei."""

from __future__ import annotations

import uuid
from dataclasses import replace

import pytest
import shapely

from qpnuclei.qupath.analysed import Record, UsedMpp
from qpnuclei.qupath.analysed_area import AnalysedArea
from qpnuclei.qupath.filters import FILTERS, Filter, filters_of, with_filter
from qpnuclei.qupath.regions import Region

AREA = shapely.MultiPolygon([shapely.box(0, 0, 9, 9)])
USED = UsedMpp((0.25, 0.25), "--mpp", None)


def after(*runs: str) -> Record:
    """Return the record of an image whose area several runs have analysed, one after the other."""
    area = AnalysedArea(uuid.UUID(int=1), AREA, turn=len(runs))
    return Record((area,), USED, run=runs[-1], earlier_runs=runs[:-1])


def test_a_filter_is_read_as_it_was_stored() -> None:
    record = after("a", "b")
    properties = with_filter({}, record, "a.svs", 0.85, ("Tumor",))
    assert filters_of(properties, record, "a.svs") == (Filter(0.85, ("Tumor",), ("a", "b")),)
    assert filters_of({}, record, "a.svs") == ()


def test_a_filter_that_includes_earlier_ones_takes_their_place() -> None:
    record = after("a")
    properties: dict[str, str] = {}
    for least, classes, expected in (
        (0.8, ("Tumor",), [(0.8, ("Tumor",))]),
        (0.7, (), [(0.8, ("Tumor",)), (0.7, ())]),
        (0.75, (), [(0.8, ("Tumor",)), (0.75, ())]),
        (0.9, ("Tumor", "Stroma"), [(0.75, ()), (0.9, ("Tumor", "Stroma"))]),
        (0.95, (), [(0.95, ())]),
    ):
        properties = with_filter(properties, record, "a.svs", least, classes)
        assert [(f.least, f.classes) for f in filters_of(properties, record, "a.svs")] == expected


def test_a_filter_of_the_nuclei_of_another_run_does_not_take_the_place_of_an_earlier_one() -> None:
    elsewhere = shapely.MultiPolygon([shapely.box(20, 0, 29, 9)])
    first = AnalysedArea(uuid.UUID(int=1), AREA, turn=1, runs=("a",))
    other = AnalysedArea(uuid.UUID(int=2), elsewhere, turn=2, runs=("b",))
    record = Record((first, other), USED, run="b", earlier_runs=("a",))
    properties: dict[str, str] = {}
    for area, least in ((first, 0.2), (other, 0.3)):
        regions = [Region(None, area.geometry)]
        properties = with_filter(properties, record, "a.svs", least, ("Tumor",), regions)
    found = [(one.least, one.of) for one in filters_of(properties, record, "a.svs")]
    assert found == [(0.2, ("a",)), (0.3, ("b",))]


def test_a_filter_of_nuclei_that_were_replaced_is_left_out() -> None:
    properties = with_filter({}, after("a"), "a.svs", 0.8, ())
    assert filters_of(properties, after("a", "b"), "a.svs") == ()
    kept = Record((AnalysedArea(None, AREA, turn=1, runs=("a", "b")),), USED, run="b")
    assert filters_of(properties, kept, "a.svs") == (Filter(0.8, (), ("a",)),)
    # Only the run in the annotations of the filter counts, wherever others have found nuclei.
    elsewhere = shapely.MultiPolygon([shapely.box(20, 0, 29, 9)])
    first = AnalysedArea(uuid.UUID(int=1), AREA, turn=1, runs=("a",))
    other = AnalysedArea(uuid.UUID(int=2), elsewhere, turn=2, runs=("b",))
    again = replace(first, turn=3, runs=("c",))
    two = Record((first, other), USED, run="b", earlier_runs=("a",))
    three = Record((other, again), USED, run="c", earlier_runs=("a", "b"))
    for region, expected in ((first, []), (other, [("b",)])):
        properties = with_filter({}, two, "a.svs", 0.8, ("x",), [Region(None, region.geometry)])
        (one,) = filters_of(properties, two, "a.svs")
        assert not one.is_followed(two)
        assert [one.of for one in filters_of(properties, three, "a.svs")] == expected
        assert one.is_followed(three)
    # Records of older versions do not name their runs.
    unnamed = Record((AnalysedArea(None, AREA),), USED)
    properties = with_filter({}, unnamed, "a.svs", 0.8, ())
    assert filters_of(properties, unnamed, "a.svs") == (Filter(0.8),)
    assert filters_of(properties, after("a"), "a.svs") == ()


@pytest.mark.parametrize("text", ["", "{", "3", "[3]", "[{}]", '[{"least":"x"}]', '{"least":1}'])
def test_what_is_damaged_is_ignored_with_a_warning(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert filters_of({FILTERS: text}, after("a"), "a.svs") == ()
    assert "image a.svs: what is stored of earlier filters is damaged" in caplog.text
    caplog.clear()
    with_filter({FILTERS: text}, after("a"), "a.svs", 0.8)
    assert "image a.svs: what is stored of earlier filters is damaged" in caplog.text
