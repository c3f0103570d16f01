"""Resample between pixel grids so that a pixel's value depends only on its own position.

Pixels must not depend on the tiling, so resampling must not start at the corner of a tile. Here,
the weights of an output pixel depend only on its index in the slide-wide grid. The arithmetic is
exact: weights are multiples of 2^-12, so float32 sums never round and their order does not matter.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

_WEIGHT_ONE = 4096  # 12 bits; pixel (8 bits), fraction (4) and weight (12) fill float32's 24 bits
_FRACTION_ONE = 16
#: So many output pixels are computed at a time: their float32 values stay in the processor's cache.
_BAND_PX = 2**17


@dataclass(frozen=True)
class AxisWeights:
    """Weights of source pixels for a run of output pixels along one axis.

    Parameters
    ----------
    first, stop : int
        The source pixels needed are ``first`` to ``stop - 1``; none if equal.
    row_ends : (count + 1,) int32 ndarray
        Offsets of the weights of each output pixel in `weights`.
    sources : (N,) int32 ndarray
        Source pixel of each weight, counted from `first`.
    weights : (N,) float32 ndarray
        Multiples of 1/4096. The weights of an output pixel sum to its share that lies within the
        source: to less than one if it extends beyond.
    """

    first: int
    stop: int
    row_ends: npt.NDArray[np.int32]
    sources: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.row_ends) - 1

    def part(self, start: int, stop: int) -> AxisWeights:
        """Return the weights of the output pixels ``start`` to ``stop - 1`` of these."""
        row_ends = self.row_ends[start : stop + 1]
        taken = slice(int(row_ends[0]), int(row_ends[-1]))
        sources = self.sources[taken]
        low, high = (int(sources.min()), int(sources.max()) + 1) if len(sources) else (0, 0)
        return AxisWeights(
            self.first + low,
            self.first + high,
            row_ends - row_ends[0],
            sources - np.int32(low),
            self.weights[taken],
        )

    @cached_property
    def matrix(self) -> Any:
        """The weights as a (count, stop - first) sparse array."""
        import scipy.sparse

        content = (self.weights, self.sources, self.row_ends)
        return scipy.sparse.csr_array(content, shape=(len(self), self.stop - self.first))

    @property
    def copied(self) -> slice | None:
        """The output pixels that are copies of the source pixels, in order.

        All other output pixels have no source. None if any output pixel mixes source pixels.
        """
        width = self.stop - self.first
        outputs = np.flatnonzero(np.diff(self.row_ends))
        is_copy = (
            len(outputs) == width == len(self.weights)
            and bool(np.all(self.weights == 1))
            and bool(np.all(self.sources == np.arange(width)))
            and (width == 0 or outputs[-1] - outputs[0] + 1 == width)
        )
        if not is_copy:
            return None
        start = int(outputs[0]) if width else 0
        return slice(start, start + width)


def axis_weights(
    start: int,
    count: int,
    scale: float,
    *,
    pixel_size: float,
    n_pixels: int,
    origin: float,
    extent: float,
) -> AxisWeights:
    """Return the weights for output pixels ``start`` to ``start + count - 1``, of size `scale`.

    Lengths are in level-0 px. Source pixel ``s`` covers ``[s, s + 1) * pixel_size - origin``. The
    visible image is ``[0, extent)``. The last source pixel is extended to the end of the image,
    because levels are often cropped to whole pixels. If output pixels are at least as large as
    source pixels, weights are shares of area; otherwise they interpolate linearly between centres.

    Parameters
    ----------
    start, count : int
        First and number of output pixels; output pixel ``i`` covers ``[i, i + 1) * scale``.
    scale : float
        Size of an output pixel.
    pixel_size, n_pixels : float, int
        Size and number of source pixels.
    origin : float
        Start of the visible image in the source.
    extent : float
        Length of the visible image.
    """
    index = np.arange(start, start + count)
    if scale >= pixel_size:
        sources, weights = _area(index, scale, pixel_size, n_pixels, origin, extent)
    else:
        sources, weights = _linear(index, scale, pixel_size, n_pixels, origin, extent)
    used = weights > 0
    if not used.any():
        none = np.empty(0, np.int32)
        return AxisWeights(0, 0, np.zeros(count + 1, np.int32), none, none.astype(np.float32))
    first, stop = int(sources[used].min()), int(sources[used].max()) + 1
    row_ends = np.concatenate([[0], np.cumsum(used.sum(axis=1))])
    return AxisWeights(
        first,
        stop,
        row_ends.astype(np.int32),
        (sources[used] - first).astype(np.int32),
        (weights[used] / _WEIGHT_ONE).astype(np.float32),
    )


_Taps = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def _area(
    index: npt.NDArray[Any], scale: float, size: float, n: int, origin: float, extent: float
) -> _Taps:
    low = np.clip(index * scale, 0, extent) + origin
    high = np.clip((index + 1) * scale, 0, extent) + origin
    first = np.clip(np.floor(low / size).astype(np.int64), 0, n - 1)
    last = np.clip(np.ceil(high / size).astype(np.int64) - 1, first, n - 1)
    sources = first[:, None] + np.arange(int((last - first).max(initial=0)) + 1)
    ends = np.where(sources >= n - 1, origin + extent, (sources + 1) * size)
    covered = np.clip(ends, low[:, None], high[:, None]) - low[:, None]
    # Rounding the running sum, not the weights, keeps rows summing to exactly one.
    steps = np.rint(covered * (_WEIGHT_ONE / scale)).astype(np.int64)
    return np.minimum(sources, n - 1), np.diff(steps, axis=1, prepend=0)


def _linear(
    index: npt.NDArray[Any], scale: float, size: float, n: int, origin: float, extent: float
) -> _Taps:
    centre = (index + 0.5) * scale
    position = (centre + origin) / size - 0.5
    left = np.floor(position).astype(np.int64)
    right_weight = np.rint((position - left) * _WEIGHT_ONE).astype(np.int64)
    weights = np.stack([_WEIGHT_ONE - right_weight, right_weight], axis=1)
    weights[(centre < 0) | (centre >= extent)] = 0
    lowest = int(np.floor(origin / size))
    highest = min(n, int(np.ceil((origin + extent) / size))) - 1
    return np.clip(np.stack([left, left + 1], axis=1), lowest, highest), weights


def resample(
    source: npt.NDArray[np.uint8], rows: AxisWeights, columns: AxisWeights
) -> npt.NDArray[np.uint8]:
    """Apply row and column weights to source pixels; white beyond the image.

    Parameters
    ----------
    source : (rows.stop - rows.first, columns.stop - columns.first, 3) uint8 ndarray
    rows, columns : AxisWeights

    Returns
    -------
    (height, width, 3) uint8 ndarray
    """
    resampled = np.full((len(rows), len(columns), 3), 255, np.uint8)
    if rows.copied is not None and columns.copied is not None:
        resampled[rows.copied, columns.copied] = source
        return resampled
    step = max(1, _BAND_PX // max(len(columns), columns.stop - columns.first))
    for start in range(0, len(rows), step):
        band = rows.part(start, start + step)
        if band.first < band.stop:
            read = source[band.first - rows.first : band.stop - rows.first]
            resampled[start : start + step] = _resampled(read, band, columns)
    return resampled


def _resampled(
    source: npt.NDArray[np.uint8], rows: AxisWeights, columns: AxisWeights
) -> npt.NDArray[np.uint8]:
    import cv2

    # Weigh darkness rather than brightness, so that missing weight becomes white.
    darkness = np.subtract(255, source, dtype=np.float32)
    tall = _weigh_rows(darkness, rows)
    np.rint(np.multiply(tall, _FRACTION_ONE, out=tall), out=tall)
    wide = _weigh_rows(np.asarray(cv2.transpose(tall), np.float32), columns)
    np.multiply(wide, -1 / _FRACTION_ONE, out=wide)
    np.rint(np.add(wide, 255, out=wide), out=wide)
    return np.asarray(cv2.transpose(wide.astype(np.uint8)))


def _weigh_rows(values: npt.NDArray[np.float32], weights: AxisWeights) -> npt.NDArray[np.float32]:
    height, width, channels = values.shape
    weighed = weights.matrix @ values.reshape(height, width * channels)
    return np.asarray(weighed, np.float32).reshape(-1, width, channels)
