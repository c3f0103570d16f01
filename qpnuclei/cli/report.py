"""``qpnuclei report``: a page with the results of a project or a run."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from qpnuclei.cli.options import (
    BackendOption,
    ImageGlobs,
    ImageRoot,
    Json,
    MppTable,
    ProjectMppOption,
    Quiet,
    class_option,
)


def report(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="PROJECT|RUN_DIR",
            help="QuPath project (the .qpproj file or its folder), or the folder of a run: then "
            "only its images.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE.html",
            help="Page to write. With more than 20 images it is an index, and each image has a "
            "page in a folder beside it.",
            show_default="report.html in RUN_DIR, or in PROJECT/qpnuclei",
        ),
    ] = None,
    class_name: Annotated[
        list[str] | None,
        class_option(
            "--class",
            help="Class of the detections that count as nuclei, as for export; may repeat.",
            show_default="detections by qpnuclei, and class Nucleus; in images without a run, all "
            "detections",
        ),
    ] = None,
    image: ImageGlobs = None,
    mpp: ProjectMppOption = None,
    mpp_table: MppTable = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Write a page with pictures and numbers: where the nuclei are, and which results are doubtful.

    The page needs no network connection. Each run of a project writes one into its folder, and a
    run of slides one into its folder of results.

    For example: qpnuclei report project.qpproj -o report.html
    """
    from qpnuclei.cli.console import add_failure, image_progress, print_json, print_status
    from qpnuclei.qupath.image_names import match_images
    from qpnuclei.qupath.pixel_size import asked_mpp
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.project_file import OWN_FOLDER
    from qpnuclei.report.page import PAGE, ReportOptions, check_page, write_report
    from qpnuclei.report.runs import (
        images_of,
        is_run_folder,
        project_of,
        read_run,
        runs_of,
        with_others,
    )

    if output is not None:
        check_page(output)
    run = read_run(source) if is_run_folder(source) else None
    opened = open_project(
        source if run is None else project_of(run), backend=backend, image_root=image_root
    )
    entries = match_images(opened, tuple(image or ()))
    if run is None:
        runs = runs_of(opened.path.parent)
        path = output or opened.path.parent / OWN_FOLDER / PAGE
    else:
        runs = with_others(run, opened.path.parent)
        entries = images_of(run, entries)
        path = output or run.path.with_name(PAGE)
    options = ReportOptions(
        None if class_name is None else tuple(class_name),
        asked_mpp(mpp, mpp_table, opened, entries, image),
    )
    with image_progress("report", len(entries), quiet) as progress:
        failed = write_report(opened, entries, path, runs, options, progress)
    print_status(f"report: {path}")
    failures: list[dict[str, Any]] = []
    for entry, error in failed:
        add_failure(failures, entry, error)
    if json:
        print_json({"report": str(path), "images": len(entries), "failures": failures})
    if failures:
        sys.exit(1)
