"""Attention and centre maps in whole steps: a third of the memory, and the same nuclei.

Attention is in 240ths, rounded up less one: code q stands for attention in (q/240, (q+1)/240].
A pixel is then above a threshold that is a whole number of steps (all multiples of 1/20 are) if
and only if its attention was. Centre maps are in 65535ths, rounded to the nearest.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

ATTENTION_STEPS = 240
CENTRE_STEPS = 65535

FloatMap = npt.NDArray[np.float32]
AttentionCodes = npt.NDArray[np.uint8]
CentreCodes = npt.NDArray[np.uint16]
AttentionMap = FloatMap | AttentionCodes
CentreMap = FloatMap | CentreCodes

#: (240,) float32: the attention that each code stands for, in the middle of its step.
ATTENTION_OF_CODE = ((np.arange(ATTENTION_STEPS) + 0.5) / ATTENTION_STEPS).astype(np.float32)


def attention_codes(attention: AttentionMap) -> AttentionCodes:
    """Return the uint8 codes, 0 to 239, of attention in 0..1; codes stay what they are."""
    if attention.dtype == np.uint8:
        return np.asarray(attention, np.uint8)
    steps: FloatMap = np.ceil(attention * np.float32(ATTENTION_STEPS))
    return np.asarray(np.maximum(steps - 1, 0), np.uint8)


def centre_codes(centre: CentreMap) -> CentreCodes:
    """Return the uint16 codes of a centre map in 0..1; codes stay what they are."""
    if centre.dtype == np.uint16:
        return np.asarray(centre, np.uint16)
    return np.asarray(np.rint(centre * np.float32(CENTRE_STEPS)), np.uint16)


def first_code_above(threshold: float) -> int:
    """Return the least code of attention above a threshold between 0 and 1.

    The threshold is rounded to a whole step, but neither to 0 nor to 1: attention of 0 is above
    none, attention of 1 above all.
    """
    return min(max(round(threshold * ATTENTION_STEPS), 1), ATTENTION_STEPS - 1)
