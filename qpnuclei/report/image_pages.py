"""The pages of a report of many images: one for each image, in a folder beside the index."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import jinja2
from markupsafe import Markup, escape

from qpnuclei.report.rendering import render, write_page
from qpnuclei.system.files import read_regular, saving

_PAGE = re.compile(r"[0-9]{4,}\.html")


@dataclass(frozen=True)
class _Waiting:
    """A page that is not written yet, as its link to the next one is not known."""

    name: str
    title: str
    section: Markup
    previous: str


class ImagePages:
    """The pages of the images of a report.

    Parameters
    ----------
    index : Path
        The page with links to them. They are in the folder ``<name>-images`` beside it.
    """

    def __init__(self, index: Path) -> None:
        self._folder = index.with_name(f"{index.stem}-images")
        self._index = f"../{_quoted(index.name)}"
        self._waiting: _Waiting | None = None
        self._written: set[str] = set()

    def add(self, number: int, title: str, section: Markup) -> str:
        """Add the page of the `number`-th image, from 1; return the link to it from the index.

        Raises
        ------
        qpnuclei.errors.SaveError
            If a page cannot be written.
        """
        name = f"{number:04d}.html"
        before = "" if self._waiting is None else self._waiting.name
        self._write_waiting(name)
        self._waiting = _Waiting(name, title, section, before)
        return f"{_quoted(self._folder.name)}/{name}"

    def finish(self) -> None:
        """Write the last page.

        Raises
        ------
        qpnuclei.errors.SaveError
            If it cannot be written.
        """
        self._write_waiting("")

    def remove_others(self) -> None:
        """Remove pages that a former report wrote in the folder, and this one did not.

        Raises
        ------
        qpnuclei.errors.SaveError
            If a page cannot be removed.
        """
        for path in self._folder.glob("*.html"):
            if path.name not in self._written and self._is_page(path):
                with saving(path):
                    path.unlink()

    def _write_waiting(self, following: str) -> None:
        page = self._waiting
        if page is None:
            return
        content = render(
            "image_page.html.j2",
            title=page.title,
            section=page.section,
            index=self._index,
            previous=page.previous,
            next=following,
        )
        write_page(self._folder / page.name, content)
        self._written.add(page.name)

    def _is_page(self, path: Path) -> bool:
        """Tell whether a file is a page that a report with this index wrote."""
        if not _PAGE.fullmatch(path.name) or path.is_symlink() or not path.is_file():
            return False
        content = read_regular(path)
        link = f'<a href="{escape(self._index)}">all images</a>'
        return link.encode() in content and b"<footer>Made by qpnuclei " in content


_quoted = partial(jinja2.filters.do_urlencode)
