from pathlib import Path

import numpy as np
import pytest
from skimage.draw import disk

from qpnuclei.evaluation.classical import haematoxylin_attention
from qpnuclei.evaluation.datasets import read_folder
from qpnuclei.evaluation.metrics import mean_scores, score
from qpnuclei.nn.metadata import PostProcessing
from qpnuclei.segmentation.postprocess import segment_instances

MONUSEG = Path(__file__).resolve().parents[2] / "../shared/data/monuseg-train"


def test_attention_is_above_one_half_on_haematoxylin_only():
    rgb = np.full((80, 80, 3), (220, 150, 190), np.uint8)
    nucleus = np.zeros((80, 80), bool)
    nucleus[disk((40, 40), 12)] = True
    rgb[nucleus] = (80, 50, 130)

    attention = haematoxylin_attention(rgb, sigma_px=0)

    assert attention.dtype == np.float32
    np.testing.assert_array_equal(attention > 0.5, nucleus)


def test_an_image_of_one_colour_has_no_attention():
    assert haematoxylin_attention(np.full((20, 20, 3), 240, np.uint8)).max() == 0


@pytest.mark.shared
@pytest.mark.slow
def test_reproduces_the_known_floor_on_real_tissue():
    """An independent computation of the same method gave AJI 0.446 and Dice 0.753."""
    if not MONUSEG.is_dir():
        pytest.skip("needs ../shared/data/monuseg-train")
    scores = [
        score(
            image.read_labels(),
            segment_instances(haematoxylin_attention(image.read_image()), PostProcessing()),
        )
        for image in read_folder(MONUSEG, split="val")
    ]

    means = mean_scores(scores)

    assert means["AJI"] == pytest.approx(0.446, abs=0.015)
    assert means["ADC"] == pytest.approx(0.753, abs=0.01)
