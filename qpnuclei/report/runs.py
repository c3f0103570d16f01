"""The parts of the ``run.json`` of earlier runs that a report uses.

A record may come from another version of qpnuclei. The report omits values that it lacks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from qpnuclei.errors import FormatError, NotFoundError, UsageError
from qpnuclei.pipeline.summary import RECORD
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.model import ImageEntry
from qpnuclei.qupath.project_file import OWN_FOLDER
from qpnuclei.system.files import read_regular, resolved, unreadable
from qpnuclei.system.json_text import parse_json

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunOfImage:
    """A run's record of one image; None or empty for unknown values."""

    mpp: tuple[float, float] | None
    mpp_source: str
    working_mpp: tuple[float, float] | None
    tiles: int | None
    region_ids: tuple[str | None, ...]
    marker: str


@dataclass(frozen=True)
class Run:
    """A run: the path of its record, and the content."""

    path: Path
    content: Mapping[str, Any] = field(repr=False)

    @property
    def models(self) -> Sequence[Mapping[str, Any]]:
        """The records of its models; older runs have only one."""
        return _mappings(self.content.get("models")) or [_mapping(self.content.get("model"))]

    @property
    def versions(self) -> Mapping[str, Any]:
        """Versions of programs and libraries."""
        return _mapping(self.content.get("versions"))

    @property
    def arguments(self) -> Mapping[str, Any]:
        """Options of the run."""
        return _mapping(self.content.get("arguments"))

    def number(self, argument: str) -> float | None:
        """Return an option of the run that is a number; None if it is unknown or was not given."""
        value = self.arguments.get(argument)
        return float(value) if isinstance(value, int | float) else None

    @property
    def positive_thresholds(self) -> tuple[float, ...]:
        """Optical densities of DAB from which nuclei are positive, or 1+, 2+ and 3+; or none."""
        given = _sequence(self.arguments.get("positive_thresholds"))
        known = tuple(float(value) for value in given if isinstance(value, int | float))
        return known if len(known) == len(given) and len(known) in (1, 3) else ()

    @property
    def selection(self) -> Mapping[str, Any]:
        """What the run was told to analyse: the fields of `qpnuclei.Selection`."""
        return _mapping(self.arguments.get("selection"))

    @property
    def chosen_classes(self) -> tuple[str, ...]:
        """Classes whose annotations it was told to analyse; empty if they were chosen otherwise."""
        return tuple(map(str, _sequence(self.selection.get("classes"))))

    @property
    def started(self) -> str:
        """Start of the run, to the minute; empty if unknown."""
        return str(self.content.get("started") or "")[:16].replace("T", " ")

    @property
    def seconds(self) -> float | None:
        """Duration of the run."""
        value = self.content.get("seconds")
        return float(value) if isinstance(value, int | float) else None

    @cached_property
    def unfinished(self) -> list[tuple[str, str, str]]:
        """Entry ID and name of each image that failed or was not done, and the reason."""
        return [
            (str(image.get("entry")), str(image.get("image") or ""), str(image.get(why) or ""))
            for part, why in (("failures", "error"), ("not_done", "reason"))
            for image in _mappings(self.content.get(part))
        ]

    def why_unfinished(self, entry_id: str) -> str | None:
        """Return why an image failed or was not done; None if neither."""
        return self._reasons.get(entry_id)

    def of_image(self, entry_id: str) -> RunOfImage | None:
        """Return the record of an image; None if the run did not finish it."""
        return self._of_images.get(entry_id)

    @cached_property
    def _reasons(self) -> dict[str, str]:
        # In reverse, so that the first of several entries is kept.
        return {identifier: reason for identifier, _, reason in reversed(self.unfinished)}

    @cached_property
    def _of_images(self) -> dict[str, RunOfImage]:
        return {
            str(image.get("entry")): RunOfImage(
                mpp=_pair(image.get("mpp")),
                mpp_source=str(image.get("mpp_source") or ""),
                working_mpp=_pair(image.get("working_mpp")),
                tiles=_number(image.get("tiles")),
                region_ids=tuple(r.get("id") for r in _mappings(image.get("regions"))),
                marker=str(image.get("marker") or ""),
            )
            for image in reversed(_mappings(self.content.get("images")))
        }


def read_run(folder: Path) -> Run:
    """Read the record of a run from its folder.

    Raises
    ------
    NotFoundError, FormatError
        If it is missing, or cannot be read.
    """
    path = folder / RECORD
    if not path.is_file():
        raise NotFoundError(f"{folder} has no {RECORD}", "give the folder of a run, or a project")
    try:
        content = parse_json(read_regular(path).decode())
    except (OSError, ValueError) as error:
        raise unreadable(path, error, hint="give the project instead") from error
    if not isinstance(content, dict):
        raise FormatError(f"{path} is not the record of a run", "give the project instead")
    return Run(path, content)


def runs_of(project_folder: Path) -> list[Run]:
    """Return the runs in the folder of a project, newest first; unreadable ones are left out."""
    found = []
    for path in sorted((project_folder / OWN_FOLDER).glob(f"*/{RECORD}"), reverse=True):
        try:
            found.append(read_run(path.parent))
        except (FormatError, NotFoundError) as error:
            _log.info("not in the report: %s", error.what)
    return sorted(found, key=lambda run: str(run.content.get("started") or ""), reverse=True)


def with_others(run: Run, project_folder: Path) -> list[Run]:
    """Return a run, and then those in the folder of its project: others may have written, too."""
    others = runs_of(project_folder)
    return [run, *(other for other in others if resolved(other.path) != resolved(run.path))]


def run_that_wrote(runs: Sequence[Run], entry_id: str, marker: str) -> Run | None:
    """Return the run that wrote the nuclei of an image; None if its record is not among `runs`.

    Parameters
    ----------
    runs : sequence of Run
        Newest first.
    marker : str
        Mark of the run in the record that the project has of the image.
    """
    for run in runs:
        found = run.of_image(entry_id)
        if found is not None and found.marker and found.marker == marker:
            return run
    # Records of older versions have no markers. A run that is started again replaces its record. It
    # may then list an image as unfinished although it finished the image before.
    for run in runs:
        found = run.of_image(entry_id)
        if found is not None:
            return None if found.marker else run
        if run.why_unfinished(entry_id) is not None:
            return None
    return None


def runs_in(runs: Sequence[Run], entry_id: str, record: Record) -> list[Run]:
    """Return the runs whose nuclei are in an image, as far as their records are among `runs`.

    Parameters
    ----------
    runs : sequence of Run
        Newest first, and so is the result.
    record : Record
        The record that the project has of the image.
    """
    if not record.areas:
        return []
    last = run_that_wrote(runs, entry_id, record.run)
    return [
        run
        for run in runs
        if run is last
        or ((found := run.of_image(entry_id)) and found.marker and record.has_run(found.marker))
    ]


def is_unrecorded(runs: Sequence[Run], entry_id: str, record: Record) -> bool:
    """Return whether a run has nuclei in an image, but its record is not among `runs`.

    Parameters
    ----------
    runs, record
        As for `runs_in`.
    """
    if not record.areas:
        return False
    known = {found.marker for run in runs if (found := run.of_image(entry_id))}
    return run_that_wrote(runs, entry_id, record.run) is None or any(
        record.has_run(marker) for marker in record.earlier_runs if marker not in known
    )


def project_of(run: Run) -> Path:
    """Return the project of a run: the one that contains its folder, else the one it names."""
    folder = run.path.parent.absolute().parent
    if folder.name == OWN_FOLDER and any(folder.parent.glob("*.qpproj")):
        return folder.parent
    named = Path(str(run.content.get("project") or ""))
    if not named.name or not named.exists():
        raise NotFoundError(
            f"{run.path}: its project {str(named)!r} is missing", "give the project instead"
        )
    return named


def images_of(run: Run, entries: Sequence[ImageEntry]) -> list[ImageEntry]:
    """Return the images that a run analysed.

    Raises
    ------
    UsageError
        If it analysed none of `entries`.
    """
    done = [entry for entry in entries if run.of_image(entry.id) is not None]
    if not done:
        raise UsageError(
            f"{run.path}: the run analysed none of these images", "give the project instead"
        )
    return done


def is_run_folder(path: Path) -> bool:
    """Tell whether a path is the folder of a run but not of a project."""
    return (path / RECORD).is_file() and not any(path.glob("*.qpproj"))


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _sequence(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else []


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [part for part in _sequence(value) if isinstance(part, dict)]


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None


def _pair(value: Any) -> tuple[float, float] | None:
    parts = _sequence(value)
    if len(parts) != 2 or not all(isinstance(part, int | float) and part > 0 for part in parts):
        return None
    return float(parts[0]), float(parts[1])
