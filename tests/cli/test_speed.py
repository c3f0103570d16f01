"""The pixel size of an image or `--speed fast` chooses its network, which the record names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from typer.testing import CliRunner, Result

from qpnuclei import create_project
from qpnuclei.cli.app import app
from qpnuclei.errors import UsageError
from tests.segmentation.onnx_models import dark_in_onnx

RUN = ("--tissue", "--device", "cpu", "--quiet")


def write_tissue(path: Path, mpp: float) -> None:
    """Write 64 µm of tissue with two nuclei of 8 µm, as a TIFF that knows its pixel size."""
    y, x = np.mgrid[: round(64 / mpp), : round(64 / mpp)] * mpp
    rgb = np.full((*y.shape, 3), (235, 200, 225), np.uint8)
    for centre in ((20, 20), (40, 43)):
        rgb[np.hypot(y - centre[0], x - centre[1]) < 4] = (90, 60, 140)
    per_cm = (1e4 / mpp, 1e4 / mpp)
    tifffile.imwrite(
        path, rgb, photometric="rgb", resolution=per_cm, resolutionunit="CENTIMETER", tile=(64, 64)
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    slides = {"fine.tif": 0.25, "coarse.tif": 0.5, "between.tif": 0.36}
    for name, mpp in slides.items():
        write_tissue(tmp_path / name, mpp)
    return create_project(tmp_path / "project", [tmp_path / name for name in slides]).path


def qpnuclei(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result


def record_of(project: Path) -> dict[str, Any]:
    (path,) = sorted((project.parent / "qpnuclei").glob("*/run.json"))[-1:]
    record: dict[str, Any] = json.loads(path.read_text())
    return record


def test_each_image_has_the_network_of_its_pixel_size(project: Path) -> None:
    shown = json.loads(qpnuclei("run", project, *RUN, "--dry-run", "--json").stdout)["plan"]
    assert [(image["model"], image["working_mpp"][0]) for image in shown] == [
        ("default-40x", pytest.approx(0.25, rel=0.01)),
        ("default-20x", pytest.approx(0.5, rel=0.01)),
        ("default-40x", pytest.approx(0.25, rel=0.01)),
    ]

    done = qpnuclei("run", project, *RUN[:-1])

    assert "network: default-40x and default-20x on cpu" in " ".join(done.stderr.split())
    record = record_of(project)
    assert [image["model"] for image in record["images"]] == [image["model"] for image in shown]
    assert [image["nuclei"] for image in record["images"]] == [2, 2, 2]
    assert [(m["name"], m["mpp"]) for m in record["models"]] == [
        ("default-40x", 0.25),
        ("default-20x", 0.5),
    ]
    page = next((project.parent / "qpnuclei").glob("*/report.html")).read_text()
    assert all(model["sha256"] in page for model in record["models"])
    assert "The pixel size of an image decided which of these models it was given" in page


def test_fast_is_the_coarse_network_for_all_and_other_units(project: Path) -> None:
    assert qpnuclei("plan", project, "--tissue", "--quiet", "--speed", "fast").exit_code == 0
    folder = next((project.parent / "qpnuclei").iterdir())
    plan = json.loads((folder / "plan.json").read_text())
    assert list(plan["engines"]) == ["default-20x"]
    assert plan["arguments"]["speed"] == "fast"

    qpnuclei("infer", folder, "--device", "cpu", "--quiet")
    qpnuclei("commit", folder, "--quiet")

    record = record_of(project)
    assert {image["model"] for image in record["images"]} == {"default-20x"}
    assert [image["nuclei"] for image in record["images"]] == [2, 2, 2]
    # Another network is another run.
    qpnuclei("plan", project, "--tissue", "--quiet")
    assert len(list((project.parent / "qpnuclei").glob("*/plan.json"))) == 2


@pytest.mark.parametrize("named", [{"name": "Dark nuclei"}, {}])
def test_the_model_of_an_image_is_one_of_the_models_of_the_record(
    project: Path, tmp_path: Path, named: dict[str, str]
) -> None:
    model = dark_in_onnx(tmp_path, **named)
    folder = tmp_path / "run"
    run = ("run", project, *RUN, "--model", model, "--run-dir", folder)
    name = named.get("name", "model")
    for resumed, command in enumerate([run, ("commit", folder)]):
        done = json.loads(qpnuclei(*command, "--no-report", "--json").stdout)
        assert done["resumed"] == 3 * resumed
        assert [m["name"] for m in done["models"]] == [name]
        assert [image["model"] for image in done["images"]] == [name] * 3


def test_a_named_network_takes_all_images(project: Path) -> None:
    for model in ("default-40x", "default-20x"):
        arguments = ("run", project, *RUN, "--dry-run", "--json", "--model", model)
        shown = json.loads(qpnuclei(*arguments).stdout)["plan"]
        assert {image["model"] for image in shown} == {model}


@pytest.mark.parametrize("command", ["run", "preview"])
def test_speed_is_of_the_default_model_only(project: Path, command: str) -> None:
    arguments = (command, project, "--tissue", "--speed", "fast", "--model", "default-40x")

    with pytest.raises(UsageError, match="--speed fast chooses a network of the default model"):
        qpnuclei(*arguments)
