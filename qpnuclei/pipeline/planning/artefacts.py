"""Mark pen, folds and blur as annotations that QuPath can edit and runs leave out."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from uuid import UUID

import shapely

from qpnuclei._version import __version__
from qpnuclei.choices import IGNORE_CLASS
from qpnuclei.nuclei.ids import hashed_id, is_ours
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.areas import polygonal, union
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import (
    Annotation,
    Edit,
    ImageEntry,
    ImageObjects,
    NewAnnotation,
    Project,
)
from qpnuclei.qupath.names import class_of
from qpnuclei.qupath.pixel_size import AskedMpp, pixel_size
from qpnuclei.qupath.project_file import DEFAULT_COLORS
from qpnuclei.slides.artefacts import find_artefacts
from qpnuclei.slides.calibration import area_mm2
from qpnuclei.slides.slide import Slide

_log = logging.getLogger(__name__)

#: Names of the annotations.
_NAMES = {"pen": "Pen", "fold": "Fold", "blur": "Out of focus"}

#: An artefact is not added if this share of it lies in an annotation that someone drew or changed.
_KNOWN_SHARE = 0.5


@dataclass(frozen=True)
class Marked:
    """What was found in an image, and how its annotations changed.

    Parameters
    ----------
    area_mm2 : dict of str to float
        Area of ``pen``, ``fold`` and ``blur`` in mm².
    added, removed, kept : int
        New annotations; earlier ones that were not found again; and those that were already there
        or were changed by hand and stay as they are.
    """

    area_mm2: dict[str, float] = field(default_factory=dict)
    added: int = 0
    removed: int = 0
    kept: int = 0


@dataclass(frozen=True)
class Marks:
    """The artefacts of an image: annotations to add, and those they replace.

    Parameters
    ----------
    area_mm2 : dict of str to float
        As in `Marked`.
    new : sequence of (UUID, str, Polygon)
        Annotations to add: UUID, name and outline in level-0 px.
    outdated : frozenset of int
        Handles of annotations of an earlier search that were not found again.
    kept : int
        As in `Marked`.
    """

    area_mm2: dict[str, float]
    new: Sequence[tuple[UUID, str, shapely.Polygon]]
    outdated: frozenset[int]
    kept: int

    def applied_to(self, objects: ImageObjects) -> ImageObjects:
        """Return an image's objects as they would be with the new annotations."""
        stay = [a for a in objects.annotations if a.handle not in self.outdated]
        handle = max((a.handle for a in objects.annotations), default=-1) + 1
        new = [
            Annotation(handle + place, own_id, name, IGNORE_CLASS, "PolygonROI", outline)
            for place, (own_id, name, outline) in enumerate(self.new)
        ]
        return replace(objects, annotations=(*stay, *new))


def find_marks(entry: ImageEntry, objects: ImageObjects, slide: Slide, asked: AskedMpp) -> Marks:
    """Find the artefacts of an image; nothing is changed.

    Parameters
    ----------
    objects : ImageObjects
        Of the image.
    slide : Slide
        Slide of the image; it is read as a whole, at 1 µm/px.
    asked : AskedMpp
        What the user says about pixel sizes.

    Raises
    ------
    qpnuclei.errors.SlideError, qpnuclei.errors.MppError
        If the slide cannot be read, or its pixel size is unknown.
    """
    record = Record.of(objects.properties, entry.name)
    mpp, _ = pixel_size(entry, record, asked, lambda: slide.mpp)
    found = find_artefacts(slide, mpp)
    ours = {a.handle: a.id for a in objects.annotations if _is_as_made(a, entry)}
    theirs = union(
        a.area
        for a in objects.annotations
        if a.is_area and a.class_name == IGNORE_CLASS and a.handle not in ours
    )
    # Whole coordinates do not change when QuPath rounds them.
    wanted = {
        _id(piece, _NAMES[kind], entry): (_NAMES[kind], piece)
        for kind, area in found.items()
        for piece in _pieces(polygonal(shapely.set_precision(area, 1.0)))
        if shapely.intersection(piece, theirs).area < _KNOWN_SHARE * piece.area
    }
    outdated = frozenset(handle for handle, own_id in ours.items() if own_id not in wanted)
    return Marks(
        {kind: area_mm2(area.area, mpp) for kind, area in found.items()},
        [(own_id, *marked) for own_id, marked in wanted.items() if own_id not in ours.values()],
        outdated,
        sum(a.class_name == IGNORE_CLASS for a in objects.annotations) - len(outdated),
    )


def mark_artefacts(
    project: Project, entry: ImageEntry, asked: AskedMpp, *, write: bool = True
) -> Marked:
    """Find the artefacts of an image, and add an annotation of class ``Ignore*`` for each.

    A repeated call replaces the annotations of the earlier one. Annotations that were changed by
    hand stay, and nothing is added in their place.

    Parameters
    ----------
    asked : AskedMpp
        What the user says about pixel sizes.
    write : bool
        Whether to change the project, or only to say what would be done.

    Raises
    ------
    qpnuclei.errors.SlideError, qpnuclei.errors.MppError
        If the slide cannot be read, or its pixel size is unknown.
    qpnuclei.errors.ConflictError, qpnuclei.errors.SaveError
        If the image cannot be saved; the project is as it was.
    """
    objects = entry.read()
    with open_image(entry) as slide:
        marks = find_marks(entry, objects, slide, asked)
    if write and (marks.new or marks.outdated):
        path_class = class_of(project, IGNORE_CLASS, DEFAULT_COLORS[IGNORE_CLASS])
        new = [NewAnnotation(outline, own, name, path_class) for own, name, outline in marks.new]
        step = ("qpnuclei qc", f"// qpnuclei {__version__}: pen, folds and blur marked")
        edit = Edit(remove_annotations=marks.outdated, annotations=new, workflow_step=step)
        entry.write(edit, objects.fingerprint)
    return Marked(marks.area_mm2, len(marks.new), len(marks.outdated), marks.kept)


def report_marks(entry: ImageEntry, area_mm2: Mapping[str, float]) -> None:
    """Log the areas of an image's artefacts."""
    areas = ", ".join(f"{kind} {area:.3f} mm²" for kind, area in area_mm2.items())
    _log.info("image %s: searched for artefacts at 1 µm/px: %s", entry.name, areas)


def _pieces(area: shapely.Geometry) -> Sequence[shapely.Polygon]:
    return [piece for piece in shapely.get_parts(area) if piece.area > 0]


def _id(outline: shapely.Geometry, name: str | None, entry: ImageEntry) -> UUID:
    """Return the UUID of an annotation made here: a hash of image, name and outline."""
    seed = f"{entry.id}/{entry.name}/{name}/".encode() + shapely.to_wkb(shapely.normalize(outline))
    return hashed_id(seed)


def _is_as_made(annotation: Annotation, entry: ImageEntry) -> bool:
    """Whether an annotation was made here, and nobody has changed it since."""
    return (
        is_ours(annotation.id)
        and annotation.class_name == IGNORE_CLASS
        and annotation.is_area
        and annotation.is_bare
        and not annotation.locked
        and any(
            _id(piece, annotation.name, entry) == annotation.id
            for piece in _pieces(annotation.geometry)
        )
    )
