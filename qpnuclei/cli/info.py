"""``qpnuclei info``: show the content of a project."""

from __future__ import annotations

import sys

from qpnuclei.cli.options import BackendOption, ImageRoot, Json, ProjectPath


def info(
    project: ProjectPath,
    json: Json = False,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
) -> None:
    """Show a project's images, pixel sizes, annotations and detections by class.

    Exits with 1 if the objects of an image cannot be read; the others are shown.
    """
    from qpnuclei.cli.console import print_json, stdout
    from qpnuclei.cli.tables import info_table
    from qpnuclei.qupath.inventory import describe_project
    from qpnuclei.qupath.project import open_project

    content = describe_project(open_project(project, backend=backend, image_root=image_root))
    if json:
        print_json(content)
    else:
        stdout.print(info_table(content), soft_wrap=True)
    if any("error" in image for image in content["images"]):
        sys.exit(1)
