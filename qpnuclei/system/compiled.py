"""Compile loops over pixels or bytes for which NumPy and OpenCV have no function."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TypeVar, cast

from qpnuclei.errors import UsageError

# Numba reads settings from the working folder, including the cache folder of compiled code that it
# runs. So a working folder from someone else could make it run foreign code.
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
    """Compile a function of arrays and numbers with Numba at its first call.

    The function releases the interpreter lock, so that threads run it in parallel. Sums keep their
    written order (no "fast math"), so results are bit-identical wherever in an array a pixel lies.
    Division by zero is not an error, as in NumPy. The machine code is cached for the next start of
    the program, beside the module or else in the user's cache folder.
    """
    try:
        return cast(F, numba.njit(cache=True, nogil=True, error_model="numpy")(function))
    except RuntimeError:
        _warn_no_cache()
        return cast(F, numba.njit(nogil=True, error_model="numpy")(function))


@cache
def _warn_no_cache() -> None:
    _log.warning(
        "compiled loops cannot be kept, as neither the installation nor a cache folder of the user "
        "can be written: each start of the program compiles them anew, which takes minutes; name a "
        "folder for them in the environment variable NUMBA_CACHE_DIR"
    )
