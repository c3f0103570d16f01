"""The data.qpdata that QuPath saves: identify its state, check it, and undo a failed save."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from qpnuclei.errors import FormatError, QpnucleiError, SaveError
from qpnuclei.qupath.backups import restore_hint
from qpnuclei.qupath.model import ABSENT
from qpnuclei.qupath.transaction import digest_of_file
from qpnuclei.system.files import TEMPORARY_PREFIX, unreadable

#: The end of the file in a Java object stream: a string and its length.
_END_MARK = b"t\0\3EOF"

#: The copy that QuPath makes for a save, and leaves behind if the save fails.
_BACKUP = "data.qpdata.bkp"


@contextmanager
def kept_on_failure(data_file: Path) -> Iterator[None]:
    """Restore the data file and its summary if the body fails."""
    files = [data_file, data_file.with_name("summary.json"), data_file.with_name(_BACKUP)]
    copies = {f: f.with_name(f"{TEMPORARY_PREFIX}{f.name}.tmp") for f in files if f.exists()}
    try:
        for file, copy in copies.items():
            shutil.copy2(file, copy)
        try:
            yield
        except BaseException:
            for file in files:
                if file in copies:
                    copies[file].replace(file)
                else:
                    file.unlink(missing_ok=True)
            raise
    except QpnucleiError:
        raise
    except OSError as error:
        raise SaveError(f"{data_file} cannot be saved: {error}") from error
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)


def check_complete(file: Path) -> None:
    """Raise for a truncated file: QuPath would read its first part without an error."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(_END_MARK), 0))
        if stream.read() != _END_MARK:
            raise FormatError(f"{file}: byte {size}: ends before its end mark", backup_hint(file))


def backup_hint(file: Path) -> str:
    """Return a hint for the user on a damaged or missing data file."""
    if file.with_name(_BACKUP).exists():
        return f"QuPath left {_BACKUP} beside it: copy that to {file.name}"
    return f"QuPath left no {_BACKUP}; {restore_hint(file)}"


def fingerprint_of(file: Path) -> str:
    """Return the fingerprint of a data file (see `ImageObjects`)."""
    try:
        return digest_of_file(file)
    except FileNotFoundError:
        if file.with_name(_BACKUP).exists():
            raise FormatError(
                f"{file}: is missing, though the image was saved before", backup_hint(file)
            ) from None
        return ABSENT
    except OSError as error:
        raise unreadable(file, error) from error
