"""Instance maps and outlines of the same nuclei: the same areas, pairs and counts."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import shapely
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.evaluation.matching import (
    Overlaps,
    most_pairs,
    overlaps_of_maps,
    overlaps_of_outlines,
)

#: x0, y0, x1, y1 of each.
Bars = list[tuple[int, int, int, int]]


@st.composite
def bars(draw: st.DrawFn) -> Bars:
    """Return x0, y0, x1, y1 of rectangles of whole px, none above another."""
    made = []
    y = 0
    for _ in range(draw(st.integers(0, 4))):
        y += draw(st.integers(0, 2))
        height, x, width = (draw(st.integers(1, 3)) for _ in range(3))
        made.append((x, y, x + width, y + height))
        y += height
    return made


def as_map(rectangles: Bars) -> npt.NDArray[np.int32]:
    labels = np.zeros((24, 8), np.int32)
    for number, (x0, y0, x1, y1) in enumerate(rectangles, start=1):
        labels[y0:y1, x0:x1] = number
    return labels


def as_outlines(rectangles: Bars) -> list[shapely.Polygon]:
    return [shapely.box(*rectangle) for rectangle in rectangles]


def pairs(found: Overlaps) -> dict[tuple[int, int], tuple[float, float, float]]:
    """Return areas in common, IoU and smaller areas by pair, without those that only touch."""
    columns = (
        found.pair_true,
        found.pair_predicted,
        found.pair_area,
        found.iou,
        found.pair_smaller,
    )
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return {(t, p): rest for t, p, *rest in rows if rest[0] > 0}


@given(bars(), bars())
def test_maps_and_outlines_of_the_same_nuclei_overlap_alike(true: Bars, predicted: Bars) -> None:
    of_maps = overlaps_of_maps(as_map(true), as_map(predicted))
    of_outlines = overlaps_of_outlines(as_outlines(true), as_outlines(predicted))
    assert pairs(of_maps) == pairs(of_outlines)
    np.testing.assert_array_equal(of_maps.true_area, of_outlines.true_area)
    np.testing.assert_array_equal(of_maps.predicted_area, of_outlines.predicted_area)
    for least in (0.2, 0.5):
        chosen = [o.one_to_one(o.iou > least) for o in (of_maps, of_outlines)]
        for found, o in zip(chosen, (of_maps, of_outlines), strict=True):
            assert (o.iou[found] > least).all()
            assert len(set(o.pair_true[found])) == len(set(o.pair_predicted[found])) == len(found)
        assert of_maps.counts(len(chosen[0])) == of_outlines.counts(len(chosen[1]))


def test_what_only_touches_shares_nothing() -> None:
    found = overlaps_of_outlines([shapely.box(0, 0, 2, 2)], [shapely.box(2, 0, 4, 2)])
    assert found.pair_area.tolist() == found.iou.tolist() == [0.0]


def test_pairs_are_given_by_their_place_among_all() -> None:
    # Both of the first side fit the second of the other; only one fits its first, too.
    i, j = np.array([1, 0, 1]), np.array([1, 1, 0])
    assert most_pairs(i, j, (2, 2)).tolist() == [1, 2]


def test_large_labels_need_no_more_memory_than_small_ones() -> None:
    true = np.array([[0, 2_000_000_000, 5, 2_000_000_000]], np.int32)
    predicted = np.array([[0, 2**63 + 1, 2**63 + 1, 2**63]], np.uint64)

    found = overlaps_of_maps(true, predicted)

    np.testing.assert_array_equal(found.true, [[0, 2, 1, 2]])
    np.testing.assert_array_equal(found.predicted, [[0, 2, 2, 1]])
    assert found.true_area.tolist() == [1, 2]
    assert found.predicted_area.tolist() == [1, 2]
