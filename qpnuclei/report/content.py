"""The content of a report for one image: counts as exported, nuclei, and pictures."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.choices import CERTAINTY, NUCLEUS_CLASS
from qpnuclei.errors import QpnucleiError, number_of, standing_alone
from qpnuclei.measure.shape import AREA
from qpnuclei.pipeline.positivity import grades_of
from qpnuclei.qupath.analysed import Status
from qpnuclei.qupath.areas import union, valid_area
from qpnuclei.qupath.class_counts import is_positive
from qpnuclei.qupath.counted_image import CountedImage, analysed_area, counted_image, counted_nuclei
from qpnuclei.qupath.counts import Row, count_objects
from qpnuclei.qupath.filters import filters_of
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import Annotation, Detections, ImageEntry, Project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.report.density import density_map, viridis_steps
from qpnuclei.report.histogram import Histogram, histogram
from qpnuclei.report.pictures import (
    PALETTE,
    Outline,
    Picture,
    embedded,
    legible_tags,
    outlines,
    scale_bar,
)
from qpnuclei.report.runs import Run, RunOfImage, is_unrecorded, run_that_wrote, runs_in
from qpnuclei.report.views import View, choose_views, moved_inside, seam_views, tile_borders
from qpnuclei.segmentation.sidecar import PROBABILITY

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

Floats = npt.NDArray[np.float64]

#: Names of the measurements of certainty, size and haematoxylin: those of qpnuclei, and then those
#: of QuPath cells and of StarDist.
_CERTAINTY = (CERTAINTY, PROBABILITY, "Detection probability")
_SIZE = (AREA, "Nucleus: Area µm^2", "Nucleus: Area")
_HAEMATOXYLIN = (
    "Hematoxylin: Mean",
    "Nucleus: Hematoxylin: Mean",
    "Nucleus: Hematoxylin OD mean",
    "Hematoxylin: Nucleus: Mean",
)
_DAB = ("DAB: Mean", "Nucleus: DAB: Mean", "Nucleus: DAB OD mean", "DAB: Nucleus: Mean")
#: Largest width and height of the picture of an image, in px.
_WHOLE_PX = (1000, 1000)
#: Largest width and height of a view in px, and its resolution in µm/px.
_VIEW_PX, _VIEW_MPP = 480, 0.25
#: Nuclei are drawn if their centroids lie in a view or up to this distance in µm outside it.
_RIM_UM = 25.0
#: Largest numbers of annotations with a name on the picture, and of drawn annotations.
_MOST_TAGS, _MOST_DRAWN = 25, 500


@dataclass(frozen=True)
class Crop:
    """A small part of an image, with the outlines of its nuclei."""

    title: str
    caption: str
    picture: Picture


@dataclass(frozen=True)
class ColourBar:
    """The colours of a density map, its ticks (percent, density), and whether it is cut off."""

    colours: tuple[str, ...]
    ticks: tuple[tuple[float, float], ...]
    sigma_um: float
    cut: bool


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
    whole: Picture | None = None
    density: Picture | None = None
    colour_bar: ColourBar | None = None
    crops: tuple[Crop, ...] = ()
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
            if row["check"] and row["check"] != self.row["check"]:
                lines.append(
                    f"{row['annotation'] or row['class'] or 'unclassified'}: {row['check']}"
                )
        return lines

    @property
    def changed(self) -> int:
        """Number of annotations that were edited since they were analysed."""
        return sum(row["status"] == Status.CHANGED for row in self.rows)


@dataclass(frozen=True, eq=False)
class _Nuclei:
    """The counted nuclei, which of them are positive, and the area that was searched for them.

    `rows` are their indices among the detections of the image.
    """

    rows: npt.NDArray[np.int64]
    geometries: npt.NDArray[Any]
    centroids: Floats
    measurements: dict[str, Floats]
    positive: npt.NDArray[np.bool_]
    area: shapely.Geometry
    mpp: tuple[float, float] | None = field(default=None)

    def first_of(self, names: Sequence[str]) -> Floats | None:
        """Return the first available of several measurements for each nucleus; None without any.

        Nuclei of cells have other names for the same measurement.
        """
        values = np.full(len(self.geometries), np.nan)
        for name in names:
            if name in self.measurements:
                values = np.where(np.isfinite(values), values, self.measurements[name])
        return values if np.isfinite(values).any() else None

    @property
    def sizes(self) -> Floats | None:
        """Areas in µm² where they were measured, as in the tables; if none was, of the outlines."""
        measured = self.first_of(_SIZE)
        if measured is not None or self.mpp is None or not len(self.geometries):
            return measured
        computed: Floats = shapely.area(self.geometries) * self.mpp[0] * self.mpp[1]
        return computed


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
    nuclei = _nuclei(image, nucleus_classes)
    pictures: dict[str, Any] = {}
    problems: list[QpnucleiError] = []
    with standing_alone(f"image {entry.name}", problems.append), open_image(entry) as slide:
        pictures = _pictures(slide, image, shown, nuclei, run, of_run, colours)
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
                ("Haematoxylin, mean", "optical density", nuclei.first_of(_HAEMATOXYLIN)),
                ("DAB, mean", "optical density", nuclei.first_of(_DAB)),
            )
            if values is not None and len(values)
        ),
        has_positive=bool(nuclei.positive.any()),
        otherwise=_classified_otherwise(image.objects.detections, nuclei.rows, run),
        locked=_locked(image.objects.detections, nuclei.rows),
        foreign=int(np.count_nonzero(~image.objects.detections.ours[nuclei.rows])),
        problem="; ".join(error.what for error in problems),
        **pictures,
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


def _nuclei(image: CountedImage, nucleus_classes: Sequence[str] | None) -> _Nuclei:
    rows = np.flatnonzero(counted_nuclei(image, nucleus_classes))
    detections = image.objects.detections
    area = analysed_area(image)
    if area.is_empty:
        area = union(a.area for a in image.objects.annotations if a.is_area)
    if area.is_empty and image.size is not None:
        area = shapely.box(0, 0, *image.size)
    wanted = {*_CERTAINTY, *_SIZE, *_HAEMATOXYLIN, *_DAB}
    return _Nuclei(
        rows,
        detections.nucleus_geometries[rows],
        detections.centroids[rows],
        {n: c[rows] for n, c in detections.measurements.items() if n in wanted},
        np.array([is_positive(detections.class_names[row]) for row in rows.tolist()], bool),
        area,
        image.mpp,
    )


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


def _pictures(
    slide: Slide,
    image: CountedImage,
    shown: Sequence[Annotation],
    nuclei: _Nuclei,
    run: Run | None,
    of_run: RunOfImage | None,
    colours: dict[str, str],
) -> dict[str, Any]:
    made: dict[str, Any] = {"whole": _whole(slide, shown, nuclei.mpp, colours)}
    if nuclei.mpp is not None and len(nuclei.centroids):
        density = density_map(nuclei.centroids, nuclei.area, nuclei.mpp)
        if density is not None:
            picture = density.image()
            made["density"] = Picture(
                embedded(picture, "PNG"),
                *picture.size,
                scale_bar((density.box[2] - density.box[0]) * nuclei.mpp[0]),
            )
            made["colour_bar"] = ColourBar(
                viridis_steps(),
                tuple((100 * share, share * density.top) for share in (0.0, 0.25, 0.5, 0.75, 1.0)),
                density.sigma_um,
                bool(np.nanmax(density.values) > density.top),
            )
    views = []
    if len(nuclei.centroids):
        certainty = nuclei.first_of(_CERTAINTY)
        views += choose_views(nuclei.centroids, certainty, nuclei.area, nuclei.mpp)
        views += _seams(slide, image, nuclei, run, of_run)
    views = [moved_inside(view, (slide.width, slide.height)) for view in views]
    made["crops"] = tuple(_crop(slide, nuclei, view) for view in views)
    return made


def _seams(
    slide: Slide, image: CountedImage, nuclei: _Nuclei, run: Run | None, of_run: RunOfImage | None
) -> list[View]:
    """Return views of seams, if the tiles of the last run are known for certain."""
    tile_px = None if run is None else run.arguments.get("tile_px")
    if run is None or of_run is None or not isinstance(tile_px, int) or of_run.mpp is None:
        return []
    if of_run.working_mpp is None or (of_run.tiles or 0) < 2:
        return []
    by_id = {str(area.id): area.geometry for area in image.record.areas}
    areas = [by_id.get(str(identifier)) for identifier in of_run.region_ids]
    known = [area for area in areas if area is not None]
    if not known or len(known) < len(areas):
        return []
    area = union(valid_area(part) for part in known)
    size = slide.width, slide.height
    lengths = {name: run.number(name) for name in ("max_nucleus_um", "cell_expansion_um")}
    known_lengths = {name: value for name, value in lengths.items() if value is not None}
    xs, ys = tile_borders(area, size, of_run.mpp, of_run.working_mpp, tile_px, **known_lengths)
    return seam_views(xs, ys, nuclei.centroids, area, of_run.mpp)


def _whole(
    slide: Slide,
    annotations: Sequence[Annotation],
    mpp: tuple[float, float] | None,
    colours: dict[str, str],
) -> Picture:
    """Draw annotations and TMA cores on the whole image."""
    rgb = slide.thumbnail(*_WHOLE_PX)
    height, width = rgb.shape[:2]
    scale = width / slide.width, height / slide.height
    largest = sorted(annotations, key=lambda a: -a.area.area)[:_MOST_DRAWN]
    classes = list(dict.fromkeys(map(_group, annotations)))
    for name in classes:
        colours.setdefault(name, PALETTE[len(colours) % len(PALETTE)])
    paths, tags = [], []
    for annotation in largest:
        data = outlines([annotation.geometry], (0, 0), scale, tolerance_px=0.5)
        if data:
            paths.append(Outline("annotation", data, colours[_group(annotation)]))
    for annotation in largest[:_MOST_TAGS]:
        if annotation.is_area:
            point = shapely.point_on_surface(annotation.area)
            at = 100 * point.x / slide.width, 100 * point.y / slide.height
            text = annotation.name or _group(annotation)
            tags.append((at, text, colours[_group(annotation)]))
    bar = scale_bar(None if mpp is None else slide.width * mpp[0])
    legend = tuple((name, colours[name]) for name in classes)
    return Picture(
        embedded(rgb),
        width,
        height,
        bar,
        tuple(paths),
        legible_tags(tags, width / height),
        legend=legend,
    )


def _group(annotation: Annotation) -> str:
    """Return what the legend calls an annotation or TMA core."""
    if annotation.class_name:
        return annotation.class_name
    return "TMA core" if annotation.kind != "annotation" else "unclassified"


def _crop(slide: Slide, nuclei: _Nuclei, view: View) -> Crop:
    x0, y0, x1, y1 = view.box
    mpp = nuclei.mpp
    if mpp is None:
        width, height = round(x1 - x0), round(y1 - y0)
    else:
        width, height = (
            min(_VIEW_PX, round(length * um / _VIEW_MPP))
            for length, um in ((x1 - x0, mpp[0]), (y1 - y0, mpp[1]))
        )
    downsample = (x1 - x0) / width, (y1 - y0) / height
    left, top = round(x0 / downsample[0]), round(y0 / downsample[1])
    rgb = slide.read(left, top, width, height, downsample)
    origin = left * downsample[0], top * downsample[1]
    rim = 0 if mpp is None else np.array([_RIM_UM / mpp[0], _RIM_UM / mpp[1]])
    low, high = np.array(view.box[:2]), np.array(view.box[2:])
    near = ((nuclei.centroids > low - rim) & (nuclei.centroids < high + rim)).all(axis=1)
    inside = ((nuclei.centroids >= low) & (nuclei.centroids < high)).all(axis=1)
    caption = [number_of(int(np.count_nonzero(inside)), "nucleus")]
    certainty = nuclei.first_of(_CERTAINTY)
    if certainty is not None:
        known = certainty[inside & np.isfinite(certainty)]
        if known.size:
            caption.append(f"certainty {known.mean():.2f}")
    if nuclei.positive.any():
        caption.insert(1, f"{np.count_nonzero(inside & nuclei.positive)} positive")
    paths = []
    for style, drawn in (("nucleus", ~nuclei.positive), ("nucleus positive", nuclei.positive)):
        found = nuclei.geometries[near & drawn]
        data = outlines(found, origin, (1 / downsample[0], 1 / downsample[1]))
        if data:
            paths.append(Outline(style, data))
    box = shapely.box(*view.box)
    edge = shapely.difference(shapely.intersection(box, nuclei.area).boundary, box.boundary)
    picture = Picture(
        embedded(rgb),
        width,
        height,
        scale_bar(None if mpp is None else (x1 - x0) * mpp[0]),
        tuple(paths),
        border=outlines([edge], origin, (1 / downsample[0], 1 / downsample[1])),
    )
    return Crop(view.title, ", ".join(caption), picture)
