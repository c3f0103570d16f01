from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from qpnuclei.choices import Precision
from qpnuclei.errors import DeviceError, NotFoundError, UsageError
from qpnuclei.models import metadata as metadata_module
from qpnuclei.models.attention import AttentionNet
from qpnuclei.models.checkpoint import save_model
from qpnuclei.models.device import resolve_device
from qpnuclei.models.metadata import ColourNormalisation, ModelMetadata, PostProcessing
from qpnuclei.models.registry import resolve_model
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.segmentation.quantised import quantise_attention, quantise_centre
from qpnuclei.slides.reinhard import ReinhardStatistics, reinhard_transfer
from tests.segmentation.models import model_of


def predictor(
    views: int | None = None,
    tau: float | None = 0.0,
    of_model: Literal[1, 8] = 1,
    **architecture: object,
) -> Predictor:
    torch.manual_seed(0)
    architecture = {"width": 4, "dilations": [1, 2]} | architecture
    network = AttentionNet(**architecture)  # type: ignore[arg-type]
    metadata = ModelMetadata(
        name="tiny", family="attention", architecture=architecture, mpp=0.5, tau=tau,
        sigmoid_gain=2.0, views=of_model,
    )  # fmt: skip
    return Predictor.of_network(network, metadata, torch.device("cpu"), views)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_predict_is_the_sigmoid_of_the_network_on_normalised_rgb() -> None:
    made = predictor(tau=0.25)
    rgb = noise(2, 20, 24, 3)
    attention, centre = made.predict(rgb)
    x = (rgb / 255.0 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]  # ImageNet
    with torch.no_grad():
        a = made._forward._network(torch.from_numpy(x.transpose(0, 3, 1, 2)).float())[:, 0].numpy()
    np.testing.assert_allclose(attention, 1 / (1 + np.exp(-2.0 * (a - 0.25))), atol=1e-5)
    assert attention.dtype == np.float32
    assert centre is None


@pytest.mark.parametrize(("precision", "rounding"), [("float32", 1e-5), ("bfloat16", 0.05)])
@pytest.mark.parametrize("kind", ["default", "concatenating"])
def test_a_pixel_is_the_same_wherever_the_tile_begins(
    kind: str, precision: Precision, rounding: float, tmp_path: Path
) -> None:
    # Not bit for bit: the processor decides in which blocks, and so in which order, sums are taken.
    made = Predictor.load(model_of(kind, tmp_path), device="cpu", precision=precision)
    margin = -(-made.receptive_radius_px // made.stride) * made.stride
    rgb = noise(1, 2 * margin + 70, 2 * margin + 90, 3)
    whole = made.predict(rgb)
    part = made.predict(rgb[:, 16:, 32:-7])
    for all_of_it, some in zip(whole, part, strict=True):
        assert all_of_it is not None
        assert some is not None
        np.testing.assert_allclose(
            all_of_it[:, 16 + margin : -margin, 32 + margin : -margin - 7],
            some[:, margin:-margin, margin:-margin],
            rtol=0,
            atol=rounding,
        )


def test_half_the_bits_change_few_pixels_of_the_mask() -> None:
    rgb = np.kron(noise(1, 12, 12, 1), np.ones((1, 16, 16, 3), np.uint8))
    exact, _ = Predictor.load("default", device="cpu").predict(rgb)
    coarse, _ = Predictor.load("default", device="cpu", precision="bfloat16").predict(rgb)
    assert np.abs(exact - coarse).max() < 0.05
    assert ((exact > 0.5) != (coarse > 0.5)).mean() < 0.002
    assert not np.array_equal(exact, coarse)


def test_a_second_channel_is_the_centre_map() -> None:
    class TwoChannels(torch.nn.Module):
        receptive_radius_px, stride = 0, 1

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([torch.zeros_like(x[:, 0]), torch.full_like(x[:, 0], 9.0)], dim=1)

    metadata = ModelMetadata(name="two", family="student", architecture={}, mpp=0.25)
    attention, centre = Predictor.of_network(TwoChannels(), metadata, torch.device("cpu")).predict(
        noise(1, 4, 5, 3)
    )
    assert attention == pytest.approx(0.5)
    assert centre == pytest.approx(1 / (1 + np.exp(-9.0)))  # tau is None: the plain sigmoid


@pytest.mark.parametrize(
    "made",
    [
        lambda: Predictor.load("default", device="cpu"),
        lambda: Predictor.load("default", device="cpu", precision="bfloat16"),
        lambda: Predictor.load("default", device="cpu", views=8),
        lambda: predictor(tau=0.25),
    ],
    ids=["default", "bfloat16", "views", "one channel"],
)
def test_quantised_maps_are_the_maps_quantised(made: Callable[[], Predictor]) -> None:
    it = made()
    rgb = np.kron(noise(2, 9, 12, 1), np.ones((1, 8, 8, 3), np.uint8))[:, :67, :90]
    attention, centre = it.predict(rgb)
    found, seeds = it.predict_quantised(rgb)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, quantise_attention(attention))
    assert (centre is None) == (seeds is None)
    if centre is not None and seeds is not None:
        assert seeds.dtype == np.uint16
        np.testing.assert_array_equal(seeds, quantise_centre(centre))


def test_sizes_that_are_no_multiple_of_the_stride_come_back_as_they_were() -> None:
    attention, _ = predictor(stride=2).predict(noise(1, 31, 33, 3))
    assert attention.shape == (1, 31, 33)


@pytest.mark.parametrize("stride", [1, 2])
def test_large_images_in_tiles_equal_one_whole_pass(
    monkeypatch: pytest.MonkeyPatch, stride: int
) -> None:
    made = predictor(stride=stride)
    rgb = noise(75, 90, 3)
    whole, _ = made.predict_image(rgb)
    monkeypatch.setattr("qpnuclei.segmentation.predictor._TILE_PX", 50)
    tiled, _ = made.predict_image(rgb)
    np.testing.assert_allclose(tiled, whole, atol=1e-5)


def test_eight_views_are_equivariant_to_every_flip_and_rotation() -> None:
    made = predictor(views=8)
    rgb = noise(1, 20, 26, 3)
    attention, _ = made.predict(rgb)
    one_view, _ = predictor(views=1).predict(rgb)
    for turn in range(4):
        for flip in (False, True):
            turned = np.rot90(rgb, turn, axes=(1, 2))
            expected = np.rot90(attention, turn, axes=(1, 2))
            if flip:
                turned, expected = turned[:, ::-1], expected[:, ::-1]
            found, _ = made.predict(np.ascontiguousarray(turned))
            np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(attention - one_view).max() > 1e-3  # or the views would not be averaged


def test_a_model_says_how_many_views_it_averages() -> None:
    rgb = noise(1, 20, 26, 3)
    of_model = predictor(of_model=8)
    assert of_model.views == 8
    np.testing.assert_array_equal(of_model.predict(rgb)[0], predictor(views=8).predict(rgb)[0])
    assert predictor(of_model=8, views=1).views == 1
    assert predictor().views == 1


@pytest.mark.parametrize("bad", [noise(20, 24, 3), noise(1, 20, 24, 4), noise(1, 20, 24, 3) / 255])
def test_predict_refuses_other_arrays(bad: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"must be \(B, H, W, 3\) uint8"):
        predictor().predict(bad)


def test_load_by_path(tmp_path: Path) -> None:
    made = predictor()
    path = tmp_path / "tiny.safetensors"
    save_model(path, made._forward._network, made.metadata)
    loaded = Predictor.load(path, device="cpu")
    rgb = noise(1, 20, 24, 3)
    np.testing.assert_allclose(loaded.predict(rgb)[0], made.predict(rgb)[0], atol=1e-6)
    assert loaded.mpp == 0.5
    assert loaded.receptive_radius_px == 1 + 2 * (1 + 2)
    assert loaded.stride == 1
    assert loaded.device == "cpu"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])  # by ONNX Runtime, and by torch
def test_the_header_of_a_model_is_read_once(
    precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[type] = []
    checked = metadata_module.checked

    def counting(content: object, kind: type[ModelMetadata]) -> ModelMetadata:
        read.append(kind)
        return checked(content, kind)

    monkeypatch.setattr(metadata_module, "checked", counting)
    Predictor.load("default", device="cpu", precision=precision)
    assert read == [ModelMetadata]


def test_load_by_a_name_that_is_not_there_lists_those_that_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "light.safetensors").touch()
    monkeypatch.setattr("qpnuclei.models.registry.WEIGHTS_FOLDER", tmp_path)
    with pytest.raises(NotFoundError, match="no model named 'heavy'") as caught:
        Predictor.load("heavy")
    assert "light" in caught.value.hint
    with pytest.raises(NotFoundError, match=r"gone/heavy\.safetensors"):
        Predictor.load("gone/heavy.safetensors")


def test_no_name_is_a_model_that_depends_on_the_machine() -> None:
    with pytest.raises(NotFoundError, match="no model named 'auto'") as caught:
        resolve_model("auto")
    assert "there are: default, default-20x, default-40x, open-40x;" in caught.value.hint


def test_devices_that_are_not_there() -> None:
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(UsageError, match="'gpu'"):
        resolve_device("gpu")
    with pytest.raises(DeviceError, match="cuda:99"):
        resolve_device("cuda:99")
    if not torch.backends.mps.is_available():
        with pytest.raises(DeviceError, match="'mps'"):
            resolve_device("mps")


class DarkIsNucleus(torch.nn.Module):
    """A network whose attention is 1 exactly where the normalised red channel is negative."""

    receptive_radius_px, stride = 0, 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x[:, :1]


def dark_is_nucleus(**metadata: object) -> Predictor:
    fields = {"name": "dark", "family": "attention", "architecture": {}, "mpp": 0.5, "tau": 0.0}
    described = ModelMetadata(
        **(fields | {"post_processing": PostProcessing(coarse_radius_px=1)} | metadata)
    )
    return Predictor.of_network(DarkIsNucleus(), described, torch.device("cpu"))


def white_with_dark_squares(*squares: tuple[slice, slice], size: int = 64) -> np.ndarray:
    rgb = np.full((size, size, 3), 255, np.uint8)
    for square in squares:
        rgb[square] = 40
    return rgb


def test_colours_are_transferred_by_the_statistics_of_the_slide() -> None:
    colour = ColourNormalisation(
        method="reinhard", target_mean=(60.0, 10.0, -10.0), target_std=(10.0, 5.0, 5.0)
    )
    made = dark_is_nucleus(colour=colour)
    slide = ReinhardStatistics(200.0, (50.0, 20.0, -5.0), (20.0, 4.0, 6.0))
    rgb = noise(1, 20, 24, 3)
    expected = reinhard_transfer(rgb, slide, (60.0, 10.0, -10.0), (10.0, 5.0, 5.0))
    np.testing.assert_array_equal(
        made.predict(rgb, slide)[0], dark_is_nucleus().predict(expected)[0]
    )
    with pytest.raises(ValueError, match="give the colour statistics of the slide"):
        made.predict(rgb)
