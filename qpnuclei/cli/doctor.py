"""``qpnuclei doctor``: check the installation and a project."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.cli.options import BackendOption, ImageRoot, Json


def doctor(
    project: Annotated[
        Path | None,
        typer.Argument(help="Also check every image of this QuPath project.", show_default=False),
    ] = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    json: Json = False,
) -> None:
    """Check Python, torch, device, model and QuPath, and each image of a project.

    Exits with 1 if anything that a run needs is broken.
    """
    from qpnuclei.cli.console import print_json
    from qpnuclei.cli.tables import print_check
    from qpnuclei.doctor import Status, check_installation, check_project
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.project_file import find_project_file

    if project is not None:
        find_project_file(project)
    checks = check_installation()
    if not json:  # what is broken may be why the project cannot be opened
        for check in checks:
            print_check(check)
    if project is not None:
        opened = open_project(project, backend=backend, image_root=image_root)
        of_project = check_project(opened)
        checks += of_project
        if not json:
            for check in of_project:
                print_check(check)
    if json:
        print_json([{**asdict(check), "status": check.status.name.lower()} for check in checks])
    if any(check.status is Status.BAD for check in checks):
        sys.exit(1)
