"""A folder of results: a project that was made from slides, with a table and a report beside it."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qpnuclei._version import __version__
from qpnuclei.errors import FormatError, QpnucleiError, UsageError
from qpnuclei.qupath.adding import add_slides, new_ones
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.create import PROJECT_NAME, create_from_slides
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.new_image import names_of
from qpnuclei.qupath.pixel_size import AskedMpp, Mpp, project_mpp
from qpnuclei.qupath.transaction import digest_of_file
from qpnuclei.slides.files import one_per_slide
from qpnuclei.system.files import make_folder_below, read_regular, write_atomically

#: Says that the project was made from slides, and which files beside it are the program's own.
MARK = "qpnuclei/results.json"

_log = logging.getLogger(__name__)

Failed = Callable[[Path, QpnucleiError], object]


@dataclass(frozen=True)
class ResultsFolder:
    """A folder of results; it need not exist yet."""

    path: Path

    @property
    def is_made(self) -> bool:
        """Whether it has a project that was made here."""
        return (self.path / MARK).is_file() and any(self.path.glob("*.qpproj"))

    @property
    def new_project(self) -> Path:
        """Where its project will be."""
        return self.path.absolute() / PROJECT_NAME

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
            Pixel sizes of new slides, by image name.
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

    def project(self) -> Project | None:
        """Open its project; None if there is none yet."""
        return open_project(self.path) if self.is_made else None

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


def named_new_ones(images: Sequence[ImageEntry], slides: Sequence[Path]) -> dict[str, Path]:
    """Return the slides that a project does not have yet, by the names they will have.

    Parameters
    ----------
    images : sequence of ImageEntry
        Of the project.
    slides : sequence of Path
    """
    chosen = one_per_slide(new_ones(images, slides))
    return dict(zip(names_of(chosen, {entry.name for entry in images}), chosen, strict=True))


def changed_pixel_sizes(
    images: Sequence[ImageEntry], by_image: Mapping[str, float]
) -> dict[str, float]:
    """Return by ID those pixel sizes that are not what a run would take without being told.

    Parameters
    ----------
    by_image : mapping of str to float
        What the user says, in µm/px by ID.
    """
    return {
        entry.id: by_image[entry.id]
        for entry in images
        if entry.id in by_image and _is_changed(entry, by_image[entry.id])
    }


def _is_changed(entry: ImageEntry, given: float) -> bool:
    sizes = [project_mpp(entry)]
    # One that cannot be read fails in the run.
    with contextlib.suppress(QpnucleiError):
        used = Record.of(entry.read().properties, f"image {entry.name}").used
        sizes += [] if used is None else [used.mpp]
    return any(own is None or any(abs(axis - given) > 1e-9 for axis in own) for own in sizes)


def warn_of_kept_sizes(sizes: Sequence[Mpp | None], mpp: float) -> None:
    """Say how many slides keep another pixel size than that for slides without one, if any do.

    Parameters
    ----------
    sizes : sequence of (float, float) or None
        Of each slide, in µm/px.
    mpp : float
        That for slides without one.
    """
    kept = [own for own in sizes if own and any(abs(axis / mpp - 1) > 0.01 for axis in own)]
    if kept:
        _log.warning(
            "--mpp %g is used for %s of %d slides: %d have another pixel size, and keep it; "
            "to override it, name the slides: --image NAME --mpp %g",
            mpp,
            len(sizes) - len(kept) or "none",
            len(sizes),
            len(kept),
            mpp,
        )
