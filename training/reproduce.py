"""Table 1 of the paper: M_proposed and its ablations, trained and measured on your machine.

Every run is ``qpnuclei train`` and then ``qpnuclei evaluate``: the commands are printed as they are
run. What is finished is not run again, so the script may be stopped and started at will.
"""

from __future__ import annotations

import argparse
import csv
import json
import logging
import math
import os
import platform
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from qpnuclei.errors import QpnucleiError, TrainingError, UsageError
from qpnuclei.evaluation.classical import NAME as FLOOR
from qpnuclei.models.metadata import read_metadata
from qpnuclei.system.checked import as_json
from qpnuclei.system.files import write_atomically
from qpnuclei.training.config import AttentionRecipe, attention_recipe, read_recipe
from qpnuclei.training.run_folder import METRICS_FILE, MODEL_FILE, STATE_FILE
from qpnuclei.training.sources import find_sources
from qpnuclei.training.tile_index import cached_tile_index

_log = logging.getLogger("reproduce")

REPORT_FILE = "report.json"
SCORES = ("AJI", "AHD_within", "ADC")
_DIGITS = {"AJI": 3, "AHD_within": 2, "ADC": 3}


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Parameters
    ----------
    recipe : str
    method : str
        As the paper calls it.
    paper : tuple of float or None
        AJI, AHD and ADC on the MoNuSeg test set, Table 1; None for what is not in the paper.
    """

    recipe: str
    method: str
    paper: tuple[float, float, float] | None


#: In the order of the paper, and ours below. Its AHD is the distance within the nucleus.
ROWS = (
    Row("no-sparse", "M_-sparse", (0.0312, 13.1415, 0.2283)),
    Row("no-smooth", "M_-smooth", (0.1929, 8.8166, 0.4789)),
    Row("no-wsi", "M_-WSI", (0.3025, 8.2853, 0.6209)),
    Row("no-equiv", "M_-equiv", (0.4938, 8.0091, 0.7136)),
    Row("proposed", "M_proposed", (0.5354, 7.7502, 0.7477)),
    Row("anchored", "anchored (ours)", None),
)


@dataclass(frozen=True)
class Run:
    """What one recipe with one seed came to.

    Parameters
    ----------
    recipe : str
    seed : int
    epoch : int
        The one that was kept, from 1: the best by validation Dice.
    mean : dict of str to float or None
        AJI, AHD and ADC, means over the images; None where no image has one.
    interval : dict
        95 % bootstrap interval of each.
    anchor_agreement : float
        Rank correlation of attention and haematoxylin in training, mean over the kept epoch.
    pixel_auc, last_pixel_auc : float
        How often the attention is higher in nuclei than beside them, on the validation images, of
        the kept epoch and of the last. Below one half, the attention is inverted.
    training_seconds : float
        Wall time of the epochs, without starts and validation.
    commit : str
        Of the source tree that trained it, or the version of the package.
    """

    recipe: str
    seed: int
    epoch: int
    mean: Mapping[str, float | None]
    interval: Mapping[str, Sequence[float] | None]
    anchor_agreement: float
    pixel_auc: float
    last_pixel_auc: float
    training_seconds: float
    commit: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, measure and write the table; return the exit code."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _reproduce(options)
    except QpnucleiError as error:
        _log.error("error: %s\nhint: %s", error.what, error.hint or "none")
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "data",
        type=Path,
        help="folder with images/, labels/ and splits.json: its images of the split 'train' are "
        "learned from, its split 'val' is measured",
    )
    parser.add_argument(
        "--slides",
        type=Path,
        nargs="+",
        default=[],
        help="whole slides for all recipes but no-wsi; without them, all learn from patches",
    )
    parser.add_argument(
        "--mpp", type=float, default=0.25, help="µm/px of DATA's images (default: %(default)s)"
    )
    parser.add_argument(
        "--tissue",
        type=_tissue,
        nargs="+",
        default=[],
        metavar="FOLDER=MPP",
        help="further image patches to learn from, and their µm/px",
    )
    parser.add_argument(
        "--width",
        type=int,
        default=64 if torch.cuda.is_available() else 16,
        help="channels of F: 64 is the paper's, 16 a small network for the CPU (default here: "
        "%(default)s)",
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        choices=[row.recipe for row in ROWS],
        default=[row.recipe for row in ROWS],
        help="rows of the table to train and measure; the others stay empty (default: all)",
    )
    parser.add_argument(
        "--set",
        dest="settings",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="change a field of every recipe, for example epochs=30; may repeat",
    )
    parser.add_argument(
        "--seeds", type=_number, default=2, help="runs of each (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", choices=["auto", "cpu", "cuda", "mps"], help="as of qpnuclei"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/table1"), help="for the runs (default: %(default)s)"
    )
    parser.add_argument(
        "--results",
        type=Path,
        default=Path(__file__).with_name("results"),
        help="for table1.md and table1.json (default: %(default)s)",
    )
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of 1 or more")
    return int(text)


def _tissue(text: str) -> tuple[Path, float]:
    folder, _, mpp = text.rpartition("=")
    try:
        return Path(folder), float(mpp)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not FOLDER=MPP") from None


def _reproduce(options: argparse.Namespace) -> None:
    if not (options.data / "splits.json").is_file():
        raise UsageError(
            f"{options.data} has no splits.json",
            "it must say which images are 'train' and which are 'val'",
        )
    if options.tissue and options.slides:
        raise UsageError("--tissue names patches, but with --slides the rows learn from slides")
    # A run that collapses is a result of this table, and no reason to stop.
    settings = [f"width={options.width}", "stop_on_collapse=false", *options.settings]
    recipes = [row.recipe for row in ROWS if row.recipe in options.recipes]
    if not options.slides and "no-wsi" in recipes:
        # On patches, no-wsi is proposed to the bit.
        recipes.remove("no-wsi")
    if not recipes:
        raise UsageError("without whole slides, no-wsi is proposed", "name proposed, too")
    runs: list[Run] = []
    for seed in range(options.seeds):
        for recipe in recipes:
            folder = options.runs / f"width-{options.width}" / f"{recipe}-seed-{seed}"
            _run(options, recipe, seed, settings, folder)
            runs.append(read_run(recipe, seed, folder))
            report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    expected = attention_recipe(read_recipe("proposed", settings))
    table = Table(
        runs=runs,
        floor=report["others"][FLOOR]["mean"],
        size=describe_size(expected),
        images=len(report["images"]),
        slides=len(options.slides),
        tissue=[folder.name for folder, _ in options.tissue],
        settings=settings,
        machine=_machine(report["device"]),
    )
    markdown = table.to_markdown()
    write_atomically(options.results / "table1.md", markdown.encode())
    content = json.dumps(table.to_json(), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(options.results / "table1.json", f"{content}\n".encode())
    sys.stdout.write(markdown)


def _run(
    options: argparse.Namespace, recipe: str, seed: int, settings: Sequence[str], folder: Path
) -> None:
    """Train and measure one model, as far as that is not done."""
    learn_from_patches = recipe == "no-wsi" or not options.slides
    patches = [(options.data, options.mpp), *options.tissue]
    sources = [folder for folder, _ in patches] if learn_from_patches else options.slides
    resolutions = [mpp for _, mpp in patches] if learn_from_patches else []
    if not (folder / REPORT_FILE).is_file():
        train = ["train", *map(str, sources), "-o", str(folder), "--config", recipe]
        train += [part for setting in settings for part in ("--set", setting)]
        train += [part for mpp in resolutions for part in ("--mpp", str(mpp))]
        train += ["--validation", str(options.data), "--validation-mpp", str(options.mpp)]
        train += ["--seed", str(seed), "--device", options.device, "--quiet"]
        if (folder / STATE_FILE).is_file():
            train.append("--resume")
        _qpnuclei(train)
        evaluate = ["evaluate", str(options.data), "--split", "val", "--mpp", str(options.mpp)]
        evaluate += ["--model", str(folder / MODEL_FILE), "--quiet"]
        evaluate += ["--device", options.device, "-o", str(folder / REPORT_FILE)]
        _qpnuclei(evaluate)
    metadata = read_metadata(folder / MODEL_FILE)
    wanted = attention_recipe(read_recipe(recipe, settings))
    made_by = metadata.recipe | {"mpp": metadata.mpp}
    expected = as_json(wanted) | {"mpp": wanted.model_mpp}
    for key, value in expected.items():
        if key not in made_by:
            raise UsageError(
                f"{folder} was made by a former version: {MODEL_FILE} does not state {key}",
                "name another folder with --runs",
            )
        if made_by[key] != value:
            raise UsageError(
                f"{folder} was made with {key} = {made_by[key]!r}, not {value!r}",
                "name another folder with --runs",
            )
    found = find_sources(sources, mpp=resolutions)
    # Images without tissue are given, but not learned from.
    tiles = cached_tile_index(folder, found, wanted.scales, wanted.tile_px, wanted.min_tissue)
    if metadata.data.get("images") != tiles.images(found):
        raise UsageError(f"{folder} learned from other images", "name another folder with --runs")


def _qpnuclei(arguments: Sequence[str]) -> None:
    _log.info("$ qpnuclei %s", shlex.join(arguments))
    finished = subprocess.run(
        [sys.executable, "-m", "qpnuclei", *arguments], stdout=subprocess.DEVNULL, check=False
    )
    if finished.returncode:
        raise TrainingError(
            f"qpnuclei {arguments[0]} ended with exit code {finished.returncode}",
            "see what it says above; what is finished is not run again",
        )


def read_run(recipe: str, seed: int, folder: Path) -> Run:
    """Read a finished run and its evaluation."""
    metadata = read_metadata(folder / MODEL_FILE)
    with (folder / METRICS_FILE).open(encoding="utf-8", newline="") as file:
        epochs = list(csv.DictReader(file))
    report = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    epoch = int(metadata.recipe["epoch"])
    kept, last = epochs[epoch - 1], epochs[-1]
    return Run(
        recipe,
        seed,
        epoch,
        {score: report["mean"][score] for score in SCORES},
        {score: report["interval"][score] for score in SCORES},
        float(kept["anchor agreement"]),
        float(kept["validation pixel_auc"]),
        float(last["validation pixel_auc"]),
        round(sum(float(row["seconds"]) for row in epochs), 1),
        metadata.versions.get("git") or metadata.versions["qpnuclei"],
    )


def describe_size(recipe: AttentionRecipe) -> str:
    """Say in a line how large the networks are and how long they learned."""
    resolution = "full" if recipe.stride == 1 else "half"
    enlarged = recipe.scales[0] / recipe.model_mpp
    enlarging = "" if enlarged == 1 else f" (of images enlarged {enlarged:g} times, once trained)"
    return (
        f"F of {recipe.width} channels at {resolution} resolution{enlarging}, "
        f"G a {recipe.scale_network} ({recipe.scale_weights}); "
        f"{recipe.epochs} epochs of {recipe.batches_per_epoch} batches of {recipe.batch_size} "
        f"crops of {recipe.crop_px} px"
    )


def _machine(device: str) -> str:
    name = torch.cuda.get_device_name() if device.startswith("cuda") else platform.machine()
    return f"{device} ({name}), {os.cpu_count()} cores"


@dataclass(frozen=True)
class Table:
    """All runs, and what a reader must know of them.

    Parameters
    ----------
    runs : list of Run
    floor : dict of str to float
        Scores of haematoxylin and Otsu's threshold on the same images.
    size : str
        Of the networks and the training.
    images : int
        Number of validation images.
    slides : int
        Number of whole-slide sources given; 0 if all learned from patches.
    tissue : list of str
        Names of the folders of further patches.
    settings : list of str
        What was changed in all recipes, as ``key=value``.
    machine : str
    """

    runs: Sequence[Run]
    floor: Mapping[str, float]
    size: str
    images: int
    slides: int
    tissue: Sequence[str]
    settings: Sequence[str]
    machine: str

    def to_json(self) -> dict[str, Any]:
        """Return JSON types."""
        return {
            **asdict(self),
            "paper": {
                row.recipe: dict(zip(SCORES, row.paper, strict=True)) for row in ROWS if row.paper
            },
        }

    def to_markdown(self) -> str:
        """Return the table: a line per method, then one per run."""
        lines = [
            "# Table 1 of the paper, on `val`",
            "",
            *(f"- {note}" for note in self._notes()),
            "",
            "| method | AJI | AHD (px) | ADC (Dice) | paper: AJI | AHD | ADC "
            "| anchor agreement | pixel AUC | at the last epoch |",
            "|---" * 10 + "|",
            *(self._line(row) for row in ROWS),
            self._floor_line(),
            "",
            "## Runs",
            "",
            "Mean over images [95 % bootstrap interval over images].",
            "",
            "| recipe | seed | epoch kept | AJI | AHD (px) | ADC (Dice) | anchor agreement "
            "| pixel AUC | at the last epoch | minutes | commit |",
            "|---" * 11 + "|",
            *(_run_line(run) for run in sorted(self.runs, key=lambda run: run.recipe)),
        ]
        return "\n".join(lines) + "\n"

    def _notes(self) -> list[str]:
        seeds = len({run.seed for run in self.runs})
        notes = [
            f"Size: {self.size}, on {self.machine}. The paper's: 64 channels at full resolution, "
            "resnet34 (imagenet), batches of 32. Of another size, the figures say nothing of what "
            "the paper's method does at its own.",
            f"Seeds: {seeds}. Cells are the mean over seeds (lowest to highest).",
            f"Measured on the {self.images} images of `val`, whose labels chose epoch and "
            "post-processing: a little too good. The paper's figures are on the MoNuSeg test set, "
            "which is another one.",
            "Anchor agreement (no labels: rank correlation of attention and haematoxylin) below 0, "
            "or pixel AUC below 0.5, means that the attention is on the background; near 0.5, that "
            "it has nothing to do with nuclei.",
            "Minutes are wall time of the epochs (not of starts and validation), of a machine that "
            "may have had other work.",
        ]
        if self.tissue:
            names = ", ".join(self.tissue)
            notes.append(f"Patches of further tissue were learned from, too: {names}.")
        if not self.slides:
            notes.append(
                "No whole slides were given: all learned from image patches. M_proposed is then "
                "what the paper calls M_-WSI (the same runs), and its ablations lack whole slides, "
                "too."
            )
        return notes

    def _line(self, row: Row) -> str:
        source = "proposed" if row.recipe == "no-wsi" and not self.slides else row.recipe
        runs = [run for run in self.runs if run.recipe == source]
        ours = [_spread([run.mean[s] for run in runs], _DIGITS[s]) for s in SCORES]
        theirs = ["–"] * 3
        if row.paper:
            theirs = [f"{v:.{_DIGITS[s]}f}" for s, v in zip(SCORES, row.paper, strict=True)]
        watched: list[Callable[[Run], float]] = [
            lambda run: run.anchor_agreement,
            lambda run: run.pixel_auc,
            lambda run: run.last_pixel_auc,
        ]
        seen = [_spread([value(run) for run in runs], 2) for value in watched]
        return f"| {' | '.join([row.method, *ours, *theirs, *seen])} |"

    def _floor_line(self) -> str:
        cells = [f"{self.floor[s]:.{_DIGITS[s]}f}" for s in SCORES]
        return f"| {' | '.join([f'{FLOOR} (floor)', *cells, *['–'] * 6])} |"


def _spread(values: Sequence[float | None], digits: int) -> str:
    """Mean and range of what the seeds gave; a dash if there is nothing."""
    known = [value for value in values if value is not None and not math.isnan(value)]
    if not known:
        return "–"
    mean = f"{statistics.fmean(known):.{digits}f}"
    if len(values) == 1:
        return mean
    return f"{mean} ({min(known):.{digits}f} to {max(known):.{digits}f})"


def _run_line(run: Run) -> str:
    scores = []
    for score in SCORES:
        cell = _spread([run.mean[score]], _DIGITS[score])
        interval = run.interval[score]
        if interval is not None:
            cell += f" [{', '.join(f'{end:.{_DIGITS[score]}f}' for end in interval)}]"
        scores.append(cell)
    watched = [f"{v:.2f}" for v in (run.anchor_agreement, run.pixel_auc, run.last_pixel_auc)]
    minutes = f"{run.training_seconds / 60:.1f}"
    cells = [run.recipe, str(run.seed), str(run.epoch), *scores, *watched, minutes, run.commit]
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
