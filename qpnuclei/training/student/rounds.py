"""The student: a network that learns nuclei without labels, in rounds.

``qpnuclei train --config student`` calls `train_student`. The labels of round 1 are the pixels on
which several haematoxylin masks agree. The labels of each later round are the nuclei that the
previous student finds, mixed with some of round 1. Only objects with the shape of a nucleus become
labels (`qpnuclei.training.student.pseudo_labels`). They are repainted and pasted, so that the
network learns hard nuclei from easy ones (`qpnuclei.training.student.synthesis`). With a recipe
that names a teacher, such as ``light``, the labels of every round are the nuclei that the teacher
finds (`qpnuclei.training.student.distillation`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qpnuclei.errors import TrainingError, UsageError, number_of
from qpnuclei.evaluation.boxes import BoxImage
from qpnuclei.evaluation.tuning import LabelledImage, read_validation, validation_digest
from qpnuclei.models.checkpoint import save_model
from qpnuclei.models.metadata import (
    NO_LABELS,
    NOT_STATED,
    ModelMetadata,
    PostProcessing,
    model_hash,
    read_metadata,
)
from qpnuclei.models.registry import resolve_model
from qpnuclei.models.student import StudentNet
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.slides.pixels import RGB
from qpnuclei.system.checked import as_json
from qpnuclei.training.callbacks import StopRequested, TrainingCallbacks, TrainingResult
from qpnuclei.training.run_folder import (
    MODEL_FILE,
    Progress,
    RunState,
    check_identity,
    load_state,
    open_run_folder,
    save_state,
    versions_of_training,
    write_metrics,
)
from qpnuclei.training.sources import Source
from qpnuclei.training.student.ancestors import (
    ancestors_of,
    labels_of,
    licences_of,
    statement,
)
from qpnuclei.training.student.corrections import (
    Correction,
    correction_examples,
    digest,
    drawn_nuclei,
    read_corrections,
)
from qpnuclei.training.student.distillation import Distillation
from qpnuclei.training.student.fit import Unfinished, fit, seconds_per_batch
from qpnuclei.training.student.inheritance import move_back, starting_model
from qpnuclei.training.student.labellers import AtSeveralScales, Labeller, load_labellers
from qpnuclei.training.student.patches import SlideSample, sample_slides
from qpnuclei.training.student.picture import write_picture
from qpnuclei.training.student.recipe import StudentRecipe, student_recipe
from qpnuclei.training.student.self_training import (
    STUDENT_INSTANCES,
    ExampleSource,
    SelfTraining,
    instances_at,
)
from qpnuclei.training.student.validation import predict_both, quality, tune
from qpnuclei.training.tile_index import sources_digest

_log = logging.getLogger(__name__)

#: Key of the unfinished round in the saved state, beside the weights of the previous student.
_UNFINISHED = "unfinished round"

#: By which the best round is chosen.
_SCORE = "validation AJI"


def train_student(
    fields: Mapping[str, Any],
    sources: Sequence[Source],
    folder: Path,
    *,
    device: torch.device,
    seed: int = 0,
    validation: Path | None = None,
    mpp: float | None = None,
    resume: bool = False,
    callbacks: TrainingCallbacks | None = None,
    corrections: Sequence[BoxImage] = (),
) -> TrainingResult:
    """Train a student on unlabelled tissue.

    Parameters
    ----------
    fields : mapping of str to Any
        Fields of the recipe: see `StudentRecipe`.
    sources : sequence of Source
    folder : pathlib.Path
        Run folder. It gets ``model.safetensors``, ``metrics.csv`` (a row per round),
        ``pseudo-labels/round-NN.png``, and the state of the run.
    device : torch.device
    seed : int
        Two runs with the same seed on the same CPU, with the same number of threads, give the same
        weights bit for bit.
    validation : pathlib.Path, optional
        Labelled images (see `read_validation`). They are not trained on. They choose the best
        round, by the mean AJI on the original and the recoloured images, and at the end the
        post-processing. Without them the model of the last round is kept.
    mpp : float, optional
        Resolution of the validation images, in µm/px, if their files do not contain it.
    resume : bool
        Continue the run in `folder`.
    callbacks : TrainingCallbacks, optional
        Called with the progress; a round is their epoch.
    corrections : sequence of BoxImage
        Boxes in which a user drew all nuclei. They are additional labels.

    Raises
    ------
    qpnuclei.errors.TrainingError
        If the loss becomes NaN, or there are no nuclei to learn from. The model of the last good
        round is kept.
    qpnuclei.errors.UsageError, qpnuclei.errors.NotFoundError
        If the recipe, the run folder or the sources do not allow the run.
    """
    callbacks = callbacks or TrainingCallbacks()
    recipe = student_recipe(fields)
    open_run_folder(folder, resume)
    corrected = read_corrections(corrections, recipe.mpp)
    identity = {
        "recipe": as_json(recipe),
        "teacher": recipe.teacher and model_hash(resolve_model(recipe.teacher)),
        "start": recipe.start and model_hash(resolve_model(recipe.start)),
        "labellers": [model_hash(resolve_model(name)) for name in recipe.labellers],
        "seed": seed,
        "validation": "none" if validation is None else validation_digest(validation, mpp),
        "images": sources_digest(sources, [recipe.mpp], recipe.patch_px, recipe.min_tissue),
        **({"corrections": digest(corrected)} if corrected else {}),
    }
    state = load_state(folder) if resume else None
    if state is not None:
        check_identity(state, identity)
    labelled = [] if validation is None else read_validation(validation, mpp, recipe.mpp)
    finest = recipe.mpp
    if recipe.teacher is not None:
        finest = min(finest, read_metadata(resolve_model(recipe.teacher)).mpp)
    samples = sample_slides(
        sources,
        mpp=finest,
        patch_px=recipe.patch_px,
        patches_per_slide=recipe.patches_per_slide,
        max_patches=recipe.max_patches,
        min_tissue=recipe.min_tissue,
        max_enlargement=recipe.max_enlargement,
        seed=seed,
        on_source=lambda done: callbacks.on_tiles(done, len(sources)),
    )
    if not samples:
        images = "the only image" if len(sources) == 1 else f"every one of {len(sources)} images"
        raise UsageError(
            f"{images} has no part of {recipe.patch_px} px at {finest:g} µm/px that is "
            f"{recipe.min_tissue:.0%} tissue",
            "give slides with more tissue, check --mpp and --roi, or ask for less: "
            "--set min_tissue=0.3 --set patch_px=512",
        )
    sizes = len(recipe.label_scales)
    _log.info(
        "learning from %s of %d of %s%s",
        number_of(sum(len(sample.patches) for sample in samples), "patch"),
        len(samples),
        number_of(len(sources), "image"),
        f", labelled in {sizes} sizes" if sizes > 1 else "",
    )
    example_source: ExampleSource
    if recipe.teacher is None:
        example_source = SelfTraining(recipe, samples)
    else:
        example_source = Distillation(recipe, samples, device)
    start = None if recipe.start is None else starting_model(recipe)
    network = StudentNet(**recipe.architecture)
    if start is not None:
        network.load_state_dict(start[0].state_dict())
    learner = {} if state is None else dict(state.learner)
    unfinished = learner.pop(_UNFINISHED, None)
    if state is not None:
        network.load_state_dict(learner)
    run = _Run(
        recipe=recipe,
        folder=folder,
        identity=identity,
        samples=samples,
        example_source=example_source,
        corrections=corrected,
        labelled=labelled,
        device=device,
        callbacks=callbacks,
        progress=Progress() if state is None else state.progress,
        ancestors=ancestors_of(recipe),
        student=network,
        start=start,
        unfinished=unfinished,
    )
    return run.train()


def _without_folders(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Replace the paths in a recipe by names: folders differ between machines."""
    named = {key: Path(recipe[key]).name for key in ("teacher", "start") if recipe[key]}
    return {**recipe, **named, "labellers": [Path(name).name for name in recipe["labellers"]]}


@dataclass(eq=False)
class _Run:
    """The state of a training, and its rounds."""

    recipe: StudentRecipe
    folder: Path
    identity: Mapping[str, Any]
    samples: Sequence[SlideSample]
    example_source: ExampleSource
    corrections: Sequence[Correction]
    labelled: Sequence[LabelledImage]
    device: torch.device
    callbacks: TrainingCallbacks
    progress: Progress
    ancestors: Sequence[ModelMetadata]  # the models that it learns from
    student: StudentNet  # of the last finished round; before the first round, its initial weights

    start: tuple[StudentNet, ModelMetadata] | None = None  # model that round 1 starts from
    unfinished: Mapping[str, Any] | None = None  # state of the next round, if it was stopped

    def train(self) -> TrainingResult:
        if self.progress.epoch == 0 and self.unfinished is None:
            self._save()  # from now on the run can be resumed
        if batches := self._batches_left():
            self.callbacks.on_estimate(batches, seconds_per_batch(self.recipe, self.device))
        stopped = False
        while self.progress.epoch < self.recipe.rounds and not stopped:
            stopped = not self._round()
        progress = self.progress
        model = self.folder / MODEL_FILE
        if self.labelled and progress.epoch == self.recipe.rounds and not progress.tuned:
            try:
                tune(model, self.labelled, self._post_processing, self.device, self.callbacks)
            except StopRequested:
                stopped = True
            else:
                progress.tuned = True
                self._save()
        return TrainingResult(
            model if model.is_file() else None,
            progress.epoch,
            progress.best_epoch,
            progress.best_score,
            _SCORE,
            stopped,
        )

    def _batches_left(self) -> int:
        return sum(self.recipe.batches_of_rounds[self.progress.epoch :]) - self.progress.batch

    def _round(self) -> bool:
        """Train one round; if stopped before its end, save its state and return False.

        A stop while patches are labelled leaves the state of before: their labels are not saved.
        """
        if self.callbacks.stop_requested():
            return False
        start = time.monotonic()
        number = self.progress.epoch + 1
        rng = np.random.default_rng((self.identity["seed"], number))
        is_trained = number > 1 or self.recipe.start is not None
        labeller: Labeller | None = self._predictor() if is_trained else None
        if number == 1 and self.recipe.labellers:
            labeller = load_labellers(self.recipe.labellers, self.recipe.mpp, self.device)
        if labeller is not None:
            labeller = AtSeveralScales(labeller, self.recipe.label_scales)
        batches = self.recipe.batches_of_rounds[number - 1]
        self.callbacks.on_round_begin(number, self.recipe.rounds, batches)
        known = []
        patches = sum(len(sample.patches) for sample in self.samples)
        for labels in self.example_source.known(labeller):
            known.append(labels)
            self.callbacks.on_labels(len(known), patches)
            if self.callbacks.stop_requested():
                return False
        nuclei = sum(len(np.unique(labels.labels)) - 1 for labels in known)
        picture = self.folder / "pseudo-labels" / f"round-{number:02d}.png"
        write_picture(picture, self._patches(), known)
        if nuclei == 0:
            raise TrainingError(
                f"round {number}: nothing in any of the images looks like a nucleus",
                "check --mpp and that the slides are H&E; see pseudo-labels/ in the run folder",
            )
        examples = list(self.example_source.examples(known, rng))
        if self.corrections:
            examples += correction_examples(self.corrections, examples, self.recipe, rng)
        fitted = fit(
            self.recipe,
            examples,
            number,
            self.student if is_trained else None,
            seed=self.identity["seed"],
            device=self.device,
            callbacks=self.callbacks,
            unfinished=self.unfinished,
        )
        if isinstance(fitted, Unfinished):
            self.progress.batch = fitted.batches
            self._save(fitted)
            return False
        self.student, loss = fitted
        if self.start is not None and self.recipe.start_share:
            move_back(self.student, self.start[0], self.recipe.start_share)
        self.unfinished = None
        self._finish(number, loss, nuclei, time.monotonic() - start)
        return True

    def _predictor(self) -> Predictor:
        return Predictor.of_network(self.student, self._metadata(), self.device)

    def _finish(self, number: int, loss: float, nuclei: int, seconds: float) -> None:
        """Validate the student of a finished round, keep it if it is the best, and save."""
        progress = self.progress
        metrics = {"loss": loss, "nuclei": float(nuclei)}
        measured: dict[str, Any] = {}
        score = None
        if self.labelled:
            predictor = self._predictor()
            predicted, changed = predict_both(predictor, self.labelled)
            measured = quality(predicted, changed, self._post_processing)
            means = measured["mean"], measured["recoloured"]
            score = float(np.mean([mean["AJI"] for mean in means]))
            for name, mean in zip(("validation", "recoloured"), means, strict=True):
                metrics |= {f"{name} {key}": mean[key] for key in ("AJI", "ADC", "PQ")}
        kept = score is None or progress.best_score is None or score > progress.best_score
        progress.epoch, progress.batch = number, 0
        if kept:
            progress.best_epoch, progress.best_score = number, score
            save_model(self.folder / MODEL_FILE, self.student, self._metadata(measured))
        progress.history.append({"round": float(number), "seconds": round(seconds, 1), **metrics})
        write_metrics(self.folder, progress.history)
        self._save()  # last: what is missing above would never be written
        self.callbacks.on_epoch_end(number, metrics, kept)

    def _save(self, unfinished: Unfinished | None = None) -> None:
        learner: dict[str, Any] = {
            name: tensor.cpu() for name, tensor in self.student.state_dict().items()
        }
        if unfinished is not None:
            learner[_UNFINISHED] = unfinished.state
        save_state(self.folder, RunState(self.identity, self.progress, learner))

    @property
    def _post_processing(self) -> PostProcessing:
        """The post-processing of the start model, which was tuned; otherwise the default."""
        if self.start is None:
            return instances_at(STUDENT_INSTANCES, self.recipe.mpp)
        metadata = self.start[1]
        return metadata.post_processing.at_resolution(metadata.mpp, self.recipe.mpp)

    def _metadata(self, measured: Mapping[str, Any] | None = None) -> ModelMetadata:
        return ModelMetadata(
            name=self.recipe.name,
            family="student",
            architecture=dict(self.recipe.architecture),
            mpp=self.recipe.mpp,
            post_processing=self._post_processing,
            recipe={
                **_without_folders(self.identity["recipe"]),
                "seed": self.identity["seed"],
                "round": self.progress.epoch,
                "teacher_sha256": self.identity["teacher"],
                "start_sha256": self.identity["start"],
                "labellers_sha256": self.identity["labellers"],
            },
            data={
                "images": [sample.name for sample in self.samples],
                "mpx": round(sum(p.shape[0] * p.shape[1] for p in self._patches()) / 1e6, 1),
                **self._labels(),
                "licence": self._licence(),
            },
            validation=dict(measured or {}),
            versions=versions_of_training(),
        )

    def _licence(self) -> str:
        """Return the entry on licences for the metadata; empty if there is nothing to state."""
        inherited = licences_of(self.ancestors)
        # Without this part, the licences of the ancestors would seem to be all that hold.
        unstated = NOT_STATED if inherited else ""
        return statement(self.recipe.data_licence or unstated, inherited)

    def _labels(self) -> dict[str, Any]:
        """Return the entries on labels for the metadata."""
        inherited = labels_of(self.ancestors)
        if not self.corrections:
            return {"labels": statement("", inherited) or NO_LABELS}
        nuclei, boxes = sum(c.nuclei for c in self.corrections), len(self.corrections)
        return {
            "labels": statement(drawn_nuclei(nuclei, boxes), inherited),
            "corrections": {"boxes": boxes, "nuclei": nuclei},
        }

    def _patches(self) -> Iterator[RGB]:
        for sample in self.samples:
            yield from sample.patches
