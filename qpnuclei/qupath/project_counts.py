"""Counts of the images of a project."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from functools import partial

from qpnuclei.choices import Grouping
from qpnuclei.errors import QpnucleiError, UsageError, standing_alone
from qpnuclei.qupath.counted_image import counted_image
from qpnuclei.qupath.counts import Row, count_objects
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.pixel_size import AskedMpp

_log = logging.getLogger(__name__)


def count_project(
    project: Project,
    images: Sequence[ImageEntry],
    by: Grouping = "annotation",
    *,
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    mpp: float | None = None,
    pixel_sizes: AskedMpp | None = None,
    failed: Callable[[ImageEntry, QpnucleiError], object] | None = None,
    warned: Collection[str] = (),
) -> list[Row]:
    """Count the detections of some images of a project; see `count_objects`.

    Parameters
    ----------
    failed : callable, optional
        Called with the reason for each image that cannot be counted; the others are counted. By
        default the first such error is raised.
    mpp : float, optional
        µm/px of all the images.
    pixel_sizes : AskedMpp, optional
        Pixel sizes of single images. Without either, `qpnuclei.qupath.pixel_size` decides; without
        a pixel size, areas and densities are NaN.
    warned : collection of str
        IDs of images of which it was said already that they have no pixel size.

    Raises
    ------
    UsageError
        If no annotation has one of the `roi_classes`.
    qpnuclei.errors.FormatError
        If the objects of an image cannot be read.
    """
    rows: list[Row] = []
    known: set[str] = set()
    classes: set[str | None] = set()
    left_out = False

    def report(entry: ImageEntry, error: QpnucleiError) -> None:
        nonlocal left_out
        left_out = True
        if failed is None:
            raise error
        failed(entry, error)

    def count(entry: ImageEntry) -> None:
        warns = entry.id not in warned
        image = counted_image(entry, pixel_sizes or AskedMpp(mpp), project, warns=warns)
        areas = (*image.objects.annotations, *image.objects.cores)
        known.update(a.class_name for a in areas if a.class_name is not None)
        if nucleus_classes:
            classes.update(image.objects.detections.class_names)
        rows.extend(
            count_objects(image, by, roi_classes=roi_classes, nucleus_classes=nucleus_classes)
        )

    for entry in images:
        with standing_alone(f"image {entry.name}", partial(report, entry)):
            count(entry)
    for name in roi_classes or ():
        if name not in known and not left_out:  # an unreadable image may have the class
            raise UsageError(
                f"no annotation has the class {name!r}",
                f"classes there: {', '.join(sorted(known)) or 'none'}",
            )
    warn_of_missing_classes(nucleus_classes, classes)
    return rows


def warn_of_missing_classes(asked: Sequence[str] | None, classes: Collection[str | None]) -> None:
    """Warn of classes that were asked for and that no detection has: a count of them is 0.

    Parameters
    ----------
    asked : sequence of str or None
        An empty name stands for no class.
    classes : collection of str or None
        Of the detections.
    """
    there = sorted({name or "" for name in classes})
    for name in asked or ():
        if name not in there:
            names = ", ".join(name or "unclassified" for name in there) or "none"
            _log.warning("no detection has the class %r; classes there: %s", name, names)


def without_row(
    images: Sequence[ImageEntry], rows: Sequence[Row], failed: Collection[str]
) -> list[ImageEntry]:
    """Return the images of which a table has no row, but for those that could not be counted.

    Parameters
    ----------
    failed : collection of str
        IDs of the images that could not be counted.
    """
    told = {row["image_id"] for row in rows}.union(failed)
    return [entry for entry in images if entry.id not in told]
