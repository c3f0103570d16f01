"""Which annotations a run concerns, and the area they cover."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Sequence, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely
from shapely.validation import explain_validity

from qpnuclei.choices import DEFAULT_EXCLUDED
from qpnuclei.errors import QpnucleiError, UsageError, number_of, quoted, standing_alone
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.analysed_area import NO_AREA
from qpnuclei.qupath.annotation_classes import no_annotation_of
from qpnuclei.qupath.areas import Parts, polygonal, union, valid_areas
from qpnuclei.qupath.image_names import match_images
from qpnuclei.qupath.model import (
    Annotation,
    Detections,
    ImageEntry,
    ImageObjects,
    Project,
    packed_rgb,
)
from qpnuclei.qupath.names import place_searched
from qpnuclei.qupath.regions import Region, rows_inside
from qpnuclei.system.arguments import check_fields, checked_flag, checked_texts, listed
from qpnuclei.system.patterns import matches

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

#: Class of the annotation that a run with --tissue adds.
TISSUE_CLASS = "Tissue"
#: Light grey: tissue is not a finding.
TISSUE_COLOR = packed_rgb(204, 204, 204)

#: Nuclei this near to the border of an analysed area may belong to it: outlines are rounded.
BORDER_PX = 1.0

_log = logging.getLogger(__name__)


def is_excluded(class_name: str | None, patterns: Iterable[str] = DEFAULT_EXCLUDED) -> bool:
    """Tell whether a class is one of those that patterns (``*``, ``?``) leave out.

    Examples
    --------
    >>> is_excluded("Ignore*"), is_excluded("Ignored"), is_excluded("Tumor"), is_excluded(None)
    (True, True, False, False)
    """
    return class_name is not None and any(matches(class_name, p) for p in patterns)


_CHECKS: dict[str, Callable[[str, Any], object]] = {
    "classes": checked_texts,
    "derived": checked_flag,
    "names": checked_texts,
    "everything": checked_flag,
    "tissue": checked_flag,
    "excluded": checked_texts,
}


@dataclass(frozen=True)
class Selection:
    """How the user names the annotations to analyse.

    Parameters
    ----------
    classes : tuple of str
        Classes whose annotations are chosen (``"Tumor"``).
    derived : bool
        Whether a class also stands for those derived from it (``"Tumor: Positive"``).
    names : tuple of str
        Names of single annotations.
    ids : tuple of UUID
        UUIDs of single annotations, as QuPath 0.4 and later store them. Texts are converted.
    everything : bool
        Every annotation that encloses an area. Nuclei of earlier runs do not stay in those that are
        excluded.
    tissue : bool
        The tissue, found automatically, instead of annotations.
    excluded : tuple of str
        Classes whose annotations are left out of all others, and are not chosen by `everything`;
        patterns (``*``, ``?``) are allowed. Those chosen by their class, name or UUID are not
        excluded by default.

    Raises
    ------
    UsageError
        If nothing is chosen, tissue together with annotations, a class both chosen and excluded,
        a text that is no UUID, a name that is no text, or a flag that is neither true nor false.

    Examples
    --------
    >>> Selection(classes=("Tumor", "Stroma"), derived=True).classes
    ('Tumor', 'Stroma')
    >>> Selection()
    Traceback (most recent call last):
    ...
    qpnuclei.errors.UsageError: nothing chosen to analyse ...
    """

    classes: tuple[str, ...] = ()
    derived: bool = False
    names: tuple[str, ...] = ()
    ids: tuple[UUID, ...] = ()
    everything: bool = False
    tissue: bool = False
    excluded: tuple[str, ...] = DEFAULT_EXCLUDED

    def __post_init__(self) -> None:
        check_fields(self, _CHECKS)
        object.__setattr__(self, "ids", tuple(map(_uuid, listed(self.ids))))
        by_annotation = bool(self.classes or self.names or self.ids or self.everything)
        if self.tissue and by_annotation:
            raise UsageError(
                "--tissue replaces annotations and cannot be combined with --roi options"
            )
        if not (self.tissue or by_annotation):
            raise UsageError(
                "nothing chosen to analyse",
                "choose annotations with --roi CLASS, --roi-name NAME, --roi-id UUID or --roi-all, "
                "or --tissue",
            )
        for name in self.classes:
            if self.excluded != DEFAULT_EXCLUDED and self.excludes_class(name):
                raise UsageError(f"the class {name!r} is both chosen and excluded")

    def matches(self, annotation: Annotation) -> bool:
        """Tell whether the annotation is chosen, by its class, name and UUID alone."""
        return self._is_named(annotation) or (
            self.everything and not self.excludes_class(annotation.class_name)
        )

    @property
    def excluded_by_name(self) -> list[str]:
        """The excluded classes that a user named."""
        return [pattern for pattern in self.excluded if pattern not in DEFAULT_EXCLUDED]

    def excludes(self, annotation: Annotation) -> bool:
        """Tell whether the area of the annotation is excluded."""
        return self.excludes_class(annotation.class_name) and not self._is_named(annotation)

    def excludes_class(self, class_name: str | None) -> bool:
        """Tell whether a class is excluded; its annotations may still be chosen by name or UUID."""
        return is_excluded(class_name, self.excluded)

    def _is_named(self, annotation: Annotation) -> bool:
        if annotation.name in self.names and annotation.name is not None:
            return True
        if annotation.id in self.ids and annotation.id is not None:
            return True
        name = annotation.class_name
        return name is not None and any(
            name == wanted or (self.derived and name.startswith(f"{wanted}: "))
            for wanted in self.classes
        )


def _uuid(given: UUID | str) -> UUID:
    if isinstance(given, UUID):
        return given
    try:
        return UUID(given)
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"Selection: ids={quoted(given)}: not a UUID", "give those of annotations in QuPath"
        ) from error


def choose_images(
    project: Project, patterns: Sequence[str], selection: Selection
) -> list[ImageEntry]:
    """Return the images with these names in which an annotation is chosen.

    Images whose data cannot be read are included: the run reports them and continues with others.
    If everything is chosen, so are images with results of earlier runs in excluded annotations.

    Raises
    ------
    UsageError
        If the project has no such image, no image that can be read has such an annotation, or the
        project has no class to exclude. With tissue that is a warning: the first run of new slides
        may have the options of later ones.
    """
    entries = match_images(project, patterns)
    if selection.tissue and not selection.excluded_by_name:
        return entries
    annotations: list[Annotation] = []
    concerned: list[ImageEntry] = []
    unreadable: list[QpnucleiError] = []
    has_left_behind = False
    for entry in entries:
        found: ImageObjects | None = None
        with standing_alone(f"image {entry.name}", unreadable.append):
            found = entry.read()
            annotations += found.annotations
        if selection.tissue or found is None or any(map(selection.matches, found.annotations)):
            concerned.append(entry)
        elif _has_left_behind(selection, found, entry):
            concerned.append(entry)
            has_left_behind = True
    if unreadable and len(unreadable) == len(entries):
        raise unreadable[0]
    try:
        where = place_searched(project, entries)
        check_selection(selection, annotations, where, has_left_behind=has_left_behind)
        chosen = {entry.id for entry in entries}
        others = [entry for entry in project.images if entry.id not in chosen]
        _check_excluded(project, selection, annotations, others, unreadable)
    except UsageError as error:
        if selection.tissue:
            _log.warning("%s: nothing is excluded by it (%s)", error.what, error.hint)
            return concerned
        if unreadable:
            what = f"{error.what}; not all images could be read: {unreadable[0].what}"
            raise UsageError(what, error.hint) from error
        raise
    return concerned


def check_selection(
    selection: Selection,
    annotations: Iterable[Annotation],
    where: str,
    *,
    has_left_behind: bool = False,
) -> None:
    """Refuse classes, names and UUIDs that no annotation has, naming those that exist.

    Parameters
    ----------
    annotations : iterable of Annotation
        Of all the images that the run concerns.
    where : str
        Where was searched, for the message.
    has_left_behind : bool
        Whether results of earlier runs are in annotations that are excluded from everything: then
        there may be no other annotation.

    Raises
    ------
    UsageError
        If a class, name or UUID matches nothing, or there is no area annotation at all.
    """
    if selection.tissue:
        return
    annotations = list(annotations)
    if not annotations:
        raise UsageError(
            f"no annotation in {where}",
            "draw some in QuPath and save, import them with qpnuclei geojson import, or use "
            "--tissue",
        )
    for wanted in selection.classes:
        alone = Selection(classes=(wanted,), derived=selection.derived)
        if not any(alone.matches(a) for a in annotations):
            present = {a.class_name for a in annotations}
            derived = sorted(n for n in present if n and n.startswith(f"{wanted}: "))
            more = f"; with --roi-derived, {wanted} also selects {', '.join(derived)}"
            raise no_annotation_of([wanted], present, where, hint=more if derived else "")
    names = sorted({a.name for a in annotations if a.name})
    for wanted in selection.names:
        if wanted not in names:
            hint = f"names there: {', '.join(names)}" if names else "no annotation has a name"
            raise UsageError(f"no annotation named {wanted!r} in {where}", hint)
    ids = {a.id for a in annotations}
    for identifier in selection.ids:
        if identifier not in ids:
            raise UsageError(
                f"no annotation with the UUID {identifier} in {where}",
                "QuPath before 0.4 stored no UUIDs: open the image in a later version and save it"
                if ids <= {None}
                else "an annotation drawn since QuPath last saved the image is not in the file yet",
            )
    chosen = [a for a in annotations if selection.matches(a)]
    if not (has_left_behind or any(a.is_area for a in chosen)):
        kinds = sorted({a.roi_type for a in chosen})
        raise UsageError(
            f"no chosen annotation in {where} encloses an area"
            + (f": {', '.join(kinds)}" if kinds else ""),
            "draw a polygon, rectangle, ellipse or brush annotation in QuPath",
        )


def _check_excluded(
    project: Project,
    selection: Selection,
    annotations: Iterable[Annotation],
    others: Iterable[ImageEntry],
    unreadable: list[QpnucleiError],
) -> None:
    """Refuse classes to exclude that the project does not know.

    A class of another image than the chosen ones is fine: the same options serve all images.

    Parameters
    ----------
    annotations : iterable of Annotation
        Of the chosen images.
    others : iterable of ImageEntry
        The other images. They are read, one after the other, while neither the project's list of
        classes nor an image read so far has the class.
    unreadable : list of QpnucleiError
        Gets the errors of `others`.
    """
    asked = selection.excluded_by_name
    known = {a.class_name for a in annotations} | {known.name for known in project.classes}
    unknown = _unmatched(asked, known)
    for entry in others:
        if not unknown:
            return
        with standing_alone(f"image {entry.name}", unreadable.append):
            known |= {a.class_name for a in entry.read().annotations}
        unknown = _unmatched(unknown, known)
    if unknown:
        names = ", ".join(sorted(filter(None, known)))
        raise UsageError(
            f"no class {unknown[0]!r} to exclude in {project.path}",
            f"classes of the project: {names}",
        )


def _unmatched(patterns: Iterable[str], class_names: Collection[str | None]) -> list[str]:
    """Return the patterns that match none of the classes."""
    return [p for p in patterns if not any(is_excluded(name, [p]) for name in class_names)]


def select_regions(
    selection: Selection, annotations: Sequence[Annotation], width: int, height: int
) -> list[Region]:
    """Return the selected regions of one image, in the order of the annotations.

    Excluded areas are still in them. Self-intersecting outlines are repaired, regions are clipped
    to the image, and annotations that enclose no area or lie outside the image are skipped; each
    with a warning.

    Parameters
    ----------
    width, height : int
        Size of the image in level-0 px.

    Raises
    ------
    UsageError
        If annotations enclose an area, but none of it can be analysed.
    """
    image = shapely.box(0, 0, width, height)
    regions = []
    meant = [annotation for annotation in annotations if selection.matches(annotation)]
    for annotation in meant:
        if not annotation.is_area:
            _log.warning("%s encloses no area (%s): skipped", annotation.label, annotation.roi_type)
            continue
        if (annotation.z, annotation.t) != (0, 0):
            _log.warning(
                "%s lies on z=%d, t=%d; only the first plane is analysed: skipped",
                annotation.label,
                annotation.z,
                annotation.t,
            )
            continue
        geometry = annotation.area
        if not shapely.is_valid(annotation.geometry):
            _log.warning(
                "%s has an invalid outline (%s): repaired",
                annotation.label,
                explain_validity(annotation.geometry),
            )
        if not shapely.covers(image, geometry):
            geometry = polygonal(shapely.intersection(geometry, image))
            if geometry.is_empty:
                _log.warning("%s lies outside of the image: skipped", annotation.label)
                continue
            _log.warning("%s reaches beyond the image: clipped to it", annotation.label)
        regions.append(Region(annotation, geometry))
    areas = [annotation.label for annotation in meant if annotation.is_area]
    if areas and not regions:
        raise UsageError(
            f"no area inside the image in {', '.join(areas)}",
            "the chosen annotations lie outside of the image or on other planes than the first",
        )
    return regions


def without_excluded(
    regions: Sequence[Region], selection: Selection, annotations: Sequence[Annotation]
) -> tuple[list[Region], shapely.Geometry]:
    """Return regions without the areas of excluded annotations, and what was left out.

    A region that is wholly excluded is skipped, with a warning. If everything is chosen, all
    excluded areas are left out, also those beside the regions.

    Returns
    -------
    (list of Region, shapely geometry)
        The rest of the regions, and a valid Polygon or MultiPolygon in level-0 px.
    """
    excluded = _excluded(selection, annotations)
    if not excluded:
        return list(regions), NO_AREA
    areas = [annotation.area for annotation in excluded]
    parts = Parts(areas)
    left = []
    left_out = [*areas] if selection.everything else []
    for region in regions:
        rest = region.geometry
        area = parts.near(rest)
        if not area.is_empty:
            left_out.append(polygonal(shapely.intersection(rest, area)))
            rest = polygonal(shapely.difference(rest, area))
        if rest.is_empty:
            _log.warning("%s is wholly excluded: skipped", region.label)
        else:
            left.append(Region(region.annotation, rest))
    classes = sorted({annotation.class_name or "" for annotation in excluded})
    count = number_of(len(excluded), "annotation")
    _log.info("excluded: %s of class %s", count, ", ".join(classes))
    return left, polygonal(union(left_out))


def _excluded(selection: Selection, annotations: Iterable[Annotation]) -> list[Annotation]:
    """Return the annotations whose areas on the first plane are excluded."""
    return [a for a in annotations if a.is_area and (a.z, a.t) == (0, 0) and selection.excludes(a)]


def _has_left_behind(selection: Selection, objects: ImageObjects, entry: ImageEntry) -> bool:
    """Tell whether everything is chosen and results of earlier runs are in excluded areas."""
    if not selection.everything:
        return False
    area = polygonal(union(a.area for a in _excluded(selection, objects.annotations)))
    return has_results(area, Record.of(objects.properties, entry.name), objects.detections)


def has_results(area: shapely.Geometry, record: Record, detections: Detections) -> bool:
    """Tell whether an area was analysed by earlier runs, or has nuclei of qpnuclei."""
    return record.has_analysed(area) or any(ours_within([Region(None, area)], detections))


def our_tissue(annotations: Sequence[Annotation], record: Record) -> list[Annotation]:
    """Return the tissue annotations that runs made and nobody has changed since."""
    return [
        annotation
        for annotation in annotations
        if is_ours(annotation.id)
        and annotation.class_name == TISSUE_CLASS
        and annotation.name is None
        and annotation.is_bare
        and record.has(annotation)
    ]


def tissue_region(slide: Slide, mpp: tuple[float, float]) -> list[Region]:
    """Return the tissue of a slide as its one region; none if there is no tissue."""
    from qpnuclei.slides.tissue import find_tissue

    tissue = find_tissue(slide, mpp)
    if tissue.is_empty:
        _log.warning("no tissue found in %s", slide.path)
        return []
    return [Region(None, tissue)]


@dataclass(frozen=True, eq=False)
class Locked:
    """Detections that qpnuclei wrote and a user locked in QuPath: accepted, so a run keeps them.

    Parameters
    ----------
    rows : frozenset of int
        Their rows in the image.
    outlines : (N,) object ndarray of valid shapely geometries
        Of the nuclei, level-0 px.
    """

    rows: frozenset[int] = frozenset()
    outlines: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, dtype=object))

    @classmethod
    def of(cls, detections: Detections, among: Iterable[frozenset[int]]) -> Locked:
        """Return the locked ones among the detections in some rows."""
        wanted = frozenset[int]().union(*among)
        # Without reading which are locked, which takes longer.
        if not wanted or not detections.locked.any():
            return cls()
        rows = [row for row in np.flatnonzero(detections.locked).tolist() if row in wanted]
        return cls(frozenset(rows), valid_areas(detections.nucleus_geometries[rows]))


@dataclass(frozen=True, eq=False)
class Staying:
    """The objects that a run leaves in an image: new nuclei must not repeat them.

    Parameters
    ----------
    ids : frozenset of UUID
        UUIDs of ours, which new nuclei cannot have.
    outlines : (N,) object ndarray of shapely geometries
        Of the nuclei that qpnuclei wrote in the analysed regions, level-0 px.
    """

    ids: frozenset[UUID] = frozenset()
    outlines: npt.NDArray[Any] = field(default_factory=lambda: np.empty(0, dtype=object))

    @classmethod
    def of(cls, objects: ImageObjects, regions: Sequence[Region], removed: Set[int]) -> Staying:
        """Return what stays when the detections in some rows are removed."""
        detections = objects.detections
        others = (a.id for a in (*objects.annotations, *objects.cores))
        there = set(np.flatnonzero(detections.ours).tolist()) - removed
        ids = frozenset(
            own_id
            for own_id in (*others, *(detections.ids[row] for row in there))
            if own_id is not None and is_ours(own_id)
        )
        near = [Region(None, shapely.buffer(region.geometry, BORDER_PX)) for region in regions]
        rows = sorted(there.intersection(chain.from_iterable(ours_within(near, detections))))
        if not rows:  # without reading outlines, which takes longer
            return cls(ids)
        outlines = detections.nucleus_geometries[rows]
        return cls(ids, outlines[np.isfinite(shapely.bounds(outlines)).all(axis=1)])


def ours_within(regions: Sequence[Region], detections: Detections) -> list[frozenset[int]]:
    """Return for each region the rows of the detections in it that qpnuclei wrote."""
    ours = np.flatnonzero(detections.ours)
    if len(ours) == 0:  # without computing centroids, which takes longer
        return [frozenset()] * len(regions)
    # Include detections in the excluded part of an annotation: counts would include them too.
    whole = [r if r.annotation is None else Region.of(r.annotation) for r in regions]
    held = rows_inside(whole, detections.centroids[ours], detections.planes[ours])
    return [frozenset(ours[rows].tolist()) for rows in held]
