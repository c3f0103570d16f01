"""What cannot be done is refused before a model is measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from qpnuclei.errors import UsageError
from qpnuclei.evaluation.assessment import AssessmentOptions, assess
from qpnuclei.evaluation.datasets import read_folder
from tests.evaluation.images import write_folder


def test_several_networks_are_not_tuned(tmp_path: Path) -> None:
    fine, coarse = read_folder(write_folder(tmp_path / "set"))
    images = [replace(fine, mpp=0.25), replace(coarse, mpp=0.5)]
    stages: list[str] = []
    options = AssessmentOptions(device="cpu", tune=True)
    with pytest.raises(UsageError, match="several models, default-40x and default-20x"):
        assess(images, {}, options, lambda stage, *_: stages.append(stage))
    assert stages == []
