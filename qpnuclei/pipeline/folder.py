"""The folder of a run: its plan, what is finished, what failed, and its log.

Its files may come from elsewhere and are not trusted: no name in them leads out of the folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from io import TextIOWrapper
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

from qpnuclei.errors import FormatError, SaveError, UsageError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.keys import request_of
from qpnuclei.pipeline.planning.layout import WorkUnit
from qpnuclei.pipeline.planning.plan_file import PlannedImage, RunPlan
from qpnuclei.pipeline.summary import RECORD
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.project_file import OWN_FOLDER
from qpnuclei.system.checked import as_json
from qpnuclei.system.files import (
    copy_owner,
    make_folder_below,
    make_writable_folder,
    read_regular,
    remove_leftovers,
    resolved,
    unreadable,
    write_atomically,
)
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.json_text import json_bytes
from qpnuclei.system.one_line import OneLineFormatter

#: After this many failures a unit is not tried again, unless the user asks for it.
TRIES = 3

_log = logging.getLogger(__name__)
#: Messages for the log file only.
_journal = logging.getLogger(f"{__name__}.journal")


class RunFolder:
    """The files of one run.

    Parameters
    ----------
    path : Path
        It need not exist yet.
    base : Path
        Folder of the project, which must exist before `path` is made: if its drive is gone, no
        folder is made in its place.
    """

    def __init__(self, path: Path, base: Path | None = None) -> None:
        self.path = path
        self._base = path if base is None else base

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @property
    def plan_path(self) -> Path:
        """``plan.json``."""
        return self.path / "plan.json"

    @property
    def record_path(self) -> Path:
        """``run.json``."""
        return self.path / RECORD

    @property
    def _failures_path(self) -> Path:
        return self.path / "failures.jsonl"

    def make(self) -> None:
        """Make the folder.

        Raises
        ------
        SaveError
            If it cannot be made.
        """
        make_folder_below(self._base, self.path)

    def plan(self) -> RunPlan:
        """Read the plan.

        Raises
        ------
        NotFoundError, FormatError
            If there is none, or it is damaged.
        """
        return RunPlan.read(self.plan_path)

    def save_plan(self, plan: RunPlan) -> None:
        """Write the plan.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        self.make()
        write_atomically(self.plan_path, json_bytes(as_json(plan), indent=1))

    def shard(self, image: PlannedImage, name: str) -> Path:
        """Return the file of a unit of an image, or of all its nuclei.

        Raises
        ------
        FormatError
            If it would lie outside of the folder.
        """
        return self._inside(self.path / "shards" / image.folder / f"{name}.parquet")

    def result_path(self, image: PlannedImage) -> Path:
        """Return the file that records the objects written into the project for an image."""
        return self._inside(self.path / "results" / f"{image.folder}.json")

    def _inside(self, path: Path) -> Path:
        if not resolved(path).is_relative_to(resolved(self.path)):
            raise FormatError(f"{path} lies outside the run's folder", "plan the run again")
        return path

    def make_for(self, path: Path) -> Path:
        """Make the folder of a file inside; return the file.

        Raises
        ------
        SaveError
            If it cannot be made.
        """
        make_folder_below(self._base, path.parent)
        return path

    def store(self, image: PlannedImage, unit: WorkUnit, shard: bytes) -> None:
        """Write the shard of a unit: with that, the unit is done.

        Raises
        ------
        SaveError
            If it cannot be written.
        """
        path = self.make_for(self.shard(image, unit.name))
        with interrupt_postponed():
            write_atomically(path, shard)

    def failed(self) -> dict[str, dict[str, Any]]:
        """Return by key the units that failed `TRIES` times.

        Raises
        ------
        FormatError
            If the list of failures cannot be read.
        """
        return {
            str(entry["key"]): entry
            for entry in self._failures()
            if entry["tries"] >= TRIES and "key" in entry
        }

    def _failures(self) -> list[dict[str, Any]]:
        try:
            lines = read_regular(self._inside(self._failures_path)).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise unreadable(self._failures_path, error) from error
        found = []
        for line in lines:
            # A line is cut if a process was killed while writing it, or the disk was full. Its unit
            # is then tried again.
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("tries"), int):
                    found.append(entry)
        return found

    def add_failure(self, image: PlannedImage, unit: WorkUnit, tries: int, error: Any) -> None:
        """Add a unit that failed to ``failures.jsonl``."""
        entry = {
            "time": datetime.now().astimezone().isoformat(timespec="seconds"),
            "image": image.name,
            "entry": image.entry,
            "unit": unit.name,
            "key": unit.key,
            "tries": tries,
            "error": error.what,
            "hint": error.hint,
        }
        path = self.make_for(self._inside(self._failures_path))
        try:
            # One write per line, so that lines of several processes do not mix.
            with path.open("a+b", buffering=0) as stream:
                is_whole = not stream.seek(0, os.SEEK_END) or _last_byte(stream) == b"\n"
                stream.write(b"%s%s\n" % (b"" if is_whole else b"\n", json.dumps(entry).encode()))
            copy_owner(path, path.parent)
        except OSError as refused:
            raise SaveError(f"{path} cannot be written: {refused.strerror}") from refused

    def forget_failures(self) -> None:
        """Let failed units be tried again.

        Raises
        ------
        SaveError
            If the list cannot be written.
        """
        if self._failures_path.exists():
            kept = [entry for entry in self._failures() if entry["tries"] < TRIES]
            lines = "".join(f"{json.dumps(entry)}\n" for entry in kept)
            write_atomically(self._inside(self._failures_path), lines.encode())

    def record(self) -> dict[str, Any]:
        """Return the content of ``run.json``; nothing if there is none, or it is damaged."""
        try:
            content = json.loads(read_regular(self.record_path))
        except (OSError, ValueError, RecursionError):
            return {}
        return content if isinstance(content, dict) else {}

    @property
    def is_done(self) -> bool:
        """Whether the run has finished without a failure."""
        return self.record().get("state") == "done"

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Add the messages logged within the block to ``run.log``, with the time."""
        self.make()
        handler = _Log(self.path / "run.log", mode="a", encoding="utf-8", delay=True)
        handler.setFormatter(
            OneLineFormatter(f"%(asctime)s {os.getpid()} %(levelname)s %(message)s")
        )
        _journal.propagate = False
        _journal.setLevel(logging.INFO)
        loggers = logging.getLogger("qpnuclei"), _journal
        for logger in loggers:
            logger.addHandler(handler)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeHandler(handler)
            handler.close()

    def log(self, text: str, *arguments: object) -> None:
        """Add a line to the log file only."""
        _journal.info(text, *arguments)


def _last_byte(stream: BinaryIO) -> bytes:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1)


class _Log(logging.FileHandler):
    """A log whose write errors are ignored: a full disk must not end a run for its log."""

    def emit(self, record: logging.LogRecord) -> None:
        # If the folder is gone or not made yet, do not make it.
        if Path(self.baseFilename).parent.is_dir():
            with contextlib.suppress(OSError):  # it cannot be opened
                super().emit(record)

    def _open(self) -> TextIOWrapper:
        stream = super()._open()
        path = Path(self.baseFilename)
        copy_owner(path, path.parent)
        return stream

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name there
        pass


def choose_folder(
    project: Project,
    options: RunOptions,
    resume: bool = False,
    extend: bool = False,
) -> RunFolder:
    """Return the folder for a run, and make the folders that the user named.

    The default folder in the project is made by the first file written to it, so that a run that
    ends before leaves no empty folder. When a new folder is chosen, the shards of finished runs are
    removed, while their records stay, and so are the folders of runs that were killed while they
    planned.

    Parameters
    ----------
    resume : bool
        Take the newest folder of an unfinished run with the same request (`request_of`).
    extend : bool
        With `resume`, also take the folder of a finished run.

    Raises
    ------
    SaveError
        If a folder cannot be made or written to.
    UsageError
        If the folder that the user names holds the run of another project.
    """
    for wanted in (options.run_dir, options.geojson_dir, options.parquet_dir):
        if wanted is not None:
            make_writable_folder(wanted)
    if options.run_dir is not None:
        folder = RunFolder(options.run_dir)
        of = folder.record().get("project")
        if resume and of is not None and not _is_path_of(str(of), project):
            raise UsageError(
                f"{options.run_dir} holds a run of another project, {of}", "name another --run-dir"
            )
        return folder
    runs = project.path.parent / OWN_FOLDER
    make_writable_folder(runs if runs.exists() else runs.parent)
    if resume:
        request = request_of(options)
        for path in sorted(runs.glob("*/plan.json"), reverse=True):
            folder = RunFolder(path.parent, project.path.parent)
            if folder.record().get("request") == request and (extend or not folder.is_done):
                return folder
    _drop_unstarted(runs)
    # The project is locked, so no other run takes the same name.
    name = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    free = next(runs / name for name in names if not (runs / name).exists())
    _drop_shards(runs)
    return RunFolder(free, project.path.parent)


def _is_path_of(path: str, project: Project) -> bool:
    """Return whether a path in a record, in any spelling, is that of a project."""
    try:
        return resolved(Path(path)) == resolved(project.path)
    except ValueError:  # the record is damaged: this is the path of no file
        return False


def _drop_unstarted(runs: Path) -> None:
    """Remove the folders of runs that were killed before they had a record.

    Such folders hold no results. The project is locked, so no other run is about to start.
    """
    for path in runs.glob("????-??-??T??-??-??*"):
        if path.is_symlink() or not path.is_dir():
            continue
        remove_leftovers(path)
        if {inside.name for inside in path.iterdir()} <= {"plan.json", "run.log"}:
            shutil.rmtree(path, ignore_errors=True)  # if it fails, it is only in the way


def _drop_shards(runs: Path) -> None:
    """Remove the shards of finished runs; their nuclei are in the project."""
    for path in runs.glob("*/shards"):
        if RunFolder(path.parent).is_done and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # if it fails, they only take space
