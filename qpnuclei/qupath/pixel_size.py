"""Decide the pixel size of a project's image, by one rule for all commands."""

from __future__ import annotations

import csv
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from qpnuclei.choices import MAX_MPP, MIN_MPP
from qpnuclei.errors import (
    FormatError,
    MppError,
    NotFoundError,
    QpnucleiError,
    UsageError,
    number_of,
)
from qpnuclei.qupath.analysed import Record
from qpnuclei.qupath.image_names import image_option, images_named
from qpnuclei.qupath.images import open_image
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.slides.calibration import Mpp, PixelCalibration
from qpnuclei.slides.resolution import agree, checked_mpp, checked_sizes, resolve_mpp, same_mpp
from qpnuclei.system.arguments import check_fields, checked_flag
from qpnuclei.system.files import read_regular, unreadable

_log = logging.getLogger(__name__)

Image = TypeVar("Image")

_NO_TABLE = "give a table as text with the columns image and mpp"


@dataclass(frozen=True)
class AskedMpp:
    """Pixel sizes that the user gives.

    Parameters
    ----------
    mpp : float or None
        ``--mpp``, in µm per level-0 px.
    only_missing : bool
        Use `mpp` only for images without a pixel size. This applies if several images are selected
        without naming them.
    by_id : mapping of str to float
        Pixel sizes by entry ID; they take precedence over all others.
    of_new : mapping of str to float
        Pixel sizes of slides that become images, by their future names.

    Raises
    ------
    UsageError
        If `only_missing` is neither true nor false, or `by_id` or `of_new` is not a mapping.
    MppError
        If one is not a number, or outside 0.05 to 2.5 µm/px.
    """

    mpp: float | None = None
    only_missing: bool = False
    by_id: Mapping[str, float] = field(default_factory=dict)
    of_new: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks: dict[str, Callable[[str, Any], object]] = {
            "mpp": checked_mpp,
            "only_missing": checked_flag,
            "by_id": checked_sizes,
            "of_new": checked_sizes,
        }
        check_fields(self, checks, may_be_none=["mpp"])


def asked_mpp(
    mpp: float | None,
    table: Path | None,
    project: Project,
    chosen: Sequence[ImageEntry],
    names: Collection[str] | None,
) -> AskedMpp:
    """Return what the user says about the pixel sizes of chosen images of a project.

    Parameters
    ----------
    mpp : float or None
        ``--mpp``, in µm per level-0 px. For several images without `names`, it is only for those
        without a pixel size: images of a project often differ.
    table : Path or None
        ``--mpp-table``; it may name any image of the project.
    chosen : sequence of ImageEntry
    names : collection of str or None
        ``--image``, by which they were chosen.

    Raises
    ------
    NotFoundError, FormatError, UsageError
        If the table is missing, is no such table, or names an unknown image or one twice.
    MppError
        If one of its pixel sizes is implausible.
    """
    by_id = {} if table is None else mpp_by_id(mpp_rows(table), project.images)
    # Without `mpp` it says nothing. It must not depend on the number of images then, because a run
    # that goes on with more images is recognised by its options.
    return AskedMpp(mpp, mpp is not None and not names and len(chosen) > 1, by_id)


def check_mpp_table(table: Path | None) -> None:
    """Check a table of pixel sizes, but not whether the project has its images.

    Raises
    ------
    NotFoundError, FormatError, MppError
        As `mpp_rows`.
    """
    if table is not None:
        list(mpp_rows(table))


def pixel_size(
    entry: ImageEntry,
    record: Record,
    asked: AskedMpp = AskedMpp(),
    slide_mpp: Callable[[], Mpp | None] | None = None,
) -> tuple[Mpp, str]:
    """Decide the pixel size of an image.

    In order of precedence: the user's value; the user's value for the last run, unless the project
    has changed since; the project's; the slide file's.

    Parameters
    ----------
    record : Record
        The record of earlier runs on the image.
    slide_mpp : callable, optional
        Returns the pixel size of the slide file; by default the slide is opened.

    Returns
    -------
    (mpp_x, mpp_y) : tuple of float
        µm per level-0 px.
    source : str
        ``"--mpp"``, ``"--mpp or --mpp-table"`` (of one image), ``"an earlier run"``, ``"project"``
        or ``"slide"``.

    Raises
    ------
    MppError
        If no pixel size is known, or it is implausible.
    """
    name = f"image {entry.name}"
    given = asked.by_id.get(entry.id)
    if given is not None:
        return resolve_mpp(given, entry.calibration, None, name)[0], "--mpp or --mpp-table"
    if asked.mpp is not None and not asked.only_missing:
        slide = None if slide_mpp is None else slide_mpp()
        return resolve_mpp(asked.mpp, entry.calibration, slide, name)
    used = record.used
    project = entry.calibration.mpp_xy
    is_overridden = (
        used is not None and same_mpp(used.project, project) and not same_mpp(project, used.mpp)
    )
    if asked.mpp is None and used is not None and is_overridden:
        return resolve_mpp(None, PixelCalibration(*used.mpp), None, name)[0], "an earlier run"
    try:
        slide = None
        if project is None:
            slide = _of_file(entry) if slide_mpp is None else slide_mpp()
        own, source = resolve_mpp(None, entry.calibration, slide, name)
    except MppError as error:
        if asked.mpp is not None:
            return resolve_mpp(asked.mpp, None, None, name)
        raise MppError(
            error.what,
            f"add {image_option(entry)} --mpp 0.5, in µm per level-0 pixel (40x scans have about "
            "0.25, 20x about 0.5), to this command and to later ones; for many images, run and "
            "export have --mpp-table",
        ) from None
    if asked.mpp is not None and not agree(own, (asked.mpp, asked.mpp)):
        _log.warning(
            "%s keeps its %.4g µm/px, from the %s: --mpp %g is for images without a pixel size; "
            "to override it, name the image: %s --mpp %g",
            name,
            own[0],
            source,
            asked.mpp,
            image_option(entry),
            asked.mpp,
        )
    return own, source


def changed_pixel_sizes(images: Sequence[ImageEntry], asked: AskedMpp) -> dict[str, float]:
    """Return by entry ID the given pixel sizes, in µm/px, that a run would not use otherwise."""
    return {
        entry.id: asked.by_id[entry.id]
        for entry in images
        if entry.id in asked.by_id and _is_changed(entry, asked.by_id[entry.id])
    }


def _is_changed(entry: ImageEntry, given: float) -> bool:
    sizes = [entry.calibration.mpp_xy]
    # An image that cannot be read fails in the run.
    with suppress(QpnucleiError):
        used = Record.of(entry.read().properties, entry.name).used
        sizes += [] if used is None else [used.mpp]
    return any(not same_mpp(own, (given, given)) for own in sizes)


def warn_of_kept_sizes(
    existing: Sequence[ImageEntry], new: Sequence[ImageEntry], asked: AskedMpp
) -> None:
    """Warn about slides that keep their own pixel size although ``--mpp`` is given.

    Parameters
    ----------
    existing : sequence of ImageEntry
        Images to whose entry IDs `asked` refers.
    new : sequence of ImageEntry
        Images that were made of slides since.
    asked : AskedMpp
    """
    mpp = asked.mpp
    if mpp is None or not asked.only_missing:
        return
    sizes = [entry.calibration.mpp_xy for entry in new]
    for entry in existing:
        given = asked.by_id.get(entry.id)
        sizes.append(entry.calibration.mpp_xy if given is None else (given, given))
    kept = [own for own in sizes if own and not agree(own, (mpp, mpp))]
    if kept:
        _log.warning(
            "--mpp %g is for slides without a pixel size: %d of %s have another one and keep it; "
            "to override it, name the slides: --image NAME --mpp %g",
            mpp,
            len(kept),
            number_of(len(sizes), "slide"),
            mpp,
        )


def mpp_by_id(
    rows: Iterable[tuple[str, str, float]], entries: Sequence[ImageEntry]
) -> dict[str, float]:
    """Return pixel sizes by entry ID.

    Parameters
    ----------
    rows : iterable of (str, str, float)
        Where the user says it, for messages; name or entry ID of an image; and its pixel size in
        µm/px.
    entries : sequence of ImageEntry
        Images of the project.

    Raises
    ------
    UsageError
        As `mpp_of_images`.
    """
    names = [entry.name for entry in entries]
    return mpp_of_images(
        rows, names, lambda name: [entry.id for entry in images_named(entries, name)]
    )


def mpp_of_images(
    rows: Iterable[tuple[str, str, float]],
    names: Sequence[str],
    images_of: Callable[[str], Sequence[Image]],
) -> dict[Image, float]:
    """Return the pixel size of each image that is named.

    Parameters
    ----------
    rows : iterable of (str, str, float)
        As for `mpp_by_id`.
    names : sequence of str
        Names of all images, for messages.
    images_of : callable
        Returns the images that a name means.

    Raises
    ------
    UsageError
        If a row names no image, or the same image as another row.
    """
    sizes: dict[Image, float] = {}
    for where, name, mpp in rows:
        images = images_of(name)
        if not images:
            listed = ", ".join(names) or "none"
            raise UsageError(f"{where}: no image is called {name!r}", f"images: {listed}")
        for image in images:
            if image in sizes:
                raise UsageError(
                    f"{where}: the image {name!r} has a pixel size already",
                    "give one for each image, by its name or its entry ID",
                )
            sizes[image] = mpp
    return sizes


def mpp_rows(path: Path) -> Iterator[tuple[str, str, float]]:
    """Read the rows of a table of pixel sizes, as `mpp_by_id` takes them.

    Parameters
    ----------
    path : Path
        Comma, semicolon or tab separated, with a header that has ``image`` and ``mpp``.

    Raises
    ------
    NotFoundError, FormatError
        If the file is missing, or is not such a table.
    MppError
        If a pixel size is implausible.
    """
    try:
        text = read_regular(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"{path}: no such file", _NO_TABLE) from None
    except (OSError, UnicodeDecodeError) as error:
        raise unreadable(path, error, hint=_NO_TABLE) from None
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in ("\t", ";") if mark in header), ",")
    reader = csv.DictReader(text.splitlines(), delimiter=delimiter)
    if not {"image", "mpp"} <= set(reader.fieldnames or ()):
        raise FormatError(f"{path}: has no columns image and mpp", "its first line must name them")
    for row in reader:
        name, value = (row["image"] or "").strip(), (row["mpp"] or "").strip()
        where = f"{path}, line {reader.line_num}"
        try:
            mpp = float(value)
        except ValueError:
            raise FormatError(
                f"{where}: {value!r} is not a number", "write µm per pixel, as in 0.25"
            ) from None
        if not MIN_MPP <= mpp <= MAX_MPP:
            raise MppError(
                f"{where}: {name}: a pixel size of {value} µm/px cannot be right (possible: "
                f"{MIN_MPP} to {MAX_MPP})",
                "correct this line: 40x scans have about 0.25 µm per pixel, 20x about 0.5",
            )
        yield where, name, mpp


def _of_file(entry: ImageEntry) -> Mpp | None:
    """Return the slide file's pixel size; None if it states none or is missing."""
    try:
        with open_image(entry) as slide:
            return slide.mpp
    except QpnucleiError as error:
        _log.info("image %s: its file has no pixel size: %s", entry.name, error.what)
        return None
