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
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    Edit,
    ImageObjects,
    ImageServer,
    PathClass,
)
from qpnuclei.qupath.paquo import jvm
from qpnuclei.qupath.paquo.editing import HierarchySnapshot, apply_edit
from qpnuclei.qupath.paquo.jvm import (
    JavaObject,
)
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
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.new_detections import Additions
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


#: The end of the file in a Java object stream: a string and its length.
_END_MARK = b"t\0\3EOF"

#: The copy that QuPath keeps while it saves, and leaves if the save fails.
_BACKUP = "data.qpdata.bkp"

#: QuPath 0.6 and newer round vertices to this grid, except in simple polygons.
_GRID_PX = 0.01
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


class PaquoProject(project_file.ProjectFolder):
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

    def nuclei(self, image: str, mpp: float | None = None) -> NucleusRows:
        """Return the nuclei of an image, from any program, as a table (see `Project.nuclei`)."""
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

    def _properties(self, loaded: _Loaded) -> dict[str, str]:
        """Return the image's properties that are texts."""
        if loaded.data is None:  # QuPath reads objects alone where it cannot open the image
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
            before = apply_edit(additions, new_ids, hierarchy)
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
            with jvm.quiet(), _java_errors(SaveError, what):
                difference = before.difference(HierarchySnapshot.of(_read_hierarchy(rest)))
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
                hierarchy = jvm.java_class(HIERARCHY)()
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
    return jvm.java_class(PATH_IO).readHierarchy(_file(file))


def _file(path: Path) -> JavaObject:
    return jvm.java_class("java.io.File")(str(path))


def _stored_path(uri: str) -> Path | None:
    try:
        return Path(parse_file_uri(uri))
    except SlideError:
        return None


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
