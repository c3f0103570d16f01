import numpy as np
import pytest
import torch

from qpnuclei.models.student import StudentNet

SHAPES = {
    "2 levels": {"levels": 2},
    "3 levels": {"levels": 3},
    "2 levels, adding": {"levels": 2, "decoder": "adding"},
    "2 levels, subpixel": {"levels": 2, "subpixel": True},
    "2 levels from 1/4": {"levels": 2, "stem_stride": 4},
    "2 levels from 1/4, adding": {"levels": 2, "stem_stride": 4, "decoder": "adding"},
    "3 levels from 1/4, adding": {
        "levels": 3,
        "stem_stride": 4,
        "encoder_convolutions": (1, 3, 2),
        "decoder": "adding",
    },
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES)
def network(request):
    """In float64, with weights that cancel nowhere: all positive, no ReLU switched off."""
    net = StudentNet(base_channels=4, max_channels=8, **request.param).double().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.abs_().add_(0.01)
    return net


def _reach(network: StudentNet, row: int, height: int) -> tuple[int, int]:
    """How far above and below a row of the output the input has any influence on it."""
    seen = np.zeros(height, bool)
    for seed in range(4):  # only the winner of a max pooling has a gradient: let others win, too
        generator = torch.Generator().manual_seed(seed)
        shape = (1, 3, height, 4 * network.stride)
        image = torch.rand(shape, dtype=torch.float64, generator=generator).requires_grad_()
        network(image)[0, :, row].sum().backward()
        assert image.grad is not None
        seen |= (image.grad.abs().sum(dim=(0, 1, 3)) > 0).numpy()
    rows = np.flatnonzero(seen)
    return row - int(rows[0]), int(rows[-1]) - row


def test_receptive_radius_is_what_gradients_say(network):
    radius, stride = network.receptive_radius_px, network.stride
    height = -(-(2 * radius + 3 * stride) // stride) * stride
    first = (height // 2) // stride * stride

    reaches = [_reach(network, first + phase, height) for phase in range(stride)]

    assert max(max(reach) for reach in reaches) == radius


def test_default_radius_and_stride():
    network = StudentNet()

    # 1/2 to 1/16: up- and downsampling and twice two convolutions of 1 px at every level.
    assert (network.receptive_radius_px, network.stride) == (119, 16)


def test_radius_and_stride_of_two_levels_from_a_quarter():
    network = StudentNet(levels=2, stem_stride=4, decoder="adding")

    # Cells of 4 px: two convolutions before and one after the coarser level, of cells of 8 px.
    assert (network.receptive_radius_px, network.stride) == (40, 8)


@pytest.mark.parametrize("origin", [(0, 0), (2, 1), (1, 3)])
def test_a_tile_with_a_halo_equals_the_whole_image(network, origin):
    stride = network.stride
    halo = -(-network.receptive_radius_px // stride) * stride
    core = 2 * stride
    size = 2 * halo + core + 4 * stride
    image = torch.rand((1, 3, size, size), dtype=torch.float64)
    y, x = (stride * offset for offset in origin)

    with torch.inference_mode():
        whole = network(image)[..., y + halo : y + halo + core, x + halo : x + halo + core]
        tile = network(image[..., y : y + 2 * halo + core, x : x + 2 * halo + core])

    torch.testing.assert_close(
        tile[..., halo : halo + core, halo : halo + core], whole, rtol=1e-13, atol=1e-12
    )


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_has_the_size_of_the_input_and_two_channels(shape):
    assert StudentNet(4, **shape)(torch.zeros(2, 3, 48, 80)).shape == (2, 2, 48, 80)


def test_a_cell_predicts_its_pixels_in_their_places():
    """A stem of stride 4 that reads one pixel of its cell, and a head that writes it there."""
    network = StudentNet(16, 2, stem_stride=4, decoder="adding").double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for pixel in range(16):
            row, column = divmod(pixel, 4)
            network.stem[0].weight[pixel, 0, row + 1, column + 1] = 1
        for norm in (m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.weight.fill_(1)
        for convolution in (*network.encoder[0].children(), network.decoder[0][0]):
            convolution[0].weight[:, :, 1, 1] = torch.eye(16)
        network.head.weight[:16, :, 0, 0] = torch.eye(16)
    image = torch.rand((1, 3, 16, 24), dtype=torch.float64)

    logits = network(image)

    torch.testing.assert_close(logits[:, 0], image[:, 0], rtol=1e-3, atol=0)  # BatchNorm's epsilon
    assert not logits[:, 1].any()


def test_sizes_that_are_no_multiple_of_the_stride_are_refused():
    with pytest.raises(ValueError, match="24x20 px are not multiples of the stride 8"):
        StudentNet(4, 3, 8)(torch.zeros(1, 3, 24, 20))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base_channels": 0}, "do not describe a network"),
        ({"levels": 1}, "do not describe a network"),
        (
            {"base_channels": 32, "max_channels": 16},
            "max_channels=16 is less than base_channels=32",
        ),
        (
            {"encoder_convolutions": (2, 2)},
            r"\(2, 2\) is not a number of at least 1 for each of 4 levels",
        ),
        ({"levels": 2, "encoder_convolutions": (0, 2)}, r"\(0, 2\) is not a number of at least 1"),
        ({"stem_stride": 3}, "stem_stride must be 2 or 4, not 3"),
        ({"decoder": "bilinear"}, "decoder must be one of .*, not 'bilinear'"),
    ],
)
def test_impossible_networks_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        StudentNet(**arguments)


def test_default_is_small():
    assert sum(p.numel() for p in StudentNet().parameters()) < 1_000_000
