"""The pseudo-labels of a student without a teacher, at any resolution."""

from __future__ import annotations

from typing import cast

import numpy as np
import numpy.typing as npt
import pytest
from skimage.draw import disk

from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.stains import DEFAULT_HE
from qpnuclei.training.student.pseudo_labels import centre_map, haematoxylin_votes
from qpnuclei.training.student.recipe import student_recipe
from qpnuclei.training.student.self_training import (
    STUDENT_INSTANCES,
    VOTE_INSTANCES,
    instances_at,
    labels_from_model,
    labels_from_vote,
)

COARSE = student_recipe({"name": "tiny", "mpp": 0.5})


class Knowing:
    """Stands in for the student of the round before: it knows where the nuclei are."""

    def __init__(self, labels: npt.NDArray[np.int32]) -> None:
        self._labels = labels

    def predict_image(self, rgb: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float32], ...]:
        assert rgb.shape[:2] == self._labels.shape
        return (self._labels > 0).astype(np.float32), centre_map(self._labels)


def small_nucleus() -> npt.NDArray[np.int32]:
    """Return one of about 10 µm² at 0.5 µm/px: 37 px, which is more than `min_area_um2`."""
    labels = np.zeros((64, 64), np.int32)
    labels[disk((32, 32), 3.6)] = 1
    assert (labels > 0).sum() * COARSE.mpp**2 == pytest.approx(10, rel=0.1)
    return labels


def test_a_student_of_coarse_pixels_teaches_small_nuclei_too() -> None:
    labels = small_nucleus()
    rgb = np.zeros((64, 64, 3), np.uint8)
    vote = (labels > 0).astype(np.float32)

    known = labels_from_model(cast(Predictor, Knowing(labels)), rgb, vote, COARSE)

    assert known.labels[32, 32] == known.labels.max() == 1
    assert (known.labels > 0).sum() == pytest.approx((labels > 0).sum(), rel=0.2)
    assert known.weight[32, 32] == 1


def test_a_vote_of_coarse_pixels_teaches_small_nuclei_too() -> None:
    labels = small_nucleus()
    rgb = np.full((64, 64, 3), (220, 150, 190), np.uint8)
    rgb[labels > 0] = (80, 50, 130)
    (vote,) = haematoxylin_votes([rgb], DEFAULT_HE)

    known = labels_from_vote(rgb, vote, DEFAULT_HE, COARSE)

    assert known.labels[32, 32] == known.labels.max() == 1
    assert known.weight[32, 32] == 1


def test_candidates_are_found_in_the_same_sizes_at_every_resolution() -> None:
    for parameters in (VOTE_INSTANCES, STUDENT_INSTANCES):
        assert instances_at(parameters, 0.25) == parameters
    coarse = instances_at(VOTE_INSTANCES, 0.5)
    assert (coarse.smoothing_sigma_px, coarse.maxima_radius_px, coarse.min_area_px) == (1, 5, 15)
