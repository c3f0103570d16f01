"""The folder of a run: its plan, what is finished, what failed, and its log.

What is in it is data that may come from elsewhere: no name in it leads out of the folder.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
from collections.abc import Iterator
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from qpnuclei.errors import FormatError, SaveError, UsageError
from qpnuclei.pipeline.options import RunOptions
from qpnuclei.pipeline.planning.layout import WorkUnit
from qpnuclei.pipeline.planning.plan_file import PlannedImage, RunPlan
from qpnuclei.qupath.model import Project
from qpnuclei.system.files import (
    make_folder_below,
    make_writable_folder,
    read_regular,
    write_atomically,
)
from qpnuclei.system.interrupts import interrupt_postponed

#: A unit that has failed so often is not tried again, unless the user asks for it.
TRIES = 3

_log = logging.getLogger(__name__)
#: Messages for the log that the terminal does not show.
_journal = logging.getLogger(f"{__name__}.journal")


class RunFolder:
    """The files of one run.

    Parameters
    ----------
    path : Path
        It need not exist yet.
    base : Path
        Folder that must exist for it to be made: that of the project. Where a drive is gone,
        nothing is made at its place.
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
        return self.path / "run.json"

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
        text = json.dumps(plan.model_dump(mode="json"), indent=1, ensure_ascii=False)
        write_atomically(self.plan_path, text.encode(errors="surrogateescape"))

    def shard(self, image: PlannedImage, name: str) -> Path:
        """Return the file of a unit of an image, or of all its nuclei.

        Raises
        ------
        FormatError
            If it would lie outside of the folder.
        """
        return self._inside(self.path / "shards" / image.folder / f"{name}.parquet")

    def result_path(self, image: PlannedImage) -> Path:
        """Return the file that says what was written into the project for an image."""
        return self._inside(self.path / "results" / f"{image.folder}.json")

    def _inside(self, path: Path) -> Path:
        if not path.resolve().is_relative_to(self.path.resolve()):
            raise FormatError(f"{path} lies outside of the run's folder", "plan the run again")
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
        """Return by key the units that failed as often as they are tried.

        Raises
        ------
        FormatError
            If the list of failures is damaged.
        """
        return {
            str(entry["key"]): entry
            for entry in self._failures()
            if entry.get("tries", 0) >= TRIES and "key" in entry
        }

    def _failures(self) -> list[dict[str, Any]]:
        try:
            lines = read_regular(self._inside(self._failures_path)).splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise FormatError(f"{self._failures_path} cannot be read: {error.strerror}") from error
        found = []
        for number, line in enumerate(lines, start=1):
            try:
                entry = json.loads(line)
            except (ValueError, RecursionError) as error:
                if number == len(lines):  # a process was killed while it wrote it
                    break
                raise FormatError(
                    f"{self._failures_path}, line {number}: {error}", "delete that file"
                ) from error
            if isinstance(entry, dict):
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
            # One write of one line: several processes may do so.
            with path.open("ab", buffering=0) as stream:
                stream.write(b"%s\n" % json.dumps(entry).encode())
        except OSError as refused:
            raise SaveError(f"{path} cannot be written: {refused.strerror}") from refused

    def forget_failures(self) -> None:
        """Have the units that failed tried again.

        Raises
        ------
        SaveError
            If the list cannot be written.
        """
        if self._failures_path.exists():
            kept = [entry for entry in self._failures() if entry.get("tries", 0) < TRIES]
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
        """Whether the run has come to its end, without a failure."""
        return self.record().get("state") == "done"

    @contextlib.contextmanager
    def logging(self) -> Iterator[None]:
        """Add what the program says within the block to ``run.log``, with the time."""
        self.make()
        handler = _Log(self.path / "run.log", mode="a", encoding="utf-8", delay=True)
        handler.setFormatter(
            logging.Formatter(f"%(asctime)s {os.getpid()} %(levelname)s %(message)s")
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

    def note(self, text: str, *arguments: object) -> None:
        """Add a line to the log alone."""
        _journal.info(text, *arguments)


class _Log(logging.FileHandler):
    """A log that is written where it can be: a full disk ends no run."""

    def emit(self, record: logging.LogRecord) -> None:
        # Where the folder is gone, or not made yet, none is made.
        if Path(self.baseFilename).parent.is_dir():
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name there
        pass


def choose_folder(
    project: Project,
    options: RunOptions,
    request: str = "",
    resume: bool = False,
    extend: bool = False,
) -> RunFolder:
    """Return the folder for a run, and make those that the user named.

    The default one in the project is made by what is first written to it: a run that is ended
    before, by whatever, leaves no empty folder. A new one takes the place of those of runs that are
    done: of these only the records stay.

    Parameters
    ----------
    request : str
        What the run is asked for, as `qpnuclei.pipeline.planning.keys.request_of` says it.
    resume : bool
        Take the newest folder of the project that a run of this request did not finish.
    extend : bool
        Then take also one that it did finish.

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
        if resume and of is not None and Path(str(of)) != project.path:
            raise UsageError(
                f"{options.run_dir} is the folder of a run of {of}", "name another --run-dir"
            )
        return folder
    runs = project.path.parent / "qpnuclei"
    make_writable_folder(runs if runs.exists() else runs.parent)
    if resume:
        for path in sorted(runs.glob("*/plan.json"), reverse=True):
            folder = RunFolder(path.parent, project.path.parent)
            if folder.record().get("request") == request and (extend or not folder.is_done):
                return folder
    # The project is locked: no other run takes the same.
    name = datetime.now().strftime("%Y-%m-%dT%H-%M-%S")
    names = (name if number == 1 else f"{name}-{number}" for number in count(1))
    free = next(runs / name for name in names if not (runs / name).exists())
    _drop_shards(runs)
    return RunFolder(free, project.path.parent)


def _drop_shards(runs: Path) -> None:
    """Remove the shards of runs that are done; what they hold is in the project."""
    for path in runs.glob("*/shards"):
        if RunFolder(path.parent).is_done and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)  # they do no harm
