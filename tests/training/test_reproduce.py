from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace
from PIL import Image
from typer.testing import CliRunner

from qpnuclei.cli.app import app
from qpnuclei.models.checkpoint import load_model, save_model
from tests.paths import ROOT, SHARED

SCRIPT = ROOT / "training" / "reproduce.py"

#: A recipe as small as recipes can be: this is about the bookkeeping, not about nuclei.
TINY = [
    *(
        "dilations=[1,2]",
        "scale_network=resnet10",
        "scale_width=4",
        "scales=[0.25,0.5]",
        "tile_px=112",
        "crop_px=64",
    ),
    *("batch_size=4", "batches_per_epoch=1", "epochs=2", "starts=1"),
]


@pytest.fixture(scope="module")
def reproduce() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reproduce", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["reproduce"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def table(reproduce: ModuleType, slides: int = 0, **changes: object) -> str:
    runs = [
        run(reproduce, "proposed", 0, AJI=0.2),
        run(reproduce, "proposed", 1, AJI=0.4),
        run(reproduce, "anchored", 0, AJI=0.45),
    ]
    fields = {
        "runs": runs,
        "floor": {"AJI": 0.446, "AHD_within": 9.5, "ADC": 0.753},
        "size": "small",
        "images": 11,
        "slides": slides,
        "tissue": [],
        "settings": [],
        "machine": "cpu",
    }
    return str(reproduce.Table(**(fields | changes)).to_markdown())


def run(reproduce: ModuleType, recipe: str, seed: int, **mean: float | None) -> object:
    scores = {"AJI": 0.3, "AHD_within": 10.0, "ADC": 0.6} | mean
    interval = {"AJI": [0.1, 0.5], "AHD_within": None, "ADC": [0.4, 0.8]}
    return reproduce.Run(recipe, seed, 3, scores, interval, -0.25, 0.31, 0.29, 90.0, "abc1234")


def line(markdown: str, start: str) -> list[str]:
    (found,) = [row for row in markdown.splitlines() if row.startswith(f"| {start} |")]
    return [cell.strip() for cell in found.split("|")[1:-1]]


@pytest.mark.parametrize("seeds", ["0", "-1", "two"])
def test_a_table_without_a_run_is_not_asked_for(
    reproduce: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], seeds: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        reproduce.main([str(tmp_path), "--seeds", seeds])
    assert caught.value.code == 2
    assert f"argument --seeds: '{seeds}' is not a number of 1 or more" in capsys.readouterr().err


def test_a_line_has_mean_and_range_over_seeds_beside_the_papers(reproduce: ModuleType) -> None:
    assert line(table(reproduce), "M_proposed") == [
        *("M_proposed", "0.300 (0.200 to 0.400)", "10.00 (10.00 to 10.00)"),
        *("0.600 (0.600 to 0.600)", "0.535", "7.75", "0.748"),
        *("-0.25 (-0.25 to -0.25)", "0.31 (0.31 to 0.31)", "0.29 (0.29 to 0.29)"),
    ]


def test_what_is_ours_has_no_figures_of_the_paper(reproduce: ModuleType) -> None:
    assert line(table(reproduce), "anchored (ours)")[1:7] == ["0.450", "10.00", "0.600", *"–––"]


def test_without_slides_m_wsi_and_m_proposed_are_the_same_runs(reproduce: ModuleType) -> None:
    markdown = table(reproduce)
    assert line(markdown, "M_-WSI")[1:4] == line(markdown, "M_proposed")[1:4]
    assert "No whole slides were given" in markdown
    with_slides = table(reproduce, slides=2)
    assert line(with_slides, "M_-WSI")[1:4] == ["–"] * 3
    assert "No whole slides were given" not in with_slides


def test_a_model_that_finds_no_nucleus_has_no_distance(reproduce: ModuleType) -> None:
    runs = [run(reproduce, "no-sparse", 0, AHD_within=None, AJI=0.0)]
    assert line(table(reproduce, runs=runs), "M_-sparse")[1:4] == ["0.000", "–", "0.600"]


@pytest.mark.shared
def test_the_papers_figures_are_those_of_its_table_1(reproduce: ModuleType) -> None:
    text = SHARED / "docs" / "paper.txt"
    cells = [line.split("\t")[1:] for line in text.read_text(encoding="utf-8").splitlines()]
    rows = [row[1:] for row in cells if row and "M_" in row[0]]
    # The later ones are M_proposed on the other data sets.
    published = [tuple(float(cell) for cell in row) for row in rows[:5]]
    assert published == [row.paper for row in reproduce.ROWS if row.paper]


def test_data_without_splits_is_refused(
    reproduce: ModuleType, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert reproduce.main([str(tmp_path)]) == 2
    assert "has no splits.json" in caplog.text


def test_no_wsi_needs_whole_slides(
    reproduce: ModuleType, dataset: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert reproduce.main([str(dataset), "--recipes", "no-wsi"]) == 2
    assert "name proposed, too" in caplog.text


@pytest.mark.slow
def test_the_recipes_named_are_trained_measured_and_not_trained_again(
    reproduce: ModuleType,
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[bytes]:
        # In this process, which has torch already.
        assert command[:3] == [sys.executable, "-m", "qpnuclei"]
        result = CliRunner().invoke(app, command[3:], catch_exceptions=False)
        return subprocess.CompletedProcess(command, result.exit_code)

    monkeypatch.setattr(
        reproduce, "subprocess", SimpleNamespace(run=run, DEVNULL=subprocess.DEVNULL)
    )
    arguments = [str(dataset), "--width", "4", "--seeds", "1", "--device", "cpu"]
    arguments += ["--recipes", "anchored", "no-smooth"]
    tissue = shutil.copytree(dataset / "images", tmp_path / "tissue")
    Image.new("RGB", (300, 300), "white").save(tissue / "glass.png")
    arguments += ["--tissue", f"{tissue}=0.3"]
    arguments += ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    settings = [part for setting in TINY for part in ("--set", setting)]
    assert reproduce.main([*arguments, *settings]) == 0, caplog.text
    written = (tmp_path / "results" / "table1.md").read_text(encoding="utf-8")
    assert capsys.readouterr().out == written
    content = json.loads((tmp_path / "results" / "table1.json").read_text(encoding="utf-8"))
    assert [made["recipe"] for made in content["runs"]] == ["no-smooth", "anchored"]
    for made in content["runs"]:
        folder = tmp_path / "runs" / "width-4" / f"{made['recipe']}-seed-0"
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        assert made["mean"]["AJI"] == report["mean"]["AJI"]
        assert "F of 4 channels at half resolution (of images enlarged 1.5 times" in written
        assert "G a resnet10 (scratch); 2 epochs" in written
        learned_from = load_model(folder / "model.safetensors")[1].data["images"]
        assert learned_from
        assert "glass.png" not in learned_from
    assert "Patches of further tissue were learned from, too: tissue." in written
    commands = caplog.text.count("$ qpnuclei")
    assert reproduce.main([*arguments, *settings]) == 0
    assert caplog.text.count("$ qpnuclei") == commands  # nothing was run again
    assert reproduce.main([*arguments, *settings, "--set", "eta=0.3"]) == 2
    assert "was made with eta" in caplog.text
    assert reproduce.main([*arguments, *settings, "--set", "model_scale=0.2"]) == 2
    assert "was made with model_scale" in caplog.text
    without = [a for a in arguments if a != "--tissue" and not a.endswith("=0.3")]
    assert reproduce.main([*without, *settings]) == 2
    assert "learned from other images" in caplog.text
    model = tmp_path / "runs" / "width-4" / "anchored-seed-0" / "model.safetensors"
    network, metadata = load_model(model)
    older = {key: value for key, value in metadata.recipe.items() if key != "views"}
    save_model(model, network, replace(metadata, recipe=older))
    assert reproduce.main([*arguments, *settings]) == 2
    assert "made by a former version: model.safetensors does not state views" in caplog.text
