"""What cannot be done is refused before a model is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.evaluation.datasets import read_folder
from qpnuclei.evaluation.evaluate import EvaluationOptions, evaluate_model
from qpnuclei.models.checkpoint import save_model
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.student import StudentNet
from tests.evaluation.images import write_folder


def test_several_networks_are_not_tuned(tmp_path: Path) -> None:
    fine, coarse = read_folder(write_folder(tmp_path / "set"))
    images = [replace(fine, mpp=0.25), replace(coarse, mpp=0.5)]
    stages: list[str] = []
    options = EvaluationOptions(device="cpu", tune=True)
    with pytest.raises(UsageError, match="several models, default-40x and default-20x"):
        evaluate_model(images, {}, options, lambda stage, *_: stages.append(stage))
    assert stages == []


def test_figures_are_not_lost_with_a_model_that_cannot_be_written(tmp_path: Path) -> None:
    (image, _) = read_folder(write_folder(tmp_path / "set"))
    architecture = {"base_channels": 4, "levels": 2, "max_channels": 4}
    model = tmp_path / "tiny.safetensors"
    metadata = ModelMetadata(name="tiny", family="student", architecture=architecture, mpp=0.25)
    save_model(model, StudentNet(**architecture), metadata)
    folder = tmp_path / "models"
    options = EvaluationOptions(
        str(model), mpp=0.25, device="cpu", tune=True, write_model=folder / "m.safetensors"
    )

    with pytest.raises(UsageError, match="is the model itself, and would be lost"):
        evaluate_model([image], {}, replace(options, write_model=model))

    def progress(stage: str, *_: object) -> None:
        if stage == "tuning":
            folder.touch()

    described = {"path": "set", "format": "folder", "split": None}
    report = evaluate_model([image], described, options, progress)

    assert report.result.name.endswith(", tuned")
    assert len(report.others) == 2
    assert report.unwritten is not None
    assert f"{folder} is not a folder" in str(report.unwritten)
    assert any("is missing: " in note for note in report.notes)
