from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from qpnuclei.models.attention import (
    AttentionActivation,
    AttentionNet,
    batch_tau,
    compressed_sigmoid,
)


def test_the_papers_network() -> None:
    network = AttentionNet()
    # 3·64·9 in the stem, 12 convolutions of 64·64·9, 64 + 1 in the head, 13 BatchNorms of 2·64.
    parameters = sum(p.numel() for p in network.parameters())
    assert parameters == 3 * 64 * 9 + 12 * 64 * 64 * 9 + 65 + 13 * 128
    assert network.receptive_radius_px == 83
    assert network.stride == 1
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert [c.dilation[0] for c in convolutions] == [1, 1, 1, 2, 2, 3, 3, 5, 5, 10, 10, 20, 20, 1]
    assert all(c.padding == c.dilation for c in convolutions[:-1])
    assert all(c.bias is None for c in convolutions[:-1])


@pytest.mark.parametrize("padding", ["reflect", "zeros"])
@pytest.mark.parametrize("stride", [1, 2])
def test_output_has_the_size_of_the_input(padding: str, stride: int) -> None:
    network = AttentionNet(4, padding, stride, (1, 3)).eval()  # type: ignore[arg-type]
    assert network(torch.rand(2, 3, 16, 22)).shape == (2, 1, 16, 22)


@pytest.mark.parametrize(("stride", "dilations"), [(1, (1, 2)), (2, (1, 2)), (2, (1,))])
def test_receptive_radius_is_reached_and_never_exceeded(
    stride: int, dilations: tuple[int, ...]
) -> None:
    network = AttentionNet(2, "zeros", stride, dilations).double().eval()
    for parameter in network.parameters():
        nn.init.constant_(parameter, 0.1)  # all positive: no ReLU or sum can hide a path
    reached = []
    for pixel in (48, 49):  # with stride 2, odd and even pixels interpolate to opposite sides
        x = torch.rand(1, 3, 4, 98, dtype=torch.float64, requires_grad=True)
        network(x)[0, 0, 2, pixel].backward()
        assert x.grad is not None
        seen = torch.nonzero(x.grad.abs().sum(dim=(0, 1, 2))).flatten()
        reached.append(int((seen - pixel).abs().max()))
    assert max(reached) == network.receptive_radius_px


def test_stride_2_shifts_nothing() -> None:
    # A network that is symmetric under a flip of its weights must commute with a flip of the
    # image; a stem or an interpolation that is off by half a pixel would not.
    network = AttentionNet(2, "reflect", 2, (1,)).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = module.weight.data + module.weight.data.flip(3)
    x = torch.rand(1, 3, 12, 12)
    torch.testing.assert_close(network(x.flip(3)), network(x).flip(3))


def test_sizes_that_cannot_work_are_refused() -> None:
    network = AttentionNet(2, "reflect", 2, (3,))
    assert network.min_size_px == 8
    with pytest.raises(ValueError, match="6x20 px is smaller than 8 px"):
        network(torch.rand(1, 3, 6, 20))
    with pytest.raises(ValueError, match="20x21 px is not a multiple of 2 px"):
        network(torch.rand(1, 3, 20, 21))


@pytest.mark.parametrize(
    "bad", [{"padding": "circular"}, {"stride": 3}, {"width": 0}, {"dilations": ()}]
)
def test_networks_that_do_not_exist_are_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        AttentionNet(**bad)  # type: ignore[arg-type]


def naive_tau(a: np.ndarray, eta: float) -> float:
    """Equation 1 as its authors' code has it: sort, take one value per image, average."""
    total = 0.0
    for image in a[:, 0]:
        descending = sorted(image.ravel().tolist(), reverse=True)
        total += descending[math.floor(eta * len(descending))]
    return total / len(a)


@pytest.mark.parametrize("eta", [0.0, 0.07, 0.2, 0.5, 0.99])
def test_tau_is_the_mean_of_one_value_per_image(eta: float) -> None:
    a = np.random.default_rng(0).normal(size=(3, 1, 7, 9)).astype(np.float32)
    assert batch_tau(torch.from_numpy(a), eta).item() == pytest.approx(naive_tau(a, eta))


def test_tau_by_hand() -> None:
    # Ten values, eta 20 %: index 2 of 9, 8, 7, ... is 7; of 19, 18, 17, ... is 17; mean 12.
    a = torch.stack([torch.arange(10.0), torch.arange(10.0, 20.0)]).view(2, 1, 2, 5)
    assert batch_tau(a, 0.2).item() == 12.0


def test_no_gradient_flows_through_tau() -> None:
    a = torch.rand(1, 1, 4, 4, requires_grad=True)
    activation = AttentionActivation(eta=0.2, gain=20.0)
    activation(a).sum().backward()
    A = torch.sigmoid(20 * (a.detach() - batch_tau(a, 0.2)))
    assert a.grad is not None
    torch.testing.assert_close(a.grad, 20 * A * (1 - A))  # nothing but the sigmoid's own slope


def test_eta_outside_0_to_1_is_refused() -> None:
    with pytest.raises(ValueError, match=r"1\.0"):
        batch_tau(torch.rand(1, 1, 2, 2), 1.0)


def test_compressed_sigmoid() -> None:
    a = torch.tensor([0.0, 0.25, 0.3])
    expected = [1 / (1 + math.exp(-20 * (v - 0.25))) for v in (0.0, 0.25, 0.3)]
    torch.testing.assert_close(compressed_sigmoid(a, 0.25, 20.0), torch.tensor(expected))


def test_running_tau_starts_with_the_first_batch_and_follows_slowly() -> None:
    activation = AttentionActivation(eta=0.0)  # eta 0: tau is the maximum

    def batch(value: float) -> Tensor:
        return torch.full((1, 1, 2, 2), value)

    activation(batch(4.0))
    assert activation.tau.item() == 4.0
    activation(batch(8.0))
    assert activation.tau.item() == pytest.approx(0.9 * 4.0 + 0.1 * 8.0)


def test_training_uses_the_batch_and_evaluation_the_running_tau() -> None:
    activation = AttentionActivation(eta=0.0, gain=20.0)
    activation.tau.fill_(0.5)
    activation.batches_seen.fill_(7)
    a = torch.full((1, 1, 2, 2), 0.5)
    a[0, 0, 0, 0] = 0.6
    in_training = activation(a)
    assert in_training[0, 0, 0, 0].item() == pytest.approx(0.5)  # a == the batch's tau == 0.6
    running = activation.tau.item()
    in_evaluation = activation.eval()(a)
    assert in_evaluation[0, 0, 0, 0].item() == pytest.approx(1 / (1 + math.exp(-20 * 0.09)))
    assert running == pytest.approx(0.51)
    assert activation.tau.item() == running  # evaluation leaves it alone


def test_without_sparsity_it_is_the_plain_sigmoid() -> None:
    activation = AttentionActivation(sparse=False)
    a = torch.randn(2, 1, 3, 3)
    torch.testing.assert_close(activation(a), torch.sigmoid(a))
    torch.testing.assert_close(activation.eval()(a), torch.sigmoid(a))
    assert (activation.tau.item(), activation.gain) == (0.0, 1.0)
