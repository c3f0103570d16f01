"""How well the attention meets labelled nuclei: it chooses the epoch, and nothing else."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import scipy.stats
import torch
from torch import nn

from qpnuclei.errors import FormatError
from qpnuclei.evaluation.datasets import read_folder
from qpnuclei.evaluation.metrics import foreground_dice
from qpnuclei.nn.metadata import ModelMetadata
from qpnuclei.nn.segmenter import Segmenter, resample
from qpnuclei.slides.resolution import resolve_mpp, working_downsample
from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.stains import ReinhardStatistics, reinhard_statistics

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """One image at the model's resolution.

    Parameters
    ----------
    name : str
    rgb : (H, W, 3) uint8 ndarray
    mask : (H, W) bool ndarray
        True on nuclei.
    statistics : ReinhardStatistics
        Of all of `rgb`.
    """

    name: str
    rgb: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.bool_]
    statistics: ReinhardStatistics


def read_validation(folder: Path, mpp: float | None, model_mpp: float) -> list[LabelledImage]:
    """Read a folder with ``images/`` and ``labels/``; with ``splits.json``, its split ``val``.

    Parameters
    ----------
    folder : pathlib.Path
    mpp : float or None
        Resolution of the images in µm/px; None if the files know it.
    model_mpp : float
        Resolution to bring them to.

    Raises
    ------
    qpnuclei.errors.NotFoundError, qpnuclei.errors.FormatError, qpnuclei.errors.UsageError
        As `qpnuclei.evaluation.datasets.read_folder`, and if labels differ from their image in
        size.
    qpnuclei.errors.MppError
        If the resolution is not known, or absurd.
    """
    split = "val" if (folder / "splits.json").is_file() else None
    images = []
    for annotated in read_folder(folder, split=split):
        with open_slide(annotated.image_path) as slide:
            true_mpp, _ = resolve_mpp(mpp, None, slide.mpp, str(annotated.image_path))
        rgb, labels = annotated.read_image(), annotated.read_labels()
        if rgb.shape[:2] != labels.shape:
            raise FormatError(
                f"{annotated.labels_path} has {labels.shape} px, its image {rgb.shape[:2]}"
            )
        downsample = working_downsample(true_mpp, model_mpp)
        rgb = resample(rgb, 1 / downsample[0])
        foreground = (labels > 0).astype(np.uint8)
        mask = cv2.resize(foreground, rgb.shape[1::-1], interpolation=cv2.INTER_NEAREST_EXACT) > 0
        images.append(LabelledImage(annotated.name, rgb, mask, reinhard_statistics(rgb)))
    _log.info("validation on %d images of %s", len(images), folder)
    return images


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
    # A copy: the segmenter puts its network into evaluation mode and another memory layout.
    segmenter = Segmenter(copy.deepcopy(network), metadata, device)
    dice, auc = [], []
    for image in images:
        attention, _ = segmenter.attend_image(image.rgb, image.statistics)
        dice.append(foreground_dice(image.mask.view(np.uint8), (attention > 0.5).view(np.uint8)))
        auc.append(pixel_auc(attention, image.mask))
    return {"dice": float(np.mean(dice)), "pixel_auc": float(np.nanmean(auc))}
