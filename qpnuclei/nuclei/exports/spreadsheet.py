"""Text of tables that spreadsheet programs open correctly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

#: Byte order mark. Without it, Excel does not read UTF-8, and shows µ wrongly.
BOM = "\ufeff".encode()

#: Significant digits of numbers.
DIGITS = 6

#: First characters that make a spreadsheet program read text as a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def no_formula(cell: Any) -> Any:
    """Return a cell that no spreadsheet program reads as a formula.

    Text that looks like a formula gets a leading apostrophe; numbers are unchanged.
    """
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell


def rounded(values: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Round numbers to `DIGITS` significant digits, but never the digits of the integer part.

    Examples
    --------
    >>> rounded([1234567.891, 0.000123456789, float("nan")]).tolist()
    [1234568.0, 0.000123457, nan]
    """
    numbers = np.asarray(values, np.float64)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        exponent = np.floor(np.log10(np.abs(numbers)))
        scale = 10.0 ** np.clip(DIGITS - 1 - exponent, 0, 300)
        near = np.round(numbers * scale) / scale
    return np.where(np.isfinite(near), near, numbers)
