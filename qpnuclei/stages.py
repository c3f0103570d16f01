"""Stages that work at the same time, with bounded queues between them."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def available_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def networks_at_once(workers: int) -> int:
    """Return how many tiles a network looks at side by side, each with its share of the threads.

    Threads that share a tile wait for each other at every layer; but every tile takes memory, so
    that it is not more than two.
    """
    return min(workers, 2)


def share_cores(workers: int) -> None:
    """Let networks use `workers` threads in all, and `in_parallel` as many.

    OpenCV's own threads are turned off: tiles are what is done in parallel.
    """
    import cv2
    import torch

    torch.set_num_threads(workers // networks_at_once(workers))
    cv2.setNumThreads(0)


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


def in_parallel(
    function: Callable[[T], R], items: Iterable[T], workers: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for each item, in their order, computed by threads.

    Use it for work that releases the interpreter lock most of the time. At most one item more
    than there are workers is in work or waits to be taken. An exception is raised in its item's
    place; then, or when the consumer stops early, nothing more is begun.

    Parameters
    ----------
    items : iterable
        Consumed in the caller's thread.
    workers : int
        How many threads.
    """
    pending: deque[Future[R]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def ahead(items: Iterable[T], size: int) -> Generator[T, None, None]:
    """Yield from `items`, which a thread of its own computes up to `size` items ahead.

    Use it where the work of computing an item releases the interpreter lock (reading a slide,
    running a network). The order is kept. An exception in the thread is raised here, in its
    place; when the consumer stops early the thread stops after the item at hand.

    Parameters
    ----------
    items : iterable
    size : int
        How many finished items may wait; bounds the memory.
    """
    queue: Queue[object] = Queue(size)
    stopped = threading.Event()
    failure: list[BaseException] = []

    def offer(item: object) -> bool:
        while not stopped.is_set():
            try:
                queue.put(item, timeout=0.1)
            except Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not offer(item):
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised again by the consumer
            failure.append(error)
        offer(_END)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            try:
                # A timeout lets Ctrl-C through on every platform.
                item = queue.get(timeout=0.1)
            except Empty:
                continue
            if item is _END:
                break
            yield item  # type: ignore[misc]
        if failure:
            raise failure[0]
    finally:
        stopped.set()
        thread.join()
