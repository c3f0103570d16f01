"""The landscape of the watershed, against SciPy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.landscape import STEPS_PER_PX, build_landscape, gaussian_radius
from qpnuclei.segmentation.quantised import CENTRE_STEPS

sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


def random_mask(seed, shape):
    rng = np.random.default_rng(seed)
    return (rng.random(shape) < rng.choice([0.3, 0.9, 0.99])).astype(np.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), sizes, st.integers(1, 9))
def test_distances_end_at_the_radius_of_the_seeds(seed, shape, radius):
    mask = random_mask(seed, shape)
    mask[0, 0] = 0
    parameters = PostProcessing(centre_weight=0, smoothing_sigma_px=0, maxima_radius_px=radius)
    steps = build_landscape(mask, parameters, np.zeros(shape, np.uint16))
    expected = np.minimum(ndimage.distance_transform_edt(mask), radius)
    np.testing.assert_array_equal(steps, np.round(expected * STEPS_PER_PX))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), sizes, st.sampled_from([0.3, 1.0, 2.0, 3.3]))
def test_the_landscape_is_smoothed_and_reflected_at_the_border(seed, shape, sigma):
    mask = random_mask(seed, shape)
    rng = np.random.default_rng(seed)
    centre = rng.integers(0, CENTRE_STEPS, shape, np.uint16, endpoint=True)
    parameters = PostProcessing(centre_weight=1, smoothing_sigma_px=sigma, maxima_radius_px=6)
    steps = build_landscape(mask, parameters, centre)
    expected = ndimage.gaussian_filter(12 * (centre / CENTRE_STEPS), sigma, mode="reflect")
    np.testing.assert_array_equal(steps, np.where(mask, np.round(expected * STEPS_PER_PX), 0))
    assert gaussian_radius(sigma) == int(4 * sigma + 0.5)


def test_without_a_centre_map_distances_have_no_end():
    mask = np.ones((1, 101), np.uint8)
    mask[0, 0] = 0
    steps = build_landscape(mask, PostProcessing(smoothing_sigma_px=0), None)
    np.testing.assert_array_equal(steps[0], np.arange(101) * STEPS_PER_PX)


@pytest.mark.parametrize("centre", [None, np.zeros((5, 4), np.uint16)])
def test_without_a_background_all_distances_are_1(centre):
    parameters = PostProcessing(centre_weight=0.5)
    steps = build_landscape(np.ones((5, 4), np.uint8), parameters, centre)
    expected = STEPS_PER_PX if centre is None else STEPS_PER_PX // 2
    np.testing.assert_array_equal(steps, np.full((5, 4), expected))
