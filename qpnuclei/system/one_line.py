r"""Text in terminals and logs. Names in it are untrusted: they may have control characters.

Examples
--------
>>> print(in_one_line("a.svs\nerror: all is lost"))
a.svs\nerror: all is lost
"""

from __future__ import annotations

import logging
import re

#: Control characters (C0 except line feed, DEL, C1) and those that change the text direction.
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def visible(text: str) -> str:
    """Return text with control characters escaped as in Python."""
    return STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_one_line(text: str) -> str:
    """Return text with line feeds also escaped, so that a name cannot imitate a line of output."""
    return visible(text).replace("\n", "\\n")


class OneLineFormatter(logging.Formatter):
    """Formats a log message in one line; the traceback after it keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - its name there
        """Return the message, without a traceback, in one line."""
        return in_one_line(super().formatMessage(record))
