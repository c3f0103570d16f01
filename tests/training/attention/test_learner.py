"""The running mean of F's weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.losses import TRANSFORMS, normalise
from qpnuclei.training.config import AttentionRecipe, attention_recipe

DECAY = 0.75
CPU = torch.device("cpu")


def recipe(**changes: Any) -> AttentionRecipe:
    fields = {
        "name": "tiny",
        "origin": "ours",
        "width": 4,
        "dilations": [1, 2],
        "scale_network": "resnet10",
        "scale_width": 4,
        "scales": [0.25, 0.5],
        "batch_size": 4,
        "eta": 0.2,
        "average_decay": DECAY,
    }
    return attention_recipe(fields | changes)


def random_batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    rgb = torch.randint(0, 256, (4, 3, 64, 64), generator=generator, dtype=torch.uint8)
    return rgb, torch.tensor([0, 0, 1, 1])


def trained(changed: AttentionRecipe, batches: int) -> tuple[Learner, list[dict[str, Tensor]]]:
    """Return a learner after some batches, and F's weights after each of them."""
    learner, weights = Learner(changed, CPU, seed=0), []
    for number in range(batches):
        learner.step(*random_batch(number), TRANSFORMS["transpose"])
        named = learner.attention_net.named_parameters()
        weights.append({name: p.detach().clone() for name, p in named})
    return learner, weights


def test_the_mean_of_the_weights_is_exponential() -> None:
    learner, weights = trained(recipe(), 4)
    expected = weights[0]
    for later in weights[1:]:
        expected = {name: DECAY * expected[name] + (1 - DECAY) * later[name] for name in later}
    kept = dict(learner.kept_net.named_parameters())
    assert kept.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(kept[name].detach(), value)


def test_batchnorm_and_tau_of_the_mean_are_those_of_the_batches_it_is_measured_on() -> None:
    learner, _ = trained(recipe(), 3)
    batches = [random_batch(seed)[0] for seed in (10, 11, 12)]
    before = {n: b.clone() for n, b in learner.attention_net.named_buffers()}
    learner.measure_average(batches)
    for name, buffer in learner.attention_net.named_buffers():
        assert torch.equal(buffer, before[name])  # training itself goes on as it was
    # The first BatchNorm sees the output of the first convolution, whatever the others are.
    network: Any = learner.kept_net
    convolution, norm = _first_convolution_and_norm(network)
    outputs = [convolution(normalise(rgb.float() / 255)).detach() for rgb in batches]
    means = torch.stack([x.mean(dim=(0, 2, 3)) for x in outputs]).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, means, rtol=1e-4, atol=1e-5)
    # tau (equation 1) is such that about the share eta of the pixels lies above it.
    network.eval()
    confidence = torch.cat([network(normalise(rgb.float() / 255)) for rgb in batches])
    share = (confidence > learner.kept_activation.tau).float().mean().item()
    assert share == pytest.approx(0.2, abs=0.1)


def _first_convolution_and_norm(network: Any) -> tuple[Any, Any]:
    seen: dict[str, Any] = {}
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d):
            seen.setdefault("convolution", module)
        if isinstance(module, torch.nn.BatchNorm2d):
            seen.setdefault("norm", module)
    return seen["convolution"], seen["norm"]


def test_without_a_mean_the_weights_themselves_are_kept() -> None:
    learner, _ = trained(recipe(average_decay=0), 1)
    learner.measure_average([random_batch(5)[0]])
    assert learner.kept_net is learner.attention_net
    assert learner.kept_activation is learner.activation


def test_the_mean_goes_on_from_a_saved_state() -> None:
    whole, _ = trained(recipe(), 4)
    half, _ = trained(recipe(), 2)
    resumed = Learner(recipe(), CPU, seed=9)
    resumed.load_state(half.state())
    for number in (2, 3):
        resumed.step(*random_batch(number), TRANSFORMS["transpose"])
    for one, other in zip(whole.kept_net.parameters(), resumed.kept_net.parameters(), strict=True):
        assert torch.equal(one, other)
