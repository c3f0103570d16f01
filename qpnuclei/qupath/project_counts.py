"""Count the nuclei in the images of a project."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import get_args

from qpnuclei.choices import Grouping
from qpnuclei.errors import QpnucleiError, standing_alone
from qpnuclei.qupath.annotation_classes import require_classes
from qpnuclei.qupath.class_counts import ALL_DETECTIONS, H_SCORE, columns_of, shares_of
from qpnuclei.qupath.counted_image import counted_image
from qpnuclei.qupath.counts import Row, check_grouping, count_objects
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.names import place_searched
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.system.arguments import check_choice

_log = logging.getLogger(__name__)


def count_project(
    project: Project,
    images: Sequence[ImageEntry],
    by: Grouping = "annotation",
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    pixel_sizes: AskedMpp | None = None,
    failed: Callable[[ImageEntry, QpnucleiError], object] | None = None,
    warned: Collection[str] = (),
) -> list[Row]:
    """Count the detections of some images of a project; see `count_objects`.

    Every row that was counted has the counts of all classes of these images.

    Parameters
    ----------
    failed : callable, optional
        Called with the reason for each image that cannot be counted; the others are counted. By
        default the first such error is raised.
    pixel_sizes : AskedMpp, optional
        What the user says about pixel sizes. Without a pixel size, areas and densities are NaN.
    warned : collection of str
        IDs of images for which a warning about a missing pixel size was already logged.

    Raises
    ------
    UsageError
        If `by` is unknown, no annotation has one of the `roi_classes`, or these are given for rows
        of images.
    qpnuclei.errors.FormatError
        If the objects of an image cannot be read.
    """
    check_choice("by", by, get_args(Grouping))
    check_grouping(by, roi_classes)
    counted: list[tuple[list[str], list[Row]]] = []
    known: set[str] = set()
    left_out = False

    def report(entry: ImageEntry, error: QpnucleiError) -> None:
        nonlocal left_out
        left_out = True
        if failed is None:
            raise error
        failed(entry, error)

    def count(entry: ImageEntry) -> None:
        warns = entry.id not in warned
        image = counted_image(entry, pixel_sizes or AskedMpp(), project, warns=warns)
        areas = (*image.objects.annotations, *image.objects.cores)
        known.update(a.class_name for a in areas if a.class_name is not None)
        names = sorted({name or "" for name in image.objects.detections.class_names})
        rows = count_objects(image, by, roi_classes=roi_classes, nucleus_classes=nucleus_classes)
        counted.append((names, rows))

    for entry in images:
        with standing_alone(f"image {entry.name}", partial(report, entry)):
            count(entry)
    if roi_classes and not left_out:  # an unreadable image may have the class
        require_classes(roi_classes, known, place_searched(project, images))
    warn_of_missing_classes(nucleus_classes, {name for names, _ in counted for name in names})
    return _with_all_classes(counted)


def _with_all_classes(counted: Sequence[tuple[Sequence[str], Sequence[Row]]]) -> list[Row]:
    """Return the rows of images, those that were counted with the counts of all their classes.

    QuPath gives an image only the columns of its own classes. In a table of several images, an
    image without a positive nucleus would look as if its nuclei had not been counted.

    Parameters
    ----------
    counted : sequence of (sequence of str, sequence of dict)
        For each image the sorted classes of its detections, and its rows of `count_objects`.
    """
    classes = sorted({name for names, _ in counted for name in names})
    scores = {name for _, rows in counted for row in rows for name in row if H_SCORE in name}
    return [
        row if row[ALL_DETECTIONS] is None else _complete(row, own, classes, scores)
        for own, rows in counted
        for row in rows
    ]


def _complete(row: Row, own: Sequence[str], classes: Sequence[str], scores: Collection[str]) -> Row:
    """Return a row of an image that has its `own` classes with the counts of all `classes`."""
    if own == classes:
        return row
    columns = columns_of(own)
    counts = {names[0]: row[column] for column, names in columns.items() if len(names) == 1}
    numbers: Row = {
        column: sum(counts.get(name, 0) for name in names)
        for column, names in columns_of(classes).items()
    }
    # Nuclei that are all negative have the H-score 0. Positive ones without a grade have none.
    if not any(name.rpartition(": ")[2] == "Positive" for name in own):
        shares = shares_of(classes, counts)
        numbers |= {column: value for column, value in shares.items() if column in scores}
    complete: Row = {}
    for column, value in row.items():
        if column not in columns:
            complete[column] = value
        if column == ALL_DETECTIONS:
            complete |= numbers
    return complete


def warn_of_missing_classes(asked: Sequence[str] | None, classes: Collection[str | None]) -> None:
    """Warn about requested classes that no detection has: their count is 0.

    Parameters
    ----------
    asked : sequence of str or None
        Requested classes; an empty name means detections without a class.
    classes : collection of str or None
        Classes of the detections.
    """
    existing = sorted({name or "" for name in classes})
    for name in asked or ():
        if name not in existing:
            names = ", ".join(name or "unclassified" for name in existing) or "none"
            _log.warning(
                "no detection has the class %r; classes of the detections: %s", name, names
            )


def without_row(
    images: Sequence[ImageEntry], rows: Sequence[Row], failed: Collection[str]
) -> list[ImageEntry]:
    """Return the images without a row in a table, except those that could not be counted.

    Parameters
    ----------
    failed : collection of str
        IDs of the images that could not be counted.
    """
    known = {row["image_id"] for row in rows}.union(failed)
    return [entry for entry in images if entry.id not in known]
