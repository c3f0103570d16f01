"""Quantised attention and centre maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.errors import ModelError
from qpnuclei.segmentation.quantised import (
    ATTENTION_OF_LEVEL,
    check_finite,
    first_level_above,
    quantise_attention,
    quantise_centre,
)


@pytest.mark.parametrize(
    ("attention", "level"),
    [(0, 0), (1e-9, 0), (1 / 240, 0), (1.01 / 240, 1), (0.5, 119), (0.501, 120), (1, 239)],
)
def test_levels_of_literal_attention(attention, level):
    assert quantise_attention(np.array([attention], np.float32)).tolist() == [level]


@pytest.mark.parametrize("threshold", [1e-6, 0.001, 0.5, 0.999, 1 - 1e-9])
def test_no_threshold_is_below_all_attention_or_above_it(threshold):
    none, full = quantise_attention(np.array([0, 1], np.float32))
    assert none < first_level_above(threshold) <= full


@given(st.floats(0, 1, width=32), st.integers(1, 19))
def test_a_pixel_is_above_a_threshold_if_its_level_is(attention, twentieths):
    threshold = twentieths / 20
    if abs(attention - threshold) < 1e-6:
        return  # neither float32 nor decimal fractions are exact there
    level = quantise_attention(np.array([attention], np.float32))[0]
    assert (level >= first_level_above(threshold)) == (attention > threshold)


@given(st.floats(0, 1, width=32))
def test_a_level_stands_for_attention_within_half_a_step(attention):
    level = quantise_attention(np.array([attention], np.float32))
    assert abs(ATTENTION_OF_LEVEL[level[0]] - attention) <= 0.5 / 240 + 1e-6


def test_centre_maps_end_at_the_ends_of_their_type():
    centre = np.array([0, 0.5, 1], np.float32)
    assert quantise_centre(centre).tolist() == [0, 32768, 65535]


def test_nan_has_a_level_of_its_own():
    levels = quantise_attention(np.array([0.5, np.nan, 1], np.float32))
    assert levels.tolist() == [119, 255, 239]
    check_finite(levels[[0, 2]])
    check_finite(levels[:0])
    with pytest.raises(ModelError, match="not finite"):
        check_finite(levels)
    with pytest.raises(ModelError, match="not finite"):
        quantise_centre(np.array([np.nan, 0.5], np.float32))
