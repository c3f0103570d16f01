"""The classical baseline finds dark discs, and repeats its figures on real images."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from skimage.draw import disk

from qpnuclei.evaluation.classical import NAME, haematoxylin_attention, haematoxylin_nuclei
from qpnuclei.evaluation.formats import read_dataset
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.evaluation.metrics import score
from qpnuclei.evaluation.scoring import score_images
from tests.evaluation.images import painted
from tests.paths import SHARED

MONUSEG = SHARED / "data" / "monuseg-train"


def test_attention_is_above_one_half_on_haematoxylin_only() -> None:
    rgb = np.full((80, 80, 3), (220, 150, 190), np.uint8)
    nucleus = np.zeros((80, 80), bool)
    nucleus[disk((40, 40), 12)] = True
    rgb[nucleus] = (80, 50, 130)

    attention = haematoxylin_attention(rgb)

    assert attention.dtype == np.float32
    # A Gaussian of 1 px shifts the edge of a disc of 12 px by less than a pixel.
    inner, outer = np.zeros_like(nucleus), np.zeros_like(nucleus)
    inner[disk((40, 40), 11)] = outer[disk((40, 40), 13)] = True
    assert (attention[inner] > 0.5).all()
    assert (attention[~outer] <= 0.5).all()


def test_an_image_of_one_colour_has_no_attention() -> None:
    assert haematoxylin_attention(np.full((20, 20, 3), 240, np.uint8)).max() == 0


def test_discs_are_found() -> None:
    rgb, labels = painted(0)
    found = label_map(haematoxylin_nuclei(rgb, 0.25).polygons(), labels.shape)
    scores = score(labels, found)
    assert scores.F1 == 1
    assert scores.AJI > 0.8


@pytest.mark.parametrize("factor", [2, 4])
def test_other_resolutions_are_brought_to_that_of_the_post_processing(factor: int) -> None:
    rgb, _ = painted(0)
    large = cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    found = haematoxylin_nuclei(large, 0.25 / factor)
    # Area averages over blocks of equal pixels are these pixels again.
    same = haematoxylin_nuclei(rgb, 0.25)
    np.testing.assert_array_equal(found.vertices, same.vertices * factor)


def test_an_image_of_one_colour_has_no_nuclei() -> None:
    assert len(haematoxylin_nuclei(np.full((64, 64, 3), 230, np.uint8), 0.25)) == 0


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not MONUSEG.is_dir(), reason="the MoNuSeg images are not beside the checkout")
def test_its_figures_on_monuseg() -> None:
    _, images = read_dataset(MONUSEG, split="val")
    mean = score_images(NAME, haematoxylin_nuclei, images, 0.25).mean
    # An independent trial of the same recipe gave .446, .753 and .331.
    assert mean["AJI"] == pytest.approx(0.446, abs=0.01)
    assert mean["ADC"] == pytest.approx(0.753, abs=0.01)
    assert mean["PQ"] == pytest.approx(0.331, abs=0.01)
