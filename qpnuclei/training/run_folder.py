"""The run folder: the files of a training, and the state from which it is resumed."""

from __future__ import annotations

import csv
import io
import logging
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.models.checkpoint import library_versions
from qpnuclei.slides.pixels import write_png
from qpnuclei.system.files import content_of, make_writable_folder, write_atomically

_log = logging.getLogger(__name__)

STATE_FILE = "state.pt"
MODEL_FILE = "model.safetensors"
METRICS_FILE = "metrics.csv"
#: How the names of files begin that a run writes before it saves a state; those of former versions
#: also wrote logs for TensorBoard and the labels of a student.
_BEFORE_ANY_STATE = ("tiles-", "pseudo-labels", "tensorboard")

_ANEW = "start the run anew in another folder"


@dataclass
class Progress:
    """The progress of a run, with its metrics so far.

    Parameters
    ----------
    epoch, batch : int
        The next batch: number of epochs done, and of batches done in the present one.
    history : list of dict
        One row of metrics per epoch done.
    sums : dict
        Sums of the metrics over the batches done in the present epoch.
    best_epoch : int or None
        Epoch (from 1) whose model was kept.
    best_score : float or None
        By which it was chosen: its validation Dice; of a student, AJI.
    tuned : bool
        Whether the post-processing was chosen, after the last epoch.
    """

    epoch: int = 0
    batch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best_epoch: int | None = None
    best_score: float | None = None
    tuned: bool = False


@dataclass(frozen=True)
class RunState:
    """All that a run needs to continue exactly where it stopped.

    There is no state of random numbers: those of a batch depend only on the seed and its number.

    Parameters
    ----------
    identity : mapping
        What must be the same when the run is resumed: recipe, seed, hashes of the sources and of
        the validation images.
    progress : Progress
    learner : mapping
        State of the networks and the optimiser.
    """

    identity: Mapping[str, Any]
    progress: Progress
    learner: Mapping[str, Any]


def open_run_folder(folder: Path, resume: bool) -> None:
    """Make the run folder, or check that it holds a run to resume.

    Raises
    ------
    qpnuclei.errors.UsageError
        If it is not empty and `resume` is false.
    qpnuclei.errors.NotFoundError
        If `resume` is true and it holds no state.
    qpnuclei.errors.SaveError
        If it cannot be made, or is not writable.
    """
    if resume:
        if not (folder / STATE_FILE).is_file():
            raise NotFoundError(
                f"{folder} holds no run to resume (no {STATE_FILE})", "leave --resume out"
            )
        make_writable_folder(folder)
        return
    make_writable_folder(folder)
    if (folder / STATE_FILE).exists():
        raise UsageError(
            f"{folder} holds a training run", "continue it with --resume, or name another folder"
        )
    if any(not path.name.startswith(_BEFORE_ANY_STATE) for path in content_of(folder)):
        raise UsageError(f"{folder} is not empty", "name another folder")


def save_state(folder: Path, state: RunState) -> None:
    """Write a run's state; it replaces the earlier one in one step."""
    buffer = io.BytesIO()
    content = {
        "identity": dict(state.identity),
        "progress": asdict(state.progress),
        "learner": dict(state.learner),
    }
    torch.save(content, buffer)
    write_atomically(folder / STATE_FILE, buffer.getvalue())


def load_state(folder: Path) -> RunState:
    """Read a run's state, without running any code it might hold.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the file cannot be read, is damaged or not a state.
    qpnuclei.errors.NotFoundError
        If the model that the run has kept is missing.
    """
    path = folder / STATE_FILE
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compare the checksums
            damaged = archive.testzip()
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = RunState(content["identity"], Progress(**content["progress"]), content["learner"])
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror or error}", _ANEW) from error
    except Exception as error:  # whatever zipfile, pickle and torch make of strange bytes
        raise FormatError(f"{path} is damaged, or not a state of a training run", _ANEW) from error
    if damaged is not None:
        raise FormatError(f"{path} is damaged: its checksums do not fit", _ANEW)
    kept = state.progress.best_epoch
    if kept is not None and not (folder / MODEL_FILE).is_file():
        raise NotFoundError(
            f"{folder / MODEL_FILE} is missing: the run has kept its best model there",
            f"put it back, or {_ANEW}",
        )
    return state


def check_identity(state: RunState, identity: Mapping[str, Any]) -> None:
    """Refuse to resume with another recipe, seed, images or validation; more epochs are allowed.

    Raises
    ------
    qpnuclei.errors.UsageError
        Naming what differs.
    """
    before, now = _flat(state.identity), _flat(identity)
    for key in sorted(before.keys() | now.keys()):
        if key in ("recipe.epochs", "recipe.stop_on_collapse"):
            continue
        if before.get(key) != now.get(key):
            raise UsageError(
                f"cannot resume: {key} was {before.get(key)!r} and is now {now.get(key)!r}",
                "give the same arguments as before, or start a new run",
            )


def write_metrics(folder: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write the metrics of all epochs as CSV."""
    text = io.StringIO()
    names = list(dict.fromkeys(name for row in history for name in row))
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_atomically(folder / METRICS_FILE, text.getvalue().encode())


def write_attention_grid(path: Path, rgb: Tensor, attention: Tensor) -> None:
    """Write a picture: images above, their attention below.

    Parameters
    ----------
    path : pathlib.Path
        PNG.
    rgb : (B, 3, H, W) uint8 Tensor
    attention : (B, 1, H, W) float Tensor
        0..1, shown from black to white.
    """
    images: npt.NDArray[np.uint8] = rgb.permute(2, 0, 3, 1).cpu().numpy()
    grey = (attention.clamp(0, 1) * 255).byte().expand(-1, 3, -1, -1)
    maps: npt.NDArray[np.uint8] = grey.permute(2, 0, 3, 1).cpu().numpy()
    rows = [part.reshape(part.shape[0], -1, 3) for part in (images, maps)]
    write_png(path, np.concatenate(rows))


def versions_of_training() -> dict[str, str]:
    """Return the versions that a trained model records: of libraries, and of the sources."""
    versions = library_versions()
    if git := git_state():
        versions["git"] = git
    return versions


def git_state() -> str | None:
    """Return the commit of the source tree that runs, with ``-dirty`` if it was changed.

    None where qpnuclei runs from an installation, or there is no git.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip()


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Turn ``{"a": {"b": 1}}`` into ``{"a.b": 1}``, and tuples into lists, as states have them."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
