"""Stages that work at the same time, with bounded queues between them."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_END = object()


def available_cores() -> int:
    """Return how many processor cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_threads(
    function: Callable[[T], R], items: Iterable[T], workers: int
) -> Generator[R, None, None]:
    """Yield ``function(item)`` for each item, in order, computed by threads.

    Use it for work that releases the interpreter lock most of the time. At most ``workers + 1``
    items are in progress or waiting for the consumer. An exception is raised at the position of its
    item; after that, or when the consumer stops early, no further item is started.

    Parameters
    ----------
    items : iterable
        Consumed in the caller's thread.
    workers : int
        Number of threads.
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


def prefetch(items: Iterable[T], size: int) -> Generator[T, None, None]:
    """Yield from `items`, which a separate thread computes up to `size` items ahead.

    Use it where the work of computing an item releases the interpreter lock (reading a slide,
    running a network). The order is kept. An exception in the thread is raised here, at its
    position; when the consumer stops early, the thread stops after the current item.

    Parameters
    ----------
    items : iterable
    size : int
        Largest number of waiting items; bounds the memory.
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
