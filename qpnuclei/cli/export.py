"""``qpnuclei export``: nuclei counts per annotation."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpnuclei.cli.options import Backend, BackendOption, ImageGlobs, ImageRoot, ProjectPath

if TYPE_CHECKING:
    from qpnuclei.errors import QpnucleiError
    from qpnuclei.qupath.model import ImageEntry


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
            help="Class of the detections that count as nuclei; may repeat.",
            show_default="what qpnuclei wrote, and Nucleus",
        ),
    ] = None,
    image: ImageGlobs = None,
    mpp: Annotated[
        float | None,
        typer.Option(
            "--mpp",
            min=0.05,
            max=2.5,
            help="Pixel size in µm/px, for areas of images that the project has none for.",
            show_default="from the project",
        ),
    ] = None,
    image_root: ImageRoot = None,
    backend: BackendOption = Backend.AUTO,
) -> None:
    """Write the number of nuclei per annotation, with area, density and measurements.

    A nucleus counts for every annotation that its centroid lies in, as in QuPath.

    For example: qpnuclei export project.qpproj -o counts.csv
    """
    from qpnuclei.cli.console import print_error, stderr
    from qpnuclei.qupath.counts import count_project, write_table
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.regions import match_images

    opened = open_project(project, backend=backend.value, image_root=image_root)
    images = match_images(opened, tuple(image or ()))
    failures: list[QpnucleiError] = []

    def failed(entry: ImageEntry, error: QpnucleiError) -> None:
        failures.append(error)
        print_error(error, "" if entry.name in error.what else f"image {entry.name}: ")

    rows = count_project(
        opened,
        images,
        by.value,
        roi_classes=roi,
        nucleus_classes=class_name,
        mpp=mpp,
        failed=failed,
    )
    if len(failures) == len(images):
        sys.exit(1)
    write_table(rows, output)
    # Nuclei of run --tissue lie under the image.
    hint = "" if rows else " (no annotations; --by image counts whole images)"
    stderr.print(f"{output}: {len(rows)} rows{hint}", highlight=False, soft_wrap=True)
    if failures:
        missing = f"without {len(failures)} of {len(images)} images, which could not be counted"
        stderr.print(f"{output}: {missing}", highlight=False, soft_wrap=True)
        sys.exit(1)
