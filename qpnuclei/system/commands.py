"""Commands as a user types them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence

#: What neither PowerShell nor cmd gives a meaning within a word.
_PLAIN_ON_WINDOWS = re.compile(r"[\w\\/:.=+-]+")


def as_typed(words: Sequence[str]) -> str:
    """Return a command, or a part of one, as a user of this system would type it.

    On Windows, words are in double quotes if they need any, because both shells know these. Within
    them, PowerShell still gives a meaning to ``$``, backticks and quotes, and cmd to ``%``.

    Examples
    --------
    >>> as_typed(["--roi", "Tumor"])
    '--roi Tumor'
    """
    return " ".join(map(_typed_on_windows, words)) if os.name == "nt" else shlex.join(words)


def _typed_on_windows(word: str) -> str:
    typed = subprocess.list2cmdline([word])
    if typed.startswith('"') or _PLAIN_ON_WINDOWS.fullmatch(word):
        return typed
    # Programs take a backslash before the last quote for one that escapes it.
    ending = typed[len(typed.rstrip("\\")) :]
    return f'"{typed}{ending}"'
