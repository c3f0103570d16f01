"""The weights that come with the package."""

import numpy as np
import pytest
import torch

from qpnuclei.evaluation.classical import haematoxylin_attention
from qpnuclei.evaluation.datasets import read_folder
from qpnuclei.evaluation.metrics import score
from qpnuclei.models.checkpoint import load_model
from qpnuclei.models.metadata import PostProcessing
from qpnuclei.models.registry import resolve_model
from qpnuclei.models.student import StudentNet
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from tests.paths import SHARED

MONUSEG = SHARED / "data" / "monuseg-train"


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load("default", "cpu")


def test_says_what_it_is_and_where_it_comes_from(predictor):
    metadata = predictor.metadata

    assert (metadata.name, metadata.family, metadata.mpp) == ("default", "student", 0.25)
    assert metadata.data["labels"] == "none"
    assert "CC BY-NC-SA 4.0" in metadata.data["licence"]
    assert metadata.validation["images"] == 11


def test_costs_less_than_half_of_the_network_that_taught_it():
    """Multiply-adds of the convolutions per pixel, counted on what they are given."""
    network, _ = load_model(resolve_model("default"))

    assert _multiply_adds(network) < 0.5 * _multiply_adds(StudentNet())


def _multiply_adds(network):
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        total += module.weight.numel() * output.shape[2] * output.shape[3]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, 128, 128))
    return total / 128**2


def test_sees_nothing_on_glass(predictor):
    attention, _ = predictor.predict_image(np.full((96, 96, 3), 243, np.uint8))

    assert attention.max() < 0.2


@pytest.mark.shared
@pytest.mark.slow
def test_beats_the_classical_baseline_on_images_it_did_not_learn_from(predictor):
    """One vesicular, one crowded and one easy image of the validation split."""
    if not MONUSEG.is_dir():
        pytest.skip("needs ../shared/data/monuseg-train")
    names = ["TCGA-G9-6363-01Z-00-DX1", "TCGA-AY-A8YK-01A-01-TS1", "TCGA-DK-A2I6-01A-01-TS1"]
    gains = []
    for image in read_folder(MONUSEG, split="val", names=names):
        rgb, labels = image.read_image(), image.read_labels()
        attention, centre = predictor.predict_image(rgb)
        ours = segment_instances(attention, predictor.metadata.post_processing, centre)
        baseline = segment_instances(haematoxylin_attention(rgb), PostProcessing())
        gains.append(score(labels, ours).AJI - score(labels, baseline).AJI)

    assert min(gains) > 0
    assert np.mean(gains) > 0.08
