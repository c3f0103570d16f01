"""Arguments of the Python interface, which no command line has checked."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from qpnuclei.choices import Range
from qpnuclei.errors import UsageError, quoted

_Item = TypeVar("_Item")


def listed(given: Sequence[_Item] | None) -> tuple[_Item, ...]:
    """Return the items of a sequence. A text, path, UUID or number is one item, None is none.

    Examples
    --------
    >>> listed(["Tumor", "Stroma"]), listed("Tumor")
    (('Tumor', 'Stroma'), ('Tumor',))
    """
    if given is None:
        return ()
    alone: Any = given
    is_one = isinstance(given, str | bytes | os.PathLike) or not isinstance(given, Iterable)
    return (alone,) if is_one else tuple(given)


def checked_text(name: str, value: object) -> str:
    """Return the value of a parameter as `str`.

    Raises
    ------
    UsageError
        If it is not a text.

    Examples
    --------
    >>> checked_text("device", 5)
    Traceback (most recent call last):
    ...
    qpnuclei.errors.UsageError: device=5: not a text (give a str)
    """
    if not isinstance(value, str):
        raise UsageError(f"{name}={quoted(value)}: not a text", "give a str")
    return str(value)


def checked_name(name: str, value: object) -> str:
    """Return the value of a parameter that is a name or the path of a file, as `str`.

    Raises
    ------
    UsageError
        If it is neither a text nor a path.
    """
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if not isinstance(text, str):
        raise UsageError(f"{name}={quoted(value)}: not a name or path", "give a str or a Path")
    return str(text)


def checked_texts(name: str, given: Sequence[str] | None) -> tuple[str, ...]:
    """Return the texts of a sequence, as `listed` does.

    Raises
    ------
    UsageError
        If one of them is not a text.
    """
    return tuple(checked_text(name, one) for one in listed(given))


def checked_texts_or_none(name: str, given: Sequence[str] | None) -> tuple[str, ...] | None:
    """Return the texts of a sequence as `checked_texts` does, or None."""
    return None if given is None else checked_texts(name, given)


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
    if not any(_is_same(value, one) for one in allowed):
        *others, last = map(repr, allowed)
        choices = f"{', '.join(others)} or {last}"
        raise UsageError(f"{name}={quoted(value)}: no such value", f"choose {choices}")


def _is_same(value: Any, choice: object) -> bool:
    # An array is compared by element, and True is equal to 1.
    is_scalar = getattr(value, "shape", ()) == ()
    return is_scalar and value == choice and (is_number(value) or not is_number(choice))


def is_number(value: object) -> bool:
    """Tell whether a value is a number of Python or NumPy; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def checked_number(name: str, value: Any, limits: Range) -> float:
    """Return the value of a parameter as `float`.

    Raises
    ------
    UsageError
        If it is not a number, or not within the limits; NaN is not.

    Examples
    --------
    >>> checked_number("simplify_um", 9, Range(0, 5, "µm"))
    Traceback (most recent call last):
    ...
    qpnuclei.errors.UsageError: simplify_um=9: not in the range (give 0 to 5 µm)
    """
    return float(_within(name, value, limits))


def checked_count(name: str, value: Any, limits: Range) -> int:
    """Return the value of a parameter as `int`.

    Raises
    ------
    UsageError
        If it is not an integer, or not within the limits.
    """
    number = _within(name, value, limits)
    if not isinstance(number, int):
        raise _no_value(name, value, "not an integer", limits)
    return number


def _within(name: str, value: Any, limits: Range) -> int | float:
    if not is_number(value):
        raise _no_value(name, value, "not a number", limits)
    # A number of NumPy is compared as what a plan keeps of it.
    number = int(value) if isinstance(value, Integral) else float(value)
    if not limits.allow(number):
        raise _no_value(name, value, "not in the range", limits)
    return number


def _no_value(name: str, value: object, problem: str, limits: Range) -> UsageError:
    return UsageError(f"{name}={quoted(value)}: {problem}", f"give {limits.text}")


def checked_flag(name: str, value: object) -> bool:
    """Return the value of a parameter as `bool`.

    Raises
    ------
    UsageError
        If it is something else: any text would count as true.
    """
    check_choice(name, value, (True, False))
    return bool(value)


def check_fields(
    options: object,
    checks: Mapping[str, Callable[[str, Any], object]],
    may_be_none: Collection[str] = (),
) -> None:
    """Check fields of a frozen data class, and replace each value by what its check returns.

    Parameters
    ----------
    checks : mapping of str to callable
        By the name of a field; called with that name and the value.
    may_be_none : collection of str
        Fields whose value None is not checked.
    """
    for name, check in checks.items():
        value = getattr(options, name)
        if value is not None or name not in may_be_none:
            object.__setattr__(options, name, check(name, value))
