"""Write files atomically: a reader sees either the old or the new content."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO

from qpnuclei.errors import FormatError, NotFoundError, QpnucleiError, SaveError
from qpnuclei.system.interrupts import interrupt_postponed
from qpnuclei.system.processes import Process, made_by_ended_process

#: Names of temporary files and folders start with this, followed by the tag of their process.
TEMPORARY_PREFIX = ".qpnuclei-"

#: A function that writes content to a path, as `write_atomically` does.
Save = Callable[[Path, bytes], object]

#: Files that file managers leave in the folders that they show.
_OF_FILE_MANAGERS = (".DS_Store", "Thumbs.db", "desktop.ini", ".directory")


def open_regular(path: Path) -> BufferedReader:
    """Open a regular file for binary reading.

    A FIFO would wait for a writer, and a device may have no end.

    Raises
    ------
    OSError
        If the file does not exist, cannot be read, or is not a regular file.
    """
    # Non-blocking, because opening a FIFO would hang.
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


def name_of(path: Path) -> str:
    """Return the name of a file or folder, also if it is given as ``.``, ``..`` or in one of them.

    Examples
    --------
    >>> name_of(Path("slides/cohort")), name_of(Path("slides/..")) == Path.cwd().name
    ('cohort', True)
    """
    return Path(os.path.abspath(path)).name  # noqa: PTH100 - resolve() would follow links


def state_of(path: Path) -> tuple[int, int, int]:
    """Return what tells a file from a later one, without its content."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def _place_of(path: Path) -> Path:
    """Return the file that writing to a path replaces: of a link, the file that it leads to.

    Raises
    ------
    SaveError
        If it is a device or pipe, for example ``/dev/stdout``.
    """
    place = resolved(path) if path.is_symlink() else path
    if place.exists() and not (place.is_file() or place.is_dir()):
        raise SaveError(f"{path} is not a regular file", "choose another name")
    return place


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a file for binary writing that replaces `path` if the block succeeds.

    Missing folders are created. If the block raises, `path` is unchanged. A link stays a link.

    Raises
    ------
    SaveError
        If the file cannot be written; names the file.
    """
    partial = None
    try:
        with saving(path):
            path = _place_of(path)
            make_folders(path.parent)
            remove_leftovers(path.parent)
            handle, name = tempfile.mkstemp(
                dir=path.parent, prefix=temporary_prefix(), suffix=".part"
            )
            partial = Path(name)
            with os.fdopen(handle, "wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            copy_owner(partial, path if path.exists() else path.parent)
            partial.chmod(0o666 & ~_umask())  # mkstemp creates files that only the owner can read
            partial.replace(path)
            partial = None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a path for a file or folder that replaces `path` if the block succeeds.

    This is for libraries that need a path. Missing folders are created. If the block raises,
    `path` is unchanged.

    Raises
    ------
    SaveError
        If the file or folder cannot be written; names it.
    """
    with saving(path):
        path = _place_of(path)
        make_folders(path.parent)
        remove_leftovers(path.parent)
        with tempfile.TemporaryDirectory(
            dir=path.parent, prefix=temporary_prefix(), ignore_cleanup_errors=True
        ) as folder:
            partial = Path(folder, path.name)
            yield partial
            copy_owner(partial, path if path.exists() else path.parent)
            with interrupt_postponed():
                _put_in_place(partial, path, Path(folder, "replaced"))


@contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn an `OSError` in the block into an error that names the file to be written.

    Raises
    ------
    SaveError
        For an `OSError`; other errors of qpnuclei remain what they are.
    """
    try:
        yield
    except QpnucleiError:  # some are OSErrors
        raise
    except OSError as error:
        raise _unwritable(path, error) from error


def _put_in_place(partial: Path, path: Path, replaced: Path) -> None:
    """Rename `partial` to `path`, after an old folder at `path` to `replaced`."""
    if not path.is_dir():
        partial.replace(path)
        return
    try:
        path.rename(replaced)  # no system call replaces a folder that is not empty
        partial.replace(path)
    except BaseException:
        if os.path.lexists(replaced):
            replaced.rename(path)
        raise


def write_atomically(path: Path, content: bytes | memoryview) -> None:
    """Write `content` to `path` atomically.

    Raises
    ------
    SaveError
        If the file cannot be written.
    """
    with atomic_file(path) as stream:
        stream.write(content)


def nameless_file(parent: Path) -> tuple[BinaryIO, Path]:
    """Create an unbuffered temporary file without a name, and return it with its folder.

    The system frees it when it is closed, even if the process is killed.

    Parameters
    ----------
    parent : Path
        Folder of the file. If it does not exist, the `nearest_existing` one.

    Raises
    ------
    OSError
        If the file cannot be created.
    """
    folder = nearest_existing(parent)
    return tempfile.TemporaryFile(dir=folder, buffering=0), folder


def nearest_existing(path: Path) -> Path:
    """Return a path if it exists, otherwise its nearest parent that does.

    Raises
    ------
    OSError
        If this cannot be found out: a name is too long, or a folder may not be entered.
    """
    return next(place for place in (path, *path.absolute().parents) if place.exists())


def is_same_file(a: Path, b: Path) -> bool:
    """Tell whether two paths lead to one file or folder that exists, in any spelling."""
    try:
        return a.samefile(b)
    except OSError:
        return False


def make_folders(folder: Path) -> None:
    """Create a folder and its missing parents, each with the owner of the one that it is in.

    Raises
    ------
    OSError
        If one cannot be created.
    """
    for made in reversed([folder, *folder.parents]):
        if not made.is_dir():
            made.mkdir(exist_ok=True)
            copy_owner(made, made.parent)


def make_folder_below(base: Path, folder: Path) -> None:
    """Create a folder and its missing parents, but require that `base` exists.

    Otherwise an empty folder would be created at the mount point of an unplugged drive.

    Parameters
    ----------
    base : Path
    folder : Path
        If it is not below `base`, it must exist itself.

    Raises
    ------
    SaveError
        If `base` is missing, or the folder cannot be created.
    """
    base, folder = base.absolute(), folder.absolute()
    existing = base if folder.is_relative_to(base) else folder
    if not existing.is_dir():
        raise SaveError(f"{existing} is no longer there", "is its drive still connected?")
    try:
        make_folders(folder)
    except OSError as error:
        raise SaveError(
            f"the folder {folder} cannot be created: {error.strerror or error}",
            "choose another folder, or change its permissions",
        ) from error


def temporary_prefix() -> str:
    """Return the prefix of the names of this process's temporary files and folders."""
    return f"{TEMPORARY_PREFIX}{Process.this().tag}-"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes of this computer left in a folder.

    Files of running processes, and of other computers, are recognised by their names and kept. A
    file that cannot be removed is kept, too.
    """
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        if made_by_ended_process(path.name):
            with suppress(OSError):  # leftovers are harmless
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def content_of(folder: Path) -> list[Path]:
    """Return what a user has in a folder; a folder that is empty in this sense can be filled.

    Files that file managers leave do not count, nor temporary files and folders of processes. Those
    of killed processes of this computer are removed; whether one of another computer was killed
    cannot be known.
    """
    remove_leftovers(folder)
    return [path for path in folder.iterdir() if not _is_of_a_program(path.name)]


def _is_of_a_program(name: str) -> bool:
    """Tell whether this is the name of a file of a file manager, or of a temporary one."""
    # A Mac writes "._name" beside a file on drives of other systems.
    return name in _OF_FILE_MANAGERS or name.startswith(("._", TEMPORARY_PREFIX))


def copy_owner(path: Path, like: Path) -> None:
    """Give a new file the owner and group of another one, if the user may do so (as root may)."""
    if hasattr(os, "chown"):
        with suppress(OSError):
            wanted, has = like.stat(), path.stat()
            if (wanted.st_uid, wanted.st_gid) != (has.st_uid, has.st_gid):
                os.chown(path, wanted.st_uid, wanted.st_gid)


def folders_of_last_resort() -> list[Path]:
    """Return a folder for results that cannot be written to their intended place."""
    folders = [Path(tempfile.gettempdir())]
    with suppress(OSError):  # the working folder itself may be gone
        folders.insert(0, Path.cwd())
    return folders


def make_writable_folder(folder: Path) -> None:
    """Create a folder if it is missing, and check that it is writable.

    Raises
    ------
    SaveError
        If the folder cannot be created or written to.
    """
    try:
        make_folders(folder)
        _try_to_write(folder)
    except OSError as error:
        raise SaveError(
            f"cannot write to the folder {folder}: {_reason(folder, error)}",
            "choose another folder, or change its permissions",
        ) from error


def check_file_target(path: Path) -> None:
    """Check, before long work, that a file can be written at the end; nothing is changed.

    Raises
    ------
    SaveError
        If it is a folder, cannot be made, or its name is too long.
    """
    with saving(path):
        place = _place_of(path)
        if place.is_dir():
            raise SaveError(f"{path} cannot be written: it is a folder", "choose another name")
        _try_to_write(place.parent)


def check_folder_target(folder: Path) -> None:
    """Check, before long work, that files can be written into a folder; nothing is changed.

    Raises
    ------
    SaveError
        If the folder is not writable, or is missing and cannot be made.
    """
    with saving(folder):
        _try_to_write(folder)


def _try_to_write(folder: Path) -> None:
    nameless_file(folder)[0].close()


def resolved(path: Path) -> Path:
    """Return the path that all spellings of a file share: absolute, without links.

    The file need not exist. Unlike `Path.resolve`, a loop of links is no error here.
    """
    return Path(os.path.realpath(path))


def one_spelling_each(
    paths: Iterable[Path], shared: Callable[[Path], Path] = resolved
) -> list[Path]:
    """Return paths without further spellings of the same file; the first one of each stays.

    Parameters
    ----------
    paths : iterable of Path
    shared : callable
        Returns the path that all spellings of a file share.
    """
    first: dict[Path, Path] = {}
    for path in paths:
        first.setdefault(shared(path), path)
    return list(first.values())


def check_folder(folder: Path, what: str) -> None:
    """Check that a folder to read from exists.

    Parameters
    ----------
    what : str
        Description of the expected folder, for the hint.

    Raises
    ------
    NotFoundError
        If the folder is missing, or not a folder.
    """
    if not folder.is_dir():
        problem = "not a folder" if folder.exists() else "no such folder"
        raise NotFoundError(f"{folder}: {problem}", f"name the folder {what}")


def unreadable(
    path: Path | str, error: Exception, kind: type[QpnucleiError] = FormatError, hint: str = ""
) -> QpnucleiError:
    """Return the error, to be raised, about a file that cannot be read."""
    reason = getattr(error, "strerror", None) or error
    return kind(f"{path} cannot be read: {reason}", hint)


def _unwritable(path: Path, error: OSError) -> SaveError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return SaveError(
            f"{path} cannot be written: {error.strerror}{_free_space(path.parent)}",
            "free space there (old files of runs and backups, in the folders qpnuclei and "
            "qpnuclei-backups, may be removed), or choose another folder",
        )
    return SaveError(
        f"{path} cannot be written: {_reason(path.parent, error)}",
        "choose another folder, or free space and check permissions",
    )


def _reason(folder: Path, error: OSError) -> str:
    """Return why nothing can be written into a folder."""
    with suppress(OSError):
        existing = nearest_existing(folder)
        if not existing.is_dir():
            return f"{existing} is not a folder"
    return error.strerror or str(error)


def _free_space(folder: Path) -> str:
    try:
        folder = nearest_existing(folder)
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f" ({free / 1e6:.0f} MB are free on the disk of {folder})"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
