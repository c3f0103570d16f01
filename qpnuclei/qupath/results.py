"""A folder of results: a project that was made from slides, with a table and a report beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpnuclei._version import __version__
from qpnuclei.errors import FormatError, QpnucleiError, UsageError
from qpnuclei.qupath.adding import add_slides, new_ones
from qpnuclei.qupath.create import create_from_slides
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.pixel_size import AskedMpp, project_mpp
from qpnuclei.qupath.transaction import digest_of_file
from qpnuclei.system.files import make_folder_below, read_regular, write_atomically

#: Says that the project was made from slides, and which files beside it are the program's own.
MARK = "qpnuclei/results.json"

Failed = Callable[[Path, QpnucleiError], object]


@dataclass(frozen=True)
class ResultsFolder:
    """A folder of results; it need not exist yet."""

    path: Path

    @property
    def is_made(self) -> bool:
        """Whether it has a project that was made here."""
        return (self.path / MARK).is_file() and any(self.path.glob("*.qpproj"))

    def check(self) -> None:
        """Refuse a folder that holds something else.

        Raises
        ------
        UsageError
            If it does.
        """
        if self.is_made or not self.path.exists():
            return
        if self.path.is_dir() and any(self.path.glob("*.qpproj")):
            raise UsageError(
                f"{self.path} has a QuPath project that was not made from slides",
                "add the slides with qpnuclei project add, and run the project; or name a new "
                "folder",
            )
        if not self.path.is_dir() or any(self.path.iterdir()):
            raise UsageError(
                f"{self.path} exists already and is not an empty folder", "name a new folder"
            )

    def project_of(self, slides: Sequence[Path], mpp: AskedMpp, failed: Failed) -> Project:
        """Make the project of some slides, or add those that it does not have yet.

        Parameters
        ----------
        slides : sequence of Path
        mpp : AskedMpp
            Pixel sizes of slides, by file name.
        failed : callable
            Called for a slide that is missing or cannot be read, with the reason.

        Raises
        ------
        UsageError
            If the folder holds something else.
        NotFoundError, SlideError, MppError
            If no slide of a new project can be read, or a pixel size is absurd.
        SaveError
            If the project cannot be written.
        """
        self.check()
        if self.is_made:
            return add_slides(self.path, slides, mpp, failed=failed)[0]
        mark = {MARK: _mark({})}
        return create_from_slides(self.path, slides, mpp, failed=failed, files=mark)

    def new_ones(self, slides: Sequence[Path]) -> list[Path]:
        """Return the slides that its project does not have yet."""
        return new_ones(open_project(self.path), slides) if self.is_made else list(slides)

    def write(self, name: str, write: Callable[[Path], object]) -> Path:
        """Write a file of results; one that someone else has made or changed is kept.

        Parameters
        ----------
        name : str
            Of the file; where it is taken, a number is added to it.
        write : callable
            Is given the path to write to.

        Returns
        -------
        Path
            Where it was written.
        """
        own = self._own()
        wanted = self.path / name
        number = 1
        path = wanted
        while path.exists() and own.get(path.name) != digest_of_file(path):
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        write(path)
        own[path.name] = digest_of_file(path)
        make_folder_below(self.path, (self.path / MARK).parent)
        write_atomically(self.path / MARK, _mark(own))
        return path

    def _own(self) -> dict[str, str]:
        """Return the digests of the program's own files."""
        path = self.path / MARK
        try:
            files = json.loads(read_regular(path))["files"]
            return {str(name): str(digest) for name, digest in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FormatError(f"{path} cannot be read: {error}", "name a new folder") from error


def _mark(files: dict[str, str]) -> bytes:
    return json.dumps({"qpnuclei": __version__, "files": files}, indent=1).encode()


def changed_pixel_sizes(images: Sequence[ImageEntry], asked: AskedMpp) -> dict[str, float]:
    """Return by ID what the user says of pixel sizes that is not what the project says.

    Parameters
    ----------
    asked : AskedMpp
        As it was given for the slides that the images were made from.
    """
    changed = {}
    for entry in images:
        own = project_mpp(entry)
        file_name = entry.path.name if entry.path is not None else entry.name
        given = asked.by_image.get(entry.name, asked.by_image.get(file_name))
        if given is None and (own is None or not asked.only_missing):
            given = asked.mpp
        if given is not None and (own is None or any(abs(axis - given) > 1e-9 for axis in own)):
            changed[entry.id] = given
    return changed
