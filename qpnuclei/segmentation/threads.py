"""How networks share the processor's cores, without the result depending on their number.

The last bits of a sum that several threads share depend on the number of threads. So one thread
computes a tile, and several tiles at a time keep the cores busy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from qpnuclei.system.memory import available_memory

#: Memory of a network for one tile of the default size, at most. The paper's network, at full width
#: and resolution, needs the most.
_BYTES_OF_A_NETWORK = 2 << 30


def networks_at_once(workers: int) -> int:
    """Return how many tiles are predicted at the same time: as cores and memory allow."""
    memory = available_memory()
    affordable = workers if memory is None else memory // 2 // _BYTES_OF_A_NETWORK
    return max(1, min(workers, affordable))


@contextmanager
def one_thread_per_network() -> Iterator[None]:
    """Limit torch to one thread per call within the block; restore the setting after it.

    OpenCV's own threads are turned off, too: tiles are processed in parallel instead.
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
