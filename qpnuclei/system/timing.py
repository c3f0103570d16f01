"""Measure time and memory of the stages of a run."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the working and waiting time of each stage, over all threads.

    Attributes
    ----------
    seconds : dict of str to float
        Working time of each stage.
    waited : dict of str to float
        Time in which each stage waited for the one before it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.waited: dict[str, float] = {}
        self._lock = threading.Lock()

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of a ``with`` block to the working time of `stage`."""
        with self._counted(self.seconds, stage):
            yield

    @contextmanager
    def waiting(self, stage: str) -> Iterator[None]:
        """Add the time of a ``with`` block to the waiting time of `stage`."""
        with self._counted(self.waited, stage):
            yield

    @contextmanager
    def _counted(self, seconds: dict[str, float], stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            with self._lock:
                seconds[stage] = seconds.get(stage, 0.0) + elapsed


def peak_memory_mib() -> float | None:
    """Return the peak resident memory of this process in MiB; None if unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1024 * 1024 if sys.platform == "darwin" else 1024)
