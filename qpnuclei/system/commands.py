"""Commands as a user types them."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence


def as_typed(words: Sequence[str]) -> str:
    """Return a command, or a part of one, as a user of this system would type it.

    Examples
    --------
    >>> as_typed(["--roi", "Tumor"])
    '--roi Tumor'
    """
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)
