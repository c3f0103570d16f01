"""Export the nuclei of a project to a file for another program."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, get_args
from uuid import UUID

import numpy as np
import shapely

from qpnuclei.choices import NucleusFormat
from qpnuclei.errors import QpnucleiError, UsageError, number_of, standing_alone
from qpnuclei.nuclei.exports.rows import CELL_GEOMETRY, FIELDS, GEOMETRY, NucleusRows, optional
from qpnuclei.qupath.annotation_classes import check_classes
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.writing import write_objects
from qpnuclei.qupath.model import ImageEntry, PathClass, Project
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.nucleus_rows import nuclei_of
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.targets import check_target
from qpnuclei.system.arguments import check_choice
from qpnuclei.system.files import check_file_target, check_folder_target

_SUFFIXES: dict[str, NucleusFormat] = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".geoparquet": "parquet",
    ".h5ad": "h5ad",
    ".zarr": "zarr",
    ".ome.tif": "ome-tiff",
    ".ome.tiff": "ome-tiff",
    ".geojson": "geojson",
    ".geojson.gz": "geojson",
}
#: Columns that a `GeoJsonObject` has anyway.
_OF_OBJECT = frozenset({"uuid", "type", "class", "z", "t", "image", "image_id"})


@dataclass
class WrittenNuclei:
    """The result of an export.

    Parameters
    ----------
    files : list of Path
    nuclei : dict of str to int
        Number of nuclei by entry ID of the image.
    left_out : list of str
        Messages on nuclei that are not in a file, with the reason.
    """

    files: list[Path] = field(default_factory=list)
    nuclei: dict[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)


def format_of(path: Path, asked: NucleusFormat | None = None) -> NucleusFormat:
    """Return the requested format, or otherwise that of the file's suffix.

    Raises
    ------
    UsageError
        If there is no such format, or the package for it is not installed.
    """
    name = path.name.lower()
    found = asked or next((kind for end, kind in _SUFFIXES.items() if name.endswith(end)), None)
    if found is None:
        raise UsageError(
            f"{str(path)!r}: no format for nuclei has this suffix",
            f"use one of {', '.join(_SUFFIXES)}, or --format",
        )
    check_choice("format", found, get_args(NucleusFormat))
    if found == "h5ad":
        optional("anndata", "export")
    if found == "zarr":
        optional("spatialdata", "spatialdata")
    return found


def write_nuclei_of(
    project: Project,
    entries: Sequence[ImageEntry],
    path: Path,
    asked: NucleusFormat | None = None,
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    pixel_sizes: AskedMpp | None = None,
    failed: Callable[[ImageEntry, QpnucleiError], object] | None = None,
) -> WrittenNuclei:
    """Write the nuclei of images of a project, from any program, in one step.

    One image is in memory at a time; for ``h5ad`` and ``zarr`` it is all images.

    Parameters
    ----------
    path : Path
        The file to write. Label images (``ome-tiff``) are one file per image: `path` is their
        folder, unless there is only one image and the name ends in ``.ome.tif``.
    asked : str, optional
        The format; by default that of the suffix.
    roi_classes, nucleus_classes
        As in `qpnuclei.qupath.nucleus_rows.nucleus_rows`.
    failed : callable, optional
        Called with the reason for each image that cannot be read; the others are written. By
        default the first such error is raised. If all fail, nothing is written.

    Raises
    ------
    UsageError
        If the format is unknown or its package missing, no annotation has one of the
        `roi_classes`, or `path` does not fit, or is a slide or a file of the project.
    qpnuclei.errors.FormatError, qpnuclei.errors.SaveError
        If an image cannot be read, or the file cannot be written.
    """
    kind = format_of(path, asked)
    _check_target(kind, path)
    check_target(project, path)
    check_classes(project, entries, tuple(roi_classes or ()))
    done = WrittenNuclei()

    def report(entry: ImageEntry, error: QpnucleiError) -> None:
        if failed is None:
            raise error
        failed(entry, error)

    def images() -> Iterator[tuple[ImageEntry, NucleusRows]]:
        for entry in entries:
            rows = None
            with standing_alone(f"image {entry.name}", partial(report, entry)):
                rows = nuclei_of(
                    project,
                    entry,
                    roi_classes=roi_classes,
                    nucleus_classes=nucleus_classes,
                    pixel_sizes=pixel_sizes,
                )
            if rows is not None:
                done.nuclei[entry.id] = len(rows)
                yield entry, rows

    if kind == "ome-tiff":
        _write_label_images(project, images(), path, done, only=len(entries) == 1)
    elif kind == "geojson":
        _write_geojson(project, images(), path, done)
    elif kind in ("h5ad", "zarr"):
        _write_store(kind, [rows for _, rows in images()], path, done)
    else:
        _write_table(kind, images(), path, done)
    return done


def _check_target(kind: NucleusFormat, path: Path) -> None:
    """Check that the result can be written, before an image is read."""
    if kind == "zarr":
        from qpnuclei.nuclei.exports.spatialdata_store import check_store

        check_store(path)
        check_folder_target(path.parent)
    elif kind == "ome-tiff" and not _is_label_image(path):
        check_folder_target(path)
    else:
        check_file_target(path)


def _is_label_image(path: Path) -> bool:
    """Tell whether a path is that of one label image, not of a folder of them."""
    return path.name.lower().endswith((".ome.tif", ".ome.tiff"))


def _write_table(
    kind: NucleusFormat,
    images: Iterator[tuple[ImageEntry, NucleusRows]],
    path: Path,
    done: WrittenNuclei,
) -> None:
    from qpnuclei.nuclei.exports.gathered import GatheredRows

    with GatheredRows(path, outlines=kind == "parquet") as gathered:
        for _, rows in images:
            gathered.append(rows)
        if not done.nuclei:
            return
        if kind == "parquet":
            gathered.write_parquet()
        else:
            gathered.write_separated("," if kind == "csv" else "\t")
        done.files.append(path)


def _write_store(
    kind: NucleusFormat, images: Sequence[NucleusRows], path: Path, done: WrittenNuclei
) -> None:
    from qpnuclei.nuclei.exports.anndata_file import write_anndata
    from qpnuclei.nuclei.exports.spatialdata_store import write_spatialdata

    if images:
        (write_anndata if kind == "h5ad" else write_spatialdata)(images, path)
        done.files.append(path)


def _write_label_images(
    project: Project,
    images: Iterator[tuple[ImageEntry, NucleusRows]],
    path: Path,
    done: WrittenNuclei,
    *,
    only: bool,
) -> None:
    from qpnuclei.nuclei.exports.label_image import write_label_image

    is_file = _is_label_image(path)
    if is_file and not only:
        raise UsageError(
            f"{path}: a label image contains one image, but several are exported",
            "give a folder and --format ome-tiff, or one image with --image",
        )
    for entry, rows in images:
        file = path if is_file else path / f"{file_stem(entry)}.ome.tif"
        check_target(project, file)
        elsewhere = write_label_image(rows, file)
        if elsewhere:
            done.left_out.append(
                f"{entry.name}: {number_of(elsewhere, 'nucleus')} on other planes than the first"
            )
        done.files.append(file)


def _write_geojson(
    project: Project,
    images: Iterator[tuple[ImageEntry, NucleusRows]],
    path: Path,
    done: WrittenNuclei,
) -> None:
    colors = {path_class.name: path_class.color for path_class in project.classes}
    for first in images:  # writes no file if no image can be read
        objects = (_features(rows, colors) for _, rows in chain([first], images))
        done.left_out += write_objects(path, chain.from_iterable(objects))
        done.files.append(path)


def _features(rows: NucleusRows, colors: Mapping[str, int | None]) -> Iterator[GeoJsonObject]:
    """Yield features in QuPath's form, with the other columns as further properties."""
    more = [name for name in FIELDS.names if name not in _OF_OBJECT]
    measured = rows.measurements
    for batch in rows.batches(outlines=True):
        nuclei, cells = (
            shapely.from_wkb(batch.column(name).to_numpy(zero_copy_only=False))
            if name in batch.schema.names
            else np.full(len(batch), None)
            for name in (GEOMETRY, CELL_GEOMETRY)
        )
        for row, nucleus, cell in zip(batch.to_pylist(), nuclei, cells, strict=True):
            name = row["class"]
            has_nucleus = cell is not None and not shapely.equals_exact(nucleus, cell)
            yield GeoJsonObject(
                row["type"],
                cell if has_nucleus else nucleus,
                None if row["uuid"] is None else UUID(row["uuid"]),
                path_class=None if name is None else PathClass(name, colors.get(name)),
                measurements={name: row[name] for name in measured},
                z=row["z"],
                t=row["t"],
                more={name: _finite(row[name]) for name in more},
                nucleus=nucleus if has_nucleus else None,
                image=(row["image"], row["image_id"]),
            )


def _finite(value: Any) -> Any:
    """Return a value, or None instead of a number that JSON does not allow."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
