from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from qpnuclei.errors import FormatError
from qpnuclei.evaluation.tuning import read_validation
from qpnuclei.models.attention import AttentionNet
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.training.attention.validation import pixel_auc, validate


def test_pixel_auc_by_hand() -> None:
    # Of the 2 x 2 pairs, nucleus lies above background in 3: (.9, .1), (.9, .5), (.4, .1).
    mask = np.array([[True, True, False, False]])
    assert pixel_auc(np.array([[0.9, 0.4, 0.1, 0.5]]), mask) == 0.75
    assert pixel_auc(np.array([[0.5, 0.5, 0.5, 0.5]]), mask) == 0.5  # ties count half
    assert np.isnan(pixel_auc(np.zeros((1, 2)), np.zeros((1, 2), bool)))


def test_only_the_validation_split_is_read(dataset: Path) -> None:
    (image,) = read_validation(dataset, 0.25, 0.25)
    assert image.name == "c"
    assert image.rgb.shape == (400, 400, 3)
    assert len(np.unique(image.labels)) > 20  # discs, and the background


def test_image_and_labels_are_brought_to_the_models_resolution(dataset: Path) -> None:
    (fine,) = read_validation(dataset, 0.25, 0.25)
    (image,) = read_validation(dataset, 0.25, 0.5)
    assert image.rgb.shape == (200, 200, 3)
    assert image.labels.shape == (200, 200)
    assert (image.labels > 0).mean() == pytest.approx((fine.labels > 0).mean(), abs=0.01)


def test_labels_of_another_size(tmp_path: Path, dataset: Path) -> None:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    (tmp_path / "images" / "a.png").write_bytes((dataset / "images" / "a.png").read_bytes())
    np.save(tmp_path / "labels" / "a.npy", np.zeros((10, 10), np.int32))
    with pytest.raises(FormatError, match=r"a\.npy: nuclei on 10 x 10 px do not fit"):
        read_validation(tmp_path, 0.25, 0.25)


def test_validation_leaves_the_network_in_training_mode(dataset: Path) -> None:
    network = AttentionNet(4, dilations=(1,)).train()
    metadata = ModelMetadata(
        name="t", family="attention", architecture={}, mpp=0.5, tau=0.0, sigmoid_gain=1.0
    )
    images = read_validation(dataset, 0.25, 0.5)
    found = validate(network, metadata, images, torch.device("cpu"))
    assert network.training
    assert 0 <= found["dice"] <= 1
    assert 0 <= found["pixel_auc"] <= 1
