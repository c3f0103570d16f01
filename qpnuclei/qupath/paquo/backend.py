"""QuPath projects through paquo and an installed QuPath.

QuPath itself reads and writes all data. paquo starts QuPath and opens the project; `image_entry`
reads and writes its images.

The project file is never written: another QuPath version would drop fields that it does not know.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from qpnuclei.errors import FormatError
from qpnuclei.qupath import project_file
from qpnuclei.qupath.model import PathClass
from qpnuclei.qupath.paquo import jvm
from qpnuclei.qupath.paquo.image_entry import Loaded, PaquoImage
from qpnuclei.qupath.paquo.java_errors import java_errors
from qpnuclei.qupath.paquo.jvm import JavaObject
from qpnuclei.qupath.transaction import Transaction
from qpnuclei.system.locks import locked


def open_project(path: str | os.PathLike[str], image_root: Path | None = None) -> PaquoProject:
    """Open a QuPath project through a real QuPath; starts the Java virtual machine.

    Parameters
    ----------
    path : path-like
        The ``.qpproj`` file, or its folder.
    image_root : Path, optional
        Folder to search for image files that are not at the path in the project.

    Raises
    ------
    qpnuclei.errors.UsageError
        If there is no QuPath on this machine, or it does not start; if `path` is another kind of
        file, or contains several projects.
    qpnuclei.errors.NotFoundError
        If there is no project at `path`.
    qpnuclei.errors.FormatError
        If its JSON is broken, or is not that of a QuPath project.
    """
    file = project_file.find_project_file(Path(path))
    content = project_file.read_project(file)
    jvm.start()
    return PaquoProject(file, content, image_root)


class PaquoProject(project_file.ProjectFolder):
    """A QuPath project (see `qpnuclei.qupath.model.Project`), opened by QuPath itself."""

    backend: Final = "paquo"

    def __init__(
        self, path: Path, content: Mapping[str, Any], image_root: Path | None = None
    ) -> None:
        from paquo.projects import QuPathProject

        self.path = path
        self.image_root = image_root
        with jvm.quiet(), java_errors(FormatError, f"{path}: QuPath cannot open the project"):
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
        self._last: Loaded | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"

    @property
    def version(self) -> str | None:
        """Version of QuPath that wrote the project file."""
        version = self.java_object.getVersion()
        return None if version is None else str(version)

    def loaded(self, image: PaquoImage, fingerprint: str) -> Loaded | None:
        """Return the last image data, if it is that of this image in this state of its file."""
        last = self._last
        current = last is not None and last.image is image and last.fingerprint == fingerprint
        return last if current else None

    def keep(self, loaded: Loaded) -> None:
        """Keep the last image data, and close the data kept before."""
        if self._last is not None:
            self._last.close()
        self._last = loaded

    def release(self) -> None:
        """Forget the kept image data without closing it."""
        self._last = None

    def add_classes(self, classes: Sequence[PathClass]) -> None:
        """Add missing classes to the project's class list.

        The file is written without QuPath, because QuPath only logs a failure.
        """
        with locked(self.path.parent), Transaction(self.path.parent) as transaction:
            content = project_file.with_classes(self.classes_path, classes)
            if content is not None:
                transaction.stage(self.classes_path, lambda emit: emit(content))
                transaction.commit()
