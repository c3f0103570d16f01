"""What `make docs` does beside mkdocs: links out of ``docs/``, notebooks, reference of commands.

The pages are written for a code host: their links may lead to any file of the repository. On the
site, the pages that lie outside of ``docs/`` are put below ``repository/``; a link to anything
else, such as a module, becomes plain text. Notebooks become pages with the output that they hold.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from nbconvert import MarkdownExporter

from qpnuclei.cli.app import app

ROOT = Path(__file__).resolve().parents[1]

_PREFIX = "repository/"
_COMMANDS = "reference/cli.md"
_NOTEBOOK = ".ipynb"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")


@cache
def pages_elsewhere() -> frozenset[str]:
    """Return the pages outside of ``docs/`` that a page of the site links to, also indirectly."""
    found: set[str] = set()
    to_read = [
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "docs").rglob("*")
        if path.suffix in (".md", _NOTEBOOK)
    ]
    while to_read:
        page = to_read.pop()
        for link in _LINK.finditer((ROOT / page).read_text(encoding="utf-8")):
            target = _target(page, link[3])
            outside = target.endswith(".md") and not target.startswith("docs/")
            if outside and target not in found and (ROOT / target).is_file():
                found.add(target)
                to_read.append(target)
    return frozenset(found)


def _target(page: str, link: str) -> str:
    """Return the path in the repository that a link of a page leads to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that lie outside of ``docs/``, and those of notebooks."""
    for path in sorted(pages_elsewhere()):
        text = (ROOT / path).read_text(encoding="utf-8")
        files.append(File.generated(config, _PREFIX + path, content=text))
    for notebook in [file for file in files if file.src_uri.endswith(_NOTEBOOK)]:
        page, pictures = _converted(Path(notebook.abs_src_path or ""))
        stem = notebook.src_uri.removesuffix(_NOTEBOOK)
        files.append(File.generated(config, f"{stem}.md", content=page))
        for name, content in pictures.items():
            place = (Path(notebook.src_uri).parent / name).as_posix()
            files.append(File.generated(config, place, content=content))
    return files


def _converted(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Return a notebook as Markdown, and its pictures by the path that the page gives them."""
    page, resources = MarkdownExporter().from_filename(str(notebook), {"unique_key": notebook.stem})
    # The site has a style for tables.
    return re.sub(r"<style scoped>.*?</style>", "", page, flags=re.DOTALL), resources["outputs"]


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Mend the links of a page, and write the reference of commands."""
    source = page.file.src_uri
    if source == _COMMANDS:
        markdown += "\n\n" + "\n\n".join(command_reference())
    return _LINK.sub(lambda link: _mended(link, source), markdown)


def _mended(link: re.Match[str], source: str) -> str:
    image, text, target, anchor = link[1], link[2], link[3], link[4] or ""
    if not target or ":" in target:
        return link[0]
    generated = source.startswith(_PREFIX)
    here = source.removeprefix(_PREFIX) if generated else f"docs/{source}"
    path = _target(here, target)
    if path.startswith("docs/"):
        wanted = path.removeprefix("docs/")
        if wanted.endswith(_NOTEBOOK):
            wanted = f"{wanted.removesuffix(_NOTEBOOK)}.md"
    elif path in pages_elsewhere():
        wanted = _PREFIX + path
    elif (ROOT / path).exists():
        return text
    else:
        return link[0]  # mkdocs says that it leads nowhere
    relative = posixpath.relpath(wanted, posixpath.dirname(source) or ".")
    return f"{image}[{text}]({relative}{anchor})"


def command_reference() -> Iterator[str]:
    """Yield the commands as Markdown: what each does, and its arguments and options."""
    yield from _described(typer.main.get_command(app), "qpnuclei")


def _described(command: Any, name: str) -> Iterator[str]:
    context = command.context_class(command, info_name=name)
    yield f"## {name}"
    yield _plain(command.help or "")
    if not getattr(command, "commands", None):
        usage = " ".join(command.collect_usage_pieces(context))
        yield f"```\n{name} {usage}\n```"
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            yield f"`{record[0]}`\n:   {_plain(record[1])}"
    for child, below in getattr(command, "commands", {}).items():
        yield from _described(below, f"{name} {child}")


def _plain(text: str) -> str:
    """Return text in which nothing is Markdown."""
    return re.sub(r"([*_<>\[\]`#|\\])", r"\\\1", text)
