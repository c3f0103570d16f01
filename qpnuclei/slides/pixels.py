"""The type of RGB pixels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

#: (..., 3) uint8 array: red, green and blue.
RGB: TypeAlias = npt.NDArray[np.uint8]
