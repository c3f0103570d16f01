"""How networks share the processor's cores, so that the result does not depend on their number.

A sum that several threads share depends in its last bits on how many they are. So one thread
computes a tile, whatever the number of workers, and several tiles side by side use the cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qpnuclei.system.memory import available_memory

#: What a network may take for one tile of the default size: the paper's, of full width and
#: resolution, takes the most.
_BYTES_OF_A_NETWORK = 2 << 30


def networks_at_once(workers: int) -> int:
    """Return how many tiles networks look at side by side: as many as cores and memory allow."""
    memory = available_memory()
    affordable = workers if memory is None else memory // 2 // _BYTES_OF_A_NETWORK
    return max(1, min(workers, affordable))


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Let every call of a network within the block use one thread; restore the setting after it.

    OpenCV's own threads are turned off likewise: tiles are what is done in parallel.
    """
    import cv2
    import torch

    before = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
