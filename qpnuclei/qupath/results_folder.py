"""A results folder: a project made from slides, with a table and a report beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpnuclei._version import __version__
from qpnuclei.errors import QpnucleiError, UsageError, quoted
from qpnuclei.qupath.adding import add_slides, new_ones
from qpnuclei.qupath.create import PROJECT_NAME, check_new_folder, create_from_slides
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.new_image import names_of
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project_file import OWN_FOLDER
from qpnuclei.qupath.transaction import digest_of, digest_of_file
from qpnuclei.system.files import (
    Save,
    make_folder_below,
    read_regular,
    saving,
    unreadable,
    write_atomically,
)

#: Marks a project that was made from slides, and lists the files beside it that qpnuclei wrote.
MARK = f"{OWN_FOLDER}/results.json"

Failed = Callable[[Path, QpnucleiError], object]


@dataclass(frozen=True)
class ResultsFolder:
    """A results folder; it need not exist yet."""

    path: Path

    @property
    def is_made(self) -> bool:
        """Whether the folder has a project that was made from slides."""
        return (self.path / MARK).is_file() and any(self.path.glob("*.qpproj"))

    @property
    def new_project(self) -> Path:
        """Path of the project that will be made in the folder."""
        return self.path.absolute() / PROJECT_NAME

    def check(self) -> None:
        """Check that the folder is a results folder, or can become one.

        Raises
        ------
        UsageError
            If it contains something else, or its name is not UTF-8.
        SaveError
            If its name is too long, or it may not be entered.
        """
        with saving(self.path):
            if self.is_made:
                return
        if any(self.path.glob("*.qpproj")):
            raise UsageError(
                f"{self.path} has a QuPath project that was not made from slides",
                "add the slides with qpnuclei project add, and run the project; or name a new "
                "folder",
            )
        check_new_folder(self.path)

    def project_of(self, slides: Sequence[Path], mpp: AskedMpp, failed: Failed) -> Project:
        """Make a project of the slides, or add those that the project does not have yet.

        Parameters
        ----------
        slides : sequence of Path
        mpp : AskedMpp
            Pixel sizes of new slides, by image name.
        failed : callable
            Called for a slide that is missing or cannot be read, with the reason.

        Raises
        ------
        UsageError
            If the folder contains something else.
        NotFoundError, SlideError, MppError
            If no slide of a new project can be read, or a pixel size is implausible.
        SaveError
            If the project cannot be written.
        """
        self.check()
        if self.is_made:
            return add_slides(self.path, slides, mpp, failed=failed)[0]
        mark = {MARK: _mark({})}
        return create_from_slides(self.path, slides, mpp, failed=failed, files=mark)

    def project(self, image_root: Path | None = None) -> Project | None:
        """Open the project of the folder; None if there is none yet.

        Slides that are not where they were are looked for below `image_root`, if it is given.
        """
        return open_project(self.path, image_root) if self.is_made else None

    def write(self, name: str, write: Callable[[Path, Save], object]) -> Path:
        """Write a file of results; never replace a file that the user made or changed.

        Parameters
        ----------
        name : str
            Name of the file. If a user's file has this name, a number is added to it.
        write : callable
            Called with the path of the file, and a function that saves it.

        Returns
        -------
        Path
            Path of the written file.
        """
        own = self._own()
        wanted = self.path / name
        number = 1
        path = wanted
        while path.exists() and digest_of_file(path) not in own.get(path.name, ()):
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        write(path, self._save)
        return path

    def _save(self, path: Path, content: bytes) -> None:
        """Write a file, and list it as ours.

        A process that is killed leaves its old or its new content, so both are listed before.
        """
        own = self._own()
        before = [digest_of_file(path)] if path.exists() else []
        own[path.name] = [*before, digest_of(content)]
        make_folder_below(self.path, (self.path / MARK).parent)
        write_atomically(self.path / MARK, _mark(own))
        write_atomically(path, content)

    def _own(self) -> dict[str, list[str]]:
        """Return the digests that files of qpnuclei have, or had before they were last written."""
        path = self.path / MARK
        try:
            files = json.loads(read_regular(path))["files"]
            return {str(name): _digests(listed) for name, listed in files.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise unreadable(path, error, hint="name a new folder") from error


def _digests(listed: object) -> list[str]:
    """Return the digests of a file, of which older versions listed only one, as a text.

    Raises
    ------
    TypeError
        If they are no texts.
    """
    digests = [listed] if isinstance(listed, str) else listed
    if not isinstance(digests, list) or not all(isinstance(digest, str) for digest in digests):
        raise TypeError(f"{quoted(listed)} is not a list of digests")
    return digests


def _mark(files: Mapping[str, Sequence[str]]) -> bytes:
    return json.dumps({"qpnuclei": __version__, "files": files}, indent=1).encode()


def named_new_ones(images: Sequence[ImageEntry], slides: Sequence[Path]) -> dict[str, Path]:
    """Return the slides that a project does not have yet, by their future image names.

    Parameters
    ----------
    images : sequence of ImageEntry
        Images of the project.
    slides : sequence of Path
        One file of each slide, as for `qpnuclei.qupath.adding.new_ones`.
    """
    chosen = new_ones(images, slides)
    return dict(zip(names_of(chosen, {entry.name for entry in images}), chosen, strict=True))
