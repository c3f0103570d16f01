"""Which annotations a run concerns, and the area they cover."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, TypeVar
from uuid import UUID

import numpy as np
import numpy.typing as npt
import shapely
from shapely.validation import explain_validity

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Annotation, Detections, ImageEntry, Project, is_ours

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

_LOG = logging.getLogger(__name__)

#: Coordinates of the same outline differ by no more: GeoJSON and some ROIs of QuPath keep 0.01 px,
#: others float32.
_SAME_PX = 0.02

Entry = TypeVar("Entry", bound=ImageEntry)


@dataclass(frozen=True)
class RoiSelection:
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
        UUIDs of single annotations, as QuPath 0.4 and later store them.
    everything : bool
        Every annotation that encloses an area.
    tissue : bool
        No annotation but the tissue, found automatically.

    Raises
    ------
    UsageError
        If nothing is chosen, or tissue together with annotations.
    """

    classes: tuple[str, ...] = ()
    derived: bool = False
    names: tuple[str, ...] = ()
    ids: tuple[UUID, ...] = ()
    everything: bool = False
    tissue: bool = False

    def __post_init__(self) -> None:
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

    def matches(self, annotation: Annotation) -> bool:
        """Tell whether the annotation is meant, by its class, name and UUID alone."""
        if self.everything or (annotation.name in self.names and annotation.name is not None):
            return True
        if annotation.id in self.ids and annotation.id is not None:
            return True
        name = annotation.class_name
        return name is not None and any(
            name == wanted or (self.derived and name.startswith(f"{wanted}: "))
            for wanted in self.classes
        )


def match_images(project: Project, patterns: Sequence[str]) -> list[ImageEntry]:
    """Return the images with one of the names or patterns (``*``, ``?``); all if there are none.

    Raises
    ------
    UsageError
        If there is no such image.
    """
    entries = [
        entry
        for entry in project.images
        if not patterns
        or any(entry.name == wanted or fnmatchcase(entry.name, wanted) for wanted in patterns)
    ]
    if not entries:
        names = ", ".join(entry.name for entry in project.images)
        raise UsageError(
            f"no image of {project.path} matches {' or '.join(map(repr, patterns))}"
            if names
            else f"{project.path} has no images",
            f"images there: {names}" if names else "add slides in QuPath",
        )
    return entries


def one_image(images: Sequence[Entry], name: str) -> Entry:
    """Return the image of a name or entry ID.

    Raises
    ------
    UsageError
        If there is no such image, or several of that name.
    """
    named = [entry for entry in images if entry.name == name]
    found = named or [entry for entry in images if entry.id == name]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(
            f"{len(found)} images are called {name!r}",
            f"say which by its ID: {', '.join(entry.id for entry in found)}",
        )
    names = ", ".join(entry.name for entry in images) or "none"
    raise UsageError(f"no image is called {name!r}", f"images of the project: {names}")


def choose_images(
    project: Project, patterns: Sequence[str], selection: RoiSelection
) -> list[ImageEntry]:
    """Return the images of those names, having checked that the selection means something there.

    Raises
    ------
    UsageError
        If the project has no such image, or no image has such an annotation.
    """
    entries = match_images(project, patterns)
    if not selection.tissue:
        annotations = [a for entry in entries for a in entry.read().annotations]
        check_selection(selection, annotations, str(project.path))
    return entries


def check_selection(selection: RoiSelection, annotations: Iterable[Annotation], where: str) -> None:
    """Refuse classes, names and UUIDs that no annotation has, naming those that exist.

    Parameters
    ----------
    annotations : iterable of Annotation
        Of all the images that the run concerns.
    where : str
        What was searched, for the message.

    Raises
    ------
    UsageError
        If a class, name or UUID matches nothing, or there is no area annotation at all.
    """
    if selection.tissue:
        return
    annotations = list(annotations)
    for wanted in selection.classes:
        alone = RoiSelection(classes=(wanted,), derived=selection.derived)
        if not any(alone.matches(a) for a in annotations):
            present = sorted({a.class_name for a in annotations if a.class_name})
            derived = [name for name in present if name.startswith(f"{wanted}: ")]
            hint = (
                f"classes there: {', '.join(present)}" if present else "no annotation has a class"
            )
            if derived:
                hint += f"; --roi-derived makes {wanted} stand for {', '.join(derived)} too"
            raise UsageError(f"no annotation of class {wanted!r} in {where}", hint)
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
    if not any(a.is_area for a in chosen):
        kinds = sorted({a.roi_type for a in chosen})
        raise UsageError(
            f"no chosen annotation in {where} encloses an area"
            + (f": {', '.join(kinds)}" if kinds else ""),
            "draw a polygon, rectangle, ellipse or brush annotation in QuPath",
        )


@dataclass(frozen=True)
class Region:
    """One annotation's area (or the tissue's), valid and clipped to the image.

    `annotation` is None for tissue; `geometry` is a valid Polygon or MultiPolygon in level-0 px.
    """

    annotation: Annotation | None
    geometry: shapely.Geometry

    @property
    def label(self) -> str:
        """How messages and the summary call it."""
        return self.annotation.label if self.annotation else "tissue"

    @property
    def handle(self) -> int | None:
        """Handle of the annotation, None for tissue."""
        return self.annotation.handle if self.annotation else None


def select_regions(
    selection: RoiSelection, annotations: Sequence[Annotation], width: int, height: int
) -> list[Region]:
    """Return the regions of one image that the selection means, in the annotations' order.

    A self-intersecting outline is mended, what lies outside of the image is clipped away, and an
    annotation that encloses no area or lies wholly outside is left out; each with a warning.

    Parameters
    ----------
    width, height : int
        Size of the image in level-0 px.

    Raises
    ------
    UsageError
        If annotations are meant but all of them had to be left out.
    """
    image = shapely.box(0, 0, width, height)
    regions = []
    meant = [annotation for annotation in annotations if selection.matches(annotation)]
    for annotation in meant:
        if not annotation.is_area:
            _LOG.warning("%s is a %s, not an area: skipped", annotation.label, annotation.roi_type)
            continue
        if (annotation.z, annotation.t) != (0, 0):
            _LOG.warning(
                "%s lies on z=%d, t=%d; only the first plane is analysed: skipped",
                annotation.label,
                annotation.z,
                annotation.t,
            )
            continue
        geometry = annotation.geometry
        if not geometry.is_valid:
            _LOG.warning(
                "%s has an invalid outline (%s): mended",
                annotation.label,
                explain_validity(geometry),
            )
            geometry = shapely.make_valid(geometry)
        if not shapely.covers(image, geometry):
            geometry = shapely.intersection(geometry, image)
            if geometry.area == 0:
                _LOG.warning("%s lies outside of the image: skipped", annotation.label)
                continue
            _LOG.warning("%s reaches beyond the image: clipped to it", annotation.label)
        regions.append(Region(annotation, polygonal(geometry)))
    if meant and not regions:
        raise UsageError(
            f"no area inside of the image in {', '.join(a.label for a in meant)}",
            "the chosen annotations are lines or points, lie outside of the image or on other "
            "planes than the first",
        )
    return regions


def polygonal(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the areas of a geometry as a Polygon or MultiPolygon, without lines and points."""
    parts = shapely.get_parts(shapely.get_parts(geometry))  # a collection may hold multipolygons
    areas = [part for part in parts if part.geom_type == "Polygon" and not part.is_empty]
    return areas[0] if len(areas) == 1 else shapely.MultiPolygon(areas)


def same_outline(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two geometries are the same but for how exactly files keep coordinates."""
    if shapely.equals_exact(a, b, _SAME_PX):
        return True
    return bool(shapely.equals_exact(shapely.normalize(a), shapely.normalize(b), _SAME_PX))


def tissue_region(slide: Slide, mpp: tuple[float, float]) -> list[Region]:
    """Return the tissue of a slide as its one region; none if there is no tissue."""
    from qpnuclei.slides.tissue import find_tissue

    tissue = find_tissue(slide, mpp)
    if tissue.is_empty:
        _LOG.warning("no tissue found in %s", slide.path)
        return []
    return [Region(None, tissue)]


def region_of(points: npt.NDArray[np.float64], regions: Sequence[Region]) -> npt.NDArray[np.int64]:
    """Say which region each point is written under.

    Where regions overlap it is the smallest, as QuPath nests objects in the innermost annotation.

    Parameters
    ----------
    points : (N, 2) float64 ndarray
        In level-0 px.

    Returns
    -------
    (N,) int64 ndarray
        Index of the region; -1 for none.
    """
    owner = np.full(len(points), -1, np.int64)
    for index in sorted(range(len(regions)), key=lambda i: -regions[i].geometry.area):
        owner[_inside(regions[index], points)] = index
    return owner


def ours_within(region: Region, detections: Detections) -> frozenset[UUID]:
    """Return the UUIDs of the detections in a region that qpnuclei wrote."""
    ours = [i for i, detection in enumerate(detections.ids) if is_ours(detection)]
    if not ours:  # centroids cost more than UUIDs
        return frozenset()
    inside = _inside(region, detections.centroids[ours])
    return frozenset(
        found
        for i, within in zip(ours, inside.tolist(), strict=True)
        if within and (found := detections.ids[i]) is not None
    )


def _inside(region: Region, points: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    shapely.prepare(region.geometry)
    inside: npt.NDArray[np.bool_] = shapely.intersects_xy(
        region.geometry, points[:, 0], points[:, 1]
    )
    return inside
