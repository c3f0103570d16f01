"""What becomes of a nucleus, on lines of pixels; and the intervals of means."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from qpnuclei.evaluation.agreement import Kind, classify
from qpnuclei.evaluation.bootstrap import RESAMPLES, SEED, bootstrap_interval
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.evaluation.metrics import score


def kinds(true: str, predicted: str) -> tuple[list[Kind], list[Kind]]:
    """Classify two lines of pixels: letters are nuclei, in their order; dots background."""
    maps = [
        np.array([[0 if c == "." else ord(c) - ord("a") + 1 for c in line]])
        for line in (true, predicted)
    ]
    agreement = classify(*maps)
    assert all(isinstance(k, Kind) for k in (*agreement.true_kind, *agreement.predicted_kind))
    return agreement.true_kind.tolist(), agreement.predicted_kind.tolist()


@pytest.mark.parametrize(
    ("true", "predicted", "of_true", "of_predicted"),
    [
        ("aaaa..", ".aaaa.", [Kind.FOUND], [Kind.FOUND]),  # IoU 3/5
        ("aaa...", "...aaa", [Kind.MISSED], [Kind.FALSE]),
        # 1 px of 4 in common: neither lies in the other.
        ("aaaa...", "...aaaa", [Kind.MISSED], [Kind.FALSE]),
        ("aaaaaaa", "aa.bb..", [Kind.SPLIT], [Kind.SPLIT, Kind.SPLIT]),
        # One half is large enough to count as found, the rest was split off it.
        ("aaaaaaa", "aaaaabb", [Kind.FOUND], [Kind.FOUND, Kind.SPLIT]),
        ("aa.bb..", "aaaaaaa", [Kind.MERGED, Kind.MERGED], [Kind.MERGED]),
        ("aaaaabb", "aaaaaaa", [Kind.FOUND, Kind.MERGED], [Kind.FOUND]),
        # The prediction lies in the nucleus, but it is too small; and the other way round.
        ("aaaaaa", ".aa...", [Kind.INEXACT], [Kind.INEXACT]),
        (".aa...", "aaaaaa", [Kind.INEXACT], [Kind.INEXACT]),
        ("......", "......", [], []),
    ],
)
def test_what_becomes_of_nuclei(
    true: str, predicted: str, of_true: list[Kind], of_predicted: list[Kind]
) -> None:
    assert kinds(true, predicted) == (of_true, of_predicted)


small_maps = hnp.arrays(np.uint16, (7, 9), elements=st.sampled_from([0, 0, 1, 2, 3, 7]))


@given(small_maps, small_maps)
def test_found_is_what_the_scores_count_and_every_nucleus_counts_once(true, predicted) -> None:
    agreement, scores = classify(true, predicted), score(true, predicted)
    counts = agreement.counts()

    assert sum(counts.values()) - counts[Kind.FALSE] == scores.true_count
    if scores.true_count:
        assert counts[Kind.FOUND] == round(scores.recall * scores.true_count)
    assert (agreement.predicted_kind == Kind.FOUND).sum() == counts[Kind.FOUND]
    # What errs by cutting or joining errs on both sides.
    for kind in (Kind.SPLIT, Kind.MERGED):
        if (agreement.true_kind == kind).any():
            assert np.isin(agreement.predicted_kind, [kind, Kind.FOUND]).any()
    assert Kind.FALSE not in agreement.true_kind
    assert Kind.MISSED not in agreement.predicted_kind


def test_counts_name_every_kind() -> None:
    agreement = classify(np.array([[1, 1, 0, 2]]), np.array([[1, 1, 5, 0]]))
    expected = {"found": 1, "missed": 1, "false": 1, "split": 0, "merged": 0, "inexact": 0}
    assert agreement.counts() == expected


# --- bootstrap -----------------------------------------------------------------------------------


def test_bootstrap_is_the_naive_one() -> None:
    values = [0.2, 0.5, 0.4, 0.9, 0.35]
    generator = np.random.default_rng(SEED)
    drawn = generator.integers(5, size=(RESAMPLES, 5))
    means = sorted(sum(values[i] for i in row) / 5 for row in drawn)

    def percentile(share: float) -> float:
        position = share * (len(means) - 1)
        below = int(position)
        return means[below] + (position - below) * (means[below + 1] - means[below])

    low, high = bootstrap_interval(values)
    assert low == pytest.approx(percentile(0.025))
    assert high == pytest.approx(percentile(0.975))


def test_bootstrap_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        low, high = bootstrap_interval(generator.normal(1, 1, 40))
        inside += low <= 1 <= high
    assert 0.88 < inside / 200 < 0.99


def test_bootstrap_leaves_out_what_is_not_known() -> None:
    # One image says nothing about others.
    assert np.isnan(bootstrap_interval([0.25, float("nan")])).all()
    assert np.isnan(bootstrap_interval([float("nan")])).all()
    assert bootstrap_interval([1.0, 2.0, 4.0]) == bootstrap_interval([1.0, 2.0, 4.0])


# --- instance maps -------------------------------------------------------------------------------


def test_the_first_of_overlapping_polygons_keeps_its_pixels() -> None:
    polygons = [shapely.box(0, 0, 2, 2), shapely.box(1, 1, 4, 3)]
    expected = [[1, 1, 0, 0], [1, 1, 2, 2], [0, 2, 2, 2]]
    np.testing.assert_array_equal(label_map(polygons, (3, 4)), expected)
    assert not label_map([], (3, 4)).any()
