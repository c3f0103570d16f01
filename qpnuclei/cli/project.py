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
    directory: Annotated[
        Path, typer.Argument(help="Folder of the new project; made if missing.")
    ],
    slides: Annotated[list[Path], typer.Argument(help="Slide files to add, in this order.")],
    mpp: MppOption = None,
) -> None:
    """Make a new project of Brightfield (H&E) images that QuPath opens.

    For example: qpnuclei project create my-project slides/*.svs
    """
