"""Where the commands print: results to standard output, everything else to standard error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from qpnuclei.errors import QpnucleiError

stdout = Console()
stderr = Console(stderr=True)


def print_error(error: QpnucleiError, prefix: str = "") -> None:
    """Print what went wrong in one line, and what to do about it in another."""
    stderr.print(
        f"[bold red]error:[/] {escape(prefix + error.what)}", highlight=False, soft_wrap=True
    )
    if error.hint:
        stderr.print(f"[bold]hint:[/] {escape(error.hint)}", highlight=False, soft_wrap=True)


def progress_bar(quiet: bool = False) -> Progress:
    """Return a bar on standard error of how many items are done, with a note and the time left."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=stderr, disable=quiet)


@contextmanager
def tile_progress(quiet: bool = False) -> Iterator[Callable[[str, int, int, int], None]]:
    """Show a bar of tiles per image, with the nuclei so far and the time left.

    Where standard error is no terminal (a file, another program) each twentieth of an image is a
    line instead.

    Yields
    ------
    callable
        To be called as ``progress(image name, tiles done, tiles in all, nuclei so far)``.
    """
    if not (quiet or stderr.is_terminal):
        yield _print_twentieths
        return
    with progress_bar(quiet) as bar:
        tasks: dict[str, TaskID] = {}

        def progress(image: str, done: int, tiles: int, nuclei: int) -> None:
            if image not in tasks:
                tasks[image] = bar.add_task(escape(image), total=tiles, note="")
            bar.update(tasks[image], completed=done, total=tiles, note=f"tiles, {nuclei} nuclei")

        yield progress


def _print_twentieths(image: str, done: int, tiles: int, nuclei: int) -> None:
    if done * 20 // tiles > (done - 1) * 20 // tiles:
        line = f"{escape(image)}: {done} of {tiles} tiles, {nuclei} nuclei"
        stderr.print(line, highlight=False, soft_wrap=True)
