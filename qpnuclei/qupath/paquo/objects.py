"""Read QuPath's Java objects as columns: one call reads one value of all objects."""

from __future__ import annotations

import mmap
import re
import uuid
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import number_of
from qpnuclei.qupath.model import (
    Annotation,
    Detections,
    TmaCore,
)
from qpnuclei.qupath.paquo import jvm
from qpnuclei.qupath.paquo.jvm import (
    Handle,
    JavaObject,
    bind,
    method,
    pipe,
    static,
)
from qpnuclei.qupath.qpdata.rois import polygons

PATH_IO = "qupath.lib.io.PathIO"
PATH_OBJECT = "qupath.lib.objects.PathObject"
_OBJECT_TOOLS = "qupath.lib.objects.PathObjectTools"
HIERARCHY = "qupath.lib.objects.hierarchy.PathObjectHierarchy"
PATH_CLASS = "qupath.lib.objects.classes.PathClass"
_ROI = "qupath.lib.roi.interfaces.ROI"
MEASUREMENT_LIST = "qupath.lib.measurements.MeasurementList"
_GEOMETRY = "org.locationtech.jts.geom.Geometry"
STRING = "java.lang.String"
_UUID = "java.util.UUID"
_POINT = "qupath.lib.geom.Point2"

#: A UUID in a Java object stream: a string and its length.
_UUID_STRING = re.compile(rb"t\0\x24([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})")

#: QuPath's metadata key of the description of an annotation.
_DESCRIPTION = "ANNOTATION_DESCRIPTION"

#: Our kind of object by QuPath's Java class.
_KINDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
}

#: ROIs that are read as stored vertices; QuPath would repair a polygon that crosses itself.
_TYPES_OF_VERTICES = ("PolygonROI", "PolylineROI", "LineROI", "PointsROI")


def all_objects(hierarchy: JavaObject) -> JavaObject:
    """Return the Java list of all objects except the root, each before its children."""
    objects = hierarchy.getFlattenedObjectList(None)
    return objects.subList(1, objects.size())


def only(objects: JavaObject, test: str) -> JavaObject:
    """Return the Java list of the objects whose method `test` returns true."""
    return jvm.keep_if(objects, method(PATH_OBJECT, test, "boolean"))


def stored_ids(file: Path) -> set[str]:
    """Return the UUIDs in a data file; for other objects, QuPath makes up a UUID when it reads."""
    if not file.exists():
        return set()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {match[1].decode() for match in _UUID_STRING.finditer(data)}


def read_annotations(annotations: JavaObject, stored: set[str]) -> tuple[Annotation, ...]:
    """Read annotations; `stored` are the UUIDs in the file, all others were made up by QuPath."""
    handles = {str(item.getID()): handle for handle, item in enumerate(annotations)}
    geometries = _geometries(jvm.map_list(annotations, method(PATH_OBJECT, "getROI", _ROI)))
    measured = _measurements(annotations)
    made = []
    for handle, item in enumerate(annotations):
        roi = item.getROI()
        own_id = str(item.getID())
        path_class = item.getPathClass()
        above = item.getParent()
        while above is not None and not above.isAnnotation():
            above = above.getParent()
        made.append(
            Annotation(
                handle=handle,
                id=uuid.UUID(own_id) if own_id in stored else None,
                name=None if item.getName() is None else str(item.getName()),
                class_name=None if path_class is None else str(path_class.toString()),
                roi_type=_roi_type(str(roi.getClass().getSimpleName())),
                geometry=geometries[handle],
                locked=bool(item.isLocked()),
                color=None if item.getColor() is None else int(item.getColor()),
                parent=None if above is None else handles[str(above.getID())],
                z=int(roi.getZ()),
                t=int(roi.getT()),
                metadata=_metadata(item),
                measurements={
                    name: float(column[handle])
                    for name, column in measured.items()
                    if not np.isnan(column[handle])
                },
            )
        )
    return tuple(made)


def read_cores(cores: JavaObject, stored: set[str]) -> tuple[TmaCore, ...]:
    """Read TMA cores; see `read_annotations`."""
    return tuple(
        TmaCore(**{**vars(core), "handle": -1 - core.handle}, missing=bool(item.isMissing()))
        for core, item in zip(read_annotations(cores, stored), cores, strict=True)
    )


def _metadata(annotation: JavaObject) -> dict[str, str]:
    """Return the metadata of an annotation, including its description."""
    # Before QuPath 0.5, only the description is the user's metadata.
    found = annotation.getMetadata() if hasattr(annotation, "getMetadata") else {}
    metadata = {str(key): str(found[key]) for key in found if found[key] is not None}
    if annotation.getDescription() is not None:
        metadata[_DESCRIPTION] = str(annotation.getDescription())
    return metadata


class JavaDetections(Detections):
    """Detections in QuPath; expensive columns are fetched on first access.

    Parents are fetched at once, because an edit changes them in QuPath's objects.

    Parameters
    ----------
    objects : Java list
        All objects of the image.
    annotations : Java list
        The annotations among them, in the order of their handles.
    stored : set of str
        The UUIDs in the file.
    """

    _detections: JavaObject

    def __init__(self, objects: JavaObject, annotations: JavaObject, stored: set[str]) -> None:
        # Not the dataclass's __init__, which would set all columns.
        detections = only(objects, "isDetection")
        vars(self).update(
            _detections=detections,
            ids=[uuid.UUID(item) if item in stored else None for item in ids_of(detections)],
            parents=_parents(objects, annotations, detections),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({number_of(len(self), 'detection')})"

    @cached_property
    def kinds(self) -> list[str]:
        """``"detection"``, ``"cell"`` or ``"tile"``."""
        to_class_name = pipe(
            method(PATH_OBJECT, "getClass", "java.lang.Class"),
            method("java.lang.Class", "getSimpleName", STRING),
        )
        names = jvm.texts(self._detections, to_class_name)
        return [_KINDS.get(name, "detection") for name in names]

    @cached_property
    def class_names(self) -> list[str | None]:
        """Names of the classes; None for detections without a class."""
        names = jvm.texts(self._detections, method(PATH_OBJECT, "getPathClass", PATH_CLASS))
        return [name or None for name in names]

    @cached_property
    def geometries(self) -> npt.NDArray[Any]:
        """Shapely geometries, level-0 px."""
        return _geometries(jvm.map_list(self._detections, method(PATH_OBJECT, "getROI", _ROI)))

    @cached_property
    def nucleus_geometries(self) -> npt.NDArray[Any]:
        """Outline of the nucleus of each cell; the detection's own outline if it has none."""
        return _geometries(jvm.map_list(self._detections, _to_nucleus()))

    @cached_property
    def centroids(self) -> npt.NDArray[np.float64]:
        """Centroids as QuPath computes them, level-0 px."""
        return centroids_of(self._detections)

    @cached_property
    def planes(self) -> npt.NDArray[np.int64]:
        """z-slices and time points."""
        to_roi = method(PATH_OBJECT, "getROI", _ROI)
        axes = [pipe(to_roi, method(_ROI, f"get{axis}", "int")) for axis in "ZT"]
        return np.stack([jvm.ints(self._detections, axis) for axis in axes], axis=1).astype(
            np.int64
        )

    @cached_property
    def measurements(self) -> dict[str, npt.NDArray[np.float64]]:
        """Values by name; NaN where a detection has none."""
        return _measurements(self._detections)

    @cached_property
    def locked(self) -> npt.NDArray[np.bool_]:
        """Whether each detection is locked."""
        texts = jvm.texts(self._detections, method(PATH_OBJECT, "isLocked", "boolean"))
        return np.array([text == "true" for text in texts], bool)

    def unread(self) -> dict[str, int]:
        """Return properties that no column contains, and how many detections have them."""
        to_name = method(PATH_OBJECT, "getName", STRING)
        to_color = method(PATH_OBJECT, "getColor", "java.lang.Integer")
        counts = {
            "name": sum(map(bool, jvm.texts(self._detections, to_name))),
            "own colour": sum(map(bool, jvm.texts(self._detections, to_color))),
            "lock": int(only(self._detections, "isLocked").size()),
        }
        return {what: count for what, count in counts.items() if count}


def _measurements(objects: JavaObject) -> dict[str, npt.NDArray[np.float64]]:
    own_list = method(PATH_OBJECT, "getMeasurementList", MEASUREMENT_LIST)
    get = method(MEASUREMENT_LIST, "get", "double", STRING)
    return {
        str(name): jvm.doubles(objects, pipe(own_list, bind(get, 1, name)))
        for name in jvm.java_class(_OBJECT_TOOLS).getAvailableFeatures(objects)
    }


def to_id() -> Handle:
    """Return the Java function from an object to its UUID."""
    return method(PATH_OBJECT, "getID", _UUID)


def to_parent_id() -> Handle:
    """Return the Java function from an object to the UUID of its parent."""
    return pipe(method(PATH_OBJECT, "getParent", PATH_OBJECT), to_id())


def ids_of(objects: JavaObject) -> list[str]:
    """Return the UUIDs of Java objects."""
    return jvm.texts(objects, to_id())


def _parent_ids(objects: JavaObject) -> list[str]:
    return jvm.texts(objects, to_parent_id())


def centroids_of(objects: JavaObject) -> npt.NDArray[np.float64]:
    """Return the (N, 2) centroids of Java objects, level-0 px."""
    # Up to 0.5, QuPath uses the centroid of the nucleus, if a cell has one.
    axes = [pipe(_to_nucleus(), method(_ROI, f"getCentroid{axis}", "double")) for axis in "XY"]
    return np.stack([jvm.doubles(objects, axis) for axis in axes], axis=1)


def _to_nucleus() -> Handle:
    """Return the Java function from an object to the ROI of its nucleus, or else to its own ROI."""
    return bind(static(_OBJECT_TOOLS, "getROI", _ROI, PATH_OBJECT, "boolean"), 1, True)


def _parents(
    objects: JavaObject, annotations: JavaObject, detections: JavaObject
) -> npt.NDArray[np.int64]:
    """Return the handle of the nearest annotation above each detection; -1 if there is none."""
    handle_of = {item: handle for handle, item in enumerate(ids_of(annotations))}
    parent_of = dict(zip(ids_of(objects), _parent_ids(objects), strict=True))

    def nearest(item: str | None) -> int:
        while item is not None and item not in handle_of:
            item = parent_of.get(item)  # the root is not among the objects
        return -1 if item is None else handle_of[item]

    return np.array([nearest(item) for item in _parent_ids(detections)], dtype=np.int64)


def _geometries(rois: JavaObject) -> npt.NDArray[Any]:
    """Return the (N,) Shapely geometries of Java's ROIs."""
    to_type = pipe(
        method("java.lang.Object", "getClass", "java.lang.Class"),
        method("java.lang.Class", "getSimpleName", STRING),
    )
    types = np.array(jvm.texts(rois, to_type), dtype=object)
    made = np.empty(len(types), dtype=object)
    for roi_type in dict.fromkeys(types):
        indices = np.flatnonzero(types == roi_type)
        chosen = rois if len(indices) == len(types) else jvm.take(rois, indices)
        make = _from_vertices if roi_type in _TYPES_OF_VERTICES else _from_geometry
        made[indices] = make(chosen, roi_type)
    return made


def _from_vertices(rois: JavaObject, roi_type: str) -> npt.NDArray[Any]:
    """Build geometries from the stored vertices, valid or not."""
    to_points = method(_ROI, "getAllPoints", "java.util.List")
    axes = [method(_POINT, f"get{axis}", "double") for axis in "XY"]
    coordinates = np.stack([jvm.flat_doubles(rois, to_points, axis) for axis in axes], axis=1)
    counts = jvm.ints(rois, pipe(to_points, method("java.util.List", "size", "int")))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if roi_type == "PolygonROI":
        return polygons(coordinates, offsets)
    make = shapely.multipoints if roi_type == "PointsROI" else shapely.linestrings
    made = np.empty(len(counts), dtype=object)
    made[:] = [make(coordinates[a:b]) for a, b in pairwise(offsets)]
    return made


def _from_geometry(rois: JavaObject, _: str) -> npt.NDArray[Any]:
    """Let QuPath build the geometries; they are transferred as one collection."""
    import jpype

    made = jvm.map_list(rois, method(_ROI, "getGeometry", _GEOMETRY))
    collection = jvm.java_class("org.locationtech.jts.geom.GeometryFactory")()
    wkb = jvm.java_class("org.locationtech.jts.io.WKBWriter")(2).write(
        collection.createGeometryCollection(
            made.toArray(jpype.JArray(jvm.java_class(_GEOMETRY))(0))
        )
    )
    parts: npt.NDArray[Any] = shapely.get_parts(shapely.from_wkb(bytes(wkb)))
    return parts


def _roi_type(java_name: str) -> str:
    return "GeometryROI" if java_name == "AreaROI" else java_name
