"""``qpnuclei qupath``: add the scripts to QuPath's menu, and remove them again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpnuclei.cli.command import Command, Group
from qpnuclei.cli.options import Json

if TYPE_CHECKING:
    from qpnuclei.qupath.scripts import Change

qupath_app = typer.Typer(
    name="qupath",
    add_completion=False,
    cls=Group,
    help="Add a menu to QuPath that runs qpnuclei, or remove it.",
    no_args_is_help=True,
)

_To = Annotated[
    Path | None,
    typer.Option(
        "--to",
        help="QuPath's user folder (in QuPath: Edit > Preferences > QuPath user directory).",
        show_default="each QuPath/v* in the home folder, of QuPath 0.4 and later",
    ),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="Change nothing; say what would be done.")]


@qupath_app.callback()
def _qupath() -> None:
    pass


@qupath_app.command(cls=Command)
def install(
    to: _To = None,
    dry_run: _DryRun = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="Replace scripts that were changed or that qpnuclei did not write."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Copy the scripts into QuPath: they appear under Automate > User scripts > qpnuclei.

    To update them, run it again. Existing settings are kept.

    For example: qpnuclei qupath install
    """
    from qpnuclei.cli.console import print_warning
    from qpnuclei.qupath.scripts import install, program_here

    def act(folder: Path) -> Change:
        return install(folder, force=force, write=not dry_run)

    _in_each(to, act, dry_run=dry_run, json=json)
    if program_here() is None:
        print_warning("the path of the program qpnuclei is unknown: set it in QuPath")


@qupath_app.command(cls=Command)
def uninstall(
    to: _To = None,
    dry_run: _DryRun = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also remove scripts that were changed.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove the scripts and their settings from QuPath.

    For example: qpnuclei qupath uninstall
    """
    from qpnuclei.qupath.scripts import uninstall

    def act(folder: Path) -> Change:
        return uninstall(folder, force=force, write=not dry_run)

    _in_each(to, act, dry_run=dry_run, json=json)


def _in_each(to: Path | None, act: Callable[[Path], Change], *, dry_run: bool, json: bool) -> None:
    """Act in the given folder, or in all user folders of QuPath."""
    from qpnuclei.cli.console import print_json, stdout
    from qpnuclei.errors import NotFoundError
    from qpnuclei.qupath.scripts import user_folders

    folders = [to] if to is not None else user_folders()
    if not folders:
        raise NotFoundError(
            "no user folder of QuPath was found in the home folder",
            "name it with --to: see Edit > Preferences > QuPath user directory in QuPath",
        )
    done = [act(folder) for folder in folders]
    if json:
        print_json(
            [{"folder": str(d.folder), "written": d.written, "removed": d.removed} for d in done]
        )
        return
    would = "would be " if dry_run else ""
    for change in done:
        parts = [
            f"{would}{verb}: {', '.join(names)}"
            for verb, names in (("written", change.written), ("removed", change.removed))
            if names
        ]
        text = f"{change.folder}: {'; '.join(parts) or 'nothing to do'}"
        stdout.print(text)
