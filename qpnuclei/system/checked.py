"""Check decoded JSON or YAML against the class that describes it, and name what is wrong.

The classes are `msgspec.Struct` or data classes; types and limits of their fields are checked here
and not when Python code makes an object.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from itertools import count
from operator import methodcaller
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from qpnuclei.errors import quoted

_Kind = TypeVar("_Kind")

# What msgspec says is "Expected `float` > 0.0 - at `$.images[0].mpp[1]`", for example. The name of
# an unknown field is given as it is, and may itself look like a place.
_WHAT_AND_WHERE = re.compile(r"(.*?)(?: - at `\$((?:\.\w+|\[(?:\d+|\.\.\.)\])*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]")
_QUOTED = re.compile(r"`([^`]*)`")
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)

_WORDS = {
    "array": "a list",
    "bool": "true or false",
    "float": "a number",
    "int": "an integer",
    "object": "names with values",
    "str": "a text",
}


class FieldError(ValueError):
    """A field is wrong, missing or unknown.

    Parameters
    ----------
    field : str
        Its name, such as ``scales.2`` or ``post_processing.threshold``; empty for the whole.
    problem : str
    value : object
        What was given; None if nothing was.
    is_unknown : bool
        Whether there is no such field.
    """

    def __init__(
        self, field: str, problem: str, value: object = None, is_unknown: bool = False
    ) -> None:
        given = "" if value is None else f" is {quoted(value)}"
        super().__init__(f"{quoted(field)}{given}: {problem}" if field else problem)
        self.field = field
        self.problem = problem
        self.value = value
        self.is_unknown = is_unknown


def checked(content: object, kind: type[_Kind], *, strict: bool = True) -> _Kind:
    """Make an object of a class from decoded JSON or YAML.

    Parameters
    ----------
    content : object
        Dicts, lists, texts and numbers, as a parser returns them.
    kind : type
    strict : bool
        Otherwise a text that is a number counts as one: YAML reads ``1e-3`` as a text.

    Raises
    ------
    FieldError
        If a field is missing, unknown, of another type, or outside its limits.
    """
    try:
        # Of other types than JSON's, only paths are fields.
        made = msgspec.convert(content, kind, strict=strict, dec_hook=lambda to, value: to(value))
    except msgspec.ValidationError as error:
        raise _field_error(str(error), content, kind) from error
    except UnicodeEncodeError as error:  # msgspec lets it through
        raise FieldError("", f"half a character in the text {quoted(error.object)}") from error
    _refuse_unknown_fields(content, made)
    return made


def _refuse_unknown_fields(content: Any, made: Any, steps: tuple[str | int, ...] = ()) -> None:
    """Refuse unknown fields of data classes: msgspec refuses only those of its own classes."""
    parts: Iterable[tuple[Any, Any, Any]]
    if isinstance(made, list | tuple):
        parts = zip(count(), content, made, strict=False)
    elif not isinstance(content, dict):  # it is made already, or has no fields
        return
    elif isinstance(made, dict):
        parts = zip(content, content.values(), made.values(), strict=True)
    else:
        if is_dataclass(made):
            for name in content.keys() - {field.name for field in fields(made)}:
                raise _unknown([*steps, name], content[name])
        parts = ((name, part, getattr(made, name, None)) for name, part in content.items())
    for step, part, value in parts:
        if isinstance(part, dict | list | tuple):
            _refuse_unknown_fields(part, value, (*steps, step))


def _unknown(steps: Sequence[str | int], given: object) -> FieldError:
    return FieldError(_dotted(steps), "there is no such field", given, True)


def as_json(value: object) -> Any:
    """Return an object as the dicts, lists, texts and numbers that `checked` makes it from."""
    built_in = msgspec.to_builtins(value, enc_hook=methodcaller("item"))  # NumPy's
    return json.loads(json.dumps(built_in))  # lists for tuples


def rechecked(value: _Kind) -> _Kind:
    """Check an object that Python code made; return it as if it were read from a file.

    Raises
    ------
    FieldError
        As for `checked`.
    """
    return checked(as_json(value), type(value))


def _field_error(message: str, content: object, kind: Any) -> FieldError:
    found = _WHAT_AND_WHERE.fullmatch(message)
    problem, path = (found[1], found[2] or "") if found else (message, "")
    steps = [step["name"] or int(step["index"]) for step in _STEP.finditer(path)]
    if missing := _MISSING.fullmatch(problem):
        return FieldError(_dotted([*steps, missing[1]]), "it is missing")
    value = _value_at(content, steps)
    if unknown := _UNKNOWN.fullmatch(problem):
        given = value.get(unknown[1]) if isinstance(value, dict) else None
        return _unknown([*steps, unknown[1]], given)
    if choices := _choices_at(kind, steps):
        problem = f"expected {' or '.join(map(repr, choices))}"
    problem = _QUOTED.sub(_in_words, problem).replace("Expected ", "expected ", 1)
    return FieldError(_dotted(steps), problem, value)


def _in_words(types: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(name, name) for name in types[1].split(" | "))


def _dotted(steps: Sequence[str | int]) -> str:
    return ".".join(map(str, steps))


def _value_at(content: Any, steps: Sequence[str | int]) -> object:
    with suppress(LookupError, TypeError):  # msgspec does not name the keys of dicts
        for step in steps:
            content = content[step]
    return content


def _choices_at(kind: Any, steps: Sequence[str | int]) -> list[Any]:
    """Return the allowed values of a field, if its type is a Literal."""
    for step in steps:
        kind = get_type_hints(kind).get(str(step)) if isinstance(kind, type) else None
    kinds = [kind, *get_args(kind)]
    return [value for one in kinds if get_origin(one) is Literal for value in get_args(one)]
