"""Writing files so that a reader sees either the old content or the new, never a part."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from qpnuclei.errors import SaveError


def open_regular(path: Path) -> BufferedReader:
    """Open a file for binary reading, if it is one.

    A FIFO would wait for someone who writes into it, and a device may have no end.

    Raises
    ------
    OSError
        If there is no such file, or it cannot be read, or is something else than a file.
    """
    # Without waiting: opening a FIFO is what hangs.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    stream = os.fdopen(os.open(path, flags), "rb")
    if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
        stream.close()
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return stream


def read_regular(path: Path) -> bytes:
    """Return the content of a file; see `open_regular`."""
    with open_regular(path) as stream:
        return stream.read()


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


def make_folder_below(base: Path, folder: Path) -> None:
    """Make a folder and those above it, but `base` and what is above that must be there.

    A drive that was unplugged must not come back as an empty folder in its place.

    Parameters
    ----------
    base : Path
    folder : Path
        If it is not below `base`, it must be there itself.

    Raises
    ------
    SaveError
        If what must be there is not, or the folder cannot be made.
    """
    base, folder = base.absolute(), folder.absolute()
    there = base if folder.is_relative_to(base) else folder
    if not there.is_dir():
        raise SaveError(f"{there} is no longer there", "is its drive still connected?")
    try:
        for made in reversed([folder, *folder.parents]):
            if made.is_relative_to(there) and made != there:
                made.mkdir(exist_ok=True)
    except OSError as error:
        raise SaveError(
            f"the folder {folder} cannot be made: {error.strerror or error}",
            "choose another folder, or change its permissions",
        ) from error


def folders_of_last_resort() -> list[Path]:
    """Return where to keep what must not be lost when it cannot be written to its place."""
    folders = [Path(tempfile.gettempdir())]
    with suppress(OSError):  # the working folder itself may be gone
        folders.insert(0, Path.cwd())
    return folders


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
