"""What a run did: per annotation, per image, and per stage of the work."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import platform
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

import qpnuclei
from qpnuclei.errors import QpnucleiError
from qpnuclei.files import write_atomically

_LIBRARIES = ("numpy", "scipy", "scikit-image", "opencv-python-headless", "shapely", "torch",
              "tiffslide", "paquo")


class Stopwatch:
    """Adds up the seconds that each named stage takes."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of a ``with`` block to `stage`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self.seconds[stage] = self.seconds.get(stage, 0.0) + elapsed


@dataclass(frozen=True)
class RegionResult:
    """Nuclei written under one annotation (or found in the tissue)."""

    name: str
    class_name: str | None
    id: str | None
    area_mm2: float
    nuclei: int

    @property
    def per_mm2(self) -> float:
        """Nuclei per mm² of the annotation."""
        return self.nuclei / self.area_mm2 if self.area_mm2 else float("nan")


@dataclass(frozen=True)
class ImageResult:
    """What was found in one image."""

    name: str
    entry: str
    mpp: tuple[float, float]
    mpp_source: str
    downsample: tuple[float, float]
    stains: str
    tiles: int
    megapixels: float
    regions: tuple[RegionResult, ...]
    nuclei: int
    replaced: int
    stitching: dict[str, int]
    seconds: dict[str, float]
    notes: tuple[str, ...] = ()


@dataclass
class RunSummary:
    """The result of a run over a project; `save` writes it as ``run.json``."""

    project: str
    backend: str
    arguments: dict[str, Any]
    model: dict[str, Any]
    device: str
    started: str
    images: list[ImageResult] = field(default_factory=list)
    failures: list[tuple[str, QpnucleiError]] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def nuclei(self) -> int:
        """Nuclei in all the images."""
        return sum(image.nuclei for image in self.images)

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types, with the versions of what computed it."""
        content = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        content["failures"] = [
            {"image": name, "error": error.what, "hint": error.hint}
            for name, error in self.failures
        ]
        content["nuclei"] = self.nuclei
        content["peak_memory_mib"] = peak_memory_mib()
        content["versions"] = versions()
        return content

    def save(self, path: Path) -> None:
        """Write ``run.json``.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        write_atomically(path, orjson.dumps(self.to_json(), option=orjson.OPT_INDENT_2))


def versions() -> dict[str, str]:
    """Return the versions of qpnuclei, Python and the libraries that results depend on."""
    found = {"qpnuclei": qpnuclei.__version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process in MiB; None where it is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
