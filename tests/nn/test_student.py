import numpy as np
import pytest
import torch

from qpnuclei.nn.student import StudentNet


@pytest.fixture(params=[(4, 2), (4, 3)], ids=["2 levels", "3 levels"])
def network(request):
    """In float64, with weights that cancel nowhere: all positive, no ReLU switched off."""
    channels, levels = request.param
    net = StudentNet(channels, levels, 2 * channels).double().eval()
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


@pytest.mark.parametrize("origin", [(0, 0), (16, 8), (8, 24)])
def test_a_tile_with_a_halo_equals_the_whole_image(origin):
    network = StudentNet(4, 3, 8).double().eval()
    halo = -(-network.receptive_radius_px // network.stride) * network.stride
    core = 32
    size = 2 * halo + core + 32
    image = torch.rand((1, 3, size, size), dtype=torch.float64)
    y, x = origin

    with torch.inference_mode():
        whole = network(image)[..., y + halo : y + halo + core, x + halo : x + halo + core]
        tile = network(image[..., y : y + 2 * halo + core, x : x + 2 * halo + core])

    torch.testing.assert_close(
        tile[..., halo : halo + core, halo : halo + core], whole, rtol=0, atol=1e-12
    )


def test_output_has_the_size_of_the_input_and_two_channels():
    assert StudentNet(4, 3, 8)(torch.zeros(2, 3, 24, 40)).shape == (2, 2, 24, 40)


def test_sizes_that_are_no_multiple_of_the_stride_are_refused():
    with pytest.raises(ValueError, match="24x20 px are not multiples of the stride 8"):
        StudentNet(4, 3, 8)(torch.zeros(1, 3, 24, 20))


@pytest.mark.parametrize(
    "arguments",
    [{"base_channels": 0}, {"levels": 1}, {"base_channels": 32, "max_channels": 16}],
)
def test_impossible_networks_are_refused(arguments):
    with pytest.raises(ValueError, match="do not describe a network"):
        StudentNet(**arguments)


def test_default_is_small():
    assert sum(p.numel() for p in StudentNet().parameters()) < 1_000_000
