"""How a network and the loops around it share the processor's cores."""

from __future__ import annotations


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
