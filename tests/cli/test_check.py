"""`run` and `export` say what is doubtful, and the doubt stays with the image."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import tifffile
import torch
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.models.attention import AttentionNet
from qpnuclei.models.checkpoint import save_model
from qpnuclei.models.metadata import ModelMetadata
from tests.cli.conftest import Outcome
from tests.pipeline.inference.test_plausibility import painted


@pytest.fixture
def project(tmp_path: Path, qpnuclei: Callable[..., Outcome]) -> Path:
    slide = tmp_path / "painted.tif"
    rgb, _ = painted()
    tifffile.imwrite(slide, rgb, photometric="rgb", tile=(256, 256))
    folder = tmp_path / "project"
    made = qpnuclei("project", "create", folder, slide, "--mpp", 0.25)
    assert made.exit_code == 0
    return folder


@pytest.fixture
def blind(tmp_path: Path) -> Path:
    """A model that finds nothing, whatever it sees."""
    architecture = {"width": 4, "dilations": [1, 2]}
    torch.manual_seed(0)
    network = AttentionNet(width=4, dilations=[1, 2])
    metadata = ModelMetadata(
        name="blind", family="attention", architecture=architecture, mpp=0.5, tau=1e6
    )
    path = tmp_path / "blind.safetensors"
    save_model(path, network, metadata)
    return path


def test_a_model_that_finds_nothing_is_doubted_everywhere(
    project: Path, blind: Path, tmp_path: Path
) -> None:
    command = ["run", str(project), "--tissue", "--device", "cpu", "--quiet", "--no-report"]

    result = CliRunner().invoke(app, [*command, "--backend", "native", "--model", str(blind)])

    assert result.exit_code == 0
    (said,) = [line for line in result.stderr.splitlines() if line.startswith("doubtful:")]
    assert "painted.tif: in the fields compared, 0 nuclei where the stain shows" in said
    assert "likely cause: a model that does not suit this tissue" in said
    record = json.loads(next((project / "qpnuclei").glob("*/run.json")).read_text())
    (image,) = record["images"]
    (region,) = image["regions"]
    assert image["check"] == region["check"]
    assert image["check"] in said
    for by in ("annotation", "class", "image"):
        table = tmp_path / f"{by}.json"
        exported = CliRunner().invoke(
            app, ["export", str(project), "-o", str(table), "--by", by, "--backend", "native"]
        )
        assert exported.exit_code == 0
        assert "doubtful: 1 of them; the column check gives the reason" in exported.stderr
        (row,) = json.loads(table.read_text())
        assert row["check"] == image["check"]
        assert (row["status"], row["nuclei"]) == ("analysed", 0)
