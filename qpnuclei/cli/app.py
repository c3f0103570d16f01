"""The ``qpnuclei`` command: its subcommands and error messages."""

from __future__ import annotations

import errno
import io
import logging
import os
import sys
from typing import Annotated, Any

import typer

from qpnuclei._version import __version__
from qpnuclei.choices import LogLevel
from qpnuclei.cli.command import Group, Lazy
from qpnuclei.cli.completing import join_bash_words
from qpnuclei.errors import QpnucleiError, SaveError, UsageError

#: The commands in the order of the help. A module is imported only when its command is called.
_COMMANDS = {
    "run": "qpnuclei.cli.run:run",
    "qc": "qpnuclei.cli.qc:qc",
    "plan": "qpnuclei.cli.phases:plan",
    "infer": "qpnuclei.cli.phases:infer",
    "commit": "qpnuclei.cli.phases:commit",
    "preview": "qpnuclei.cli.preview:preview",
    "export": "qpnuclei.cli.export:export",
    "report": "qpnuclei.cli.report:report",
    "filter": "qpnuclei.cli.filter:filter_nuclei",
    "info": "qpnuclei.cli.info:info",
    "train": "qpnuclei.cli.train:train",
    "adapt": "qpnuclei.cli.adapt:adapt",
    "evaluate": "qpnuclei.cli.evaluate:evaluate",
    "demo": "qpnuclei.cli.demo:demo",
    "doctor": "qpnuclei.cli.doctor:doctor",
    "geojson": "qpnuclei.cli.geojson:geojson_app",
    "project": "qpnuclei.cli.project:project_app",
    "qupath": "qpnuclei.cli.qupath:qupath_app",
}


class _AllCommands(Group):
    """The group of all commands."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{**options, "commands": Lazy(_COMMANDS)})


app = typer.Typer(
    name="qpnuclei",
    cls=_AllCommands,
    help="Nuclei in whole-slide images without labels: headless detection for QuPath projects.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"qpnuclei {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[  # noqa: ARG001 - its callback does the work
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
    log_level: Annotated[
        LogLevel | None,
        typer.Option(
            "--log-level",
            help="Level of the messages printed to standard error.",
            show_default="info",
        ),
    ] = None,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print every step (--log-level debug).")
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option("--quiet", "-q", help="Print only warnings and errors (--log-level warning)."),
    ] = False,
) -> None:
    if (log_level is not None) + verbose + quiet > 1:
        raise UsageError("--log-level, --verbose and --quiet exclude each other", "give only one")
    level = log_level or ("debug" if verbose else "warning" if quiet else "info")
    from qpnuclei.cli.console import LineHandler

    logging.basicConfig(handlers=[LineHandler()], level=logging.WARNING)
    logging.getLogger("qpnuclei").setLevel(level.upper())
    verbose = level == "debug"
    # Many of QuPath's warnings are only for its developers.
    logging.getLogger("qupath").setLevel(logging.INFO if verbose else logging.ERROR)
    # The reader reports problems of a file that matter; tifffile's warnings add nothing.
    logging.getLogger("tifffile").setLevel(logging.INFO if verbose else logging.CRITICAL)


def main() -> None:
    """Run the command line; exit with 2 for a usage error, 1 for a failure, 130 for Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names may hold undecodable bytes
            stream.reconfigure(errors="backslashreplace")
    join_bash_words()
    try:
        try:
            # As `python -m qpnuclei`, too: scripts for shell completion contain the name.
            app(prog_name="qpnuclei")
        finally:
            if sys.stdout is not None:
                # If Python's own flush at exit failed, it would print a traceback.
                sys.stdout.flush()
    except QpnucleiError as error:
        from qpnuclei.cli.console import print_error

        print_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.filename is not None and error.errno in (errno.ENAMETOOLONG, errno.EACCES):
            from qpnuclei.cli.console import print_error

            what = f"{error.filename} cannot be read: {error.strerror}"
            print_error(QpnucleiError(what, "check the path, and the permissions of its folders"))
            sys.exit(1)
        # Errors of output streams name no file; other errors are not handled here.
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or error.filename is not None:
            raise
        from qpnuclei.cli.console import print_error

        hint = "free space on the disk of standard output and temporary files"
        print_error(SaveError(f"output cannot be written: {error.strerror}", hint))
        # What is still buffered cannot be written either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
