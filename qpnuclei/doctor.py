"""Checks of an installation and of a project, as ``qpnuclei doctor`` shows them."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import Path

from qpnuclei.errors import QpnucleiError, standing_alone
from qpnuclei.models.registry import DEFAULT_MODEL, networks_of
from qpnuclei.qupath.model import Project
from qpnuclei.system.files import check_folder_target
from qpnuclei.system.versions import versions


class Status(StrEnum):
    """The outcome of a check; only `BAD` makes ``doctor`` exit with 1."""

    OK = "ok"
    NOTE = "note"
    BAD = "bad"


@dataclass(frozen=True)
class Check:
    """The result of one check, and what to do about it."""

    name: str
    status: Status
    found: str
    remedy: str = ""


def check_installation() -> list[Check]:
    """Check Python, the libraries, the device, the models and QuPath."""
    return [
        Check("Python", Status.OK, f"{platform.python_version()} at {sys.executable}"),
        _guarded("libraries", _check_libraries),
        _guarded("torch", _check_torch),
        _guarded("torchvision", _check_torchvision),
        _guarded("device", _check_device),
        *(
            _guarded(f"model {name}", partial(_check_model, name))
            for name in networks_of(DEFAULT_MODEL)
        ),
        _guarded("OpenSlide", _check_openslide),
        _guarded("QuPath", _check_qupath),
    ]


def check_project(project: Project) -> list[Check]:
    """Check the folder and every image of a project.

    The folder is writable. The slide of an image is found and readable, it has a pixel size, and
    its stains can be separated.
    """
    from qpnuclei.qupath.analysed import Record
    from qpnuclei.qupath.images import open_image, stains_of
    from qpnuclei.qupath.pixel_size import pixel_size
    from qpnuclei.slides.resolution import mpp_text

    checks: list[Check] = [_check_folder(project.path.parent)]
    for entry in project.images:
        name = f"image {entry.id}: {entry.name}"

        def fail(error: QpnucleiError, name: str = name) -> None:
            checks.append(Check(name, Status.BAD, error.what, error.hint))

        with standing_alone(name, fail):
            record = Record.of(entry.read().properties, f"{entry.id}: {entry.name}")
            with open_image(entry) as slide:
                slide.read(0, 0, 16, 16)
                stains_of(entry)
                mpp, source = pixel_size(entry, record, slide_mpp=lambda: slide.mpp)
            named = source if source == "an earlier run" else f"the {source}"
            found = f"{slide.width}x{slide.height} px, {mpp_text(mpp)} µm/px from {named}"
            checks.append(Check(name, Status.OK, found))
    return checks


def _check_folder(folder: Path) -> Check:
    """Check that a run can save into the folder of a project."""
    try:
        check_folder_target(folder)
    except QpnucleiError as error:
        return Check("project folder", Status.BAD, error.what, error.hint)
    return Check("project folder", Status.OK, f"{folder} is writable")


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Turn an import that fails into a bad check, rather than an error of the command."""
    try:
        return check()
    except QpnucleiError as error:
        return Check(name, Status.BAD, error.what, error.hint)
    except (ImportError, OSError, RuntimeError) as error:
        return Check(name, Status.BAD, str(error), "reinstall with: pip install --upgrade qpnuclei")


def _check_libraries() -> Check:
    found = {k: v for k, v in versions().items() if k not in ("python", "torch")}
    missing = [name for name, version in found.items() if version == "not installed"]
    return Check(
        "libraries",
        Status.BAD if missing else Status.OK,
        ", ".join(f"{name} {version}" for name, version in found.items()),
        f"pip install {' '.join(missing)}" if missing else "",
    )


def _check_torch() -> Check:
    import torch

    return Check("torch", Status.OK, f"{torch.__version__}, {torch.get_num_threads()} CPU threads")


def _check_torchvision() -> Check:
    """Run one compiled operator: a torchvision built for another torch imports but lacks them."""
    import torch
    import torchvision

    boxes = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0]])
    kept = torchvision.ops.nms(boxes, torch.tensor([1.0, 0.5]), 0.5)
    if kept.tolist() != [0]:
        raise RuntimeError(f"torchvision {torchvision.__version__} computes wrongly: {kept}")
    return Check("torchvision", Status.OK, f"{torchvision.__version__}, operators load")


def _check_device() -> Check:
    import torch

    from qpnuclei.models.device import resolve_device

    device = resolve_device("auto")
    if device.type == "cuda":
        return Check("device", Status.OK, f"auto takes {torch.cuda.get_device_name(device)}")
    if device.type == "mps":
        return Check("device", Status.OK, "auto takes Apple's GPU (mps)")
    return Check("device", Status.NOTE, "auto takes the CPU: no GPU that torch can use")


def _check_model(name: str) -> Check:
    from qpnuclei.models.metadata import model_hash, read_metadata
    from qpnuclei.models.registry import resolve_model

    path = resolve_model(name)
    metadata = read_metadata(path)
    quality = metadata.validation["mean"]
    return Check(
        f"model {name}",
        Status.OK,
        f"{metadata.family} at {metadata.mpp} µm/px, AJI {quality['AJI']:.3f} and Dice "
        f"{quality['ADC']:.3f} on its validation images, {path.stat().st_size / 1e6:.1f} MB, "
        f"sha256 {model_hash(path)[:12]}",
    )


def _check_openslide() -> Check:
    import openslide

    return Check("OpenSlide", Status.OK, f"{openslide.__library_version__}")


def _check_qupath() -> Check:
    from qpnuclei.qupath.paquo.installation import HOW_TO_POINT_TO_QUPATH, find_qupath

    installation = find_qupath()
    if installation is None:
        return Check(
            "QuPath",
            Status.NOTE,
            "not found; projects are read and written by the native backend",
            HOW_TO_POINT_TO_QUPATH,
        )
    return Check("QuPath", Status.OK, f"{installation.version} at {Path(installation.path)}")
