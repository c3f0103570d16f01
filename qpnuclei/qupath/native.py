"""The native backend: reads and edits a project without QuPath, by the Protocols of `model`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qpnuclei.errors import ConflictError, FormatError, QpnucleiError, SaveError, number_of
from qpnuclei.qupath import project_file
from qpnuclei.qupath.backups import (
    Backup,
    drop_old_backups,
    kept_backup,
    list_backups,
    restore_hint,
)
from qpnuclei.qupath.image_names import unique_name
from qpnuclei.qupath.model import ABSENT, Edit, ImageObjects, ImageServer
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.qpdata.detections import FileDetections
from qpnuclei.qupath.qpdata.hierarchy import Objects
from qpnuclei.qupath.qpdata.new_data_file import new_data_file
from qpnuclei.qupath.qpdata.new_detections import Additions
from qpnuclei.qupath.transaction import (
    Transaction,
    digest_of,
    digest_of_file,
    remove_leftovers,
)
from qpnuclei.qupath.uris import find_image
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.stains import Stains
from qpnuclei.system.files import read_regular, state_of, unreadable
from qpnuclei.system.locks import locked

_log = logging.getLogger(__name__)


def open_project(path: str | Path, image_root: str | Path | None = None) -> NativeProject:
    """Open a QuPath project (0.2 to 0.7).

    Parameters
    ----------
    path : path
        The ``.qpproj`` file, or a folder that contains exactly one.
    image_root : path, optional
        Folder to search for images that are no longer at the path in the project.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file or folder.
    qpnuclei.errors.UsageError
        If it is another kind of file, or the folder contains several projects.
    qpnuclei.errors.FormatError
        If its JSON is broken, or is not that of a QuPath project.
    """
    root = None if image_root is None else Path(image_root)
    return NativeProject(project_file.find_project_file(Path(path)), root)


class NativeProject(project_file.ProjectFolder):
    """A QuPath project; see `qpnuclei.qupath.model.Project`."""

    backend: Final = "native"

    def __init__(self, path: Path, image_root: Path | None = None) -> None:
        self.path = path
        self.image_root = image_root
        content = project_file.read_project(path)
        version = content.get("version")
        self.version = version if isinstance(version, str) else None
        uri = content.get("uri")
        self._uri = uri if isinstance(uri, str) else None
        project_file.read_classes(self.classes_path)  # report a broken class list early
        self.images: Sequence[NativeImage] = [NativeImage(self, e) for e in content["images"]]

    def __repr__(self) -> str:
        return f"NativeProject({str(self.path)!r}, {number_of(len(self.images), 'image')})"

    def find_image(self, uri: str) -> Path | None:
        """Return the file of an image's URI on this machine; None if it is missing."""
        return find_image(uri, self._uri, self.path.parent, self.image_root)


class NativeImage:
    """An image of a project; see `qpnuclei.qupath.model.ImageEntry`."""

    def __init__(self, project: NativeProject, entry: Mapping[str, Any]) -> None:
        self._project = project
        self._entry = entry
        self._builder: Mapping[str, Any] = entry["serverBuilder"]
        self._header: tuple[object, str | None, Stains | None] | None = None
        self.id = str(project_file.entry_id(entry))
        self.server: ImageServer = project_file.image_server(self._builder)
        self.calibration: PixelCalibration = project_file.pixel_calibration(self._builder)
        metadata = project_file.server_metadata(self._builder) or {}
        self.name = str(entry.get("imageName") or metadata.get("name") or f"image {self.id}")

    def __repr__(self) -> str:
        return f"NativeImage({self.id}, {self.name!r})"

    @property
    def unique_name(self) -> str:
        """The name or, if other images share it, the entry ID."""
        return unique_name(self._project.images, self)

    @property
    def folder(self) -> Path:
        """The project's data folder of this image."""
        return self.data_path.parent

    @property
    def data_path(self) -> Path:
        """The image's ``data.qpdata``; absent until the image is first saved."""
        return project_file.data_file(self._project.path.parent, self.id)

    @property
    def path(self) -> Path | None:
        """The image file on this machine, found as QuPath would; None if it is missing."""
        return self._project.find_image(self.server.uris[0]) if self.server.uris else None

    @property
    def image_type(self) -> str | None:
        """Name of QuPath's ``ImageType``; None if the image was never saved."""
        return self._read_header()[0]

    @property
    def stains(self) -> Stains | None:
        """Colour deconvolution stains; None if the image has none."""
        return self._read_header()[1]

    def read(self) -> ImageObjects:
        """Read annotations and detections from disk.

        Raises
        ------
        qpnuclei.errors.FormatError
            If ``data.qpdata`` is truncated or corrupt; the hint says whether its ``.bkp`` is
            readable.
        """
        before = self._state()
        data, fingerprint = self._read_bytes()
        if data is None:
            return ImageObjects((), FileDetections([]), fingerprint)
        data_file = self._parse(data)
        objects = data_file.read()
        if before == self._state():  # else the header may be that of another file
            with contextlib.suppress(FormatError):
                self._keep_header(before, data_file)
        return ImageObjects(
            objects.annotations,
            objects.detections,
            fingerprint,
            objects.properties,
            objects.cores,
        )

    def write(self, edit: Edit, fingerprint: str) -> None:
        """Apply an edit, save, and verify by reading back.

        Notes
        -----
        The new file is written beside the old one, flushed, read back and compared. Then the old
        file is copied to a backup folder, and the new one is renamed into its place. The same
        transaction replaces ``summary.json`` and, if a class is new to the project,
        ``classes.json``.

        Raises
        ------
        qpnuclei.errors.ConflictError
            If the file on disk has changed since it was read with `fingerprint`.
        qpnuclei.errors.SaveError
            If it could not be saved; the project is unchanged.
        qpnuclei.errors.UsageError
            If the edit contradicts the file: see `DataFile.remove` and `DataFile.add`.
        ValueError
            If a group of the edit is inconsistent, or differs when it is accessed again.
        """
        self._check_reachable()
        with locked(self._project.path.parent):
            self._save(edit, fingerprint)
        self._drop_old_states()

    def backups(self) -> list[Backup]:
        """Return the backups, newest first."""
        return list_backups(self.data_path)

    def read_backup(self, backup: Backup) -> Objects:
        """Read the objects of a backup.

        Raises
        ------
        qpnuclei.errors.FormatError
            If it is truncated or corrupt.
        """
        return DataFile.parse(_bytes_of(backup.path), str(backup.path)).read()

    def restore(self, backup: Backup) -> None:
        """Replace the data file with a backup; the current file becomes a backup itself.

        Raises
        ------
        qpnuclei.errors.FormatError
            If the backup cannot be read; nothing was changed.
        qpnuclei.errors.SaveError
            If it could not be saved; the project is unchanged.
        """
        self._check_reachable()
        with locked(self._project.path.parent):
            data = _bytes_of(backup.path)
            data_file = DataFile.parse(data, str(backup.path))
            objects = data_file.read()
            self._remove_leftovers()
            with Transaction(self._project.path.parent) as transaction:
                staged, digest = transaction.stage(self.data_path, lambda emit: emit(data))
                if digest_of_file(staged) != digest:
                    raise SaveError(
                        f"{self.data_path}: the written file does not read back",
                        "the previous file is unchanged",
                    )
                summary = self._summary(staged, data_file.image_type, objects)
                transaction.stage(self.folder / "summary.json", lambda emit: emit(summary))
                with kept_backup(self.data_path):
                    transaction.commit()
        self._drop_old_states()

    def _save(self, edit: Edit, fingerprint: str) -> None:
        old, found = self._read_bytes()
        if found != fingerprint:
            raise self._conflict()
        data_file = self._new_data_file() if old is None else self._parse(old)
        data_file.read().summary()  # refuse an inconsistent file before writing
        data_file.remove(edit.remove, edit.remove_annotations)
        data_file.set_properties(edit.properties)
        kept = _digest(data_file)
        additions = data_file.add(edit)
        image_type = data_file.image_type
        self._remove_leftovers()
        with Transaction(self._project.path.parent) as transaction:
            staged, digest = transaction.stage(self.data_path, data_file.write)
            del old, data_file  # free their memory before the file is read back
            objects = self._verify(staged, digest, additions, kept)
            summary = self._summary(staged, image_type, objects)
            transaction.stage(self.folder / "summary.json", lambda emit: emit(summary))
            classes = project_file.with_classes(self._project.classes_path, additions.path_classes)
            if classes is not None:
                transaction.stage(self._project.classes_path, lambda emit: emit(classes))
            self._check_unchanged(fingerprint)
            with kept_backup(self.data_path):
                transaction.commit()

    def _drop_old_states(self) -> None:
        # The save is complete: errors of the clean-up do not make it fail.
        with contextlib.suppress(OSError):
            self._backup_path.unlink(missing_ok=True)  # as QuPath does; the backup has a copy
            drop_old_backups(self.data_path)

    def _remove_leftovers(self) -> None:
        for folder in (self.folder, self._project.classes_path.parent, self._project.path.parent):
            remove_leftovers(folder)

    def _read_bytes(self) -> tuple[bytes | None, str]:
        """Return the data file's bytes, None if there is none, and its fingerprint."""
        path = self.data_path
        try:
            data = read_regular(path)
            fingerprint = digest_of(data)
        except FileNotFoundError:
            if self._backup_path.exists():
                raise FormatError(
                    f"{path}: is missing, though the image was saved before", self._backup_hint()
                ) from None
            self._check_reachable()
            return None, ABSENT
        except OSError as error:
            raise unreadable(path, error) from error
        return data, fingerprint

    def _check_reachable(self) -> None:
        """Raise if the drive is gone: otherwise folders would be created at its mount point."""
        if not self._project.path.exists():
            raise SaveError(
                f"{self._project.path} is no longer there", "is its drive still connected?"
            )

    def _check_unchanged(self, fingerprint: str) -> None:
        """Raise if another program has saved the data file meanwhile."""
        try:
            found = digest_of_file(self.data_path)
        except OSError:  # no file yet, or QuPath is replacing it
            found = ABSENT if not self._backup_path.exists() else ""
        if found != fingerprint:
            raise self._conflict()

    @property
    def _backup_path(self) -> Path:
        """The copy that QuPath makes for a save, and leaves behind if the save fails."""
        return self.folder / "data.qpdata.bkp"

    def _backup_hint(self) -> str:
        path = self._backup_path
        if not path.exists():
            return f"QuPath left no {path.name}; {restore_hint(self.data_path)}"
        try:
            objects = DataFile.parse(read_regular(path), str(path)).read()
        except (FormatError, OSError):
            left = f"QuPath left {path.name} beside it, but that is unreadable too"
            return f"{left}; {restore_hint(self.data_path)}"
        return (
            f"{path.name} beside it is readable, with "
            f"{number_of(len(objects.annotations), 'annotation')} and "
            f"{number_of(len(objects.detections), 'detection')}: copy it to {self.data_path.name}"
        )

    def _parse(self, data: bytes) -> DataFile:
        return DataFile.parse(data, str(self.data_path), self._backup_hint)

    def _read_header(self) -> tuple[str | None, Stains | None]:
        state = self._state()
        if state is None:
            return None, None
        if self._header is None or self._header[0] != state:
            data, _ = self._read_bytes()
            header = DataFile.parse_header(data or b"", str(self.data_path), self._backup_hint)
            return self._keep_header(state, header)
        return self._header[1:]

    def _keep_header(self, state: object, data_file: DataFile) -> tuple[str | None, Stains | None]:
        self._header = state, data_file.image_type, data_file.stains
        return self._header[1:]

    def _state(self) -> tuple[int, int, int] | None:
        """Return what tells the data file from a later one, without its content; None if absent."""
        try:
            return state_of(self.data_path)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise unreadable(self.data_path, error) from error

    def _new_data_file(self) -> DataFile:
        version = self._project.version or ""
        return new_data_file(
            self._builder,
            "UNSET",
            None,
            qupath_version=version,
            entry_property=f"{self._project.path.absolute()}::{self.id}",
        )

    def _verify(self, staged: Path, digest: str, additions: Additions, kept: str) -> Objects:
        """Read the new file back from disk, and compare it with the intended content."""
        try:
            data = staged.read_bytes()
            if digest_of(data) != digest:
                raise FormatError("its bytes differ from those written")
            data_file = DataFile.parse(data, str(staged))
            objects = data_file.read()
            data_file.withdraw(additions)
            if _digest(data_file) != kept:
                raise FormatError("objects outside the edit have changed")
        except (OSError, QpnucleiError) as error:
            raise SaveError(
                f"{self.data_path}: the written file does not read back: {error}",
                "the previous file is unchanged; please report this",
            ) from error
        return objects

    def _summary(self, staged: Path, image_type: str | None, objects: Objects) -> bytes:
        path = self.folder / "summary.json"
        content: dict[str, Any] = {}
        with contextlib.suppress(QpnucleiError):  # QuPath never reads it: a broken one is replaced
            content = project_file.read_json(path, "the summary")
        metadata = project_file.server_metadata(self._builder)
        channels = None if metadata is None else metadata.get("channels")
        content["timestamp"] = staged.stat().st_mtime_ns // 1_000_000
        content["imageType"] = image_type
        if metadata is not None:
            content["server"] = {
                "width": metadata.get("width"),
                "height": metadata.get("height"),
                "sizeC": len(channels) if isinstance(channels, list) else 0,
                "sizeZ": metadata.get("sizeZ", 1),
                "sizeT": metadata.get("sizeT", 1),
            }
        content["hierarchy"] = objects.summary()
        return project_file.to_json(content, pretty=False)

    def _conflict(self) -> ConflictError:
        return ConflictError(
            f"{self.data_path}: changed on disk since it was read",
            "close the image in QuPath and run again",
        )


def _bytes_of(path: Path) -> bytes:
    try:
        return read_regular(path)
    except OSError as error:
        raise unreadable(path, error) from error


def _digest(data_file: DataFile) -> str:
    digest = hashlib.blake2b(digest_size=16)
    data_file.write(digest.update)
    return digest.hexdigest()
