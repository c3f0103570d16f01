"""Attention and centre maps in whole steps: a third of the memory, and the same nuclei.

Attention is in 240ths, rounded up less one: code q stands for attention in (q/240, (q+1)/240].
A pixel is then above a threshold that is a whole number of steps (all multiples of 1/20 are) if
and only if its attention was. Centre maps are in 65535ths, rounded to the nearest.

A code beyond these, `NOT_A_NUMBER`, stands for what is no number: then the network went wrong, and
nothing may be made of its map (`check_codes`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import ModelError

ATTENTION_STEPS = 240
#: Code of attention where the maps hold a NaN.
NOT_A_NUMBER = 255
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
    codes = np.where(np.isnan(steps), np.float32(NOT_A_NUMBER), np.maximum(steps - 1, 0))
    return np.asarray(codes, np.uint8)


def check_codes(codes: AttentionCodes) -> None:
    """Raise if attention is NaN. Takes a fraction of a millisecond per tile.

    Raises
    ------
    qpnuclei.errors.ModelError
        If there is `NOT_A_NUMBER` among them.
    """
    if codes.max(initial=0) == NOT_A_NUMBER:
        raise _not_finite()


def _not_finite() -> ModelError:
    return ModelError(
        "what the network computed of these pixels is not finite (NaN)",
        "its weights or its training went wrong: use another model; on a GPU, try --device cpu",
    )


def centre_codes(centre: CentreMap) -> CentreCodes:
    """Return the uint16 codes of a centre map in 0..1; codes stay what they are.

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


def first_code_above(threshold: float) -> int:
    """Return the least code of attention above a threshold between 0 and 1.

    The threshold is rounded to a whole step, but neither to 0 nor to 1: attention of 0 is above
    none, attention of 1 above all.
    """
    return min(max(round(threshold * ATTENTION_STEPS), 1), ATTENTION_STEPS - 1)
