"""Training on several GPUs: each process of torchrun trains on its share of each batch.

Without torchrun there is one process of rank 0, and these functions do nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import Tensor
from torch import distributed as dist

#: Time that the other processes wait while rank 0 validates and draws pictures.
_TIMEOUT = timedelta(hours=1)


def world_size() -> int:
    """Return the number of processes of the training."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process, from 0; only rank 0 writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


@contextmanager
def process_group(device: torch.device) -> Iterator[torch.device]:
    """Join the processes that torchrun started, if any; yield the device of this process.

    Parameters
    ----------
    device : torch.device
        A device type. With CUDA, each process of a machine gets the GPU of its local rank.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield device
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield device
        # A process that exits while another one is still working may abort.
        dist.barrier()
    finally:
        dist.destroy_process_group()


@contextmanager
def rank_0_first() -> Iterator[None]:
    """Run the block on rank 0 first, so that the others find its results in a cache."""
    if rank() > 0:
        dist.barrier()
    yield
    if rank() == 0 and world_size() > 1:
        dist.barrier()


def mean_over_ranks(values: Tensor) -> Tensor:
    """Return the mean of a tensor over all processes; no gradient flows through it."""
    if world_size() == 1:
        return values.detach()
    mean = values.detach().clone()
    dist.all_reduce(mean)
    return mean / world_size()


def average_over_ranks(tensors: Iterable[Tensor]) -> None:
    """Replace tensors of one data type by their means over all processes, in one message."""
    tensors = list(tensors)
    if world_size() == 1 or not tensors:
        return
    flat = mean_over_ranks(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    with torch.no_grad():
        for tensor, part in zip(tensors, parts, strict=True):
            tensor.copy_(part.view(tensor.shape))


def any_rank(flag: bool, device: torch.device) -> bool:
    """Return in all processes whether `flag` is true in any of them."""
    if world_size() == 1:
        return flag
    return bool(mean_over_ranks(torch.tensor(float(flag), device=device)) > 0)
