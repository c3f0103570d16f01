"""``qpnuclei export``: counts of nuclei, or the nuclei themselves."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qpnuclei.choices import DEFAULT_EXCLUDED, ExportedRow, Grouping, NucleusFormat
from qpnuclei.cli.options import (
    BackendOption,
    ImageGlobs,
    ImageRoot,
    Json,
    MppTable,
    ProjectMppOption,
    ProjectPath,
    class_option,
)
from qpnuclei.errors import UsageError, number_of

if TYPE_CHECKING:
    from qpnuclei.qupath.counts import Row
    from qpnuclei.qupath.model import ImageEntry, Project
    from qpnuclei.qupath.nucleus_files import WrittenNuclei
    from qpnuclei.qupath.pixel_size import AskedMpp


def export(
    project: ProjectPath,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="File to write; the suffix chooses. Counts: .csv, .tsv, .json, .parquet. "
            "Nuclei: .csv, .tsv, .parquet (GeoParquet), .h5ad (AnnData), .zarr (SpatialData), "
            ".geojson, .geojson.gz, or .ome.tif (label image; of several images, a folder).",
            show_default=False,
        ),
    ],
    by: Annotated[
        ExportedRow,
        typer.Option("--by", help="One row per annotation, class or image; or every nucleus."),
    ] = "annotation",
    kind: Annotated[
        NucleusFormat | None,
        typer.Option(
            "--format",
            help="Format of the nuclei, with --by nucleus.",
            show_default="from the suffix",
        ),
    ] = None,
    roi: Annotated[
        list[str] | None,
        class_option(
            "--roi",
            help="Only annotations of this class, not with --by image; may repeat.",
            show_default="all",
        ),
    ] = None,
    class_name: Annotated[
        list[str] | None,
        class_option(
            "--class",
            help="Class of the detections that count as nuclei, from any program, also in "
            "areas that qpnuclei did not analyse; may repeat.",
            show_default="detections by qpnuclei, and class Nucleus; with --by nucleus all "
            "detections and cells",
        ),
    ] = None,
    image: ImageGlobs = None,
    mpp: ProjectMppOption = None,
    mpp_table: MppTable = None,
    image_root: ImageRoot = None,
    backend: BackendOption = "auto",
    json: Json = False,
) -> None:
    """Write nuclei per annotation, with area, density and measurements; or every nucleus.

    A nucleus counts for every annotation and TMA core that contains its centroid, as in QuPath.
    Annotations and cores that no run has analysed have the status "not analysed" and no counts.

    For example: qpnuclei export project.qpproj -o counts.csv

    Every nucleus: qpnuclei export project.qpproj --by nucleus -o nuclei.parquet
    """
    from qpnuclei.qupath.image_names import match_images
    from qpnuclei.qupath.pixel_size import asked_mpp
    from qpnuclei.qupath.project import open_project
    from qpnuclei.qupath.targets import check_target

    _check_file(output, by, kind)
    opened = open_project(project, backend=backend, image_root=image_root)
    check_target(opened, output)
    entries = match_images(opened, tuple(image or ()))
    asked = _Asked(roi, class_name, asked_mpp(mpp, mpp_table, opened, entries, image))
    if by == "nucleus":
        is_complete = _export_nuclei(opened, entries, output, kind, asked, json)
    else:
        is_complete = _export_counts(opened, entries, output, by, asked, json)
    if not is_complete:
        sys.exit(1)


@dataclass(frozen=True)
class _Asked:
    """What of the images is exported."""

    roi_classes: list[str] | None
    nucleus_classes: list[str] | None
    pixel_sizes: AskedMpp


def _check_file(output: Path, by: ExportedRow, kind: NucleusFormat | None) -> None:
    """Refuse a file whose format is unknown, or not one for these rows."""
    if by == "nucleus":
        from qpnuclei.qupath.nucleus_files import format_of

        format_of(output, kind)
    elif kind is not None:
        raise UsageError("--format is only for --by nucleus", "add --by nucleus, or leave it out")
    else:
        from qpnuclei.qupath.count_table import check_table

        check_table(output)


def _export_nuclei(
    project: Project,
    entries: Sequence[ImageEntry],
    output: Path,
    kind: NucleusFormat | None,
    asked: _Asked,
    json: bool,
) -> bool:
    """Write the nuclei; return whether all of them could be written."""
    from qpnuclei.cli.console import add_failure
    from qpnuclei.qupath.nucleus_files import write_nuclei_of

    failures: list[dict[str, Any]] = []
    done = write_nuclei_of(
        project,
        entries,
        output,
        kind,
        roi_classes=asked.roi_classes,
        nucleus_classes=asked.nucleus_classes,
        pixel_sizes=asked.pixel_sizes,
        failed=partial(add_failure, failures),
    )
    is_limited = bool(asked.roi_classes or asked.nucleus_classes)
    _print_nuclei(done, entries, failures, json, is_limited=is_limited)
    return not (failures or done.left_out)


def _export_counts(
    project: Project,
    entries: Sequence[ImageEntry],
    output: Path,
    by: Grouping,
    asked: _Asked,
    json: bool,
) -> bool:
    """Write the counts; return whether all images could be counted."""
    from qpnuclei.cli.console import add_failure, print_json, print_status, print_warning
    from qpnuclei.cli.tables import print_without_row
    from qpnuclei.qupath.count_table import write_counts
    from qpnuclei.qupath.project_counts import count_project, without_row

    failures: list[dict[str, Any]] = []
    rows = count_project(
        project,
        entries,
        by,
        roi_classes=asked.roi_classes,
        nucleus_classes=asked.nucleus_classes,
        pixel_sizes=asked.pixel_sizes,
        failed=partial(add_failure, failures),
    )
    written = len(failures) < len(entries)
    if written:
        write_counts(rows, output)
    empty = without_row(entries, rows, {failure["image_id"] for failure in failures})
    if json:
        print_json(
            {
                "table": str(output) if written else None,
                "rows": rows,
                "failures": failures,
                "without_annotations": [{"image": e.name, "image_id": e.id} for e in empty],
            }
        )
    if not written:
        return False
    print_status(f"{output}: {number_of(len(rows), 'row')}")
    print_without_row(empty, len(entries), asked.roi_classes)
    if not asked.nucleus_classes:
        _print_uncounted(rows)
    doubtful = sum(row["check"] is not None for row in rows)
    if doubtful:
        print_warning(f"doubtful: {doubtful} of them; the column check gives the reason")
    if failures:
        of = number_of(len(entries), "image")
        without = f"without {len(failures)} of {of}, which could not be counted"
        print_warning(f"{output}: {without}")
    return not failures


def _print_uncounted(rows: Sequence[Row]) -> None:
    """Print how many rows have no counts, and why."""
    from qpnuclei.cli.console import print_status, print_warning
    from qpnuclei.pipeline.selection import is_excluded
    from qpnuclei.qupath.analysed import Status

    # Lines and points have no area that could be analysed.
    missing = [
        row["class"]
        for row in rows
        if row["status"] == Status.NOT_ANALYSED and row["area_mm2"] != 0
    ]
    left_out = sum(map(is_excluded, missing))
    if left_out:
        print_status(
            f"without counts: {left_out} of them, because a run leaves out the class "
            f"{', '.join(DEFAULT_EXCLUDED)}"
        )
    if len(missing) > left_out:
        print_warning(
            f"not analysed, without counts: {len(missing) - left_out} of them; run qpnuclei run"
            + _or_existing(rows)
        )


def _or_existing(rows: Sequence[Row]) -> str:
    """Return how to count the detections that exist already; empty if none has a class."""
    from qpnuclei.cli.console import MOST_LISTED
    from qpnuclei.qupath.class_counts import classes_in
    from qpnuclei.system.commands import as_typed

    classes = list(dict.fromkeys(name for row in rows for name in classes_in(row)))
    if not classes:
        return ""
    if len(classes) > MOST_LISTED:
        return ", or count existing detections with --class"
    options = [word for name in classes for word in ("--class", name)]
    return f", or count existing detections with {as_typed(options)}"


def _print_nuclei(
    done: WrittenNuclei,
    entries: Sequence[ImageEntry],
    failures: Sequence[dict[str, str]],
    json: bool,
    is_limited: bool,
) -> None:
    """Print the written files; `is_limited` means that --roi or --class selected nuclei."""
    from qpnuclei.cli.console import print_json, print_some, print_status, print_warning
    from qpnuclei.cli.tables import print_empty

    images = [
        {"image": entry.name, "image_id": entry.id, "nuclei": done.nuclei[entry.id]}
        for entry in entries
        if entry.id in done.nuclei
    ]
    if json:
        content = {"files": list(map(str, done.files)), "images": images}
        print_json({**content, "left_out": done.left_out, "failures": list(failures)})
    total = sum(done.nuclei.values())
    for path in done.files:
        counts = ""
        if len(done.files) == 1:
            counts = f": {number_of(total, 'nucleus')} of {number_of(len(images), 'image')}"
        print_status(f"{path}{counts}")
    print_empty(
        "selected nuclei" if is_limited else "nuclei",
        [entry.name for entry in entries if done.nuclei.get(entry.id) == 0],
        len(entries),
        "without --roi and --class there may be some" if is_limited else "qpnuclei run finds them",
    )
    print_some("not written", done.left_out)
    if failures and done.files:
        of = number_of(len(entries), "image")
        without = f"without {len(failures)} of {of}, which could not be read"
        print_warning(without)
