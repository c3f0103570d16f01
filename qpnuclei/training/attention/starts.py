"""Several starts of a training run from random weights, and the choice of the best."""

from __future__ import annotations

import logging
import math
from pathlib import Path

import numpy as np
import torch

from qpnuclei.errors import TrainingError
from qpnuclei.system.distributed import any_rank, rank_0_first
from qpnuclei.training.attention.batches import Batches, draw_transform
from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.scale import load_backbone
from qpnuclei.training.callbacks import Watcher
from qpnuclei.training.config import AttentionRecipe

_log = logging.getLogger(__name__)


def first_learner(
    recipe: AttentionRecipe,
    batches: Batches,
    device: torch.device,
    seed: int,
    backbone_weights: Path | None,
    watcher: Watcher,
) -> Learner | None:
    """Make what a new run starts with: of several starts, the one that agrees best with the stain.

    Parameters
    ----------
    recipe : AttentionRecipe
    batches : Batches
        All starts see the same ones, and the run itself does not see them.
    device : torch.device
    seed : int
        The first start has the random weights of this seed.
    backbone_weights : pathlib.Path or None
        What G starts from, instead of what the recipe says.
    watcher : Watcher

    Returns
    -------
    Learner or None
        None if it was asked to stop.

    Raises
    ------
    qpnuclei.errors.TrainingError
        If the losses of no start stayed numbers.

    Notes
    -----
    The sign of the attention is decided within some fifty batches, and a start that goes to the
    background does not come back. The rank correlation of attention and haematoxylin, mean over
    the second half of these batches, needs no label and tells the two apart.
    """
    if recipe.starts == 1:
        return _new_learner(recipe, device, seed, backbone_weights)
    first = recipe.epochs * recipe.batches_per_epoch
    chosen: Learner | None = None
    best = -math.inf
    for number in range(recipe.starts):
        drawn = np.random.SeedSequence((seed, number)).generate_state(1)
        learner = _new_learner(recipe, device, int(drawn[0]) if number else seed, backbone_weights)
        agreements = []
        try:
            for batch in range(first, first + recipe.start_batches):
                if any_rank(watcher.stop_requested(), device):
                    return None
                metrics = learner.step(*batches[batch], draw_transform(seed, batch))
                agreements.append(metrics["anchor agreement"])
                watcher.batch(0, batch - first + 1, metrics)
        except FloatingPointError as error:
            _log.info("start %d of %d: %s", number + 1, recipe.starts, error)
            continue
        agreement = float(np.mean(agreements[len(agreements) // 2 :]))
        _log.info(
            "start %d of %d: agreement with haematoxylin %.2f", number + 1, recipe.starts, agreement
        )
        if agreement > best:
            chosen, best = learner, agreement
    if chosen is None:
        raise TrainingError(
            f"none of {recipe.starts} starts kept finite losses",
            "try a lower --set learning_rate, --set gradient_clip=1, or another --seed",
        )
    _log.info("training continues from the start with agreement %.2f", best)
    return chosen


def _new_learner(
    recipe: AttentionRecipe, device: torch.device, seed: int, backbone_weights: Path | None
) -> Learner:
    with rank_0_first():
        learner = Learner(recipe, device, seed, imagenet=backbone_weights is None)
    if backbone_weights is not None:
        load_backbone(learner.scale_net, backbone_weights)
    return learner
