import numpy as np
import pytest
import torch

from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.models.student import StudentNet
from qpnuclei.training.student.inheritance import inherited
from qpnuclei.training.student.recipe import StudentRecipe

WIDE = {
    "base_channels": 12,
    "max_channels": 24,
    "levels": 3,
    "stem_stride": 4,
    "encoder_convolutions": [1, 2, 2],
    "decoder": "adding",
}
HALF = {**WIDE, "stem_stride": 2, "subpixel": True}


def trained(architecture: dict, seed: int = 0) -> tuple[StudentNet, ModelMetadata]:
    """Random weights, statistics and scales: none of them is 0 or 1 by chance."""
    network = StudentNet(**architecture)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim == 1:
                tensor.uniform_(0.5, 1.5, generator=generator)
                tensor.mul_(0.1 if name.endswith("bias") else 1)
    metadata = ModelMetadata(name="x", family="student", architecture=architecture, mpp=0.25)
    return network.eval(), metadata


def recipe(architecture: dict, mpp: float = 0.25) -> StudentRecipe:
    return StudentRecipe(name="heir", mpp=mpp, **architecture)


def test_pixels_twice_as_large_show_the_same() -> None:
    """On an image of 2x2 blocks of one colour, logits are the means over the blocks."""
    network, metadata = trained(WIDE)
    blocks = torch.from_numpy(np.random.default_rng(0).random((1, 3, 48, 32), np.float32))
    fine = blocks.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    heir = inherited(network, metadata, recipe(HALF, mpp=0.5))

    assert heir is not None
    wanted = torch.nn.functional.avg_pool2d(network(fine), 2)
    torch.testing.assert_close(heir(blocks), wanted, rtol=1e-4, atol=1e-5)


def test_channels_that_matter_are_kept() -> None:
    """Of a network that uses a part of its channels, a heir of their number sees the same."""
    narrow, _ = trained({**WIDE, "base_channels": 8, "max_channels": 16}, seed=1)
    wide, metadata = trained(WIDE, seed=2)
    rng = np.random.default_rng(0)
    tensors, small = wide.state_dict(), narrow.state_dict()
    places = {count: np.sort(rng.permutation(3 * count // 2)[:count]) for count in (3, 8, 16)}
    with torch.no_grad():
        for name, tensor in tensors.items():
            if not tensor.ndim:
                continue
            # What is beside the narrow network is nearly invisible.
            tensor.mul_(1e-9 if tensor.ndim == 4 or name.endswith(("bias", "1.weight")) else 1)
            where = [
                places[n] if n != large else np.arange(n)
                for n, large in zip(small[name].shape[:2], tensor.shape[:2], strict=True)
            ]
            tensor[np.ix_(*where)] = small[name]
    image = torch.from_numpy(rng.random((1, 3, 32, 48), np.float32))

    heir = inherited(wide, metadata, recipe({**WIDE, "base_channels": 8, "max_channels": 16}))

    assert heir is not None
    torch.testing.assert_close(heir(image), narrow(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "changes",
    [
        {"base_channels": 16, "max_channels": 32},  # wider
        {"encoder_convolutions": [2, 2, 2]},
        {"stem_stride": 2},  # without smaller pixels
        {"decoder": "concatenating"},
        {"mpp": 0.5},
        {**HALF, "mpp": 0.4},
    ],
)
def test_networks_of_another_shape_inherit_nothing(changes: dict) -> None:
    network, metadata = trained(WIDE)
    mpp = changes.pop("mpp", 0.25)

    assert inherited(network, metadata, recipe({**WIDE, **changes}, mpp=mpp)) is None


def test_the_same_network_inherits_all() -> None:
    network, metadata = trained(WIDE)

    heir = inherited(network, metadata, recipe(WIDE))

    assert heir is not None
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(heir.state_dict()[name], tensor, rtol=0, atol=0)
