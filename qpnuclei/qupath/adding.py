"""Add slides to an existing project, without QuPath."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from qpnuclei.errors import ConflictError, FormatError, QpnucleiError, SlideError
from qpnuclei.qupath import project_file
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.new_image import (
    QUPATH_VERSION,
    NewImage,
    describe_slides,
    entry_json,
    stage_bytes,
    stage_image,
)
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.transaction import Transaction, digest_of_file, remove_leftovers
from qpnuclei.qupath.uris import parse_file_uri
from qpnuclei.slides.files import one_per_slide
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from qpnuclei.system.files import read_regular
from qpnuclei.system.locks import locked
from qpnuclei.system.unicode_forms import nfc


def add_slides(
    path: Path,
    slides: Sequence[Path],
    mpp: float | AskedMpp | None = None,
    *,
    stains: Stains = DEFAULT_HE,
    failed: Callable[[Path, QpnucleiError], object] | None = None,
) -> tuple[Project, list[str]]:
    """Add slides to a project as brightfield images; existing images are unchanged.

    Parameters
    ----------
    path : Path
        The ``.qpproj`` file, or its folder.
    slides : sequence of Path
        Slides that the project already has are skipped.
    mpp : float or AskedMpp, optional
        Pixel size in µm/px of all new slides, or of some by image name; by default each slide's
        own.
    stains : Stains
        As for `create_from_slides`.
    failed : callable, optional
        Called for a slide that is missing, cannot be read, or may be that of an image whose file is
        missing, with the reason; the others are added. By default the first such error is raised,
        and nothing is added.

    Returns
    -------
    (Project, list of str)
        The project, and the IDs of the new images.

    Raises
    ------
    NotFoundError, FormatError
        If there is no such project, or it cannot be read.
    NotFoundError, SlideError
        If a slide is one of these, and `failed` is None.
    MppError
        If a given pixel size is implausible.
    ConflictError
        If another program saved the project meanwhile.
    SaveError
        If the project cannot be written; it is unchanged.
    """
    path = project_file.find_project_file(path)
    folder = path.parent
    with locked(folder):
        project = open_project(path)
        before = digest_of_file(path)
        content = project_file.read_project(path)
        given = one_per_slide(slides, files_of(project.images))
        images, errors = describe_slides(
            new_ones(project.images, given), mpp, taken={entry.name for entry in project.images}
        )
        images, moved = without_moved(images, project.images)
        for slide, error in (*errors, *moved):
            if failed is None:
                raise error
            failed(slide, error)
        if not images:
            return project, []
        added = dict(enumerate(images, _free_id(folder, content)))
        content["images"] = [*content["images"], *(entry_json(n, i) for n, i in added.items())]
        content["lastID"] = max(added)
        content["modifyTimestamp"] = int(time.time() * 1000)
        remove_leftovers(folder)
        with Transaction(folder) as transaction:
            # Staged first, so renamed last: the list never names an image without data.
            stage_bytes(transaction, path, project_file.to_json(content))
            # As QuPath does, keep the previous list beside it.
            stage_bytes(transaction, path.with_name(f"{path.name}.backup"), read_regular(path))
            version = project.version or QUPATH_VERSION
            for number, image in added.items():
                stage_image(transaction, folder, path.absolute(), number, image, stains, version)
            if digest_of_file(path) != before:
                raise ConflictError(
                    f"{path} was saved by another program meanwhile",
                    "close the project in QuPath, and run again",
                )
            transaction.commit()
        return open_project(path), [str(number) for number in added]


def new_ones(images: Sequence[ImageEntry], slides: Sequence[Path]) -> list[Path]:
    """Return the slides that are not yet among the images of a project.

    Parameters
    ----------
    images : sequence of ImageEntry
    slides : sequence of Path
        One file of each slide; that of its image, if the project has one.
    """
    known = frozenset(files_of(images))
    return [slide for slide in slides if slide not in known]


def files_of(images: Sequence[ImageEntry]) -> list[Path]:
    """Return the files of the images of a project, without those that are missing."""
    return [entry.path for entry in images if entry.path is not None]


def without_moved(
    new: Sequence[NewImage], images: Sequence[ImageEntry]
) -> tuple[list[NewImage], list[tuple[Path, SlideError]]]:
    """Separate new slides from those that may be the slides of images whose files are missing.

    Parameters
    ----------
    new : sequence of NewImage
    images : sequence of ImageEntry
        Images of the project.

    Returns
    -------
    (list of NewImage, list of (Path, SlideError))
        The new slides, and the files of the others, each with the reason.
    """
    missing: dict[tuple[str, int | None, int | None], ImageEntry] = {}
    for entry in images:
        server = entry.server
        if server.uris and entry.path is None:
            with suppress(SlideError):  # no file
                name = nfc(parse_file_uri(server.uris[0]).name)
                missing[name, server.width, server.height] = entry
    kept, moved = [], []
    for image in new:
        twin = missing.get((nfc(image.path.name), image.levels[0].width, image.levels[0].height))
        if twin is None:
            kept.append(image)
        else:
            moved.append((image.path, _may_be_moved(image.path, twin)))
    return kept, moved


def _may_be_moved(slide: Path, entry: ImageEntry) -> SlideError:
    # Added as another image, its nuclei would count twice.
    return SlideError(
        f"{slide} may be the slide of the image {entry.name}, moved: the file of that image is "
        "missing, and has the same name and size",
        "qpnuclei run finds it with --image-root and the folder where the slides are now, or open "
        "the project in QuPath and give it the new paths; to add the slide as another image, "
        "rename its file",
    )


def _free_id(folder: Path, content: project_file.Json) -> int:
    """Return the first ID above all used ones, and above data folders of removed images."""
    last = content.get("lastID")
    used = [last if isinstance(last, int) else 0]
    used += [int(project_file.entry_id(entry) or 0) for entry in content["images"]]
    data = folder / "data"
    used += [int(p.name) for p in data.glob("*") if p.name.isascii() and p.name.isdigit()]
    if max(used) >= 2**62:  # a Java long
        raise FormatError(
            f"{folder}: the ID {max(used)} of an image is too large", "restore it from a backup"
        )
    return max(used) + 1
