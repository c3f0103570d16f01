"""Console output: results to standard output, everything else to standard error.

Names of files, images and classes are untrusted. So printed text is never interpreted as markup,
and control characters that could affect the terminal or the text direction are escaped.
"""

from __future__ import annotations

import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from logging import LogRecord
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.text import Text
from rich.traceback import Traceback

from qpnuclei.errors import QpnucleiError

if TYPE_CHECKING:
    from qpnuclei.qupath.model import ImageEntry

#: Control characters (C0 except line feed, DEL, C1) and those that change the text direction.
_STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

#: Wider than any table, so that tables in files and pipes are not truncated.
_UNCUT = 100_000


def visible(text: str) -> str:
    """Return text with control characters escaped as in Python."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class PlainConsole(Console):
    """A console without markup and control characters, with full-width tables in pipes."""

    def __init__(self, *, stderr: bool = False) -> None:
        stream = sys.stderr if stderr else sys.stdout
        cut = "COLUMNS" in os.environ or (stream is not None and stream.isatty())
        super().__init__(
            stderr=stderr,
            width=None if cut else _UNCUT,
            markup=False,
            highlight=False,
            emoji=False,
        )

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the printed segments, made `visible`."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


class LineHandler(RichHandler):
    """Log messages of one line each: those of the base class are as wide as the console."""

    def render(
        self,
        *,
        record: LogRecord,
        traceback: Traceback | None,  # noqa: ARG002 - the base class passes it
        message_renderable: ConsoleRenderable,
    ) -> ConsoleRenderable:
        """Return the level and the message."""
        assert isinstance(message_renderable, Text)
        return Text.assemble(self.get_level_text(record), " ", message_renderable)


stdout = PlainConsole()
stderr = PlainConsole(stderr=True)


def print_json(content: Any) -> None:
    """Print one JSON document to standard output, with control characters escaped."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, default=str)
    # In JSON, all of these except line ends can occur only within strings.
    escaped = _STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    print(escaped, file=sys.stdout)  # noqa: T201 - as it is, not wrapped


def _finite(content: Any) -> Any:
    """Replace NaN and infinities, which JSON does not have, with null."""
    if isinstance(content, dict):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content


def print_error(error: QpnucleiError, prefix: str = "") -> None:
    """Print the error in one line, and the hint in another."""
    stderr.print(Text.assemble(("error: ", "bold red"), prefix + error.what), soft_wrap=True)
    if error.hint:
        stderr.print(Text.assemble(("hint: ", "bold"), error.hint), soft_wrap=True)


def describe_error(error: QpnucleiError, entry: ImageEntry) -> dict[str, str]:
    """Return the error of an image as JSON types."""
    return {"image": entry.name, "image_id": entry.id, "error": error.what, "hint": error.hint}


def this_command(*more: str) -> str:
    """Return the current command with arguments added, as the user would type it."""
    words = ["qpnuclei", *sys.argv[1:], *(word for word in more if word not in sys.argv)]
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def progress_bar(quiet: bool = False) -> Progress:
    """Return a progress bar on standard error with a note and the remaining time."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, disable=quiet)


@contextmanager
def tile_progress(quiet: bool = False) -> Iterator[Callable[[str, int, int, int], None]]:
    """Show a progress bar of tiles per image, with nuclei so far and remaining time.

    If standard error is not a terminal, print a line for every 5 % of an image instead.
    Tiles reach beyond the annotations: the run keeps fewer nuclei than these.

    Yields
    ------
    callable
        Called as ``progress(image name, tiles done, tiles in all, nuclei so far)``.
    """
    if not (quiet or stderr.is_terminal):
        yield _print_twentieths
        return
    with progress_bar(quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(image: str, done: int, tiles: int, nuclei: int) -> None:
            if image not in tasks:
                tasks[image] = bar.add_task(image, total=tiles, note="")
            bar.update(
                tasks[image], completed=done, total=tiles, note=f"tiles, {nuclei} nuclei in them"
            )

        yield progress


@contextmanager
def image_progress(what: str, images: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar of images, unless standard error is no terminal.

    Yields
    ------
    callable
        Called as ``progress(images done, image that is next)``.
    """
    with progress_bar(quiet or not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=images, note="")
        yield lambda done, image: bar.update(task, completed=done, note=image)


def _print_twentieths(image: str, done: int, tiles: int, nuclei: int) -> None:
    if done * 20 // tiles > (done - 1) * 20 // tiles:
        line = f"{image}: {done} of {tiles} tiles, {nuclei} nuclei in them"
        stderr.print(line, soft_wrap=True)
