"""Whether the project file still describes an image as it did when the image was planned.

The hash of ``data.qpdata`` shows changes of objects and stains. Slide and pixel size are in
``project.qpproj``.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from qpnuclei.errors import ConflictError, QpnucleiError, SlideError
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.qupath.images import Opening, opening_of
from qpnuclei.qupath.model import ImageEntry, Project
from qpnuclei.qupath.native import open_project
from qpnuclei.qupath.uris import parse_file_uri
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.slides.resolution import agree, mpp_text, same_mpp
from qpnuclei.system.files import state_of


def check_same_image(entry: ImageEntry, image: PlannedImage) -> None:
    """Refuse an image that has another slide or another pixel size than when it was planned.

    Raises
    ------
    ConflictError
        If its slide, how it is opened, or its pixel size in the project has changed.
    SlideError
        If it cannot be analysed any more, as `qpnuclei.qupath.images.opening_of`.
    """
    slide = image.slide
    planned_opening = Opening(slide.crop_to_bounds, slide.series, slide.apply_icc)
    if _numbered(opening_of(entry)) != _numbered(planned_opening):
        raise ConflictError(
            f"image {entry.name} is opened in another way than when it was planned: its server or "
            "the arguments of the server changed in the project"
        )
    is_moved = list(map(_place, entry.server.uris)) != list(map(_place, image.uris))
    if is_moved and entry.path is None:
        raise ConflictError(
            f"the slide of image {entry.name} has another address than when it was planned, "
            "and is not there to compare (connect its drive, or name its folder): "
            f"{', '.join(entry.server.uris)}"
        )
    # A slide that was only moved stays the same; another one may be in its place. The machine that
    # saves may have none: then that of the same address counts as the same.
    if entry.path is not None and not _is_slide_of(entry.path, image, if_unreadable=not is_moved):
        raise ConflictError(
            f"image {entry.name} has another slide than when it was planned: {entry.path}"
        )
    now, planned = entry.server.mpp, image.stated_mpp
    if not same_mpp(now, planned) and (now is None or not agree(now, image.mpp)):
        raise ConflictError(
            f"the pixel size of image {entry.name} changed in the project since it was planned: "
            f"it is {_text(now)}, and the nuclei were found at {mpp_text(image.mpp)} µm/px"
        )


def check_still_same(project: Project, image: PlannedImage) -> None:
    """Refuse an image that the project file now describes otherwise than planned.

    The file is read again only if it has changed: large projects take long to read.

    Raises
    ------
    ConflictError, SlideError
        As `check_same_image`; also if the project has no such image any more.
    """
    try:
        now = _opened(project.path, project.image_root, state_of(project.path))
    except (QpnucleiError, OSError):  # its drive may be gone: saving says so, rescues the nuclei
        return
    entry = next((entry for entry in now.images if entry.id == image.entry), None)
    if entry is None:
        raise ConflictError(
            f"image {image.name} was removed from the project since it was planned",
            "to analyse it, add it to the project again, and run again",
        )
    try:
        check_same_image(entry, image)
    except ConflictError as error:
        hint = "run again: the image is then analysed as the project now describes it"
        raise ConflictError(error.what, hint) from error


@lru_cache(maxsize=1)
def _opened(path: Path, image_root: Path | None, _state: object) -> Project:
    """Open a project in a state of its file (see `state_of`)."""
    return open_project(path, image_root)


def _numbered(opening: Opening) -> Opening:
    """Return how a file is opened, with the number of its first image if it has none."""
    return opening._replace(series=opening.series or 0)


def _place(uri: str) -> object:
    """Return what a URI names, however it is spelled."""
    try:
        return parse_file_uri(uri)
    except SlideError:
        return uri


def _is_slide_of(path: Path, image: PlannedImage, *, if_unreadable: bool) -> bool:
    try:
        return slide_fingerprint(path) == image.slide.fingerprint
    except SlideError:
        return if_unreadable


def _text(mpp: tuple[float, float] | None) -> str:
    return "unknown" if mpp is None else f"{mpp_text(mpp)} µm/px"
