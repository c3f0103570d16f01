"""The losses, one function each: equations 2 to 5 of the paper, and further ones.

A researcher who wants another loss changes this file alone: `training_losses` names every term,
its weight comes from the recipe, and the loop logs whatever it returns.

References
----------
.. [1] M. Sahasrabudhe et al., "Self-Supervised Nuclei Segmentation in Histopathological Images
   Using Attention", MICCAI 2020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torchvision.transforms.v2.functional as image_functional
from skimage.color import hed_from_rgb
from torch import Tensor, nn
from torch.nn import functional as F

from qpnuclei.models.attention import AttentionActivation, AttentionNet, batch_tau
from qpnuclei.models.metadata import IMAGENET_MEAN, IMAGENET_STD
from qpnuclei.system.distributed import mean_over_ranks
from qpnuclei.training.config import AttentionRecipe

#: The set T of section 3.2, on (..., H, W).
TRANSFORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "horizontal flip": lambda x: x.flip(-1),
    "vertical flip": lambda x: x.flip(-2),
    "transpose": lambda x: x.transpose(-1, -2),
    "rotation by 90°": lambda x: x.rot90(1, (-2, -1)),
    "rotation by 180°": lambda x: x.rot90(2, (-2, -1)),
    "rotation by 270°": lambda x: x.rot90(3, (-2, -1)),
}


def scale_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Negative log-likelihood of the true magnification, mean over the batch (equation 2).

    Parameters
    ----------
    scores : (B, N) float Tensor
        G's output before the softmax.
    labels : (B,) int64 Tensor
        Index of the magnification.
    """
    return F.cross_entropy(scores.float(), labels)


def smoothness_loss(attention: Tensor) -> Tensor:
    """Absolute differences to the lower and the right neighbour (equation 3).

    Parameters
    ----------
    attention : (B, 1, H, W) float Tensor

    Returns
    -------
    () float Tensor
        Sum over the (H-1)(W-1) pixels that have both neighbours, over their number; mean over
        the batch.
    """
    here = attention[..., :-1, :-1]
    below, right = attention[..., 1:, :-1], attention[..., :-1, 1:]
    return ((below - here).abs() + (right - here).abs()).mean()


def equivariance_loss(transformed: Tensor, of_transformed: Tensor) -> Tensor:
    """Mean squared difference of t(A(I)) and A(t(I)) (equation 4), mean over the batch.

    Parameters
    ----------
    transformed, of_transformed : (B, 1, H, W) float Tensor
        sigma(t(F(I))) and sigma(F(t(I))).
    """
    return (transformed - of_transformed).square().mean()


def half_size(x: Tensor) -> Tensor:
    """Halve height and width of (B, C, H, W), even both, by area averaging."""
    return F.avg_pool2d(x, 2)


def haematoxylin_density(rgb: Tensor) -> Tensor:
    """Haematoxylin's share of the optical density by Ruifrok and Johnston's HED vectors.

    Parameters
    ----------
    rgb : (B, 3, H, W) float Tensor
        0..1.

    Returns
    -------
    (B, 1, H, W) float Tensor
        Smoothed by a Gaussian of 1 px, which brings it closer to nuclei than to chromatin.
    """
    vector = torch.as_tensor(hed_from_rgb[:, 0], dtype=rgb.dtype, device=rgb.device)
    density = -torch.log10(rgb.clamp(min=1 / 255))
    haematoxylin = (density * vector.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    smooth: Tensor = image_functional.gaussian_blur(haematoxylin, [7, 7], [1.0, 1.0])
    return smooth


def anchor_target(haematoxylin: Tensor, eta: float) -> Tensor:
    """Soft mask of the share `eta` of the pixels that hold most haematoxylin (ours).

    Parameters
    ----------
    haematoxylin : (B, 1, H, W) float Tensor
    eta : float
        0 to 1.

    Returns
    -------
    (B, 1, H, W) float Tensor
        A sigmoid about a threshold that is set as the paper sets tau (equation 1): the mean over
        the batch, so that crops with many nuclei get more than crops with few. It rises from 0.12
        to 0.88 over one standard deviation of the density.
    """
    spread = mean_over_ranks(haematoxylin.flatten(1).std(dim=1).mean()).clamp(min=1e-6)
    return torch.sigmoid(4 * (haematoxylin - batch_tau(haematoxylin, eta)) / spread)


def anchor_loss(attention: Tensor, target: Tensor) -> Tensor:
    """Mean squared difference of the attention and the soft haematoxylin mask (ours)."""
    return (attention - target).square().mean()


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's rank correlation within each image, mean over the batch.

    Parameters
    ----------
    a, b : (B, 1, H, W) float Tensor
        Ties are broken by position: meant for continuous values.
    """
    ranks = [x.float().flatten(1).argsort(dim=1).argsort(dim=1).float() for x in (a, b)]
    first, second = (r - r.mean(dim=1, keepdim=True) for r in ranks)
    return ((first * second).mean(dim=1) / first.square().mean(dim=1)).mean()


@dataclass(frozen=True)
class Losses:
    """The losses of one batch.

    Parameters
    ----------
    total : () float Tensor
        To be minimised (equation 5): the sum of `terms`.
    terms : mapping of str to () float Tensor
        Weighted losses.
    measures : mapping of str to () float Tensor
        Quantities that are logged but not minimised; no gradient.
    """

    total: Tensor
    terms: Mapping[str, Tensor]
    measures: Mapping[str, Tensor]


def training_losses(
    attention_net: AttentionNet,
    activation: AttentionActivation,
    scale_net: nn.Module,
    rgb: Tensor,
    labels: Tensor,
    recipe: AttentionRecipe,
    transform: Callable[[Tensor], Tensor],
) -> Losses:
    """Run both networks on a batch and return every loss of the recipe (equation 5).

    Parameters
    ----------
    attention_net, activation, scale_net
        F, sigma and G, in training mode.
    rgb : (B, 3, H, W) float Tensor
        0..1.
    labels : (B,) int64 Tensor
        Index of each image's magnification in ``recipe.scales``.
    recipe : AttentionRecipe
        A term whose weight is 0 is not computed.
    transform : callable
        t of the equivariance, one of `TRANSFORMS`.
    """
    image = normalise(rgb)
    confidence = attention_net(image)
    attention = activation(confidence)
    scores = scale_net(attention * image)
    terms = {"scale": scale_loss(scores, labels)}
    if recipe.smoothness_weight:
        terms["smoothness"] = recipe.smoothness_weight * smoothness_loss(attention)
    if recipe.equivariance_weight:
        target = _attention_to_compare(attention_net, activation, transform(image))
        terms["equivariance"] = recipe.equivariance_weight * equivariance_loss(
            transform(attention), target
        )
    if recipe.scale_equivariance_weight:
        finest = labels == 0  # 40x: at half size it looks like 20x, which the batch holds too
        target = _attention_to_compare(attention_net, activation, half_size(image[finest]))
        terms["scale equivariance"] = recipe.scale_equivariance_weight * equivariance_loss(
            half_size(attention[finest]), target
        )
    # Optical densities and their quantiles need full precision, whatever the networks use.
    with torch.no_grad(), torch.autocast(rgb.device.type, enabled=False):
        haematoxylin = haematoxylin_density(rgb)
    if recipe.anchor_weight:
        terms["anchor"] = recipe.anchor_weight * anchor_loss(
            attention, anchor_target(haematoxylin, recipe.anchor_eta)
        )
    with torch.no_grad():
        measures = {
            "scale accuracy": (scores.argmax(dim=1) == labels).float().mean(),
            "tau": activation.tau.clone(),
            "attention fraction": (attention > 0.5).float().mean(),
            "anchor agreement": rank_correlation(
                confidence[..., ::4, ::4], haematoxylin[..., ::4, ::4]
            ),
        }
    return Losses(torch.stack(list(terms.values())).sum(), terms, measures)


def normalise(rgb: Tensor) -> Tensor:
    """Bring RGB in 0..1, (B, 3, H, W), to the ImageNet mean and standard deviation."""
    normalised: Tensor = image_functional.normalize(rgb, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return normalised


def _attention_to_compare(
    attention_net: AttentionNet, activation: AttentionActivation, image: Tensor
) -> Tensor:
    """Attention without a gradient, with running tau.

    BatchNorm has the statistics of the batch, as in the first pass and in the authors' code: the
    running ones are far off early on, and then tell F to be equivariant to something else.
    """
    with torch.no_grad(), _tau_kept(activation):
        attention: Tensor = activation(attention_net(image))
    return attention


@contextmanager
def _tau_kept(activation: AttentionActivation) -> Iterator[None]:
    training = activation.training
    activation.eval()
    try:
        yield
    finally:
        activation.train(training)
