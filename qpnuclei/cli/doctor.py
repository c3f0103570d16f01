"""``qpnuclei doctor``: is everything in place?"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.cli.options import Backend, BackendOption, ImageRoot


def doctor(
    project: Annotated[
        Path | None,
        typer.Argument(help="Also check every image of this QuPath project.", show_default=False),
    ] = None,
    image_root: ImageRoot = None,
    backend: BackendOption = Backend.AUTO,
) -> None:
    """Check Python, torch, device, model and QuPath, and each image of a project.

    Exits with 1 if anything that a run needs is broken.
    """
    from rich.markup import escape

    from qpnuclei.cli.console import stdout
    from qpnuclei.doctor import Status, check_installation, check_project
    from qpnuclei.qupath.project import open_project

    checks = check_installation()
    if project is not None:
        opened = open_project(project, backend=backend.value, image_root=image_root)
        checks += check_project(opened)
    marks = {
        Status.OK: "[green]ok  [/]",
        Status.NOTE: "[yellow]note[/]",
        Status.BAD: "[red]BAD [/]",
    }
    for check in checks:
        line = f"{marks[check.status]} {escape(check.name)}: {escape(check.found)}"
        stdout.print(line, highlight=False, soft_wrap=True)
        if check.remedy:
            stdout.print(f"     → {escape(check.remedy)}", highlight=False, soft_wrap=True)
    if any(check.status is Status.BAD for check in checks):
        sys.exit(1)
