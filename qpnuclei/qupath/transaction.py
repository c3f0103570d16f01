"""Replace several files, all or none: a failure at any point leaves the old files.

Each new file is written under a temporary name beside its target and flushed to the disk. When all
are complete, they are renamed into place; if one rename fails, the others are undone.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from qpnuclei.errors import SaveError
from qpnuclei.system import files
from qpnuclei.system.files import (
    TEMPORARY_PREFIX,
    copy_owner,
    make_folder_below,
    open_regular,
    temporary_prefix,
)
from qpnuclei.system.interrupts import interrupt_postponed

#: An older temporary file was left by a save that was killed, on this or another computer.
LEFTOVER_AGE_S = 3600.0

#: A function that writes a file's content in pieces. Its argument is called with each piece.
Writer = Callable[[Callable[[bytes], object]], object]


class Transaction:
    """Files to replace together, or not at all.

    Use it as a context manager: `stage` every file, then `commit`. Without a commit, or if that
    fails, all targets are unchanged.

    Parameters
    ----------
    base : Path
        Folder of the targets, for example the project's. Folders below it are created, but not the
        folder itself: it may be on a drive that is gone.

    Raises
    ------
    qpnuclei.errors.SaveError
        From `stage` and `commit`, if a file cannot be written or replaced.
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._staged: list[tuple[Path, Path]] = []  # temporary file, target
        self._kept: dict[Path, Path | None] = {}  # target, copy of the old file

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, *_: object) -> None:
        leftovers = [temporary for temporary, _ in self._staged]
        leftovers += [copy for copy in self._kept.values() if copy is not None]
        for path in leftovers:
            with contextlib.suppress(OSError):  # a leftover file is harmless
                path.unlink(missing_ok=True)

    def stage(self, target: Path, write: Writer) -> tuple[Path, str]:
        """Write the new content of `target` to a temporary file beside it.

        Returns
        -------
        (Path, str)
            The temporary file, and the digest of its content.
        """
        digest = hashlib.blake2b(digest_size=16)
        try:
            make_folder_below(self._base, target.parent)
            temporary = temporary_beside(target)
            self._staged.append((temporary, target))
            with temporary.open("xb", buffering=1 << 20) as stream:

                def emit(data: bytes) -> None:
                    stream.write(data)
                    digest.update(data)

                write(emit)
                stream.flush()
                os.fsync(stream.fileno())
            copy_owner(temporary, target if target.exists() else target.parent)
            if target.exists():
                shutil.copymode(target, temporary)
        except SaveError:
            raise
        except OSError as error:
            raise _failed(target, error) from error
        return temporary, digest.hexdigest()

    def commit(self) -> None:
        """Rename all staged files into place, the first staged file last.

        A Ctrl-C waits until this is done.
        """
        with interrupt_postponed():
            self._commit()

    def _commit(self) -> None:
        target = Path()
        try:
            for _, target in self._staged:
                self._kept[target] = _copy_beside(target)
            for temporary, target in reversed(self._staged):
                temporary.replace(target)
            for folder in {target.parent for _, target in self._staged}:
                sync_folder(folder)
        except OSError as error:
            self._undo()
            raise _failed(target, error) from error
        except BaseException:  # an interrupt, not postponed
            self._undo()
            raise

    def _undo(self) -> None:
        for temporary, target in self._staged:
            if temporary.exists():  # not renamed
                continue
            copy = self._kept[target]
            if copy is None:
                target.unlink(missing_ok=True)
            else:
                copy.replace(target)


def copy_durably(source: Path, target: Path) -> None:
    """Copy a file and flush the copy to the disk."""
    shutil.copyfile(source, target)
    copy_owner(target, source)
    shutil.copystat(source, target)
    with target.open("rb+") as stream:
        os.fsync(stream.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, except on Windows, which cannot do that."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def temporary_beside(target: Path) -> Path:
    """Return a new temporary name beside a file, which `remove_leftovers` recognises."""
    return target.with_name(f"{temporary_prefix()}{uuid.uuid4().hex}.tmp")


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of saves that were killed, and those too old to be in use."""
    files.remove_leftovers(folder)
    for path in folder.glob(f"{TEMPORARY_PREFIX}*.tmp"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > LEFTOVER_AGE_S:
                path.unlink()


def digest_of(data: bytes) -> str:
    """Return the digest that `Transaction.stage` gives for these bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def digest_of_file(path: Path) -> str:
    """Return the digest of a file, read in pieces.

    Raises
    ------
    OSError
        If it cannot be read.
    """
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _copy_beside(target: Path) -> Path | None:
    """Keep the file at `target` under a temporary name, as a hard link where possible."""
    if not target.exists():
        return None
    copy = temporary_beside(target)
    try:
        os.link(target, copy)
    except (OSError, NotImplementedError):
        copy_durably(target, copy)
    return copy


def _failed(target: Path, error: OSError) -> SaveError:
    return SaveError(
        f"{target} could not be saved: {error.strerror or error}",
        "the previous file is unchanged; free disk space or make the folder writable, then rerun",
    )
