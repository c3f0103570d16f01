"""How networks share the cores of the processor. Results do not depend on the number of cores.

The last bits of a sum depend on the number of threads that compute it. So one thread computes a
tile, and several tiles at a time keep the cores busy.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from qpnuclei.system.memory import available_memory

#: Largest memory of a network for one tile of the default size. The network of the paper, at full
#: width and resolution, needs the most.
_BYTES_OF_A_NETWORK = 2 << 30


def networks_at_once(workers: int) -> int:
    """Return how many tiles to predict at the same time, given cores and memory."""
    memory = available_memory()
    affordable = workers if memory is None else memory // 2 // _BYTES_OF_A_NETWORK
    return max(1, min(workers, affordable))


@contextmanager
def one_thread_per_network() -> Iterator[None]:
    """Limit torch to one thread per call within the block; restore the setting after it.

    OpenCV threads are turned off, too: tiles are processed in parallel instead.
    """
    import cv2

    # Torch is only limited if it is loaded: loading it takes seconds.
    torch = sys.modules.get("torch")
    threads = None if torch is None else torch.get_num_threads()
    cv2_threads = cv2.getNumThreads()
    if torch is not None:
        torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        if torch is not None:
            torch.set_num_threads(threads)
        cv2.setNumThreads(cv2_threads)
