from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from qpnuclei.segmentation.labels import clean_labels


@given(
    arrays(np.int32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.integers(0, 4))
)
def test_every_instance_is_one_piece_without_holes(labels: np.ndarray) -> None:
    cleaned = clean_labels(labels)
    numbers = np.unique(cleaned)
    assert numbers[numbers > 0].tolist() == list(range(1, cleaned.max() + 1))
    for number in range(1, cleaned.max() + 1):
        mask = cleaned == number
        assert ndimage.label(mask)[1] == 1
        np.testing.assert_array_equal(ndimage.binary_fill_holes(mask), mask)
    # Labels grow only into holes, and a single piece without holes is unchanged.
    for label in np.unique(labels[labels > 0]):
        mask = labels == label
        n = ndimage.label(mask)[1]
        if n == 1 and (ndimage.binary_fill_holes(mask) == mask).all():
            within = np.unique(cleaned[mask])
            assert len(within) == 1
            assert within[0] > 0


def test_the_largest_piece_stays_and_holes_are_filled() -> None:
    labels = np.array([
        [5, 5, 5, 0, 5],
        [5, 2, 5, 0, 0],
        [5, 5, 5, 3, 3],
    ])  # fmt: skip
    expected = [[1, 1, 1, 0, 0], [1, 1, 1, 0, 0], [1, 1, 1, 2, 2]]
    np.testing.assert_array_equal(clean_labels(labels), expected)


@pytest.mark.parametrize("bad", [np.zeros((2, 2, 2), int), np.array([[-1, 1]])])
def test_other_arrays_are_refused(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match="labels must"):
        clean_labels(bad)
