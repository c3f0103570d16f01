"""Ctrl-C and SIGTERM at any moment: one line, exit code 130 or 143, and nothing half done.

A `KeyboardInterrupt` comes between any two steps of the program: while a thread is being started,
within another clean-up, inside an import. Commands that take hours in several threads therefore do
not unwind, they leave at once (`leaving_on_interrupt`), except from what must be completed
(`interrupt_postponed`), or when they have come to where they can save (`asking_to_stop`); the
others unwind (`ending_on_interrupt`). Either way the interpreter is
not taken down under threads that still compute, which crashes, nor are they waited for: a network
may take a minute for what it is at. SIGTERM is what batch systems send before they kill: it is
heard as Ctrl-C is, and 143 says that the command is to be run again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

#: As shells have it for what SIGINT and SIGTERM ended.
EXIT_CODE = 130
TERMINATED_EXIT_CODE = 143

_STOPS = (signal.SIGINT, signal.SIGTERM)

_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"

#: What is done before the process ends at once, the last first.
_BEFORE_LEAVING: list[Callable[[int], object]] = []


@contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for the first Ctrl-C within the block, and end the process.

    A second one is not heard, so that clean-ups run to their end; nor is any after the block.
    SIGTERM is the same.
    """
    heard = 0

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = number
            raise KeyboardInterrupt

    for number in _STOPS:
        signal.signal(number, interrupt)
    try:
        yield
    except BaseException:  # libraries turn it into errors of their own
        if heard:
            _leave("interrupted", heard)
        raise
    finally:
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def leaving_on_interrupt(message: str) -> Iterator[None]:
    """End the process with a message when Ctrl-C or SIGTERM comes within the block, at once.

    No clean-up runs but those of `before_leaving`: what the block does must not need one, or
    postpone the interrupt.
    """
    heard = False

    def interrupt(number: int, _frame: FrameType | None) -> None:
        nonlocal heard
        if not heard:
            heard = True
            _leave(message, number)

    before = {number: signal.signal(number, interrupt) for number in _STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def before_leaving(clean_up: Callable[[int], object]) -> Iterator[None]:
    """Do something quick before a signal within the block ends the process without unwinding.

    Parameters
    ----------
    clean_up : callable
        Called with the signal's number. What it raises is ignored.
    """
    _BEFORE_LEAVING.append(clean_up)
    try:
        yield
    finally:
        _BEFORE_LEAVING.remove(clean_up)


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

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked:
            _leave("ended at once: what was saved last is kept", number)
        asked = True
        if message:
            _say(message)

    before = {number: signal.signal(number, handle) for number in _STOPS}
    try:
        yield lambda: asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_postponed() -> Iterator[None]:
    """Let a Ctrl-C or SIGTERM that comes within the block act at its end.

    Whatever acts then is what acted before: `KeyboardInterrupt`, unless the program has other
    plans. Only the main thread is ever interrupted; in another the block just runs.
    """
    before = {number: signal.getsignal(number) for number in _STOPS}
    if threading.current_thread() is not threading.main_thread() or None in before.values():
        yield
        return
    heard: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        heard.append(number)

    for number in _STOPS:
        signal.signal(number, note)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if heard:
            signal.raise_signal(heard[0])


def _leave(message: str, number: int) -> NoReturn:
    for clean_up in reversed(_BEFORE_LEAVING):
        with suppress(Exception):  # the process ends, come what may
            clean_up(number)
    if number == signal.SIGTERM:
        message = message.replace("interrupted", "terminated", 1)
    _say(message)
    os._exit(TERMINATED_EXIT_CODE if number == signal.SIGTERM else EXIT_CODE)


def _say(message: str) -> None:
    # Straight to the descriptor: Python's stream may be in the midst of a write itself. A progress
    # bar has hidden the cursor of a terminal, and left it behind its end.
    begin = f"{_SHOW_CURSOR}\n" if os.isatty(_STDERR) else ""
    with suppress(OSError):  # who was to read it may be gone
        os.write(_STDERR, f"{begin}{message}\n".encode())
