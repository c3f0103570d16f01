import numpy as np
import pytest

from qpnuclei.nuclei.run_lengths import runs_of_labels


def test_runs_by_hand():
    # A run ends with its row, though the next row begins with the same label.
    runs = runs_of_labels(np.array([[0, 2, 2, 7], [7, 7, 0, 3]], np.int32))
    np.testing.assert_array_equal(runs.labels, [2, 7, 7, 3])
    np.testing.assert_array_equal(runs.starts, [1, 3, 4, 7])
    np.testing.assert_array_equal(runs.lengths, [2, 1, 2, 1])


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (3, 0), (1, 1), (2, 3)])
def test_background_has_no_runs(shape):
    runs = runs_of_labels(np.zeros(shape, np.int32))
    assert len(runs.labels) == len(runs.starts) == len(runs.lengths) == 0


def test_a_part_of_a_map_is_as_a_map_of_its_own():
    labels = np.random.default_rng(0).integers(0, 3, (9, 12))
    part = labels[2:7, 3:8]
    np.testing.assert_array_equal(
        runs_of_labels(part).starts, runs_of_labels(np.ascontiguousarray(part)).starts
    )
