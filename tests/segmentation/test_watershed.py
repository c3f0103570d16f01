"""Peaks and basins of literal landscapes; the whole is compared in test_postprocess."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import watershed as skimage_watershed

from qpnuclei.segmentation.watershed import find_peaks, renumbered, watershed


def literal(*rows):
    landscape = np.array(rows, np.int32)
    return landscape, ndimage.label(landscape)[0].astype(np.int32)


def test_a_peak_is_as_high_as_all_of_its_component_in_the_disk():
    landscape, components = literal([3, 1, 2, 1, 1, 1, 2, 0, 9])
    assert find_peaks(landscape, components, 1).tolist() == [0, 2, 4, 6, 8]
    assert find_peaks(landscape, components, 2).tolist() == [0, 6, 8]
    assert find_peaks(landscape, components, 9).tolist() == [0, 8]


def test_adjacent_peaks_are_one_also_over_corners():
    landscape, components = literal([1, 5, 1], [5, 1, 1], [1, 1, 5])
    assert find_peaks(landscape, components, 1).tolist() == [1, 8]


def test_the_ends_of_two_rows_are_not_adjacent():
    landscape, components = literal([5, 1, 5], [2, 1, 2], [5, 1, 5])
    assert find_peaks(landscape, components, 1).tolist() == [0, 2, 6, 8]


def test_equal_peaks_of_components_that_touch_at_a_corner_are_two():
    landscape, components = literal([5, 0], [0, 5])
    assert find_peaks(landscape, components, 2).tolist() == [0, 3]


def test_a_pixel_joins_the_basin_that_reaches_it_first():
    landscape, components = literal([9, 4, 3, 2, 5, 8])
    peaks = find_peaks(landscape, components, 2)
    assert watershed(components, landscape, peaks).tolist() == [[1, 1, 1, 2, 2, 2]]


def test_a_basin_joins_the_one_beyond_its_highest_saddle():
    # The middle peak rises 2 above the saddle on its right, 3 above the one on its left.
    landscape, components = literal([9, 3, 6, 4, 8])
    peaks = find_peaks(landscape, components, 1)
    assert watershed(components, landscape, peaks, 2).tolist() == [[1, 1, 2, 3, 3]]
    assert watershed(components, landscape, peaks, 3).tolist() == [[1, 1, 2, 2, 2]]
    assert watershed(components, landscape, peaks, 6).tolist() == [[1, 1, 1, 1, 1]]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30), st.integers(1, 1000))
def test_basins_are_those_of_scikit_image(seed, height, width, highest):
    rng = np.random.default_rng(seed)
    landscape = rng.integers(0, highest, (height, width), np.int32, endpoint=True)
    mask = rng.random((height, width)) < 0.8
    components = ndimage.label(mask)[0].astype(np.int32)
    peaks = find_peaks(landscape, components, 3)
    markers = np.zeros(mask.shape, np.int32)
    markers.ravel()[peaks] = np.arange(1, len(peaks) + 1)
    # Of two equal heights, the earlier pixel is flooded first.
    ranks = np.empty(mask.size)
    ranks[np.argsort(-landscape.ravel(), kind="stable")] = np.arange(mask.size)
    expected = skimage_watershed(ranks.reshape(mask.shape), markers, mask=mask)
    np.testing.assert_array_equal(watershed(components, landscape, peaks), expected)


def test_labels_are_renumbered():
    labels = np.array([[0, 2], [1, 2]], np.int32)
    assert renumbered(labels, np.array([0, 7, 5], np.int32)).tolist() == [[0, 5], [7, 5]]
