"""Pixels through a student in ONNX Runtime, against the same student in torch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qpnuclei.errors import ModelError
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.models.student import StudentNet
from qpnuclei.models.student_layout import student_layout
from qpnuclei.models.student_onnx import read_student, weight_shapes
from qpnuclei.segmentation.onnx_forward import OnnxForward
from qpnuclei.segmentation.torch_forward import torch_forward
from qpnuclei.system.checked import as_json

architectures = st.integers(2, 3).flatmap(
    lambda levels: st.fixed_dictionaries(
        {
            "base_channels": st.integers(1, 6),
            "levels": st.just(levels),
            "max_channels": st.integers(6, 12),
            "stem_stride": st.sampled_from([2, 4]),
            "encoder_convolutions": st.lists(st.integers(1, 2), min_size=levels, max_size=levels),
            "decoder": st.sampled_from(["concatenating", "adding"]),
            "subpixel": st.booleans(),
        }
    )
)


def saved(path: Path, **architecture: object) -> Path:
    """Write a student whose weights and statistics are all random."""
    torch.manual_seed(0)
    network = StudentNet(**architecture)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                values.data.uniform_(0.5, 2)
    metadata = ModelMetadata(name="tiny", family="student", architecture=architecture, mpp=0.25)
    save_model(path, network, metadata)
    return path


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@settings(max_examples=25, deadline=None)
@given(architecture=architectures, views=st.sampled_from([1, 8]))
def test_any_student_gives_the_maps_that_torch_gives(
    tmp_path_factory: pytest.TempPathFactory, architecture: dict[str, object], views: int
) -> None:
    path = saved(tmp_path_factory.mktemp("m") / "m.safetensors", **architecture)
    made = OnnxForward.load(path, views, threads=1)
    network, metadata = load_model(path)
    expected = torch_forward(network, metadata, torch.device("cpu"), views)
    assert (made.geometry, made.views) == (expected.geometry, views)
    rgb = noise(2, 50, 37, 3)
    np.testing.assert_allclose(made.maps(rgb), expected.maps(rgb), atol=1e-4)
    for found, wanted in zip(made.quantised_maps(rgb), expected.quantised_maps(rgb), strict=True):
        assert found is not None
        assert wanted is not None
        assert found.shape == (2, 50, 37)
        assert np.abs(found.astype(int) - wanted).max() <= 0.02 * np.iinfo(found.dtype).max


@given(architecture=architectures)
@settings(max_examples=25, deadline=None)
def test_the_weights_it_expects_are_those_of_the_network_in_torch(
    architecture: dict[str, object],
) -> None:
    state = StudentNet(**architecture).state_dict()
    expected = {name: tuple(tensor.shape) for name, tensor in state.items()}
    assert dict(weight_shapes(student_layout(**architecture))) == expected


@pytest.mark.parametrize("name", ["default-40x", "default-20x", "open-40x"])
def test_the_packaged_networks_are_valid_onnx_and_equal_torch(name: str) -> None:
    path = resolve_model(name)
    graph, _, _ = read_student(path)
    onnx.checker.check_model(graph, full_check=True)
    network, metadata = load_model(path)
    expected = torch_forward(network, metadata, torch.device("cpu"), views=1)
    rgb = np.kron(noise(1, 12, 16, 1), np.ones((1, 16, 16, 3), np.uint8))
    made = OnnxForward.load(path, 1, threads=1)
    np.testing.assert_allclose(made.maps(rgb), expected.maps(rgb), atol=1e-5)


def test_the_number_of_threads_changes_no_bit() -> None:
    path = resolve_model("default")
    rgb = noise(1, 200, 333, 3)
    one, three = (OnnxForward.load(path, 1, threads=n).maps(rgb) for n in (1, 3))
    np.testing.assert_array_equal(one, three)


def test_a_batch_equals_its_tiles() -> None:
    made = OnnxForward.load(resolve_model("default-20x"), 1, threads=1)
    rgb = noise(3, 64, 80, 3)
    np.testing.assert_allclose(
        made.maps(rgb), np.concatenate([made.maps(tile[None]) for tile in rgb]), atol=1e-6
    )


def test_weights_of_another_architecture_are_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "m.safetensors", base_channels=4, levels=2)
    tensors = safetensors.torch.load_file(path)
    tensors["stem.0.weight"] = tensors["stem.0.weight"][:3]
    del tensors["head.bias"]
    with safetensors.safe_open(path, "np") as file:
        header = file.metadata()
    safetensors.torch.save_file(tensors, path, header)
    with pytest.raises(ModelError, match=r"lacks head\.bias; it has stem\.0\.weight of shape \(3"):
        read_student(path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"architecture": {"levels": 3, "depth": 1}}, "cannot be built from"),
        ({"architecture": {"base_channels": "wide"}}, "cannot be built from"),
        ({"geometry": {"receptive_radius_px": 1, "stride": 16}}, r"radius_px=1.* has .*=119"),
    ],
)
def test_a_file_that_describes_no_student(tmp_path: Path, changes: dict, named: str) -> None:
    metadata = ModelMetadata(name="odd", family="student", architecture={}, mpp=0.25)
    header = {"qpnuclei": json.dumps(as_json(metadata) | changes)}
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, header)
    with pytest.raises(ModelError, match=named):
        read_student(path)


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory as Linux has them")
def test_too_little_memory_is_a_memory_error() -> None:
    code = """
import resource
import numpy as np
import psutil
from qpnuclei.segmentation.predictor import Predictor

predictor = Predictor.load("default", "cpu", threads=1)
tile = np.zeros((1, 1024, 1024, 3), np.uint8)
predictor.predict(tile[:, :64, :64])
taken = psutil.Process().memory_info().vms
resource.setrlimit(resource.RLIMIT_AS, (taken + (24 << 20), resource.RLIM_INFINITY))
try:
    predictor.predict(tile)
except MemoryError:
    print("MemoryError")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("MemoryError\n", "")
