"""Boxes of a project in which a user drew or corrected all nuclei, as annotated images.

A box is an annotation in which every nucleus is right. Nuclei are never cut at its border: each
one counts or does not. A drawn nucleus counts if its centroid is in the box, as in QuPath. A
predicted nucleus is compared with the drawn nucleus that it overlaps most, and counts if that one
does. Without such a drawn nucleus, it counts if its centroid is in the box.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.choices import NUCLEUS_CLASS
from qpnuclei.errors import MppError, UsageError, number_of
from qpnuclei.evaluation.datasets import AnnotatedImage, AnnotatedSet
from qpnuclei.evaluation.labelmap import label_map
from qpnuclei.evaluation.matching import overlaps_of_outlines
from qpnuclei.nuclei.overlap import are_among
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.annotation_classes import no_annotation_of
from qpnuclei.qupath.areas import valid_area
from qpnuclei.qupath.image_names import match_images
from qpnuclei.qupath.images import open_image, stains_of
from qpnuclei.qupath.model import Annotation, ImageEntry, ImageObjects
from qpnuclei.qupath.names import place_searched
from qpnuclei.qupath.pixel_size import AskedMpp, pixel_size
from qpnuclei.qupath.project import open_project
from qpnuclei.qupath.project_file import is_project, one_of_each_project
from qpnuclei.qupath.regions import Region, rows_inside
from qpnuclei.slides.hdab_as_he import seen_by_network

#: Margin around a box that the network sees: more than the largest nuclei.
_MARGIN_UM = 30.0
#: The frame of a box begins at multiples of this, in level-0 px. Networks give the same result as
#: in a run only where their cells lie in the same way: at multiples of their stride (at most 64),
#: also on images reduced to a quarter.
_ALIGNED_PX = 256
#: Largest box with its margin, in px: it is read at once.
_MAX_PX = 2**27
#: Colour outside a box that is read without its surroundings: glass.
_GLASS = 255

Geometries = npt.NDArray[Any]

#: The rule, for reports.
RULE = (
    "A drawn nucleus counts if its centroid is in the box. A predicted nucleus that shares more "
    "than half of the smaller area with a drawn nucleus counts if that one does. Every other "
    "predicted nucleus counts if its centroid is in the box."
)


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxImage(AnnotatedImage):
    """A box in an image of a project, with the nuclei drawn there.

    Parameters
    ----------
    entry : ImageEntry
    frame : (int, int, int, int)
        x0, y0, x1, y1 in level-0 px: at least the box with its margin, as far as the slide goes.
    box : shapely geometry
        Polygon or MultiPolygon, in px of the frame.
    drawn : (N,) object ndarray of shapely.Polygon
        All nuclei drawn in the frame, in px of the frame.
    counts : (N,) bool ndarray
        Whether each drawn nucleus counts.
    """

    entry: ImageEntry
    frame: tuple[int, int, int, int]
    box: shapely.Geometry
    drawn: Geometries
    counts: npt.NDArray[np.bool_]

    @property
    def border(self) -> shapely.Geometry:
        """The box, in px of the frame."""
        return self.box

    def read_image(self) -> npt.NDArray[np.uint8]:
        """Return the frame as (H, W, 3) uint8 RGB, with the colours that a network sees in a run.

        Raises
        ------
        qpnuclei.errors.SlideError
            If the slide cannot be read.
        qpnuclei.errors.FormatError
            If its stain vectors cannot be used.
        """
        x0, y0, x1, y1 = self.frame
        with open_image(self.entry) as slide:
            pixels = seen_by_network(slide, stains_of(self.entry))
            return np.ascontiguousarray(pixels.read(x0, y0, x1 - x0, y1 - y0, (1.0, 1.0)))

    def read_labels(self) -> npt.NDArray[np.int32]:
        """Return the (H, W) int32 instance map of the nuclei that count."""
        return label_map(self.drawn[self.counts], self._shape)

    def read_around(
        self,
    ) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
        """Return the box with its margin, all nuclei drawn there, and the mask of the box."""
        assert self.mpp is not None  # a box has one
        margin = _MARGIN_UM / self.mpp
        x0, y0 = (max(0, math.floor(low - margin)) for low in self.box.bounds[:2])
        window = slice(y0, None), slice(x0, None)  # the frame ends with the margin
        labels = label_map(self.drawn, self._shape)
        return (
            np.ascontiguousarray(self.read_image()[window]),
            np.ascontiguousarray(labels[window]),
            np.ascontiguousarray(self._inside[window]),
        )

    def read_alone(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32]]:
        """Return the box without its surroundings: nuclei are cut, and the outside is glass."""
        rgb, labels = self.read_image(), label_map(self.drawn, self._shape)
        outside = ~self._inside
        rgb[outside], labels[outside] = _GLASS, 0
        x0, y0, x1, y1 = (round(v) for v in self.box.bounds)
        window = slice(y0, y1), slice(x0, x1)
        return np.ascontiguousarray(rgb[window]), np.ascontiguousarray(labels[window])

    def counted(self, nuclei: NucleiTable) -> NucleiTable:
        """Return the found nuclei that count."""
        found = nuclei.polygons()
        keep = shapely.intersects_xy(self.box, nuclei.centroids())
        o = overlaps_of_outlines(self.drawn, found)
        met = o.pair_area > o.pair_smaller / 2
        order = np.argsort(o.pair_area[met], kind="stable")
        # The pair with the largest shared area comes last, so it decides.
        keep[o.pair_predicted[met][order]] = self.counts[o.pair_true[met][order]]
        return nuclei.take(keep)

    @property
    def _inside(self) -> npt.NDArray[np.bool_]:
        """The mask of the box."""
        inside: npt.NDArray[np.bool_] = label_map(shapely.get_parts(self.box), self._shape) > 0
        return inside

    @property
    def _shape(self) -> tuple[int, int]:
        x0, y0, x1, y1 = self.frame
        return y1 - y0, x1 - x0


def read_boxes(
    path: Path,
    roi: Sequence[str],
    truth_classes: Sequence[str] = (),
    *,
    images: Sequence[str] = (),
    mpp: float | None = None,
    image_root: Path | None = None,
    limit: int | None = None,
) -> AnnotatedSet[BoxImage]:
    """Read the nuclei that were drawn in boxes of a project.

    Parameters
    ----------
    path : Path
        Project.
    roi : sequence of str
        Classes of the annotations that are boxes, of any shape.
    truth_classes : sequence of str
        Classes of the drawn nuclei: detections, cells (their nuclei) and annotations with an area,
        from any program; ``Nucleus`` by default. A detection of qpnuclei counts as corrected, and
        is left out, if it shares more than half of the smaller area with another object.
    images : sequence of str
        Names or patterns of images; all by default.
    mpp : float, optional
        µm per level-0 px of all images.
    image_root : Path, optional
        Folder to search for the slides of a project that was moved.
    limit : int, optional
        Only the first boxes, up to this number; images of which none is among them are not read.

    Raises
    ------
    UsageError
        If no class of boxes is given, there is no box, boxes overlap, or no nucleus is drawn in a
        box. Also if,
        without `truth_classes`, all nuclei in the boxes are unchanged detections of qpnuclei.
    MppError
        If the pixel size is not known, or pixels are not square.
    QpnucleiError
        If the project or an image cannot be read.
    """
    if not roi:
        raise UsageError(
            f"{path} is a project, and --roi is missing: the class of the annotations in which "
            "all nuclei are drawn",
            "name this class with --roi, and that of the nuclei with --truth-class",
        )
    classes = tuple(truth_classes) or (NUCLEUS_CLASS,)
    project = open_project(path, image_root=image_root)
    boxes: list[BoxImage] = []
    ours = corrected = left_out = 0
    entries = match_images(project, images)
    for entry in entries:
        left = None if limit is None else limit - len(boxes)
        if left == 0:
            break
        objects = entry.read()
        areas = [a for a in objects.annotations if a.class_name in roi and a.is_area][:left]
        if not areas:
            continue
        _check_apart(entry, areas)
        nuclei = _drawn(objects, classes, roi)
        left_out += nuclei.left_out
        (mpp_x, mpp_y), _ = pixel_size(
            entry, Record.of(objects.properties, entry.name), AskedMpp(mpp)
        )
        if abs(mpp_x / mpp_y - 1) > 0.01:
            raise MppError(
                f"image {entry.name} has pixels of {mpp_x:.4g} x {mpp_y:.4g} µm, which are not "
                "square",
                "give one --mpp for both",
            )
        with open_image(entry) as slide:
            size = slide.width, slide.height
        for box in areas:
            made, of_ours, of_corrected = _box(path, entry, box, nuclei, mpp_x, size, classes)
            boxes.append(made)
            ours, corrected = ours + of_ours, corrected + of_corrected
    if not boxes:
        present = {a.class_name for entry in entries for a in entry.read().annotations}
        where = place_searched(project, entries)
        raise no_annotation_of(roi, present, where, kind=" with an area")
    total = sum(int(np.count_nonzero(box.counts)) for box in boxes)
    if ours == total and not truth_classes:
        raise UsageError(
            f"{path}: all nuclei of class {classes[0]!r} in the boxes ({total}) are unchanged "
            "detections of qpnuclei: there is nothing to learn from or compare with",
            "draw or correct nuclei in QuPath, or name the class of the right nuclei with "
            "--truth-class",
        )
    written = f", {ours} of them unchanged detections of qpnuclei" if ours else ""
    notes = [
        f"Truth: {number_of(total, 'nucleus')} of class {', '.join(classes)} in "
        f"{number_of(len(boxes), 'box')} of class {', '.join(roi)}{written}.",
        RULE,
    ]
    if corrected:
        notes.append(
            f"Corrected: {number_of(corrected, 'detection')} of qpnuclei. The corrections count "
            "instead."
        )
    if left_out:
        notes.append(
            f"Left out: {number_of(left_out, 'object')} of class {', '.join(classes)} without an "
            "area."
        )
    described = {
        "roi": list(roi),
        "truth_class": list(classes),
        "boxes": len(boxes),
        "nuclei": total,
        "nuclei_by_qpnuclei": ours,
        "mended": corrected,
    }
    return AnnotatedSet(boxes, described, tuple(notes))


def _check_apart(entry: ImageEntry, boxes: Sequence[Annotation]) -> None:
    """Refuse boxes that overlap: nuclei in both would count twice."""
    outlines = [box.area for box in boxes]
    for first, second in shapely.STRtree(outlines).query(outlines, predicate="intersects").T:
        if first < second and shapely.intersection(outlines[first], outlines[second]).area > 0:
            raise UsageError(
                f"image {entry.name}: the boxes {boxes[first].label} and {boxes[second].label} "
                "overlap, and nuclei in both would count twice",
                "move or merge them in QuPath, or give one of them another class",
            )


def read_corrected(
    paths: Sequence[Path],
    roi: Sequence[str],
    truth_classes: Sequence[str] = (),
    *,
    images: Sequence[str] = (),
    mpp: float | None = None,
    image_root: Path | None = None,
) -> AnnotatedSet[BoxImage]:
    """Read the boxes of all projects among some paths, for training; none without `roi`.

    Raises
    ------
    UsageError
        If `roi` is given, but no path is a project; or `truth_classes` without it. Also as
        `read_boxes`, like all other errors.
    """
    if truth_classes and not roi:
        raise UsageError(
            "--truth-class was given without --corrections",
            "add --corrections with the class of the annotations around the drawn nuclei",
        )
    projects = one_of_each_project(path for path in paths if is_project(path)) if roi else []
    if roi and not projects:
        raise UsageError(
            f"--corrections {roi[0]!r} was given, but no source is a QuPath project",
            "only projects have annotations",
        )
    drawn = [
        read_boxes(path, roi, truth_classes, images=images, mpp=mpp, image_root=image_root)
        for path in projects
    ]
    return AnnotatedSet(
        [box for of_project in drawn for box in of_project.images],
        {},
        tuple(of_project.notes[0] for of_project in drawn),
    )


@dataclass(frozen=True, eq=False)
class _Nuclei:
    """The drawn nuclei of an image; `ours` are detections of qpnuclei."""

    outlines: Geometries
    centroids: npt.NDArray[np.float64]
    planes: npt.NDArray[np.int64]
    ours: npt.NDArray[np.bool_]
    left_out: int


def _drawn(objects: ImageObjects, classes: Sequence[str], roi: Sequence[str]) -> _Nuclei:
    """Return the drawn nuclei of an image: detections, cells and annotations of some classes."""
    found = objects.detections
    rows = [row for row, name in enumerate(found.class_names) if name in classes]
    annotations = [
        a for a in objects.annotations if a.class_name in classes and a.class_name not in roi
    ]
    shapes = [*found.nucleus_geometries[rows], *(a.area for a in annotations)]
    planes = [*found.planes[rows].tolist(), *([a.z, a.t] for a in annotations)]
    ours = [*found.ours[rows].tolist(), *([False] * len(annotations))]
    outlines = np.full(len(shapes), shapely.Polygon(), dtype=object)
    outlines[:] = [_largest(shape) for shape in shapes]
    solid = ~shapely.is_empty(outlines)
    centroids = shapely.get_coordinates(shapely.centroid(outlines[solid]))
    return _Nuclei(
        outlines[solid],
        centroids,
        np.array(planes, np.int64).reshape(-1, 2)[solid],
        np.array(ours, bool)[solid],
        int(np.count_nonzero(~solid)),
    )


def _largest(shape: shapely.Geometry) -> shapely.Polygon:
    """Return the largest valid polygon of an outline; empty if it has no area."""
    if shape.geom_type not in ("Polygon", "MultiPolygon"):
        return shapely.Polygon()
    parts = shapely.get_parts(valid_area(shape))
    return max(parts, key=shapely.area) if len(parts) else shapely.Polygon()


def _box(
    path: Path,
    entry: ImageEntry,
    annotation: Annotation,
    nuclei: _Nuclei,
    mpp: float,
    size: tuple[int, int],
    classes: Sequence[str],
) -> tuple[BoxImage, int, int]:
    """Return a box, with its numbers of unchanged and of corrected detections of qpnuclei."""
    what = f"image {entry.name}, box {annotation.label}"
    area = shapely.intersection(annotation.area, shapely.box(0, 0, *size))
    if area.is_empty:
        raise UsageError(f"{what}: it lies outside the image", "move or delete it")
    margin = _MARGIN_UM / mpp
    low = np.maximum(np.floor(np.array(area.bounds[:2]) - margin), 0).astype(int)
    low -= low % _ALIGNED_PX
    high = np.minimum(np.ceil(np.array(area.bounds[2:]) + margin), size).astype(int)
    frame = (int(low[0]), int(low[1]), int(high[0]), int(high[1]))
    if np.prod(high - low) > _MAX_PX:
        raise UsageError(
            f"{what}: it is larger than {_MAX_PX // 10**6} megapixels", "draw smaller boxes"
        )
    rows = np.flatnonzero((nuclei.planes == (annotation.z, annotation.t)).all(axis=1))
    rows = rows[shapely.intersects(nuclei.outlines[rows], shapely.box(*frame))]
    outlines, ours = nuclei.outlines[rows], nuclei.ours[rows]
    corrected = _corrected(outlines, ours)
    (inside,) = rows_inside([Region.of(annotation)], nuclei.centroids[rows], nuclei.planes[rows])
    counts = np.zeros(len(rows), bool)
    counts[inside] = True
    of_corrected = int(np.count_nonzero(counts & corrected))
    outlines, counts, ours = outlines[~corrected], counts[~corrected], ours[~corrected]
    if not counts.any():
        raise UsageError(
            f"{what}: no nucleus of class {' or '.join(map(repr, classes))} is drawn in it",
            "draw all nuclei in it, name their class with --truth-class, or give the box another "
            "class",
        )

    def shifted(geometries: Any) -> Any:
        return shapely.transform(geometries, lambda xy: xy - low)

    made = BoxImage(
        f"{entry.name}, {annotation.label}",
        Path(entry.path or entry.name),
        path,
        mpp,
        entry=entry,
        frame=frame,
        box=shifted(area),
        drawn=shifted(outlines),
        counts=counts,
    )
    return made, int(np.count_nonzero(counts & ours)), of_corrected


def _corrected(outlines: Geometries, ours: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Tell which detections of qpnuclei overlap a correction; see `are_among`."""
    own, other = np.flatnonzero(ours), np.flatnonzero(~ours)
    corrected = np.zeros(len(ours), bool)
    corrected[own] = are_among(outlines[own], outlines[other])
    return corrected
