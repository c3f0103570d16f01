from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.nuclei.outlines import bounds, canonical, polygonise
from tests.segmentation.images import random_mask, regions

label_maps = st.builds(
    lambda seed, height, width, density, grain: regions(
        random_mask(seed, (height, width), density, grain)
    ),
    st.integers(0, 2**32),
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(0.1, 0.95),
    st.integers(1, 4),
)


def test_an_l_shape_vertex_by_vertex():
    labels = np.zeros((4, 5), np.int32)
    labels[1:3, 1] = labels[2, 1:4] = 7
    nuclei, ids = polygonise(labels, origin=(100, 200))
    # From the upper left corner to the right; no vertex where the outline goes straight on.
    ring = [[101, 201], [102, 201], [102, 202], [104, 202], [104, 203], [101, 203], [101, 201]]
    np.testing.assert_array_equal(nuclei.vertices, ring)
    np.testing.assert_array_equal(ids, [7])
    np.testing.assert_array_equal(bounds(nuclei), [[101, 201, 104, 203]])


def test_no_labels_give_no_polygons():
    nuclei, ids = polygonise(np.zeros((3, 4), np.int32))
    assert len(nuclei) == len(ids) == 0
    assert bounds(nuclei).shape == (0, 4)


@settings(max_examples=80, deadline=None)
@given(label_maps)
def test_polygons_cover_their_pixels_and_nothing_else(labels):
    nuclei, ids = polygonise(labels)
    polygons = nuclei.polygons()
    assert shapely.is_valid(polygons).all()
    np.testing.assert_array_equal(ids, np.unique(labels[labels > 0]))
    np.testing.assert_array_equal(shapely.area(polygons), np.bincount(labels.ravel())[ids])
    y, x = np.nonzero(labels)
    inside = polygons[np.searchsorted(ids, labels[y, x])]
    assert shapely.contains_xy(inside, x + 0.5, y + 0.5).all()


@settings(max_examples=40, deadline=None)
@given(label_maps)
def test_rings_are_canonical(labels):
    nuclei, _ = polygonise(labels)
    for start, stop in zip(nuclei.ring_offsets[:-1], nuclei.ring_offsets[1:], strict=True):
        ring = nuclei.vertices[start:stop]
        steps = np.diff(ring, axis=0)
        np.testing.assert_array_equal(ring[0], ring[-1])
        assert tuple(ring[0][::-1]) == min(map(tuple, ring[:, ::-1]))
        # Right or left first, then by turns: no collinear vertex is left.
        assert (steps[::2, 1] == 0).all()
        assert (steps[1::2, 0] == 0).all()
        assert steps[0, 0] > 0
    # However Shapely turns and starts the rings, and whatever vertices it adds.
    shuffled = shapely.segmentize(shapely.normalize(nuclei.polygons()), 1.0)
    again = canonical(shuffled)
    np.testing.assert_array_equal(again.vertices, nuclei.vertices)
    np.testing.assert_array_equal(again.ring_offsets, nuclei.ring_offsets)


@settings(max_examples=40, deadline=None)
@given(label_maps, st.sampled_from([np.int32, np.int64, np.uint16]), st.booleans())
def test_outlines_are_those_of_the_united_pixels(labels, dtype, transposed):
    labels = labels.T if transposed else labels
    nuclei, ids = polygonise(labels.astype(dtype), origin=(3, -2))
    united = [
        shapely.union_all(shapely.box(x, y, x + 1, y + 1))
        for x, y in ((x + 3, y - 2) for y, x in (np.nonzero(labels == i) for i in ids))
    ]
    expected = canonical(np.array(united, dtype=object))
    np.testing.assert_array_equal(nuclei.vertices, expected.vertices)
    np.testing.assert_array_equal(nuclei.ring_offsets, expected.ring_offsets)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([[1, 0, 1]], "label 1 is not one region"),
        # The outline of the left part encloses as many pixels as there are in both.
        ([[5, 5, 5, 0, 0], [5, 0, 5, 0, 5], [5, 5, 5, 0, 0]], "label 5 is not one region"),
        # As long an outline as two pixels side by side have.
        ([[4], [0], [4]], "label 4 is not one region"),
        ([[6, 6, 6], [6, 0, 6], [6, 6, 0]], "label 6 touches itself at a corner"),
        ([[1, 1, 0], [1, 1, 0], [0, 0, 8], [0, 8, 0]], "label 8 touches itself at a corner"),
        ([[2, 2, 2], [2, 0, 2], [2, 2, 2]], "label 2 is not one region"),
        ([[3, 0], [0, 3]], "label 3 touches itself at a corner"),
    ],
)
def test_labels_without_a_simple_outline_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        polygonise(np.array(labels, np.int32))
