"""Writing files so that a reader sees either the old content or the new, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from qpnuclei.errors import SaveError


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for binary writing that takes the place of `path` when the block ends well.

    Folders that are missing are made. If the block raises, `path` is as it was.

    Raises
    ------
    SaveError
        If it cannot be written, naming the file.
    """
    partial = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        partial = Path(name)
        with os.fdopen(handle, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        partial.chmod(0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        partial.replace(path)
        partial = None
    except OSError as error:
        if isinstance(error, SaveError):
            raise
        raise SaveError(
            f"{path} cannot be written: {error.strerror or error}",
            "choose another folder, or free space and check permissions",
        ) from error
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Write `content` to `path` so that a reader sees the old file or the new one.

    Raises
    ------
    SaveError
        If it cannot be written.
    """
    with atomic_file(path) as stream:
        stream.write(content)


def make_writable_folder(folder: Path) -> None:
    """Make a folder, if it is missing, and check that files can be written to it.

    Raises
    ------
    SaveError
        If it cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SaveError(
            f"cannot write to the folder {folder}: {error.strerror or error}",
            "choose another folder, or change its permissions",
        ) from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
