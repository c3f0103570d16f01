from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
import safetensors.torch
import torch
from msgspec.structs import replace
from torch import nn

from qpnuclei.errors import ModelError, NotFoundError, SaveError
from qpnuclei.models.attention import AttentionNet
from qpnuclei.models.checkpoint import load_model, load_weights, save_model
from qpnuclei.models.geometry import NetworkGeometry
from qpnuclei.models.metadata import ModelMetadata, PostProcessing, model_hash, read_metadata
from qpnuclei.models.registry import resolve_model
from qpnuclei.system.checked import as_json, checked

ARCHITECTURE = {"width": 4, "dilations": [1, 2]}


def metadata(**changes: object) -> ModelMetadata:
    fields = {"name": "tiny", "family": "attention", "architecture": ARCHITECTURE, "mpp": 0.5}
    return checked(fields | changes, ModelMetadata)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.safetensors"
    save_model(path, AttentionNet(width=4, dilations=(1, 2)), metadata())
    return path


def rewrite_header(path: Path, change: dict[str, object]) -> None:
    tensors = safetensors.torch.load_file(path)
    fields = as_json(metadata()) | change
    safetensors.torch.save_file(tensors, path, {"qpnuclei": json.dumps(fields)})


def test_weights_and_metadata_come_back_as_they_were(tmp_path: Path) -> None:
    network = AttentionNet(width=4, dilations=(1, 2))
    described = metadata(
        tau=0.25, post_processing=PostProcessing(threshold=0.4), recipe={"seed": 3}, data={"n": 2}
    )
    path = tmp_path / "m.safetensors"
    save_model(path, network, described)
    loaded, read = load_model(path)
    assert read == read_metadata(path)
    assert read == replace(described, geometry=read.geometry)
    x = torch.rand(1, 3, 16, 12)
    assert torch.equal(loaded(x), network.eval()(x))
    assert not loaded.training


def test_the_file_says_how_far_its_network_looks(model_file: Path) -> None:
    stored = read_metadata(model_file)
    # A 3x3 stem, and two 3x3 convolutions of dilations 1 and 2 each.
    assert stored.geometry == NetworkGeometry(receptive_radius_px=1 + 2 * (1 + 2), stride=1)
    rewrite_header(model_file, {"geometry": None})  # as older files are
    assert read_metadata(model_file).geometry is None
    assert load_model(model_file)[1].network_geometry() == stored.geometry


def test_a_file_that_says_less_than_its_network_sees_is_refused(model_file: Path) -> None:
    rewrite_header(model_file, {"geometry": {"receptive_radius_px": 6, "stride": 1}})
    with pytest.raises(ModelError, match=r"radius_px=6.* its network has .*radius_px=7"):
        load_model(model_file)


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("attention", {"dilations": "all"}),
        ("attention", {"dilations": None}),
        ("attention", {"dilations": [2000, 2000]}),
        ("student", {"levels": 60}),
        ("student", {"encoder_convolutions": [4096] * 11}),  # minutes, if they were followed
    ],
)
def test_an_older_file_whose_architecture_does_not_say_it(
    family: str, architecture: dict[str, object]
) -> None:
    with pytest.raises(ModelError, match="cannot be derived"):
        metadata(family=family, architecture=architecture).network_geometry()


def test_saving_leaves_no_temporary_file_and_replaces(model_file: Path) -> None:
    before = model_hash(model_file)
    save_model(model_file, AttentionNet(width=4, dilations=(1, 2)), metadata())
    assert model_hash(model_file) != before
    assert list(model_file.parent.iterdir()) == [model_file]


def test_saving_where_no_folder_can_be_is_a_save_error(model_file: Path) -> None:
    with pytest.raises(SaveError, match=r"tiny\.safetensors/m\.safetensors"):
        save_model(model_file / "m.safetensors", AttentionNet(width=1), metadata())


def test_model_hash_is_the_sha256_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    # FIPS 180-4, example for "abc".
    assert model_hash(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_missing_file(tmp_path: Path) -> None:
    for read in (read_metadata, load_model, model_hash):
        with pytest.raises(NotFoundError, match="absent"):
            read(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("content", [b"", b"no safetensors at all", b"\xff" * 64])
def test_not_safetensors(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="is not safetensors"):
        load_model(path)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("weight", ["head.bias", "norm.running_mean"])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, weight: str, value: float
) -> None:
    network = AttentionNet(width=4, dilations=(1, 2))
    network.state_dict()[weight][0] = value
    path = tmp_path / "m.safetensors"
    save_model(path, network, metadata())
    with pytest.raises(ModelError, match=re.escape(f"its weight {weight} is not finite")):
        load_model(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.double() * 1e300, "is not finite"),  # beyond float32
        (lambda t: torch.full_like(t, -1.0), "is a negative variance"),
        (lambda t: t.to(torch.complex64), "is stored as C64, which no training"),
    ],
)
def test_weights_that_no_training_makes(model_file: Path, change, named: str) -> None:
    tensors = safetensors.torch.load_file(model_file)
    tensors["norm.running_var"] = change(tensors["norm.running_var"])
    header = {"qpnuclei": json.dumps(as_json(metadata()))}
    safetensors.torch.save_file(tensors, model_file, header)
    with pytest.raises(ModelError, match=re.escape(f"its weight norm.running_var {named}")):
        load_model(model_file)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"post_processing": {"coarse_radius_px": 1_000_000}}, "post_processing.coarse_radius_px"),
        ({"post_processing": {"maxima_radius_px": 10**9}}, "post_processing.maxima_radius_px"),
        ({"post_processing": {"smoothing_sigma_px": math.inf}}, "smoothing_sigma_px"),
        ({"post_processing": {"min_prominence_px": math.nan}}, "min_prominence_px"),
        ({"post_processing": {"min_area_px": 10**12}}, "min_area_px"),
        ({"mpp": math.nan}, "mpp"),
        ({"tau": math.inf}, "tau"),
        ({"sigmoid_gain": math.nan}, "sigmoid_gain"),
        ({"input_std": [0.2, 0.2, 0.0]}, "input_std.2"),
        ({"input_mean": [math.nan, 0.0, 0.0]}, "input_mean.0"),
        ({"colour": {"method": "reinhard"}}, "colour"),
        ({"architecture": {"width": 10**9}}, "width"),
        ({"architecture": {"dilations": [1] * 10**5}}, "dilations"),
        ({"architecture": {"dilations": [10**7]}}, "dilations"),
    ],
)
def test_absurd_metadata_is_refused_before_anything_is_made_of_it(
    model_file: Path, changes: dict[str, object], field: str
) -> None:
    rewrite_header(model_file, changes)
    with pytest.raises(ModelError, match=re.escape(field)) as raised:
        load_model(model_file)
    assert len(raised.value.what) < 1000


@pytest.mark.parametrize(
    ("family", "architecture"),
    [("student", {"levels": 60}), ("attention", {"width": 4096}), ("attention", {"width": -3})],
)
def test_a_network_of_absurd_size_is_never_made(
    model_file: Path, family: str, architecture: dict[str, object]
) -> None:
    rewrite_header(model_file, {"family": family, "architecture": architecture})
    with pytest.raises(ModelError, match=r"architecture|cannot be built"):
        load_model(model_file)


@pytest.mark.parametrize("text", ["[" * 100_000, "1" * 5000, "{", "\x00"])
def test_metadata_that_is_no_json(model_file: Path, text: str) -> None:
    tensors = safetensors.torch.load_file(model_file)
    safetensors.torch.save_file(tensors, model_file, {"qpnuclei": text})
    with pytest.raises(ModelError, match="not JSON"):
        load_model(model_file)


def test_truncated_file(model_file: Path) -> None:
    model_file.write_bytes(model_file.read_bytes()[:-10])
    with pytest.raises(ModelError, match="is not safetensors, or is truncated"):
        load_model(model_file)


def test_a_file_that_is_no_model_is_called_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("notes.txt").write_text("notes")
    assert resolve_model("notes.txt") == Path("notes.txt")
    with pytest.raises(ModelError, match=r"notes\.txt is not safetensors"):
        load_model(Path("notes.txt"))


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path, {"format": "pt"})
    with pytest.raises(ModelError, match=re.escape("no qpnuclei metadata (its header has ['form")):
        load_model(path)


def test_newer_format_is_named_before_its_unknown_fields(model_file: Path) -> None:
    rewrite_header(model_file, {"format_version": 99, "a_field_of_the_future": 1})
    with pytest.raises(ModelError, match="format 99") as caught:
        load_model(model_file)
    assert caught.value.hint == "update qpnuclei"


@pytest.mark.parametrize(
    ("change", "named"),
    [({"mpp": -1}, "'mpp' is -1"), ({"family": "forest"}, "'family' is 'forest'")],
)
def test_bad_metadata_names_the_field_and_its_value(
    model_file: Path, change: dict[str, object], named: str
) -> None:
    rewrite_header(model_file, change)
    with pytest.raises(ModelError, match=re.escape(named)):
        load_model(model_file)


def test_unknown_architecture_argument(model_file: Path) -> None:
    rewrite_header(model_file, {"architecture": {"depth": 7}})
    with pytest.raises(ModelError, match=r"AttentionNet cannot be built from \{'depth': 7\}"):
        load_model(model_file)


def test_another_width_names_a_tensor_and_both_shapes(model_file: Path) -> None:
    rewrite_header(model_file, {"architecture": {"width": 8, "dilations": [1, 2]}})
    with pytest.raises(
        ModelError, match=re.escape("stem.weight of shape (4, 3, 3, 3) instead of (8, 3, 3, 3)")
    ):
        load_model(model_file)


def test_another_depth_names_missing_and_unexpected_tensors(model_file: Path) -> None:
    rewrite_header(model_file, {"architecture": {"width": 4, "dilations": [1, 2, 3]}})
    with pytest.raises(ModelError, match=r"lacks blocks\.2\.conv1\.weight.* more"):
        load_model(model_file)
    rewrite_header(model_file, {"architecture": {"width": 4, "dilations": [1]}})
    with pytest.raises(ModelError, match=r"unexpected blocks\.1\."):
        load_model(model_file)


def test_load_weights_copies_only_what_fits() -> None:
    layer = nn.Linear(2, 1)
    load_weights(layer, {"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, "here")
    assert layer.weight.tolist() == [[1.0, 1.0]]
    with pytest.raises(ModelError, match="here was made for another architecture than Linear"):
        load_weights(layer, {"weight": torch.ones(1, 2)}, "here")
