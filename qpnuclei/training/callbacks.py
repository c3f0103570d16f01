"""Callbacks and results of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


class StopRequested(Exception):  # noqa: N818, it is no error
    """Ends a step that saves nothing of its own, such as the choice of the post-processing."""


class Watcher:
    """Receives the progress of a training, and may ask it to stop; this one does nothing."""

    def expect(self, epochs: int, batches_per_epoch: int) -> None:
        """Receive the length of the training of an attention recipe."""

    def tiles(self, done: int, total: int) -> None:
        """Receive how many sources have been cut into tiles."""

    def round(self, number: int, rounds: int, batches: int) -> None:
        """Receive the number of a student's round (from 1), of how many, and its batches."""

    def labels(self, done: int, total: int) -> None:
        """Receive how many patches have been labelled for the next round of a student."""

    def begins(self, batches: int, seconds_per_batch: float) -> None:
        """Receive the number of remaining batches and the expected seconds of each."""

    def starts(self, batches: int) -> None:
        """Receive the number of batches of all starts of an attention recipe, before the first."""

    def batch(self, epoch: int, batch: int, metrics: Mapping[str, float]) -> None:
        """Receive the metrics of a batch (both numbers from 1; epoch 0 are the starts)."""

    def epoch(self, epoch: int, metrics: Mapping[str, float], kept: bool) -> None:
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
