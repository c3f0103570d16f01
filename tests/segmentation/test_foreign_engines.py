"""Models of others, with tiny networks that these tests export themselves."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
import torch
from onnx import TensorProto, helper

from qpnuclei.errors import DeviceError, ModelError, NotFoundError, UsageError
from qpnuclei.nuclei.table import NucleiTable, concatenate
from qpnuclei.pipeline.image import segment
from qpnuclei.pipeline.inference.infer import find_nuclei
from qpnuclei.pipeline.planning.tiles import plan_tiles
from qpnuclei.segmentation.engine import Engine, EngineOptions, engine_spec, load_engine
from qpnuclei.segmentation.onnx_engine import _device_used, _providers
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.sidecar import PROBABILITY
from qpnuclei.slides.resolution import Scale
from qpnuclei.slides.slide import ImageInMemory
from qpnuclei.slides.stains import DEFAULT_HE
from tests.segmentation.onnx_models import dark_in_onnx, in_onnx, sidecar

CPU = EngineOptions(device="cpu")


class DarkIsNucleus(torch.nn.Module):
    """Probability and a centre map: how dark the red channel is, twice."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        dark = torch.sigmoid(20.0 * (0.5 - x[:, :1]))
        return torch.cat([dark, dark], dim=1)


class BlocksAreLabels(torch.nn.Module):
    """A number for every block of 16 px, where the red channel is dark."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        height, width = x.shape[2], x.shape[3]
        y = torch.arange(height).div(16, rounding_mode="floor").reshape(-1, 1)
        block = 1 + y * 1000 + torch.arange(width).div(16, rounding_mode="floor")
        return torch.where(x[:, :1] < 0.5, block.float(), torch.zeros(1))


class StarDist(torch.nn.Module):
    """Red is 1 - probability, green the length of all eight rays in px, on every second pixel."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        half = x[:, :, ::2, ::2]
        return 1 - half[:, :1], (half[:, 1:2] * 255).expand(-1, 8, -1, -1)


class Returning(torch.nn.Module):
    """How dark the red channel is, as a network returns it whose last step is `how`."""

    def __init__(self, how: str, scale: float = 1.0) -> None:
        super().__init__()
        self.how = how
        self.scale = scale

    def forward(self, x: torch.Tensor) -> Any:
        dark = self.scale * torch.sigmoid(20.0 * (0.5 - x[:, :1]))
        if self.how == "dict":
            return {"out": dark}
        if self.how == "nested":
            return ([dark],)
        if self.how == "nothing":
            return ()
        if self.how == "complex":
            return torch.complex(dark, dark)
        if self.how == "sparse":
            return dark.to_sparse()
        if self.how == "csr":
            return dark[0, 0].to_sparse_csr()
        if self.how == "mkldnn":
            return dark.to_mkldnn()
        if self.how == "negated":
            return torch.imag(torch.conj(torch.complex(dark, -dark)))
        if self.how == "no image":
            return dark[:0]
        if self.how == "bfloat16":
            return dark.to(torch.bfloat16)
        return dark


class DiscsOnAGrid(torch.nn.Module):
    """Discs of radius 8 as StarDist predicts them: every `grid` px, best in the middle."""

    def __init__(self, grid: int) -> None:
        super().__init__()
        self.grid = grid

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        dark = torch.nn.functional.avg_pool2d((x[:, :1] < 0.5).float(), 13, stride=1, padding=6)
        p = dark[:, :, :: self.grid, :: self.grid]
        return p, torch.full_like(p, 8.0).expand(-1, 32, -1, -1)


def script(folder: Path, network: torch.nn.Module, **fields: object) -> str:
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have another format
        torch.jit.script(network).save(str(path))
    path.with_suffix(".json").write_text(json.dumps(sidecar(**fields)))
    return f"torchscript:{path}"


def trace(folder: Path, network: torch.nn.Module, **fields: object) -> str:
    """As `script`, for a network whose Python TorchScript cannot compile."""
    path = folder / "model.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = torch.zeros(1, 3, 64, 64)
        torch.jit.trace(network, image, strict=False, check_trace=False).save(str(path))
    path.with_suffix(".json").write_text(json.dumps(sidecar(**fields)))
    return f"torchscript:{path}"


def discs(*centres: tuple[int, int], radius: int = 8, size: int = 160) -> np.ndarray:
    rgb = np.full((size, size, 3), 240, np.uint8)
    y, x = np.mgrid[:size, :size]
    for cx, cy in centres:
        rgb[np.hypot(x - cx, y - cy) < radius] = (40, 30, 90)
    return rgb


DISCS = discs((20, 30), (60, 31), (75, 33), (110, 120), (150, 80))


@pytest.mark.parametrize(
    "export",
    [
        lambda folder: script(folder, DarkIsNucleus(), output="maps"),
        dark_in_onnx,
        lambda folder: dark_in_onnx(folder, "last"),
    ],
    ids=["torchscript", "onnx", "onnx channels last"],
)
def test_maps_are_split_as_those_of_our_own_models(
    export: Callable[[Path], str], tmp_path: Path
) -> None:
    model = export(tmp_path)
    engine = load_engine(model, CPU)
    assert engine.spec == engine_spec(model)
    assert engine.spec.columns == (PROBABILITY,)
    found = segment(engine, DISCS, mpp=0.5)
    probability = 1 / (1 + np.exp(-20 * (0.5 - DISCS[..., 0] / np.float32(255))))
    centre = probability if model.startswith("torchscript") else None
    expected = segment_instances(
        probability.astype(np.float32),
        engine.spec.details and _parameters(engine),
        None if centre is None else centre.astype(np.float32),
    )
    assert len(found) == expected.max() == 5
    assert sorted(found.measurements["Area µm^2"]) == pytest.approx(
        sorted(np.bincount(expected.ravel())[1:] * 0.25), rel=0.05
    )
    assert found.measurements[PROBABILITY].min() > 0.9


def _parameters(engine: Engine):
    from qpnuclei.models.metadata import PostProcessing

    return PostProcessing(**engine.spec.details["sidecar"]["post_processing"])


@pytest.mark.parametrize("workers", [1, 3])
def test_tiles_and_workers_change_nothing(tmp_path: Path, workers: int) -> None:
    model = script(tmp_path, DarkIsNucleus(), output="maps", stride=8, context_px=5)
    image = ImageInMemory(DISCS, (0.5, 0.5))
    tables: list[NucleiTable] = []
    for tile_px in (400, 70):
        engine = load_engine(model, EngineOptions("cpu", workers=workers))
        scale = Scale((0.5, 0.5))
        roi = shapely.box(0, 0, 160, 160)
        plan = plan_tiles(roi, (160, 160), scale, engine.spec, tile_px, max_nucleus_um=12)
        found: list[NucleiTable] = []
        find_nuclei(image, plan, engine, scale, DEFAULT_HE, found, workers=workers)
        tables.append(concatenate(found))
    whole, tiled = (sorted(p.wkt for p in shapely.normalize(t.polygons())) for t in tables)
    assert len(whole) == 5
    assert whole == tiled


@pytest.mark.parametrize("output", ["labels", "instanseg"])
def test_labels_are_taken_one_by_one_and_cleaned(tmp_path: Path, output: str) -> None:
    rgb = np.full((64, 64, 3), 240, np.uint8)
    rgb[16:32, 16:48] = 40  # two blocks of 16 x 16 px, side by side
    rgb[20:24, 20:24] = 240  # a hole
    rgb[40:44, 50:60] = 40  # one block, and then
    rgb[46:47, 50:52] = 40  # a second, smaller piece of it
    engine = load_engine(script(tmp_path, BlocksAreLabels(), output=output), CPU)
    found = segment(engine, rgb, mpp=0.5)
    areas = sorted((found.measurements["Area µm^2"] / 0.25).tolist())
    assert areas == pytest.approx([40, 256, 256], rel=0.08)
    assert PROBABILITY not in found.measurements


def test_stardist_keeps_the_most_probable_of_overlapping_polygons(tmp_path: Path) -> None:
    rgb = np.full((80, 80, 3), 255, np.uint8)
    #        x   y  1 - probability  radius
    for x, y, unsure, radius in ((20, 20, 10, 8), (24, 20, 60, 8), (60, 50, 30, 12)):
        rgb[y, x] = (unsure, radius, 0)
    model = script(tmp_path, StarDist(), output="stardist", stardist={"grid": 2}, stride=2)
    found = segment(load_engine(model, CPU), rgb, mpp=0.5)
    centroids = found.centroids()
    order = np.argsort(centroids[:, 0])
    np.testing.assert_allclose(centroids[order], [(20, 20), (60, 50)], atol=1)
    # A regular octagon has 2 sqrt(2) r² px.
    expected = 2 * np.sqrt(2) * np.array([8, 12]) ** 2 * 0.25
    np.testing.assert_allclose(found.measurements["Area µm^2"][order], expected, rtol=0.25)


@pytest.mark.parametrize("grid", [1, 2, 4, 8])
@pytest.mark.parametrize("stride", [1, 3, 8])
def test_the_grid_of_stardist_shifts_no_nucleus(tmp_path: Path, grid: int, stride: int) -> None:
    # context_px and the tiles' sides are no multiples of the grid.
    model = script(
        tmp_path,
        DiscsOnAGrid(grid),
        output="stardist",
        stride=stride,
        context_px=9,
        stardist={"grid": grid, "probability": 0.9},
    )
    engine = load_engine(model, CPU)
    assert engine.spec == engine_spec(model)
    centres = [(40, 40), (96, 40), (64, 88)]  # on every grid
    scale = Scale((0.5, 0.5))
    plan = plan_tiles(
        shapely.box(0, 0, 150, 150), (150, 150), scale, engine.spec, 70, max_nucleus_um=12
    )
    found: list[NucleiTable] = []
    image = ImageInMemory(discs(*centres, size=150), (0.5, 0.5))
    find_nuclei(image, plan, engine, scale, DEFAULT_HE, found, workers=1)
    centroids = concatenate(found).centroids()
    assert len(centroids) == 3
    order = np.lexsort(centroids.T)
    np.testing.assert_allclose(centroids[order], np.array(centres) + 0.5, atol=0.6)


def test_errors_name_what_is_wrong_with_a_model(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model file"):
        engine_spec(f"onnx:{tmp_path / 'gone.onnx'}")
    alone = tmp_path / "alone.onnx"
    alone.write_bytes(b"x")
    with pytest.raises(NotFoundError, match=r"has no sidecar alone\.json"):
        engine_spec(f"onnx:{alone}")
    described = alone.with_suffix(".json")
    described.write_text(json.dumps(sidecar(output="maps", mpp="wide")))
    with pytest.raises(ModelError, match="'mpp' is 'wide': expected a number, got a text"):
        engine_spec(f"onnx:{alone}")
    described.write_text(json.dumps(sidecar(output="maps", colour="any")))
    with pytest.raises(ModelError, match="'colour' is 'any': there is no such field"):
        engine_spec(f"onnx:{alone}")
    described.write_text("{")
    with pytest.raises(ModelError, match=r"alone\.json is not JSON: "):
        engine_spec(f"onnx:{alone}")
    described.write_text(json.dumps(sidecar(output="maps")))
    for engine, what in (("onnx", "not an ONNX model"), ("torchscript", "not a TorchScript model")):
        with pytest.raises(ModelError, match=what):
            load_engine(f"{engine}:{alone}", CPU)
        with pytest.raises(UsageError, match="--tta"):
            load_engine(f"{engine}:{alone}", EngineOptions("cpu", views=8))


@pytest.mark.parametrize(
    ("network", "output", "what"),
    [
        (BlocksAreLabels(), "stardist", "output 2 must be distances"),
        (DarkIsNucleus(), "labels", "labels must be whole numbers"),
        (StarDist(), "maps", r"the output is \d+ x \d+ px for"),
    ],
)
def test_a_wrong_kind_of_output_is_refused(
    network: torch.nn.Module, output: str, what: str, tmp_path: Path
) -> None:
    engine = load_engine(script(tmp_path, network, output=output), CPU)
    with pytest.raises(ModelError, match=what):
        segment(engine, DISCS, mpp=0.5)


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("dict", "output 1 of .*model.pt is a dict"),
        ("nested", "output 1 of .*model.pt is a list"),
        ("nothing", "model.pt returns nothing"),
        ("complex", "output 1 of .*model.pt holds complex64"),
        ("sparse", "output 1 of .*model.pt is a Tensor"),
        ("csr", "output 1 of .*model.pt is a Tensor"),
        ("mkldnn", "output 1 of .*model.pt is a Tensor"),
        ("no image", r"output 1 must be maps .* gives \(0, 1, 160, 160\)"),
    ],
)
def test_what_is_no_array_of_numbers_is_refused(tmp_path: Path, how: str, what: str) -> None:
    engine = load_engine(trace(tmp_path, Returning(how), output="maps"), CPU)
    with pytest.raises(ModelError, match=what):
        segment(engine, DISCS, mpp=0.5)


def test_a_label_map_of_no_image_is_refused(tmp_path: Path) -> None:
    engine = load_engine(trace(tmp_path, Returning("no image"), output="labels"), CPU)
    with pytest.raises(ModelError, match=r"a label map is .* gives \(0, 1, 160, 160\)"):
        segment(engine, DISCS, mpp=0.5)


def test_an_onnx_input_of_another_type_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.UINT8, [1, 3, "h", "w"])
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, None)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["labels"])], "g", [image], [labels]
    )
    model = in_onnx(tmp_path, graph, output="labels")
    with pytest.raises(
        ModelError, match=r"model.onnx is tensor\(uint8\), but it must be tensor\(float"
    ):
        load_engine(model, CPU)


def test_a_sequence_of_onnx_is_refused(tmp_path: Path) -> None:
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "h", "w"])
    listed = helper.make_tensor_sequence_value_info("list", TensorProto.FLOAT, None)
    node = helper.make_node("SequenceConstruct", ["x"], ["list"])
    graph = helper.make_graph([node], "list", [image], [listed])
    engine = load_engine(in_onnx(tmp_path, graph, output="maps"), CPU)
    with pytest.raises(ModelError, match=r"output 1 of .*model.onnx is a list"):
        segment(engine, DISCS, mpp=0.5)


@pytest.mark.parametrize("stored", ["bfloat16", "negated"])
def test_maps_are_the_same_however_they_are_stored(tmp_path: Path, stored: str) -> None:
    tables = [
        segment(load_engine(trace(tmp_path, Returning(how), output="maps"), CPU), DISCS, mpp=0.5)
        for how in ("float32", stored)
    ]
    whole, half = (sorted(p.wkt for p in shapely.normalize(t.polygons())) for t in tables)
    assert len(whole) == 5
    assert whole == half


@pytest.mark.parametrize("scale", [255.0, 1.1, -0.01])
@pytest.mark.parametrize("output", ["maps", "stardist"])
def test_a_probability_outside_of_0_to_1_is_refused(
    tmp_path: Path, output: str, scale: float
) -> None:
    class Scaled(DiscsOnAGrid):
        def forward(self, x: torch.Tensor) -> Any:
            p, distances = DiscsOnAGrid.forward(self, x)
            return (scale * p, distances) if output == "stardist" else scale * p

    engine = load_engine(trace(tmp_path, Scaled(1), output=output), CPU)
    with pytest.raises(ModelError, match=r"a probability must be in 0\.\.1, but .* sigmoid"):
        segment(engine, DISCS, mpp=0.5)


def test_rounding_takes_a_probability_out_of_its_range(tmp_path: Path) -> None:
    model = trace(tmp_path, Returning("float32", 1.0005), output="maps")
    assert len(segment(load_engine(model, CPU), DISCS, mpp=0.5)) == 5


@pytest.mark.parametrize(
    ("device", "providers"),
    [
        ("auto", ["CUDAExecutionProvider", "CPUExecutionProvider"]),
        ("cpu", ["CPUExecutionProvider"]),
        ("cuda", [("CUDAExecutionProvider", {"device_id": 0})]),
        ("cuda:0", [("CUDAExecutionProvider", {"device_id": 0})]),
        ("cuda:1", [("CUDAExecutionProvider", {"device_id": 1})]),
    ],
)
def test_onnx_runtime_gets_the_number_of_the_gpu(device: str, providers: list[object]) -> None:
    assert _providers(["CUDAExecutionProvider", "CPUExecutionProvider"], device) == providers


@pytest.mark.parametrize(
    "device", ["cuda:0,cuda:1", "cuda:x", "cuda:", "cuda:-1", "mps", "gpu", ""]
)
def test_onnx_models_run_on_no_other_device(device: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such device for an ONNX model"):
        load_engine(dark_in_onnx(tmp_path), EngineOptions(device))


def test_a_gpu_that_onnx_runtime_cannot_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="'cuda:1' was requested, but this ONNX Runtime does not"):
        load_engine(dark_in_onnx(tmp_path), EngineOptions("cuda:1"))
    # One that was built for CUDA takes the CPU if there is no such GPU.
    with pytest.raises(DeviceError, match="'cuda:1' was requested, but ONNX Runtime cannot use it"):
        _device_used(["CPUExecutionProvider"], "cuda:1")
    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    assert _device_used(both, "cuda:1") == "cuda:1"
    assert [_device_used(used, "auto") for used in (both, both[1:])] == ["cuda", "cpu"]


def test_a_threshold_is_that_of_the_kind_of_output(tmp_path: Path) -> None:
    strict = EngineOptions(device="cpu", threshold=0.75)
    maps = load_engine(script(tmp_path, DarkIsNucleus(), output="maps"), strict)
    assert maps.spec.details["sidecar"]["post_processing"]["threshold"] == 0.75
    stars = script(tmp_path, StarDist(), output="stardist", stardist={"grid": 2})
    assert load_engine(stars, strict).spec.details["sidecar"]["stardist"]["probability"] == 0.75
    labels = script(tmp_path, BlocksAreLabels(), output="labels")
    with pytest.raises(UsageError, match="--threshold: a model with the output 'labels'"):
        load_engine(labels, strict)
