"""Evaluate a model and the classical baseline, and tune the post-processing on request."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from msgspec import structs

from qpnuclei.choices import Speed
from qpnuclei.errors import SaveError, UsageError
from qpnuclei.evaluation import classical
from qpnuclei.evaluation.datasets import AnnotatedImage, doubts_about_labels
from qpnuclei.evaluation.report import Report, json_intervals, json_numbers
from qpnuclei.evaluation.scoring import (
    Evaluation,
    Finder,
    ScoredImage,
    image_mpp,
    score_images,
)
from qpnuclei.evaluation.tuning import at_resolution, predict, recoloured, tune_post_processing
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import ModelMetadata, PostProcessing
from qpnuclei.models.registry import (
    DEFAULT_MODEL,
    WEIGHTS_FOLDER,
    check_speed,
    network_for,
    networks_of,
    resolve_model,
)
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.pipeline.image import segment
from qpnuclei.pipeline.summary import describe_model
from qpnuclei.segmentation.engine import (
    EngineOptions,
    EngineSpec,
    engine_specs,
    load_engine,
    split_model,
    views_of,
)
from qpnuclei.segmentation.maps_engine import MapsEngine
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.resolution import checked_mpp
from qpnuclei.system.arguments import check_fields, checked_flag, checked_name, checked_text
from qpnuclei.system.files import check_file_target, is_same_file, resolved
from qpnuclei.system.versions import versions

_log = logging.getLogger(__name__)

#: What the name of a model with other post-processing ends in.
_TUNED = "-tuned"

#: Called as ``progress(stage, done, total or None, note)``.
ProgressCallback = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True)
class EvaluationOptions:
    """Options of an evaluation.

    Parameters
    ----------
    model : path-like or None
        Name or file of a model; None for the classical baseline alone.
    speed : {"auto", "fast"}
        Network of the default model; see `qpnuclei.models.registry.network_for`.
    mpp : float or None
        µm/px of all images; overrides data set and files.
    device : str
        See `qpnuclei.models.device.resolve_device`.
    tta : bool or None
        Whether predictions are averaged over flips and rotations; None leaves it to the model.
    tune : bool
        Tune the model's post-processing on the images.
    write_model : path-like or None
        File for a copy of the model with the tuned post-processing.

    Raises
    ------
    UsageError
        If `model` is neither a name nor a path, `device` is no text, or `tta` or `tune` is neither
        true nor false.
    MppError
        If `mpp` is not 0.05 to 2.5 µm/px.
    """

    model: str | None = DEFAULT_MODEL
    speed: Speed = "auto"
    mpp: float | None = None
    device: str = "auto"
    tta: bool | None = None
    tune: bool = False
    write_model: Path | None = None

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[str, Any], object]] = {
            "model": checked_name,
            "mpp": checked_mpp,
            "device": checked_text,
            "tta": checked_flag,
            "tune": checked_flag,
        }
        check_fields(self, checks, may_be_none=["model", "mpp", "tta"])
        if self.write_model is not None:
            object.__setattr__(self, "write_model", Path(self.write_model))


def evaluate_model(
    images: Sequence[AnnotatedImage],
    dataset: dict[str, Any],
    options: EvaluationOptions,
    progress: ProgressCallback = lambda stage, done, total, note: None,
    notes: Sequence[str] = (),
) -> Report:
    """Evaluate a model on annotated images, and haematoxylin and Otsu on the same images.

    Parameters
    ----------
    images : sequence of AnnotatedImage
        At least one.
    dataset : dict
        Description of the data for the report: ``path``, ``format``, ``split``.
    options : EvaluationOptions
    progress : callable
    notes : sequence of str
        Remarks on the data that are necessary to interpret the figures.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        If the model, the device, an image or an annotation is missing or unusable, or a resolution
        is unknown; or if the file for the tuned model is in a folder that is not writable, or would
        replace a packaged model. If it cannot be written in the end, the report has the error.
    """
    started = time.time()
    _check_target(options)
    provenance: dict[str, Any] = {"arguments": asdict(options)}
    others: list[Evaluation] = []
    notes = list(notes)
    unwritten: SaveError | None = None
    for doubt in doubts_about_labels(images):
        _log.warning("%s", doubt)
        notes.append(doubt)
    if options.model is None:
        result = _measure(classical.NAME, classical.haematoxylin_nuclei, images, options, progress)
    else:
        check_speed(options.model, options.speed)
        specs = engine_specs(networks_of(options.model, options.speed))
        name = _label(options, specs)
        # Check everything before the first image is evaluated.
        models = _models_for(images, options)
        asked = EngineOptions(options.device, views=views_of(options.tta))
        engines = {model: load_engine(model, asked) for model in models}
        engine, *others_used = engines.values()
        to_tune = engine if options.tune and isinstance(engine, MapsEngine) else None
        if options.tune and to_tune is None:
            raise UsageError(
                f"--tune {options.model}: only models of qpnuclei have this post-processing",
                "leave --tune out, or name a model of qpnuclei",
            )

        def find(rgb: RGB, mpp: float) -> NucleiTable:
            """Find nuclei as a run does: the pixel size selects the default model's network."""
            model = network_for(str(options.model), mpp, options.speed)
            return segment(engines[model], rgb, mpp)

        result = _measure(name, find, images, options, progress)
        baseline = _measure(
            classical.NAME, classical.haematoxylin_nuclei, images, options, progress
        )
        others.append(baseline)
        if to_tune is not None:
            parameters = _tune(to_tune.predictor, images, options, progress)
            engine = tuned = to_tune.with_post_processing(parameters)
            engines[models[0]] = tuned  # the only one
            others.append(result)
            name = f"{name}, tuned"
            result = _measure(name, find, images, options, progress)
            notes += _tuning_notes(name, parameters)
            if options.write_model is not None:
                try:
                    _write_tuned(
                        options.write_model,
                        models[0],
                        tuned.predictor.metadata,
                        dataset,
                        result,
                    )
                    notes.append(f"Model with this post-processing: {options.write_model}")
                except SaveError as error:  # the figures are not lost with it
                    unwritten = error
                    notes.append(f"The model with this post-processing is missing: {error.what}.")
        provenance["models"] = [describe_model(e.spec) for e in (engine, *others_used)]
        provenance["device"] = engine.execution
    provenance["versions"] = versions()
    provenance["started"] = datetime.fromtimestamp(started).astimezone().isoformat(" ", "seconds")
    provenance["seconds"] = round(time.time() - started, 1)
    provenance["arguments"]["write_model"] = options.write_model and str(options.write_model)
    return Report(result, tuple(others), dataset, tuple(notes), provenance, unwritten)


def _check_target(options: EvaluationOptions) -> None:
    target = options.write_model
    if target is None:
        return
    if resolved(target).is_relative_to(WEIGHTS_FOLDER):
        raise UsageError(
            f"--write-model {target} is in the folder of the models that come with qpnuclei",
            "these are never changed: choose another folder",
        )
    if target.suffix != ".safetensors":
        raise UsageError(
            f"--write-model {target} does not end in .safetensors", "give it this suffix"
        )
    model = Path(split_model(str(options.model))[1])
    if is_same_file(target, model):
        raise UsageError(
            f"--write-model {target} is the model itself, and would be lost", "name another file"
        )
    check_file_target(target)


def _models_for(images: Sequence[AnnotatedImage], options: EvaluationOptions) -> list[str]:
    """Return the models that a run would use for the images.

    Raises
    ------
    UsageError
        If these are several models, and one should be tuned.
    qpnuclei.errors.MppError
        As `image_mpp`.
    """
    sizes = [image_mpp(image, options.mpp) for image in images]
    named = (network_for(str(options.model), mpp, options.speed) for mpp in sizes)
    models = list(dict.fromkeys(named))
    if options.tune and len(models) > 1:
        raise UsageError(
            f"--tune: the images need several models, {' and '.join(models)}",
            "name one with --model",
        )
    return models


def _label(options: EvaluationOptions, specs: Mapping[str, EngineSpec]) -> str:
    """Return the name of a model in tables; for a file with its hash, as names may be equal."""
    model = str(options.model)
    path = Path(model)
    if path.suffix:
        return f"{path.name} ({specs[model].sha256[:8]})"
    return model if options.speed == "auto" else f"{model}, {options.speed}"


def _measure(
    name: str,
    find: Finder,
    images: Sequence[AnnotatedImage],
    options: EvaluationOptions,
    progress: ProgressCallback,
) -> Evaluation:
    done = 0

    def on_image(result: ScoredImage) -> None:
        nonlocal done
        done += 1
        progress(name, done, len(images), f"{result.image.name}: AJI {result.scores.AJI:.3f}")

    progress(name, 0, len(images), "")
    return score_images(name, find, images, options.mpp, on_image)


def _tune(
    predictor: Predictor,
    images: Sequence[AnnotatedImage],
    options: EvaluationOptions,
    progress: ProgressCallback,
) -> PostProcessing:
    trials, best = 0, 0.0

    def on_trial(_: PostProcessing, quality: float) -> None:
        nonlocal trials, best
        trials, best = trials + 1, max(best, quality)
        progress("tuning", trials, None, f"trials, best (AJI + PQ) / 2: {best:.3f}")

    labelled = at_resolution(images, options.mpp, predictor.mpp)
    # Recoloured images are used, too: the best values for similar images lose nuclei on others.
    predicted = predict(predictor, [*labelled, *recoloured(labelled)])
    start = predictor.metadata.post_processing
    return tune_post_processing(predicted, start, on_trial, mpp=predictor.mpp)


def _tuning_notes(name: str, parameters: PostProcessing) -> list[str]:
    chosen = ", ".join(f"{key} {value:g}" for key, value in structs.asdict(parameters).items())
    return [
        f"The post-processing of {name!r} was tuned on these images: expect less on others.",
        f"Chosen: {chosen}.",
    ]


def _write_tuned(
    path: Path,
    model: str,
    tuned: ModelMetadata,
    dataset: dict[str, Any],
    result: Evaluation,
) -> None:
    validation = {
        "data": {**dataset, "path": Path(dataset["path"]).name},
        "post_processing": "tuned on these images",
        "images": len(result.images),
        "mean": json_numbers(result.mean),
        "interval": json_intervals(result.interval),
    }
    # Load the network from the file: that of the engine was rearranged for speed.
    network, _ = load_model(resolve_model(split_model(model)[1]))
    name = f"{tuned.name.removesuffix(_TUNED)}{_TUNED}"
    save_model(path, network, structs.replace(tuned, name=name, validation=validation))
