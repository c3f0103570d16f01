"""Quantised attention and centre maps: a third of the memory, and the same nuclei.

Attention has 240 levels: level q stands for attention in (q/240, (q+1)/240]. So thresholding gives
the same mask as without quantisation, if the threshold is a multiple of 1/240 (as all multiples of
1/20 are). Centre maps have 65536 levels: level q stands for q/65535, rounded to the nearest.

`NAN_LEVEL` marks attention where the network computed a NaN. Nothing may be made of such a map
(`check_finite`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import ModelError

ATTENTION_STEPS = 240
#: Level of attention where a map is NaN.
NAN_LEVEL = 255
CENTRE_STEPS = 65535

FloatMap = npt.NDArray[np.float32]
QuantisedAttention = npt.NDArray[np.uint8]
QuantisedCentre = npt.NDArray[np.uint16]
AttentionMap = FloatMap | QuantisedAttention
CentreMap = FloatMap | QuantisedCentre

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
    """Raise if attention was NaN. Takes a fraction of a millisecond per tile.

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

    The threshold is rounded to a multiple of 1/240, but neither to 0 nor to 1: attention of 0 is
    above no threshold, attention of 1 above all.
    """
    return min(max(round(threshold * ATTENTION_STEPS), 1), ATTENTION_STEPS - 1)
