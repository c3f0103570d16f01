"""Import the objects of a GeoJSON file into a project: ``qpnuclei geojson import``."""

from __future__ import annotations

import secrets
from array import array
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain, product
from math import floor
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei._version import __version__
from qpnuclei.errors import UsageError, number_of, quoted
from qpnuclei.nuclei.ids import hashed_id, is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.areas import ROUNDING_PX, valid_area
from qpnuclei.qupath.geojson.importable import (
    WHOLE_TOLERANCE,
    nucleus_of,
    obstacle,
    one_polygon,
    only_part,
    same_detection,
    same_place,
    unread_properties,
)
from qpnuclei.qupath.geojson.objects import GeoJsonObject
from qpnuclei.qupath.geojson.problems import Problems
from qpnuclei.qupath.geojson.reading import read_objects
from qpnuclei.qupath.model import (
    Annotation,
    DetectionGroup,
    Edit,
    ImageEntry,
    ImageObjects,
    NewAnnotation,
    PathClass,
    Project,
)
from qpnuclei.qupath.names import checked_class_name, class_of, stored_class_name, table_text
from qpnuclei.qupath.regions import Region, region_of
from qpnuclei.system.locks import locked
from qpnuclei.system.unicode_forms import nfc

#: Key of detections that can be written together: class, z, t, names of the measurements, and
#: whether they are cells with a nucleus.
_Key = tuple[str | None, int, int, tuple[str, ...], bool]
#: Most other images that an error names.
_MOST_NAMED = 5


@dataclass(frozen=True)
class OtherImage:
    """Objects of a file that belong to another image than the one it is imported into.

    Parameters
    ----------
    image, image_id : str
        Name and entry ID of the other image, as in the file.
    objects : int
        Number of its objects.
    """

    image: str
    image_id: str
    objects: int

    @property
    def label(self) -> str:
        """Number and image, for messages."""
        return f"{number_of(self.objects, 'object')} of image {self.image!r} (ID {self.image_id})"


@dataclass
class Imported:
    """The result of importing one GeoJSON file.

    Parameters
    ----------
    annotations, detections : int
        Number of imported objects.
    outlines : int
        Number of these detections that were tiles, or cells without a nucleus: only their outline
        was imported.
    already_there : int
        Number of objects that are already in the image, or earlier in the file.
    new_ids : int
        Number of imported objects that got a new UUID because theirs was in use.
    left_out : list of str
        Messages on objects that could not be imported, with the reason.
    losses : list of str
        Messages on properties of imported objects that could not be imported.
    other_images : list of OtherImage
        The other images that the file has objects of, which were not imported.
    """

    annotations: int = 0
    detections: int = 0
    outlines: int = 0
    already_there: int = 0
    new_ids: int = 0
    left_out: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    other_images: list[OtherImage] = field(default_factory=list)


def import_file(
    project: Project, entry: ImageEntry, path: Path, class_name: str | None = None
) -> Imported:
    """Add the objects of a GeoJSON file to an image, all of them or none.

    Annotations are added directly under the image. As in QuPath, detections are added under the
    smallest annotation (of the image or the file) that contains their centroid, or otherwise under
    the image. Objects keep their UUIDs. An object without UUID, or with the UUID of another object,
    gets a new one, which marks it as qpnuclei's if the old one did. Objects that the image already
    has are not added again. These have the same UUID and outline or, if they have no UUID or that
    of another object, the same outline (and for annotations, name and class). For cells, the same
    outline of the nucleus is enough. An object that the file has twice, in whatever form, is added
    once.

    In a file of the nuclei of several images, each object names its image. Those of other images
    are left out. The name decides; if several images of the project have it, the entry ID does.

    Parameters
    ----------
    class_name : str, optional
        Class of all imported objects, instead of the file's classes.

    Raises
    ------
    NotFoundError, FormatError
        If the file is missing, or not GeoJSON.
    UsageError
        If `class_name` is empty, or not UTF-8, or if all objects belong to other images.
    ConflictError, SaveError
        If the image cannot be saved; the project is unchanged.
    """
    with locked(project.path.parent):
        objects = entry.read()
        chosen = None if class_name is None else checked_class_name(class_name)
        incoming = _Incoming(project, entry, objects, chosen)
        problems = Problems()
        number = 0
        for number, found in enumerate(read_objects(path, problems), 1):
            incoming.add(number, found)
        others = incoming.result.other_images = incoming.other_images()
        if number and sum(other.objects for other in others) == number:
            listed = [other.label for other in others[:_MOST_NAMED]]
            if len(others) > _MOST_NAMED:
                listed.append(f"others of {number_of(len(others) - _MOST_NAMED, 'more image')}")
            raise UsageError(
                f"{path}: nothing in it belongs to {entry.name}, but {', '.join(listed)}",
                "name one of these images with --image; if the image was renamed since, give it "
                "its earlier name; files of geojson export go into any image",
            )
        edit = incoming.edit(path)
        incoming.result.left_out += problems.features
        incoming.result.losses += problems.values
        if edit.annotations or edit.add:
            entry.write(edit, objects.fingerprint)
        return incoming.result


def _written(name: str) -> str:
    """Return the name of an image as tables of nuclei have it, however its letters are composed."""
    return nfc(table_text(name))


class _Incoming:
    """Collects the objects to import into an image."""

    def __init__(
        self, project: Project, entry: ImageEntry, objects: ImageObjects, class_name: str | None
    ) -> None:
        self._project = project
        self._image = (_written(entry.name), entry.id)
        self._images = {(_written(other.name), other.id) for other in project.images}
        self._of_others: Counter[tuple[str, str]] = Counter()
        self._objects = objects
        self._class_name = class_name
        self._classes: dict[str, PathClass] = {}
        # Existing objects by UUID: a row of the detections, an annotation, or None for a new one.
        self._existing: dict[UUID, int | Annotation | None] = {
            own_id: row for row, own_id in enumerate(objects.detections.ids) if own_id is not None
        }
        self._existing |= {a.id: a for a in objects.annotations if a.id is not None}
        self._annotations: list[NewAnnotation] = []
        self._groups: dict[_Key, _Group] = {}
        self._outlines: dict[Hashable, list[shapely.Geometry]] = {}
        self._unread: Counter[str] = Counter()
        self._left_cells = 0
        self.result = Imported()

    def add(self, number: int, found: GeoJsonObject) -> None:
        """Add an object, or record why it is left out."""
        if found.image is not None and self._is_other(*found.image):
            self._of_others[found.image] += 1
            return
        geometry = only_part(found.geometry)
        label = f"object {number}, {found.kind} {found.label}"
        reason = obstacle(found, geometry)
        if reason is not None:
            self.result.left_out.append(f"{label}: {reason}")
        elif self._is_known(found, geometry) or self._is_repeated(found, geometry):
            self.result.already_there += 1
        elif found.kind == "annotation":
            self._annotations.append(
                NewAnnotation(
                    geometry,
                    self._own_id(found.id),
                    found.name,
                    self._class(found.path_class),
                    found.locked,
                    found.z,
                    found.t,
                    found.color,
                    found.metadata,
                    found.measurements,
                )
            )
            self.result.annotations += 1
        else:
            polygon, share = one_polygon(geometry)
            if share < 1 - WHOLE_TOLERANCE:
                self.result.losses.append(
                    f"{label}: a detection is one polygon, so only its largest part was imported, "
                    f"{share:.0%} of its area"
                )
            self._unread.update(unread_properties(found))
            path_class = self._class(found.path_class)
            class_name = None if path_class is None else path_class.name
            nucleus = nucleus_of(found)
            key = (class_name, found.z, found.t, tuple(found.measurements), nucleus is not None)
            group = self._groups.setdefault(key, _Group(path_class))
            group.ids.append(self._own_id(found.id))
            group.polygons.append(polygon if nucleus is None else nucleus)
            if nucleus is not None:
                group.cells.append(polygon)
            group.values.extend(found.measurements.values())
            group.kinds.append(found.kind)

    def other_images(self) -> list[OtherImage]:
        """Return the other images that the file has objects of."""
        return [OtherImage(name, own_id, n) for (name, own_id), n in self._of_others.items()]

    def edit(self, path: Path) -> Edit:
        """Return the edit that adds all collected objects."""
        areas = [a for a in self._objects.annotations if a.is_area]
        parents = [Region.of(annotation) for annotation in areas]
        handles = [annotation.handle for annotation in areas]
        for handle, new in enumerate(self._annotations, len(self._objects.annotations)):
            made = Annotation(
                handle, new.id, new.name, None, "GeometryROI", new.geometry, z=new.z, t=new.t
            )
            if made.is_area:
                parents.append(Region.of(made))
                handles.append(handle)
        groups = []
        altered: Counter[str] = Counter()
        for (_, z, t, names, is_cell), group in self._groups.items():
            table = group.table(names)
            altered.update(group.altered(names))
            owner = region_of(table.centroids(), parents, np.tile([z, t], (len(table), 1)))
            for index in np.unique(owner).tolist():
                chosen = np.flatnonzero(owner == index)
                self.result.detections += len(chosen)
                if not is_cell:
                    self.result.outlines += sum(group.kinds[row] != "detection" for row in chosen)
                groups.append(
                    DetectionGroup(
                        None if index < 0 else handles[index],
                        table.take(chosen),
                        [group.ids[row] for row in chosen.tolist()],
                        group.path_class,
                        (z, t),
                    )
                )
        if self.result.outlines:
            count = number_of(self.result.outlines, "cell or tile", "cells or tiles")
            self.result.losses.append(f"{count}: only the outlines were imported")
        if self._left_cells:
            count = number_of(self._left_cells, "cell")
            self.result.losses.append(
                f"{count}: the image already has the same nuclei, and they stay as they are; a run "
                "with --cell-expansion makes cells of nuclei that qpnuclei found"
            )
        self.result.losses += [
            f"{what} of {number_of(n, 'detection')}" for what, n in self._unread.items()
        ]
        self.result.losses += [
            f"measurement {quoted(name)} of {number_of(n, 'detection')} is too large or too small: "
            "QuPath keeps those of detections as 32-bit numbers"
            for name, n in altered.items()
        ]
        return Edit(
            add=groups,
            annotations=self._annotations,
            workflow_step=(
                "qpnuclei geojson import",
                f"// qpnuclei {__version__}: "
                f"{number_of(self.result.annotations, 'annotation')} and "
                f"{number_of(self.result.detections, 'detection')} of {path.name!r}",
            ),
        )

    def _class(self, found: PathClass | None) -> PathClass | None:
        name = self._class_name or stored_class_name("" if found is None else found.name)
        if not name:
            return None
        if name not in self._classes:
            color = None if self._class_name or found is None else found.color
            self._classes[name] = class_of(self._project, name, color)
        return self._classes[name]

    def _own_id(self, own_id: UUID | None) -> UUID:
        """Return the UUID, or a new one if there is none or it is in use; then it is in use."""
        if own_id is None:
            own_id = uuid4()
        elif own_id in self._existing:
            self.result.new_ids += 1
            # The next run replaces what is qpnuclei's; under a foreign UUID it would count twice.
            own_id = hashed_id(secrets.token_bytes(16)) if is_ours(own_id) else uuid4()
        self._existing[own_id] = None
        return own_id

    def _is_other(self, name: str, own_id: str) -> bool:
        """Tell whether a name and entry ID in the file mean another image.

        Entry IDs of another project mean nothing, so they only decide between images of one name.
        """
        named = (_written(name), own_id)
        return named[0] != self._image[0] or (named != self._image and named in self._images)

    def _is_known(self, found: GeoJsonObject, geometry: shapely.Geometry) -> bool:
        if found.id is not None and found.id not in self._existing:
            # Each time that QuPath opens a file of 0.2 or 0.3, it makes new UUIDs.
            return self._has_no_ids and self._is_known_by_place(found, geometry)
        existing = None if found.id is None else self._existing[found.id]
        if isinstance(existing, Annotation):
            known = found.kind == "annotation" and same_place(geometry, existing.geometry)
        elif existing is not None and found.kind != "annotation":
            known = self._is_detection(found, geometry, existing)
        else:
            known = False
        # An earlier import may have given it a new UUID.
        return known or self._is_known_by_place(found, geometry)

    @cached_property
    def _has_no_ids(self) -> bool:
        """Whether QuPath 0.2 or 0.3 has saved the image: its objects have no UUIDs."""
        annotations, detections = self._objects.annotations, self._objects.detections
        return None in [*(one.id for one in annotations[:1]), *detections.ids[:1]]

    def _is_known_by_place(self, found: GeoJsonObject, geometry: shapely.Geometry) -> bool:
        """Tell whether an object was imported before under another UUID."""
        if found.kind == "annotation":
            path_class = self._class(found.path_class)
            wanted = (found.name, None if path_class is None else path_class.name)
            return any(
                (existing.name, existing.class_name) == wanted
                and (existing.z, existing.t) == (found.z, found.t)
                and same_place(geometry, existing.geometry)
                for existing in self._annotations_near(geometry)
            )
        detections = self._objects.detections
        return any(
            tuple(detections.planes[row].tolist()) == (found.z, found.t)
            and self._is_detection(found, geometry, row)
            for row in self._tree.query(geometry).tolist()
        )

    def _is_repeated(self, found: GeoJsonObject, geometry: shapely.Geometry) -> bool:
        """Tell whether the same object was added before from this file, and remember it."""
        same: Hashable = (found.z, found.t)
        if found.kind == "annotation":
            path_class = self._class(found.path_class)
            same = (same, found.name, None if path_class is None else path_class.name)
            outline, area = geometry, valid_area(geometry)
        else:
            nucleus = nucleus_of(found)
            outline = area = one_polygon(geometry if nucleus is None else nucleus)[0]
        # Only outlines with the same bounding box, up to rounding, can be equal.
        box = (outline if area.is_empty else area).bounds
        cells = [{floor(at - ROUNDING_PX), floor(at + ROUNDING_PX)} for at in box]
        near = (self._outlines.get((same, *cell), ()) for cell in product(*cells))
        is_known = any(same_place(outline, other) for other in chain.from_iterable(near))
        if not is_known:
            self._outlines.setdefault((same, *map(floor, box)), []).append(outline)
        return is_known and (found.id is None or found.id in self._existing)

    def _is_detection(self, found: GeoJsonObject, geometry: shapely.Geometry, row: int) -> bool:
        """Tell whether a detection of the image is the found one; a cell is its nucleus."""
        detections = self._objects.detections
        if same_detection(geometry, detections.geometries[row]):
            return True
        nucleus = nucleus_of(found)
        outline = geometry if nucleus is None else nucleus
        if not same_detection(outline, detections.nucleus_geometries[row]):
            return False
        if nucleus is not None:
            self._left_cells += 1
        return True

    def _annotations_near(self, geometry: shapely.Geometry) -> list[Annotation]:
        """Return the image's annotations whose bounding boxes meet that of a geometry."""
        x0, y0, x1, y1 = geometry.bounds
        # Coordinates of the same point may differ by rounding.
        box = shapely.box(x0 - ROUNDING_PX, y0 - ROUNDING_PX, x1 + ROUNDING_PX, y1 + ROUNDING_PX)
        return [self._objects.annotations[row] for row in self._annotation_tree.query(box)]

    @cached_property
    def _annotation_tree(self) -> shapely.STRtree:
        """Spatial index of the image's annotations."""
        return shapely.STRtree([a.geometry for a in self._objects.annotations])

    @cached_property
    def _tree(self) -> shapely.STRtree:
        """Spatial index of the image's detections."""
        return shapely.STRtree(self._objects.detections.geometries)


@dataclass
class _Group:
    """Detections with the same `_Key`; `values` are their measurements, row by row."""

    path_class: PathClass | None
    ids: list[UUID] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    polygons: list[shapely.Polygon] = field(default_factory=list)
    cells: list[shapely.Polygon] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("d"))

    def table(self, names: Sequence[str]) -> NucleiTable:
        with np.errstate(over="ignore"):  # values too large for float32 become infinite
            values = self._rows(len(names)).astype(np.float32)
        table = NucleiTable.from_polygons(
            self.polygons, {name: values[:, k] for k, name in enumerate(names)}
        )
        return replace(table, cells=NucleiTable.from_polygons(self.cells)) if self.cells else table

    def altered(self, names: Sequence[str]) -> dict[str, int]:
        """Return how many values of each measurement are outside the range of float32."""
        limits = np.finfo(np.float32)
        sizes = np.abs(self._rows(len(names)))
        too_large = np.isfinite(sizes) & (sizes > limits.max)
        too_small = (sizes > 0) & (sizes < limits.tiny)
        counts = np.count_nonzero(too_large | too_small, axis=0).tolist()
        return {name: count for name, count in zip(names, counts, strict=True) if count}

    def _rows(self, columns: int) -> npt.NDArray[np.float64]:
        return np.array(self.values).reshape(len(self.ids), columns)
