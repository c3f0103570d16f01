import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from qpnuclei.evaluation.metrics import (
    foreground_dice,
    mean_scores,
    score,
)

# --- transcriptions of the definitions, pixel by pixel -------------------------------------------


def _pixels(labels: np.ndarray) -> dict[int, set[tuple[int, int]]]:
    """Each nucleus as the set of its pixels."""
    nuclei: dict[int, set[tuple[int, int]]] = {}
    for (y, x), label in np.ndenumerate(labels):
        if label:
            nuclei.setdefault(int(label), set()).add((y, x))
    return dict(sorted(nuclei.items()))


def _naive_aji(true: np.ndarray, predicted: np.ndarray) -> float:
    """As the authors' MATLAB code goes: every true nucleus takes its best, used or not."""
    truths, predictions = _pixels(true), _pixels(predicted)
    intersection, union = 0, 0
    used = set()
    for truth in truths.values():
        best, best_iou = None, 0.0
        for key, prediction in predictions.items():
            iou = len(truth & prediction) / len(truth | prediction)
            if iou > best_iou:
                best, best_iou = key, iou
        if best is None:
            union += len(truth)
        else:
            used.add(best)
            intersection += len(truth & predictions[best])
            union += len(truth | predictions[best])
    union += sum(len(p) for key, p in predictions.items() if key not in used)
    return intersection / union if union else 1.0


def _naive_ahd(true: np.ndarray, predicted: np.ndarray) -> float:
    farthest = []
    for truth in _pixels(true).values():
        overlapping = [p for p in _pixels(predicted).values() if truth & p]
        if overlapping:
            farthest.append(
                max(
                    max(min(np.hypot(y - v, x - u) for v, u in p) for y, x in truth)
                    for p in overlapping
                )
            )
    return float(np.mean(farthest)) if farthest else float("nan")


def _naive_ahd_within(true: np.ndarray, predicted: np.ndarray) -> float:
    farthest = []
    for truth in _pixels(true).values():
        common = [truth & p for p in _pixels(predicted).values() if truth & p]
        if common:
            farthest.append(
                max(
                    max(min(np.hypot(y - v, x - u) for v, u in c) for y, x in truth) for c in common
                )
            )
    return float(np.mean(farthest)) if farthest else float("nan")


def _naive_detection(true: np.ndarray, predicted: np.ndarray) -> tuple[int, int, int, float]:
    """True positives, false positives, false negatives, sum of the matched IoU."""
    truths, predictions = _pixels(true).values(), _pixels(predicted).values()
    ious = [len(t & p) / len(t | p) for t in truths for p in predictions]
    matched = [iou for iou in ious if iou > 0.5]
    hits = len(matched)
    return hits, len(predictions) - hits, len(truths) - hits, sum(matched)


small_maps = hnp.arrays(np.uint16, (7, 9), elements=st.sampled_from([0, 0, 0, 1, 2, 3, 7, 300]))


@given(small_maps, small_maps)
def test_agrees_with_the_definitions(true, predicted):
    scores = score(true, predicted)
    hits, false, missed, total_iou = _naive_detection(true, predicted)

    assert pytest.approx(_naive_aji(true, predicted)) == scores.AJI
    assert pytest.approx(_naive_ahd(true, predicted), nan_ok=True) == scores.AHD
    assert pytest.approx(_naive_ahd_within(true, predicted), nan_ok=True) == scores.AHD_within
    assert scores.true_count == hits + missed
    assert scores.predicted_count == hits + false
    if hits + false + missed:
        assert pytest.approx(total_iou / (hits + 0.5 * false + 0.5 * missed)) == scores.PQ
        assert scores.F1 == scores.DQ == pytest.approx(2 * hits / (2 * hits + false + missed))
    if hits + false:
        assert scores.precision == pytest.approx(hits / (hits + false))
    if hits + missed:
        assert scores.recall == pytest.approx(hits / (hits + missed))
        assert scores.count_error == pytest.approx((false - missed) / (hits + missed))
    foreground = (true > 0).sum() + (predicted > 0).sum()
    if foreground:
        both = ((true > 0) & (predicted > 0)).sum()
        assert pytest.approx(2 * both / foreground) == scores.ADC


@given(small_maps)
def test_a_map_agrees_fully_with_itself_whatever_its_numbers(labels):
    renumbered = np.where(labels > 0, 1000 - labels.astype(int), 0)

    scores = score(labels, renumbered)

    assert (scores.AJI, scores.ADC, scores.PQ, scores.F1) == (1, 1, 1, 1)
    assert scores.AHD == 0 or not labels.any()


def test_aji_takes_a_prediction_for_every_true_nucleus_that_it_suits_best():
    true = np.array([[1, 1, 2, 2]])
    predicted = np.array([[5, 5, 5, 5]])

    # Both true nuclei take the merged prediction: twice 2 px of an intersection over twice 4 px.
    assert score(true, predicted).AJI == 4 / 8


def test_aji_counts_predictions_that_nobody_took_in_the_denominator():
    true = np.array([[1, 1, 1, 1, 0, 0]])
    predicted = np.array([[2, 2, 2, 3, 0, 4]])

    # Nucleus 1 takes prediction 2: 3 px of 4. Predictions 3 and 4 add one px each.
    assert score(true, predicted).AJI == 3 / (4 + 1 + 1)


def test_ahd_is_directed_and_takes_the_worst_overlapping_prediction():
    true = np.array([[1, 1, 1, 1, 1]])
    predicted = np.array([[2, 0, 0, 0, 3]])

    # From the far end of the nucleus, 4 px to the only pixel of prediction 2, and so for 3.
    assert score(true, predicted).AHD == 4
    # The other way round each prediction lies in the nucleus.
    assert score(predicted, true).AHD == 0


@pytest.mark.parametrize("seed", range(20))
def test_ahd_is_that_of_distances_in_the_whole_image(seed):
    # Predictions are far larger than the nuclei, and lie mostly outside of them.
    rng = np.random.default_rng(seed)
    true, predicted = np.zeros((2, 24, 24), int)
    for label in (1, 2, 3):
        y, x = rng.integers(0, 20, 2)
        true[y : y + rng.integers(1, 5), x : x + rng.integers(1, 5)] = label
    predicted[rng.random(predicted.shape) < 0.2] = 1
    predicted[:, 12:][rng.random((24, 12)) < 0.1] = 2
    farthest = []
    for label in set(true[true > 0]):
        nucleus = true == label
        overlapping = set(predicted[nucleus]) - {0}
        distances = [ndimage.distance_transform_edt(predicted != p)[nucleus] for p in overlapping]
        farthest += [max(d.max() for d in distances)] if distances else []
    expected = np.mean(farthest) if farthest else np.nan
    found = score(true, predicted).AHD
    assert found == pytest.approx(expected, nan_ok=True)


def test_ahd_within_does_not_see_what_lies_beyond_the_nucleus():
    true = np.array([[1, 1, 1, 0], [0, 0, 1, 0]])
    predicted = np.array([[2, 0, 0, 0], [2, 2, 0, 0]])

    # The prediction's px (1, 1) is 1 px from the nucleus' far px (1, 2), but outside of it: from
    # there to the common px (0, 0) it is the root of 5.
    scores = score(true, predicted)
    assert pytest.approx(np.sqrt(2)) == scores.AHD
    assert scores.AHD_within == pytest.approx(np.sqrt(5))


def test_an_iou_of_exactly_one_half_is_no_match():
    assert score(np.array([[1, 1]]), np.array([[1, 0]])).F1 == 0


def test_nothing_to_find_and_nothing_found_is_perfect():
    nothing = np.zeros((3, 3), np.uint16)

    scores = score(nothing, nothing)

    assert (scores.AJI, scores.ADC, scores.PQ, scores.precision, scores.recall) == (1, 1, 1, 1, 1)
    assert np.isnan(scores.AHD)
    assert np.isnan(scores.count_error)


@pytest.mark.parametrize("swap", [False, True])
def test_everything_missed_or_everything_false_is_zero(swap):
    nothing, something = np.zeros((2, 2), int), np.ones((2, 2), int)
    pair = (something, nothing) if swap else (nothing, something)

    scores = score(*pair)

    assert (scores.AJI, scores.ADC, scores.PQ, scores.SQ) == (0, 0, 0, 0)
    assert (scores.precision, scores.recall) == (0, 0)


@pytest.mark.parametrize(
    ("true", "predicted", "message"),
    [
        (np.zeros((2, 2), int), np.zeros((2, 3), int), "differ in shape"),
        (np.zeros((2, 2)), np.zeros((2, 2), int), "true must be a 2-D integer array, not float64"),
        (np.zeros((2, 2), int), np.full((2, 2), -1), "predicted has the negative label -1"),
        (np.zeros(4, int), np.zeros(4, int), "2-D"),
    ],
)
def test_what_is_no_pair_of_instance_maps_is_refused(true, predicted, message):
    with pytest.raises(ValueError, match=message):
        score(true, predicted)


def test_dice_of_masks_of_different_shape_is_refused():
    with pytest.raises(ValueError, match="differ in shape"):
        foreground_dice(np.zeros((2, 2), int), np.zeros((4, 1), int))


def test_mean_leaves_out_what_an_image_does_not_have():
    empty = np.zeros((1, 2), int)
    full = np.array([[1, 1]])
    images = [score(empty, empty), score(full, full), score(full, empty)]

    means = mean_scores(images)

    assert means["AJI"] == pytest.approx(2 / 3)
    assert means["AHD"] == 0  # only the second image has one
    assert means["count_error"] == pytest.approx(-0.5)  # of the second and the third
    with pytest.raises(ValueError, match="no images"):
        mean_scores([])
