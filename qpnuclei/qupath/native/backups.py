"""Copies of what runs replaced, kept beside each image's data file."""

from __future__ import annotations

import datetime
from pathlib import Path

from qpnuclei.errors import SaveError
from qpnuclei.qupath.native.files import copy_durably

#: Folder beside an image's data.qpdata with what runs replaced there, newest last. QuPath ignores
#: it; to restore one, copy it over data.qpdata.
BACKUP_FOLDER = "qpnuclei-backups"
#: Backups kept per image.
BACKUP_COUNT = 5


def keep_backup(data_file: Path) -> None:
    """Copy a data file that is about to be replaced, and a ``.bkp`` that QuPath left beside it.

    Parameters
    ----------
    data_file : Path
        An image's ``data.qpdata``; it may be absent.

    Raises
    ------
    qpnuclei.errors.SaveError
        If there is no room, or the folder is not writable.
    """
    folder = data_file.parent / BACKUP_FOLDER
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%fZ")
    try:
        for path in (data_file.with_name(f"{data_file.name}.bkp"), data_file):
            if path.exists():
                folder.mkdir(exist_ok=True)
                copy_durably(path, folder / f"{now}-{path.name}")
    except OSError as error:
        raise SaveError(
            f"{folder}: no backup could be kept: {error.strerror}",
            "nothing was changed; make room or the folder writable, and run again",
        ) from error


def drop_old_backups(data_file: Path) -> None:
    """Remove all but the newest backups of a data file, after a good save.

    Raises
    ------
    OSError
        If one cannot be removed.
    """
    backups = sorted((data_file.parent / BACKUP_FOLDER).glob(f"*-{data_file.name}"))
    for surplus in backups[:-BACKUP_COUNT]:
        surplus.unlink()
