"""Memory: how much this process may use, and what it keeps for what it allocates next."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Options of glibc's malloc, each with what a run sets and glibc's default. An arena limit of 0 is
#: none but the number of cores.
_SETTINGS = (
    (_M_MMAP_THRESHOLD, 2**30, 128 * 1024),
    (_M_TRIM_THRESHOLD, 2**31 - 1, 128 * 1024),
    (_M_ARENA_MAX, 1, 0),
)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Let this process keep the memory it frees, for what it allocates next, where glibc is used.

    Otherwise every large array comes from the system anew and is filled with zeros page by page:
    5 to 17 % of a network's processor time were measured. Memory is then in one arena for all
    threads: only there can large blocks be kept.

    It is a setting of the whole process. After the block, glibc's defaults are set again; glibc
    does not tell what was set before, and no longer adapts its thresholds by itself.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    for option, value, _ in _SETTINGS:
        libc.mallopt(option, value)
    try:
        yield
    finally:
        for option, _, default in _SETTINGS:
            libc.mallopt(option, default)
        libc.malloc_trim(0)


def return_freed_memory() -> None:
    """Give what `keep_freed_memory` has kept back to the system.

    Small objects settle between the large blocks, so that these fit less and less well and the
    memory kept grows with every tile. Call it now and then: it costs a fraction of a second.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


def available_memory() -> int | None:
    """Return the bytes of memory that this process may use: the machine's or its cgroup's.

    A job's limit (Slurm, Kubernetes, Docker) may be set on any cgroup above the process; Java looks
    at the innermost only. None where the operating system does not tell.
    """
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder, file in _cgroups():
        for level in (folder, *folder.parents):
            try:
                limits.append(int((level / file).read_text()))
            except (OSError, ValueError):  # not there, or "max"
                continue
    return min(limits)


def _cgroups() -> Sequence[tuple[Path, str]]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append((root / path.lstrip("/"), "memory.max"))
        elif "memory" in controllers.split(","):
            found.append((root / "memory" / path.lstrip("/"), "memory.limit_in_bytes"))
    return found
