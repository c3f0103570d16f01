"""The small model that ``--model light`` asks for."""

import numpy as np
import pytest
import torch

from qpnuclei.models.checkpoint import load_model
from qpnuclei.models.metadata import model_hash, read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.segmentation.predictor import Predictor
from tests.paths import ROOT


@pytest.fixture(scope="module")
def metadata():
    return read_metadata(resolve_model("light"))


def test_says_what_it_is_and_who_taught_it(metadata):
    assert (metadata.name, metadata.family, metadata.mpp) == ("light", "student", 0.25)
    assert metadata.recipe["teacher"] == "default"
    assert len(metadata.recipe["teacher_sha256"]) == 64
    assert metadata.data["labels"] == "none"
    assert "CC BY-NC-SA 4.0" in metadata.data["licence"]


@pytest.mark.parametrize("measure", ["AJI", "ADC"])
def test_is_as_good_as_the_default_model_on_images_like_those_it_learnt_from(metadata, measure):
    """On the same images, as the README says."""
    default = read_metadata(resolve_model("default"))

    assert metadata.validation["images"] == default.validation["images"]
    assert metadata.validation["mean"][measure] >= default.validation["mean"][measure] - 0.01


def test_costs_less_than_half_of_the_default_model():
    """Multiply-adds of the convolutions per pixel, counted on what they are given."""
    assert _multiply_adds("light") < 0.5 * _multiply_adds("default")


def test_sees_nothing_on_glass():
    glass = np.full((96, 96, 3), 243, np.uint8)

    attention, _ = Predictor.load("light", "cpu").predict_image(glass)

    assert attention.max() < 0.2


def _multiply_adds(model: str) -> float:
    network, _ = load_model(resolve_model(model))
    total = 0

    def count(module, _inputs, output):
        nonlocal total
        total += module.weight.numel() * output.shape[2] * output.shape[3]

    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    with torch.inference_mode():
        network(torch.zeros(1, 3, 128, 128))
    return total / 128**2


def test_the_model_card_names_the_teacher(metadata):
    card = (ROOT / "training/model-cards/light.md").read_text(encoding="utf-8")

    assert metadata.recipe["teacher_sha256"] == model_hash(resolve_model("default"))
    assert metadata.recipe["teacher_sha256"][:12] in card
