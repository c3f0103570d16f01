"""QuPath projects through paquo and a real QuPath.

QuPath itself reads and writes everything, so what it understands is what there is. paquo starts it
and opens the project; objects are read and written in columns (see `qpnuclei.qupath._jvm`), because
paquo takes a call per object and silently leaves out the saving of an image that it cannot reach.

The project file is never written: another QuPath version would drop what it does not know.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import shapely

from qpnuclei.errors import (
    ConflictError,
    FormatError,
    NotFoundError,
    QpnucleiError,
    SaveError,
    SlideError,
    UsageError,
)
from qpnuclei.nuclei import NucleiTable
from qpnuclei.qupath import _jvm
from qpnuclei.qupath._jvm import (
    Handle,
    JavaObject,
    bind,
    element_of,
    fan_out,
    item_of,
    method,
    pipe,
    static,
)
from qpnuclei.qupath.model import (
    Annotation,
    DetectionGroup,
    Detections,
    Edit,
    ImageObjects,
    ImageServer,
    NewAnnotation,
    PathClass,
    PixelCalibration,
    Stains,
    is_ours,
)
from qpnuclei.qupath.native.rois import polygons

logger = logging.getLogger(__name__)

_PATH_OBJECT = "qupath.lib.objects.PathObject"
_PATH_CLASS = "qupath.lib.objects.classes.PathClass"
_ROI = "qupath.lib.roi.interfaces.ROI"
_MEASUREMENTS = "qupath.lib.measurements.MeasurementList"
_PLANE = "qupath.lib.regions.ImagePlane"
_GEOMETRY = "org.locationtech.jts.geom.Geometry"
_STRING = "java.lang.String"
_UUID = "java.util.UUID"
_POINT = "qupath.lib.geom.Point2"

# How a UUID and the end of the file look in a Java object stream: a string and its length.
_UUID_STRING = re.compile(rb"t\0\x24([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})")
_END_MARK = b"t\0\3EOF"

#: QuPath's Java class -> our kind.
_KINDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
}
#: ROIs that are read as the vertices they store; QuPath would mend a polygon that crosses itself.
_TYPES_OF_VERTICES = ("PolygonROI", "PolylineROI", "LineROI", "PointsROI")
#: Since this release QuPath opens an image only when its pixels are needed, so that objects of an
#: image that is missing can be saved.
_LAZY_IMAGES = (0, 6)


def open_project(path: str | os.PathLike[str], image_root: Path | None = None) -> PaquoProject:
    """Open a QuPath project through a real QuPath; starts the Java virtual machine.

    Parameters
    ----------
    path : path-like
        The ``.qpproj`` file, or its folder.
    image_root : Path, optional
        Folder to look for image files in that are not where the project says.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there is no QuPath on this machine, or it does not start.
    qpnuclei.errors.NotFoundError
        If there is no project at `path`.
    qpnuclei.errors.FormatError
        If it is not a QuPath project.
    """
    file = find_project_file(path)
    _jvm.start()
    return PaquoProject(file, image_root)


class PaquoProject:
    """A QuPath project (see `qpnuclei.qupath.model.Project`), opened by QuPath itself."""

    backend = "paquo"

    def __init__(self, file: Path, image_root: Path | None = None) -> None:
        from paquo.java import IOException, RuntimeException
        from paquo.projects import QuPathProject

        self.path = file
        try:
            with _jvm.quiet():
                self._project = QuPathProject(file, mode="r+")
        except (IOException, RuntimeException) as error:
            raise FormatError(
                f"{file} is not a QuPath project: {_reason(error)}",
                "is it damaged? QuPath keeps the one before as project.qpproj.backup",
            ) from error
        self.java_object: JavaObject = self._project.java_object
        self.images: Sequence[PaquoImage] = [
            PaquoImage(self, entry) for entry in self.java_object.getImageList()
        ]
        self._loaded: _Loaded | None = None
        relocate(self, image_root)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def version(self) -> str | None:
        """Version of QuPath that wrote the project file."""
        version = self.java_object.getVersion()
        return None if version is None else str(version)

    @property
    def classes(self) -> Sequence[PathClass]:
        """The project's class list."""
        return [
            PathClass(
                str(item.toString()), None if item.getColor() is None else int(item.getColor())
            )
            for item in self.java_object.getPathClasses()
            if item.getName() is not None
        ]

    def loaded(self, image: PaquoImage, fingerprint: str) -> _Loaded | None:
        """Return what was read last, if it is of this image and of this state of its file."""
        last = self._loaded
        current = last is not None and last.image is image and last.fingerprint == fingerprint
        return last if current else None

    def keep(self, loaded: _Loaded | None) -> None:
        """Keep what was read last, or nothing."""
        self._loaded = loaded

    def add_classes(self, classes: Sequence[JavaObject]) -> None:
        """Add to the project's class list what it lacks of some Java path classes."""
        known = list(self.java_object.getPathClasses())
        new = [item for item in dict.fromkeys(classes) if item not in known]
        if new:
            self.java_object.setPathClasses(_java_list([*known, *new]))


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The image data read last, kept because a write follows a read, and reading is slow."""

    image: PaquoImage
    fingerprint: str
    data: JavaObject


class PaquoImage:
    """One image of a project (see `qpnuclei.qupath.model.ImageEntry`)."""

    def __init__(self, project: PaquoProject, entry: JavaObject) -> None:
        self._project = project
        self._entry = entry
        self.id = str(entry.getID())
        self.name = str(entry.getImageName())
        builder = (
            _jvm.java_class("qupath.lib.io.GsonTools")
            .getInstance()
            .toJson(
                entry.getServerBuilder(),
                _jvm.java_class(
                    "qupath.lib.images.servers.ImageServerBuilder$ServerBuilder"
                ).class_,
            )
        )
        self._builder: dict[str, Any] = orjson.loads(str(builder))
        self.server: ImageServer = parse_server(self._builder)
        self.path: Path | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, id {self.id})"

    def point_to(self, uris: dict[str, str]) -> None:
        """Make QuPath open other files than the project names; the project is not changed."""
        java_uri = _jvm.java_class("java.net.URI")
        replacements = _jvm.java_class("java.util.HashMap")()
        for old, new in uris.items():
            replacements.put(java_uri(old), java_uri(new))
        self._entry.updateURIs(replacements)

    @property
    def data_file(self) -> Path:
        """Where QuPath keeps the objects of this image; absent until it was saved once."""
        return Path(str(self._entry.getEntryPath())) / "data.qpdata"

    @cached_property
    def calibration(self) -> PixelCalibration:
        """Pixel size as QuPath shows it."""
        stored = parse_calibration(self._builder)
        if stored is not None:
            return stored
        server = self._build_server()
        if server is None:
            return PixelCalibration()
        calibration = server.getPixelCalibration()
        if not calibration.hasPixelSizeMicrons():
            return PixelCalibration()
        return PixelCalibration(
            float(calibration.getPixelWidthMicrons()), float(calibration.getPixelHeightMicrons())
        )

    @property
    def image_type(self) -> str | None:
        """Name of QuPath's ``ImageType``; None if never saved."""
        if not self.data_file.exists():
            return None
        return str(self._load().data.getImageType().name())

    @property
    def stains(self) -> Stains | None:
        """Colour deconvolution stains of the image; None if it has none."""
        stains = (
            self._load().data.getColorDeconvolutionStains() if self.data_file.exists() else None
        )
        if stains is None:
            return None
        vectors = [stains.getStain(number) for number in (1, 2, 3)]
        vectors = [vector for vector in vectors if not vector.isResidual()]
        return Stains(
            name=str(stains.getName()),
            stain_names=tuple(str(vector.getName()) for vector in vectors),
            vectors=tuple(
                (float(v.getRed()), float(v.getGreen()), float(v.getBlue())) for v in vectors
            ),
            background=(
                float(stains.getMaxRed()),
                float(stains.getMaxGreen()),
                float(stains.getMaxBlue()),
            ),
        )

    def read(self) -> ImageObjects:
        """Read annotations and detections from disk (see `ImageEntry.read`)."""
        if not self.data_file.exists():
            return ImageObjects((), _no_detections(), file_fingerprint(self.data_file))
        loaded = self._load()
        objects = _flat(loaded.data.getHierarchy())
        stored = _stored_ids(self.data_file)
        annotations = _only(objects, "isAnnotation")
        return ImageObjects(
            _read_annotations(annotations, stored),
            _read_detections(objects, annotations, stored),
            loaded.fingerprint,
        )

    def write(self, edit: Edit, fingerprint: str) -> None:
        """Apply an edit, save and verify (see `ImageEntry.write`)."""
        foreign = [item for item in edit.remove if not is_ours(item)]
        if foreign:
            raise UsageError(f"{foreign[0]} was not written by qpnuclei and is not removed")
        self._check_unchanged(fingerprint)
        data = self._load_for_writing().data
        self._project.keep(None)  # it differs from the file, until it was saved and verified
        hierarchy = data.getHierarchy()
        with _jvm.quiet(), _java_errors(SaveError, f"{self.name}: QuPath refuses the edit"):
            classes = _apply(edit, hierarchy)
            if edit.workflow_step is not None:
                step = _jvm.java_class("qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep")
                data.getHistoryWorkflow().addStep(step(*edit.workflow_step))
        expected = _Content.of(hierarchy)
        with _kept_on_failure(self.data_file):
            self._check_unchanged(fingerprint)
            with _jvm.quiet(), _java_errors(SaveError, f"{self.data_file}: cannot be saved"):
                self._entry.saveImageData(data)
            self._verify(expected)
        self._project.keep(_Loaded(self, file_fingerprint(self.data_file), data))
        with _jvm.quiet():
            self._project.add_classes(classes)

    def _verify(self, expected: _Content) -> None:
        what = f"{self.data_file}: what QuPath saved does not read back as written"
        with _jvm.quiet(), _java_errors(SaveError, what):
            saved = _jvm.java_class("qupath.lib.io.PathIO").readHierarchy(_file(self.data_file))
            difference = expected.difference(_Content.of(saved))
        if difference:
            raise SaveError(f"{what}: {difference}", "the file is as it was; try --backend native")

    def _check_unchanged(self, fingerprint: str) -> None:
        if file_fingerprint(self.data_file) != fingerprint:
            raise ConflictError(
                f"{self.data_file} of image {self.name!r} changed since it was read",
                "is the project open in QuPath? close it there and run again",
            )

    def _load_for_writing(self) -> _Loaded:
        if not _opens_lazily() and self._build_server() is None:
            raise SaveError(
                f"{self.name}: this QuPath saves no image whose file it cannot open "
                f"({', '.join(self.server.uris)})",
                "say where the images are with --image-root, or use --backend native",
            )
        return self._load()

    def _load(self) -> _Loaded:
        current = file_fingerprint(self.data_file)
        loaded = self._project.loaded(self, current)
        if loaded is None:
            loaded = _Loaded(self, current, self._read_image_data())
            self._project.keep(loaded)
        return loaded

    def _read_image_data(self) -> JavaObject:
        """Read the image data without QuPath's recovery, which shows a damaged file as empty."""
        from paquo.java import BufferedImage, PathIO

        file = self.data_file
        if not file.exists():
            with _jvm.quiet(), _java_errors(SlideError, f"{self.name}: QuPath cannot open it"):
                return self._entry.readImageData()
        _check_complete(file)
        with _jvm.quiet(), _java_errors(FormatError, f"{file} is corrupt", _backup_hint(file)):
            if _opens_lazily():
                return PathIO.readImageData(_file(file).toPath(), self._entry.getServerBuilder())
            return PathIO.readImageData(_file(file), None, self._build_server(), BufferedImage)

    def _build_server(self) -> JavaObject | None:
        """Open the image's pixels in QuPath; None if it cannot."""
        import jpype

        try:
            with _jvm.quiet():
                return self._entry.getServerBuilder().build()
        except jpype.JException as error:
            logger.info("%s: QuPath cannot open its pixels: %s", self.name, _reason(error))
            return None


# Reading -----------------------------------------------------------------------------------------


def _flat(hierarchy: JavaObject) -> JavaObject:
    """Return the Java list of all objects but the root, each before its children."""
    objects = hierarchy.getFlattenedObjectList(None)
    return objects.subList(1, objects.size())


def _only(objects: JavaObject, test: str) -> JavaObject:
    return _jvm.keep_if(objects, method(_PATH_OBJECT, test, "boolean"))


def _stored_ids(file: Path) -> set[str]:
    """Return the UUIDs in a data file: QuPath makes up others for objects that have none."""
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {match[1].decode() for match in _UUID_STRING.finditer(data)}


def _read_annotations(
    annotations: Sequence[JavaObject], stored: set[str]
) -> tuple[Annotation, ...]:
    handles = {str(item.getID()): handle for handle, item in enumerate(annotations)}
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
                geometry=_geometries(_java_list([item]))[0],
                locked=bool(item.isLocked()),
                color=None if item.getColor() is None else int(item.getColor()),
                parent=None if above is None else handles[str(above.getID())],
                z=int(roi.getZ()),
                t=int(roi.getT()),
            )
        )
    return tuple(made)


def _read_detections(
    objects: JavaObject, annotations: Sequence[JavaObject], stored: set[str]
) -> Detections:
    detections = _only(objects, "isDetection")
    ids = _ids(detections)
    to_class_name = pipe(
        method(_PATH_OBJECT, "getClass", "java.lang.Class"),
        method("java.lang.Class", "getSimpleName", _STRING),
    )
    java_classes = _jvm.texts(detections, to_class_name)
    path_classes = _jvm.texts(detections, method(_PATH_OBJECT, "getPathClass", _PATH_CLASS))
    names = _jvm.java_class("qupath.lib.objects.PathObjectTools").getAvailableFeatures(detections)
    return Detections(
        ids=[uuid.UUID(item) if item in stored else None for item in ids],
        kinds=[_KINDS.get(name, "detection") for name in java_classes],
        class_names=[name or None for name in path_classes],
        geometries=_geometries(detections),
        centroids=_centroids(detections),
        parents=_parents(objects, annotations, detections),
        measurements={
            str(name): _jvm.doubles(
                detections,
                pipe(
                    method(_PATH_OBJECT, "getMeasurementList", _MEASUREMENTS),
                    bind(method(_MEASUREMENTS, "get", "double", _STRING), 1, name),
                ),
            )
            for name in names
        },
    )


def _ids(objects: JavaObject) -> list[str]:
    return _jvm.texts(objects, method(_PATH_OBJECT, "getID", _UUID))


def _parent_ids(objects: JavaObject) -> list[str]:
    parent_id = pipe(
        method(_PATH_OBJECT, "getParent", _PATH_OBJECT), method(_PATH_OBJECT, "getID", _UUID)
    )
    return _jvm.texts(objects, parent_id)


def _centroids(objects: JavaObject) -> npt.NDArray[np.float64]:
    to_roi = method(_PATH_OBJECT, "getROI", _ROI)
    axes = [pipe(to_roi, method(_ROI, f"getCentroid{axis}", "double")) for axis in "XY"]
    return np.stack([_jvm.doubles(objects, axis) for axis in axes], axis=1)


def _parents(
    objects: JavaObject, annotations: JavaObject, detections: JavaObject
) -> npt.NDArray[np.int64]:
    """Return the handle of the nearest annotation above each detection, -1 for none."""
    handle_of = {item: handle for handle, item in enumerate(_ids(annotations))}
    parent_of = dict(zip(_ids(objects), _parent_ids(objects), strict=True))

    def nearest(item: str | None) -> int:
        while item is not None and item not in handle_of:
            item = parent_of.get(item)  # the root is not among the objects
        return -1 if item is None else handle_of[item]

    return np.array([nearest(item) for item in _parent_ids(detections)], dtype=np.int64)


def _geometries(objects: JavaObject) -> npt.NDArray[Any]:
    """Return the (N,) Shapely geometries of the ROIs of Java objects."""
    rois = _jvm.map_list(objects, method(_PATH_OBJECT, "getROI", _ROI))
    to_type = pipe(
        method("java.lang.Object", "getClass", "java.lang.Class"),
        method("java.lang.Class", "getSimpleName", _STRING),
    )
    types = np.array(_jvm.texts(rois, to_type), dtype=object)
    made = np.empty(len(types), dtype=object)
    for roi_type in dict.fromkeys(types):
        indices = np.flatnonzero(types == roi_type)
        chosen = rois if len(indices) == len(types) else _jvm.take(rois, indices)
        make = _from_vertices if roi_type in _TYPES_OF_VERTICES else _from_geometry
        made[indices] = make(chosen, roi_type)
    return made


def _from_vertices(rois: JavaObject, roi_type: str) -> npt.NDArray[Any]:
    """Make geometries of the vertices as QuPath stores them, be they valid or not."""
    to_points = method(_ROI, "getAllPoints", "java.util.List")
    points = _jvm.flat_map_list(rois, to_points)
    coordinates = np.stack(
        [_jvm.doubles(points, method(_POINT, f"get{axis}", "double")) for axis in "XY"], axis=1
    )
    counts = _jvm.ints(rois, pipe(to_points, method("java.util.List", "size", "int")))
    offsets = np.concatenate([[0], np.cumsum(counts)])
    if roi_type == "PolygonROI":
        return polygons(coordinates, offsets)
    make = shapely.multipoints if roi_type == "PointsROI" else shapely.linestrings
    made = np.empty(len(counts), dtype=object)
    made[:] = [make(coordinates[a:b]) for a, b in pairwise(offsets)]
    return made


def _from_geometry(rois: JavaObject, _: str) -> npt.NDArray[Any]:
    """Let QuPath make the geometries; they cross the border as one collection."""
    import jpype

    made = _jvm.map_list(rois, method(_ROI, "getGeometry", _GEOMETRY))
    collection = _jvm.java_class("org.locationtech.jts.geom.GeometryFactory")()
    wkb = _jvm.java_class("org.locationtech.jts.io.WKBWriter")(2).write(
        collection.createGeometryCollection(
            made.toArray(jpype.JArray(_jvm.java_class(_GEOMETRY))(0))
        )
    )
    return shapely.get_parts(shapely.from_wkb(bytes(wkb)))


# Writing -----------------------------------------------------------------------------------------


def _apply(edit: Edit, hierarchy: JavaObject) -> list[JavaObject]:
    """Apply an edit to a hierarchy, with one event at its end; return the classes it uses."""
    objects = _flat(hierarchy)
    annotations = _only(objects, "isAnnotation")
    root = hierarchy.getRootObject()
    classes = []
    if edit.remove:
        _remove(edit.remove, objects, hierarchy)
    for group in edit.add:
        if group.parent is not None and not 0 <= group.parent < annotations.size():
            raise UsageError(f"the image has no annotation number {group.parent}")
        parent = root if group.parent is None else annotations.get(group.parent)
        classes.append(_path_class(group.path_class))
        parent.addChildObjects(_new_detections(group, classes[-1]))
    for new in edit.annotations:
        added = _new_annotation(new)
        root.addChildObject(added)
        if new.path_class is not None:
            classes.append(added.getPathClass())
    hierarchy.fireHierarchyChangedEvent(root)
    return classes


def _remove(remove: frozenset[uuid.UUID], objects: JavaObject, hierarchy: JavaObject) -> None:
    """Remove detections; what someone nested below one of them moves up."""
    wanted = {str(item) for item in remove}
    indices = np.flatnonzero([item in wanted for item in _ids(objects)])
    found = _jvm.take(objects, indices)
    missing = wanted - set(_ids(found))
    if missing:
        raise UsageError(f"the image has no detection {min(missing)} to remove")
    if _only(found, "isDetection").size() < found.size():
        raise UsageError("what is no detection is not removed")
    hierarchy.removeObjects(found, True)


def _new_detections(group: DetectionGroup, path_class: JavaObject) -> JavaObject:
    """Make a group's detections: those without holes first, as polygons, then the others."""
    nuclei = group.nuclei
    has_hole = np.diff(nuclei.polygon_offsets) > 1
    order = np.argsort(has_hole, kind="stable")
    polygons_first = nuclei.take(order)
    simple = int(np.count_nonzero(~has_hole))
    rois = _polygon_rois(polygons_first.take(np.arange(simple)))
    rois.addAll(_geometry_rois(polygons_first.take(np.arange(simple, len(nuclei)))))
    measurements = _new_measurements(polygons_first.measurements)
    make = static(
        "qupath.lib.objects.PathObjects", "createDetectionObject", _PATH_OBJECT,
        _ROI, _PATH_CLASS, _MEASUREMENTS,
    )  # fmt: skip
    detections = _jvm.make_list(
        len(nuclei),
        fan_out(bind(make, 1, path_class), item_of(rois, _ROI), measurements),
    )
    detection = item_of(detections, _PATH_OBJECT)
    ids = _jvm.string_array([str(group.ids[index]) for index in order])
    to_id = pipe(element_of(ids), static(_UUID, "fromString", _UUID, _STRING))
    _jvm.for_each(
        len(nuclei), fan_out(method(_PATH_OBJECT, "setID", "void", _UUID), detection, to_id)
    )
    own_list = pipe(detection, method(_PATH_OBJECT, "getMeasurementList", _MEASUREMENTS))
    for name, column in polygons_first.measurements.items():
        put = method(_MEASUREMENTS, "put", "void", _STRING, "double")
        put_named = bind(put, 1, _jvm.java_class(_STRING)(name))
        values = _jvm.double_array(column)
        _jvm.for_each(len(nuclei), fan_out(put_named, own_list, element_of(values)))
    # Closed lists of the same names share them.
    _jvm.for_each(len(nuclei), pipe(own_list, method(_MEASUREMENTS, "close", "void")))
    return detections


def _new_measurements(names: Collection[str]) -> Handle:
    """Return the function that makes an empty list of float measurements for a detection."""
    import jpype

    kind = f"{_MEASUREMENTS}$MeasurementListType"
    factory = "qupath.lib.measurements.MeasurementListFactory"
    make = static(factory, "createMeasurementList", _MEASUREMENTS, "int", kind)
    bound = bind(
        make, 0, jpype.JObject(len(names), "java.lang.Integer"), _jvm.java_class(kind).FLOAT
    )
    return _jvm.for_any_int(bound)


def _polygon_rois(nuclei: NucleiTable) -> JavaObject:
    """Make PolygonROIs of nuclei without holes; QuPath does not repeat the first vertex."""
    x, y = (_jvm.double_array(nuclei.vertices[:, axis]) for axis in (0, 1))
    begins = element_of(_jvm.int_array(nuclei.ring_offsets[:-1]))
    ends = element_of(_jvm.int_array(nuclei.ring_offsets[1:] - 1))
    copy = static("java.util.Arrays", "copyOfRange", "double[]", "double[]", "int", "int")
    make = static("qupath.lib.roi.ROIs", "createPolygonROI", _ROI, "double[]", "double[]", _PLANE)
    plane = _jvm.java_class(_PLANE).getDefaultPlane()
    return _jvm.make_list(
        len(nuclei),
        fan_out(
            bind(make, 2, plane),
            *(fan_out(bind(copy, 0, values), begins, ends) for values in (x, y)),
        ),
    )


def _geometry_rois(nuclei: NucleiTable) -> JavaObject:
    """Make ROIs of nuclei with holes, which are few."""
    return _java_list([_roi(polygon) for polygon in nuclei.polygons()])


def _roi(geometry: shapely.Geometry) -> JavaObject:
    if geometry.geom_type == "Polygon" and not geometry.interiors:
        return _polygon_rois(NucleiTable.from_polygons([geometry])).get(0)
    wkb = shapely.to_wkb(geometry, output_dimension=2)
    return _jvm.java_class("qupath.lib.roi.GeometryTools").geometryToROI(
        _jvm.java_class("org.locationtech.jts.io.WKBReader")().read(wkb),
        _jvm.java_class(_PLANE).getDefaultPlane(),
    )


def _new_annotation(new: NewAnnotation) -> JavaObject:
    made = _jvm.java_class("qupath.lib.objects.PathObjects").createAnnotationObject(
        _roi(new.geometry), None if new.path_class is None else _path_class(new.path_class)
    )
    made.setID(_jvm.java_class(_UUID).fromString(str(new.id)))
    if new.name is not None:
        made.setName(new.name)
    made.setLocked(new.locked)
    return made


def _path_class(path_class: PathClass) -> JavaObject:
    """Return QuPath's class of that name; a new one gets our colour."""
    import jpype

    color = path_class.color
    return _jvm.java_class(_PATH_CLASS).fromString(
        path_class.name, None if color is None else jpype.JObject(color, "java.lang.Integer")
    )


# Saving ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Content:
    """What must be the same in a hierarchy and in the file that it was saved to."""

    ids: list[str]
    parent_ids: list[str]
    class_names: list[str]
    measurement_counts: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float64]

    @classmethod
    def of(cls, hierarchy: JavaObject) -> _Content:
        objects = _flat(hierarchy)
        count = pipe(
            method(_PATH_OBJECT, "getMeasurementList", _MEASUREMENTS),
            method(_MEASUREMENTS, "size", "int"),
        )
        root = str(hierarchy.getRootObject().getID())
        return cls(
            ids=_ids(objects),
            parent_ids=["" if item == root else item for item in _parent_ids(objects)],
            class_names=_jvm.texts(objects, method(_PATH_OBJECT, "getPathClass", _PATH_CLASS)),
            measurement_counts=_jvm.ints(objects, count),
            centroids=_centroids(objects),
        )

    def difference(self, other: _Content) -> str | None:
        """Say what differs; None if nothing does."""
        if len(self.ids) != len(other.ids):
            return f"{len(other.ids)} objects instead of {len(self.ids)}"
        for what in ("ids", "parent_ids", "class_names"):
            if getattr(self, what) != getattr(other, what):
                return f"other {what.replace('_', ' ')}"
        if not np.array_equal(self.measurement_counts, other.measurement_counts):
            return "other measurements"
        # QuPath 0.6 and newer round some geometries to 0.01 px when they read them.
        if not np.allclose(self.centroids, other.centroids, rtol=0, atol=0.05, equal_nan=True):
            return "other places"
        return None


@contextmanager
def _kept_on_failure(data_file: Path) -> Iterator[None]:
    """Put the data file and its summary back as they were if what is within fails."""
    files = [data_file, data_file.with_name("summary.json"), data_file.with_name("data.qpdata.bkp")]
    copies = {file: file.with_name(f"{file.name}.old") for file in files if file.exists()}
    try:
        for file, copy in copies.items():
            shutil.copy2(file, copy)
        try:
            yield
        except BaseException:
            for file in files:
                if file in copies:
                    copies[file].replace(file)
                else:
                    file.unlink(missing_ok=True)
            raise
    except QpnucleiError:
        raise
    except OSError as error:
        raise SaveError(f"{data_file} cannot be saved: {error}") from error
    finally:
        for copy in copies.values():
            copy.unlink(missing_ok=True)


# Errors and small things -------------------------------------------------------------------------


@contextmanager
def _java_errors(error_type: type[QpnucleiError], what: str, hint: str = "") -> Iterator[None]:
    """Turn a Java exception into one of our errors."""
    import jpype

    try:
        yield
    except jpype.JException as error:
        if isinstance(error, _jvm.java_class("java.lang.OutOfMemoryError")):
            hint = "give Java more memory, for example PAQUO_JAVA_OPTS=-Xmx32g"
        raise error_type(f"{what}: {_reason(error)}", hint) from error


def _reason(error: Any) -> str:
    """Say in one line what a Java exception says."""
    text = str(error.message() or error.toString()) if hasattr(error, "message") else str(error)
    return " ".join(text.split())[:300]


def _opens_lazily() -> bool:
    from paquo.java import qupath_version

    return qupath_version is not None and qupath_version.version.release >= _LAZY_IMAGES


def _java_list(items: Sequence[JavaObject]) -> JavaObject:
    made = _jvm.java_class("java.util.ArrayList")()
    for item in items:
        made.add(item)
    return made


def _file(path: Path) -> JavaObject:
    return _jvm.java_class("java.io.File")(str(path))


def _roi_type(java_name: str) -> str:
    return "GeometryROI" if java_name == "AreaROI" else java_name


def _check_complete(file: Path) -> None:
    """Refuse a truncated file, of which QuPath would show the part that is there."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(_END_MARK), 0))
        if stream.read() != _END_MARK:
            raise FormatError(f"{file}: byte {size}: ends before its end mark", _backup_hint(file))


def _backup_hint(file: Path) -> str:
    backup = file.with_name("data.qpdata.bkp")
    return f"QuPath's backup {backup} is there: try it in its place" if backup.exists() else ""


def _no_detections() -> Detections:
    return Detections([], [], [], np.empty(0, object), np.empty((0, 2)), np.empty(0, np.int64))


# To be shared with the native backend -------------------------------------------------------------


def file_fingerprint(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        return "absent"


def find_project_file(path: str | os.PathLike[str]) -> Path:
    file = Path(path).absolute()
    if file.is_dir():
        file = file / "project.qpproj"
    if not file.is_file():
        raise NotFoundError(f"no QuPath project at {str(path)!r}")
    return file


def parse_server(builder: dict[str, Any]) -> ImageServer:
    types = []
    metadata: dict[str, Any] = {}
    inner = builder
    while True:
        types.append(inner.get("builderType", ""))
        metadata = metadata or inner.get("metadata") or {}
        if "builder" not in inner:
            break
        inner = inner["builder"]
    return ImageServer(
        builder_types=tuple(types),
        provider=inner.get("providerClassName", ""),
        uris=(inner["uri"],) if "uri" in inner else (),
        args=tuple(inner.get("args", ())),
        width=metadata.get("width"),
        height=metadata.get("height"),
        size_z=metadata.get("sizeZ", 1),
        size_t=metadata.get("sizeT", 1),
        is_rgb=metadata.get("isRGB", True),
    )


def parse_calibration(builder: dict[str, Any]) -> PixelCalibration | None:
    metadata = builder.get("metadata")
    if metadata is None:
        return None
    calibration = metadata.get("pixelCalibration", {})
    sizes = [calibration.get(k, {}) for k in ("pixelWidth", "pixelHeight")]
    if any(size.get("unit") != "µm" for size in sizes):
        return PixelCalibration()
    return PixelCalibration(*(float(size["value"]) for size in sizes))


def relocate(project: PaquoProject, image_root: Path | None) -> None:
    from urllib.parse import unquote, urlsplit

    previous = str(project.java_object.getPreviousURI())
    for image in project.images:
        if not image.server.uris:
            continue
        stored = Path(unquote(urlsplit(image.server.uris[0]).path))
        candidates = [
            stored,
            project.path.parent
            / os.path.relpath(stored, Path(unquote(urlsplit(previous).path)).parent),
        ]
        if image_root:
            candidates.append(image_root / stored.name)
        for candidate in candidates:
            if candidate.is_file():
                image.path = candidate.resolve()
                if candidate is not stored:
                    image.point_to({image.server.uris[0]: image.path.as_uri()})
                break
