"""Export the objects of a project to GeoJSON files: ``qpnuclei geojson export``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import number_of
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.writing import write_objects
from qpnuclei.qupath.model import (
    Annotation,
    Detections,
    ImageEntry,
    ImageObjects,
    PathClass,
    Project,
)
from qpnuclei.qupath.names import file_stem
from qpnuclei.qupath.regions import Region, rows_in_any


@dataclass(frozen=True)
class Exported:
    """The GeoJSON file of one image, and the numbers of annotations and detections in it.

    Parameters
    ----------
    left_out : tuple of str
        Messages on objects that are not in the file, with the reason.
    losses : tuple of str
        Messages on properties of the written objects that are not in the file.
    """

    path: Path
    annotations: int
    detections: int
    left_out: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()


def export_image(
    project: Project,
    entry: ImageEntry,
    folder: Path,
    *,
    annotations: bool = True,
    detections: bool = True,
    classes: Sequence[str] = (),
) -> Exported:
    """Write the objects of an image to ``<entry ID>-<image name>.geojson.gz``.

    Parameters
    ----------
    folder : Path
        The folder is made if it is missing; an existing file is replaced.
    annotations, detections : bool
        Whether to write these objects.
    classes : sequence of str
        Only annotations of these classes, and detections with their centroid in one of them; empty
        for all objects.

    Raises
    ------
    FormatError
        If the image's data cannot be read.
    SaveError
        If the file cannot be written.
    """
    objects = entry.read()
    chosen = [a for a in objects.annotations if not classes or a.class_name in classes]
    table = objects.detections
    rows = np.arange(len(table) if detections else 0)
    if classes and len(rows):
        rows = rows_in_any([Region.of(a) for a in chosen], table.centroids, table.planes)
    path = folder / f"{file_stem(entry)}.geojson.gz"
    colors = {path_class.name: path_class.color for path_class in project.classes}

    def features() -> Iterator[GeoJsonObject]:
        if annotations:
            yield from (_annotation_feature(a, colors) for a in chosen)
        if len(rows):
            yield from _detection_features(table, rows, colors)

    left_out = write_objects(path, features())
    lost_annotations = sum(text.startswith("annotation ") for text in left_out)
    return Exported(
        path,
        (len(chosen) if annotations else 0) - lost_annotations,
        len(rows) - (len(left_out) - lost_annotations),
        tuple(left_out),
        (*_no_grid(objects), *(_unwritten(table) if len(rows) else ())),
    )


def _no_grid(objects: ImageObjects) -> tuple[str, ...]:
    """Return a message if the image has a TMA grid, which the file cannot contain."""
    number = len(objects.cores)
    return (f"the TMA grid of the image, with {number_of(number, 'core')}",) if number else ()


def _unwritten(table: Detections) -> tuple[str, ...]:
    """Return messages on properties of detections that the file cannot contain."""
    return tuple(
        f"{what} of {number_of(n, 'detection')} of the image" for what, n in table.unread().items()
    )


def _annotation_feature(annotation: Annotation, colors: dict[str, int | None]) -> GeoJsonObject:
    name = annotation.class_name
    return GeoJsonObject(
        "annotation",
        annotation.geometry,
        annotation.id,
        annotation.name,
        None if name is None else PathClass(name, colors.get(name)),
        annotation.locked,
        annotation.measurements,
        annotation.z,
        annotation.t,
        annotation.color,
        annotation.metadata,
    )


def _detection_features(
    table: Detections,
    rows: npt.NDArray[np.int64],
    colors: dict[str, int | None],
) -> Iterator[GeoJsonObject]:
    names = list(table.measurements)
    for row in rows.tolist():
        class_name = table.class_names[row]
        yield GeoJsonObject(
            table.kinds[row],
            table.geometries[row],
            table.ids[row],
            path_class=None
            if class_name is None
            else PathClass(class_name, colors.get(class_name)),
            measurements={name: float(table.measurements[name][row]) for name in names},
            z=int(table.planes[row, 0]),
            t=int(table.planes[row, 1]),
            nucleus=_nucleus(table, row),
        )


def _nucleus(table: Detections, row: int) -> shapely.Geometry | None:
    """Return the outline of the nucleus of a cell; None if it has none."""
    if table.kinds[row] != "cell":
        return None
    nucleus: shapely.Geometry = table.nucleus_geometries[row]
    return None if shapely.equals_exact(nucleus, table.geometries[row]) else nucleus
