"""Backups of replaced data files, kept beside each image's data file."""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpnuclei.errors import SaveError, UsageError
from qpnuclei.qupath.transaction import copy_durably, temporary_beside
from qpnuclei.system.commands import as_typed
from qpnuclei.system.files import copy_owner

#: Folder of the backups, beside an image's data.qpdata. QuPath ignores it.
BACKUP_FOLDER = "qpnuclei-backups"
#: Backups kept per image.
BACKUP_COUNT = 5

_TIME_FORMAT = "%Y%m%dT%H%M%S.%fZ"
_NAME = re.compile(r"(\d{8}T\d{6}\.\d{6}Z)-data\.qpdata(\.bkp)?")


@dataclass(frozen=True)
class Backup:
    """A copy of an image's data file.

    Parameters
    ----------
    path : Path
    id : str
        Unique within the image, for example ``"20260102T030405.678900Z"``. It ends in ``".bkp"``
        for the file that QuPath makes for a save, and leaves behind if the save fails.
    replaced, saved : datetime
        When the file was replaced (strictly increasing), and when it was last saved before that.
    size : int
        In bytes.
    """

    path: Path
    id: str
    replaced: datetime.datetime
    saved: datetime.datetime
    size: int


def restore_hint(data_file: Path) -> str:
    """Return what to do if a data file is damaged: restore the newest backup, if there is one."""
    backups = list_backups(data_file)
    if not backups:
        return "restore the file from a backup"
    project, entry_id = data_file.parents[2], data_file.parent.name
    command = ["qpnuclei", "project", "restore", str(project), "--image", entry_id, "--latest"]
    when = f"{backups[0].replaced:%Y-%m-%d %H:%M} UTC"
    return f"restore the state that was replaced at {when}: {as_typed(command)}"


def list_backups(data_file: Path) -> list[Backup]:
    """Return the backups of a data file, newest first."""
    found = []
    for path in (data_file.parent / BACKUP_FOLDER).glob("*"):
        name = _NAME.fullmatch(path.name)
        if name is None:
            continue
        try:
            replaced = datetime.datetime.strptime(name[1], _TIME_FORMAT)
        except ValueError:  # not a time, so not our file
            continue
        status = path.stat()
        found.append(
            Backup(
                path,
                f"{name[1]}{name[2] or ''}",
                replaced.replace(tzinfo=datetime.UTC),
                datetime.datetime.fromtimestamp(status.st_mtime, datetime.UTC),
                status.st_size,
            )
        )
    # The .bkp of a failed save is older than the data file beside it.
    return sorted(found, key=lambda backup: (backup.replaced, -len(backup.id)), reverse=True)


def choose_backup(backups: Sequence[Backup], backup_id: str | None) -> Backup:
    """Return the backup with an ID, or the newest one.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there is no such backup.
    """
    if not backups:
        raise UsageError(
            "the image has no backups", "qpnuclei project backups lists the backups of all images"
        )
    if backup_id is None:
        return backups[0]
    for backup in backups:
        if backup.id == backup_id:
            return backup
    raise UsageError(
        f"the image has no backup {backup_id!r}",
        f"its backups: {', '.join(b.id for b in backups)}",
    )


@contextlib.contextmanager
def kept_backup(data_file: Path) -> Iterator[None]:
    """Back up a data file, and QuPath's ``.bkp`` beside it, before the body replaces it.

    If the body fails and the file is unchanged, the copies are removed.

    Parameters
    ----------
    data_file : Path
        An image's ``data.qpdata``; it may be absent.

    Raises
    ------
    qpnuclei.errors.SaveError
        If the disk is full, or the folder is not writable.
    """
    folder = data_file.parent / BACKUP_FOLDER
    name = _next_name(data_file)
    copies = []
    is_new = not folder.exists()
    before = _state(data_file)
    try:
        try:
            for path in (data_file.with_name(f"{data_file.name}.bkp"), data_file):
                if path.exists():
                    folder.mkdir(exist_ok=True)
                    copy_owner(folder, data_file.parent)
                    copies.append(folder / f"{name}-{path.name}")
                    _copy_whole(path, copies[-1])
        except OSError as error:
            raise SaveError(
                f"{folder}: the backup could not be written: {error.strerror}",
                "nothing was changed; free disk space or make the folder writable, and run again",
            ) from error
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # an extra copy is harmless
            if _state(data_file) == before:
                for copy in copies:
                    copy.unlink(missing_ok=True)
                if is_new:
                    folder.rmdir()
        raise


def _next_name(data_file: Path) -> str:
    """Return a name for a backup: the current time.

    If the clock was set back, this is a time just after the newest backup, so that names sort in
    the order in which the backups were made.
    """
    now = datetime.datetime.now(datetime.UTC)
    backups = list_backups(data_file)
    if backups and backups[0].replaced >= now:
        try:
            now = backups[0].replaced + datetime.timedelta(microseconds=1)
        except OverflowError as error:
            raise SaveError(
                f"{backups[0].path}: its name is the latest possible time",
                "nothing was changed; rename or remove that file, and run again",
            ) from error
    return now.strftime(_TIME_FORMAT)


def _state(path: Path) -> tuple[int, ...] | None:
    """Identify a file and its content; None if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _copy_whole(source: Path, target: Path) -> None:
    """Copy a file; `target` appears only once the copy is complete."""
    partial = temporary_beside(source)
    try:
        copy_durably(source, partial)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def drop_old_backups(data_file: Path) -> None:
    """Remove all but the newest backups of a data file, after a successful save.

    Raises
    ------
    OSError
        If one cannot be removed.
    """
    backups = [b for b in list_backups(data_file) if b.path.name.endswith(data_file.name)]
    for surplus in backups[BACKUP_COUNT:]:
        surplus.path.unlink()
