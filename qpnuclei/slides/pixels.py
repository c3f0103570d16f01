"""The one type of pixels."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

#: (..., 3) uint8 array: red, green and blue of brightfield light.
RGB: TypeAlias = npt.NDArray[np.uint8]
