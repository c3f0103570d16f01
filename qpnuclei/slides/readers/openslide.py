"""Read slides with OpenSlide.

OpenSlide is used for certain formats, and must recognise the format itself. If it takes a file for
a generic TIFF, for example, the file is refused.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from qpnuclei.errors import SlideError
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.readers.reader import (
    CONVERT,
    SlideReader,
    over_white,
    positive,
    positive_pair,
    reading,
    refuse_series,
)

if TYPE_CHECKING:
    import openslide


@dataclass(frozen=True)
class Format:
    """A slide format.

    Parameters
    ----------
    name : str
        Name in messages.
    vendor : str
        OpenSlide's name of the vendor.
    folder : str
        ``"beside"`` if OpenSlide opens other files in the folder of the slide, ``"below"`` if it
        opens files in a folder with the slide's name; empty for a single file.
    """

    name: str
    vendor: str
    folder: str = ""


#: Formats by suffix. Some files start like an ordinary JPEG or TIFF.
FORMATS = {
    ".mrxs": Format("a MIRAX slide", "mirax", "below"),
    ".vms": Format("a Hamamatsu VMS slide", "hamamatsu", "beside"),
    ".vmu": Format("a Hamamatsu VMU slide", "hamamatsu", "beside"),
    ".svslide": Format("a Sakura slide", "sakura"),
    ".czi": Format("a Zeiss slide", "zeiss"),
    ".dcm": Format("a DICOM slide", "dicom", "beside"),
    ".bif": Format("a Ventana slide", "ventana"),
    ".scn": Format("a Leica SCN slide", "leica"),
}
#: TIFFs with any suffix, recognised by their metadata.
VENTANA = FORMATS[".bif"]
LEICA = FORMATS[".scn"]
PHILIPS = Format("a Philips TIFF", "philips")
TRESTLE = Format("a Trestle slide", "trestle")
APERIO_YCBCR = Format("an Aperio slide in JPEG 2000 YCbCr", "aperio")


def open_format(path: Path, suffix: str, series: int | None = None) -> SlideReader:
    """Open a file of the format with a suffix."""
    return open_with_openslide(path, FORMATS[suffix], series)


def open_with_openslide(path: Path, kind: Format, series: int | None = None) -> SlideReader:
    """Open a file of a known format.

    Raises
    ------
    qpnuclei.errors.SlideError
        If OpenSlide cannot read it or takes it for another format, or it is a fluorescence slide.
    """
    try:
        import openslide
    except ImportError as error:  # does not name the module if the shared library is missing
        raise ImportError(str(error), name="openslide") from error
    refuse_series(path, series)
    with reading(path):
        _check_folder(path, kind)
        vendor = openslide.OpenSlide.detect_format(path)
        try:
            slide = openslide.OpenSlide(path)
        except openslide.OpenSlideError as error:
            raise SlideError(
                f"{path} is {kind.name}, and OpenSlide cannot read it: {error}",
                "copy the slide again, with the files that belong to it, or " + CONVERT,
            ) from error
    try:
        if vendor != kind.vendor:
            raise SlideError(
                f"{path} should be {kind.name}, but OpenSlide takes it for {vendor!r}",
                "copy the slide again, or " + CONVERT,
            )
        if "FLUORESCENCE" in slide.properties.get("mirax.GENERAL.SLIDE_TYPE", "").upper():
            raise SlideError(
                f"{path} is a fluorescence slide", "qpnuclei reads brightfield images (H&E)"
            )
        return OpenSlideReader(slide)
    except BaseException:
        slide.close()
        raise


def level_sizes(path: Path) -> list[tuple[int, int]]:
    """Return (width, height) of each level that OpenSlide has.

    Returns
    -------
    list of (int, int)
        Largest first; empty if OpenSlide is missing, or cannot open the file.
    """
    try:
        import openslide
    except ImportError:  # files that are read without it need not have it
        return []
    try:
        with openslide.OpenSlide(path) as slide:
            return list(slide.level_dimensions)
    except openslide.OpenSlideError:
        return []


def _check_folder(path: Path, kind: Format) -> None:
    """Raise if the folder has a pipe or device: OpenSlide could open it and hang."""
    if not kind.folder:
        return
    folder = path.parent if kind.folder == "beside" else path.with_suffix("")
    if not folder.is_dir():
        return
    with os.scandir(folder) as files:
        for file in files:
            try:
                mode = file.stat().st_mode
            except OSError:
                continue  # a broken link: OpenSlide raises an error if it needs the file
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise SlideError(
                    f"{file.path} is a pipe or a device, in the folder of {path}",
                    "move it out of the folder of the slide",
                )


class OpenSlideReader:
    """A slide read by OpenSlide."""

    #: Width and height of the blocks in which levels with a fractional downsample are read, in px.
    _BLOCK = 1024

    samples = 3
    series = None
    unused_sizes = ()

    def __init__(self, slide: openslide.OpenSlide) -> None:
        self._slide = slide
        properties = slide.properties
        self.sizes = list(slide.level_dimensions)
        self.vendor = properties.get("openslide.vendor")
        self.mpp = positive_pair(
            properties.get("openslide.mpp-x"), properties.get("openslide.mpp-y")
        )
        self.magnification = positive(properties.get("openslide.objective-power"))
        self.bounds = self._bounds()

    @property
    def icc_profile(self) -> bytes | None:
        """The ICC profile in the file; None if there is none."""
        import openslide
        from PIL import ImageCms

        try:
            profile = self._slide.color_profile
        except (ImageCms.PyCMSError, openslide.OpenSlideError):
            return b""  # there is a profile, but it is broken
        return None if profile is None else profile.tobytes()

    def _bounds(self) -> tuple[int, int, int, int] | None:
        try:
            x, y, width, height = (
                int(self._slide.properties[f"openslide.bounds-{part}"])
                for part in ("x", "y", "width", "height")
            )
        except (KeyError, ValueError):
            return None
        return x, y, width, height

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """Return a region of whole level pixels; areas that were not scanned are white."""
        downsample = self._slide.level_downsamples[level]
        if downsample == round(downsample):
            return self._read_at(level, x, y, width, height)
        # OpenSlide's locations are level-0 integers, so a region may be shifted by half a level-0
        # pixel. Reading fixed blocks makes the shift independent of the region.
        step = self._BLOCK
        x0, y0 = x // step * step, y // step * step
        level_width, level_height = self.sizes[level]
        rows = []
        for by in range(y0, y + height, step):
            block_height = min(step, level_height - by)
            blocks = [
                self._read_at(level, bx, by, min(step, level_width - bx), block_height)
                for bx in range(x0, x + width, step)
            ]
            rows.append(np.concatenate(blocks, axis=1))
        region = np.concatenate(rows, axis=0)
        return region[y - y0 : y - y0 + height, x - x0 : x - x0 + width]

    def _read_at(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        import openslide

        downsample = self._slide.level_downsamples[level]
        location = round(x * downsample), round(y * downsample)
        try:
            pixels = np.asarray(self._slide.read_region(location, level, (width, height)))
        except openslide.OpenSlideError as error:
            raise OSError(str(error)) from error
        return over_white(pixels)

    def close(self) -> None:
        """Close the slide."""
        self._slide.close()
