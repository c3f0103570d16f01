"""Projects in Python: make, extend, count, report."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from qpnuclei.choices import Grouping
from qpnuclei.errors import UsageError, quoted
from qpnuclei.qupath.counts import Row
from qpnuclei.qupath.image_names import match_images
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.project import held_project, open_project
from qpnuclei.qupath.project_counts import count_project
from qpnuclei.system.arguments import checked_texts, checked_texts_or_none, listed


def create_project(
    directory: str | os.PathLike[str],
    slides: Sequence[str | os.PathLike[str]],
    mpp: float | None = None,
) -> Project:
    """Create a QuPath project of Brightfield (H&E) images in a new folder.

    Parameters
    ----------
    directory : path-like
        A new or empty folder.
    slides : sequence of path-like
    mpp : float, optional
        Pixel size in µm/px of all slides; by default, that of each slide file.

    Raises
    ------
    NotFoundError, qpnuclei.errors.SlideError
        If a slide is missing or cannot be read.
    qpnuclei.errors.MppError
        If `mpp` is implausible.
    UsageError
        If the folder is not empty, or its name is not UTF-8.
    qpnuclei.errors.SaveError
        If the project cannot be written; nothing is left behind.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("slide.png")
    >>> project = create_project("project", ["slide.png"], mpp=0.25)
    >>> [(image.name, image.calibration.mpp) for image in project.images]
    [('slide.png', 0.25)]
    """
    from qpnuclei.qupath.create import create_from_slides

    return create_from_slides(Path(directory), [Path(slide) for slide in listed(slides)], mpp)


def add_slides(
    project: str | os.PathLike[str] | Project,
    slides: Sequence[str | os.PathLike[str]],
    mpp: float | None = None,
) -> Project:
    """Add slides to a project as Brightfield (H&E) images, like ``qpnuclei project add``.

    Slides that the project already has are skipped. Close the project in QuPath first.

    Parameters
    ----------
    project : path-like or Project
    slides : sequence of path-like
    mpp : float, optional
        Pixel size in µm/px of the new slides; by default, that of each slide file.

    Raises
    ------
    NotFoundError, qpnuclei.errors.SlideError
        If there is no such project, or a slide is missing or cannot be read; nothing is added.
    qpnuclei.errors.MppError
        If `mpp` is implausible.
    qpnuclei.errors.SaveError
        If the project cannot be written; it is unchanged.

    Examples
    --------
    >>> from PIL import Image
    >>> for name in ("first.png", "second.png"):
    ...     Image.new("RGB", (640, 480), "white").save(name)
    >>> project = create_project("growing", ["first.png"], mpp=0.25)
    >>> project = add_slides("growing", ["first.png", "second.png"], mpp=0.25)
    >>> [image.name for image in project.images]
    ['first.png', 'second.png']
    """
    from qpnuclei.qupath import adding

    path = project if isinstance(project, str | os.PathLike) else opened_project(project).path
    return adding.add_slides(Path(path), [Path(slide) for slide in listed(slides)], mpp)[0]


def count(
    project: str | os.PathLike[str] | Project,
    by: Grouping = "annotation",
    *,
    images: Sequence[str] = (),
    roi_classes: Sequence[str] | None = None,
    nucleus_classes: Sequence[str] | None = None,
    mpp: float | None = None,
) -> list[Row]:
    """Count the detections of a project, as ``qpnuclei export`` does.

    Parameters
    ----------
    project : path-like or Project
    by : {"annotation", "class", "image"}
        Meaning of a row.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images; all by default.
    roi_classes, nucleus_classes : sequence of str, optional
        Count only annotations, or only detections, of these classes. A row of an image has no
        `roi_classes`: use ``by="class"``.
    mpp : float, optional
        µm/px of all images; overrides the project.

    Returns
    -------
    list of dict
        One for each row of the table.

    Raises
    ------
    UsageError, NotFoundError, FormatError
        If the project, an image or a class does not exist, the project cannot be read, or classes
        of annotations are given for rows of images.

    Examples
    --------
    No run has analysed a new project, so the number of nuclei is unknown, not 0:

    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("glass.png")
    >>> project = create_project("project-to-count", ["glass.png"], mpp=0.25)
    >>> (row,) = count(project, by="image")
    >>> row["image"], row["nuclei"]
    ('glass.png', None)
    """
    opened = opened_project(project)
    return count_project(
        opened,
        match_images(opened, checked_texts("images", images)),
        by,
        roi_classes=checked_texts_or_none("roi_classes", roi_classes),
        nucleus_classes=checked_texts_or_none("nucleus_classes", nucleus_classes),
        pixel_sizes=AskedMpp(mpp),
    )


def write_report(
    project: str | os.PathLike[str] | Project,
    path: str | os.PathLike[str],
    images: Sequence[str] = (),
    *,
    nucleus_classes: Sequence[str] | None = None,
    mpp: float | None = None,
) -> None:
    """Write a page with the results of a project, like ``qpnuclei report``.

    Parameters
    ----------
    project : path-like or Project
    path : path-like
        The page, ``.html``. With more than 20 images, each has its own page in a folder beside it.
    images : sequence of str
        Names or patterns (``*``, ``?``) of images; all by default.
    nucleus_classes : sequence of str, optional
        As for `count`; by default, all detections count in images without a run.
    mpp : float, optional
        µm/px of all images; overrides the project.

    Raises
    ------
    UsageError, NotFoundError
        If the project or an image does not exist, or `path` is not a name for a page.
    qpnuclei.errors.QpnucleiError
        If an image cannot be read (the page has the others), or the page cannot be written.

    Examples
    --------
    >>> from PIL import Image
    >>> Image.new("RGB", (640, 480), "white").save("glass.png")
    >>> project = create_project("project-to-see", ["glass.png"], mpp=0.25)
    >>> write_report(project, "report.html")
    >>> Path("report.html").read_text(encoding="utf-8")[:15]
    '<!doctype html>'
    """
    from qpnuclei.report.page import ReportOptions, write_report
    from qpnuclei.report.runs import runs_of

    opened = opened_project(project)
    failures = write_report(
        opened,
        match_images(opened, checked_texts("images", images)),
        Path(path),
        runs_of(opened.path.parent),
        ReportOptions(checked_texts_or_none("nucleus_classes", nucleus_classes), AskedMpp(mpp)),
    )
    for _, error in failures:
        raise error


def held(
    project: str | os.PathLike[str] | Project,
) -> AbstractContextManager[Project]:
    """Hold a project, and open it (see `held_project`) even if it is open.

    QuPath and other processes may have changed it since it was opened.
    """
    if isinstance(project, str | os.PathLike):
        return held_project(project)
    _check_project(project)
    return held_project(project.path, project.backend, project.image_root)


def opened_project(project: str | os.PathLike[str] | Project) -> Project:
    """Open a project unless it is open already."""
    if isinstance(project, str | os.PathLike):
        return open_project(project)
    _check_project(project)
    return project


def _check_project(project: object) -> None:
    if not hasattr(project, "image_root"):
        raise UsageError(f"project={quoted(project)}: not a project", "give its path")
