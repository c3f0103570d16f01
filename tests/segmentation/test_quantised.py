"""Codes of attention and centre maps."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qpnuclei.errors import ModelError
from qpnuclei.segmentation.quantised import (
    ATTENTION_OF_CODE,
    attention_codes,
    centre_codes,
    check_codes,
    first_code_above,
)


@pytest.mark.parametrize(
    ("attention", "code"),
    [(0, 0), (1e-9, 0), (1 / 240, 0), (1.01 / 240, 1), (0.5, 119), (0.501, 120), (1, 239)],
)
def test_codes_of_literal_attention(attention, code):
    assert attention_codes(np.array([attention], np.float32)).tolist() == [code]


@pytest.mark.parametrize("threshold", [1e-6, 0.001, 0.5, 0.999, 1 - 1e-9])
def test_no_threshold_is_below_all_attention_or_above_it(threshold):
    none, full = attention_codes(np.array([0, 1], np.float32))
    assert none < first_code_above(threshold) <= full


@given(st.floats(0, 1, width=32), st.integers(1, 19))
def test_a_pixel_is_above_a_threshold_if_its_code_is(attention, twentieths):
    threshold = twentieths / 20
    if abs(attention - threshold) < 1e-6:
        return  # neither float32 nor decimal fractions are exact there
    code = attention_codes(np.array([attention], np.float32))[0]
    assert (code >= first_code_above(threshold)) == (attention > threshold)


@given(st.floats(0, 1, width=32))
def test_a_code_stands_for_attention_within_half_a_step(attention):
    code = attention_codes(np.array([attention], np.float32))
    assert abs(ATTENTION_OF_CODE[code[0]] - attention) <= 0.5 / 240 + 1e-6


def test_centre_maps_end_at_the_ends_of_their_type():
    centre = np.array([0, 0.5, 1], np.float32)
    assert centre_codes(centre).tolist() == [0, 32768, 65535]


def test_what_is_no_number_has_a_code_of_its_own():
    codes = attention_codes(np.array([0.5, np.nan, 1], np.float32))
    assert codes.tolist() == [119, 255, 239]
    check_codes(codes[[0, 2]])
    check_codes(codes[:0])
    with pytest.raises(ModelError, match="not finite"):
        check_codes(codes)
    with pytest.raises(ModelError, match="not finite"):
        centre_codes(np.array([np.nan, 0.5], np.float32))
