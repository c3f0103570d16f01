"""The readers of slide files, one module per library, and the choice between them.

=============  ==================================================================================
module         reads
=============  ==================================================================================
`tiff`         TIFF, BigTIFF, OME-TIFF, ImageJ TIFF, Aperio SVS and Hamamatsu NDPI, with tifffile
`tiffslide`    the metadata of Hamamatsu NDPI, whose pixels `tiff` reads
`openslide`    MIRAX, DICOM, Ventana BIF, Hamamatsu VMS, Leica SCN, Philips, Trestle, Sakura,
               Zeiss CZI, and Aperio JPEG 2000 in YCbCr, with OpenSlide
`plain`        PNG, JPEG and BMP, with Pillow
`memory`       arrays
=============  ==================================================================================

The content of a file determines its format, and the format determines the reader. If that reader
refuses the file, no other one is tried: it might open the file as a wrong image.

To add a reader, write a module with a class that implements `reader.SlideReader`, and add its files
to `open_reader`. The tests in `tests/slides/readers` show the requirements; docs/formats.md lists
the supported formats.
"""

from __future__ import annotations

import stat
from pathlib import Path

from qpnuclei.errors import NotFoundError, SlideError
from qpnuclei.slides.readers import openslide, plain, tiff
from qpnuclei.slides.readers.reader import CONVERT, SlideReader, needing_packages, reading
from qpnuclei.system.files import unreadable

__all__ = ["UNSUPPORTED", "check_no_zarr", "check_regular_file", "is_zarr", "open_reader"]

#: Files of which a folder has at least one if it is a Zarr image.
_OF_ZARR = ("zarr.json", ".zgroup", ".zarray", ".zattrs")
#: Unsupported formats by suffix. Some files start like a TIFF, or contain an overview as TIFF.
UNSUPPORTED = {
    ".vsi": "an Olympus VSI: the file itself contains only an overview, and the slide is in the "
    ".ets files of the folder beside it",
    ".ets": "a part of an Olympus VSI slide",
    ".isyntax": "a Philips iSyntax slide",
    ".kfb": "a KFBio slide",
    ".sdpc": "a Sdpc slide",
    ".tmap": "a TMAP slide",
    ".mds": "a Motic slide",
    ".zvi": "a Zeiss ZVI image",
    ".lif": "a Leica LIF image",
    ".nd2": "a Nikon ND2 image",
    ".ndpis": "a list of Hamamatsu fluorescence images",
}


def open_reader(path: Path, series: int | None = None) -> SlideReader:
    """Open a file with the reader of its format.

    Parameters
    ----------
    path : Path
    series : int, optional
        Index of the image in an OME-TIFF; by default the first one, which must not be a label or an
        overview.

    Raises
    ------
    qpnuclei.errors.SlideError
        If the format is unknown, or its reader refuses the file.
    qpnuclei.errors.NotFoundError
        If there is no such file.
    """
    check_regular_file(path)
    suffix = path.suffix.lower()
    if suffix in UNSUPPORTED:
        raise SlideError(f"{path} is {UNSUPPORTED[suffix]}, which is not supported", CONVERT)
    with reading(path), path.open("rb") as file:
        head = file.read(132)
    if not head:
        raise SlideError(f"{path} is empty (0 bytes)", "copy the slide again")
    with needing_packages(path):
        if suffix in openslide.FORMATS or head[128:] == b"DICM":
            return openslide.open_format(path, ".dcm" if head[128:] == b"DICM" else suffix, series)
        if head.startswith(tiff.SIGNATURES):
            return tiff.open_tiff(path, series)
        if head.startswith(plain.SIGNATURES):
            return plain.open_plain(path, series)
    raise SlideError(f"{path} is not a known image format (it begins with {head[:16]!r})", CONVERT)


def check_no_zarr(folder: Path) -> None:
    """Refuse a folder that is a Zarr image, a format without a reader.

    Raises
    ------
    qpnuclei.errors.SlideError
    """
    if is_zarr(folder):
        raise SlideError(f"{folder} is a Zarr image, which is not supported", CONVERT)


def is_zarr(path: Path) -> bool:
    """Tell whether a path is that of the folder of a Zarr image."""
    return path.suffix.lower() == ".zarr" and any((path / name).exists() for name in _OF_ZARR)


def check_regular_file(path: Path) -> None:
    """Refuse folders, pipes and devices: opening a pipe or device may block forever.

    Raises
    ------
    qpnuclei.errors.NotFoundError
        If there is no such file.
    qpnuclei.errors.SlideError
        If it is not a regular file.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such slide", "check the path") from error
    except OSError as error:
        raise unreadable(path, error, SlideError, "check the path") from error
    if stat.S_ISDIR(mode):
        check_no_zarr(path)
        raise SlideError(f"{path} is a folder, not a slide", "name the slide file itself")
    if not stat.S_ISREG(mode):
        raise SlideError(
            f"{path} is not a regular file but a pipe or a device", "name the slide file itself"
        )
