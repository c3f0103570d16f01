"""Handle Ctrl-C at any moment: one line, exit code 130, no partial results.

A `KeyboardInterrupt` can come between any two steps of the program: while a thread is started,
during another clean-up, inside an import. Long commands with several threads therefore exit at once
without unwinding (`leaving_on_interrupt`), except from blocks that must be completed
(`interrupt_postponed`), or at a point where they can save (`asking_to_stop`). Other commands unwind
(`ending_on_interrupt`). In both cases the interpreter is not shut down while threads compute, which
would crash, and does not wait for them: a network may need a minute for its current batch.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

#: Exit code that shells use after SIGINT.
EXIT_CODE = 130

_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"


@contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for the first Ctrl-C within the block, and end the process.

    A second Ctrl-C, or one after the block, is ignored, so that clean-ups are completed.
    """
    heard = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    except BaseException:  # libraries turn it into their own errors
        if heard:
            _leave("interrupted")
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def leaving_on_interrupt(message: str) -> Iterator[None]:
    """End the process with a message when Ctrl-C comes within the block, at once.

    No clean-up runs: the block must not need one, or must postpone the interrupt.
    """
    heard = False

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            _leave(message)

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def asking_to_stop(message: str) -> Iterator[Callable[[], bool]]:
    """Treat the first Ctrl-C (or SIGTERM) as a request to stop; the second ends the process.

    Parameters
    ----------
    message : str
        Printed at the first; empty for no message.

    Yields
    ------
    callable
        Returns whether a stop was requested.
    """
    asked = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            _leave("ended at once: the last save is kept")
        asked = True
        if message:
            _say(message)

    before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_postponed() -> Iterator[None]:
    """Postpone a Ctrl-C within the block to its end.

    The previous handler then runs, by default raising `KeyboardInterrupt`. Only the main thread is
    ever interrupted; in other threads the block runs normally.
    """
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield
        return
    heard = False

    def note(_number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        heard = True

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)


def _leave(message: str) -> NoReturn:
    _say(message)
    os._exit(EXIT_CODE)


def _say(message: str) -> None:
    # Write to the descriptor, because Python's stream may be in the middle of a write. A progress
    # bar has hidden the cursor and left it at the end of its line.
    begin = f"{_SHOW_CURSOR}\n" if os.isatty(_STDERR) else ""
    with suppress(OSError):  # the reader may be gone
        os.write(_STDERR, f"{begin}{message}\n".encode())
