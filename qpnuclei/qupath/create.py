"""New QuPath projects from slides, without QuPath."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from qpnuclei.errors import QpnucleiError, SaveError, UsageError
from qpnuclei.qupath import project_file
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.names import is_utf8
from qpnuclei.qupath.native import NativeProject, open_project
from qpnuclei.qupath.new_image import (
    QUPATH_VERSION,
    NewImage,
    describe_slides,
    entry_json,
    stage_bytes,
    stage_image,
)
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.transaction import Transaction, sync_folder
from qpnuclei.qupath.uris import file_uri
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from qpnuclei.system.files import (
    content_of,
    copy_owner,
    make_folders,
    remove_leftovers,
    saving,
    temporary_prefix,
)
from qpnuclei.system.interrupts import interrupt_postponed

#: File name of a new project.
PROJECT_NAME = "project.qpproj"


def create_from_slides(
    directory: Path,
    slides: Sequence[Path],
    mpp: float | AskedMpp | None = None,
    *,
    stains: Stains = DEFAULT_HE,
    failed: Callable[[Path, QpnucleiError], object] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> Project:
    """Create a project of brightfield images in a new folder, for QuPath 0.4 to 0.7.

    A slide without a pixel size is added uncalibrated, as QuPath would. Several files of one slide
    (DICOM) become one image.

    Parameters
    ----------
    directory : Path
        A folder that is empty, which is filled, or that does not exist yet.
    slides : sequence of Path
    mpp : float or AskedMpp, optional
        Pixel size in µm/px of all slides, or of some by image name; by default each slide's own.
    stains : Stains
        Colour deconvolution stains. With DAB the image type is Brightfield (H-DAB), otherwise
        Brightfield (H&E).
    files : mapping of str to bytes, optional
        Content of further files to create in the folder, by relative path.
    failed : callable, optional
        Called for a slide that is missing or cannot be read, with the reason; the project is made
        of the others. By default the first such error is raised.

    Raises
    ------
    NotFoundError, SlideError
        If a slide is missing or cannot be read and `failed` is None, or if no slide can be read.
    MppError
        If `mpp` is implausible.
    UsageError
        If the folder is not empty, or its name is not UTF-8.
    SaveError
        If the project cannot be written; nothing is left behind.
    """
    images, errors = describe_slides(slides, mpp)
    if errors and failed is None:
        raise errors[0][1]
    if failed is not None:
        for path, error in errors if images else errors[:-1]:
            failed(path, error)
    if errors and not images:
        raise errors[-1][1]
    return create_project(directory, images, stains=stains, files=files)


def create_project(
    directory: str | Path,
    images: Sequence[NewImage],
    *,
    stains: Stains = DEFAULT_HE,
    files: Mapping[str, bytes] | None = None,
) -> NativeProject:
    """Create a QuPath project of slides, for QuPath 0.4 to 0.7.

    Parameters
    ----------
    directory : path
        A folder that is empty, which is filled, or that does not exist yet.
    images : sequence of NewImage
    stains, files
        As for `create_from_slides`.

    Raises
    ------
    qpnuclei.errors.UsageError
        If the folder is not empty, its name is not UTF-8, or there is no image.
    qpnuclei.errors.SaveError
        If a file could not be written; the folder is unchanged.
    """
    directory = Path(directory).absolute()
    if not images:
        raise UsageError("a project needs at least one slide", "name a slide")
    check_new_folder(directory)
    is_new = not directory.exists()
    # An existing folder keeps its identity: it may be a link, a mount point, or someone's working
    # folder.
    parent = directory.parent if is_new else directory
    try:
        make_folders(parent)
        # Build in a temporary folder and rename it, so that no partial project can exist.
        remove_leftovers(parent)
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=parent))
    except OSError as error:
        raise SaveError(f"{directory} cannot be created: {error.strerror}") from error
    try:
        temporary.chmod(0o755)
        copy_owner(temporary, parent)
        _write_project(temporary, directory, images, stains, files or {})
        check_new_folder(directory)  # another process may have filled it meanwhile
        with interrupt_postponed():
            if is_new:
                temporary.replace(directory)
            else:
                _move_content(temporary, directory)
        sync_folder(parent)
    except SaveError as error:
        raise SaveError(
            error.what, "free disk space or choose another folder, and run again"
        ) from error
    except OSError as error:
        raise SaveError(f"{directory} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_project(directory)


def check_new_folder(directory: Path) -> None:
    """Check that a project can be made in a folder: it is empty, or does not exist.

    Temporary files of processes and files of file managers do not count (see `content_of`).

    Raises
    ------
    UsageError
        If there is something else, or the folder's name is not UTF-8.
    qpnuclei.errors.SaveError
        If its name is too long, or it may not be entered.
    """
    if not is_utf8(str(directory.absolute())):
        raise UsageError(
            f"{directory}: the name of this folder is not UTF-8, as QuPath requires",
            "name another folder",
        )
    with saving(directory):
        if directory.is_dir():
            if not content_of(directory):
                return
        elif not os.path.lexists(directory):
            return
    raise UsageError(
        f"{directory} exists already and is not an empty folder",
        "name a new folder, or add the slides to its project with qpnuclei project add"
        if project_file.is_project(directory)
        else "name a new folder",
    )


def _move_content(folder: Path, target: Path) -> None:
    """Move a new project from one folder into another, its ``.qpproj`` file last, or nothing."""
    items = sorted(folder.iterdir(), key=lambda path: path.name == PROJECT_NAME)
    try:
        for item in items:
            item.replace(target / item.name)
    except BaseException:
        for item in items:
            if not item.exists():
                (target / item.name).replace(item)
        raise


def _write_project(
    folder: Path,
    final: Path,
    images: Sequence[NewImage],
    stains: Stains,
    files: Mapping[str, bytes],
) -> None:
    """Write the project into `folder`, with the paths that it will have in `final`."""
    project_path = final / PROJECT_NAME
    now = int(time.time() * 1000)
    with Transaction(folder) as transaction:
        for number, image in enumerate(images, 1):
            stage_image(transaction, folder, project_path, number, image, stains)
        project = {
            "version": QUPATH_VERSION,
            "createTimestamp": now,
            "modifyTimestamp": now,
            "uri": file_uri(project_path),
            "lastID": len(images),
            "images": [entry_json(number, image) for number, image in enumerate(images, 1)],
        }
        classes = {"pathClasses": [*map(project_file.class_json, project_file.DEFAULT_CLASSES)]}
        stage_bytes(
            transaction, folder / "classifiers" / "classes.json", project_file.to_json(classes)
        )
        for name, content in files.items():
            stage_bytes(transaction, folder / name, content)
        stage_bytes(transaction, folder / project_path.name, project_file.to_json(project))
        transaction.commit()
