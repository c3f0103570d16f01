"""Lock a folder for one process at a time, also on drives that several computers share.

The lock is a file in the folder that says who holds it. It is created in one step, by a hard link
or by exclusive creation. Unlike locks of the system (``flock``), it also works on network drives.
The lock of a killed process is recognised by its process ID and start time, and removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from qpnuclei.errors import LockedError, SaveError
from qpnuclei.system.files import TEMPORARY_PREFIX, resolved
from qpnuclei.system.interrupts import before_leaving
from qpnuclei.system.processes import Process

#: Name of the file in the folder.
LOCK_NAME = ".qpnuclei.lock"

_log = logging.getLogger(__name__)
_POLL_S = 0.3
_NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))
_NO_RIGHT = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True)
class Holder:
    """The holder of a lock: a process, the start of the lock (UTC), and a mark unique to it."""

    process: Process
    since: str
    mark: str

    def __str__(self) -> str:
        if not self.process.pid:
            return "an unknown process (the lock is damaged)"
        return f"process {self.process.pid} on {self.process.host}, since {self.since} UTC"


@dataclass
class _Held:
    """How this process holds a folder: a lock between its threads, and the nesting depth."""

    thread: threading.RLock
    depth: int = 0


_HELD: dict[Path, _Held] = {}


@contextlib.contextmanager
def locked(folder: Path, *, wait: bool = True, break_lock: bool = False) -> Iterator[None]:
    """Hold a folder within the block; no other process or thread can hold it.

    Within the block, the same thread may hold it again. If the user may not write into the folder,
    there is a warning instead of a lock. QuPath ignores this lock.

    Parameters
    ----------
    folder : Path
    wait : bool
        Wait while another process holds the folder, and log who holds it; otherwise raise.
    break_lock : bool
        Remove the lock of a process on another computer. This computer cannot know whether that
        process still runs.

    Raises
    ------
    LockedError
        If another process holds the folder and `wait` is false; or if `break_lock` is true but the
        process runs on this computer.
    SaveError
        If the folder is gone, or the lock cannot be written.
    """
    folder = resolved(folder)
    held = _HELD.setdefault(folder, _Held(threading.RLock()))
    if not held.thread.acquire(blocking=wait):
        raise LockedError(f"another thread works on {folder}", "wait until it is done")
    try:
        lock = folder / LOCK_NAME
        mine = None if held.depth else _acquire(lock, wait, break_lock)
        held.depth += 1
        try:
            with before_leaving(lambda _signal: _release(lock, mine)):
                yield
        finally:
            held.depth -= 1
            _release(lock, mine)
    finally:
        held.thread.release()


def holder_of(folder: Path) -> Holder | None:
    """Return the holder of a folder, running or not; None if there is none.

    Raises
    ------
    OSError
        If the lock cannot be read.
    """
    try:
        text = (folder / LOCK_NAME).read_bytes()
    except FileNotFoundError:
        if not os.path.lexists(folder / LOCK_NAME):
            return None
        text = b""  # a link to nothing
    try:
        content = json.loads(text)
        process = {name: kind(content[name]) for name, kind in _FIELDS.items()}
        return Holder(Process(**process), str(content["since"]), str(content["mark"]))
    except (ValueError, KeyError, TypeError):
        # Truncated by a full disk: its holder is unknown.
        return Holder(Process("an unknown computer", "", 0, ""), "an unknown time", repr(text[:99]))


_FIELDS = {"host": str, "machine": str, "pid": int, "begun": str}


def _acquire(lock: Path, wait: bool, break_lock: bool) -> Holder | None:
    """Create the lock and return its content; None if the user may not write there."""
    now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    mine = Holder(Process.this(), now, uuid.uuid4().hex)
    logged = None
    while True:
        try:
            if _make(lock, mine):
                return mine
            other = holder_of(lock.parent)
        except OSError as error:
            if error.errno in _NO_RIGHT:
                _log.warning(
                    "%s cannot be locked (%s): no other process should work on it",
                    lock.parent,
                    error.strerror,
                )
                return None
            if not lock.parent.is_dir():
                raise SaveError(
                    f"{lock.parent} is no longer there", "is its drive still connected?"
                ) from error
            raise SaveError(
                f"{lock.parent} could not be saved to: its lock {lock.name}: {error.strerror}",
                "nothing was changed; make room, and run again"
                if error.errno in _NO_ROOM
                else f"nothing was changed; remove {lock}, and run again",
            ) from error
        if other is None:  # released just now
            continue
        if other.process.is_gone:
            _log.warning("%s: removing the lock of %s, which has ended", lock.parent, other)
            _break(lock, other)
            continue
        if break_lock and other.process.is_here:
            raise LockedError(
                f"{lock.parent} is in use by {other}, which still runs",
                "end that process; its lock goes with it",
            )
        if break_lock:
            _log.warning("%s: removing the lock of %s (--break-lock)", lock.parent, other)
            _break(lock, other)
            break_lock = False
            continue
        hint = "if that process no longer runs there, add --break-lock"
        if not wait:
            hint = "wait until it is done" if other.process.is_here else hint
            raise LockedError(f"{lock.parent} is in use by {other}", hint)
        if other != logged:
            elsewhere = "" if other.process.is_here else f"; {hint}"
            _log.warning("%s is in use by %s: waiting%s", lock.parent, other, elsewhere)
            logged = other
        time.sleep(_POLL_S)


def _make(lock: Path, mine: Holder) -> bool:
    """Create the lock with its content in one step; return whether there was none."""
    content = json.dumps({**asdict(mine.process), "since": mine.since, "mark": mine.mark}).encode()
    # If this process is killed here, a later one recognises the leftover by its name.
    whole = lock.with_name(f"{TEMPORARY_PREFIX}{mine.process.tag}-{mine.mark}.tmp")
    try:
        whole.write_bytes(content)
        try:
            os.link(whole, lock)
        except FileExistsError:
            # A network drive may have made the link, but lost its answer.
            return whole.stat().st_nlink == 2
        except (OSError, NotImplementedError):  # a drive without links
            return _make_exclusively(lock, content)
        return True
    finally:
        with contextlib.suppress(OSError):
            whole.unlink(missing_ok=True)


def _make_exclusively(lock: Path, content: bytes) -> bool:
    try:
        stream = lock.open("xb")
    except FileExistsError:
        return False
    try:
        with stream:
            stream.write(content)
    except BaseException:
        lock.unlink(missing_ok=True)
        raise
    return True


def _release(lock: Path, mine: Holder | None) -> None:
    """Remove the lock if this process still holds it: another process may have broken it."""
    if mine is None:
        return
    with contextlib.suppress(OSError):  # its drive may be gone
        if holder_of(lock.parent) == mine:
            lock.unlink()


def _break(lock: Path, other: Holder) -> None:
    """Remove the lock of another process if that process still holds it."""
    try:
        with _alone_here(lock.parent):
            if holder_of(lock.parent) == other:
                lock.unlink(missing_ok=True)
    except OSError as error:
        raise SaveError(
            f"{lock} cannot be removed: {error.strerror}", "remove that file, and run again"
        ) from error


@contextlib.contextmanager
def _alone_here(folder: Path) -> Iterator[None]:
    """Keep out other processes of this computer, if the system can (Windows cannot).

    Two processes that find the lock of an ended one must not both remove it: the second would
    remove the lock that the first has created since. Locks of other computers are only removed on
    request.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # some network drives do not support it
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
