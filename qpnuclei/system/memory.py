"""Memory that the process keeps for what it allocates next."""

from __future__ import annotations

import ctypes
import platform

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let this process keep the memory it frees, for what it allocates next, where glibc is used.

    Otherwise every large array comes from the system anew and is filled with zeros page by page,
    which takes nearly half of a network's processor time. Memory is then in one arena for all
    threads: only there can large blocks be kept.
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_THRESHOLD, 2**30)
    libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    libc.mallopt(_M_ARENA_MAX, 1)


def return_freed_memory() -> None:
    """Give what `keep_freed_memory` has kept back to the system.

    Small objects settle between the large blocks, so that these fit less and less well and the
    memory kept grows with every tile. Call it now and then: it costs a fraction of a second.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
