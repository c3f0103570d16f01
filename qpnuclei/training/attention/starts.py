"""Several starts of a training run from random weights, and the choice of the best."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import torch

from qpnuclei.errors import TrainingError, number_of
from qpnuclei.system.distributed import any_rank, rank_0_first
from qpnuclei.training.attention.batches import Batches, draw_transform
from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.scale import load_backbone
from qpnuclei.training.callbacks import TrainingCallbacks
from qpnuclei.training.config import AttentionRecipe

_log = logging.getLogger(__name__)

#: Number of the first batch of the starts. The epochs see none of theirs; the four epochs of 100
#: batches that narrow networks have by default end before it.
_FIRST_OF_STARTS = 400


def epoch_batches(recipe: AttentionRecipe) -> Sequence[int]:
    """Return the numbers of the batches of all epochs, in order.

    Those of the first epochs do not depend on the number of epochs, which may be increased later.

    Examples
    --------
    >>> from qpnuclei.training.config import attention_recipe
    >>> fields = {"name": "t", "origin": "ours", "batches_per_epoch": 100, "epochs": 5}
    >>> epoch_batches(attention_recipe(fields | {"starts": 8}))[398:402]
    [398, 399, 450, 451]
    """
    total = recipe.epochs * recipe.batches_per_epoch
    if recipe.starts == 1:
        return range(total)
    before = range(min(total, _FIRST_OF_STARTS))
    after = _FIRST_OF_STARTS + recipe.start_batches
    return [*before, *range(after, after + total - len(before))]


def first_learner(
    recipe: AttentionRecipe,
    batches: Batches,
    device: torch.device,
    seed: int,
    backbone_weights: Path | None,
    callbacks: TrainingCallbacks,
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
    callbacks : TrainingCallbacks

    Returns
    -------
    Learner or None
        None if it was asked to stop.

    Raises
    ------
    qpnuclei.errors.TrainingError
        If the loss of every start became NaN or infinite.

    Notes
    -----
    The sign of the attention is decided within some fifty batches, and a start that goes to the
    background does not come back. The rank correlation of attention and haematoxylin, mean over
    the second half of the batches so far, needs no label and tells the two apart. The worse half
    of the starts is given up after a quarter of the batches, and again after half of them
    (successive halving [1]_).

    References
    ----------
    .. [1] K. Jamieson, A. Talwalkar, "Non-stochastic Best Arm Identification and Hyperparameter
       Optimization", AISTATS 2016.
    """
    imagenet = recipe.scale_weights == "imagenet"
    weights = backbone_weights or ("ImageNet weights" if imagenet else "random weights")
    _log.info("scale network %s starts from %s", recipe.scale_network, weights)
    if recipe.starts == 1:
        return _new_learner(recipe, device, seed, backbone_weights)
    starts = [
        _Start.made(number, recipe, device, seed, backbone_weights)
        for number in range(recipe.starts)
    ]
    callbacks.on_starts_begin(_batches_of_starts(recipe))
    seen = itertools.count(1)
    for stop in _stops(recipe):
        for start in starts:
            if not start.train(stop, batches, seed, callbacks, seen):
                return None
        starts = sorted(
            (start for start in starts if not start.is_broken),
            key=lambda start: start.agreement,
            reverse=True,
        )
        if not starts:
            raise TrainingError(
                f"none of {recipe.starts} starts kept finite losses",
                "try a lower --set learning_rate, --set gradient_clip=1, or another --seed",
            )
        for start in starts:
            _log.info(
                "start %d of %d: agreement with haematoxylin after %s %.2f",
                start.number + 1,
                recipe.starts,
                number_of(stop, "batch", "batches"),
                start.agreement,
            )
        starts = starts[: -(-len(starts) // 2)]
    best = starts[0]
    _log.info("training continues from the start with agreement %.2f", best.agreement)
    best.learner.activation.eta = recipe.eta
    return best.learner


def _stops(recipe: AttentionRecipe) -> tuple[int, int, int]:
    """Return after how many batches of a start the worse half is given up, and how many it has."""
    return recipe.start_batches // 4, recipe.start_batches // 2, recipe.start_batches


def _batches_of_starts(recipe: AttentionRecipe) -> int:
    """Return the number of batches that all starts see together, if none breaks."""
    total, before, alive = 0, 0, recipe.starts
    for stop in _stops(recipe):
        total += alive * (stop - before)
        before, alive = stop, -(-alive // 2)
    return total


@dataclass
class _Start:
    """A start, and what it has come to."""

    number: int
    learner: Learner
    agreements: list[float] = field(default_factory=list)
    is_broken: bool = False

    @classmethod
    def made(
        cls,
        number: int,
        recipe: AttentionRecipe,
        device: torch.device,
        seed: int,
        backbone_weights: Path | None,
    ) -> Self:
        drawn = np.random.SeedSequence((seed, number)).generate_state(1)
        own_seed = int(drawn[0]) if number else seed
        learner = _new_learner(recipe, device, own_seed, backbone_weights)
        if recipe.start_eta is not None:
            learner.activation.eta = recipe.start_eta
        return cls(number, learner)

    @property
    def agreement(self) -> float:
        """With haematoxylin, mean over the second half of the batches so far."""
        return float(np.mean(self.agreements[len(self.agreements) // 2 :]))

    def train(
        self,
        stop: int,
        batches: Batches,
        seed: int,
        callbacks: TrainingCallbacks,
        seen: Iterator[int],
    ) -> bool:
        """Train until `stop` batches were seen; return False if asked to stop.

        The next of `seen` is the number of a batch among those of all starts, from 1.
        """
        try:
            for done in range(len(self.agreements), stop):
                if any_rank(callbacks.stop_requested(), self.learner.device):
                    return False
                batch = _FIRST_OF_STARTS + done
                metrics = self.learner.step(*batches[batch], draw_transform(seed, batch))
                self.agreements.append(metrics["anchor agreement"])
                callbacks.on_batch_end(0, next(seen), metrics)
        except FloatingPointError as error:
            _log.info("start %d: %s", self.number + 1, error)
            self.is_broken = True
        return True


def _new_learner(
    recipe: AttentionRecipe, device: torch.device, seed: int, backbone_weights: Path | None
) -> Learner:
    with rank_0_first():
        learner = Learner(recipe, device, seed, imagenet=backbone_weights is None)
    if backbone_weights is not None:
        load_backbone(learner.scale_net, backbone_weights)
    return learner
