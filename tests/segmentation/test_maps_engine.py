from __future__ import annotations

import importlib.metadata
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path

import numpy as np
import pytest
import shapely
import torch
from msgspec.structs import replace

from qpnuclei.errors import NotFoundError, UsageError
from qpnuclei.models.attention import AttentionNet
from qpnuclei.models.checkpoint import save_model
from qpnuclei.models.metadata import ModelMetadata, model_hash
from qpnuclei.models.registry import resolve_model
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.selection import Selection
from qpnuclei.segmentation.engine import (
    EngineOptions,
    absolute_model,
    engine_spec,
    engines,
    load_engine,
    split_model,
    views_of,
)
from qpnuclei.segmentation.maps_engine import MapsEngine, _assemble, _View
from qpnuclei.system.timing import Stopwatch
from qpnuclei.tiling.box import Box
from qpnuclei.tiling.plan import TilePlan
from tests.segmentation.models import model_of

PICTURE = np.random.default_rng(5).integers(0, 256, (64, 96, 3), dtype=np.uint8)


def read(box: Box) -> np.ndarray:
    """Give the picture, which repeats itself over the whole plane."""
    y, x = np.arange(box.y0, box.y1) % 64, np.arange(box.x0, box.x1) % 96
    return PICTURE[np.ix_(y, x)]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["default", "concatenating"])
def test_labels_and_scores_do_not_depend_on_workers_or_threads(
    kind: str, precision: str, tmp_path: Path
) -> None:
    model = str(model_of(kind, tmp_path))
    plan = TilePlan(shapely.box(0, 0, 168, 112), (168, 112), 56, 16, alignment=8)
    before = torch.get_num_threads()
    results = []
    try:
        for workers, threads in ((1, 1), (2, 3), (7, 2)):
            torch.set_num_threads(threads)
            options = EngineOptions("cpu", precision=precision, workers=workers)
            engine = load_engine(model, options)
            results.append(list(engine.segment(read, plan, None, Stopwatch())))
    finally:
        torch.set_num_threads(before)
    assert len(results[0]) == len(plan)
    for other in results[1:]:
        for one, same in zip(results[0], other, strict=True):
            assert one.tile == same.tile
            np.testing.assert_array_equal(one.labels, same.labels)
            for name, score in one.scores.items():
                np.testing.assert_array_equal(score.levels, same.scores[name].levels)


def test_the_spec_is_that_of_the_loaded_network(tmp_path: Path) -> None:
    for kind in ("default", "concatenating"):
        model = str(model_of(kind, tmp_path))
        engine = load_engine(model, EngineOptions("cpu"))
        assert engine.spec == engine_spec(model)
        assert isinstance(engine, MapsEngine)
        assert engine.spec.context_px == engine.predictor.receptive_radius_px
        assert engine.spec.margin_px % engine.spec.stride == 0


def test_engines_are_found_by_name() -> None:
    assert "maps" in engines()
    assert split_model("maps:default") == ("maps", "default")
    assert engine_spec("maps:default") == engine_spec("default")
    with pytest.raises(UsageError, match="no engine is called 'cellpose'") as caught:
        engine_spec("cellpose:cyto3")
    assert "maps" in str(caught.value.hint)
    with pytest.raises(NotFoundError, match="no model named 'heavy'"):
        engine_spec("heavy")


def test_a_model_file_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("default", "m.safetensors", "m.onnx"):
        Path(name).touch()
    assert absolute_model("m.safetensors") == str(tmp_path / "m.safetensors")
    assert absolute_model("maps:m.safetensors") == f"maps:{tmp_path / 'm.safetensors'}"
    assert absolute_model("onnx:./m.onnx") == f"onnx:{tmp_path / 'm.onnx'}"
    # The packaged model has the name of a file here.
    for model in ("default", "maps:default", "onnx:missing.onnx", "x" * 300, "onnx:"):
        assert absolute_model(model) == model


def test_an_engine_that_cannot_be_imported_is_no_obstacle_to_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = EntryPoint("broken", "no_such_module:Factory", "qpnuclei.engines")
    monkeypatch.setattr(
        importlib.metadata,
        "entry_points",
        lambda **wanted: EntryPoints([*entry_points(**wanted), broken]).select(**wanted),
    )
    assert engine_spec("default").name == "default-40x"
    assert "broken" in engines()
    with pytest.raises(UsageError, match=r"'broken' cannot be loaded: .*no_such"):
        engine_spec("broken:model")


def test_an_engine_with_other_post_processing_has_the_same_network() -> None:
    engine = load_engine("default", EngineOptions("cpu"))
    assert isinstance(engine, MapsEngine)
    other = replace(engine.predictor.metadata.post_processing, min_area_px=7)
    spec = engine.with_post_processing(other).spec
    assert spec.details["post_processing"]["min_area_px"] == 7
    assert spec.sha256 == model_hash(resolve_model("default"))


def test_views_are_assembled_from_new_parts() -> None:
    rng = np.random.default_rng(0)
    rgb = rng.integers(0, 256, (330, 500, 3)).astype(np.uint8)
    attention = rng.integers(0, 240, (330, 500), np.uint8)
    centre = rng.integers(0, 2**16, (330, 500), np.uint16)
    image = Box(0, 0, 500, 330)
    roi = shapely.union(shapely.box(0, 0, 220, 300), shapely.box(210, 140, 480, 330))
    plan = TilePlan(roi, (500, 330), 100, 20)
    whole = _View(image, rgb, attention, centre)
    parts = (whole.cut(part).copy() for part in plan.new_parts() if part is not None)
    tiles = []
    for tile, view in _assemble(plan, parts, Stopwatch()):
        inner = tile.view.within(image)
        assert view.box == tile.view
        np.testing.assert_array_equal(view.rgb, rgb[inner])
        np.testing.assert_array_equal(view.attention, attention[inner])
        assert view.centre is not None
        np.testing.assert_array_equal(view.centre, centre[inner])
        tiles.append(tile)
    assert tiles == list(plan)
    assert next(parts, None) is None


@pytest.mark.parametrize(
    ("tta", "execution"),
    [(None, "cpu, float32, 8 views"), (True, "cpu, float32, 8 views"), (False, "cpu, float32")],
)
def test_the_model_says_how_many_views_unless_the_user_does(
    tta: bool | None, execution: str, tmp_path: Path
) -> None:
    network = AttentionNet(width=4, dilations=[1])
    path = tmp_path / "attention.safetensors"
    architecture = {"width": 4, "dilations": [1]}
    metadata = ModelMetadata(
        name="attention", family="attention", architecture=architecture, mpp=0.5, tau=0.0, views=8
    )
    save_model(path, network, metadata)
    assert load_engine(str(path), EngineOptions("cpu", views_of(tta))).execution == execution
    options = RunOptions(Selection(everything=True), model=str(path), tta=tta)
    assert options.engine.views == views_of(tta)
