"""Ctrl-C at any moment: one line, exit code 130, and nothing half done.

A `KeyboardInterrupt` comes between any two steps of the program: while a thread is being started,
within another clean-up, inside an import. Commands that take hours in several threads therefore do
not unwind, they leave at once (`leaving_on_interrupt`), except from what must be completed
(`interrupt_postponed`), or when they have come to where they can save (`asking_to_stop`); the
others unwind (`ending_on_interrupt`). Either way the interpreter is
not taken down under threads that still compute, which crashes, nor are they waited for: a network
may take a minute for what it is at.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

#: As shells have it for what SIGINT ended.
EXIT_CODE = 130

_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"


@contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for the first Ctrl-C within the block, and end the process.

    A second one is not heard, so that clean-ups run to their end; nor is any after the block.
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
    except BaseException:  # libraries turn it into errors of their own
        if heard:
            _leave("interrupted")
        raise
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def leaving_on_interrupt(message: str) -> Iterator[None]:
    """End the process with a message when Ctrl-C comes within the block, at once.

    No clean-up runs: what the block does must not need one, or postpone the interrupt.
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
    """Make a request to stop of the first Ctrl-C (or SIGTERM); the second one ends the process.

    Parameters
    ----------
    message : str
        For the first; empty for none.

    Yields
    ------
    callable
        Whether there was one.
    """
    asked = False

    def handle(_number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            _leave("ended at once: what was saved last is kept")
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
    """Let a Ctrl-C that comes within the block act at its end.

    Whatever acts then is what acted before: `KeyboardInterrupt`, unless the program has other
    plans. Only the main thread is ever interrupted; in another the block just runs.
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
    # Straight to the descriptor: Python's stream may be in the midst of a write itself. A progress
    # bar has hidden the cursor of a terminal, and left it behind its end.
    begin = f"{_SHOW_CURSOR}\n" if os.isatty(_STDERR) else ""
    with suppress(OSError):  # who was to read it may be gone
        os.write(_STDERR, f"{begin}{message}\n".encode())
