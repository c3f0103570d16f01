"""Handle Ctrl-C and SIGTERM: print one line, exit with 130 or 143, leave nothing half done.

Planning, dry runs, reports, exports and imports unwind with a plain `KeyboardInterrupt`
(`ending_on_interrupt`). The process then exits without shutting down the interpreter, because a
shutdown crashes while threads of torch compute. A second Ctrl-C does not disturb the clean-up.

Three cases need more:

* `run`, `infer`, `commit`, `preview` and `demo` exit at once (`leaving_on_interrupt`). Unwinding
  would wait for the network or the threads, up to a minute for a batch. No result is lost, because
  finished files were put in place by rename. Locks are released first (`before_leaving`).
* The save of an image writes several files that belong together, and QuPath's Java must not see an
  exception of Python. An interrupt waits until this block is done (`interrupt_postponed`).
* Training stops at the next point where it can save. A run that a batch system asks to end
  finishes its current unit (`asking_to_stop`).

Batch systems send SIGTERM before they kill a job. It is treated like Ctrl-C, and exit code 143 says
that the command should be run again.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from qpnuclei.errors import TerminatedError

#: Exit code of shells for programs ended by SIGINT.
EXIT_CODE = 130

_STOPS = (signal.SIGINT, signal.SIGTERM)

_STDERR = 2
_SHOW_CURSOR = "\x1b[?25h"

#: Clean-ups that run before the process exits at once, in reverse order.
_BEFORE_LEAVING: list[Callable[[int], object]] = []


@contextmanager
def ending_on_interrupt() -> Iterator[None]:
    """Raise `KeyboardInterrupt` for the first Ctrl-C within the block, and end the process.

    A second Ctrl-C, or one after the block, is ignored, so that clean-ups are completed. SIGTERM is
    handled in the same way.
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
    except BaseException:  # libraries turn it into their own errors
        if heard:
            _leave("interrupted", heard)
        raise
    finally:
        for number in _STOPS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def leaving_on_interrupt(message: str) -> Iterator[None]:
    """Exit at once, with a message, if Ctrl-C or SIGTERM comes within the block.

    No clean-ups run except those of `before_leaving`. Work that needs one must postpone the
    interrupt.
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
    """Run a quick clean-up before a signal within the block ends the process without unwinding.

    Parameters
    ----------
    clean_up : callable
        Called with the signal's number. Its exceptions are ignored.
    """
    _BEFORE_LEAVING.append(clean_up)
    try:
        yield
    finally:
        _BEFORE_LEAVING.remove(clean_up)


class StopRequest:
    """Whether a stop was requested (called like a function), and the exit code that says so."""

    def __init__(self) -> None:
        self._signal = 0

    def __call__(self) -> bool:
        """Return whether a stop was requested."""
        return self._signal != 0

    def note(self, number: int) -> None:
        """Note the signal that requested it."""
        self._signal = number

    @property
    def exit_code(self) -> int:
        """Exit code of a process that stopped because of it."""
        return _exit_code(self._signal)


@contextmanager
def asking_to_stop(
    message: str,
    signals: Sequence[signal.Signals] = _STOPS,
    end: str = "ended at once: the last save is kept",
) -> Iterator[StopRequest]:
    """Treat the first Ctrl-C or SIGTERM as a request to stop; the second ends the process.

    Parameters
    ----------
    message : str
        Printed at the first signal; empty for no message.
    signals : sequence of signal.Signals
        The signals to handle; another one keeps its handler.
    end : str
        Printed at the second signal.

    Yields
    ------
    StopRequest
    """
    asked = StopRequest()

    def handle(number: int, _frame: FrameType | None) -> None:
        if asked():
            _leave(end, number)
        asked.note(number)
        if message:
            _say(message)

    before = {number: signal.signal(number, handle) for number in signals}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interrupt_postponed() -> Iterator[None]:
    """Postpone a Ctrl-C or SIGTERM within the block to the end of the block.

    The previous handler then runs, by default raising `KeyboardInterrupt`. Only the main thread is
    ever interrupted; in other threads the block runs normally.
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
        with suppress(Exception):  # the process ends in any case
            clean_up(number)
    if number == signal.SIGTERM:
        message = message.replace("interrupted", "terminated", 1)
    _say(message)
    os._exit(_exit_code(number))


def _exit_code(number: int) -> int:
    return TerminatedError.exit_code if number == signal.SIGTERM else EXIT_CODE


def _say(message: str) -> None:
    # Write to the descriptor, because Python's stream may be in the middle of a write. A progress
    # bar has hidden the cursor and left it at the end of its line.
    begin = f"{_SHOW_CURSOR}\n" if os.isatty(_STDERR) else ""
    with suppress(OSError):  # the reader may be gone
        os.write(_STDERR, f"{begin}{message}\n".encode())
