"""Counts of nuclei per annotation, class or image, as a table.

The numbers are those that QuPath shows for an annotation: a detection counts for every annotation
that holds its centroid, its border included, wherever either stands in the hierarchy.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet
import shapely

from qpnuclei.errors import UsageError
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.model import Annotation, Detections, ImageEntry, ImageObjects, Project
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.system.files import atomic_file

Grouping: TypeAlias = Literal["annotation", "class", "image"]
Row: TypeAlias = dict[str, Any]

#: Class of the detections that are nuclei, whoever made them.
NUCLEUS_CLASS = "Nucleus"
_TEXT = ("project", "image", "annotation", "class", "uuid")
_SUMMARIES = ("mean", "median", "SD")


@dataclass(frozen=True)
class CountedImage:
    """One image whose objects are counted.

    Parameters
    ----------
    project : str
        Name or path of the project, for the table.
    name : str
        Name of the image.
    objects : ImageObjects
    calibration : PixelCalibration
    size : (width, height) of int, or None
        In level-0 px, for the area of the whole image.
    """

    project: str
    name: str
    objects: ImageObjects
    calibration: PixelCalibration
    size: tuple[int, int] | None = None


def count_objects(
    image: CountedImage,
    by: Grouping = "annotation",
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
) -> list[Row]:
    """Count the detections of one image.

    Parameters
    ----------
    image : CountedImage
    by : {"annotation", "class", "image"}
        One row per annotation; one per class of annotations, in which a nucleus counts once
        however many annotations of the class it lies in; or one for the whole image.
    roi_classes : sequence of str, optional
        Only annotations of these classes.
    nucleus_classes : sequence of str, optional
        Classes of the detections that count as nuclei. By default, those are the detections that
        qpnuclei wrote, whatever their class is now, and others of the class ``"Nucleus"``.

    Returns
    -------
    list of dict
        Columns ``project``, ``image``, ``annotation`` (its name), ``class``, ``uuid``,
        ``area_mm2``, ``nuclei``, ``nuclei_per_mm2``; ``Num Detections`` and ``Num <class>`` for
        every class of detections, as QuPath calls and counts them; and for every measurement its
        mean, median and standard deviation (with n - 1) over the nuclei. NaN where there is no
        value: without calibration, or without nuclei.

    Notes
    -----
    Lines and points hold no detections, as in QuPath. The area of a class is that of the union of
    its annotations.
    """
    detections = image.objects.detections
    classes = _Classes.of(detections, nucleus_classes)
    annotations = [
        annotation
        for annotation in image.objects.annotations
        if roi_classes is None or annotation.class_name in roi_classes
    ]
    if by == "image":
        area = None if image.size is None else float(image.size[0]) * image.size[1]
        everything = np.arange(len(detections))
        return [_row(image, None, None, None, area, everything, classes)]
    inside = _centroids_inside(annotations, detections.centroids)
    if by == "annotation":
        return [
            _row(
                image,
                annotation.name,
                annotation.class_name,
                annotation.id,
                _area_px2(annotation),
                rows,
                classes,
            )
            for annotation, rows in zip(annotations, inside, strict=True)
        ]
    groups: dict[str | None, list[int]] = {}
    for i, annotation in enumerate(annotations):
        groups.setdefault(annotation.class_name, []).append(i)
    return [
        _row(
            image,
            None,
            class_name,
            None,
            _pooled_area_px2([annotations[i] for i in members]),
            np.unique(np.concatenate([inside[i] for i in members])),
            classes,
        )
        for class_name, members in groups.items()
    ]


def count_project(
    project: Project,
    images: Sequence[ImageEntry],
    by: Grouping = "annotation",
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    mpp: float | None = None,
) -> list[Row]:
    """Count the detections of some images of a project; see `count_objects`.

    Parameters
    ----------
    mpp : float, optional
        µm/px of all the images; by default what the project has for each. Without either, areas
        and densities are NaN.

    Raises
    ------
    UsageError
        If no annotation has one of the `roi_classes`.
    qpnuclei.errors.FormatError
        If the objects of an image cannot be read.
    """
    rows: list[Row] = []
    known: set[str] = set()
    for entry in images:
        server = entry.server
        image = CountedImage(
            project=f"{project.path.parent.name}/{project.path.name}",
            name=entry.name,
            objects=entry.read(),
            calibration=entry.calibration if mpp is None else PixelCalibration(mpp, mpp),
            size=(server.width, server.height) if server.width and server.height else None,
        )
        known |= {a.class_name for a in image.objects.annotations if a.class_name is not None}
        rows += count_objects(image, by, roi_classes=roi_classes, nucleus_classes=nucleus_classes)
    for name in roi_classes or ():
        if name not in known:
            raise UsageError(
                f"no annotation has the class {name!r}",
                f"there are: {', '.join(sorted(known)) or 'no classes at all'}",
            )
    return rows


def write_table(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as .csv, .tsv, .json or .parquet, in one step.

    Parameters
    ----------
    rows : sequence of mapping of str to str, int, float, UUID or None
        They need not have the same columns; columns come in the order of first appearance. NaN and
        None are empty cells (null in JSON and Parquet).
    path : Path
        The suffix chooses the format.

    Raises
    ------
    UsageError
        If the suffix is none of these.
    SaveError
        If the file cannot be written.
    """
    path = Path(path)
    writers = {
        ".csv": lambda table: _separated(table, ","),
        ".tsv": lambda table: _separated(table, "\t"),
        ".json": _json,
        ".parquet": _parquet,
    }
    write = writers.get(path.suffix.lower())
    if write is None:
        raise UsageError(
            f"{str(path)!r} is not a table this program writes",
            f"use one of {', '.join(writers)}",
        )
    columns = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [_cell(row.get(name)) for row in rows] for name in columns}
    content = write(table)
    with atomic_file(path) as stream:
        stream.write(content)


@dataclass(frozen=True, eq=False)
class _Classes:
    """Classes of N detections: sorted names, ``""`` for none; codes; and which are nuclei."""

    names: list[str]
    codes: npt.NDArray[np.int64]
    nuclei: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, detections: Detections, nucleus_classes: Sequence[str] | None) -> _Classes:
        names = sorted({name or "" for name in detections.class_names})
        code = {name: i for i, name in enumerate(names)}
        codes = np.array([code[name or ""] for name in detections.class_names], np.int64)
        chosen = (NUCLEUS_CLASS,) if nucleus_classes is None else nucleus_classes
        nuclei = np.array([name in chosen for name in names], bool)[codes]
        if nucleus_classes is None:
            nuclei |= np.array([is_ours(identifier) for identifier in detections.ids], bool)
        return cls(names, codes, nuclei)


def _centroids_inside(
    annotations: Sequence[Annotation], centroids: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.int64]]:
    """Return for each annotation the rows of the detections whose centroid it holds.

    QuPath asks whether the centroid is not in the exterior of the ROI's geometry: on the border,
    that of a hole included, it is inside, for every type of ROI.
    """
    nothing = np.empty(0, np.int64)
    inside = [nothing] * len(annotations)
    areas = [i for i, annotation in enumerate(annotations) if annotation.is_area]
    if not areas or len(centroids) == 0:
        return inside
    tree = shapely.STRtree(shapely.points(centroids))
    for i in areas:
        inside[i] = np.sort(tree.query(annotations[i].area, predicate="intersects"))
    return inside


def _area_px2(annotation: Annotation) -> float:
    if annotation.roi_type == "EllipseROI":
        # QuPath has the area of the ellipse itself, not of the polygon that stands for it.
        x0, y0, x1, y1 = shapely.bounds(annotation.geometry).tolist()
        return math.pi / 4 * float(x1 - x0) * float(y1 - y0)
    return float(shapely.area(annotation.area))


def _pooled_area_px2(annotations: Sequence[Annotation]) -> float:
    areas = [annotation for annotation in annotations if annotation.is_area]
    if len(areas) == 1:
        return _area_px2(areas[0])
    return float(shapely.area(shapely.union_all([a.area for a in areas])))


def _row(
    image: CountedImage,
    name: str | None,
    class_name: str | None,
    identifier: Any,
    area_px2: float | None,
    inside: npt.NDArray[np.int64],
    classes: _Classes,
) -> Row:
    detections, calibration = image.objects.detections, image.calibration
    area = math.nan
    if area_px2 is not None and calibration.width_um and calibration.height_um:
        area = area_px2 * calibration.width_um * calibration.height_um * 1e-6
    chosen = inside[classes.nuclei[inside]]
    row: Row = {
        "project": image.project,
        "image": image.name,
        "annotation": name,
        "class": class_name,
        "uuid": identifier,
        "area_mm2": area,
        "nuclei": len(chosen),
        "nuclei_per_mm2": len(chosen) / area if area > 0 else math.nan,
        "Num Detections": len(inside),
    }
    counts = np.bincount(classes.codes[inside], minlength=len(classes.names))
    row |= {
        f"Num {name}": n for name, n in zip(classes.names, counts.tolist(), strict=True) if name
    }
    for measurement, column in detections.measurements.items():
        values = column[chosen]
        values = values[~np.isnan(values)]
        for summary, value in zip(_SUMMARIES, _summaries(values), strict=True):
            row[f"{measurement} ({summary})"] = value
    return row


def _summaries(values: npt.NDArray[np.float64]) -> Iterator[float]:
    yield float(np.mean(values)) if len(values) else math.nan
    yield float(np.median(values)) if len(values) else math.nan
    yield float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _cell(value: Any) -> str | int | float | None:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)


def _separated(table: Mapping[str, list[Any]], separator: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\n")
    writer.writerow(table)
    writer.writerows(zip(*table.values(), strict=True))
    return text.getvalue().encode()


def _json(table: Mapping[str, list[Any]]) -> bytes:
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return (json.dumps(rows, ensure_ascii=False, indent=2) + "\n").encode(errors="backslashreplace")


def _parquet(table: Mapping[str, list[Any]]) -> bytes:
    arrays = {
        # A column without any value has a type all the same, so that tables can be joined.
        name: pa.array(
            values,
            type=(pa.string() if name in _TEXT else pa.float64())
            if all(value is None for value in values)
            else None,
        )
        for name, values in table.items()
    }
    sink = pa.BufferOutputStream()
    pyarrow.parquet.write_table(pa.table(arrays), sink)
    content: bytes = sink.getvalue().to_pybytes()
    return content
