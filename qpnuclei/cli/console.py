"""Console output: results to standard output, everything else to standard error.

Names of files, images and classes are untrusted. So printed text is never interpreted as markup,
and control characters that could affect the terminal or the text direction are escaped.
"""

from __future__ import annotations

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from qpnuclei.errors import QpnucleiError, number_of, standing_alone
from qpnuclei.system.commands import as_typed
from qpnuclei.system.one_line import STEERING, OneLineFormatter, in_one_line, visible

if TYPE_CHECKING:
    from pathlib import Path

    from rich.progress import Progress, TaskID

    from qpnuclei.qupath.model import ImageEntry

#: Outside of terminals, progress is printed as a line at this interval.
_LINE_EVERY_S = 60.0

#: A list in a message names at most so many; the rest is a number.
MOST_LISTED = 10

#: Wider than any table, so that tables in files and pipes are not truncated.
_UNCUT = 100_000


class PlainConsole(Console):
    """A console without markup and control characters, with full-width tables in pipes.

    A ``str`` is printed as one line, also in the cell of a table. A `Text` may have more lines: its
    caller must pass names through `in_one_line`.
    """

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

    def print(self, *objects: Any, **options: Any) -> None:
        """Print objects, each ``str`` in one line. Text is never wrapped, unlike tables."""
        options.setdefault("soft_wrap", all(isinstance(o, str | Text) for o in objects))
        super().print(*objects, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return any ``str`` that is printed, also in a table, as text of one line."""
        return super().render_str(in_one_line(text), **options)

    def render(
        self, renderable: RenderableType, options: ConsoleOptions | None = None
    ) -> Iterator[Segment]:
        """Yield the printed segments, made `visible`."""
        for segment in super().render(renderable, options):
            if segment.control:
                yield segment
            else:
                yield Segment(visible(segment.text), segment.style)


class LineHandler(logging.Handler):
    """Log messages to standard error: level and message, in one line."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(OneLineFormatter())

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message, and the traceback of an error that is logged with one."""
        try:
            level = (f"{record.levelname:8}", f"logging.level.{record.levelname.lower()}")
            stderr.print(Text.assemble(level, " ", self.format(record)))
        except Exception:  # noqa: BLE001 - as in every handler: logging must not end a program
            self.handleError(record)


stdout = PlainConsole()
stderr = PlainConsole(stderr=True)


def print_status(line: str) -> None:
    """Print a line about what is done or was written to standard error, unless ``--quiet``."""
    if shows_status():
        stderr.print(line)


def print_warning(line: str, style: str | None = None) -> None:
    """Print a doubt, or what is missing, to standard error; ``--log-level error`` omits it."""
    if _least_level() <= logging.WARNING:
        stderr.print(line, style=style)


def shows_status() -> bool:
    """Return whether status lines and progress are shown: not with ``--quiet``."""
    return _least_level() <= logging.INFO


def _least_level() -> int:
    # Not the effective level: where no command has set one, nothing is left out.
    return logging.getLogger("qpnuclei").level


def print_json(content: Any) -> None:
    """Print one JSON document to standard output, with control characters escaped."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, default=str)
    # In JSON, all of these except line ends can occur only within strings.
    escaped = STEERING.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
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
    stderr.print(Text.assemble(("error: ", "bold red"), in_one_line(prefix + error.what)))
    if error.hint:
        stderr.print(Text.assemble(("hint: ", "bold"), in_one_line(error.hint)))


def add_failure(failures: list[dict[str, Any]], entry: ImageEntry, error: QpnucleiError) -> None:
    """Print the error of an image, and add it to `failures` as JSON types."""
    failures.append(
        {"image": entry.name, "image_id": entry.id, "error": error.what, "hint": error.hint}
    )
    print_error(error, error.naming("image", entry.name))


def image_alone(entry: ImageEntry, failures: list[dict[str, Any]]) -> standing_alone:
    """Return a context that prints the error of an image, and adds it to `failures`."""
    return standing_alone(f"image {entry.name}", partial(add_failure, failures, entry))


def add_slide_failure(failures: list[dict[str, Any]], slide: Path, error: QpnucleiError) -> None:
    """Print the error of a slide, and add it to `failures` as JSON types."""
    failures.append({"slide": str(slide), "error": error.what, "hint": error.hint})
    print_error(error, error.naming("", str(slide)))


def this_command(*more: str) -> str:
    """Return the current command with arguments added, as the user would type it."""
    return as_typed(["qpnuclei", *sys.argv[1:], *(word for word in more if word not in sys.argv)])


def print_some(what: str, reasons: Sequence[str]) -> None:
    """Print the first reasons as warnings, and how many more there are."""
    for reason in reasons[:MOST_LISTED]:
        print_warning(f"{what}: {reason}")
    if len(reasons) > MOST_LISTED:
        print_warning(f"{what}: {len(reasons) - MOST_LISTED} more")


def progress_bar(quiet: bool, long_notes: bool = False) -> Progress:
    """Return a progress bar on standard error with a note, the time and the remaining time.

    It is not shown if `quiet`, or if status lines are not. With `long_notes`, the bar is shorter
    and has no times.
    """
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=20 if long_notes else 40),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        *(() if long_notes else (TimeElapsedColumn(), TimeRemainingColumn())),
    )
    return Progress(*columns, console=stderr, disable=quiet or not shows_status())


@contextmanager
def tile_progress(quiet: bool) -> Iterator[Callable[[str, int, int, int], None]]:
    """Show a progress bar of tiles per image, with nuclei so far and remaining time.

    If standard error is not a terminal, print a line every minute instead. Tiles extend beyond the
    annotations, so the run keeps fewer nuclei than are counted here.

    Yields
    ------
    callable
        A `qpnuclei.pipeline.inference.units.Progress`.
    """
    if not (quiet or stderr.is_terminal):
        yield LinePerMinute()
        return
    with progress_bar(quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(image: str, done: int, tiles: int, nuclei: int) -> None:
            if image not in tasks:
                tasks[image] = bar.add_task(in_one_line(image), total=tiles, note="")
            note = f"tiles, up to {number_of(nuclei, 'nucleus')}"
            bar.update(tasks[image], completed=done, total=tiles, note=note)

        yield progress


@contextmanager
def image_progress(what: str, images: int, quiet: bool) -> Iterator[Callable[[int, str], None]]:
    """Show a progress bar of images if standard error is a terminal.

    Yields
    ------
    callable
        Called as ``progress(images done, image that is next)``.
    """
    with progress_bar(quiet or not stderr.is_terminal) as bar:
        task = bar.add_task(what, total=images, note="")
        yield lambda done, image: bar.update(task, completed=done, note=in_one_line(image))


class LinePerMinute:
    """Progress for log files: a line for each minute, and one when an image's tiles are done.

    Parameters
    ----------
    now : callable
        Returns the time in seconds.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        #: When each image started. Several devices may compute two images at once.
        self._starts: dict[str, float] = {}
        self._last = self._last_line = now()

    def __call__(self, image: str, done: int, tiles: int, nuclei: int) -> None:
        """Tell that a tile is done; see `tile_progress`."""
        now = self._now()
        # The first tile of an image starts when the last tile before it is done.
        start = self._starts.setdefault(image, self._last)
        self._last = now
        if done < tiles and now - self._last_line < _LINE_EVERY_S:
            return
        self._last_line = now
        left = (now - start) / done * (tiles - done)
        rest = f", {in_words(left)} left" if done < tiles else ""
        found = number_of(nuclei, "nucleus")
        line = f"{image}: {done} of {number_of(tiles, 'tile')}, up to {found}{rest}"
        print_status(line)


def in_words(seconds: float) -> str:
    """Return a duration in words: ``"about 3 h 20 min"``."""
    minutes = max(1, round(seconds / 60))
    hours, rest = divmod(minutes, 60)
    return f"about {hours} h {rest} min" if hours else f"about {minutes} min"
