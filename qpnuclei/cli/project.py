"""``qpnuclei project``: make QuPath projects without QuPath."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.cli.options import MppOption

project_app = typer.Typer(
    help="Make QuPath projects without QuPath.",
    no_args_is_help=True,
)


@project_app.callback()
def _project() -> None:
    pass


@project_app.command()
def create(
    directory: Annotated[Path, typer.Argument(help="Folder of the new project; made if missing.")],
    slides: Annotated[list[Path], typer.Argument(help="Slide files to add, in this order.")],
    mpp: MppOption = None,
) -> None:
    """Make a new project of Brightfield (H&E) images that QuPath opens.

    For example: qpnuclei project create my-project slides/*.svs
    """
    from qpnuclei.cli.console import stdout
    from qpnuclei.new_project import create_from_slides

    project = create_from_slides(directory, slides, mpp)
    stdout.print(f"{project.path}: {len(project.images)} images", highlight=False, soft_wrap=True)
    for entry in project.images:
        if entry.calibration.mpp is None:
            stdout.print(
                f"{entry.name} has no pixel size: set it in QuPath, or pass --mpp to run",
                highlight=False,
                soft_wrap=True,
            )
