"""Pages as tests read them: tables, links and texts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any


@dataclass
class Cell:
    text: str = ""
    value: float | None = None


@dataclass
class Page(HTMLParser):
    """A parsed page: headings and rows of its tables, all attributes, all text, all tags."""

    html: str
    tables: list[list[list[Cell]]] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    attributes: list[tuple[str, str, str]] = field(default_factory=list)
    text: str = ""
    captions: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self._inside: list[str] = []
        self.feed(self.html)
        self.close()

    @classmethod
    def of(cls, path: Path) -> Page:
        return cls(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            value = dict(attrs).get("title")
            self.tables[-1][-1].append(Cell(value=None if value is None else float(value)))
        elif tag == "figcaption":
            self.captions.append("")
        self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._inside and self._inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "style" in self._inside:
            return
        self.text += data
        if "td" in self._inside or "th" in self._inside:
            self.tables[-1][-1][-1].text += data
        if "figcaption" in self._inside:
            self.captions[-1] += data

    def table(self, *headings: str) -> list[dict[str, Cell]]:
        """Return the rows of the table that has these headings."""
        for table in self.tables:
            names = [cell.text for cell in table[0]]
            if set(headings) <= set(names):
                return [dict(zip(names, row, strict=True)) for row in table[1:]]
        raise AssertionError(f"no table has {headings}")


def same(cell: Cell, expected: Any) -> bool:
    """Tell whether a cell shows what is exported: the same number, or that there is none."""
    if isinstance(expected, int | float) and math.isfinite(expected):
        return cell.value == expected
    if expected is None or isinstance(expected, float):
        return cell.text == "–" and cell.value is None
    return cell.text == str(expected)
