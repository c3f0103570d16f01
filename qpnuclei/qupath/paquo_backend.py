"""QuPath projects through paquo and a real QuPath.

QuPath itself reads and writes everything, so what it understands is what there is. paquo starts it
and opens the project; objects are read and written in columns (see `qpnuclei.qupath._jvm`), because
paquo takes a call per object and silently leaves out the saving of an image that it cannot reach.

The project file is never written: another QuPath version would drop what it does not know.
"""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import orjson
import shapely

from qpnuclei.errors import ConflictError, FormatError, SaveError
from qpnuclei.qupath import _jvm
from qpnuclei.qupath._jvm import JavaObject, bind, element_of, fan_out, item_of, method, pipe, static
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

_PATH_OBJECT = "qupath.lib.objects.PathObject"
_PATH_CLASS = "qupath.lib.objects.classes.PathClass"
_ROI = "qupath.lib.roi.interfaces.ROI"
_MEASUREMENTS = "qupath.lib.measurements.MeasurementList"
_PLANE = "qupath.lib.regions.ImagePlane"
_STRING = "java.lang.String"
_UUID = "java.util.UUID"

#: QuPath's Java class -> our kind.
_KINDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
}
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
            PathClass(str(item.toString()), None if item.getColor() is None else int(item.getColor()))
            for item in self.java_object.getPathClasses()
            if item.getName() is not None
        ]

    def add_classes(self, classes: Sequence[JavaObject]) -> None:
        """Add to the project's class list what it lacks of some Java path classes."""
        known = list(self.java_object.getPathClasses())
        new = [item for item in dict.fromkeys(classes) if item not in known]
        if new:
            self.java_object.setPathClasses(_java_list([*known, *new]))


class _Loaded:
    """The image data read last, kept because a write follows a read, and reading is slow."""

    def __init__(self, image: PaquoImage, fingerprint: str, data: JavaObject) -> None:
        self.image = image
        self.fingerprint = fingerprint
        self.data = data


class PaquoImage:
    """One image of a project (see `qpnuclei.qupath.model.ImageEntry`)."""

    def __init__(self, project: PaquoProject, entry: JavaObject) -> None:
        self._project = project
        self._entry = entry
        self.id = str(entry.getID())
        self.name = str(entry.getImageName())
        builder = _jvm.java_class("qupath.lib.io.GsonTools").getInstance().toJson(
            entry.getServerBuilder(),
            _jvm.java_class("qupath.lib.images.servers.ImageServerBuilder$ServerBuilder").class_,
        )
        self._builder: dict[str, Any] = orjson.loads(str(builder))
        self.server: ImageServer = parse_server(self._builder)
        self.path: Path | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, id {self.id})"

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
        stains = self._load().data.getColorDeconvolutionStains() if self.data_file.exists() else None
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
        self._project.forget()  # it differs from the file, until it was saved and verified
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


def _read_annotations(annotations: Sequence[JavaObject], stored: set[str]) -> tuple[Annotation, ...]:
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
        chosen = rois if len(indices) == len(types) else _take(rois, indices)
        make = _from_vertices if roi_type in _SHAPES_OF_VERTICES else _from_geometry
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
    rings = np.split(coordinates, np.cumsum(counts)[:-1])
    made = np.empty(len(rings), dtype=object)
    made[:] = [_SHAPES_OF_VERTICES[roi_type](ring) for ring in rings]
    return made


def _from_geometry(rois: JavaObject, _: str) -> npt.NDArray[Any]:
    """Let QuPath make the geometries; they cross the border as one collection."""
    import jpype

    geometry = _jvm.java_class("org.locationtech.jts.geom.Geometry")
    made = _jvm.map_list(rois, method(_ROI, "getGeometry", geometry.class_.getName()))
    collection = _jvm.java_class("org.locationtech.jts.geom.GeometryFactory")()
    wkb = _jvm.java_class("org.locationtech.jts.io.WKBWriter")(2).write(
        collection.createGeometryCollection(made.toArray(jpype.JArray(geometry)(0)))
    )
    return shapely.get_parts(shapely.from_wkb(bytes(wkb)))
