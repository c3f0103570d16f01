"""Quality of a student on labelled images, original and recoloured.

The quality decides the round and the post-processing; the labels are not used for training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace

from qpnuclei.errors import number_of
from qpnuclei.evaluation.tuning import (
    RECOLOURINGS,
    LabelledImage,
    PredictedImage,
    predict,
    recoloured,
    summarise,
    tune_post_processing,
)
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import PostProcessing
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.training.callbacks import TrainingCallbacks

_log = logging.getLogger(__name__)


def predict_both(
    predictor: Predictor,
    labelled: Sequence[LabelledImage],
    before_image: Callable[[], object] = lambda: None,
) -> tuple[list[PredictedImage], list[PredictedImage]]:
    """Return what a model sees in the validation images, as they are and recoloured.

    Of the latter there are `RECOLOURINGS` times as many: all with the first seed come first.
    """
    changed = [i for seed in range(RECOLOURINGS) for i in recoloured(labelled, seed)]
    return (
        predict(predictor, labelled, before_image),
        predict(predictor, changed, before_image),
    )


def quality(
    predicted: Sequence[PredictedImage],
    changed: Sequence[PredictedImage],
    parameters: PostProcessing,
) -> dict[str, Any]:
    """Return the quality on the validation images; below ``recoloured`` the means on those."""
    return {
        **summarise(predicted, parameters),
        "recoloured": summarise(changed, parameters)["mean"],
    }


def tune(
    path: Path,
    labelled: Sequence[LabelledImage],
    start: PostProcessing,
    device: torch.device,
    callbacks: TrainingCallbacks,
) -> None:
    """Give a model file the post-processing that suits it best in all colours.

    The search begins at `start`, whatever the file holds. So if it was interrupted after the file
    was replaced, it gives the same again. The new header also holds the quality.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the file is no model or cannot be written.
    qpnuclei.training.callbacks.StopRequested
        If a stop is requested; the file is unchanged.
    """
    network, metadata = load_model(path)
    _log.info("choosing the post-processing on %s", number_of(len(labelled), "image"))
    predictor = Predictor.of_network(network, metadata, device)
    predicted, changed = predict_both(predictor, labelled, callbacks.check_stop)
    # Once in their own colours and once in others: a second time would cost more than it tells.
    both = [*predicted, *changed[: len(predicted)]]
    parameters = tune_post_processing(
        both, start, lambda *_: callbacks.check_stop(), mpp=metadata.mpp
    )
    measured = quality(predicted, changed, parameters)
    tuned = replace(metadata, post_processing=parameters, validation=measured)
    save_model(path, network.cpu(), tuned)
