"""Open a QuPath project with the best available backend."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, get_args

from qpnuclei.choices import Backend
from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.paquo.installation import (
    HOW_TO_POINT_TO_QUPATH,
    QuPathInstallation,
    find_qupath,
)
from qpnuclei.qupath.project_file import find_project_file
from qpnuclei.system.arguments import check_choice
from qpnuclei.system.files import check_folder
from qpnuclei.system.locks import locked

__all__ = [
    "QuPathInstallation",
    "checked_image_root",
    "choose_backend",
    "find_qupath",
    "held_project",
    "open_project",
]

#: Older versions write no UUIDs, by which qpnuclei recognises its own detections.
OLDEST_RELEASE_FOR_PAQUO = (0, 4)

_log = logging.getLogger(__name__)


def open_project(
    path: str | os.PathLike[str],
    backend: Backend = "auto",
    image_root: str | os.PathLike[str] | None = None,
) -> Project:
    """Open a QuPath project.

    Parameters
    ----------
    path : path-like
        The ``.qpproj`` file, or its folder.
    backend : {"auto", "native", "paquo"}
        ``"native"`` needs neither QuPath nor Java; ``"paquo"`` uses an installed QuPath;
        ``"auto"`` is ``"paquo"`` if QuPath 0.4 or newer is installed. `Project.backend` is the
        chosen one.
    image_root : path-like, optional
        Folder for image files that are not at the path in the project: their stored path is tried
        below it, with fewer and fewer leading folders.

    Raises
    ------
    qpnuclei.errors.UsageError
        If `backend` is unknown, or is ``"paquo"`` and no suitable QuPath is installed; if `path` is
        another kind of file, or contains several projects.
    qpnuclei.errors.NotFoundError
        If there is no project at `path`, or no folder `image_root`.
    qpnuclei.errors.FormatError
        If its JSON is broken, or is not that of a QuPath project.

    Examples
    --------
    >>> from PIL import Image
    >>> from qpnuclei import create_project
    >>> Image.new("RGB", (640, 480), "white").save("case-7.png")
    >>> path = create_project("case-7", ["case-7.png"]).path
    >>> project = open_project(path, backend="native")
    >>> project.backend, [image.name for image in project.images]
    ('native', ['case-7.png'])
    """
    find_project_file(Path(path))
    root = checked_image_root(image_root)
    if choose_backend(backend) == "paquo":
        from qpnuclei.qupath.paquo import backend as paquo_backend

        return paquo_backend.open_project(path, root)
    from qpnuclei.qupath import native

    return native.open_project(Path(path), root)


def checked_image_root(image_root: str | os.PathLike[str] | None) -> Path | None:
    """Return the folder of images that are not at the path in the project, as a path.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such folder.
    """
    root = None if image_root is None else Path(image_root)
    if root is not None:
        check_folder(root, "where the slides are now")
    return root


@contextmanager
def held_project(
    path: str | os.PathLike[str],
    backend: Backend = "auto",
    image_root: str | os.PathLike[str] | None = None,
    *,
    wait: bool = True,
    break_lock: bool = False,
) -> Iterator[Project]:
    """Hold a project within the block, and open it.

    It is opened when it is held: until then, another process may add images or change them.

    Parameters
    ----------
    path, backend, image_root
        As for `open_project`.
    wait, break_lock : bool
        As for `qpnuclei.system.locks.locked`.

    Raises
    ------
    qpnuclei.errors.QpnucleiError
        As `open_project` and `qpnuclei.system.locks.locked`.
    """
    folder = find_project_file(Path(path)).parent
    # Nobody waits to hear of a wrong argument.
    backend = choose_backend(backend)
    checked_image_root(image_root)
    with locked(folder, wait=wait, break_lock=break_lock):
        yield open_project(path, backend, image_root)


def choose_backend(backend: Backend = "auto") -> Literal["native", "paquo"]:
    """Return the backend that `open_project` would use.

    Raises
    ------
    qpnuclei.errors.UsageError
        If `backend` is unknown, or is ``"paquo"`` and no suitable QuPath is installed.
    """
    check_choice("backend", backend, get_args(Backend))
    if backend == "native":
        return "native"
    found = find_qupath()
    if found is None:
        if backend == "auto":
            return "native"
        raise UsageError("--backend paquo: no QuPath found", HOW_TO_POINT_TO_QUPATH)
    if found.release is not None and found.release < OLDEST_RELEASE_FOR_PAQUO:
        what = f"QuPath {found.version} in {found.path} is too old for the paquo backend"
        if backend == "paquo":
            raise UsageError(what, "install QuPath 0.4 or newer, or use --backend native")
        _log.info("%s, which needs 0.4: using the native backend", what)
        return "native"
    return "paquo"
