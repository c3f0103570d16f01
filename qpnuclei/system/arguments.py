"""Arguments of the Python interface, which no command line has checked."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from qpnuclei.errors import UsageError, quoted

_Item = TypeVar("_Item")


def listed(given: Sequence[_Item] | None) -> tuple[_Item, ...]:
    """Return the items of a sequence. A text, a path or a UUID alone is one item, None is none.

    Examples
    --------
    >>> listed(["Tumor", "Stroma"]), listed("Tumor")
    (('Tumor', 'Stroma'), ('Tumor',))
    """
    if given is None:
        return ()
    alone: Any = given
    return (alone,) if isinstance(given, str | os.PathLike | UUID) else tuple(given)


def listed_or_none(given: Sequence[_Item] | None) -> tuple[_Item, ...] | None:
    """Return the items of a sequence as `listed` does, or None."""
    return None if given is None else listed(given)


def path_or_none(given: str | os.PathLike[str] | None) -> Path | None:
    """Return a path as `pathlib.Path`, None as None."""
    return None if given is None else Path(given)


def check_choice(name: str, value: object, allowed: Sequence[object]) -> None:
    """Refuse the value of a parameter that is not one of the allowed ones.

    Raises
    ------
    UsageError
        If it is not; names the allowed values.

    Examples
    --------
    >>> check_choice("by", "images", ("class", "image"))
    Traceback (most recent call last):
    ...
    qpnuclei.errors.UsageError: by='images': no such value (choose 'class' or 'image')
    """
    if value not in allowed:
        *others, last = map(repr, allowed)
        choices = f"{', '.join(others)} or {last}"
        raise UsageError(f"{name}={quoted(value)}: no such value", f"choose {choices}")
