"""Identify the process that made something, and tell whether it still runs."""

from __future__ import annotations

import os
import platform
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

_PROC = Path("/proc")
#: The PID namespace of a Linux system outside all containers.
_OUTSIDE_OF_CONTAINERS = "pid:[4026531836]"
_TAG = re.compile(r"([0-9a-f]{8})-(\d{1,10})-([0-9a-f]{8})")


@dataclass(frozen=True)
class Process:
    """A process of this or another computer.

    Parameters
    ----------
    host : str
        Name of the computer.
    machine : str
        Eight hexadecimal digits that tell computers (and containers) with the same name apart.
    pid : int
        Process ID on that computer.
    begun : str
        Eight hexadecimal digits that tell it from a later process with the same ID.
    """

    host: str
    machine: str
    pid: int
    begun: str

    @classmethod
    def this(cls) -> Process:
        """Return the current process."""
        return cls(platform.node(), _machine(), os.getpid(), _begun(os.getpid()) or "0" * 8)

    @property
    def tag(self) -> str:
        """Identifies the process in the names of its files."""
        return f"{self.machine}-{self.pid}-{self.begun}"

    @property
    def is_here(self) -> bool:
        """Whether it is, or was, a process of this computer (and container)."""
        return self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether it has certainly ended. False for other computers, where this is unknown."""
        return self.is_here and _begun(self.pid) != self.begun


def made_by_ended_process(name: str) -> bool:
    """Tell whether a file name has the tag of an ended process of this computer."""
    found = _TAG.search(name)
    return found is not None and Process("", found[1], int(found[2]), found[3]).is_gone


def _machine() -> str:
    parts = [platform.node()]
    if _PROC.is_dir():
        namespace = _link(_PROC / "self/ns/pid")
        machine_id = _text(Path("/etc/machine-id"))
        # Containers share the machine ID of their image, and two computers may have one name.
        inside = namespace != _OUTSIDE_OF_CONTAINERS
        if inside or not machine_id:
            parts += [namespace, _text(_PROC / "sys/kernel/random/boot_id")]
        else:
            parts.append(machine_id)
    return _digest("/".join(parts))


def _begun(pid: int) -> str | None:
    """Identify the process that now has a process ID; None if there is none."""
    if _PROC.is_dir():
        # Ticks since the start of the system: setting the clock does not change them.
        state, *fields = _text(_PROC / str(pid) / "stat").rpartition(")")[2].split() or [""]
        if state in ("", "Z", "X"):  # no process, or one that has ended
            return None
        return _digest(f"{_text(_PROC / 'sys/kernel/random/boot_id')}/{fields[18]}")
    import psutil  # not needed on Linux

    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return _digest(repr(process.create_time()))
    except psutil.NoSuchProcess:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _link(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return ""


def _digest(text: str) -> str:
    return blake2b(text.encode(errors="surrogateescape"), digest_size=4).hexdigest()
