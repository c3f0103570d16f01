"""One image of a project, read and written by QuPath.

paquo needs a call for each value of an object, and does not save an image that it cannot open,
without an error. So objects are read as columns (see `qpnuclei.qupath.paquo.jvm`). New objects are
encoded by `qpnuclei.qupath.qpdata` and decoded by QuPath, as when it opens a file. Every save is
verified.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qpnuclei.errors import ConflictError, FormatError, SaveError, SlideError
from qpnuclei.qupath import project_file
from qpnuclei.qupath.backups import drop_old_backups, kept_backup
from qpnuclei.qupath.image_names import unique_name
from qpnuclei.qupath.model import Edit, ImageObjects, ImageServer
from qpnuclei.qupath.paquo import jvm
from qpnuclei.qupath.paquo.editing import HierarchySnapshot, apply_edit
from qpnuclei.qupath.paquo.java_errors import java_errors, reason_of
from qpnuclei.qupath.paquo.jvm import JavaObject
from qpnuclei.qupath.paquo.objects import (
    HIERARCHY,
    PATH_IO,
    STRING,
    JavaDetections,
    all_objects,
    only,
    read_annotations,
    read_cores,
    stored_ids,
)
from qpnuclei.qupath.paquo.saved_file import (
    backup_hint,
    check_complete,
    fingerprint_of,
    kept_on_failure,
)
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.new_detections import Additions
from qpnuclei.qupath.transaction import remove_leftovers, temporary_beside
from qpnuclei.qupath.uris import file_uri, find_image, parse_file_uri
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.stains import Stains
from qpnuclei.system.locks import locked

if TYPE_CHECKING:
    from qpnuclei.qupath.paquo.backend import PaquoProject

_log = logging.getLogger(__name__)

#: QuPath 0.6 and newer round vertices to this grid, except in simple polygons.
_GRID_PX = 0.01
#: Since this release, QuPath opens an image only when its pixels are needed. So it can save the
#: objects of a missing image.
_LAZY_IMAGES = (0, 6)


@dataclass(frozen=True, eq=False)
class Loaded:
    """The last image data. It is kept for the write that follows, because reading is slow."""

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
            URI of the project when it was last saved.
        image_root : Path or None
            A folder of images, given by the user.
        """
        java_uri = jvm.java_class("java.net.URI")
        replacements = jvm.java_class("java.util.HashMap")()
        for number, uri in enumerate(self.server.uris):
            found = find_image(uri, project_uri, self._project.path.parent, image_root)
            if found is not None and found != _stored_path(uri):
                replacements.put(java_uri(uri), java_uri(file_uri(found)))
            if number == 0:
                self.path = found
        with jvm.quiet(), java_errors(FormatError, f"{self.name}: QuPath refuses its URI"):
            self._entry.updateURIs(replacements)

    @property
    def unique_name(self) -> str:
        """The name or, if other images share it, the entry ID."""
        return unique_name(self._project.images, self)

    @property
    def data_file(self) -> Path:
        """The file with the objects of this image; absent until the image is first saved."""
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
        objects = all_objects(loaded.hierarchy)
        stored = stored_ids(self.data_file)
        annotations = only(objects, "isAnnotation")
        return ImageObjects(
            read_annotations(annotations, stored),
            JavaDetections(objects, annotations, stored),
            loaded.fingerprint,
            self._properties(loaded),
            read_cores(only(objects, "isTMACore"), stored),
        )

    def _properties(self, loaded: Loaded) -> dict[str, str]:
        """Return the text properties of the image."""
        if loaded.data is None:  # QuPath cannot open the image, so it read only the objects
            if not self.data_file.exists():
                return {}
            return DataFile.parse(self.data_file.read_bytes(), str(self.data_file)).properties
        string = jvm.java_class(STRING)
        return {
            str(item.getKey()): str(item.getValue())
            for item in loaded.data.getProperties().entrySet()
            if isinstance(item.getValue(), string)
        }

    def write(self, edit: Edit, fingerprint: str) -> None:
        """Apply an edit, save and verify (see `ImageEntry.write`)."""
        with locked(self._project.path.parent):
            self._check_unchanged(fingerprint)
            loaded = self._load_for_writing()
            self._project.release()  # from now on it differs from the file
            try:
                self._edit_and_save(loaded, edit, fingerprint)
            except BaseException:
                loaded.close()
                raise
        with suppress(OSError):
            drop_old_backups(self.data_file)
        self._project.keep(replace(loaded, fingerprint=fingerprint_of(self.data_file)))

    def _edit_and_save(self, loaded: Loaded, edit: Edit, fingerprint: str) -> None:
        data: JavaObject = loaded.data
        hierarchy = loaded.hierarchy
        additions, new_ids = Additions.of(edit)
        with jvm.quiet(), java_errors(SaveError, f"{self.name}: QuPath refuses the edit"):
            before = apply_edit(additions, new_ids, hierarchy)
            if edit.workflow_step is not None:
                step = jvm.java_class("qupath.lib.plugins.workflow.DefaultScriptableWorkflowStep")
                data.getHistoryWorkflow().addStep(step(*edit.workflow_step))
            for name, value in edit.properties.items():
                data.setProperty(name, value)
        self._check_unchanged(fingerprint)
        for folder in (self.data_file.parent, self._project.classes_path.parent):
            remove_leftovers(folder)
        with kept_backup(self.data_file), kept_on_failure(self.data_file):
            with jvm.quiet(), java_errors(SaveError, f"{self.data_file}: cannot be saved"):
                self._entry.saveImageData(data)
            self._verify(before, additions)
            self._project.add_classes(additions.path_classes)

    def _verify(self, before: HierarchySnapshot, additions: Additions) -> None:
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
            with jvm.quiet(), java_errors(SaveError, what):
                difference = before.difference(HierarchySnapshot.of(_read_hierarchy(rest)))
        except FormatError as error:
            difference = error.what
        finally:
            rest.unlink(missing_ok=True)
        if difference:
            raise SaveError(f"{what}: {difference}", "the file is unchanged; try --backend native")

    def _check_unchanged(self, fingerprint: str) -> None:
        if fingerprint_of(self.data_file) != fingerprint:
            raise ConflictError(
                f"{self.data_file}: changed on disk since it was read",
                "close the image in QuPath and run again",
            )

    def _load_for_writing(self) -> Loaded:
        if self._is_out_of_reach:
            raise SaveError(
                f"{self.name}: QuPath {_qupath_version()} cannot save an image if it cannot open "
                f"its file: {', '.join(self.server.uris)}",
                "name the folder of the images with --image-root, or use --backend native",
            )
        return self._load()

    def _load(self) -> Loaded:
        current = fingerprint_of(self.data_file)
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
                hierarchy = jvm.java_class(HIERARCHY)()
            loaded = Loaded(self, current, hierarchy, data)
            self._project.keep(loaded)
        return loaded

    def _read_image_data(self) -> JavaObject | None:
        """Read the image data without QuPath's recovery, which returns a damaged file as empty.

        None if QuPath cannot open the image, and so returns no image data.
        """
        from paquo.java import BufferedImage, PathIO

        file = self.data_file
        if file.exists():
            check_complete(file)
        if self._is_out_of_reach:
            return None
        with jvm.quiet(), self._corrupt_errors():
            if not file.exists():
                return self._entry.readImageData()
            if _opens_lazily():
                return PathIO.readImageData(_file(file).toPath(), self._entry.getServerBuilder())
            return PathIO.readImageData(_file(file), None, self._build_server(), BufferedImage)

    def _corrupt_errors(self) -> AbstractContextManager[None]:
        return java_errors(
            FormatError,
            f"{self.data_file}: QuPath cannot read it",
            backup_hint(self.data_file),
        )

    @cached_property
    def _is_out_of_reach(self) -> bool:
        """Whether QuPath cannot make image data, because it lacks the pixels or the metadata."""
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
            _log.info("%s: QuPath cannot open its pixels: %s", self.name, reason_of(error))
            return None


def _qupath_version() -> Any:
    from paquo.java import qupath_version

    return qupath_version


def _opens_lazily() -> bool:
    version = _qupath_version()
    return version is not None and version.version.release >= _LAZY_IMAGES


def _read_hierarchy(file: Path) -> JavaObject:
    return jvm.java_class(PATH_IO).readHierarchy(_file(file))


def _file(path: Path) -> JavaObject:
    return jvm.java_class("java.io.File")(str(path))


def _stored_path(uri: str) -> Path | None:
    try:
        return Path(parse_file_uri(uri))
    except SlideError:
        return None
