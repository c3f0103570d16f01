"""Quantised attention and centre maps: a third of the memory, and the same nuclei.

Attention has 240 levels: level q stands for attention in (q/240, (q+1)/240]. So a threshold that is
a multiple of 1/240 (as all multiples of 1/20 are) gives the same mask as without quantisation.
Centre maps have 65536 levels: level q stands for q/65535, rounded to the nearest.

`NAN_LEVEL` marks attention where the network computed a NaN. Such a map must not be used
(`check_finite`).
"""

from __future__ import annotations

from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import ModelError
from qpnuclei.system.compiled import compiled

Level = TypeVar("Level", np.uint8, np.uint16)

ATTENTION_STEPS = 240
#: Level of attention where a map is NaN.
NAN_LEVEL = 255
CENTRE_STEPS = 65535

FloatMap = npt.NDArray[np.float32]
QuantisedAttention = npt.NDArray[np.uint8]
QuantisedCentre = npt.NDArray[np.uint16]
AttentionMap = FloatMap | QuantisedAttention
CentreMap = FloatMap | QuantisedCentre

_BITS_OF_ONE = int(np.float32(1).view(np.uint32))

#: (240,) float32: the attention that each level stands for, in the middle of its step.
ATTENTION_OF_LEVEL = ((np.arange(ATTENTION_STEPS) + 0.5) / ATTENTION_STEPS).astype(np.float32)


def quantise_attention(attention: AttentionMap) -> QuantisedAttention:
    """Return the uint8 levels, 0 to 239, of attention in 0..1. Levels are returned unchanged."""
    if attention.dtype == np.uint8:
        return np.asarray(attention, np.uint8)
    steps: FloatMap = np.ceil(attention * np.float32(ATTENTION_STEPS))
    levels = np.where(np.isnan(steps), np.float32(NAN_LEVEL), np.maximum(steps - 1, 0))
    return np.asarray(levels, np.uint8)


def check_finite(levels: QuantisedAttention) -> None:
    """Raise if attention was NaN. The check takes a fraction of a millisecond per tile.

    Raises
    ------
    qpnuclei.errors.ModelError
        If a level is `NAN_LEVEL`.
    """
    if levels.max(initial=0) == NAN_LEVEL:
        raise _not_finite()


def _not_finite() -> ModelError:
    return ModelError(
        "the network's output for these pixels is not finite (NaN)",
        "its weights or its training went wrong: use another model; on a GPU, try --device cpu",
    )


def quantise_centre(centre: CentreMap) -> QuantisedCentre:
    """Return the uint16 levels of a centre map in 0..1. Levels are returned unchanged.

    Raises
    ------
    qpnuclei.errors.ModelError
        If the map is not finite.
    """
    if centre.dtype == np.uint16:
        return np.asarray(centre, np.uint16)
    if np.isnan(centre.max(initial=0)):
        raise _not_finite()
    return np.asarray(np.rint(centre * np.float32(CENTRE_STEPS)), np.uint16)


def first_level_above(threshold: float) -> int:
    """Return the lowest level of attention above a threshold between 0 and 1.

    The threshold is rounded to a multiple of 1/240, but neither to 0 nor to 1. So attention of 0 is
    above no threshold, and attention of 1 is above all of them.
    """
    return min(max(round(threshold * ATTENTION_STEPS), 1), ATTENTION_STEPS - 1)


def quantise_cells(
    cells: FloatMap, shape: tuple[int, int, int], side: int
) -> tuple[QuantisedAttention, QuantisedCentre | None]:
    """Quantise maps whose pixels are grouped into square cells.

    Rearranging levels is faster than rearranging floats.

    Parameters
    ----------
    cells : (N, L) float32 ndarray
        Values in 0..1; a row holds the pixels of a cell, row by row: first attention, then the
        centre map if there is one. For a `side` of 1, a row holds a whole tile.
    shape : tuple of int
        (B, H, W) of the maps.
    side : int
        Side of a cell, in px.

    Returns
    -------
    attention : (B, H, W) uint8 ndarray
        `NAN_LEVEL` in all pixels of a cell that has a NaN.
    centre : (B, H, W) uint16 ndarray or None
    """
    length = side * side if side > 1 else shape[1] * shape[2]
    attention = np.empty((len(cells), length), np.uint8)
    centre = np.empty((len(cells), cells.shape[1] - length), np.uint16)
    _quantise_rows(cells, attention, centre)
    return (
        _arrange_cells(attention, shape, side),
        _arrange_cells(centre, shape, side) if centre.size else None,
    )


@compiled
def _quantise_rows(
    rows: npt.NDArray[np.float32],
    attention: npt.NDArray[np.uint8],
    centre: npt.NDArray[np.uint16],
) -> None:
    """Quantise (N, n + m) values: n of attention, then m of the centre map.

    The attention of a row with a NaN becomes `NAN_LEVEL`.
    """
    steps, one, zero = np.float32(ATTENTION_STEPS), np.float32(1), np.float32(0)
    centre_steps = np.float32(CENTRE_STEPS)
    bits = rows.view(np.uint32)  # as integers, NaNs are larger than all floats in 0..1
    length = attention.shape[1]
    for row in range(rows.shape[0]):
        highest = np.uint32(0)
        for column in range(length):
            level = np.ceil(rows[row, column] * steps) - one
            attention[row, column] = np.uint8(max(level, zero))
            highest = max(highest, bits[row, column])
        for column in range(centre.shape[1]):
            centre[row, column] = np.uint16(np.rint(rows[row, length + column] * centre_steps))
            highest = max(highest, bits[row, length + column])
        if highest > _BITS_OF_ONE:
            attention[row] = NAN_LEVEL


def _arrange_cells(
    levels: npt.NDArray[Level], shape: tuple[int, int, int], side: int
) -> npt.NDArray[Level]:
    """Rearrange cells of `side` x `side` px, one per row, to (B, H, W)."""
    if side == 1:
        return levels.reshape(shape)
    batch, height, width = shape
    # Move each row of a cell as one integer.
    row_type = np.dtype(f"u{side * levels.itemsize}")
    cells = levels.view(row_type).reshape(batch, height // side, width // side, side)
    return cast("npt.NDArray[Level]", cells.swapaxes(2, 3).copy().view(levels.dtype).reshape(shape))
