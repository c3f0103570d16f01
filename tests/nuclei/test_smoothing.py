from __future__ import annotations

import itertools

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.nuclei.outlines import polygonise
from qpnuclei.nuclei.pixels import pixels_of_labels, pixels_of_polygons
from qpnuclei.nuclei.smoothing import junctions, smooth
from qpnuclei.nuclei.table import NucleiTable
from tests.segmentation.images import random_mask, regions

TOLERANCE = 0.24
NOWHERE = np.empty((0, 2), np.int64)


def touching(seed, shape, density, grain):
    """Return regions of random pixels, cut into touching ones by a random grid."""
    rng = np.random.default_rng(seed)
    labels = regions(random_mask(seed, shape, density, grain))
    cells = np.zeros(shape, int)
    for axis in range(2):
        cuts = np.sort(rng.integers(0, shape[axis] + 1, 3))
        index = np.searchsorted(cuts, np.arange(shape[axis]), side="right")
        cells += (4 if axis else 1) * (index[:, None] if axis == 0 else index)
    pieces = np.where(labels > 0, labels * 16 + cells, 0)
    parts = np.zeros(shape, np.int32)
    for piece in np.unique(pieces[pieces > 0]):
        parts = np.where(pieces == piece, regions(pieces == piece) + parts.max(), parts)
    parts[pieces == 0] = 0
    return without_pinches(parts)


def without_pinches(labels):
    """Drop the labels that enclose others, or touch themselves at a corner."""
    for label in np.unique(labels[labels > 0]):
        try:
            polygonise(np.where(labels == label, label, 0))
        except ValueError:
            labels = np.where(labels == label, 0, labels)
    return labels


label_maps = st.builds(
    lambda seed, height, width, density, grain: touching(seed, (height, width), density, grain),
    st.integers(0, 2**32),
    st.integers(1, 30),
    st.integers(1, 30),
    st.floats(0.1, 1),
    st.integers(1, 5),
)


def smoothed(labels, tolerance=TOLERANCE, origin=(0, 0), image=None):
    pixel_outlines, ids = polygonise(labels, origin)
    corners = junctions(pixel_outlines, labels, origin)
    return (
        smooth(pixel_outlines, corners, tolerance, *([] if image is None else [image])),
        pixel_outlines,
        ids,
    )


def circularity(nuclei):
    polygons = nuclei.polygons()
    return 4 * np.pi * shapely.area(polygons) / np.square(shapely.length(polygons))


def disc(x, y, radius, size):
    rows, columns = np.mgrid[:size, :size] + 0.5
    return (np.hypot(columns - x, rows - y) < radius).astype(np.int32)


@settings(max_examples=60, deadline=None)
@given(label_maps, st.sampled_from([0.05, 0.25, 2]))
def test_outlines_are_valid_keep_their_area_and_do_not_overlap(labels, tolerance):
    nuclei, pixel_outlines, ids = smoothed(labels, tolerance)
    assert len(nuclei) == len(ids) == len(np.unique(labels[labels > 0]))
    polygons = nuclei.polygons()
    assert shapely.is_valid(polygons).all()
    assert (shapely.get_num_interior_rings(polygons) == 0).all()
    np.testing.assert_allclose(
        shapely.area(polygons), shapely.area(pixel_outlines.polygons()), rtol=0.01
    )
    for a, b in itertools.combinations(polygons, 2):
        # Vertices are float32: where two outlines touch, they may do so by its rounding.
        assert shapely.area(shapely.intersection(a, b)) < 1e-5
    # Rings run as before.
    assert all(ring.is_ccw for ring in shapely.get_exterior_ring(polygons))


@settings(max_examples=40, deadline=None)
@given(label_maps, st.sampled_from([0.05, 0.25, 2]), st.sampled_from([0, 70_000, 200_000]))
def test_outlines_hold_the_pixels_of_their_labels(labels, tolerance, shift):
    nuclei, _, ids = smoothed(labels, tolerance, (shift, shift))
    inside = pixels_of_polygons(nuclei.polygons(), labels.shape, (shift, shift))
    expected = pixels_of_labels(labels, ids)
    np.testing.assert_array_equal(inside.counts, expected.counts)
    np.testing.assert_array_equal(inside.indices, expected.indices)


@settings(max_examples=40, deadline=None)
@given(label_maps, st.integers(0, 50), st.integers(0, 50))
def test_an_outline_depends_on_nothing_but_the_labels_at_its_own_border(labels, x, y):
    nuclei, pixel_outlines, ids = smoothed(labels)
    # Elsewhere, among others, and with other numbers.
    around = np.zeros((labels.shape[0] + y + 2, labels.shape[1] + x + 2), np.int32)
    around[y + 1 : -1, x + 1 : -1] = np.where(labels > 0, labels.max() + 1 - labels, 0)
    moved, _, others = smoothed(around, origin=(-x - 1, -y - 1))
    np.testing.assert_array_equal(others, labels.max() + 1 - ids[::-1])
    again = moved.take(np.arange(len(ids))[::-1])
    np.testing.assert_array_equal(again.vertices, nuclei.vertices)
    # One at a time, with the junctions of all.
    corners = junctions(pixel_outlines, labels, (0, 0))
    for i in range(len(ids)):
        alone = smooth(pixel_outlines.take([i]), corners, TOLERANCE)
        np.testing.assert_array_equal(alone.vertices, nuclei.take([i]).vertices)


@settings(max_examples=40, deadline=None)
@given(label_maps)
def test_neighbours_share_every_vertex_of_their_border(labels):
    nuclei, pixel_outlines, _ = smoothed(labels)
    shared = shapely.intersection(*pairs(pixel_outlines))
    lengths = shapely.length(shared)
    smooth_lengths = shapely.length(shapely.intersection(*pairs(nuclei)))
    # A border of two nuclei is a line, on both grids; a corner is none.
    np.testing.assert_array_equal(lengths > 0, smooth_lengths > 0)
    assert (smooth_lengths <= lengths + 1e-4).all()


def pairs(nuclei):
    polygons = nuclei.polygons()
    first, second = np.triu_indices(len(polygons), 1)
    return polygons[first], polygons[second]


@pytest.mark.parametrize("radius", [6, 7, 8, 9, 10, 13, 16, 20])
def test_a_disc_is_round(radius):
    for x, y in itertools.product((0.0, 0.3, 0.5), (0.0, 0.25, 0.5)):
        labels = disc(radius + 2 + x, radius + 2 + y, radius, 2 * radius + 5)
        nuclei, pixel_outlines, _ = smoothed(labels)
        assert circularity(pixel_outlines)[0] < 0.75
        assert circularity(nuclei)[0] >= 0.95
        assert len(nuclei.vertices) <= 0.65 * len(pixel_outlines.vertices)
        # Where the disc is, not only as large.
        (centre,) = nuclei.centroids()
        np.testing.assert_allclose(centre, (radius + 2 + x, radius + 2 + y), atol=0.35)


def test_two_halves_of_a_disc_share_a_straight_border():
    labels = disc(12, 12, 10, 24)
    labels[:, 12:] *= 2
    pixel_outlines, _ = polygonise(labels)
    corners = junctions(pixel_outlines, labels, (0, 0))
    np.testing.assert_array_equal(corners, [[12, 2], [12, 22]])
    left, right = smooth(pixel_outlines, corners, TOLERANCE).polygons()
    assert shapely.equals(shapely.intersection(left, right), shapely.LineString(corners))
    whole = shapely.union(left, right)
    assert 4 * np.pi * whole.area / whole.length**2 > 0.95


def test_junctions_by_hand():
    labels = np.array(
        [
            [1, 1, 2, 2],
            [1, 1, 2, 0],
            [3, 0, 0, 0],
            [3, 3, 0, 4],
        ]
    )
    pixel_outlines, ids = polygonise(labels, (10, 20))
    np.testing.assert_array_equal(
        # 1, 2 and the outside; 1, 3 and the outside; 1, 3 and 0; 1, 2 and 0.
        # Not where 1 and 3, or 2 and 4, only touch at a corner.
        junctions(pixel_outlines, labels, (10, 20)),
        [[12, 20], [10, 22], [11, 22], [12, 22]],
    )
    of_last = junctions(pixel_outlines.take(ids == 4), labels, (10, 20))
    assert of_last.shape == (0, 2)


def test_nothing_leaves_the_image():
    labels = disc(0, 9, 8, 18)
    free, pixel_outlines, _ = smoothed(labels)
    assert free.vertices.min() < 0
    within, _, _ = smoothed(labels, image=(0, 0, 18, 18))
    assert within.vertices.min() == 0
    np.testing.assert_allclose(
        shapely.area(within.polygons()), shapely.area(pixel_outlines.polygons()), rtol=0.01
    )
    full = np.ones((7, 9), np.int32)
    everything, pixel_outlines, _ = smoothed(full, image=(0, 0, 9, 7))
    assert shapely.equals(everything.polygons(), pixel_outlines.polygons()).all()
    assert len(everything.vertices) == 5


def test_one_pixel_is_a_diamond_of_the_same_area():
    nuclei, _, _ = smoothed(np.array([[0, 0, 0], [0, 5, 0], [0, 0, 0]]))
    reach = np.sqrt(0.5)
    (polygon,) = nuclei.polygons()
    np.testing.assert_allclose(
        polygon.bounds, [1.5 - reach, 1.5 - reach, 1.5 + reach, 1.5 + reach], rtol=1e-5
    )
    assert polygon.area == pytest.approx(1, rel=1e-5)


def test_the_larger_the_tolerance_the_fewer_the_vertices():
    labels = disc(25, 25, 20, 50)
    counts = [len(smoothed(labels, tolerance)[0].vertices) for tolerance in (0.02, 0.05, 0.25)]
    assert counts[0] > counts[1] > counts[2]
    with pytest.raises(ValueError, match="must be positive"):
        smoothed(labels, 0)


def test_no_nuclei():
    assert len(smooth(NucleiTable.empty(), NOWHERE, 1.0)) == 0
    nuclei, _ = polygonise(np.zeros((3, 3), int))
    assert junctions(nuclei, np.zeros((3, 3), int), (0, 0)).shape == (0, 2)
