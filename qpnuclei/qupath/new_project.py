"""New QuPath projects from slide files: what ``qpnuclei project create`` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from qpnuclei.errors import MppError
from qpnuclei.qupath.create import THUMBNAIL_SIZE, NewImage, create_project
from qpnuclei.qupath.model import Project
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.resolution import resolve_mpp
from qpnuclei.slides.slide import open_slide


def create_from_slides(
    directory: Path, slides: Sequence[Path], mpp: float | None = None
) -> Project:
    """Make a project of Brightfield (H&E) images in a new folder; QuPath 0.4 to 0.7 open it.

    A slide without a pixel size is added uncalibrated, as QuPath would.

    Parameters
    ----------
    directory : Path
        New, or an empty folder.
    slides : sequence of Path
    mpp : float, optional
        Pixel size in µm/px of all the slides; by default what each says.

    Raises
    ------
    NotFoundError, SlideError
        If a slide is missing or cannot be read.
    MppError
        If `mpp` is absurd.
    UsageError
        If the folder holds anything.
    SaveError
        If the project cannot be written; nothing is left behind.
    """
    return create_project(directory, [_describe(path, mpp) for path in slides])


def _describe(path: Path, mpp: float | None) -> NewImage:
    # QuPath crops to the bounds of the slide where OpenSlide knows them.
    with open_slide(path, crop_to_bounds=True) as slide:
        calibration = PixelCalibration()
        try:
            calibration = PixelCalibration(*resolve_mpp(mpp, None, slide.mpp, str(path))[0])
        except MppError:
            if mpp is not None:
                raise
        return NewImage(
            path=path.absolute(),
            width=slide.width,
            height=slide.height,
            thumbnail=slide.thumbnail(*THUMBNAIL_SIZE),
            calibration=calibration,
            downsamples=[level.downsample for level in slide.levels],
        )
