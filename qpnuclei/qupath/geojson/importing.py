"""Import the objects of a GeoJSON file into a project: ``qpnuclei geojson import``."""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from uuid import UUID, uuid4

import numpy as np
import shapely

from qpnuclei._version import __version__
from qpnuclei.errors import UsageError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.areas import valid_area
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
from qpnuclei.qupath.names import class_of, file_stem, nfc
from qpnuclei.qupath.regions import Region, region_of, same_outline
from qpnuclei.system.locks import locked

#: A largest part with this much less than the whole area still counts as the whole.
_SAME_SHARE = 1e-4
#: Largest coordinate: QuPath's image sizes are 32-bit integers.
_FARTHEST_PX = 2.0**31

#: A group of detections that can be written together: class, z, t, names of the measurements, and
#: whether they are cells with a nucleus.
_Key = tuple[str | None, int, int, tuple[str, ...], bool]


@dataclass
class Imported:
    """The result of importing one GeoJSON file.

    Parameters
    ----------
    annotations, detections : int
        Number of imported objects.
    outlines : int
        How many of the detections were tiles, or cells without a nucleus, of which only the outline
        was imported.
    already_there : int
        How many the image already has: same UUID, same place.
    left_out : list of str
        Objects that could not be imported, and why.
    losses : list of str
        Properties of imported objects that could not be imported.
    """

    annotations: int = 0
    detections: int = 0
    outlines: int = 0
    already_there: int = 0
    left_out: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)


def import_file(
    project: Project, entry: ImageEntry, path: Path, class_name: str | None = None
) -> Imported:
    """Add the objects of a GeoJSON file to an image, all of them or none.

    Annotations are added directly under the image. As in QuPath, detections are added under the
    smallest annotation (of the image or the file) that contains their centroid, else under the
    image. Objects keep their UUIDs; without one, or if another object has it, they get a new one.
    Objects that the image already has are not added again: those of the same UUID and outline, or
    without UUID but of the same outline (and for annotations, name and class).

    Parameters
    ----------
    class_name : str, optional
        Class of all imported objects, instead of the file's classes.

    Raises
    ------
    NotFoundError, FormatError
        If the file is missing, or not GeoJSON.
    UsageError
        If the class has no name.
    ConflictError, SaveError
        If the image cannot be saved; the project is as it was.
    """
    with locked(project.path.parent):
        objects = entry.read()
        incoming = _Incoming(project, objects, _checked_class_name(class_name))
        problems = Problems()
        for number, found in enumerate(read_objects(path, problems), 1):
            incoming.add(number, found)
        edit = incoming.edit(path)
        incoming.result.left_out += problems.features
        incoming.result.losses += problems.values
        if edit.annotations or edit.add:
            entry.write(edit, objects.fingerprint)
        return incoming.result


def image_of_file(project: Project, path: Path) -> ImageEntry:
    """Return the image that a file belongs to, from the file's name.

    Accepted are names given by `export_image` or a run, and the image's name with or without its
    suffix (for ``x.ome.tif`` also ``x``, as in QuPath's own exports). Composed and decomposed
    letters are equal.

    Raises
    ------
    UsageError
        If there is no such image, or more than one.
    """
    name = path.name
    for suffix in (".zip", ".gz", ".geojson", ".json", ".rescued"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    stem = nfc(name)
    for called in (
        file_stem,
        lambda entry: entry.name,
        lambda entry: Path(entry.name).stem,
        lambda entry: _without_suffixes(entry.name),
    ):
        matching = [entry for entry in project.images if nfc(called(entry)) == stem]
        if len(matching) == 1:
            return matching[0]
        if matching:
            ids = ", ".join(f"{e.name} (ID {e.id})" for e in matching)
            raise UsageError(
                f"{path} may belong to several images: {ids}",
                f"rename it, for example to {file_stem(matching[0])}.geojson",
            )
    known = ", ".join(entry.name for entry in project.images) or "none"
    raise UsageError(
        f"{path}: no image of {project.path} is called {stem!r}",
        f"say which with --image; images there: {known}",
    )


def _without_suffixes(name: str) -> str:
    """Return an image's name without ``.ome.tif`` and the like."""
    stem = Path(name).stem
    return stem[:-4] if stem.lower().endswith(".ome") else stem


class _Incoming:
    """Collects the objects to import into an image."""

    def __init__(self, project: Project, objects: ImageObjects, class_name: str | None) -> None:
        self._project = project
        self._objects = objects
        self._class_name = class_name
        self._classes: dict[str, PathClass] = {}
        # Under which UUIDs there is what; a row of the detections, or an annotation.
        self._there: dict[UUID, int | Annotation | None] = {
            own_id: row for row, own_id in enumerate(objects.detections.ids) if own_id is not None
        }
        self._there |= {a.id: a for a in objects.annotations if a.id is not None}
        self._annotations: list[NewAnnotation] = []
        self._groups: dict[_Key, _Group] = {}
        self._unread: Counter[str] = Counter()
        self.result = Imported()

    def add(self, number: int, found: GeoJsonObject) -> None:
        """Add an object, or record why it is left out."""
        geometry = _only_part(found.geometry)
        label = f"object {number}, {found.kind} {found.label}"
        reason = _obstacle(found, geometry)
        if reason is not None:
            self.result.left_out.append(f"{label}: {reason}")
        elif self._is_there(found, geometry):
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
            polygon, share = _one_polygon(geometry)
            if share < 1 - _SAME_SHARE:
                self.result.losses.append(
                    f"{label}: a detection is one polygon, so only its largest part was imported, "
                    f"{share:.0%} of its area"
                )
            self._unread.update(_unread(found))
            path_class = self._class(found.path_class)
            class_name = None if path_class is None else path_class.name
            nucleus = _nucleus(found)
            key = (class_name, found.z, found.t, tuple(found.measurements), nucleus is not None)
            group = self._groups.setdefault(key, _Group(path_class))
            group.ids.append(self._own_id(found.id))
            group.polygons.append(polygon if nucleus is None else nucleus)
            if nucleus is not None:
                group.cells.append(polygon)
            group.values.extend(found.measurements.values())
            group.kinds.append(found.kind)

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
        for (_, z, t, names, is_cell), group in self._groups.items():
            table = group.table(names)
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
            self.result.losses.append(
                f"{self.result.outlines} cells or tiles were imported as outlines only"
            )
        self.result.losses += [f"{what} of {n} detections" for what, n in self._unread.items()]
        return Edit(
            add=groups,
            annotations=self._annotations,
            workflow_step=(
                "qpnuclei geojson import",
                f"// qpnuclei {__version__}: {self.result.annotations} annotations and "
                f"{self.result.detections} detections of {path.name!r}",
            ),
        )

    def _class(self, found: PathClass | None) -> PathClass | None:
        name = self._class_name or _class_name(found)
        if name is None:
            return None
        if name not in self._classes:
            color = None if self._class_name or found is None else found.color
            self._classes[name] = class_of(self._project, name, color)
        return self._classes[name]

    def _own_id(self, own_id: UUID | None) -> UUID:
        """Return the UUID, or a new one if there is none or it is taken; taken from now on."""
        if own_id is None or own_id in self._there:
            own_id = uuid4()
        self._there[own_id] = None
        return own_id

    def _is_there(self, found: GeoJsonObject, geometry: shapely.Geometry) -> bool:
        if found.id is None:
            return self._is_there_without_id(found, geometry)
        there = self._there.get(found.id)
        if there is None:
            return False
        if isinstance(there, Annotation):
            return found.kind == "annotation" and _same_place(geometry, there.geometry)
        return found.kind != "annotation" and _same_detection(
            geometry, self._objects.detections.geometries[there]
        )

    def _is_there_without_id(self, found: GeoJsonObject, geometry: shapely.Geometry) -> bool:
        """Tell whether an object without UUID was imported before."""
        if found.kind == "annotation":
            path_class = self._class(found.path_class)
            wanted = (found.name, None if path_class is None else path_class.name)
            return any(
                (there.name, there.class_name) == wanted
                and (there.z, there.t) == (found.z, found.t)
                and _same_place(geometry, there.geometry)
                for there in self._objects.annotations
            )
        detections = self._objects.detections
        return any(
            tuple(detections.planes[row].tolist()) == (found.z, found.t)
            and _same_detection(geometry, detections.geometries[row])
            for row in self._tree.query(geometry).tolist()
        )

    @cached_property
    def _tree(self) -> shapely.STRtree:
        """The image's detections by position."""
        return shapely.STRtree(self._objects.detections.geometries)


@dataclass
class _Group:
    """Detections of one key; their measurements one after the other."""

    path_class: PathClass | None
    ids: list[UUID] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    polygons: list[shapely.Polygon] = field(default_factory=list)
    cells: list[shapely.Polygon] = field(default_factory=list)
    values: array[float] = field(default_factory=lambda: array("d"))

    def table(self, names: Sequence[str]) -> NucleiTable:
        with np.errstate(over="ignore"):  # values too large for float32 become infinite
            values = np.array(self.values).reshape(len(self.ids), len(names)).astype(np.float32)
        table = NucleiTable.from_polygons(
            self.polygons, {name: values[:, k] for k, name in enumerate(names)}
        )
        return replace(table, cells=NucleiTable.from_polygons(self.cells)) if self.cells else table


def _nucleus(found: GeoJsonObject) -> shapely.Polygon | None:
    """Return the outline of the nucleus of a cell; None if it has none that is an area."""
    if found.nucleus is None or found.nucleus.geom_type not in ("Polygon", "MultiPolygon"):
        return None
    nucleus = _only_part(found.nucleus)
    is_area = nucleus.is_valid or not valid_area(nucleus).is_empty
    return _one_polygon(nucleus)[0] if is_area else None


def _obstacle(found: GeoJsonObject, geometry: shapely.Geometry) -> str | None:
    """Return why an object cannot be imported; None if it can."""
    if found.kind == "tmaCore":
        return "TMA grids are not imported; use QuPath's TMA dearrayer"
    if np.abs(shapely.get_coordinates(geometry)).max() > _FARTHEST_PX:
        return "its coordinates lie outside any possible image"
    shape = geometry.geom_type
    if found.kind != "annotation":
        if shape not in ("Polygon", "MultiPolygon"):
            return f"a {found.kind} must be a polygon, not a {shape}"
        is_area = geometry.is_valid or not valid_area(geometry).is_empty
        return None if is_area else "it encloses no area"
    if shape not in ("Polygon", "MultiPolygon", "LineString", "Point", "MultiPoint"):
        return f"an annotation cannot be a {shape}"
    return None


def _only_part(geometry: shapely.Geometry) -> shapely.Geometry:
    """Return the only part of a collection of one."""
    parts = shapely.get_parts(geometry)
    is_collection = geometry.geom_type in ("MultiPolygon", "MultiLineString", "GeometryCollection")
    return parts[0] if is_collection and len(parts) == 1 else geometry


def _one_polygon(geometry: shapely.Geometry) -> tuple[shapely.Polygon, float]:
    """Return the largest valid polygon of an outline, and its share of the whole area."""
    if geometry.geom_type == "Polygon" and geometry.is_valid:
        return geometry, 1.0
    area = valid_area(geometry)
    largest = max(shapely.get_parts(area), key=shapely.area)
    return largest, float(largest.area / area.area)


def _same_place(a: shapely.Geometry, b: shapely.Geometry) -> bool:
    """Tell whether two outlines are equal, as stored or after repair."""
    if same_outline(a, b):
        return True
    if a.is_valid and b.is_valid:
        return False
    return same_outline(valid_area(a), valid_area(b))


def _same_detection(found: shapely.Geometry, there: shapely.Geometry) -> bool:
    """Tell whether the image has a detection, or the part of it that could be imported."""
    if _same_place(found, there):
        return True
    if found.is_valid and found.geom_type == "Polygon":
        return False
    return same_outline(_one_polygon(found)[0], there)


def _unread(found: GeoJsonObject) -> Iterator[str]:
    """Yield the properties of a detection that are not imported."""
    if found.name is not None:
        yield "name"
    if found.color is not None:
        yield "own colour"
    if found.locked:
        yield "lock"
    if found.metadata:
        yield "metadata"


def _class_name(found: PathClass | None) -> str | None:
    """Return the name of a class as QuPath would store it; None if it is empty."""
    if found is None:
        return None
    one_line = " ".join(found.name.splitlines())
    return ": ".join(part for name in one_line.split(":") if (part := name.strip())) or None


def _checked_class_name(name: str | None) -> str | None:
    if name is None:
        return None
    checked = _class_name(PathClass(name))
    if checked is None:
        raise UsageError(f"{name!r} is not a class name", "name the class with --class")
    return checked
