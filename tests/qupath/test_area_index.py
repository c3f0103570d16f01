"""The index of the analysed areas finds what looking at each of them finds."""

from __future__ import annotations

import uuid

import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.qupath.analysed_area import AnalysedArea
from qpnuclei.qupath.area_index import AreaIndex
from tests.qupath.test_analysed import Box, grid_boxes, outline_of, squares_of

#: Bounds, number of the annotation, turn of the run, and whether that left nuclei to earlier areas.
AREAS = st.lists(
    st.tuples(grid_boxes(), st.integers(0, 3), st.integers(1, 3), st.booleans()), max_size=6
)


def meet(one: Box, other: Box) -> bool:
    """Tell whether two boxes have a point in common, be it a corner."""
    return all(one[k] <= other[k + 2] and other[k] <= one[k + 2] for k in (0, 1))


@settings(max_examples=200, deadline=None)
@given(given_areas=AREAS, wanted=grid_boxes(), after=st.integers(0, 3))
def test_areas_of_a_grid(
    given_areas: list[tuple[Box, int, int, bool]], wanted: Box, after: int
) -> None:
    areas = [
        AnalysedArea(
            uuid.UUID(int=number) if number else None,
            shapely.MultiPolygon([outline_of(bounds)]),
            turn=turn,
            keeps_earlier=keeps_earlier,
        )
        for bounds, number, turn, keeps_earlier in given_areas
    ]
    index = AreaIndex(areas)
    each = list(zip(areas, given_areas, strict=True))
    geometry = outline_of(wanted)
    assert index.meeting(geometry) == [a for a, (bounds, *_) in each if meet(bounds, wanted)]
    # QuPath may have saved an outline less exactly.
    nearly = shapely.affinity.translate(geometry, 0.01, -0.01)
    same = [a for a, (bounds, *_) in each if bounds == wanted]
    assert index.with_outline(geometry) == index.with_outline(nearly) == same
    for number in range(1, 4):
        own = [a for a, (_, own_number, *_) in each if own_number == number]
        assert index.of_id(uuid.UUID(int=number)) == own
    assert index.of_id(None) == []

    covered, superseded = squares_of((0, 0, 0, 0)), squares_of((0, 0, 0, 0))
    for bounds, _, turn, keeps_earlier in given_areas:
        if turn > after:
            covered |= squares_of(bounds)
            superseded |= squares_of(bounds) & (not keeps_earlier)
    inside = squares_of(wanted)
    assert index.is_covered(geometry, after) == covered[inside].all()
    assert index.is_superseded(geometry, after) == superseded[inside].all()
