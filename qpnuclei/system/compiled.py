"""Loops over pixels or bytes that NumPy and OpenCV have no function for, compiled."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from qpnuclei.errors import UsageError

# Numba reads its settings from the working folder, among them the folder of its compiled code,
# which it then runs: whoever made the working folder would choose what runs.
if Path(".numba_config.yaml").exists():
    raise UsageError(
        f"the working folder {Path.cwd()} holds a .numba_config.yaml, which could make Numba run "
        "any code",
        "work in another folder, or remove the file",
    )
import numba  # not before the check

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., object])


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers with Numba, the first time it is called.

    The interpreter lock is released while it runs: threads call it side by side. Sums are taken in
    the order in which they are written (no "fast math"), so results are the same to the last bit
    wherever in an array a pixel lies. Division by zero is no error, as in NumPy. The machine code
    is kept for the next start of the program, beside the module or in the user's cache folder,
    whichever can be written.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        _say_that_nothing_is_kept()
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


@cache
def _say_that_nothing_is_kept() -> None:
    _log.warning(
        "compiled loops cannot be kept, as neither the installation nor a cache folder of the user "
        "can be written: each start of the program compiles them anew, which takes minutes; name a "
        "folder for them in the environment variable NUMBA_CACHE_DIR"
    )
