"""``qpnuclei export``: nuclei counts per annotation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qpnuclei.choices import Grouping
from qpnuclei.cli.options import (
    BackendOption,
    ImageGlobs,
    ImageRoot,
    Json,
    MppTable,
    ProjectMppOption,
    ProjectPath,
)

if TYPE_CHECKING:
    from qpnuclei.errors import QpnucleiError
    from qpnuclei.qupath.model import ImageEntry


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
        Grouping, typer.Option("--by", help="One row per annotation, class or image.")
    ] = "annotation",
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
            help="Class of the detections that count as nuclei, from any program and also where "
            "qpnuclei did not analyse; may repeat.",
            show_default="detections by qpnuclei, and class Nucleus",
        ),
    ] = None,
    image: ImageGlobs = None,
    mpp: ProjectMppOption = None,
    mpp_table: MppTable = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    json: Json = False,
) -> None:
    """Write the number of nuclei per annotation, with area, density and measurements.

    A nucleus counts for every annotation and TMA core that contains its centroid, as in QuPath.
    Those that no run has analysed have the status "not analysed" and no counts.

    For example: qpnuclei export project.qpproj -o counts.csv
    """
    from qpnuclei.cli.console import describe_error, print_error, print_json, stderr
    from qpnuclei.qupath.analysed import Status
    from qpnuclei.qupath.count_table import check_table_name, write_counts
    from qpnuclei.qupath.counts import count_project
    from qpnuclei.qupath.pixel_size import AskedMpp, read_mpp_table
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.regions import match_images

    check_table_name(output)
    opened = open_project(project, backend=backend, image_root=image_root)
    entries = match_images(opened, tuple(image or ()))
    by_image = {} if mpp_table is None else read_mpp_table(mpp_table, opened.images)
    failures: list[dict[str, str]] = []

    def failed(entry: ImageEntry, error: QpnucleiError) -> None:
        failures.append(describe_error(error, entry))
        print_error(error, "" if entry.name in error.what else f"image {entry.name}: ")

    rows = count_project(
        opened,
        entries,
        by,
        roi_classes=roi,
        nucleus_classes=class_name,
        pixel_sizes=AskedMpp(mpp, not image and len(entries) > 1, by_image),
        failed=failed,
    )
    written = len(failures) < len(entries)
    if written:
        write_counts(rows, output)
    if json:
        print_json({"table": str(output) if written else None, "rows": rows, "failures": failures})
    if not written:
        sys.exit(1)
    hint = "" if rows else " (no annotations; --by image counts the analysed area of each image)"
    stderr.print(f"{output}: {len(rows)} rows{hint}", highlight=False, soft_wrap=True)
    missing = sum(row["status"] == Status.NOT_ANALYSED for row in rows)
    if missing and not class_name:
        stderr.print(
            f"{missing} of them were not analysed and have no counts: run qpnuclei run, or count "
            "existing detections with --class Nucleus",
            highlight=False,
            soft_wrap=True,
        )
    doubtful = sum(row["check"] is not None for row in rows)
    if doubtful:
        stderr.print(
            f"{doubtful} of them are doubtful: the column check gives the reason",
            highlight=False,
            soft_wrap=True,
        )
    if failures:
        without = f"without {len(failures)} of {len(entries)} images, which could not be counted"
        stderr.print(f"{output}: {without}", highlight=False, soft_wrap=True)
        sys.exit(1)
