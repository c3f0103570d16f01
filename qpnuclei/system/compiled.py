"""Compile loops over pixels or bytes that NumPy and OpenCV have no function for."""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, TypeVar, cast

from qpnuclei.errors import UsageError

_log = logging.getLogger(__name__)

F = TypeVar("F", bound=Callable[..., object])

#: Time that all loops of a run take to compile, on an idle core of a computer of 2020.
_COMPILING_S = 30


def _refuse_foreign_settings() -> None:
    """Raise if Numba would read settings from the working folder.

    One of these settings is the cache folder of compiled code, which Numba executes. So a working
    folder by someone else could make it execute foreign code.
    """
    if Path(".numba_config.yaml").exists():
        raise UsageError(
            f"the working folder {Path.cwd()} holds a .numba_config.yaml, which could make Numba "
            "run any code",
            "work in another folder, or remove the file",
        )


_refuse_foreign_settings()


def compiled(function: F) -> F:
    """Compile a function of arrays and numbers with Numba at its first call.

    The function releases the interpreter lock, so that threads run it in parallel. Sums keep their
    written order (no "fast math"), so results are bit-identical wherever in an array a pixel lies.
    Division by zero is not an error, as in NumPy. The machine code is cached for the next start of
    the program, beside the module or else in the user's cache folder.

    Functions that call each other belong in one module: the cached machine code of a caller
    contains the code of its callees, but is compiled again only when the caller's own file changes.

    Numba itself is also imported at the first call: most commands do not need it.
    """
    return cast(F, _Compiled(function))


def loops_are_loaded() -> bool:
    """Tell whether this process has loaded Numba, so that one more loop costs almost nothing."""
    return _numba.cache_info().currsize > 0


class _Compiled:
    """A function that Numba compiles when it is called."""

    _making = threading.RLock()

    def __init__(self, function: Callable[..., object]) -> None:
        functools.update_wrapper(self, function)
        self._function = cast(FunctionType, function)
        self._dispatcher: Any = None

    def __call__(self, *arguments: Any) -> Any:
        dispatcher = self._dispatcher or self.dispatcher()
        result = dispatcher(*arguments)
        if dispatcher.stats.cache_misses and dispatcher.stats.cache_path:
            _announce_compiling()
        return result

    def dispatcher(self) -> Any:
        """Return the function compiled by Numba, with the compiled functions that it calls."""
        with self._making:
            if self._dispatcher is None:
                names = self._function.__globals__
                for name in self._function.__code__.co_names:
                    if isinstance(called := names.get(name), _Compiled):
                        names[name] = called.dispatcher()
                self._dispatcher = _jit(self._function)
            return self._dispatcher


def _jit(function: FunctionType) -> Any:
    numba = _numba()
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy")(function)
    except RuntimeError:
        _warn_no_cache()
        return numba.njit(nogil=True, error_model="numpy")(function)


@cache
def _numba() -> ModuleType:
    _refuse_foreign_settings()
    import numba

    return numba


@cache
def _announce_compiling() -> None:
    _log.info("compiling loops, once after the installation: about %d s", _COMPILING_S)


@cache
def _warn_no_cache() -> None:
    _log.warning(
        "compiled loops cannot be kept, as neither the installation nor a cache folder of the user "
        "can be written: each start of the program compiles them anew, which takes minutes; name a "
        "folder for them in the environment variable NUMBA_CACHE_DIR"
    )
