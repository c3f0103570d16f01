"""The outputs of third-party networks, as arrays of each type of number."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from qpnuclei.errors import ModelError
from qpnuclei.segmentation.outputs import instances
from qpnuclei.segmentation.sidecar import Sidecar

LABELS = Sidecar(mpp=0.5, output="labels", context_px=0)
MAPS = Sidecar(mpp=0.5, output="maps", context_px=0)
STARDIST = Sidecar(mpp=0.5, output="stardist", context_px=0)
KINDS = ["bool", "uint8", "int8", "uint16", "int64", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_type_are_the_same(kind: str) -> None:
    """Warnings are errors in all tests."""
    found = np.zeros((1, 1, 6, 8), kind)
    found[0, 0, 1:3, 1:4] = 1
    found[0, 0, 4:6, 2:7] = 1 if kind == "bool" else 100
    labels, scores = instances([found], (5, 8), LABELS)
    expected = np.zeros((5, 8), np.int32)
    expected[1:3, 1:4] = 1
    if kind != "bool":  # there, both pieces are of nucleus 1, and the larger one is kept
        expected[4, 2:7] = 2
    np.testing.assert_array_equal(labels, expected)
    assert labels.dtype == np.int32
    assert scores == {}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.int8(-1), "finite whole numbers, 0 or more"),
        (np.int64((1 << 24) + 1), "finite whole numbers, 0 or more"),
        (np.uint64((1 << 64) - 1), "finite whole numbers, 0 or more"),
        (np.float16(np.inf), "finite whole numbers, 0 or more"),
        (np.float16(np.nan), "finite whole numbers, 0 or more"),
        (np.float16(0.25), "whole numbers, but this model gives fractions"),
        (np.float64(1e300), "finite whole numbers, 0 or more"),
    ],
)
def test_what_is_no_label_is_refused(value: np.generic, message: str) -> None:
    found: npt.NDArray[np.generic] = np.zeros((1, 1, 4, 4), value.dtype)
    found[0, 0, 2, 2] = value
    with pytest.raises(ModelError, match=message):
        instances([found], (4, 4), LABELS)


@pytest.mark.parametrize("value", [1e300, -1e300])
def test_a_probability_that_float32_cannot_hold_is_refused(value: float) -> None:
    with pytest.raises(ModelError, match="not finite"):
        instances([np.full((1, 1, 4, 4), value)], (4, 4), MAPS)


def test_a_distance_that_no_outline_has_is_refused() -> None:
    probability = np.zeros((1, 1, 4, 4), np.float32)
    probability[0, 0, 2, 2] = 1
    distances = np.full((1, 8, 4, 4), 1e10, np.float32)
    with pytest.raises(ModelError, match=r"distances must be in px .* gives 1e\+10"):
        instances([probability, distances], (4, 4), STARDIST)
