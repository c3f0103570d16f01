"""Names of files and classes, and text that is not UTF-8."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import ImageEntry, PathClass, Project, packed_rgb
from qpnuclei.system.files import name_of

#: Colour of a class that is new to the project: green.
NEW_CLASS_COLOR = packed_rgb(0, 176, 80)
#: File systems allow names of 255 bytes; this leaves room for suffixes.
_MAX_BYTES = 120

_SURROGATE_ESCAPE = re.compile(r"\\u[dD][89a-fA-F]")


def file_stem(entry: ImageEntry) -> str:
    """Return a file name for an image: its entry ID and the portable characters of its name."""
    safe = "".join(c if c.isalnum() or c in "-_. " else "_" for c in entry.name)
    return cut(f"{entry.id}-{safe}").rstrip(". ")


def cut(name: str) -> str:
    """Return the beginning of a name that is short enough for a file name with a suffix."""
    return name.encode(errors="ignore")[:_MAX_BYTES].decode(errors="ignore")


def project_name(project: Project) -> str:
    """Return what tables and pages call a project: its folder and file."""
    return f"{name_of(project.path.parent)}/{project.path.name}"


def place_searched(project: Project, entries: Sequence[ImageEntry]) -> str:
    """Return what messages call the place where annotations were searched for."""
    is_all = len(entries) == len(project.images)
    return str(project.path) if is_all else f"the chosen images of {project.path}"


def class_of(project: Project, name: str, color: int | None = None) -> PathClass:
    """Return the project's class with this name; one without a colour gets `color` or green."""
    known = {path_class.name: path_class for path_class in project.classes}
    found = known.get(name)
    if found is not None and found.color is not None:
        return found
    return PathClass(name, NEW_CLASS_COLOR if color is None else color)


def stored_class_name(name: str) -> str:
    """Return the name of a class in QuPath's form; empty if nothing is left of it.

    Examples
    --------
    >>> stored_class_name(" Tumor:Positive ")
    'Tumor: Positive'
    """
    one_line = " ".join(name.splitlines())
    return ": ".join(part for own in one_line.split(":") if (part := own.strip()))


def checked_class_name(name: str) -> str:
    """Return the name that a user gave to a class in QuPath's form.

    Raises
    ------
    qpnuclei.errors.UsageError
        If it is empty in this form, or not UTF-8.
    """
    stored = stored_class_name(name)
    if not stored or not is_utf8(stored):
        raise UsageError(f"{name!r} is not a class name", "name the class with --class")
    return stored


def is_utf8(text: str) -> bool:
    """Tell whether text can be written as UTF-8: names of files need not be."""
    return replace_lone_surrogates(text) == text


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which Java and JSON allow but UTF-8 does not, with U+FFFD."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def table_text(text: str) -> str:
    """Return text that tables of all formats can have: U+FFFD replaces what one of them refuses.

    UTF-8 has no lone surrogates, and HDF5 no NUL within a text.
    """
    return replace_lone_surrogates(text).replace("\0", "\ufffd")


def column_names(names: Iterable[str], suffix: str, taken: Iterable[str] = ()) -> list[str]:
    r"""Return the `table_text` of names of columns, so that no two columns have one name.

    Parameters
    ----------
    names : iterable of str
    suffix : str
        Appended, if need be repeatedly, to a name that another column has already.
    taken : iterable of str
        Names that other columns of the table have.

    Examples
    --------
    >>> column_names(["z", "a\ud800", "a\ud801"], " (other)", taken=["z"])
    ['z (other)', 'a�', 'a� (other)']
    """
    used = set(taken)
    found = []
    for name in map(table_text, names):
        while name in used:
            name += suffix
        used.add(name)
        found.append(name)
    return found


def replace_lone_surrogates_in_json(value: Any, text: str) -> Any:
    """Return a JSON value without lone surrogates.

    Parameters
    ----------
    value : JSON value
    text : str
        The JSON text of the value. Only an escape in it can produce a lone surrogate.
    """
    if _SURROGATE_ESCAPE.search(text) is None:
        return value
    return json.loads(replace_lone_surrogates(json.dumps(value, ensure_ascii=False)))
