"""Matching against a naive loop and by hand."""

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.demo.score import match_nuclei
from qpnuclei.nuclei.table import NucleiTable


def squares(*corners, side=10.0):
    return NucleiTable.from_polygons([shapely.box(x, y, x + side, y + side) for x, y in corners])


def test_by_hand():
    truth = squares((0, 0), (50, 0), (100, 0), (100, 50))
    # Exact; shifted by 3 of 10 px (IoU 70 / 130 = 0.54); by 4 (60 / 140 = 0.43); one from nowhere.
    predicted = squares((0, 0), (53, 0), (104, 0), (200, 200))
    score = match_nuclei(predicted, truth, None, mpp=0.5)
    assert (score.iou.n_matched, score.iou.n_predicted, score.iou.n_truth) == (2, 4, 4)
    assert score.iou.precision == score.iou.recall == score.iou.f1 == 0.5
    assert score.mean_iou == pytest.approx((1 + 7 / 13) / 2)
    assert score.centroid.n_matched == 3  # 4 px are 2 µm


def test_pairs_are_one_to_one():
    truth = squares((0, 0))
    predicted = squares((0, 0), (1, 0), (0, 1))
    score = match_nuclei(predicted, truth, None, mpp=0.25)
    assert score.iou.n_matched == 1
    assert score.iou.precision == pytest.approx(1 / 3)


def test_as_many_pairs_as_possible():
    # The first prediction fits both true nuclei, the second only the left one.
    truth = squares((0, 0), (4, 0))
    predicted = squares((2, 0), (-1, 0))
    assert match_nuclei(predicted, truth, None, mpp=0.25).iou.n_matched == 2


def test_only_centroids_inside_the_region_count():
    truth = squares((0, 0), (20, 0), (40, 0))
    predicted = squares((0, 0), (20, 0), (40, 0))
    # The second square reaches into the region, its centroid (25, 5) does not.
    score = match_nuclei(predicted, truth, shapely.box(-5, -5, 24, 20), mpp=0.25)
    assert (score.iou.n_matched, score.iou.n_predicted, score.iou.n_truth) == (1, 1, 1)


def test_nothing_found_and_nothing_there():
    empty = NucleiTable.empty()
    score = match_nuclei(empty, squares((0, 0)), None, mpp=0.25)
    assert score.iou.recall == 0
    assert score.iou.f1 == 0
    assert np.isnan(score.iou.precision)
    assert np.isnan(match_nuclei(empty, empty, None, mpp=0.25).centroid.f1)


def test_a_self_intersecting_outline_is_mended():
    bow = shapely.Polygon([(0, 0), (10, 10), (10, 0), (0, 10)])
    score = match_nuclei(NucleiTable.from_polygons([bow]), squares((0, 0)), None, mpp=0.25)
    assert score.iou.n_matched == 1  # exactly half of the square


def most_pairs(good):
    """Largest one-to-one matching, by trying every assignment."""
    n, m = good.shape
    if n > m:
        return most_pairs(good.T)
    return max(
        sum(good[i, j] for i, j in enumerate(columns))
        for columns in itertools.permutations(range(m), n)
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5),
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=5),
)
def test_counts_equal_a_naive_loop(first, second):
    predicted, truth = squares(*first), squares(*second)
    iou, near = np.zeros((2, len(first), len(second)))
    for i, a in enumerate(predicted.polygons()):
        for j, b in enumerate(truth.polygons()):
            iou[i, j] = a.intersection(b).area / a.union(b).area
            near[i, j] = a.centroid.distance(b.centroid) * 0.5
    score = match_nuclei(predicted, truth, None, mpp=0.5)
    assert score.iou.n_matched == most_pairs(iou >= 0.5)
    assert score.centroid.n_matched == most_pairs(near <= 3.0)
