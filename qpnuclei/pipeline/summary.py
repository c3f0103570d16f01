"""The result of a run: per annotation, per image, and per stage of the work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

from qpnuclei.errors import QpnucleiError, SaveError, TerminatedError, number_of
from qpnuclei.qupath.doubts import unsaid
from qpnuclei.segmentation.engine import EngineSpec
from qpnuclei.system.checked import as_json, checked
from qpnuclei.system.files import (
    folders_of_last_resort,
    make_folder_below,
    read_regular,
    write_atomically,
)
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.json_text import json_bytes
from qpnuclei.system.timing import peak_memory_mib
from qpnuclei.system.versions import versions

if TYPE_CHECKING:
    from qpnuclei.pipeline.options import RunOptions
    from qpnuclei.pipeline.planning.plan_file import RunPlan
    from qpnuclei.qupath.model import Project
    from qpnuclei.qupath.regions import Region

_log = logging.getLogger(__name__)

#: Name of the file in the folder of a run that holds its result.
RECORD = "run.json"


@dataclass(frozen=True)
class RegionResult:
    """Nuclei in one annotation, as export counts them, or in tissue without an annotation (no id).

    `name` is a label for people, `id` the UUID of the annotation. Where annotations overlap, a
    nucleus counts in each that contains it. `check` states the doubts about the nuclei (see
    `qpnuclei.pipeline.inference.plausibility`), and is empty without doubts.
    """

    name: str
    class_name: str | None
    id: str | None
    area_mm2: float
    nuclei: int
    per_mm2: float
    check: str

    @classmethod
    def of(
        cls, region: Region, area_mm2: float, nuclei: int, per_mm2: float, check: str
    ) -> RegionResult:
        """Return the result for a region of the plan."""
        annotation = region.annotation
        return cls(
            name=region.label,
            class_name=annotation.class_name if annotation else None,
            id=str(annotation.id) if annotation and annotation.id else None,
            area_mm2=area_mm2,
            nuclei=nuclei,
            per_mm2=per_mm2,
            check=check,
        )


@dataclass(frozen=True)
class ImageResult:
    """The results of one image.

    Parameters
    ----------
    model : str
        Name of the model that found them: `EngineSpec.name`.
    mpp : (float, float)
        µm per level-0 px; `mpp_source` names the source of this size.
    working_mpp : (float, float)
        µm per px at which the network worked.
    megapixels : float
        Millions of px that the network processed, without overlap.
    nuclei : int
        Nuclei written, each once.
    check : str
        Doubts about the whole image, as for a region.
    replaced : int
        Detections of earlier runs that were removed.
    locked, as_locked : int
        Detections of earlier runs in the regions that stay because a user has locked them; and
        nuclei that are not written because one of these is in the same place.
    outside : int
        Nuclei that are not written because their centroid lies outside the regions. A run with
        cells leaves them out earlier, and does not count them.
    joined : int
        Nuclei larger than the view of a tile, joined from several.
    covered : int
        Pieces of nuclei at tile borders that were dropped because another tile saw the whole
        nucleus.
    overlapping : int
        Nuclei dropped because a larger one from another tile covers more than half of them.
    seconds : mapping of str to float
        Working time of each stage; stages overlap, so they add up to more than the run took.
    waited : mapping of str to float
        Time that each stage waited for the one before it.
    marker : str
        Names the run that wrote the nuclei, in the image's record in the project.
    data : str
        Hash of the data file in which the nuclei of the regions were counted.
    """

    name: str
    entry: str
    model: str
    mpp: tuple[float, float]
    mpp_source: str
    working_mpp: tuple[float, float]
    stains: str
    tiles: int
    megapixels: float
    regions: tuple[RegionResult, ...]
    nuclei: int
    check: str
    replaced: int
    outside: int
    joined: int
    covered: int
    overlapping: int
    seconds: dict[str, float]
    waited: dict[str, float]
    notes: tuple[str, ...] = ()
    locked: int = 0
    as_locked: int = 0
    marker: str = ""
    data: str = ""

    @property
    def doubts(self) -> tuple[str, ...]:
        """What is doubtful, a line each: about the image, and about regions if it differs."""
        own = ((region.name, unsaid(region.check, self.check)) for region in self.regions)
        return (*filter(None, [self.check]), *(f"{name}: {doubt}" for name, doubt in own if doubt))


@dataclass(frozen=True)
class StoredResult:
    """What the run's folder stores of an image, in a file of its own.

    It is first written before the project is saved: a run that continues after a kill reads it.

    Parameters
    ----------
    is_saved : bool
        Whether the project is saved, and the regions are counted.
    result : ImageResult
    again, as_locked : tuple of UUID
        Nuclei found that were not written, see `NewNuclei`. The project does not tell this any more
        once the nuclei are in it.
    renamed : tuple of (UUID, UUID)
        See `NewNuclei`, for the same reason.
    copies : tuple of str
        Absolute paths of the files beside the project that hold the nuclei, too.
    """

    is_saved: bool
    result: ImageResult
    again: tuple[UUID, ...] = ()
    as_locked: tuple[UUID, ...] = ()
    copies: tuple[str, ...] = ()
    renamed: tuple[tuple[UUID, UUID], ...] = ()

    def save(self, path: Path) -> None:
        """Write it.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        write_atomically(path, json_bytes(as_json(self), indent=1))

    @classmethod
    def read(cls, path: Path) -> StoredResult | None:
        """Read what `save` wrote; None if that is not there, or damaged."""
        try:
            return checked(json.loads(read_regular(path)), cls)
        except (OSError, ValueError, RecursionError):
            return None


@dataclass(frozen=True)
class Failure:
    """An image that was left as it was, and why."""

    name: str
    entry: str
    error: QpnucleiError


@dataclass
class RunSummary:
    """The result of a run over a project; `save` writes it as ``run.json``.

    Parameters
    ----------
    models : list of dict
        The models of its images, see `describe_model`: of the default, one network or both.
    planned : mapping of str to str
        Names of the images, by entry ID, in the order of the project. At the end, each is among the
        `images` that were done, the `failures`, or the others (`not_done`). An image that an
        earlier start has done, and that can no longer be planned, is among both `images` and
        `failures`.
    nothing_to_do : mapping of str to str
        Reason why an image was not analysed, by entry ID.
    state : str
        ``"planned"``, ``"running"``, ``"stopped"``, ``"failed"`` (some images) or ``"done"``.
    request : str
        Hash of the request; the same command continues an unfinished run with the same hash.
    earlier : set of str
        Entry IDs of the `images` that were in the project already when the run was continued.
    """

    project: Path
    backend: str
    arguments: dict[str, Any]
    models: list[dict[str, Any]]
    device: str
    run_dir: Path
    planned: dict[str, str] = field(default_factory=dict)
    images: list[ImageResult] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    nothing_to_do: dict[str, str] = field(default_factory=dict)
    state: str = "running"
    request: str = ""
    earlier: set[str] = field(default_factory=set)
    started: float = field(default_factory=time.time)
    seconds: float = 0.0

    @classmethod
    def begun(
        cls, project: Project, plan: RunPlan, options: RunOptions, run_dir: Path
    ) -> RunSummary:
        """Return the record of a run at its start."""
        return cls(
            project=project.path,
            backend=project.backend,
            arguments=options.to_json(),
            models=[describe_model(spec) for spec in plan.models_used],
            device="",
            run_dir=run_dir,
            planned=dict(plan.names),
            nothing_to_do=dict(plan.nothing_to_do),
            request=plan.request,
        )

    @property
    def nuclei(self) -> int:
        """Nuclei written in all the images."""
        return sum(image.nuclei for image in self.images)

    @property
    def outcome(self) -> str:
        """The last line of the log: the state, how many images failed, and the nuclei."""
        nuclei = number_of(self.nuclei, "nucleus")
        if not self.failures:
            return f"{self.state}: {nuclei}"
        failed = number_of(len(self.failures), "image")
        return f"{self.state}: {failed}; {nuclei} in {number_of(len(self.images), 'image')} done"

    @property
    def resumed(self) -> int:
        """Number of images that were finished before the run was resumed."""
        return len(self.earlier)

    @property
    def done_now(self) -> list[ImageResult]:
        """The images that this start of the run has written."""
        return [image for image in self.images if image.entry not in self.earlier]

    def add_earlier(self, image: ImageResult) -> None:
        """Note an image that was in the project already."""
        self.images.append(image)
        self.earlier.add(image.entry)

    @contextlib.contextmanager
    def noting_a_stop(self) -> Iterator[None]:
        """Write the state ``"stopped"`` if a batch system ends the block."""
        try:
            yield
        except TerminatedError:
            self.state = "stopped"
            self.try_to_save()
            raise

    def finish(self) -> None:
        """Mark the run as finished, and list its images in the order of the project."""
        place = {entry_id: number for number, entry_id in enumerate(self.planned)}
        self.images.sort(key=lambda result: place[result.entry])
        self.failures.sort(key=lambda failure: place[failure.entry])
        self.state = "failed" if self.failures else "done"

    def fail(self, entry_id: str, error: QpnucleiError, is_written: bool = False) -> None:
        """Record and report that an image failed and was left as it was.

        Parameters
        ----------
        is_written : bool
            Whether an earlier start of this run has written its nuclei.
        """
        name = self.planned[entry_id]
        self.failures.append(Failure(name, entry_id, error))
        again = " again; its nuclei from the earlier run are kept" if is_written else ""
        _log.error("%snot analysed%s: %s", error.naming("image", name), again, error)

    def fail_planned(self, errors: Mapping[str, QpnucleiError], written: Collection[str]) -> None:
        """Record and report the images that could not be planned.

        Parameters
        ----------
        errors : mapping of str to QpnucleiError
            Why, by entry ID.
        written : collection of str
            Entry IDs of images whose nuclei an earlier start of this run has written.
        """
        for entry_id, error in errors.items():
            self.fail(entry_id, error, entry_id in written)

    @property
    def not_done(self) -> list[dict[str, str]]:
        """The images that were neither done nor failed, and why."""
        told = {image.entry for image in self.images} | {f.entry for f in self.failures}
        return [
            {
                "image": name,
                "entry": entry_id,
                "reason": self.nothing_to_do.get(entry_id, "the run ended before"),
            }
            for entry_id, name in self.planned.items()
            if entry_id not in told
        ]

    def save(self) -> None:
        """Write ``run.json`` into `run_dir`.

        Raises
        ------
        SaveError
            If it cannot be written, or the project's folder is gone: it is not made again.
        """
        make_folder_below(self.project.parent, self.run_dir)
        self._write()

    def _write(self) -> None:
        self.seconds = time.time() - self.started
        content = json_bytes(self.to_json(), indent=2, default=str)
        write_atomically(self.run_dir / RECORD, content)

    def save_if_due(self) -> None:
        """Write the record if `is_due`; if that fails, a later call tries again."""
        if is_due(len(self.images) + len(self.failures)):
            self.try_to_save()

    def try_to_save(self) -> None:
        """Write the record; if that fails, a later call tries again."""
        with interrupt_postponed():
            try:
                self.save()
            except SaveError as error:
                _log.debug("no record yet: %s", error)

    def save_somewhere(self) -> None:
        """Write ``run.json`` into `run_dir`, or into another folder if that fails.

        `run_dir` is then that folder.

        Raises
        ------
        SaveError
            If it can be written nowhere.
        """
        with interrupt_postponed():
            try:
                return self.save()
            except SaveError as error:
                refused = error
            name = f"qpnuclei-{self.run_dir.name}"
            for folder in folders_of_last_resort():
                self.run_dir = folder / name
                with contextlib.suppress(SaveError):
                    self._write()
                    _log.warning("%s; the record is in %s", refused.what, self.run_dir)
                    return None
            raise refused

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON types, with the versions of the software."""
        started = datetime.fromtimestamp(self.started).astimezone()
        return {
            "project": str(self.project.absolute()),
            "state": self.state,
            "request": self.request,
            "backend": self.backend,
            "started": started.isoformat(timespec="seconds"),
            "seconds": round(self.seconds, 2),
            "peak_memory_mib": peak_memory_mib(),
            "nuclei": self.nuclei,
            "resumed": self.resumed,
            "images": [dataclasses.asdict(image) for image in self.images],
            "failures": [
                {"image": f.name, "entry": f.entry, "error": f.error.what, "hint": f.error.hint}
                for f in self.failures
            ],
            "not_done": self.not_done,
            "arguments": self.arguments,
            "models": self.models,
            "device": self.device,
            "versions": versions(),
        }


def is_due(images: int) -> bool:
    """Return whether to write the record after so many images.

    It is written after each of the first 200, then after each percent. The record holds all images:
    writing it after each of ten thousand small slides would take longer than their analysis.
    """
    return images % max(images // 100, 1) == 0


def describe_model(spec: EngineSpec) -> dict[str, Any]:
    """Describe the model: name, hash, resolution and further information of its engine."""
    return {
        "name": spec.name,
        "sha256": spec.sha256,
        "mpp": spec.mpp,
        **spec.details,
    }
