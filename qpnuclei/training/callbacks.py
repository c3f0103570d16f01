"""Callbacks and results of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class StopRequested(Exception):  # noqa: N818, it is no error
    """Ends a step that saves nothing of its own, such as the choice of the post-processing."""


class TrainingCallbacks:
    """What a training calls while it runs; subclass it to show its progress, or to stop it.

    These methods do nothing, and never request a stop.

    Examples
    --------
    >>> class Losses(TrainingCallbacks):
    ...     def on_batch_end(self, epoch, batch, metrics):
    ...         print(epoch, batch, metrics)
    >>> Losses().on_batch_end(1, 20, {"loss": 0.5})
    1 20 {'loss': 0.5}
    """

    def on_train_begin(self, epochs: int, batches_per_epoch: int) -> None:
        """Receive the length of the training of an attention recipe."""

    def on_tiles(self, done: int, total: int) -> None:
        """Receive how many sources have been cut into tiles."""

    def on_round_begin(self, number: int, rounds: int, batches: int) -> None:
        """Receive the number of a student's round (from 1), of how many, and its batches."""

    def on_labels(self, done: int, total: int) -> None:
        """Receive how many patches have been labelled for the next round of a student."""

    def on_estimate(self, batches: int, seconds_per_batch: float) -> None:
        """Receive the number of remaining batches and the expected seconds of each."""

    def on_starts_begin(self, batches: int) -> None:
        """Receive the number of batches of all starts of an attention recipe, before the first."""

    def on_batch_end(self, epoch: int, batch: int, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of a batch (both numbers from 1; epoch 0 are the starts)."""

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], kept: bool) -> None:
        """Receive the metrics of an epoch or round (from 1), and whether its model was kept."""

    def stop_requested(self) -> bool:
        """Tell whether to save and stop before the next batch."""
        return False

    def check_stop(self) -> None:
        """Raise `StopRequested` if a stop is requested."""
        if self.stop_requested():
            raise StopRequested


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training.

    Parameters
    ----------
    model : pathlib.Path or None
        The model file of the best epoch; None if the run was stopped before its first.
    epochs : int
        Epochs done; of a student, rounds.
    best_epoch : int or None
    best_score : float or None
        By which the best epoch was chosen; None without validation.
    score_name : str
        What it is: ``"validation Dice"``; of a student ``"validation AJI"``, the mean of the images
        as they are and recoloured.
    stopped : bool
        Whether it was asked to stop before its end.
    """

    model: Path | None
    epochs: int
    best_epoch: int | None
    best_score: float | None
    score_name: str
    stopped: bool
