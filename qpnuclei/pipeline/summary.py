"""What a run did: per annotation, per image, and per stage of the work."""

from __future__ import annotations

import dataclasses
import json
import time
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.errors import QpnucleiError
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.system.files import write_atomically
from qpnuclei.system.timing import peak_memory_mib
from qpnuclei.system.versions import versions

if TYPE_CHECKING:
    from qpnuclei.qupath.regions import Region


@dataclass(frozen=True)
class RegionResult:
    """Nuclei written under one annotation, or found in the tissue (which has no id)."""

    name: str
    class_name: str | None
    id: str | None
    area_mm2: float
    nuclei: int
    per_mm2: float

    @classmethod
    def of(cls, region: Region, area_mm2: float, nuclei: int) -> RegionResult:
        """Return the result for a region of the plan."""
        annotation = region.annotation
        return cls(
            name=region.label,
            class_name=annotation.class_name if annotation else None,
            id=str(annotation.id) if annotation and annotation.id else None,
            area_mm2=area_mm2,
            nuclei=nuclei,
            per_mm2=nuclei / area_mm2,
        )


@dataclass(frozen=True)
class ImageResult:
    """What was found in one image.

    Parameters
    ----------
    mpp : (float, float)
        µm per level-0 px; `mpp_source` says who said so.
    working_mpp : (float, float)
        µm per px that the network saw.
    megapixels : float
        Millions of px that the network saw, without overlap.
    replaced : int
        Detections of earlier runs that were removed.
    outside : int
        Nuclei found in the tiles whose centroid lies outside of the regions: not written.
    joined : int
        Nuclei larger than what a tile sees, put together from several.
    covered : int
        Pieces of nuclei cut by a tile's border that were dropped, another tile seeing it whole.
    overlapping : int
        Nuclei dropped because a larger one from another tile covers more than half of them.
    seconds : mapping of str to float
        Time that each stage worked; they overlap, so they add up to more than the run took.
    waited : mapping of str to float
        Time that a stage had nothing to do, because the one before it was not done.
    """

    name: str
    entry: str
    mpp: tuple[float, float]
    mpp_source: str
    working_mpp: tuple[float, float]
    stains: str
    tiles: int
    megapixels: float
    regions: tuple[RegionResult, ...]
    replaced: int
    outside: int
    joined: int
    covered: int
    overlapping: int
    seconds: dict[str, float]
    waited: dict[str, float]
    notes: tuple[str, ...] = ()

    @property
    def nuclei(self) -> int:
        """Nuclei written."""
        return sum(region.nuclei for region in self.regions)


@dataclass
class RunSummary:
    """The result of a run over a project; `save` writes it as ``run.json``."""

    project: Path
    backend: str
    arguments: dict[str, Any]
    model: dict[str, Any]
    device: str
    run_dir: Path
    images: list[ImageResult] = field(default_factory=list)
    failures: list[tuple[str, QpnucleiError]] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0

    @property
    def nuclei(self) -> int:
        """Nuclei written in all the images."""
        return sum(image.nuclei for image in self.images)

    def save(self) -> None:
        """Write ``run.json`` into `run_dir`.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        self.seconds = time.time() - self.started
        content = json.dumps(self.to_json(), indent=2, ensure_ascii=False, default=str)
        write_atomically(self.run_dir / "run.json", content.encode(errors="backslashreplace"))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types, with the versions of what computed it."""
        started = datetime.fromtimestamp(self.started).astimezone()
        return {
            "project": str(self.project),
            "backend": self.backend,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "peak_memory_mib": peak_memory_mib(),
            "nuclei": self.nuclei,
            "images": [
                {**dataclasses.asdict(image), "nuclei": image.nuclei} for image in self.images
            ],
            "failures": [
                {"image": name, "error": error.what, "hint": error.hint}
                for name, error in self.failures
            ],
            "arguments": self.arguments,
            "model": self.model,
            "device": self.device,
            "versions": versions(),
        }


def describe_model(spec: EngineSpec) -> dict[str, Any]:
    """Return which model was used: its name, hash, resolution and what else its engine says."""
    return {
        "name": spec.name,
        "sha256": spec.sha256,
        "mpp": spec.mpp,
        **spec.details,
    }
