"""Models in Python: train, adapt, evaluate."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.choices import Range
from qpnuclei.errors import UsageError, quoted
from qpnuclei.models.registry import DEFAULT_MODEL
from qpnuclei.system.arguments import (
    checked_count,
    checked_flag,
    checked_name,
    checked_text,
    checked_texts,
    listed,
    path_or_none,
)

if TYPE_CHECKING:
    from qpnuclei.evaluation.report import Report
    from qpnuclei.training.adaptation import Adaptation
    from qpnuclei.training.callbacks import TrainingCallbacks, TrainingResult

_SEED = Range(0, None, "")


def train(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    config: str = "student",
    settings: Mapping[str, Any] | None = None,
    *,
    mpp: float | None = None,
    roi: Sequence[str] = (),
    device: str = "auto",
    seed: int = 0,
    validation: str | os.PathLike[str] | None = None,
    resume: bool = False,
    callbacks: TrainingCallbacks | None = None,
) -> TrainingResult:
    """Train a model on unlabelled tissue, like ``qpnuclei train`` in one process.

    Parameters
    ----------
    sources : sequence of path-like
        Slides, images, folders of them, or QuPath projects.
    folder : path-like
        Folder for the model and all other output.
    config : str
        Name of a recipe, or its YAML file.
    settings : mapping, optional
        Fields of the recipe to change.
    mpp : float, optional
        µm/px of all sources and validation images; overrides the files.
    roi : sequence of str
        Train only inside annotations of these classes in projects.
    device : str
        See `qpnuclei.models.device.resolve_device`.
    seed : int
    validation : path-like, optional
        Labelled images that choose the epoch and the post-processing.
    resume : bool
        Continue the training in `folder`.
    callbacks : TrainingCallbacks, optional
        Called with the progress; they may stop the training.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the recipe, the sources or the folder cannot be used, or the training failed.

    Examples
    --------
    This training is far too small and short to learn anything:

    >>> import numpy as np
    >>> from PIL import Image
    >>> noise = np.random.default_rng(0).normal((200, 130, 170), 25, (256, 256, 3))
    >>> Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save("patch.png")
    >>> tiny = {"width": 4, "dilations": [1], "scale_width": 4, "scales": [0.25, 0.5],
    ...     "tile_px": 112, "crop_px": 64, "batch_size": 2, "batches_per_epoch": 1, "epochs": 1}
    >>> result = train(["patch.png"], "training", "anchored", tiny, mpp=0.25, device="cpu")
    >>> result.epochs, result.model.name
    (1, 'model.safetensors')
    """
    from qpnuclei.models.device import resolve_device
    from qpnuclei.training.config import read_recipe
    from qpnuclei.training.sources import find_sources
    from qpnuclei.training.train import check_recipe, train_model

    checked_seed = checked_count("seed", seed, _SEED)
    fields = {**read_recipe(checked_name("config", config)), **_checked_settings(settings)}
    check_recipe(fields)
    found = find_sources(
        [Path(source) for source in listed(sources)],
        mpp=() if mpp is None else [mpp],
        roi=checked_texts("roi", roi),
    )
    return train_model(
        fields,
        found,
        Path(folder),
        device=resolve_device(checked_text("device", device)),
        seed=checked_seed,
        validation=path_or_none(validation),
        mpp=mpp,
        resume=checked_flag("resume", resume),
        callbacks=callbacks,
    )


def adapt(
    sources: Sequence[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    settings: Mapping[str, Any] | None = None,
    *,
    images: Sequence[str] = (),
    roi: Sequence[str] = (),
    corrections: Sequence[str] = (),
    truth_class: Sequence[str] = (),
    mpp: float | None = None,
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    callbacks: TrainingCallbacks | None = None,
) -> Adaptation:
    """Adapt a model to your own slides, like ``qpnuclei adapt``.

    Parameters
    ----------
    sources : sequence of path-like
        Projects, slides, image patches or folders of them.
    folder : path-like
        New folder for the model, its card, and the record of what changed.
    model : path-like
        Model to start from: its name, or the file of a student.
    settings : mapping, optional
        Fields of the recipe ``adapted`` to change.
    images : sequence of str
        Names or patterns of images of the projects; all by default.
    roi : sequence of str
        Learn only inside annotations of these classes.
    corrections : sequence of str
        Classes of annotations in which every nucleus is drawn. The training learns from these
        nuclei, too.
    truth_class : sequence of str
        Classes of the drawn nuclei; ``Nucleus`` by default.
    mpp : float, optional
        µm/px of all sources; overrides the projects and files.
    device : str
        See `qpnuclei.models.device.resolve_device`.
    seed : int
        Seed of all random choices.
    resume : bool
        Continue the run in `folder`.
    callbacks : TrainingCallbacks, optional
        Called with the progress; they may stop the training.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the model, the sources, the annotations or the folder cannot be used, or it failed.

    Examples
    --------
    This training is far too short to learn anything:

    >>> import numpy as np
    >>> from PIL import Image
    >>> y, x = np.mgrid[:320, :320]
    >>> rgb = np.full((320, 320, 3), (225, 165, 200), np.uint8)
    >>> rgb[(y % 64 - 32) ** 2 + (x % 64 - 32) ** 2 < 200] = (95, 60, 140)
    >>> Image.fromarray(rgb).save("ours.png")
    >>> short = {"first_round_batches": 1, "batch_size": 2, "crop_px": 64, "renditions": 0}
    >>> result = adapt(["ours.png"], "adapted", settings=short, mpp=0.25, device="cpu")
    >>> result.training.model.name, len(result.changes)
    ('model.safetensors', 1)
    """
    from qpnuclei.evaluation.boxes import read_corrected
    from qpnuclei.models.device import resolve_device
    from qpnuclei.training.adaptation import adapt as adapt_model
    from qpnuclei.training.sources import find_sources

    checked_seed, changed = checked_count("seed", seed, _SEED), _checked_settings(settings)
    paths, images = [Path(source) for source in listed(sources)], checked_texts("images", images)
    sizes, roi = () if mpp is None else [mpp], checked_texts("roi", roi)
    found = find_sources(paths, mpp=sizes, roi=roi, images=images)
    drawn = read_corrected(
        paths,
        checked_texts("corrections", corrections),
        checked_texts("truth_class", truth_class),
        images=images,
        mpp=mpp,
    )
    return adapt_model(
        found,
        Path(folder),
        model=checked_name("model", model),
        settings=changed,
        device=resolve_device(checked_text("device", device)),
        seed=checked_seed,
        resume=checked_flag("resume", resume),
        callbacks=callbacks,
        corrections=drawn.images,
    )


def evaluate(
    dataset: str | os.PathLike[str],
    model: str | os.PathLike[str] | None = None,
    *,
    split: str | None = None,
    layout: str = "auto",
    roi: Sequence[str] = (),
    truth_class: Sequence[str] = (),
    **options: Any,
) -> Report:
    """Measure a model on annotated images, like ``qpnuclei evaluate``.

    Parameters
    ----------
    dataset : path-like
        Folder of the images and their labels; or a project, with `roi`.
    model : path-like, optional
        Model as for ``qpnuclei run``; the default model if not given.
    split : str, optional
        Only the images of this split.
    layout : str
        Layout of the folder; see ``qpnuclei evaluate --format``.
    roi : sequence of str
        Classes of the annotations of a project in which all nuclei are drawn.
    truth_class : sequence of str
        Classes of the drawn nuclei; see ``qpnuclei evaluate --truth-class``.
    **options
        Further fields of `qpnuclei.evaluation.evaluate.EvaluationOptions`.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the model, the device, an image or its labels are missing or cannot be used.

    Examples
    --------
    >>> import numpy as np
    >>> from pathlib import Path
    >>> from PIL import Image
    >>> y, x = np.mgrid[:256, :256]
    >>> nucleus = (y - 120) ** 2 + (x - 130) ** 2 < 256
    >>> rgb = np.full((256, 256, 3), (235, 200, 225), np.uint8)
    >>> rgb[nucleus] = (90, 60, 140)
    >>> for folder, picture in (("images", rgb), ("labels", nucleus.astype(np.uint16))):
    ...     Path("labelled", folder).mkdir(parents=True)
    ...     Image.fromarray(picture).save(f"labelled/{folder}/one.png")
    >>> report = evaluate("labelled", mpp=0.25, device="cpu")
    >>> report.result.mean["recall"]
    1.0
    """
    from qpnuclei.evaluation.evaluate import EvaluationOptions, evaluate_model
    from qpnuclei.evaluation.reading import read_annotated

    named = DEFAULT_MODEL if model is None else checked_name("model", model)
    chosen = EvaluationOptions(named, **options)
    read = read_annotated(
        Path(dataset),
        layout,
        split,
        roi=checked_texts("roi", roi),
        truth_classes=checked_texts("truth_class", truth_class),
        mpp=chosen.mpp,
    )
    return evaluate_model(read.images, read.described, chosen, notes=read.notes)


def _checked_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    if settings is not None and not isinstance(settings, Mapping):
        raise UsageError(
            f"settings={quoted(settings)}: no fields of a recipe", "give a dict of name to value"
        )
    return dict(settings or {})
