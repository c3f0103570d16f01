"""Pixels through a network in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from qpnuclei.errors import ModelError
from qpnuclei.models.attention import AttentionNet
from qpnuclei.models.metadata import ModelMetadata, PostProcessing
from qpnuclei.models.student import StudentNet
from qpnuclei.segmentation.forward import CpuForward
from qpnuclei.segmentation.postprocess import segment_instances
from qpnuclei.segmentation.quantised import check_finite
from qpnuclei.segmentation.torch_forward import _OnGpu, optimise_for_inference, torch_forward

CPU = torch.device("cpu")


class Shown(torch.nn.Module):
    """A network that predicts what it is given."""

    receptive_radius_px, stride = 0, 1

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :2]


def forward(network: torch.nn.Module, **metadata: object) -> CpuForward:
    fields = {"name": "any", "family": "student", "architecture": {}, "mpp": 0.25}
    described = ModelMetadata(**(fields | metadata))
    made = torch_forward(network, described, CPU, views=1)
    assert isinstance(made, CpuForward)
    return made


@pytest.mark.parametrize("network", [AttentionNet(4, dilations=[1, 2]), StudentNet(4, 2, 8)])
def test_an_optimised_network_computes_the_same(network: torch.nn.Module) -> None:
    generator = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values in (module.weight, module.bias, module.running_mean, module.running_var):
                assert values is not None
                values.data.uniform_(0.5, 2, generator=generator)
    x = torch.randn(1, 3, 24, 32, generator=generator)
    with torch.inference_mode():
        expected = network.eval()(x)
        fused = optimise_for_inference(network, CPU)
        torch.testing.assert_close(fused(x), expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())


def test_every_level_of_every_channel_is_normalised() -> None:
    rgb = np.tile(np.arange(256, dtype=np.uint8)[None, :, None, None], (1, 1, 1, 3))
    made = forward(Shown(), input_mean=(0.5, 0.25, 0), input_std=(0.25, 0.5, 1))
    maps = made.maps(rgb)
    for channel, (mean, std) in enumerate([(0.5, 0.25), (0.25, 0.5)]):
        logits = (np.arange(256) / 255 - mean) / std
        np.testing.assert_allclose(maps[0, channel, :, 0], 1 / (1 + np.exp(-logits)), rtol=1e-6)


def test_cells_are_arranged_as_the_network_does() -> None:
    network = StudentNet(4, 2, 8, stem_stride=4).eval()
    rgb = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    x = (rgb / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with torch.inference_mode():
        expected = torch.sigmoid(network(torch.from_numpy(x.transpose(0, 3, 1, 2)).float())).numpy()
    made = forward(network)
    np.testing.assert_allclose(made.maps(rgb), expected, rtol=1e-4, atol=1e-4)
    attention, centre = made.quantised_maps(rgb)
    assert centre is not None
    # Half a step of tolerance for attention, 2e-4 for the centre map.
    np.testing.assert_allclose((attention + 0.5) / 240, expected[:, 0], atol=0.51 / 240)
    np.testing.assert_allclose(centre / 65535, expected[:, 1], atol=2e-4)


def test_logits_far_from_zero_saturate_without_a_warning() -> None:
    made = forward(Shown(), tau=0.0, sigmoid_gain=1000.0)
    rgb = np.tile(np.array([0, 255], np.uint8)[None, :, None, None], (1, 1, 1, 3))
    assert made.maps(rgb)[0, 0].flatten().tolist() == [0, 1]
    attention, _ = made.quantised_maps(rgb)
    assert attention.flatten().tolist() == [0, 239]


@pytest.mark.parametrize("channel", [0, 1])
@pytest.mark.parametrize("network", [Shown(), StudentNet(4, 2, 8, stem_stride=4)])
def test_maps_with_nan_never_give_nuclei(network: torch.nn.Module, channel: int) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    made = forward(network)
    attention, centre = made.quantised_maps(rgb)
    check_finite(attention)
    logits = made.logits(made._normalised(rgb)).copy()
    if isinstance(network, StudentNet):
        logits[1, 2, 3, 16 * channel + 5] = np.nan  # of (B, H / 4, W / 4, 2 * 4 * 4)
    else:
        logits[1, channel, 9, 13] = np.nan
    made.logits = lambda _: logits  # type: ignore[method-assign]
    broken, _ = made.quantised_maps(rgb)
    check_finite(broken[0])
    np.testing.assert_array_equal(broken[0], attention[0])
    with pytest.raises(ModelError, match="not finite"):
        segment_instances(broken[1], PostProcessing(), None if centre is None else centre[1])


@pytest.mark.parametrize("views", [1, 8])
@pytest.mark.parametrize(
    ("network", "tau"), [(AttentionNet(4, dilations=[1, 2]), 0.2), (StudentNet(4, 2, 8), None)]
)
def test_what_gpus_compute_is_what_cpus_compute(
    network: torch.nn.Module, tau: float | None, views: int
) -> None:
    metadata = ModelMetadata(name="any", family="student", architecture={}, mpp=0.25, tau=tau)
    on_cpu = torch_forward(network, metadata, CPU, views)
    as_on_gpu = _OnGpu(network, metadata, CPU, views, torch.float32)
    rgb = np.random.default_rng(0).integers(0, 256, (2, 21, 34, 3), np.uint8)
    np.testing.assert_allclose(as_on_gpu.maps(rgb), on_cpu.maps(rgb), atol=1e-5)
    for found, expected in zip(
        as_on_gpu.quantised_maps(rgb), on_cpu.quantised_maps(rgb), strict=True
    ):
        assert (found is None) == (expected is None)
        if found is not None and expected is not None:
            assert found.shape == (2, 21, 34)
            # In half-way cases, the last bit of a float decides.
            assert np.abs(found.astype(int) - expected).max() <= 1
    assert (as_on_gpu.device, as_on_gpu.tiles_at_once, as_on_gpu.views) == ("cpu", 1, views)
