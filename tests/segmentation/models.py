"""Models that the tests of this folder run."""

from __future__ import annotations

from pathlib import Path

import torch

from qpnuclei.models.checkpoint import save_model
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.student import StudentNet


def model_of(kind: str, folder: Path) -> str | Path:
    """The packaged model, or one of random weights and another make."""
    if kind == "default":
        return kind
    torch.manual_seed(0)
    metadata = ModelMetadata(name=kind, family="student", architecture={}, mpp=0.25)
    path = folder / f"{kind}.safetensors"
    save_model(path, StudentNet(), metadata)
    return path
