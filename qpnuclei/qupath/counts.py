"""Counts of nuclei per annotation, class or image, as a table.

The numbers are those that QuPath shows for an annotation: a detection counts for every annotation
that contains its centroid (border included), wherever the two are in the hierarchy. The summary of
a run uses the same function, so that all counts of an annotation agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias
from uuid import UUID

import numpy as np
import numpy.typing as npt

from qpnuclei.choices import Grouping
from qpnuclei.errors import UsageError
from qpnuclei.qupath.analysed import Status, overall
from qpnuclei.qupath.class_counts import Classes
from qpnuclei.qupath.counted_image import CountedImage, analysed_area
from qpnuclei.qupath.doubts import together
from qpnuclei.qupath.regions import Region, area_px2, covered_px2, rows_inside
from qpnuclei.qupath.repeated_nuclei import RepeatedNuclei

Row: TypeAlias = dict[str, Any]

_SUMMARIES = ("mean", "median", "SD")


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
        One row per annotation and TMA core, cores first; one row per class of annotations, where a
        nucleus in several annotations of the class counts once; or one row for the whole image.
    roi_classes : sequence of str, optional
        Only annotations (and TMA cores) of these classes; not for images.
    nucleus_classes : sequence of str, optional
        Count all detections of these classes, from any program, also outside analysed areas. By
        default, count the detections that qpnuclei wrote (whatever their class is now) and others
        of the class ``"Nucleus"``, only in areas that qpnuclei analysed.

    Returns
    -------
    list of dict
        A row has these columns:

        * ``image``, ``annotation`` (its name), ``type`` (``"annotation"``, ``"TMA core"``,
          ``"missing TMA core"``, ``"class"`` or ``"image"``), ``class``;
        * ``nuclei``, ``nuclei_per_mm2``, ``area_mm2``, ``analysed_mm2``, ``status`` (a `Status`);
        * ``check``: why the run found it doubtful (see ``docs/plausibility.md``), that it was
          analysed at another pixel size or with other stain vectors, that all nuclei are gone, or
          how many are counted twice;
        * ``Num Detections``, ``Num <class>`` and ``Num <class> (base)`` for the classes of
          detections, with QuPath's names and counts;
        * ``<class>: Positive %`` for classes with positive and negative subclasses, and
          ``<class>: H-score`` for those with 1+, 2+ or 3+, as in QuPath;
        * mean, median and standard deviation (with n - 1) of the finite values of the nuclei, for
          every measurement;
        * ``uuid``, ``image_id`` and ``project``.

        A missing value is NaN or None: without calibration, without nuclei, or if nothing was
        analysed.

    Raises
    ------
    UsageError
        If classes of annotations are given for an image.

    Notes
    -----
    As in QuPath, lines and points contain no detections. The area of a class is the area of the
    union of its annotations. Nuclei, measurements and density are those of the analysed area. This
    may be only a part of an annotation that was changed later, of a class with annotations that
    were not analysed, or of an image. With `nucleus_classes`, density refers to the whole
    annotation or class, and an image has none: the area in which its detections were made is
    unknown. Parts in an annotation of an excluded class are not analysed: neither their area nor
    their nuclei count, but QuPath's columns include both.
    """
    check_grouping(by, roi_classes)
    detections, record = image.objects.detections, image.record
    classes = Classes.of(detections, nucleus_classes)
    repeated = RepeatedNuclei.among(detections, classes)
    cores = image.objects.cores if by == "annotation" else ()
    annotations = [
        annotation
        for annotation in (*cores, *image.objects.annotations)
        if roi_classes is None or annotation.class_name in roi_classes
    ]
    if by == "image":
        return [_image_row(image, classes, repeated, counts_all=nucleus_classes is not None)]
    statuses = [record.status(annotation) for annotation in annotations]
    regions = [Region.of(a) for a in annotations]
    parts = [
        record.analysed_part(region, status)
        for region, status in zip(regions, statuses, strict=True)
    ]
    inside = rows_inside(regions, detections.centroids, detections.planes)
    analysed_in = inside
    if nucleus_classes is None and any(
        part is not region for part, region in zip(parts, regions, strict=True)
    ):
        analysed_in = rows_inside(parts, detections.centroids, detections.planes)
    groups: dict[int | str | None, list[int]] = {}
    for i, annotation in enumerate(annotations):
        groups.setdefault(i if by == "annotation" else annotation.class_name, []).append(i)
    rows = []
    for members in groups.values():
        first = annotations[members[0]]
        of_one = by == "annotation"
        analysed_members = [i for i in members if statuses[i] is not Status.NOT_ANALYSED]
        counted = members if nucleus_classes is not None else analysed_members
        area = area_px2([annotations[i] for i in members])
        analysed = _analysed_px2([parts[i] for i in analysed_members])
        rows.append(
            _row(
                image,
                (first.name if of_one else None, first.class_name, first.id if of_one else None),
                first.kind if of_one else "class",
                overall([statuses[i] for i in members if annotations[i].is_area]),
                image.doubts(
                    *(regions[i] for i in analysed_members),
                    counts_all=nucleus_classes is not None,
                ),
                (area, analysed, area if nucleus_classes is not None else analysed),
                _union(inside, counted),
                _union(analysed_in, counted),
                classes,
                repeated,
            )
        )
    return rows


def check_grouping(by: Grouping, roi_classes: Sequence[str] | None) -> None:
    """Refuse classes of annotations for rows that are whole images.

    Raises
    ------
    UsageError
        If both are given.
    """
    if by == "image" and roi_classes:
        raise UsageError(
            "--by image counts the whole analysed area of an image, so --roi has no effect on it",
            "use --by class with --roi: a row per image and class (in Python: by='class')",
        )


def count_in_regions(
    image: CountedImage, regions: Sequence[Region]
) -> list[tuple[float, int, float, str]]:
    """Count the nuclei in regions, by the rules of `count_objects`.

    Returns
    -------
    list of (float, int, float, str)
        For each region: area in mm², nuclei, nuclei per mm², and a note if some are counted twice.
    """
    detections = image.objects.detections
    classes = Classes.of(detections, None)
    nuclei, repeated = classes.nuclei, RepeatedNuclei.among(detections, classes)
    counted = []
    for region, inside in zip(
        regions, rows_inside(regions, detections.centroids, detections.planes), strict=True
    ):
        area = image.mm2(region.area_px2)
        number = int(np.count_nonzero(nuclei[inside]))
        density = number / area if area > 0 else math.nan
        counted.append((area, number, density, repeated.note(inside)))
    return counted


def _analysed_px2(parts: Sequence[Region]) -> float:
    """Return the area of the union of the analysed parts of annotations, in level-0 px²."""
    if any(part.is_part for part in parts):
        return covered_px2(parts)
    return area_px2([part.annotation for part in parts if part.annotation is not None])


def _image_row(
    image: CountedImage, classes: Classes, repeated: RepeatedNuclei, *, counts_all: bool
) -> Row:
    """Return the row of a whole image.

    Parameters
    ----------
    counts_all : bool
        Whether to count nuclei also outside the analysed area.
    """
    detections, record = image.objects.detections, image.record
    area = None if image.size is None else float(image.size[0]) * image.size[1]
    analysed = analysed_area(image)
    rows: npt.NDArray[np.int64] | None = np.arange(len(detections)) if counts_all else None
    if record.areas:
        if not counts_all:
            (rows,) = rows_inside([Region(None, analysed)], detections.centroids, detections.planes)
        changed = any(record.status(a) is Status.CHANGED for a in image.objects.annotations)
        status = Status.CHANGED if changed else Status.ANALYSED
    else:
        status = Status.NOT_ANALYSED
    # Where others looked for nuclei is unknown, so there is no density of theirs.
    areas = (area, float(analysed.area), math.nan if counts_all else float(analysed.area))
    check, own = image.image_doubts(counts_all=counts_all), (None, None, None)
    row = _row(image, own, "image", status, check, areas, rows, rows, classes, repeated)
    if rows is not None:  # QuPath's own columns count the whole image
        row |= classes.numbers(np.arange(len(detections)))
    return row


def _row(
    image: CountedImage,
    of: tuple[str | None, str | None, UUID | None],
    kind: str,
    status: Status,
    check: str,
    areas_px2: tuple[float | None, float, float],
    inside: npt.NDArray[np.int64] | None,
    analysed_in: npt.NDArray[np.int64] | None,
    classes: Classes,
    repeated: RepeatedNuclei,
) -> Row:
    """Return a row.

    Parameters
    ----------
    of : (str or None, str or None, UUID or None)
        Name, class and UUID of the annotation.
    areas_px2 : (float or None, float, float)
        The whole area, the analysed area, and the area of the density.
    inside, analysed_in : int64 ndarray or None
        Detections in the annotation, and in its analysed part; None if nothing was analysed.
    """
    area, analysed, density_of = map(image.mm2, areas_px2)
    is_known = inside is not None
    inside = np.empty(0, np.int64) if inside is None else inside
    analysed_in = np.empty(0, np.int64) if analysed_in is None else analysed_in
    chosen = analysed_in[classes.nuclei[analysed_in]]
    name, class_name, own_id = of
    row: Row = {
        "image": image.name,
        "annotation": name,
        "type": kind,
        "class": class_name,
        "nuclei": len(chosen) if is_known else None,
        "nuclei_per_mm2": len(chosen) / density_of if is_known and density_of > 0 else math.nan,
        "area_mm2": area,
        "analysed_mm2": analysed,
        "status": str(status),
        "check": together([check, repeated.note(chosen)]) or None,
    }
    numbers = classes.numbers(inside)
    row |= numbers if is_known else dict.fromkeys(numbers)
    detections = image.objects.detections
    for measurement, column in detections.measurements.items():
        values = column[chosen]
        values = values[np.isfinite(values)]
        for summary, value in zip(_SUMMARIES, _summaries(values), strict=True):
            row[f"{measurement} ({summary})"] = value
    return row | {"uuid": own_id, "image_id": image.id, "project": image.project}


def _union(
    rows: Sequence[npt.NDArray[np.int64]], members: Sequence[int]
) -> npt.NDArray[np.int64] | None:
    return np.unique(np.concatenate([rows[i] for i in members])) if members else None


def _summaries(values: npt.NDArray[np.float64]) -> Iterator[float]:
    yield float(np.mean(values)) if len(values) else math.nan
    yield float(np.median(values)) if len(values) else math.nan
    yield float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
