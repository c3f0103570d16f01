"""What new files and classes are called, and what text may hold."""

from __future__ import annotations

import json
import re
import unicodedata
from typing import Any

from qpnuclei.qupath.model import ImageEntry, PathClass, Project

#: Colour of a class that the project does not have yet: packed ARGB, green.
NEW_CLASS_COLOR = -16732080
#: File systems allow names of 255 bytes; suffixes are added to this.
_MAX_BYTES = 120

_HALF = re.compile(r"\\u[dD][89a-fA-F]")


def file_stem(entry: ImageEntry) -> str:
    """Return a file name for an image: its entry ID and what of its name is safe in any file."""
    safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in entry.name)
    return f"{entry.id}-{safe}".encode()[:_MAX_BYTES].decode(errors="ignore").rstrip(". ")


def composed(text: str) -> str:
    """Return text with letters and their accents as one, as most systems write it (macOS not)."""
    return unicodedata.normalize("NFC", text)


def class_of(project: Project, name: str, color: int | None = None) -> PathClass:
    """Return the project's class of this name with its colour; a new one gets `color` or green."""
    known = {path_class.name: path_class for path_class in project.classes}
    found = known.get(name)
    if found is not None and found.color is not None:
        return found
    return PathClass(name, NEW_CLASS_COLOR if color is None else color)


def whole_characters(text: str) -> str:
    """Return text with U+FFFD for halves of characters, which Java and JSON allow but not UTF-8."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def without_halves(value: Any, text: str) -> Any:
    """Return a JSON value with whole characters only.

    Parameters
    ----------
    value : JSON value
    text : str
        What it was parsed from: only an escape can make half a character.
    """
    if _HALF.search(text) is None:
        return value
    return json.loads(whole_characters(json.dumps(value, ensure_ascii=False)))
