"""Stages that work ahead of each other, with bounded queues between them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from queue import Empty, Full, Queue
from typing import TypeVar

T = TypeVar("T")

_END = object()


def ahead(items: Iterable[T], size: int) -> Iterator[T]:
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
