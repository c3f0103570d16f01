"""Parse untrusted JSON with a fixed limit of nesting, independent of Python's limit."""

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
