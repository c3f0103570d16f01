"""Shell completion: classes and images of the project in the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import typer

from qpnuclei.errors import QpnucleiError

#: Parameters of commands that may hold a project.
_PROJECTS = ("inputs", "project", "source", "sources")


def complete_class(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the classes of the project that begin with a word; none if it cannot be read."""
    try:
        from qpnuclei.qupath.project_file import DEFAULT_CLASSES, read_classes

        found: list[str] = []
        for project in _projects(ctx):
            path = project.parent / "classifiers" / "classes.json"
            # A project without a list has QuPath's default classes.
            classes = read_classes(path) if path.exists() else DEFAULT_CLASSES
            found += [path_class.name for path_class in classes]
        return _like(incomplete, found)
    except Exception:  # noqa: BLE001 - a shell must not show an error in the middle of a word
        return []


def complete_image(ctx: typer.Context, incomplete: str) -> list[str]:
    """Return the names of the project's images that begin with a word."""
    try:
        from qpnuclei.qupath.project_file import read_project

        found: list[str] = []
        for project in _projects(ctx):
            found += [str(entry.get("imageName")) for entry in read_project(project)["images"]]
        return _like(incomplete, found)
    except Exception:  # noqa: BLE001 - as above
        return []


def _projects(ctx: typer.Context) -> Iterator[Path]:
    from qpnuclei.qupath.project_file import find_project_file

    # While an option lacks its value, other arguments are not parsed yet.
    words = list(ctx.args)
    for name in _PROJECTS:
        given = ctx.params.get(name) or ()
        words += given if isinstance(given, list | tuple) else [given]
    for word in words:
        with suppress(QpnucleiError):  # a folder of slides, say
            yield find_project_file(Path(word))


def _like(incomplete: str, names: list[str]) -> list[str]:
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]
