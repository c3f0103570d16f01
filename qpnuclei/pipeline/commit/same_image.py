"""Whether the project file still describes an image as it did when the image was planned.

The hash of ``data.qpdata`` shows changes of objects and stains. Slide and pixel size are in
``project.qpproj``.
"""

from __future__ import annotations

from qpnuclei.errors import ConflictError, SlideError
from qpnuclei.pipeline.planning.plan_file import PlannedImage
from qpnuclei.qupath.images import Opening, opening_of
from qpnuclei.qupath.model import ImageEntry
from qpnuclei.qupath.pixel_size import project_mpp
from qpnuclei.slides.fingerprint import slide_fingerprint
from qpnuclei.slides.resolution import agree, mpp_text


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
    if opening_of(entry) != Opening(slide.crop_to_bounds, slide.series, slide.apply_icc):
        raise ConflictError(
            f"image {entry.name} is opened in another way than when it was planned: its server or "
            "the arguments of the server changed in the project"
        )
    # A slide that was only moved stays the same.
    if entry.server.uris != image.uris and not _is_slide_of(entry, image):
        raise ConflictError(
            f"image {entry.name} has another slide than when it was planned: "
            f"{entry.path or ', '.join(entry.server.uris)}"
        )
    now, planned = project_mpp(entry), image.project_mpp
    if now != planned and (now is None or not agree(now, image.mpp)):
        raise ConflictError(
            f"the pixel size of image {entry.name} changed in the project since it was planned: "
            f"it is {_text(now)}, and the nuclei were found at {mpp_text(image.mpp)} µm/px"
        )


def _is_slide_of(entry: ImageEntry, image: PlannedImage) -> bool:
    if entry.path is None:
        return False
    try:
        return slide_fingerprint(entry.path) == image.slide.fingerprint
    except SlideError:
        return False


def _text(mpp: tuple[float, float] | None) -> str:
    return "unknown" if mpp is None else f"{mpp_text(mpp)} µm/px"
