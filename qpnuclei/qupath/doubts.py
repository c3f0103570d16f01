"""Reasons why the nuclei of an image or annotation are doubtful, as one line of text.

Each reason is a part of the line; the parts are separated by ``"; "``.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

#: Prefix of a doubt about an image from which nuclei have been removed since.
_BEFORE_FILTER = "before the filter: "
#: Most places named with one doubt.
_MOST_NAMES = 3


def together(doubts: Iterable[str]) -> str:
    """Join reasons for doubt in one line, without duplicates."""
    return "; ".join(dict.fromkeys(one for doubt in doubts if doubt for one in doubt.split("; ")))


def by_place(doubts: Iterable[tuple[str, str]]) -> str:
    """Join reasons for doubt in one line, each with the names of the places that it is about.

    Parameters
    ----------
    doubts : iterable of (str, str)
        Name of the place, and its doubts in one line; an empty name for all places.

    Examples
    --------
    >>> by_place([("a", "dark; few nuclei"), ("b", "dark"), ("", "few nuclei")])
    'a, b: dark; few nuclei'
    """
    places: dict[str, dict[str, None]] = {}
    for name, doubt in doubts:
        for one in doubt.split("; ") if doubt else ():
            places.setdefault(one, {})[name] = None
    return "; ".join(
        one if "" in names else f"{_listed(list(names))}: {one}" for one, names in places.items()
    )


def unsaid(doubts: str, said: str) -> str:
    """Return the reasons for doubt about a place that another line does not contain.

    Examples
    --------
    >>> unsaid("dark; few nuclei", "a, b: dark; pale")
    'few nuclei'
    """
    known = said.split("; ")
    return "; ".join(
        one
        for one in doubts.split("; ")
        if not any(other == one or other.endswith(f": {one}") for other in known)
    )


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _MOST_NAMES:
        return ", ".join(names)
    first = ", ".join(names[: _MOST_NAMES - 1])
    return f"{first} and {len(names) - _MOST_NAMES + 1} more"


def before_filter(check: str) -> str:
    """Return a doubt, marked as older than the filter."""
    return check if not check or check.startswith(_BEFORE_FILTER) else _BEFORE_FILTER + check
