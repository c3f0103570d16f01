from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.qupath.areas import valid_area
from qpnuclei.qupath.class_counts import Classes
from qpnuclei.qupath.counts import count_in_regions, count_objects
from qpnuclei.qupath.regions import Region
from qpnuclei.qupath.repeated_nuclei import RepeatedNuclei
from tests.qupath.counted import OTHER, OURS, RECTANGLE, annotation, detections, image


def test_nuclei_that_two_programs_found_are_said_to_be_counted_twice():
    # Discs of radius 1: the second lies on the first, the third beside it, the fourth elsewhere.
    points = [(12, 12), (12.4, 12), (14.5, 12), (40, 40), (40.2, 40), (60, 60), (60, 60)]
    ids = [OURS, OTHER, OTHER, OURS, OTHER, OTHER, OURS]
    planes = [(0, 0)] * 5 + [(0, 0), (1, 0)]  # the last two lie in two planes
    found = detections(points, ids=ids, planes=planes)
    two = [annotation(RECTANGLE), annotation(shapely.box(30, 30, 70, 70), handle=1)]
    counted = image(two, found)
    said = "counted twice: nuclei of other programs on nuclei of qpnuclei ({})"
    rows = count_objects(counted)
    assert [(row["nuclei"], row["check"]) for row in rows] == [
        (3, said.format(1)),
        (3, said.format(1)),
    ]
    assert [row["check"] for row in count_objects(counted, "image")] == [said.format(2)]
    assert [count[3] for count in count_in_regions(counted, [Region.of(a) for a in two])] == [
        said.format(1)
    ] * 2
    # Who asks for a class of one program counts nothing twice.
    found = detections(
        points, ["ours" if i == OURS else "Nucleus" for i in ids], ids, planes=planes
    )
    rows = count_objects(image(two, found), nucleus_classes=["Nucleus"])
    assert [(row["nuclei"], row["check"]) for row in rows] == [(2, None), (2, None)]


#: Outlines of nuclei around (0, 0), some as damaged or hand-drawn files have them.
NUCLEI = [
    shapely.box(-2, -2, 2, 2),
    shapely.box(-5, -1, 5, 1),
    shapely.Polygon([(-3, -3), (3, 3), (3, -3), (-3, 3)]),  # crosses itself
    shapely.Polygon([(0, 0), (6, 0), (6, 6), (0, 6), (0, 1), (5, 1), (5, 5), (1, 5), (1, 0)]),
    shapely.Polygon([(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (4, 0), (4, 4), (0, 4)]),
    shapely.Polygon([(-1, 0), (1, 0), (0, 0)]),  # no area
    shapely.LineString([(-3, 0), (3, 0)]),
    shapely.Polygon(),
    shapely.Polygon([(0, 0), (math.inf, 0), (1, 1)]),
]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(NUCLEI), st.integers(0, 12), st.integers(0, 12),
            st.sampled_from([OURS, OTHER]), st.integers(0, 1),
        ),
        max_size=20,
    )
)  # fmt: skip
def test_nuclei_counted_twice_are_those_of_one_comparison_after_the_other(made):
    found = detections(
        [(x, y) for _, x, y, _, _ in made],
        ids=[own_id for *_, own_id, _ in made],
        planes=np.array([(z, 0) for *_, z in made], int).reshape(-1, 2),
    )
    outlines = np.empty(len(made), object)
    outlines[:] = [shapely.transform(shape, partial(np.add, (x, y))) for shape, x, y, _, _ in made]
    found = replace(found, geometries=outlines)
    areas = [valid_area(outline) for outline in outlines]

    def is_same(row, other):
        return (
            made[other][4] == made[row][4]
            and areas[row].intersection(areas[other]).area
            > min(areas[row].area, areas[other].area) / 2
        )

    def on_ours(row):
        return any(made[other][3] == OURS and is_same(row, other) for other in range(len(made)))

    ours = [row for row in range(len(made)) if made[row][3] == OURS]

    def on_earlier(row):
        return any(other < row and is_same(row, other) for other in ours)

    repeated = RepeatedNuclei.among(found, Classes.of(found, None))
    rows = range(len(made))
    assert repeated.of_others.tolist() == [row not in ours and on_ours(row) for row in rows]
    assert repeated.of_runs.tolist() == [row in ours and on_earlier(row) for row in rows]


def test_nuclei_that_two_runs_found_are_said_to_be_counted_twice():
    # Discs of radius 1: the second run outlines the first and the third a little differently.
    points = [(12, 12), (15, 12), (18, 12), (12.3, 12), (18, 12.4)]
    found = detections(points, ids=[OURS] * 5)
    (row,) = count_objects(image([annotation(RECTANGLE)], found))
    said = "counted twice: nuclei of qpnuclei on those of another run ({})"
    assert (row["nuclei"], row["check"]) == (5, said.format(2))
    both = detections([*points, (12.1, 12)], ids=[*[OURS] * 5, OTHER])
    (row,) = count_objects(image([annotation(RECTANGLE)], both))
    assert row["check"] == (
        "counted twice: nuclei of other programs on nuclei of qpnuclei (1), "
        "nuclei of qpnuclei on those of another run (2)"
    )
    # Nuclei of one run may touch.
    (row,) = count_objects(image([annotation(RECTANGLE)], detections(points[:3], ids=[OURS] * 3)))
    assert row["check"] is None


@pytest.mark.parametrize("apart", [5, 20])
def test_a_nucleus_inside_one_of_another_run_is_counted_twice_however_far_the_centres_are(apart):
    large = shapely.Point(100, 100).buffer(apart + 6)
    small = shapely.Point(100 + apart, 100).buffer(4)
    found = detections([(100, 100), (100 + apart, 100)], ids=[OURS] * 2)
    outlines = np.array([large, small], object)
    whole = annotation(shapely.box(0, 0, 200, 200))
    (row,) = count_objects(image([whole], replace(found, geometries=outlines)))
    assert row["check"] == "counted twice: nuclei of qpnuclei on those of another run (1)"


def test_an_outline_that_goes_around_twice_has_its_area_once():
    # It shares 12 of its 16 px², but its computed area is 32 px².
    twice = shapely.Polygon([*[(0, 0), (4, 0), (4, 4), (0, 4)] * 2])
    assert (twice.area, valid_area(twice).area) == (32, 16)
    large = shapely.box(1, 0, 11, 4)
    for outlines in ([twice, large], [large, twice]):
        found = replace(
            detections([(2, 2), (6, 2)], ids=[OURS] * 2), geometries=np.array(outlines, object)
        )
        repeated = RepeatedNuclei.among(found, Classes.of(found, None))
        assert repeated.of_runs.tolist() == [False, True]
