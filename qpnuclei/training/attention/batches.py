"""Batches of random crops, uniform over the magnifications (section 4.2).

A batch depends only on the seed and its number: the number of processes that read or learn, and
interruptions of the run, do not change what the networks see.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qpnuclei.training.attention.augment import jitter_stains, random_crop, random_flip_and_rotation
from qpnuclei.training.attention.losses import TRANSFORMS
from qpnuclei.training.tile_reader import TileReader


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """The batches of a run, by number.

    Parameters
    ----------
    reader : TileReader
    n_scales : int
    batch_size, crop_px : int
    hed_jitter : float
        Standard deviation of the factors on the stain concentrations.
    seed : int
    rank, world_size : int
        The share of every batch that is returned: number `rank` of `world_size` shares. Shares have
        equally many crops of a scale, or one more.
    """

    def __init__(
        self,
        reader: TileReader,
        *,
        n_scales: int,
        batch_size: int,
        crop_px: int,
        hed_jitter: float,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._reader = reader
        self._tiles = reader.index.per_scale(n_scales)
        self._batch_size = batch_size
        self._crop_px = crop_px
        self._hed_jitter = hed_jitter
        self._seed = seed
        self._share = slice(rank, None, world_size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        """Return this share of a batch: (B, 3, crop, crop) uint8 crops and (B,) int64 scales."""
        rng = batch_rng(self._seed, number)
        tiles, scales = draw_tiles(self._tiles, self._batch_size, rng)
        # Each crop has its own random numbers, so those of other shares need not be drawn.
        drawn = list(zip(tiles, rng.spawn(len(tiles)), strict=True))[self._share]
        crops = np.stack([self._crop(int(tile), own) for tile, own in drawn])
        pixels = torch.from_numpy(crops).permute(0, 3, 1, 2).contiguous()
        return pixels, torch.from_numpy(scales[self._share].copy())

    def load(self, numbers: Sequence[int], workers: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of these numbers, read by this many worker processes (0: none)."""
        loader = DataLoader(
            self,
            batch_size=None,
            sampler=numbers,
            num_workers=workers,
            # Not forked: torch's threads, CUDA and a JVM do not survive a fork.
            multiprocessing_context="spawn" if workers else None,
            # Ctrl-C reaches every process of a terminal; only the main process should react.
            worker_init_fn=_ignore_interrupt if workers else None,
            pin_memory=torch.cuda.is_available(),
        )
        yield from loader

    def _crop(self, tile: int, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
        crop = random_crop(self._reader.read(tile), self._crop_px, rng)
        crop = random_flip_and_rotation(crop, rng)
        return jitter_stains(crop, self._hed_jitter, rng) if self._hed_jitter else crop


def _ignore_interrupt(_worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batch_rng(
    seed: int, number: int, purpose: Literal["tiles", "transform"] = "tiles"
) -> np.random.Generator:
    """Return the random numbers of one batch, independent of every other batch and purpose."""
    return np.random.default_rng([seed, number, ("tiles", "transform").index(purpose)])


def draw_transform(seed: int, number: int) -> Callable[[Tensor], Tensor]:
    """Draw t of the equivariance loss for one batch."""
    # The tiles of this batch were drawn from (seed, number): this stream is another one.
    rng = batch_rng(seed, number, "transform")
    return TRANSFORMS[str(rng.choice(list(TRANSFORMS)))]


def draw_tiles(
    tiles: Sequence[npt.NDArray[np.integer]], batch_size: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw tiles, equally many of each scale.

    Parameters
    ----------
    tiles : sequence of (N_s,) integer ndarray
        Numbers of the tiles of each scale.
    batch_size : int
        If it is not a multiple of the number of scales, those that get one more are random.
    rng : numpy.random.Generator

    Returns
    -------
    tiles, scales : (batch_size,) int64 ndarray
    """
    n_scales = len(tiles)
    counts = np.full(n_scales, batch_size // n_scales)
    counts[rng.permutation(n_scales)[: batch_size % n_scales]] += 1
    drawn = [rng.choice(t, count) for t, count in zip(tiles, counts, strict=True)]
    return np.concatenate(drawn).astype(np.int64), np.repeat(np.arange(n_scales), counts)
