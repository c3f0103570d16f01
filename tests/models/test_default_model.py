"""The weights that come with the package."""

import numpy as np
import pytest
import torch

from qpnuclei.evaluation.classical import haematoxylin_attention
from qpnuclei.evaluation.datasets import read_folder
from qpnuclei.evaluation.metrics import score
from qpnuclei.evaluation.tuning import at_resolution
from qpnuclei.models.checkpoint import load_model
from qpnuclei.models.metadata import PostProcessing, model_hash, read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.models.student import StudentNet
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.scaling import scaled
from tests.paths import SHARED

MONUSEG = SHARED / "data" / "monuseg-train"


#: One vesicular, one crowded and one easy image of the validation split.
NAMES = ["TCGA-G9-6363-01Z-00-DX1", "TCGA-AY-A8YK-01A-01-TS1", "TCGA-DK-A2I6-01A-01-TS1"]


@pytest.fixture(scope="module")
def predictor():
    return Predictor.load("default", "cpu")


@pytest.fixture(scope="module")
def coarse():
    return Predictor.load("default-20x", "cpu")


@pytest.mark.parametrize(("name", "mpp"), [("default-40x", 0.25), ("default-20x", 0.5)])
def test_says_what_it_is_and_where_it_comes_from(name, mpp):
    metadata = read_metadata(resolve_model(name))

    assert (metadata.name, metadata.family, metadata.mpp) == (name, "student", mpp)
    assert metadata.data["labels"] == "none"
    assert "CC BY-NC-SA 4.0" in metadata.data["licence"]
    assert metadata.validation["images"] == 11


def test_the_open_model_learned_nothing_from_images_that_exclude_commercial_use():
    metadata = read_metadata(resolve_model("open-40x"))

    assert (metadata.name, metadata.family, metadata.mpp) == ("open-40x", "student", 0.25)
    assert metadata.data["labels"] == "none"
    assert "commercially" in metadata.data["licence"]
    # BreCaHAD, Oral OSCC, one slide of TCGA, OpenSlide's OS-1.
    allowed = ("100", "Normal_400x", "OSCC_400x", "TCGA-V5-A7RE", "OS-1")
    assert metadata.data["images"]
    assert all(name.startswith(allowed) for name in metadata.data["images"])


def test_costs_less_than_half_of_the_network_that_taught_it():
    """Multiply-adds of the convolutions per pixel, counted on what they are given."""
    network, _ = load_model(resolve_model("default"))

    assert _multiply_adds(network) < 0.5 * _multiply_adds(StudentNet())


def test_the_coarse_network_costs_half_on_the_same_tissue():
    networks = [load_model(resolve_model(name))[0] for name in ("default-20x", "default-40x")]
    coarse, fine = map(_multiply_adds, networks)

    assert coarse / 4 < 0.5 * fine  # a pixel of 0.5 µm is four of 0.25


def test_the_coarse_network_was_taught_by_the_fine_one():
    recipe = read_metadata(resolve_model("default-20x")).recipe

    fine = model_hash(resolve_model("default-40x"))
    assert (recipe["teacher_sha256"], recipe["start_sha256"]) == (fine, fine)


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


def test_sees_nothing_on_glass(predictor, coarse):
    for network in (predictor, coarse):
        attention, _ = network.predict_image(np.full((96, 96, 3), 243, np.uint8))

        assert attention.max() < 0.2


@pytest.mark.shared
@pytest.mark.slow
def test_beats_the_classical_baseline_on_images_it_did_not_learn_from(predictor):
    if not MONUSEG.is_dir():
        pytest.skip("needs ../shared/data/monuseg-train")
    gains = []
    for image in read_folder(MONUSEG, NAMES):
        rgb, labels = image.read_image(), image.read_labels()
        ours = _instances(predictor, rgb)
        baseline = segment_instances(haematoxylin_attention(rgb), PostProcessing())
        gains.append(score(labels, ours).AJI - score(labels, baseline).AJI)

    assert min(gains) > 0
    assert np.mean(gains) > 0.08


@pytest.mark.shared
@pytest.mark.slow
def test_the_coarse_network_holds_at_20x(coarse, predictor):
    """Against the fine one on the enlarged 20x images, which it replaces."""
    if not MONUSEG.is_dir():
        pytest.skip("needs ../shared/data/monuseg-train")
    images = at_resolution(read_folder(MONUSEG, NAMES), 0.25, 0.5)
    scores = {"coarse": [], "enlarged": []}
    for image in images:
        enlarged = _instances(predictor, scaled(image.rgb, 2))[::2, ::2]
        scores["enlarged"].append(score(image.labels, enlarged).AJI)
        scores["coarse"].append(score(image.labels, _instances(coarse, image.rgb)).AJI)

    means = {name: np.mean(values) for name, values in scores.items()}
    assert means["coarse"] > means["enlarged"] - 0.03
    assert means["coarse"] > 0.48


def _instances(predictor, rgb):
    attention, centre = predictor.predict_image(rgb)
    return segment_instances(attention, predictor.metadata.post_processing, centre)
