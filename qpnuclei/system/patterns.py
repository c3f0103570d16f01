"""Patterns for names and files: ``*`` and ``?`` are wildcards, all else stands for itself."""

from __future__ import annotations

import glob
from fnmatch import fnmatchcase
from pathlib import Path


def has_wildcards(text: str) -> bool:
    """Tell whether a text has ``*`` or ``?``."""
    return any(wildcard in text for wildcard in "*?")


def matches(name: str, pattern: str) -> bool:
    """Tell whether a pattern matches the whole of a name, in the same case.

    Examples
    --------
    >>> matches("slide[1].svs", "slide[1].*"), matches("slide1.svs", "slide[1].svs")
    (True, False)
    """
    return fnmatchcase(name, _brackets_escaped(pattern))


def files_matching(pattern: Path) -> list[Path]:
    """Return the files and folders that match a pattern, sorted; ``**`` stands for any folders."""
    found = glob.glob(_brackets_escaped(str(pattern)), recursive=True)  # noqa: PTH207
    return sorted(map(Path, found))


def _brackets_escaped(pattern: str) -> str:
    # Python would read the characters in brackets as alternatives, but names have brackets, too.
    return pattern.replace("[", "[[]")
