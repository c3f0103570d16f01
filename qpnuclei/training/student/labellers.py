"""What predicts the labels of a student's round: one or more models, at one or more scales.

Models that learned from different tissue miss different nuclei. A student of their mean [1]_ learns
from all of them, and remains one network. In the same way, a model at several scales knows more
than at one: it parts small nuclei better if the image is enlarged, and keeps large ones whole if it
is reduced.

References
----------
.. [1] S. You et al., "Learning from Multiple Teacher Networks", KDD 2017.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from qpnuclei.errors import UsageError
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.segmentation.quantised import FloatMap
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.scaling import resized, scaled


class Labeller(Protocol):
    """Predicts the maps of an image, as `Predictor` does."""

    def predict_image(self, rgb: RGB) -> tuple[FloatMap, FloatMap | None]:
        """Return the (H, W) float32 attention and centre map of (H, W, 3) uint8 pixels."""


@dataclass(frozen=True)
class MeanOfModels:
    """The mean of the maps of several students.

    Parameters
    ----------
    models : sequence of Labeller
        At least one. All have a centre map and the same resolution.
    """

    models: Sequence[Labeller]

    def predict_image(self, rgb: RGB) -> tuple[FloatMap, FloatMap | None]:
        """Return the mean attention and the mean centre map."""
        attention, centre = zip(*(model.predict_image(rgb) for model in self.models), strict=True)
        return np.mean(attention, axis=0), np.mean(centre, axis=0)


@dataclass(frozen=True)
class AtSeveralScales:
    """The mean of the maps that a model predicts for an image enlarged and reduced.

    Parameters
    ----------
    model : Labeller
        A student.
    scales : sequence of float
        Factors of the size of the image, at least one.
    """

    model: Labeller
    scales: Sequence[float]

    def predict_image(self, rgb: RGB) -> tuple[FloatMap, FloatMap | None]:
        """Return the mean attention and the mean centre map, both in the size of `rgb`."""
        mean = np.zeros((*rgb.shape[:2], 2), np.float32)
        for scale in self.scales:
            attention, centre = self.model.predict_image(scaled(rgb, scale))
            assert centre is not None  # students have one
            maps = np.stack([attention, centre], axis=-1)
            mean += resized(maps, *rgb.shape[:2]) / np.float32(len(self.scales))
        return mean[..., 0], mean[..., 1]


def load_labellers(names: Sequence[str], mpp: float, device: torch.device) -> MeanOfModels:
    """Load the students that label a round together.

    Parameters
    ----------
    names : sequence of str
        Names of packaged models, or files.
    mpp : float
        Resolution of the student that learns from them, in µm/px; they must have the same.
    device : torch.device

    Raises
    ------
    qpnuclei.errors.UsageError
        If one is not a student, or has another resolution.
    qpnuclei.errors.NotFoundError, qpnuclei.errors.ModelError
        If there is no such model, or it cannot be loaded.
    """
    models = [Predictor.load(name, str(device)) for name in names]
    for name, model in zip(names, models, strict=True):
        if model.metadata.family != "student" or model.mpp != mpp:
            raise UsageError(
                f"labeller {name!r} is a model of the family {model.metadata.family!r} at "
                f"{model.mpp} µm/px; the recipe needs students at {mpp} µm/px",
                "take a model that train --config student made at this resolution",
            )
    return MeanOfModels(models)
