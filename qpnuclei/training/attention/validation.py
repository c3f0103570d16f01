"""Agreement of the attention with labelled nuclei: it selects the epoch, and trains nothing."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from torch import nn

from qpnuclei.evaluation.metrics import foreground_dice
from qpnuclei.evaluation.tuning import LabelledImage, predict
from qpnuclei.models.metadata import ModelMetadata
from qpnuclei.segmentation.predictor import Predictor


def pixel_auc(attention: npt.NDArray[np.floating[Any]], mask: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve of the pixels: how often nucleus lies above background.

    Parameters
    ----------
    attention : (H, W) float ndarray
    mask : (H, W) bool ndarray

    Returns
    -------
    float
        0..1, ties counting half (Mann and Whitney's U); NaN if the mask is all of one kind.
    """
    positives = int(mask.sum())
    negatives = mask.size - positives
    if not positives or not negatives:
        return float("nan")
    ranks = scipy.stats.rankdata(attention).reshape(mask.shape)
    above = ranks[mask].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def validate(
    network: nn.Module,
    metadata: ModelMetadata,
    images: Sequence[LabelledImage],
    device: torch.device,
) -> dict[str, float]:
    """Return ``dice`` and ``pixel_auc`` of the attention, each the mean over the images.

    Dice is that of attention above one half, as the paper records it at intermediate epochs
    (section 3.4).
    """
    # A copy, because the predictor changes its network to evaluation mode and another memory
    # layout.
    predictor = Predictor.of_network(copy.deepcopy(network), metadata, device)
    dice, auc = [], []
    for image in predict(predictor, images):
        foreground = (image.attention > 0.5).view(np.uint8)
        dice.append(foreground_dice(image.labels, foreground))
        auc.append(pixel_auc(image.attention, image.labels > 0))
    return {"dice": float(np.mean(dice)), "pixel_auc": float(np.nanmean(auc))}
