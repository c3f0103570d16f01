"""Memory limit of this process, and reuse of freed memory."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# From <malloc.h> of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
#: Options of glibc's malloc, each with the value of a run and glibc's default. An arena limit of 0
#: means the default, which depends on the number of cores.
_SETTINGS = (
    (_M_MMAP_THRESHOLD, 2**30, 128 * 1024),
    (_M_TRIM_THRESHOLD, 2**31 - 1, 128 * 1024),
    (_M_ARENA_MAX, 1, 0),
)


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Make this process keep freed memory for later allocations, if it uses glibc.

    Otherwise every large array gets new memory from the system, zeroed page by page, which takes 5
    to 17 % of a network's processor time (measured). All threads share one arena, because only the
    main arena can keep large blocks.

    This is a process-wide setting. After the block, glibc's defaults are set again: glibc does not
    report earlier values, and no longer adapts its thresholds by itself.
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
    """Give the memory kept by `keep_freed_memory` back to the system.

    Small objects fragment the kept memory, so that it grows with every tile. Call this from time to
    time: it costs a fraction of a second.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def no_collection() -> Iterator[None]:
    """Turn the search for cyclic garbage off during a block.

    Imports make many objects and no garbage, and so does reading thousands of annotations. Without
    the search, importing torch takes 0.85 of the time, and reading annotations 0.8 of it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def available_memory() -> int | None:
    """Return the bytes of memory that this process may use, from its machine or cgroup.

    The limit of a job (Slurm, Kubernetes, Docker) may be set on any cgroup above the process; Java
    looks only at the innermost one. None if the operating system does not report it.
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
