"""How networks share the processor's cores, without the result depending on their number.

The last bits of a sum that several threads share depend on the number of threads. So one thread
computes a tile, and several tiles at a time keep the cores busy.
"""

from __future__ import annotations

import sys
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

    # A network that is not torch's has not loaded it, which would take seconds.
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    of_cv2 = cv2.getNumThreads()
    if torch is not None:
        torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
        cv2.setNumThreads(of_cv2)
