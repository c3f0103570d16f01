"""The errors. Each says in one line what went wrong, with which file or object, and what to do.

Every error that a user's input or files can cause is one of these. The command line prints
``error: <what>`` and ``hint: <what to do>`` and exits with `exit_code`. Each also inherits the
built-in exception that a Python caller would expect.

Examples
--------
>>> from qpnuclei import open_project
>>> try:
...     open_project("no-such-project")
... except NotFoundError as error:
...     print(f"{error.what}; {error.hint}; exit code {error.exit_code}")
no-such-project: no such file; name a project.qpproj or its folder; exit code 2
"""

from __future__ import annotations

import logging
import reprlib
from collections.abc import Callable

_log = logging.getLogger(__name__)

#: Messages may quote what a user or file gave, but not all of it.
_LONGEST_QUOTE = 200
_LONGEST_REASON = 300


class QpnucleiError(Exception):
    """Base of all errors that qpnuclei raises on purpose.

    Parameters
    ----------
    what : str
        What went wrong, naming the file or object, in one line.
    hint : str, optional
        What the user can do about it, in one line.
    """

    exit_code = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what} ({self.hint})" if self.hint else self.what

    def naming(self, kind: str, name: str) -> str:
        """Return the prefix that names the object in the message, or "" if it is named already.

        Examples
        --------
        >>> QpnucleiError("no pixel size").naming("image", "a.svs")
        'image a.svs: '
        >>> QpnucleiError("image a.svs has no pixel size").naming("image", "a.svs")
        ''
        """
        return "" if name in self.what else f"{kind} {name}: ".lstrip()


class UsageError(QpnucleiError, ValueError):
    """The request itself is wrong: a contradictory option, a class that no annotation has."""

    exit_code = 2


class NotFoundError(QpnucleiError, FileNotFoundError):
    """A file or folder that the request names does not exist."""

    exit_code = 2

    def __str__(self) -> str:
        return QpnucleiError.__str__(self)


class FormatError(QpnucleiError, ValueError):
    """A file exists but has the wrong content: truncated, corrupt, or another format."""


class SlideError(QpnucleiError, OSError):
    """A slide cannot be opened or read, or QuPath's server for it is not supported."""

    def __str__(self) -> str:
        return QpnucleiError.__str__(self)


class MppError(QpnucleiError, ValueError):
    """The pixel size is missing or absurd; the remedy is ``--mpp``."""

    exit_code = 2


class ModelError(QpnucleiError, ValueError):
    """A model file is missing parts, is not safetensors, or was made for another architecture."""


class TrainingError(QpnucleiError, RuntimeError):
    """Training went wrong: the loss is NaN, or the attention is empty."""


class DeviceError(QpnucleiError, RuntimeError):
    """The requested device (CUDA, MPS) is missing, or has too little memory."""

    exit_code = 2


class SaveError(QpnucleiError, OSError):
    """A result could not be written; what was there before is untouched."""

    def __str__(self) -> str:
        return QpnucleiError.__str__(self)


class ConflictError(SaveError):
    """A file changed on disk between reading and saving, for example because QuPath has it open."""


class LockedError(SaveError):
    """Another process works on the project; nothing was changed."""


class TerminatedError(QpnucleiError):
    """A batch system has asked the command to end; finished results are kept."""

    #: That of shells for programs ended by SIGTERM.
    exit_code = 143


class WorkerError(QpnucleiError, RuntimeError):
    """A process that computes a part of a run, or gives them out, is gone or does not answer."""


class UnexpectedError(QpnucleiError):
    """A bug in the program itself, or in a library, that occurred while working on one image."""


class standing_alone:  # noqa: N801 - used as a function
    """Report any exception of the block, so that the program continues after it.

    Parameters
    ----------
    where : str
        What is being worked on, for example an image.
    report : callable
        Called with the error. An exception that is not a `QpnucleiError` becomes an
        `UnexpectedError`; its traceback is logged.
    """

    # A class, because type checkers take a generator for one that lets exceptions pass.

    def __init__(self, where: str, report: Callable[[QpnucleiError], object]) -> None:
        self._where = where
        self._report = report

    def __enter__(self) -> None:
        pass

    def __exit__(self, _: object, error: BaseException | None, __: object) -> bool:
        if isinstance(error, QpnucleiError):
            self._report(error)
        elif isinstance(error, Exception):  # whatever it is, the others must not suffer
            _log.debug("%s", self._where, exc_info=error)
            self._report(_unexpected(error, self._where))
        else:
            return False
        return True


def _unexpected(error: Exception, where: str) -> UnexpectedError:
    if isinstance(error, MemoryError):
        return UnexpectedError(f"{where}: not enough memory", "close other programs, and run again")
    reason = short_reason(error)
    return UnexpectedError(
        f"{where}: unexpected {type(error).__name__}" + (f": {reason}" if reason else ""),
        "please report this, with what qpnuclei --verbose says of it",
    )


#: Plurals that do not end in an s alone.
_PLURALS = {
    "batch": "batches",
    "box": "boxes",
    "nucleus": "nuclei",
    "patch": "patches",
    "vertex": "vertices",
}


def number_of(count: int, noun: str, plural: str = "", *, grouped: bool = False) -> str:
    """Return a number with its noun, for a message; `grouped` sets commas between the thousands.

    Examples
    --------
    >>> number_of(1, "image"), number_of(2, "image"), number_of(0, "nucleus")
    ('1 image', '2 images', '0 nuclei')
    >>> number_of(421589, "nucleus", grouped=True)
    '421,589 nuclei'
    """
    number = f"{count:,}" if grouped else str(count)
    return f"{number} {noun if count == 1 else plural or _PLURALS.get(noun, noun + 's')}"


def short_reason(reason: object) -> str:
    """Return the text of an error, for a message: one line of at most 300 characters."""
    return " ".join(str(reason).split())[:_LONGEST_REASON]


def quoted(value: object) -> str:
    """Return a value as a message may quote it: short, however large or deep it is."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxtuple = 2, 4, 4, 4
    short.maxstring = short.maxother = short.maxlong = _LONGEST_QUOTE
    text = short.repr(value)
    return text if len(text) <= _LONGEST_QUOTE else f"{text[: _LONGEST_QUOTE - 3]}..."
