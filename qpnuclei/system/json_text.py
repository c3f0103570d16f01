"""Write JSON with any path, and parse untrusted JSON.

Parsing has a fixed limit of nesting, independent of Python's limit.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

#: Largest depth of nested lists and objects. It is far above what QuPath writes, and far below the
#: recursion limits of all versions of Python.
MAX_DEPTH = 100

_Parsed = TypeVar("_Parsed")


class NestingError(ValueError):
    """Lists and objects are nested deeper than `MAX_DEPTH`."""

    def __init__(self) -> None:
        super().__init__("nested too deeply")


def json_bytes(
    value: object, indent: int, default: Callable[[object], object] | None = None
) -> bytes:
    r"""Return a value as JSON in UTF-8, from which `json.loads` makes the same value.

    Parameters
    ----------
    value : JSON value
        With any texts, also paths that are not UTF-8.
    indent : int
        Spaces of each level.
    default : callable, optional
        Returns a JSON value for an object of another type.

    Examples
    --------
    >>> json_bytes(["\xfc", "\udcff"], indent=0).splitlines()[1:3]
    [b'"\xc3\xbc",', b'"\\udcff"']
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    # Python has half a character for a byte that is not UTF-8; its backslash escape is JSON's too.
    return text.encode(errors="backslashreplace")


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises
    ------
    NestingError
        If the text is nested deeper than `MAX_DEPTH`.
    json.JSONDecodeError
        If the text is not JSON.
    ValueError
        If a number has more digits than Python reads.
    """
    value = within_recursion(json.loads, text)
    refuse_deep(value)
    return value


def within_recursion(parse: Callable[..., _Parsed], *arguments: Any) -> _Parsed:
    """Call a recursive parser; turn an exhausted stack into a `NestingError`."""
    try:
        return parse(*arguments)
    except RecursionError:
        raise NestingError from None


def refuse_deep(value: Any, unless_under: str | None = None) -> None:
    """Raise a `NestingError` if lists and objects are nested deeper than `MAX_DEPTH`.

    Parameters
    ----------
    value : JSON value
    unless_under : str, optional
        Key of objects whose values the caller checks instead.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (
                [v for key, v in item.items() if key != unless_under]
                if isinstance(item, dict)
                else item
            )
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise NestingError
