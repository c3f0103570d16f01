"""``qpnuclei train``: train a model on unlabelled slides."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from qpnuclei.cli.options import (
    ImageRoot,
    Json,
    Quiet,
    ResumeTraining,
    Seed,
    class_option,
    possible_mpp,
    within,
)
from qpnuclei.errors import UsageError, number_of
from qpnuclei.training.callbacks import TrainingCallbacks

if TYPE_CHECKING:
    from rich.progress import Progress


#: Number of batches that are timed to estimate the duration of the training.
_TIMED = 4

STOPPING = "stopping: saving after this step; Ctrl-C again ends at once, without saving"


def train(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="SOURCE",
            help="Slides, image patches, folders of them, or QuPath projects. No labels are used. "
            "From a folder with images/ and splits.json, only the split 'train' is used.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="RUN_DIR",
            help="Folder for the model, the metrics, the pictures and the state of the run.",
            show_default=False,
        ),
    ],
    config: Annotated[
        str,
        typer.Option(
            "--config",
            help="Recipe, or path of a .yaml file. student: our method, the most accurate; a "
            "quarter of an hour on two cores for 19 images. continued: student that starts from "
            "the packaged model; the quickest. adapted: continued, then moved half the way back. "
            "refined: the packaged model learns what it sees in four sizes of the image. light: a "
            "smaller network that learns from a trained model. fast: the same at 0.5 µm/px. "
            "anchored: our variant of the paper's method. proposed: the paper's method, for a GPU "
            "(on a laptop with --set width=16); its ablations no-smooth, no-equiv, no-sparse and "
            "no-wsi; scale-equiv adds a term of the authors' code. student learns at 0.25 µm/px, "
            "and refuses slides with more than 0.3: for 20x slides use adapt.",
        ),
    ] = "student",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change a field of the recipe; may repeat.",
            show_default="as in the recipe",
        ),
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            callback=within(1, None, "epochs"),
            help="Number of epochs; students learn in rounds instead: --set rounds=N.",
            show_default="as in the recipe",
        ),
    ] = None,
    scales: Annotated[
        str | None,
        typer.Option(
            "--scales",
            help="Resolutions to distinguish, in µm/px, finest first; not for students.",
            show_default="0.25,0.5,1.0",
        ),
    ] = None,
    mpp: Annotated[
        list[float] | None,
        typer.Option(
            "--mpp",
            callback=possible_mpp,
            help="Pixel size at full resolution in µm/px; overrides projects and files. "
            "Give it once for all sources, or once for each source in their order.",
            show_default="from the last run, project or slide",
        ),
    ] = None,
    image_root: ImageRoot = None,
    roi: Annotated[
        list[str] | None,
        class_option(
            "--roi",
            help="Train only inside annotations of this class in QuPath projects; may repeat.",
            show_default="whole images",
        ),
    ] = None,
    validation: Annotated[
        Path | None,
        typer.Option(
            "--validation",
            metavar="DIR",
            help="Folder with images/ and labels/ (instance maps or GeoJSON), used only to select "
            "the best epoch and the post-processing. With splits.json, its split 'val'.",
            show_default="none: the last epoch is kept",
        ),
    ] = None,
    validation_mpp: Annotated[
        float | None,
        typer.Option(
            "--validation-mpp",
            callback=possible_mpp,
            help="Pixel size of the validation images in µm/px.",
            show_default="--mpp if it is given once, else from the file",
        ),
    ] = None,
    resume: ResumeTraining = False,
    backbone_weights: Annotated[
        Path | None,
        typer.Option(
            "--backbone-weights",
            metavar="FILE",
            help="Initial weights of the scale network: .safetensors, or .pth as torchvision "
            "publishes it.",
            show_default="ImageNet weights, downloaded once",
        ),
    ] = None,
    seed: Seed = 0,
    device: Annotated[
        str,
        typer.Option("--device", help="auto (a GPU where there is one), cpu, cuda, cuda:N or mps."),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            callback=within(0, None, "processes"),
            help="Processes that read tiles; 0 reads in the main process.",
            show_default="0 without a GPU, else one per core, at most 8",
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train a model on unlabelled slides, patches or projects.

    It reads no labels. To learn from nuclei drawn in QuPath: qpnuclei adapt --corrections.

    Prints the estimated duration first. Ctrl-C saves and stops.

    For example: qpnuclei train project.qpproj -o runs/ours
    """
    from qpnuclei.training.config import read_recipe
    from qpnuclei.training.train import check_recipe, is_student, train_model

    fields = read_recipe(config, settings or ())
    student = is_student(fields)
    for option, value, instead in (
        ("--epochs", epochs, "it learns in rounds: --set rounds=N"),
        ("--scales", scales, "it learns at one resolution: --set mpp=0.25"),
        ("--backbone-weights", backbone_weights, "it has no scale network: remove the option"),
    ):
        if student and value is not None:
            raise UsageError(f"{option} was given, but the recipe {config} is a student", instead)
    if epochs is not None:
        fields["epochs"] = epochs
    if scales is not None:
        fields["scales"] = _numbers(scales)
    check_recipe(fields)

    from qpnuclei.training.sources import find_sources

    found = find_sources(sources, mpp=mpp or (), roi=roi or (), image_root=image_root)

    from qpnuclei.cli.console import print_json, print_status, progress_bar, stdout
    from qpnuclei.models.device import resolve_device
    from qpnuclei.system.distributed import process_group, rank, world_size
    from qpnuclei.system.interrupts import asking_to_stop
    from qpnuclei.system.memory import keep_freed_memory
    from qpnuclei.system.threads import available_cores

    if validation_mpp is None and mpp and len(mpp) == 1:
        validation_mpp = mpp[0]
    with (
        keep_freed_memory(),
        process_group(resolve_device(device)) as torch_device,
        progress_bar(quiet or rank() > 0, long_notes=True) as bar,  # only rank 0 prints
        asking_to_stop(STOPPING if rank() == 0 else "") as interrupted,
    ):
        if student and world_size() > 1:
            raise UsageError(
                "a student trains in one process, but torchrun started several",
                "call qpnuclei train without torchrun",
            )
        if workers is None:
            cores = available_cores() // world_size()
            workers = max(1, min(8, cores)) if torch_device.type == "cuda" else 0
        is_main = rank() == 0
        if is_main:
            several = f" and {world_size() - 1} more" if world_size() > 1 else ""
            print_status(f"training on {number_of(len(found), 'image')} on {torch_device}{several}")
        result = train_model(
            fields,
            found,
            output,
            device=torch_device,
            seed=seed,
            validation=validation,
            mpp=validation_mpp,
            resume=resume,
            backbone_weights=backbone_weights,
            workers=workers,
            callbacks=ConsoleCallbacks(bar, interrupted),
        )
    if not is_main:
        sys.exit(interrupted.exit_code if result.stopped else 0)
    if json:
        print_json(asdict(result))
    elif result.model is not None:
        number = f"{'round' if student else 'epoch'} {result.best_epoch}"
        score = (
            "" if result.best_score is None else f", {result.score_name} {result.best_score:.3f}"
        )
        stdout.print(f"{result.model} ({number}{score})")
    if result.stopped:
        leave_stopped(interrupted.exit_code)


def leave_stopped(exit_code: int) -> NoReturn:
    """Print how to continue a training that was stopped, and exit."""
    from qpnuclei.cli.console import print_warning, this_command

    print_warning(f"stopped and saved; to continue: {this_command('--resume')}")
    sys.exit(exit_code)


class ConsoleCallbacks(TrainingCallbacks):
    """Shows the progress of a training; stops it when `interrupted` returns True.

    Parameters
    ----------
    bar : rich.progress.Progress
    interrupted : callable
        Returns whether the user asked to stop.
    """

    def __init__(self, bar: Progress, interrupted: Callable[[], bool]) -> None:
        self._bar = bar
        self._interrupted = interrupted
        self._part, self._parts = "epoch", ""
        self._batches: int | None = None  # of a part
        self._left = 0
        self._starts = 0
        self._ends: list[float] = []
        self._indexing = bar.add_task("tiles", total=None, note="", visible=False)
        self._labelling = bar.add_task("labels", total=None, note="", visible=False)
        self._training = bar.add_task("epoch", total=None, note="", visible=False)

    def on_train_begin(self, epochs: int, batches_per_epoch: int) -> None:
        """Show the length of the training."""
        self._parts = f"/{epochs}"
        self._batches = batches_per_epoch
        self._left = epochs * batches_per_epoch

    def on_tiles(self, done: int, total: int) -> None:
        """Show the number of images that have been cut into tiles."""
        self._bar.update(self._indexing, completed=done, total=total, visible=done < total)

    def on_round_begin(self, number: int, rounds: int, batches: int) -> None:  # noqa: ARG002
        """Show the length of a student's round."""
        self._part, self._parts, self._batches = "round", f"/{rounds}", batches

    def on_labels(self, done: int, total: int) -> None:
        """Show the number of patches that have been labelled."""
        self._bar.update(self._labelling, completed=done, total=total, visible=done < total)

    def on_estimate(self, batches: int, seconds_per_batch: float) -> None:
        """Show the estimated duration of the training."""
        from qpnuclei.cli.console import in_words

        is_student = not self._left
        labelling = ", plus the labelling of patches" if is_student else ""
        self._say(
            f"{number_of(batches, 'batch')} of about {seconds_per_batch:.2g} s: "
            f"{in_words(batches * seconds_per_batch)}{labelling}"
        )

    def on_starts_begin(self, batches: int) -> None:
        """Show the length of the starts."""
        self._starts = batches
        self._left += batches

    def on_batch_end(self, epoch: int, batch: int, metrics: Mapping[str, float]) -> None:
        """Show the metrics of a batch; estimate the duration once enough batches are timed."""
        if self._left and self._batches and len(self._ends) < _TIMED:
            self._ends.append(time.monotonic())
            if len(self._ends) == _TIMED:
                before = self._starts + (epoch - 1) * self._batches if epoch else 0
                left = self._left - before - batch
                self.on_estimate(left, (self._ends[-1] - self._ends[0]) / (_TIMED - 1))
        self._bar.update(
            self._training,
            description=f"{self._part} {epoch}{self._parts}" if epoch else "starts",
            completed=batch,
            total=self._batches if epoch else self._starts,
            note=_summary(metrics),
            visible=True,
        )

    def on_epoch_end(self, epoch: int, metrics: Mapping[str, float], kept: bool) -> None:
        """Print the metrics of an epoch, with a star if its model was kept."""
        star = " *" if kept else ""
        self._say(f"{self._part} {epoch}{self._parts}: {_summary(metrics)}{star}")

    def stop_requested(self) -> bool:
        """Tell whether Ctrl-C was pressed."""
        return self._interrupted()

    def _say(self, line: str) -> None:
        from qpnuclei.cli.console import shows_status

        if shows_status():
            self._bar.console.print(line)


#: Labels of the metrics in the progress bar, in order.
_SHORT_NAMES = {
    "loss": "loss",
    "scale accuracy": "scale acc.",
    "tau": "tau",
    "attention fraction": "attention",
    "anchor agreement": "anchor",
    "validation dice": "val. Dice",
    "validation pixel_auc": "val. AUC",
    "validation AJI": "val. AJI",
    "recoloured AJI": "recoloured",
}


def _summary(metrics: Mapping[str, float]) -> str:
    return "  ".join(
        f"{short} {metrics[name]:.3f}" for name, short in _SHORT_NAMES.items() if name in metrics
    )


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(
            f"--scales {text!r} is not a list of numbers", "for example --scales 0.25,0.5,1.0"
        ) from error
