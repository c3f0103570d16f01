"""QuPath projects through paquo and an installed QuPath.

QuPath itself reads and writes all data. paquo starts QuPath and opens the project. paquo accesses
objects one call at a time, and silently does not save an image that it cannot open. So objects are
read as columns (see `qpnuclei.qupath.paquo.jvm`); new objects are encoded by
`qpnuclei.qupath.qpdata` and decoded by QuPath, as when it opens a file; and every save is verified.

The project file is never written: another QuPath version would drop fields that it does not know.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import shapely

from qpnuclei.errors import (
    ConflictError,
    FormatError,
    QpnucleiError,
    SaveError,
    SlideError,
    UsageError,
)
from qpnuclei.nuclei.ids import is_ours
from qpnuclei.qupath import project_file
from qpnuclei.qupath.backups import drop_old_backups, kept_backup
from qpnuclei.qupath.model import (
    Annotation,
    Detections,
    Edit,
    ImageObjects,
    ImageServer,
    PathClass,
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
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.qpdata.data_file import DataFile, annotation_node
from qpnuclei.qupath.qpdata.java_classes import Catalog
from qpnuclei.qupath.qpdata.java_stream import Content
from qpnuclei.qupath.qpdata.new_detections import Additions, NewPart, plane_of, uniform_parts
from qpnuclei.qupath.qpdata.rois import Plane, polygons
from qpnuclei.qupath.regions import one_image
from qpnuclei.qupath.transaction import (
    Transaction,
    remove_leftovers,
    temporary_beside,
)
from qpnuclei.qupath.uris import file_uri, find_image, parse_file_uri
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.stains import Stains
from qpnuclei.system.files import TEMPORARY_PREFIX, open_regular
from qpnuclei.system.locks import locked

if TYPE_CHECKING:
    from qpnuclei.nuclei.exports.rows import NucleusRows

_log = logging.getLogger(__name__)

_PATH_IO = "qupath.lib.io.PathIO"
_PATH_OBJECT = "qupath.lib.objects.PathObject"
_OBJECT_TOOLS = "qupath.lib.objects.PathObjectTools"
_HIERARCHY = "qupath.lib.objects.hierarchy.PathObjectHierarchy"
_PATH_CLASS = "qupath.lib.objects.classes.PathClass"
_ROI = "qupath.lib.roi.interfaces.ROI"
_MEASUREMENTS = "qupath.lib.measurements.MeasurementList"
_GEOMETRY = "org.locationtech.jts.geom.Geometry"
_STRING = "java.lang.String"
_UUID = "java.util.UUID"
_POINT = "qupath.lib.geom.Point2"

# How a UUID and the end of the file look in a Java object stream: a string and its length.
_UUID_STRING = re.compile(rb"t\0\x24([0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12})")
_END_MARK = b"t\0\3EOF"

#: Under which key of the metadata QuPath keeps the description of an annotation.
_DESCRIPTION = "ANNOTATION_DESCRIPTION"
#: The copy that QuPath keeps while it saves, and leaves if the save fails.
_BACKUP = "data.qpdata.bkp"

#: QuPath's Java class -> our kind.
_KINDS = {
    "PathDetectionObject": "detection",
    "PathCellObject": "cell",
    "PathTileObject": "tile",
}
#: QuPath 0.6 and newer round vertices to this grid, except in simple polygons.
_GRID_PX = 0.01
#: ROIs that are read as stored vertices; QuPath would repair a polygon that crosses itself.
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
        Folder to search for image files that are not where the project says.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there is no QuPath on this machine, or it does not start.
    qpnuclei.errors.NotFoundError
        If there is no project at `path`.
    qpnuclei.errors.FormatError
        If it is not a QuPath project.
    """
    file = project_file.find_project_file(Path(path))
    content = project_file.read_project(file)
    jvm.start()
    return PaquoProject(file, content, image_root)


class PaquoProject:
    """A QuPath project (see `qpnuclei.qupath.model.Project`), opened by QuPath itself."""

    backend = "paquo"

    def __init__(
        self, path: Path, content: Mapping[str, Any], image_root: Path | None = None
    ) -> None:
        from paquo.projects import QuPathProject

        self.path = path
        with jvm.quiet(), _java_errors(FormatError, f"{path}: QuPath cannot open the project"):
            self._project = QuPathProject(path, mode="r+")
        self.java_object: JavaObject = self._project.java_object
        entries = {str(entry.getID()): entry for entry in self.java_object.getImageList()}
        uri = content.get("uri")
        self.images: Sequence[PaquoImage] = [
            PaquoImage(self, entries[str(project_file.entry_id(item))], item["serverBuilder"])
            for item in content["images"]
        ]
        for image in self.images:
            image.find(uri if isinstance(uri, str) else None, image_root)
        self._last: _Loaded | None = None

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
        return project_file.read_classes(self.classes_path)

    @property
    def classes_path(self) -> Path:
        """Where the class list is stored."""
        return self.path.parent / "classifiers" / "classes.json"

    def nuclei(self, image: str, mpp: float | None = None) -> NucleusRows:
        """Return the nuclei of an image, whoever wrote them, as a table (see `Project.nuclei`)."""
        from qpnuclei.qupath.nucleus_rows import nuclei_of

        entry = one_image(self.images, image)
        return nuclei_of(self, entry, pixel_sizes=AskedMpp(mpp))

    def loaded(self, image: PaquoImage, fingerprint: str) -> _Loaded | None:
        """Return the image data read last, if it is of this image and this state of its file."""
        last = self._last
        current = last is not None and last.image is image and last.fingerprint == fingerprint
        return last if current else None

    def keep(self, loaded: _Loaded) -> None:
        """Keep the image data read last; close the one kept before."""
        if self._last is not None:
            self._last.close()
        self._last = loaded

    def release(self) -> None:
        """Forget the kept image data without closing it."""
        self._last = None

    def add_classes(self, classes: Sequence[PathClass]) -> None:
        """Add missing classes to the project's class list.

        Written directly, because QuPath only logs a failure.
        """
        with locked(self.path.parent), Transaction(self.path.parent) as transaction:
            content = project_file.with_classes(self.classes_path, classes)
            if content is not None:
                transaction.stage(self.classes_path, lambda emit: emit(content))
                transaction.commit()


@dataclass(frozen=True, eq=False)
class _Loaded:
    """The image data read last, kept because a write follows a read, and reading is slow."""

    image: PaquoImage
    fingerprint: str
    hierarchy: JavaObject
    data: JavaObject | None

    def close(self) -> None:
        """Close the image's file, if QuPath opened it."""
        import jpype

        with suppress(jpype.JException), jvm.quiet():  # closing is optional
            if self.data is not None and _opens_lazily():
                self.data.close()
            elif self.data is not None:
                self.data.getServer().close()


class PaquoImage:
    """One image of a project (see `qpnuclei.qupath.model.ImageEntry`)."""

    def __init__(
        self, project: PaquoProject, entry: JavaObject, builder: Mapping[str, Any]
    ) -> None:
        self._project = project
        self._entry = entry
        self._builder = builder
        self.id = str(entry.getID())
        self.name = str(entry.getImageName())
        self.server: ImageServer = project_file.image_server(builder)
        self.path: Path | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r}, id {self.id})"

    def find(self, project_uri: str | None, image_root: Path | None) -> None:
        """Find the image's files, and make QuPath open them there (in memory only).

        Parameters
        ----------
        project_uri : str or None
            Where the project was when it was last saved.
        image_root : Path or None
            A folder of images that the user names.
        """
        java_uri = jvm.java_class("java.net.URI")
        replacements = jvm.java_class("java.util.HashMap")()
        for number, uri in enumerate(self.server.uris):
            found = find_image(uri, project_uri, self._project.path.parent, image_root)
            if found is not None and found != _stored_path(uri):
                replacements.put(java_uri(uri), java_uri(file_uri(found)))
            if number == 0:
                self.path = found
        with jvm.quiet(), _java_errors(FormatError, f"{self.name}: QuPath refuses its URI"):
            self._entry.updateURIs(replacements)

    @property
    def data_file(self) -> Path:
        """Where QuPath keeps the objects of this image; absent until it was saved once."""
        return Path(str(self._entry.getEntryPath())) / "data.qpdata"

    @cached_property
    def calibration(self) -> PixelCalibration:
        """Pixel size as QuPath shows it."""
        if project_file.server_metadata(self._builder) is not None:
            return project_file.pixel_calibration(self._builder)
        server = self._build_server()
        if server is None:
            return PixelCalibration()
        calibration = server.getPixelCalibration()
        server.close()
        if not calibration.hasPixelSizeMicrons():
            return PixelCalibration()
        return PixelCalibration(
            float(calibration.getPixelWidthMicrons()), float(calibration.getPixelHeightMicrons())
        )

    @property
    def image_type(self) -> str | None:
        """Name of QuPath's ``ImageType``; None if never saved."""
        data = self._load().data if self.data_file.exists() else None
        return None if data is None else str(data.getImageType().name())

    @property
    def stains(self) -> Stains | None:
        """Colour deconvolution stains of the image; None if it has none."""
        data = self._load().data if self.data_file.exists() else None
        stains = None if data is None else data.getColorDeconvolutionStains()
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
        loaded = self._load()
        objects = _flat(loaded.hierarchy)
        stored = _stored_ids(self.data_file)
        annotations = _only(objects, "isAnnotation")
        return ImageObjects(
            _read_annotations(annotations, stored),
            _JavaDetections(objects, annotations, stored),
            loaded.fingerprint,
            self._properties(loaded),
            _read_cores(_only(objects, "isTMACore"), stored),
        )

    def _properties(self, loaded: _Loaded) -> dict[str, str]:
        """Return the image's properties that are texts."""
        if loaded.data is None:  # QuPath reads objects alone where it cannot open the image
            if not self.data_file.exists():
                return {}
            return DataFile.parse(self.data_file.read_bytes(), str(self.data_file)).properties
        string = jvm.java_class(_STRING)
        return {
            str(item.getKey()): str(item.getValue())
            for item in loaded.data.getProperties().entrySet()
            if isinstance(item.getValue(), string)
        }

    def write(self, edit: Edit, fingerprint: str) -> None:
        """Apply an edit, save and verify (see `ImageEntry.write`)."""
        foreign = [item for item in edit.remove if not is_ours(item)]
        if foreign:
            raise UsageError(f"{foreign[0]} was not written by qpnuclei and is not removed")
        with locked(self._project.path.parent):
            self._check_unchanged(fingerprint)
            loaded = self._load_for_writing()
            self._project.release()  # it differs from the file until that is saved and verified
            try:
                self._edit_and_save(loaded, edit, fingerprint)
            except BaseException:
                loaded.close()
                raise
        with suppress(OSError):
            drop_old_backups(self.data_file)
        self._project.keep(replace(loaded, fingerprint=_fingerprint(self.data_file)))

    def _edit_and_save(self, loaded: _Loaded, edit: Edit, fingerprint: str) -> None:
        data: JavaObject = loaded.data
        hierarchy = loaded.hierarchy
        additions, new_ids = Additions.of(edit)
        with jvm.quiet(), _java_errors(SaveError, f"{self.name}: QuPath refuses the edit"):
            before = _apply(additions, new_ids, hierarchy)
            if edit.workflow_step is not None:
                step = jvm.java_class("qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep")
                data.getHistoryWorkflow().addStep(step(*edit.workflow_step))
            for name, value in edit.properties.items():
                data.setProperty(name, value)
        self._check_unchanged(fingerprint)
        for folder in (self.data_file.parent, self._project.classes_path.parent):
            remove_leftovers(folder)
        with kept_backup(self.data_file), _kept_on_failure(self.data_file):
            with jvm.quiet(), _java_errors(SaveError, f"{self.data_file}: cannot be saved"):
                self._entry.saveImageData(data)
            self._verify(before, additions)
            self._project.add_classes(additions.path_classes)

    def _verify(self, before: _Content, additions: Additions) -> None:
        """Verify the saved file: new objects from its bytes, all others through QuPath."""
        what = f"{self.data_file}: what QuPath saved does not read back as written"
        rest = temporary_beside(self.data_file)
        try:
            saved = DataFile.parse(self.data_file.read_bytes(), "the file")
            saved.withdraw(additions, _GRID_PX)
            properties = saved.properties
            if any(properties.get(k) != v for k, v in additions.edit.properties.items()):
                raise FormatError("other properties of the image")
            with rest.open("wb") as stream:
                saved.write(stream.write)
            with jvm.quiet(), _java_errors(SaveError, what):
                difference = before.difference(_Content.of(_read_hierarchy(rest)))
        except FormatError as error:
            difference = error.what
        finally:
            rest.unlink(missing_ok=True)
        if difference:
            raise SaveError(f"{what}: {difference}", "the file is as it was; try --backend native")

    def _check_unchanged(self, fingerprint: str) -> None:
        if _fingerprint(self.data_file) != fingerprint:
            raise ConflictError(
                f"{self.data_file}: changed on disk since it was read",
                "close the image in QuPath and run again",
            )

    def _load_for_writing(self) -> _Loaded:
        if self._is_out_of_reach:
            raise SaveError(
                f"{self.name}: QuPath {_qupath_version()} saves no image whose file it cannot "
                f"open: {', '.join(self.server.uris)}",
                "say where the images are with --image-root, or use --backend native",
            )
        return self._load()

    def _load(self) -> _Loaded:
        current = _fingerprint(self.data_file)
        if not self._project.path.exists():
            raise SaveError(
                f"{self._project.path} is no longer there", "is its drive still connected?"
            )
        loaded = self._project.loaded(self, current)
        if loaded is None:
            data = self._read_image_data()
            if data is not None:
                hierarchy = data.getHierarchy()
            elif self.data_file.exists():
                with jvm.quiet(), self._corrupt_errors():
                    hierarchy = _read_hierarchy(self.data_file)
            else:
                hierarchy = jvm.java_class(_HIERARCHY)()
            loaded = _Loaded(self, current, hierarchy, data)
            self._project.keep(loaded)
        return loaded

    def _read_image_data(self) -> JavaObject | None:
        """Read the image data without QuPath's recovery, which returns a damaged file as empty.

        None if QuPath cannot open the image and so returns no image data.
        """
        from paquo.java import BufferedImage, PathIO

        file = self.data_file
        if file.exists():
            _check_complete(file)
        if self._is_out_of_reach:
            return None
        with jvm.quiet(), self._corrupt_errors():
            if not file.exists():
                return self._entry.readImageData()
            if _opens_lazily():
                return PathIO.readImageData(_file(file).toPath(), self._entry.getServerBuilder())
            return PathIO.readImageData(_file(file), None, self._build_server(), BufferedImage)

    def _corrupt_errors(self) -> AbstractContextManager[None]:
        return _java_errors(
            FormatError,
            f"{self.data_file}: QuPath cannot read it",
            _backup_hint(self.data_file),
        )

    @cached_property
    def _is_out_of_reach(self) -> bool:
        """Whether QuPath makes no image data, for want of the image's pixels or metadata."""
        if _opens_lazily() and project_file.server_metadata(self._builder) is not None:
            return False
        server = self._build_server()
        if server is not None:
            server.close()
        return server is None

    def _build_server(self) -> JavaObject | None:
        """Open the image's pixels in QuPath; None if it cannot."""
        import jpype

        try:
            with jvm.quiet():
                return self._entry.getServerBuilder().build()
        except jpype.JException as error:
            _log.info("%s: QuPath cannot open its pixels: %s", self.name, _reason(error))
            return None


# Reading -----------------------------------------------------------------------------------------


def _flat(hierarchy: JavaObject) -> JavaObject:
    """Return the Java list of all objects but the root, each before its children."""
    objects = hierarchy.getFlattenedObjectList(None)
    return objects.subList(1, objects.size())


def _only(objects: JavaObject, test: str) -> JavaObject:
    return jvm.keep_if(objects, method(_PATH_OBJECT, test, "boolean"))


def _stored_ids(file: Path) -> set[str]:
    """Return the UUIDs in a data file; QuPath invents UUIDs for objects without one."""
    if not file.exists():
        return set()
    with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return {match[1].decode() for match in _UUID_STRING.finditer(data)}


def _read_annotations(annotations: JavaObject, stored: set[str]) -> tuple[Annotation, ...]:
    handles = {str(item.getID()): handle for handle, item in enumerate(annotations)}
    geometries = _geometries(annotations)
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


def _read_cores(cores: JavaObject, stored: set[str]) -> tuple[TmaCore, ...]:
    return tuple(
        TmaCore(**{**vars(core), "handle": -1 - core.handle}, missing=bool(item.isMissing()))
        for core, item in zip(_read_annotations(cores, stored), cores, strict=True)
    )


def _metadata(annotation: JavaObject) -> dict[str, str]:
    """Return the metadata of an annotation, its description among it."""
    # Before QuPath 0.5, only the description is the user's metadata.
    found = annotation.getMetadata() if hasattr(annotation, "getMetadata") else {}
    metadata = {str(key): str(found[key]) for key in found if found[key] is not None}
    if annotation.getDescription() is not None:
        metadata[_DESCRIPTION] = str(annotation.getDescription())
    return metadata


class _JavaDetections(Detections):
    """Detections in QuPath; expensive columns are fetched on first access.

    Parents are fetched at once, because an edit changes them in QuPath's objects.

    Parameters
    ----------
    objects : Java list
        All objects of the image.
    annotations : Java list
        Those that are annotations, in the order of their handles.
    stored : set of str
        The UUIDs in the file.
    """

    _detections: JavaObject

    def __init__(self, objects: JavaObject, annotations: JavaObject, stored: set[str]) -> None:
        # Not the dataclass's __init__, which would set all columns.
        detections = _only(objects, "isDetection")
        vars(self).update(
            _detections=detections,
            ids=[uuid.UUID(item) if item in stored else None for item in _ids(detections)],
            parents=_parents(objects, annotations, detections),
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} detections)"

    @cached_property
    def kinds(self) -> list[str]:
        to_class_name = pipe(
            method(_PATH_OBJECT, "getClass", "java.lang.Class"),
            method("java.lang.Class", "getSimpleName", _STRING),
        )
        names = jvm.texts(self._detections, to_class_name)
        return [_KINDS.get(name, "detection") for name in names]

    @cached_property
    def class_names(self) -> list[str | None]:
        names = jvm.texts(self._detections, method(_PATH_OBJECT, "getPathClass", _PATH_CLASS))
        return [name or None for name in names]

    @cached_property
    def geometries(self) -> npt.NDArray[Any]:
        return _geometries(self._detections)

    @cached_property
    def centroids(self) -> npt.NDArray[np.float64]:
        return _centroids(self._detections)

    @cached_property
    def planes(self) -> npt.NDArray[np.int64]:
        to_roi = method(_PATH_OBJECT, "getROI", _ROI)
        axes = [pipe(to_roi, method(_ROI, f"get{axis}", "int")) for axis in "ZT"]
        return np.stack([jvm.ints(self._detections, axis) for axis in axes], axis=1).astype(
            np.int64
        )

    @cached_property
    def measurements(self) -> dict[str, npt.NDArray[np.float64]]:
        return _measurements(self._detections)

    @cached_property
    def locked(self) -> npt.NDArray[np.bool_]:
        locked = set(_ids(_only(self._detections, "isLocked")))
        return np.array([item in locked for item in _ids(self._detections)], bool)

    def unread(self) -> dict[str, int]:
        to_name = method(_PATH_OBJECT, "getName", _STRING)
        to_color = method(_PATH_OBJECT, "getColor", "java.lang.Integer")
        counts = {
            "name": sum(map(bool, jvm.texts(self._detections, to_name))),
            "own colour": sum(map(bool, jvm.texts(self._detections, to_color))),
            "lock": int(_only(self._detections, "isLocked").size()),
            "outline of a nucleus": self.kinds.count("cell"),
        }
        return {what: count for what, count in counts.items() if count}


def _measurements(objects: JavaObject) -> dict[str, npt.NDArray[np.float64]]:
    own_list = method(_PATH_OBJECT, "getMeasurementList", _MEASUREMENTS)
    get = method(_MEASUREMENTS, "get", "double", _STRING)
    return {
        str(name): jvm.doubles(objects, pipe(own_list, bind(get, 1, name)))
        for name in jvm.java_class(_OBJECT_TOOLS).getAvailableFeatures(objects)
    }


def _to_id() -> Handle:
    return method(_PATH_OBJECT, "getID", _UUID)


def _to_parent_id() -> Handle:
    return pipe(method(_PATH_OBJECT, "getParent", _PATH_OBJECT), _to_id())


def _ids(objects: JavaObject) -> list[str]:
    return jvm.texts(objects, _to_id())


def _parent_ids(objects: JavaObject) -> list[str]:
    return jvm.texts(objects, _to_parent_id())


def _centroids(objects: JavaObject) -> npt.NDArray[np.float64]:
    # QuPath (to 0.5) locates a cell by its nucleus, where it has one.
    to_roi = bind(static(_OBJECT_TOOLS, "getROI", _ROI, _PATH_OBJECT, "boolean"), 1, True)
    axes = [pipe(to_roi, method(_ROI, f"getCentroid{axis}", "double")) for axis in "XY"]
    return np.stack([jvm.doubles(objects, axis) for axis in axes], axis=1)


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
    rois = jvm.map_list(objects, method(_PATH_OBJECT, "getROI", _ROI))
    to_type = pipe(
        method("java.lang.Object", "getClass", "java.lang.Class"),
        method("java.lang.Class", "getSimpleName", _STRING),
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


# Writing -----------------------------------------------------------------------------------------


def _apply(additions: Additions, new_ids: Collection[str], hierarchy: JavaObject) -> _Content:
    """Apply an edit to a hierarchy, with one event at its end; return the previous objects."""
    edit = additions.edit
    objects = _flat(hierarchy)
    annotations = _only(objects, "isAnnotation")
    root = hierarchy.getRootObject()
    if edit.remove:
        _remove(edit.remove, objects, hierarchy)
        annotations = _only(_flat(hierarchy), "isAnnotation")
    before = _Content.of(hierarchy)
    if new_ids:
        taken = [own_id for own_id in _ids(_flat(hierarchy)) if own_id in new_ids]
        if taken:
            raise UsageError(f"the image already has an object {taken[0]}")
    for path_class in additions.path_classes:
        _define(path_class)
    catalog = Catalog()
    new = _make(catalog, [annotation_node(catalog, new) for new in edit.annotations])
    parents: dict[int | None, JavaObject] = {None: root, **dict(enumerate([*annotations, *new]))}
    for parent in additions.counts:
        if parent not in parents:
            raise UsageError(f"the image has no annotation number {parent}")
        plane = _plane_of(parents[parent])
        for group in additions.groups(parent):
            for part in uniform_parts(group):
                new_part = NewPart(catalog, part, plane_of(part, plane))
                parents[parent].addChildObjects(_make(catalog, [new_part]))
    root.addChildObjects(new)
    hierarchy.fireHierarchyChangedEvent(root)
    return before


def _make(catalog: Catalog, nodes: Sequence[Content]) -> JavaObject:
    """Return the Java list of new objects, decoded by QuPath from their saved form.

    One call suffices for any number of objects; QuPath's methods need dozens per object.
    """
    data = bytearray()
    DataFile.of_objects(catalog, nodes).write(data.extend)
    stream = jvm.java_class("java.io.ByteArrayInputStream")(jvm.byte_array(data))
    root = jvm.java_class(_PATH_IO).readHierarchy(stream).getRootObject()
    made = jvm.java_class("java.util.ArrayList")(root.getChildObjects())
    root.clearChildObjects()
    return made


def _plane_of(parent: JavaObject) -> Plane:
    """Return the channel, z-slice and time point of an object; the first ones for the root."""
    roi = parent.getROI()
    return Plane() if roi is None else Plane(int(roi.getC()), int(roi.getZ()), int(roi.getT()))


def _remove(remove: frozenset[uuid.UUID], objects: JavaObject, hierarchy: JavaObject) -> None:
    """Remove detections and annotations; their children move up."""
    wanted = {str(item) for item in remove}
    indices = np.flatnonzero([item in wanted for item in _ids(objects)])
    found = jvm.take(objects, indices)
    missing = wanted - set(_ids(found))
    if missing:
        raise UsageError(f"the image has no object {min(missing)} to remove")
    allowed = _only(found, "isDetection").size() + _only(found, "isAnnotation").size()
    if allowed < found.size():
        raise UsageError("only detections and annotations are removed")
    hierarchy.removeObjects(found, True)


def _define(path_class: PathClass) -> None:
    """Create QuPath's class of that name, in our colour if it is new."""
    color = path_class.color
    jvm.java_class(_PATH_CLASS).fromString(
        path_class.name, None if color is None else jvm.box(color)
    )


# Saving ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Content:
    """Properties of a hierarchy that must be the same after saving and reading back."""

    count: int
    digests: Mapping[str, bytes]
    measurement_counts: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float64]

    @classmethod
    def of(cls, hierarchy: JavaObject) -> _Content:
        """Record the objects of a hierarchy."""
        objects = _flat(hierarchy)
        count = pipe(
            method(_PATH_OBJECT, "getMeasurementList", _MEASUREMENTS),
            method(_MEASUREMENTS, "size", "int"),
        )
        root = str(hierarchy.getRootObject().getID())  # differs at every read
        texts = {
            "ids": jvm.joined_texts(objects, _to_id()),
            "parents": jvm.joined_texts(objects, _to_parent_id()).replace(root, ""),
            "classes": jvm.joined_texts(objects, method(_PATH_OBJECT, "getPathClass", _PATH_CLASS)),
        }
        return cls(
            count=int(objects.size()),
            # The texts of a million objects take hundreds of megabytes.
            digests={name: hashlib.sha256(t.encode()).digest() for name, t in texts.items()},
            measurement_counts=jvm.ints(objects, count),
            centroids=_centroids(objects),
        )

    def difference(self, other: _Content) -> str | None:
        """Say what differs; None if nothing does."""
        if self.count != other.count:
            return f"{other.count} objects instead of {self.count}"
        for what, digest in self.digests.items():
            if digest != other.digests[what]:
                return f"other {what}"
        if not np.array_equal(self.measurement_counts, other.measurement_counts):
            return "other measurements"
        # QuPath 0.6 and newer round some geometries to 0.01 px when they read them.
        if not np.allclose(self.centroids, other.centroids, rtol=0, atol=0.05, equal_nan=True):
            return "other places"
        return None


@contextmanager
def _kept_on_failure(data_file: Path) -> Iterator[None]:
    """Restore the data file and its summary if the body fails."""
    files = [data_file, data_file.with_name("summary.json"), data_file.with_name(_BACKUP)]
    copies = {f: f.with_name(f"{TEMPORARY_PREFIX}{f.name}.tmp") for f in files if f.exists()}
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
        if isinstance(error, jvm.java_class("java.lang.OutOfMemoryError")):
            hint = "give Java more memory, for example PAQUO_JAVA_OPTS=-Xmx32g"
        raise error_type(f"{what}: {_reason(error)}", hint) from error


def _reason(error: Any) -> str:
    """Return the message of a Java exception in one line."""
    text = str(error.message() or error.toString()) if hasattr(error, "message") else str(error)
    return " ".join(text.split())[:300]


def _qupath_version() -> Any:
    from paquo.java import qupath_version

    return qupath_version


def _opens_lazily() -> bool:
    version = _qupath_version()
    return version is not None and version.version.release >= _LAZY_IMAGES


def _read_hierarchy(file: Path) -> JavaObject:
    return jvm.java_class(_PATH_IO).readHierarchy(_file(file))


def _file(path: Path) -> JavaObject:
    return jvm.java_class("java.io.File")(str(path))


def _stored_path(uri: str) -> Path | None:
    try:
        return Path(parse_file_uri(uri))
    except SlideError:
        return None


def _roi_type(java_name: str) -> str:
    return "GeometryROI" if java_name == "AreaROI" else java_name


def _check_complete(file: Path) -> None:
    """Raise for a truncated file, of which QuPath would read the first part."""
    with file.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(size - len(_END_MARK), 0))
        if stream.read() != _END_MARK:
            raise FormatError(f"{file}: byte {size}: ends before its end mark", _backup_hint(file))


def _backup_hint(file: Path) -> str:
    if file.with_name(_BACKUP).exists():
        return f"QuPath left {_BACKUP} beside it: copy that to {file.name}"
    return f"QuPath left no {_BACKUP}; restore the file from a backup"


def _fingerprint(file: Path) -> str:
    """Identify the state of a data file."""
    try:
        with open_regular(file) as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except FileNotFoundError:
        if file.with_name(_BACKUP).exists():
            raise FormatError(
                f"{file}: is missing, though the image was saved before", _backup_hint(file)
            ) from None
        return "absent"
    except OSError as error:
        raise FormatError(f"{file}: cannot be read: {error.strerror}") from error
