"""Render pages from templates: format numbers for readers, and write files in one step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

import jinja2

from qpnuclei._version import __version__
from qpnuclei.errors import number_of
from qpnuclei.qupath.count_table import TEXT_COLUMNS
from qpnuclei.slides.resolution import mpp_text
from qpnuclei.system.files import Save, write_atomically


def is_number(value: Any) -> bool:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and math.isfinite(value)


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def numbers(values: Iterable[Any]) -> list[float]:
    """Return those values that are finite numbers."""
    return [value for value in values if is_number(value)]


def format_number(value: float | None) -> str:
    """Format a number for readers: without decimals, or with three significant digits."""
    if value is None or not math.isfinite(value):
        return "–"
    if isinstance(value, int) or abs(value) >= 100 or value == 0:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("qpnuclei.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    environment.globals.update(version=__version__, text_columns=TEXT_COLUMNS)
    environment.filters.update(
        shown=format_number,
        mpp_text=mpp_text,
        number_of=partial(number_of, grouped=True),
        duration=_duration,
        is_number=is_number,
        is_nan=_is_nan,
    )
    return environment


def render(template: str, **values: Any) -> str:
    """Render a template, which makes a page or a part of one."""
    return _environment().get_template(template).render(**values)


def write_page(path: Path, page: str, save: Save = write_atomically) -> None:
    """Write a page in one step."""
    # File names may hold bytes that are not text.
    save(path, page.encode(errors="backslashreplace"))
