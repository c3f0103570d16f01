"""What the trainings of both families have in common."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qpnuclei.errors import NotFoundError
from qpnuclei.training.config import read_recipe
from qpnuclei.training.sources import Source
from qpnuclei.training.train import train_model


@pytest.mark.parametrize("recipe", ["student", "anchored"])
def test_labels_that_seem_to_mark_ignored_pixels_are_reported_once(
    recipe: str, dataset: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    validation = Path(shutil.copytree(dataset, tmp_path / "validation"))
    labels = np.asarray(Image.open(validation / "labels" / "c.png")).astype(np.uint16)
    labels[:50] = 65535
    Image.fromarray(labels).save(validation / "labels" / "c.png")
    missing = Source("missing.png", tmp_path / "missing.png", (0.25, 0.25), 512, 512)
    with pytest.raises(NotFoundError, match="missing"):
        train_model(
            read_recipe(recipe),
            [missing],
            tmp_path / "run",
            device=torch.device("cpu"),
            validation=validation,
            mpp=0.25,
        )
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len([message for message in warnings if "the label 65535" in message]) == 1
