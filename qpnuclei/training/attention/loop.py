"""Training of the attention network: data, batches, epochs, checkpoints.

``qpnuclei train`` calls `train_attention`. The losses are in `qpnuclei.training.attention.losses`,
the initial weights in `qpnuclei.training.attention.starts`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from qpnuclei.errors import TrainingError, UsageError, number_of
from qpnuclei.evaluation.tuning import (
    LabelledImage,
    predict,
    read_validation,
    summarise,
    tune_post_processing,
    validation_digest,
)
from qpnuclei.models.checkpoint import load_model, save_model
from qpnuclei.models.metadata import ColourNormalisation, ModelMetadata, PostProcessing
from qpnuclei.segmentation.predictor import Predictor
from qpnuclei.system.checked import as_json
from qpnuclei.system.distributed import any_rank, rank, rank_0_first, world_size
from qpnuclei.system.files import resolved
from qpnuclei.training.attention.batches import Batches, draw_transform
from qpnuclei.training.attention.collapse import collapse
from qpnuclei.training.attention.learner import Learner
from qpnuclei.training.attention.starts import epoch_batches, first_learner
from qpnuclei.training.attention.validation import validate
from qpnuclei.training.callbacks import StopRequested, TrainingCallbacks, TrainingResult
from qpnuclei.training.config import AttentionRecipe
from qpnuclei.training.run_folder import (
    MODEL_FILE,
    Progress,
    RunState,
    check_identity,
    load_state,
    open_run_folder,
    save_state,
    versions_of_training,
    write_attention_grid,
    write_metrics,
)
from qpnuclei.training.sources import Source
from qpnuclei.training.tile_index import TileIndex, cached_tile_index, sources_digest
from qpnuclei.training.tile_reader import ColourTransfer, TileReader

_log = logging.getLogger(__name__)

#: Images in the picture of each epoch.
_PICTURE_IMAGES = 9

#: By which the best epoch is chosen.
_SCORE = "validation Dice"


def train_attention(
    recipe: AttentionRecipe,
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
    """Train the attention network on unlabelled tissue.

    With several processes (see `qpnuclei.system.distributed`), each one calls this function with
    the same arguments and learns from a share of each batch. Only rank 0 validates and writes.

    Parameters
    ----------
    recipe : AttentionRecipe
    sources : sequence of Source
    folder : pathlib.Path
        Run folder, for all files of the run.
    device : torch.device
    seed : int
        Two runs with the same seed on the same CPU give the same weights bit for bit.
    validation : pathlib.Path, optional
        Labelled images (see `read_validation`). They are not trained on. They choose the best
        epoch, by the Dice of the attention at the finest scale, and at the end the post-processing.
        Without them the model of the last epoch is kept.
    mpp : float, optional
        Resolution of the validation images, in µm/px, if their files do not contain it.
    resume : bool
        Continue the run in `folder`.
    backbone_weights : pathlib.Path, optional
        Initial weights of G's backbone, instead of those that the recipe names.
    workers : int
        Number of processes that read tiles; 0 reads in this process.
    callbacks : TrainingCallbacks, optional

    Raises
    ------
    qpnuclei.errors.TrainingError
        If the loss becomes NaN, or the attention collapsed. The state and the model of the last
        good epoch are kept.
    qpnuclei.errors.UsageError, qpnuclei.errors.NotFoundError
        If the run folder, the sources or the backbone do not allow the run.
    """
    callbacks = callbacks or TrainingCallbacks()
    callbacks.on_train_begin(recipe.epochs, recipe.batches_per_epoch)
    _check_sources(recipe, sources)
    _check_shares(recipe)
    if rank() == 0:
        open_run_folder(folder, resume)
    identity = {
        "recipe": as_json(recipe),
        "seed": seed,
        "validation": "none" if validation is None else validation_digest(validation, mpp),
        "images": sources_digest(sources, recipe.scales, recipe.tile_px, recipe.min_tissue),
    }
    # Only the starts depend on it.
    backbone = {"backbone": None if backbone_weights is None else str(resolved(backbone_weights))}
    state = load_state(folder) if resume else None
    if state is not None:
        check_identity(state, identity if state.learner else identity | backbone)
        if not state.learner:  # stopped among its starts, which begin anew
            state = None
    read_labelled: Callable[[float], list[LabelledImage]] | None = None
    labelled: list[LabelledImage] = []
    if validation is not None and rank() == 0:
        read_labelled = partial(read_validation, validation, mpp)
        # Not enlarged: that would take longer than an epoch.
        labelled = read_labelled(max(recipe.scales[0], recipe.model_mpp))
    with rank_0_first():
        index = cached_tile_index(
            folder,
            sources,
            recipe.scales,
            recipe.tile_px,
            recipe.min_tissue,
            lambda done: callbacks.on_tiles(done, len(sources)),
        )
    reader = TileReader(sources, index, recipe.scales, recipe.tile_px)
    colour = None
    if recipe.colour == "reinhard":
        with closing(reader):
            colour = ColourTransfer.measured(reader)
        reader = reader.with_colour(colour)
    with closing(reader):
        batches = Batches(
            reader,
            n_scales=len(recipe.scales),
            batch_size=recipe.batch_size,
            crop_px=recipe.crop_px,
            hed_jitter=recipe.hed_jitter,
            seed=seed,
            rank=rank(),
            world_size=world_size(),
        )
        learner: Learner | None
        if state is None:
            learner = first_learner(recipe, batches, device, seed, backbone_weights, callbacks)
            if learner is None:
                if rank() == 0:
                    save_state(folder, RunState(identity | backbone, Progress(), {}))
                return TrainingResult(None, 0, None, None, _SCORE, True)
        else:
            learner = Learner(recipe, device, seed, imagenet=False)
            learner.load_state(state.learner)
        run = _Run(
            recipe=recipe,
            folder=folder,
            identity=identity,
            learner=learner,
            progress=Progress() if state is None else state.progress,
            batches=batches,
            colour=_colour_metadata(colour),
            data=_data_metadata(sources, index, recipe),
            labelled=labelled,
            read_labelled=read_labelled,
            callbacks=callbacks,
        )
        return run.train(workers)


@dataclass
class _Run:
    """The state of a training, and its epochs."""

    recipe: AttentionRecipe
    folder: Path
    identity: Mapping[str, Any]
    learner: Learner
    progress: Progress
    batches: Batches
    colour: ColourNormalisation
    data: Mapping[str, Any]
    labelled: Sequence[LabelledImage]
    #: Validation images at a resolution; None without any.
    read_labelled: Callable[[float], list[LabelledImage]] | None
    callbacks: TrainingCallbacks

    def __post_init__(self) -> None:
        self.numbers = epoch_batches(self.recipe)

    @property
    def _done(self) -> int:
        """Number of batches done."""
        return self.progress.epoch * self.recipe.batches_per_epoch + self.progress.batch

    def train(self, workers: int) -> TrainingResult:
        """Train the remaining epochs."""
        per_epoch = self.recipe.batches_per_epoch
        progress = self.progress
        stopped = False
        if rank() == 0 and self._done == 0:
            self._save_state()  # from now on the run can be resumed
        board_folder = self.folder / "tensorboard"
        with (
            SummaryWriter(board_folder, purge_step=progress.epoch + 1, flush_secs=10)
            if rank() == 0
            else nullcontext()
        ) as board:
            batches = self.batches.load(self.numbers[self._done :], workers)
            started = time.monotonic()
            for rgb, labels in batches:
                if any_rank(self.callbacks.stop_requested(), self.learner.device):
                    stopped = True
                    break
                self._train_batch(rgb, labels)
                if progress.batch == per_epoch:
                    metrics = self._end_epoch()
                    if board is not None:
                        self._keep_epoch(metrics, board, time.monotonic() - started)
                    started = time.monotonic()
        if rank() == 0:
            if stopped:
                self._save_state()
            elif self.read_labelled is not None and not progress.tuned:
                try:
                    self._tune(self.read_labelled)
                except StopRequested:
                    stopped = True
        model = self.folder / MODEL_FILE
        return TrainingResult(
            model if model.is_file() else None,
            progress.epoch,
            progress.best_epoch,
            progress.best_score,
            _SCORE,
            stopped,
        )

    def _train_batch(self, rgb: Tensor, labels: Tensor) -> None:
        progress = self.progress
        transform = draw_transform(self.identity["seed"], self.numbers[self._done])
        self.learner.set_learning_rate(learning_rate_factor(self.recipe, progress.epoch))
        try:
            metrics = self.learner.step(rgb, labels, transform)
        except FloatingPointError as error:
            raise TrainingError(
                f"epoch {progress.epoch + 1}, batch {progress.batch + 1}: {error}; "
                f"{self._kept_model()}",
                "try a lower --set learning_rate, --set gradient_clip=1, or another --seed",
            ) from error
        for name, value in metrics.items():
            progress.sums[name] = progress.sums.get(name, 0.0) + value
        progress.batch += 1
        self.callbacks.on_batch_end(progress.epoch + 1, progress.batch, metrics)

    def _end_epoch(self) -> dict[str, float]:
        """Check the epoch for collapse, advance to the next one, and return its mean metrics."""
        progress, recipe = self.progress, self.recipe
        epoch = progress.epoch + 1
        metrics = {name: total / progress.batch for name, total in progress.sums.items()}
        if recipe.stop_on_collapse:
            reason = collapse(metrics, len(recipe.scales), epoch * recipe.batches_per_epoch)
            if reason:
                raise TrainingError(
                    f"epoch {epoch}: {reason}; {self._kept_model()}",
                    "see the pictures in the run folder; try another --seed, more tissue, or "
                    "--config anchored; --set stop_on_collapse=false continues anyway",
                )
        progress.epoch, progress.batch, progress.sums = epoch, 0, {}
        # The averaged weights have no BatchNorm statistics, so they are measured on the last
        # batches. These are read again, because a run that was resumed within the epoch has not
        # seen all of them.
        last = self.numbers[max(0, self._done - recipe.average_batches) : self._done]
        self.learner.measure_average(self.batches[number][0] for number in last)
        return metrics

    def _keep_epoch(self, metrics: dict[str, float], board: SummaryWriter, seconds: float) -> None:
        """Validate the finished epoch, keep its model if it is the best, and write the files."""
        progress, recipe = self.progress, self.recipe
        epoch = progress.epoch
        if metrics["anchor agreement"] < 0:
            _log.warning(
                "epoch %d: the attention is high where haematoxylin is low (rank correlation "
                "%.2f): it has probably settled on background",
                epoch,
                metrics["anchor agreement"],
            )
        validation = {}
        if self.labelled:
            validation = validate(
                self.learner.kept_net, self._metadata({}), self.labelled, self.learner.device
            )
            metrics |= {f"validation {name}": value for name, value in validation.items()}
        score = validation.get("dice")
        kept = score is None or progress.best_score is None or score > progress.best_score
        if kept:
            progress.best_epoch, progress.best_score = epoch, score
            progress.tuned = False  # the file gets the default post-processing again
            measured = {"images": len(self.labelled), **validation} if validation else {}
            save_model(self.folder / MODEL_FILE, self.learner.kept_net, self._metadata(measured))
        row = {"epoch": float(epoch), "seconds": round(seconds, 1)}
        rate = recipe.learning_rate * learning_rate_factor(recipe, epoch - 1)
        row |= {"learning rate": rate, **metrics}
        progress.history.append(row)
        write_metrics(self.folder, progress.history)
        for name, value in metrics.items():
            board.add_scalar(name, value, epoch)
        self._draw(epoch)
        self._save_state()  # last: what is missing above would never be written
        self.callbacks.on_epoch_end(epoch, metrics, kept)

    def _tune(self, read_labelled: Callable[[float], list[LabelledImage]]) -> None:
        """Choose the post-processing of the best epoch's model on the validation images.

        The search begins at the default, whatever the file holds. So if it was interrupted after
        the file was replaced, it gives the same again.

        Raises
        ------
        StopRequested
            If a stop is requested; the file is unchanged.
        """
        path = self.folder / MODEL_FILE
        network, metadata = load_model(path)
        labelled = read_labelled(metadata.mpp)
        _log.info("choosing the post-processing on %s", number_of(len(labelled), "image"))
        predictor = Predictor.of_network(network, metadata, self.learner.device)
        predicted = predict(predictor, labelled, self.callbacks.check_stop)
        parameters = tune_post_processing(
            predicted,
            self._post_processing,
            lambda *_: self.callbacks.check_stop(),
            mpp=metadata.mpp,
        )
        measured = {**metadata.validation, **summarise(predicted, parameters)}
        tuned = replace(metadata, post_processing=parameters, validation=measured)
        save_model(path, network, tuned)
        self.progress.tuned = True
        self._save_state()

    def _save_state(self) -> None:
        save_state(self.folder, RunState(self.identity, self.progress, self.learner.state()))

    def _draw(self, epoch: int) -> None:
        """Draw the attention on the same crops in every epoch."""
        rgb, labels = self.batches[0]
        step = max(1, len(labels) // _PICTURE_IMAGES)  # a batch is sorted by scale
        rgb = rgb[::step][:_PICTURE_IMAGES]
        path = self.folder / "attention" / f"epoch-{epoch:04d}.png"
        write_attention_grid(path, rgb, self.learner.predict(rgb))

    def _kept_model(self) -> str:
        if self.progress.epoch == 0:
            return "no epoch was finished"
        return f"{self.folder / MODEL_FILE} is the model of epoch {self.progress.best_epoch}"

    @property
    def _post_processing(self) -> PostProcessing:
        """The default, which is for the finest of the scales, before any tuning."""
        recipe = self.recipe
        return PostProcessing().at_resolution(recipe.scales[0], recipe.model_mpp)

    def _metadata(self, validation: Mapping[str, Any]) -> ModelMetadata:
        learner = self.learner
        return ModelMetadata(
            name=self.recipe.name,
            family="attention",
            architecture=learner.architecture,
            mpp=self.recipe.model_mpp,
            post_processing=self._post_processing,
            tau=float(learner.kept_activation.tau),
            sigmoid_gain=learner.kept_activation.gain,
            views=self.recipe.views,
            colour=self.colour,
            recipe={
                **self.identity["recipe"],
                "seed": self.identity["seed"],
                "epoch": self.progress.epoch,
            },
            data=dict(self.data),
            validation=dict(validation),
            versions=versions_of_training(),
        )


def learning_rate_factor(recipe: AttentionRecipe, epoch: int) -> float:
    """Return the factor on the recipe's learning rates in an epoch (counted from 0).

    The factor drops at each of ``recipe.lr_steps``.
    """
    return recipe.lr_factor ** sum(epoch >= step for step in recipe.lr_steps)


def _check_sources(recipe: AttentionRecipe, sources: Sequence[Source]) -> None:
    slides = [source for source in sources if not source.is_patch]
    if recipe.patches_only and slides:
        raise UsageError(
            f"recipe {recipe.name!r} learns from image patches, but {slides[0].name} "
            f"({slides[0].width}x{slides[0].height} px) is a whole slide",
            "use --config proposed, or cut the slide into patches",
        )


def _check_shares(recipe: AttentionRecipe) -> None:
    """Check that every process gets the same number of crops, of every scale."""
    if recipe.batch_size % world_size() or recipe.batch_size < world_size() * len(recipe.scales):
        raise UsageError(
            f"batch_size {recipe.batch_size} cannot be shared by {world_size()} processes",
            f"set a multiple of the number of processes, with at least {len(recipe.scales)} crops "
            "per process: --set batch_size=...",
        )


def _colour_metadata(colour: ColourTransfer | None) -> ColourNormalisation:
    if colour is None:
        return ColourNormalisation()
    return ColourNormalisation(
        method="reinhard", target_mean=colour.target_mean, target_std=colour.target_std
    )


def _data_metadata(
    sources: Sequence[Source], index: TileIndex, recipe: AttentionRecipe
) -> dict[str, Any]:
    """Return the metadata on the training data: names, as folders differ between machines."""
    counts = [len(tiles) for tiles in index.per_scale(len(recipe.scales))]
    return {
        "images": index.images(sources),
        "tiles": {f"{mpp:g} µm/px": n for mpp, n in zip(recipe.scales, counts, strict=True)},
    }
