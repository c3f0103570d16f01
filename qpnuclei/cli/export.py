"""``qpnuclei export``: nuclei counts per annotation."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from qpnuclei.cli.options import Backend, BackendOption, ImageGlobs, ImageRoot, ProjectPath


class GroupBy(StrEnum):
    """What a row of the table stands for."""

    ANNOTATION = "annotation"
    CLASS = "class"
    IMAGE = "image"


def export(
    project: ProjectPath,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="Table to write; the suffix chooses: .csv, .tsv, .json or .parquet.",
            show_default=False,
        ),
    ],
    by: Annotated[
        GroupBy, typer.Option("--by", help="One row per annotation, class or image.")
    ] = GroupBy.ANNOTATION,
    roi: Annotated[
        list[str] | None,
        typer.Option(
            "--roi", help="Only annotations of this class; may repeat.", show_default="all"
        ),
    ] = None,
    class_name: Annotated[
        list[str] | None,
        typer.Option(
            "--class",
            help="Count only detections of this class as nuclei; may repeat.",
            show_default="all detections, as QuPath's Num Detections",
        ),
    ] = None,
    image: ImageGlobs = None,
    image_root: ImageRoot = None,
    backend: BackendOption = Backend.AUTO,
) -> None:
    """Write the number of nuclei per annotation, with area, density and measurements.

    A nucleus counts for every annotation that its centroid lies in, as in QuPath.

    For example: qpnuclei export project.qpproj -o counts.csv
    """
