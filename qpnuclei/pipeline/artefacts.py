"""Mark pen, folds and blur as annotations that can be edited in QuPath, and left out of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from uuid import UUID

import shapely

from qpnuclei._version import __version__
from qpnuclei.nuclei.ids import is_ours, made_id
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.areas import polygonal
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import Annotation, Edit, ImageEntry, NewAnnotation, Project
from qpnuclei.qupath.names import class_of
from qpnuclei.qupath.pixel_size import AskedMpp, pixel_size
from qpnuclei.slides.artefacts import find_artefacts

#: QuPath's class for what is not to be analysed. It ignores all classes whose name ends so.
IGNORE_CLASS = "Ignore*"

#: Packed ARGB: QuPath's own colour of that class.
_IGNORE_COLOR = -4934476

#: What the annotations are called.
_NAMES = {"pen": "Pen", "fold": "Fold", "blur": "Out of focus"}

#: What is found is no news if this share of it lies in an annotation that someone drew or changed.
_KNOWN_SHARE = 0.5


@dataclass(frozen=True)
class Marked:
    """What was found in an image, and how its annotations changed.

    Parameters
    ----------
    area_mm2 : dict of str to float
        Area of ``pen``, ``fold`` and ``blur`` in mm².
    added, removed, kept : int
        Annotations that are new; those of an earlier time that were not found again; and those
        that were there already, or were changed by hand and stay as they are.
    """

    area_mm2: dict[str, float] = field(default_factory=dict)
    added: int = 0
    removed: int = 0
    kept: int = 0


def mark_artefacts(
    project: Project, entry: ImageEntry, asked: AskedMpp, *, write: bool = True
) -> Marked:
    """Find the artefacts of an image, and add an annotation of class ``Ignore*`` for each.

    Done again, it replaces the annotations that it made. Those that were changed by hand are
    theirs who changed them: they stay, and nothing is added where they are.

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
    record = Record.of(objects.properties, f"image {entry.name}")
    with open_image(entry) as slide:
        mpp, _ = pixel_size(entry, record, asked, lambda: slide.mpp)
        found = find_artefacts(slide, mpp)
    area_mm2 = {kind: area.area * mpp[0] * mpp[1] * 1e-6 for kind, area in found.items()}
    ours = {a.id: a for a in objects.annotations if a.id is not None and _is_as_made(a, entry)}
    theirs = shapely.union_all(
        [
            a.area
            for a in objects.annotations
            if a.is_area and a.class_name == IGNORE_CLASS and a.id not in ours
        ]
    )
    wanted = {
        own_id: annotation
        for own_id, annotation in _annotations(project, entry, found).items()
        if shapely.intersection(annotation.geometry, theirs).area
        < _KNOWN_SHARE * annotation.geometry.area
    }
    added = [annotation for own_id, annotation in wanted.items() if own_id not in ours]
    outdated = frozenset(ours) - frozenset(wanted)
    if write and (added or outdated):
        step = ("qpnuclei qc", f"// qpnuclei {__version__}: pen, folds and blur marked")
        edit = Edit(remove=outdated, annotations=added, workflow_step=step)
        entry.write(edit, objects.fingerprint)
    kept = sum(a.class_name == IGNORE_CLASS for a in objects.annotations) - len(outdated)
    return Marked(area_mm2, len(added), len(outdated), kept)


def _annotations(
    project: Project, entry: ImageEntry, found: dict[str, shapely.MultiPolygon]
) -> dict[UUID, NewAnnotation]:
    """Return an annotation for each piece; whole coordinates survive whatever QuPath rounds."""
    path_class = class_of(project, IGNORE_CLASS, _IGNORE_COLOR)
    made = {}
    for kind, area in found.items():
        for piece in _pieces(polygonal(shapely.set_precision(area, 1.0))):
            own_id = _id(piece, _NAMES[kind], entry)
            made[own_id] = NewAnnotation(piece, own_id, _NAMES[kind], path_class)
    return made


def _pieces(area: shapely.Geometry) -> Sequence[shapely.Polygon]:
    return [piece for piece in shapely.get_parts(area) if piece.area > 0]


def _id(outline: shapely.Geometry, name: str | None, entry: ImageEntry) -> UUID:
    """Return the UUID of an annotation that was made here: a hash of all that matters of it."""
    seed = f"{entry.id}/{entry.name}/{name}/".encode() + shapely.to_wkb(shapely.normalize(outline))
    return made_id(blake2b(seed, digest_size=10).digest())


def _is_as_made(annotation: Annotation, entry: ImageEntry) -> bool:
    """Whether an annotation was made here, and nobody has changed it since."""
    return (
        is_ours(annotation.id)
        and annotation.class_name == IGNORE_CLASS
        and annotation.is_area
        and any(
            _id(piece, annotation.name, entry) == annotation.id
            for piece in _pieces(annotation.geometry)
        )
    )
