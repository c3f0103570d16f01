"""Training by any recipe: `train_model` calls the training of the recipe's family."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.system.distributed import rank
from qpnuclei.system.files import saving
from qpnuclei.training.callbacks import TrainingCallbacks, TrainingResult
from qpnuclei.training.config import attention_recipe
from qpnuclei.training.sources import Source

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


def train_model(
    fields: Mapping[str, Any],
    sources: Sequence[Source],
    folder: Path,
    *,
    device: torch.device,
    seed: int = 0,
    validation: Path | None = None,
    mpp: float | None = None,
    resume: bool = False,
    backbone_weights: Path | None = None,
    workers: int = 0,
    callbacks: TrainingCallbacks | None = None,
) -> TrainingResult:
    """Train the model that a recipe describes.

    Parameters
    ----------
    fields : mapping of str to Any
        Fields of the recipe; ``family`` says which kind, see
        `qpnuclei.training.config.read_recipe`.
    sources : sequence of Source
    folder : pathlib.Path
        For everything that the run writes.
    device : torch.device
    seed : int
    validation : pathlib.Path, optional
        Labelled images that choose the epoch or round, and the post-processing.
    mpp : float, optional
        Resolution of the validation images if their files do not state it.
    resume : bool
        Continue the run in `folder`.
    backbone_weights : pathlib.Path, optional
        Initial weights of the scale network of the attention family.
    workers : int
        Processes that read tiles for the attention family; 0 reads in this one.
    callbacks : TrainingCallbacks, optional

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If recipe, sources or folder do not allow the run, or it went wrong.
    """
    common: dict[str, Any] = {
        "device": device,
        "seed": seed,
        "validation": validation,
        "mpp": mpp,
        "resume": resume,
        "callbacks": callbacks,
    }
    with saving(folder):
        existed = folder.exists()
    if validation is not None and rank() == 0:
        from qpnuclei.evaluation.tuning import validation_doubts

        for doubt in validation_doubts(validation):
            _log.warning("%s", doubt)
    try:
        if is_student(fields):
            from qpnuclei.training.student.rounds import train_student

            return train_student(fields, sources, folder, **common)
        from qpnuclei.training.attention.loop import train_attention

        return train_attention(
            attention_recipe(fields),
            sources,
            folder,
            backbone_weights=backbone_weights,
            workers=workers,
            **common,
        )
    finally:
        # A refused run must leave no empty folder.
        if not existed:
            with suppress(OSError):
                folder.rmdir()


def check_recipe(fields: Mapping[str, Any]) -> None:
    """Check the fields of a recipe before any slide is opened.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming the first field that is unknown or out of range.
    """
    if is_student(fields):
        from qpnuclei.training.student.recipe import student_recipe

        student_recipe(fields)
    else:
        attention_recipe(fields)


def is_student(fields: Mapping[str, Any]) -> bool:
    """Tell whether a recipe is of the student family; otherwise it is of the attention family."""
    return fields.get("family") == "student"
