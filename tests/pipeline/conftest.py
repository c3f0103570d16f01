from __future__ import annotations

from pathlib import Path

import pytest

from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from tests.segmentation.onnx_models import dark_in_onnx


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunOptions:
    """Options of a run with a small network that is loaded quickly, and with small units."""
    monkeypatch.setattr("qpnuclei.pipeline.planning.layout.UNIT_SIDE", 1)
    return RunOptions(
        Selection(classes=("Tumor",)),
        model=dark_in_onnx(tmp_path, mpp=0.25),
        device="cpu",
        tile_px=128,
        max_nucleus_um=8.0,
        workers=1,
    )
