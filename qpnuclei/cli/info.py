"""``qpnuclei info``: what a project holds."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from qpnuclei.cli.options import Backend, BackendOption, ImageRoot, ProjectPath


def info(
    project: ProjectPath,
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    image_root: ImageRoot = None,
    backend: BackendOption = Backend.AUTO,
) -> None:
    """Show a project's images, pixel sizes, annotations and detections by class.

    Exits with 1 if the objects of an image cannot be read; the others are shown.
    """
    import orjson

    from qpnuclei.cli.console import stdout
    from qpnuclei.cli.tables import info_table
    from qpnuclei.qupath.inventory import describe_project
    from qpnuclei.qupath.project import open_project

    content = describe_project(open_project(project, backend=backend.value, image_root=image_root))
    if json:
        typer.echo(orjson.dumps(content, option=orjson.OPT_INDENT_2).decode())
    else:
        stdout.print(info_table(content), soft_wrap=True)
    if any("error" in image for image in content["images"]):
        sys.exit(1)
