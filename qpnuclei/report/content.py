"""The content of a report for one image: counts as exported, and what is said of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import compress
from uuid import UUID

import numpy as np
import numpy.typing as npt

from qpnuclei.choices import NUCLEUS_CLASS
from qpnuclei.errors import QpnucleiError, standing_alone
from qpnuclei.pipeline.positivity import grades_of
from qpnuclei.qupath.analysed import Status
from qpnuclei.qupath.counted_image import CountedImage, counted_image
from qpnuclei.qupath.counts import Row, count_objects
from qpnuclei.qupath.doubts import unsaid
from qpnuclei.qupath.filters import filters_of
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import Annotation, Detections, ImageEntry, Project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.report.histogram import Histogram, histogram
from qpnuclei.report.image_pictures import NO_PICTURES, ImagePictures, image_pictures
from qpnuclei.report.measured_nuclei import MeasuredNuclei
from qpnuclei.report.runs import Run, RunOfImage, is_unrecorded, run_that_wrote, runs_in


@dataclass(frozen=True)
class ImageContent:
    """The content of a report for one image.

    Parameters
    ----------
    rows, class_rows : list of dict
        Counts of annotations and classes, from `qpnuclei.qupath.counts.count_objects`, without
        drawn nuclei.
    drawn_nuclei : int
        Number of nuclei that a user drew as annotations (see docs/corrections.md).
    row : dict
        Counts of the whole image.
    classes : frozenset of str or None
        Classes of its detections.
    written_by : Run
        Run that wrote the nuclei; `run` is the entry of the image in the record of that run.
    runs : tuple of Run
        All runs whose nuclei are in the image, newest first.
    filters : tuple of (float, tuple of str, bool)
        For each filter of these nuclei the least certainty, the classes of annotations (none:
        everywhere), and whether a run has written into the image since.
    is_unrecorded : bool
        Whether the record of a run whose nuclei are in the image is missing.
    others : tuple of str
        Classes of counted detections of other programs, if no run has analysed the image.
    problem : str
        Reason why there are no pictures; empty if there are pictures.
    otherwise : int
        Number of nuclei that have another class than the thresholds of `written_by` give.
    locked : int
        Number of nuclei of runs that a user has locked.
    foreign : int
        Number of counted nuclei that are detections of other programs.
    """

    entry: ImageEntry
    number: int
    rows: list[Row]
    class_rows: list[Row]
    drawn_nuclei: int
    row: Row
    mpp: tuple[float, float] | None
    written_by: Run | None
    run: RunOfImage | None
    runs: tuple[Run, ...] = ()
    filters: tuple[tuple[float, tuple[str, ...], bool], ...] = ()
    is_unrecorded: bool = False
    classes: frozenset[str | None] = frozenset()
    others: tuple[str, ...] | None = None
    pictures: ImagePictures = NO_PICTURES
    histograms: tuple[Histogram, ...] = ()
    has_positive: bool = False
    otherwise: int = 0
    locked: int = 0
    foreign: int = 0
    problem: str = ""

    @property
    def name(self) -> str:
        """Name of the image."""
        return self.entry.name

    @property
    def doubts(self) -> list[str]:
        """Reasons for doubt, one per line."""
        lines = [self.row["check"]] if self.row["check"] else []
        for row in self.rows:
            doubt = unsaid(row["check"] or "", self.row["check"] or "")
            if doubt:
                lines.append(f"{row['annotation'] or row['class'] or 'unclassified'}: {doubt}")
        return lines

    @property
    def changed(self) -> int:
        """Number of annotations that were edited since they were analysed."""
        return sum(row["status"] == Status.CHANGED for row in self.rows)


def image_content(
    project: Project,
    entry: ImageEntry,
    number: int,
    runs: Sequence[Run],
    nucleus_classes: Sequence[str] | None,
    pixel_sizes: AskedMpp,
    colours: dict[str, str],
) -> ImageContent:
    """Count and draw one image.

    Parameters
    ----------
    runs : sequence of Run
        Newest first. The run that wrote the nuclei may be missing.
    colours : dict
        Colour of each entry of the legends so far; new ones are added.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the objects of the image cannot be read. Unreadable pixels only cause a missing picture.
    """
    image = counted_image(entry, pixel_sizes, project, warns=False)  # the page shows the warning
    others = None
    if nucleus_classes is None and not image.record.areas:
        nucleus_classes = others = _classes_of_others(image)
    record = image.record
    run = run_that_wrote(runs, entry.id, record.run) if record.areas else None
    of_run = None if run is None else run.of_image(entry.id)
    by = {
        grouping: count_objects(image, grouping, nucleus_classes=nucleus_classes)
        for grouping in ("annotation", "class", "image")
    }
    annotations = (*image.objects.cores, *image.objects.annotations)
    analysed = {area.id for area in record.areas}
    is_shown = [not _is_drawn_nucleus(annotation, analysed) for annotation in annotations]
    shown = list(compress(annotations, is_shown))
    names = {annotation.class_name for annotation in shown}
    nuclei = MeasuredNuclei.of(image, nucleus_classes)
    pictures = NO_PICTURES
    problems: list[QpnucleiError] = []
    with standing_alone(f"image {entry.name}", problems.append), open_image(entry) as slide:
        pictures = image_pictures(slide, image, shown, nuclei, run, of_run, colours)
    return ImageContent(
        entry=entry,
        number=number,
        rows=list(compress(by["annotation"], is_shown)),
        class_rows=[row for row in by["class"] if row["class"] in names],
        drawn_nuclei=is_shown.count(False),
        row=by["image"][0],
        mpp=image.mpp,
        written_by=run,
        run=of_run,
        runs=tuple(runs_in(runs, entry.id, record)),
        filters=tuple(
            (one.least, one.classes, one.is_followed(record))
            for one in filters_of(image.objects.properties, record, entry.name)
        ),
        is_unrecorded=is_unrecorded(runs, entry.id, record),
        classes=frozenset(image.objects.detections.class_names),
        others=others,
        histograms=tuple(
            histogram(title, unit, values)
            for title, unit, values in (
                ("Size", "µm²", nuclei.sizes),
                ("Haematoxylin, mean", "optical density", nuclei.haematoxylin),
                ("DAB, mean", "optical density", nuclei.dab),
            )
            if values is not None and len(values)
        ),
        has_positive=bool(nuclei.positive.any()),
        otherwise=_classified_otherwise(image.objects.detections, nuclei.rows, run),
        locked=_locked(image.objects.detections, nuclei.rows),
        foreign=int(np.count_nonzero(~image.objects.detections.ours[nuclei.rows])),
        problem="; ".join(error.what for error in problems),
        pictures=pictures,
    )


def _is_drawn_nucleus(annotation: Annotation, analysed: Collection[UUID | None]) -> bool:
    """Tell whether an annotation is a nucleus that a user drew: of its class, and no ROI of a run.

    A box has hundreds: among their rows and outlines, nothing else would be seen.
    """
    return annotation.class_name == NUCLEUS_CLASS and annotation.id not in analysed


def _classes_of_others(image: CountedImage) -> tuple[str, ...] | None:
    """Return the classes of all detections and cells; None if there are none."""
    detections = image.objects.detections
    names = {
        name or ""
        for name, kind in zip(detections.class_names, detections.kinds, strict=True)
        if kind in ("detection", "cell")
    }
    return tuple(sorted(names)) or None


def _locked(detections: Detections, rows: npt.NDArray[np.int64]) -> int:
    """Count the nuclei of runs in some rows that a user has locked."""
    return int(np.count_nonzero(detections.ours[rows] & detections.locked[rows]))


def _classified_otherwise(
    detections: Detections, rows: npt.NDArray[np.int64], run: Run | None
) -> int:
    """Return how many nuclei of qpnuclei have another class than the thresholds of a run give."""
    if run is None or not run.positive_thresholds:
        return 0
    grades = grades_of(detections, run.positive_thresholds)
    return sum(
        bool(grades[row]) and (detections.class_names[row] or "").rpartition(": ")[2] != grades[row]
        for row in rows[detections.ours[rows]].tolist()
    )
