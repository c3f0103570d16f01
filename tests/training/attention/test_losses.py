from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
import torch
from skimage.color import rgb2hed
from torch import nn

from qpnuclei.models.attention import AttentionActivation, AttentionNet
from qpnuclei.training.attention.losses import (
    TRANSFORMS,
    Losses,
    anchor_loss,
    anchor_target,
    equivariance_loss,
    haematoxylin_density,
    half_size,
    rank_correlation,
    scale_loss,
    smoothness_loss,
    training_losses,
)
from qpnuclei.training.attention.scale import build_scale_network
from qpnuclei.training.config import attention_recipe

RNG = np.random.default_rng(0)


def maps(*shape: int) -> np.ndarray:
    return RNG.random(shape, dtype=np.float32)


def test_equation_2_against_a_loop() -> None:
    scores, labels = maps(4, 3), [2, 0, 1, 1]
    expected = 0.0
    for s, label in zip(scores, labels, strict=True):
        softmax = [math.exp(v) / sum(math.exp(u) for u in s) for v in s]
        expected += -math.log(softmax[label]) / 4
    found = scale_loss(torch.from_numpy(scores), torch.tensor(labels))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_equation_3_against_a_loop() -> None:
    A = maps(2, 1, 4, 6)
    H, W = 4, 6
    expected = 0.0
    for b in range(2):
        for i in range(H - 1):
            for j in range(W - 1):
                expected += abs(A[b, 0, i + 1, j] - A[b, 0, i, j])
                expected += abs(A[b, 0, i, j + 1] - A[b, 0, i, j])
    expected /= 2 * (H - 1) * (W - 1)
    assert smoothness_loss(torch.from_numpy(A)).item() == pytest.approx(expected, rel=1e-5)


def test_equation_3_by_hand() -> None:
    # One vertical edge of height 1 in 3x3: of the 4 pixels that have both neighbours, 2 see it.
    A = torch.tensor([[0.0, 1.0, 1.0]] * 3).view(1, 1, 3, 3)
    assert smoothness_loss(A).item() == pytest.approx(2 / 4)


def test_equation_4_against_a_loop() -> None:
    first, second = maps(2, 1, 3, 5), maps(2, 1, 3, 5)
    expected = 0.0
    for b in range(2):
        for i in range(3):
            for j in range(5):
                expected += (first[b, 0, i, j] - second[b, 0, i, j]) ** 2
    expected /= 2 * 3 * 5
    found = equivariance_loss(torch.from_numpy(first), torch.from_numpy(second))
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_the_six_transforms_by_hand() -> None:
    x = torch.tensor([[1, 2], [3, 4]])
    found = {name: t(x).tolist() for name, t in TRANSFORMS.items()}
    assert found == {
        "horizontal flip": [[2, 1], [4, 3]],
        "vertical flip": [[3, 4], [1, 2]],
        "transpose": [[1, 3], [2, 4]],
        "rotation by 90°": [[2, 4], [1, 3]],
        "rotation by 180°": [[4, 3], [2, 1]],
        "rotation by 270°": [[3, 1], [4, 2]],
    }


def test_half_size_averages_blocks() -> None:
    assert half_size(torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])).tolist() == [[[[4.0]]]]


def test_haematoxylin_is_that_of_scikit_image_up_to_its_smoothing() -> None:
    # A flat colour: smoothing changes nothing. scikit-image's HED of one pixel is the reference.
    rgb = np.array([0.45, 0.32, 0.6])
    expected = rgb2hed(rgb.reshape(1, 1, 3))[0, 0, 0]
    image = torch.tensor(rgb, dtype=torch.float32).view(1, 3, 1, 1).expand(1, 3, 9, 9)
    # scikit-image divides optical densities by log(1e-6), and its bases cancel but for that.
    found = haematoxylin_density(image) * math.log(10) / -math.log(1e-6)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_anchor_target_is_one_half_at_its_threshold() -> None:
    # 0..99, 20 %: index 20 of the descending sort is 79.
    h = torch.arange(100.0).view(1, 1, 10, 10)
    target = anchor_target(h, 0.2)
    assert target.flatten()[79].item() == pytest.approx(0.5)
    assert (target > 0.5).sum().item() == 20
    spread = float(h.std())
    expected = 1 / (1 + math.exp(-4 * (90 - 79) / spread))
    assert target.flatten()[90].item() == pytest.approx(expected, rel=1e-5)


def test_anchor_target_of_a_flat_image_is_finite() -> None:
    assert anchor_target(torch.ones(1, 1, 4, 4), 0.2).isfinite().all()


def test_anchor_loss_is_the_mean_square() -> None:
    A = torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    assert anchor_loss(A, torch.tensor([0.5, 1.0]).view(1, 1, 1, 2)).item() == 0.125


def test_rank_correlation_is_spearmans() -> None:
    a, b = maps(2, 1, 5, 7), maps(2, 1, 5, 7)
    expected = np.mean(
        [scipy.stats.spearmanr(a[i].ravel(), b[i].ravel()).statistic for i in range(2)]
    )
    found = rank_correlation(torch.from_numpy(a), torch.from_numpy(b))
    assert found.item() == pytest.approx(expected, abs=1e-5)


def losses_of(autocast: bool = False, **settings: object) -> tuple[Losses, AttentionNet, nn.Module]:
    """All losses of a tiny recipe on a batch of noise, three images per scale."""
    fields = {"name": "t", "origin": "paper", "width": 4, "stride": 1, "dilations": [1, 2]}
    fields["starts"] = 1  # after several, small networks have another term by default
    recipe = attention_recipe(fields | settings)
    torch.manual_seed(1)
    attention_net = AttentionNet(4, "reflect", 1, (1, 2))
    scale_net = build_scale_network("resnet10", 3, width=4)
    activation = AttentionActivation(recipe.eta, recipe.sigmoid_gain, recipe.sparse)
    rgb = torch.rand(6, 3, 40, 40)
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    transform = TRANSFORMS["transpose"]
    # bfloat16 on the CPU stands in for float16 on CUDA: the same operations are cast.
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        losses = training_losses(
            attention_net, activation, scale_net, rgb, labels, recipe, transform
        )
    return losses, attention_net, scale_net


def test_equation_5_is_the_sum_of_its_terms() -> None:
    losses, _, _ = losses_of()
    assert list(losses.terms) == ["scale", "smoothness", "equivariance"]
    assert losses.total.item() == pytest.approx(sum(t.item() for t in losses.terms.values()))


@pytest.mark.parametrize(
    ("settings", "terms"),
    [
        ({"smoothness_weight": 0}, ["scale", "equivariance"]),
        ({"equivariance_weight": 0}, ["scale", "smoothness"]),
        (
            {"scale_equivariance_weight": 1},
            ["scale", "smoothness", "equivariance", "scale equivariance"],
        ),
        ({"anchor_weight": 1}, ["scale", "smoothness", "equivariance", "anchor"]),
    ],
)
def test_a_recipe_has_the_terms_it_asks_for(settings: dict[str, object], terms: list[str]) -> None:
    losses, _, _ = losses_of(**settings)
    assert list(losses.terms) == terms
    assert losses.total.isfinite()


def test_weights_weigh() -> None:
    once, _, _ = losses_of(smoothness_weight=1)
    thrice, _, _ = losses_of(smoothness_weight=3)
    assert thrice.terms["smoothness"].item() == pytest.approx(3 * once.terms["smoothness"].item())


def test_both_networks_learn_and_stay_in_training_mode() -> None:
    losses, attention_net, scale_net = losses_of()
    losses.total.backward()
    for network in (attention_net, scale_net):
        assert network.training
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters())


def test_the_transformed_pass_changes_neither_tau_nor_the_other_losses() -> None:
    losses, attention_net, _ = losses_of()
    without, _, _ = losses_of(equivariance_weight=0)
    assert losses.measures["tau"].item() == without.measures["tau"].item()
    assert losses.terms["scale"].item() == without.terms["scale"].item()
    (gradient,) = torch.autograd.grad(
        losses.terms["equivariance"], attention_net.parameters().__next__(), allow_unused=True
    )
    assert gradient is not None  # through the first pass alone: the second has none


def test_the_transformed_pass_has_the_statistics_of_its_batch() -> None:
    """A network equivariant by itself (1x1 convolutions) has no loss, however far off they are."""
    recipe = attention_recipe({"name": "t", "origin": "paper", "width": 4, "stride": 1})
    torch.manual_seed(0)
    pointwise = nn.Sequential(nn.Conv2d(3, 1, 1), nn.BatchNorm2d(1))
    pointwise[1].running_mean += 100
    activation = AttentionActivation(recipe.eta, recipe.sigmoid_gain, recipe.sparse)
    scale_net = build_scale_network("resnet10", 3, width=4)
    arguments = (torch.rand(6, 3, 40, 40), torch.tensor([0, 0, 1, 1, 2, 2]), recipe)
    for _ in range(30):  # until the running tau is that of the batch
        losses = training_losses(
            pointwise,  # type: ignore[arg-type]
            activation,
            scale_net,
            *arguments,
            TRANSFORMS["transpose"],
        )
    assert losses.terms["equivariance"].item() < 1e-3


def test_measures() -> None:
    losses, _, _ = losses_of(eta=0.25)
    measures = {name: value.item() for name, value in losses.measures.items()}
    assert set(measures) == {"scale accuracy", "tau", "attention fraction", "anchor agreement"}
    assert 0 <= measures["scale accuracy"] <= 1
    assert measures["attention fraction"] == pytest.approx(0.25, abs=0.05)  # what eta asks for
    assert -1 <= measures["anchor agreement"] <= 1


def test_mixed_precision_gives_the_same_losses_but_for_rounding() -> None:
    everything = {"anchor_weight": 1, "scale_equivariance_weight": 1, "sigmoid_gain": 2.0}
    exact, _, _ = losses_of(**everything)
    mixed, attention_net, _ = losses_of(autocast=True, **everything)
    for name, term in exact.terms.items():
        assert mixed.terms[name].dtype == torch.float32
        assert mixed.terms[name].item() == pytest.approx(term.item(), rel=0.1, abs=0.01), name
    mixed.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in attention_net.parameters())
