"""Read TIFF, BigTIFF, OME-TIFF, ImageJ TIFF, Aperio SVS and Hamamatsu NDPI with tifffile."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile

from qpnuclei.errors import SlideError
from qpnuclei.slides.pixels import RGB
from qpnuclei.slides.readers import openslide
from qpnuclei.slides.readers.levels import matching_levels
from qpnuclei.slides.readers.memory import ArrayReader
from qpnuclei.slides.readers.reader import CONVERT_TO_8_BIT, SlideReader, reading, warn_once
from qpnuclei.slides.readers.tiff_colour import conversion_to_rgb, enum_name
from qpnuclei.slides.readers.tiff_level import MAX_DECODED_PIXELS, TiffLevel
from qpnuclei.slides.readers.tiff_metadata import (
    OmeImage,
    OmeXml,
    has_ome_xml,
    icc_profile,
    read_metadata,
)

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_log = logging.getLogger(__name__)

_APERIO_YCBCR = 33003
_PALETTE = 3
#: Bits of NewSubfileType.
_REDUCED, _MASK = 1, 4
#: tifffile's axes of supported images: grey, interleaved colours, separate colour planes (two).
_KNOWN_AXES = ("YX", "YXS", "SYX", "CYX")
#: Names of series that show the glass rather than the tissue.
_APERIO_LABEL = re.compile(r"\n(label|macro) ")
_SAVE_SEPARATELY = "save that series as a separate file (QuPath: Export images > OME TIFF)"
_NOT_THE_SLIDE = ("label", "macro", "overview", "thumbnail", "slide preview")


def open_tiff(path: Path, series: int | None = None) -> SlideReader:
    """Open a TIFF, with OpenSlide if it is in one of OpenSlide's vendor formats.

    Raises
    ------
    qpnuclei.errors.SlideError
        If it is damaged, or not an 8-bit RGB image.
    """
    with reading(path, "is a damaged TIFF"):
        tiff, ome = _open_file(path)
        try:
            kind = _format_of_openslide(tiff)
            if kind is None:
                return _open_series(path, tiff, ome, series)
        except BaseException:
            tiff.close()
            raise
        tiff.close()
    return openslide.open_with_openslide(path, kind, series)


def _open_file(path: Path) -> tuple[tifffile.TiffFile, OmeXml | None]:
    """Open the file, and parse its OME-XML if it has valid OME-XML."""
    # Otherwise tifffile would open any further files that the OME-XML names.
    tiff = tifffile.TiffFile(path, _multifile=False)
    try:
        if not has_ome_xml(tiff):
            return tiff, None
        try:
            ome = OmeXml(tiff.pages.first.description)
        except SyntaxError as error:
            warn_once(_log, f"{path}: its OME-XML is damaged and not used ({error})")
            ome = None
    except BaseException:
        tiff.close()
        raise
    if tiff.is_ome != (ome is not None):
        tiff.close()
        tiff = tifffile.TiffFile(path, _multifile=False, is_ome=ome is not None)
    return tiff, ome


def _format_of_openslide(tiff: tifffile.TiffFile) -> openslide.Format | None:
    page = tiff.pages.first
    if tiff.is_bif:
        return openslide.VENTANA
    if tiff.is_scn:
        return openslide.LEICA
    if tiff.is_philips:
        return openslide.PHILIPS
    if page.software.startswith("MedScan"):
        return openslide.TRESTLE
    if page.compression == _APERIO_YCBCR and page.description.startswith("Aperio"):
        return openslide.APERIO_YCBCR
    return None


def _open_series(
    path: Path, tiff: tifffile.TiffFile, ome: OmeXml | None, number: int | None
) -> SlideReader:
    series, described, chosen = _chosen_series(path, tiff, ome, number)
    _check_complete(path, series.levels)
    _warn_of_other_images(path, tiff, series)
    images = [_level(path, level, described) for level in series.levels]
    is_damaged = ome is None and has_ome_xml(tiff)
    metadata = read_metadata(path, tiff, series.keyframe, described, is_damaged=is_damaged)
    width, height = images[0].size
    samples = series.size // (width * height)
    is_small = width * height <= MAX_DECODED_PIXELS
    if len(images) == 1 and not series.keyframe.is_tiled and is_small:
        # Strips can be as wide as the image, so it is decoded once and kept.
        rgb = images[0].read(0, 0, width, height)
        profile = icc_profile(series.keyframe)
        tiff.close()
        return ArrayReader(
            rgb,
            vendor=metadata.vendor,
            mpp=metadata.mpp,
            magnification=metadata.magnification,
            icc_profile=profile,
            series=chosen,
            samples=samples,
        )
    levels = matching_levels(path, images)
    reader = TiffReader(tiff, levels)
    reader.series, reader.samples = chosen, samples
    reader.unused_sizes = [image.size for image in images if image not in levels]
    reader.vendor, reader.mpp = metadata.vendor, metadata.mpp
    reader.magnification = metadata.magnification
    reader.icc_profile = icc_profile(series.keyframe)
    return reader


def _chosen_series(
    path: Path, tiff: tifffile.TiffFile, ome: OmeXml | None, number: int | None
) -> tuple[tifffile.TiffPageSeries, OmeImage | None, int | None]:
    """Return the requested image, what OME-XML says about it, and its number in an OME-TIFF.

    By default, this is the first image, if that is the slide. The images of an OME-TIFF are
    numbered as in Bio-Formats. In other files, tifffile and Bio-Formats may number them
    differently.
    """
    if ome is not None and ome.has_several_files:
        raise SlideError(
            f"{path} is a part of an OME-TIFF in several files", "export it as one OME-TIFF"
        )
    every = [series for series in tiff.series if series.levels]
    if not every:
        raise SlideError(f"{path} is a TIFF without an image", "copy the slide again")
    if ome is None or every[0].kind != "ome":
        if number:
            raise SlideError(
                f"series {number} of {path} cannot be read: only OME-TIFFs have numbered series",
                _SAVE_SEPARATELY,
            )
        if number is None:
            _check_first_is_the_slide(path, tiff, every, [])
        images = [image for image in ome.images if image.pages] or ome.images if ome else []
        if images and images[0].size != _size(every[0]):
            raise _contradiction(path, every, images)
        return every[0], images[0] if images else None, None
    described = _described(path, every, ome)
    if number is None:
        first = ome.images[described[0]]
        if any(image.pages for image in ome.images[: described[0]]):
            raise _contradiction(path, every, ome.images)
        _check_first_is_the_slide(path, tiff, every, described)
        return every[0], first, described[0]
    if number not in described:
        count = len(ome.images)
        reason = f"it has {count}" if number >= count else "the file has no pixels of it"
        raise SlideError(f"series {number} of {path} cannot be read: {reason}", _SAVE_SEPARATELY)
    return every[described.index(number)], ome.images[number], number


def _described(path: Path, every: Sequence[tifffile.TiffPageSeries], ome: OmeXml) -> list[int]:
    """Return the number of the image in OME-XML for each image that tifffile reads.

    tifffile leaves out images without pixels, and others that it cannot read.
    """
    numbers = []
    rest = iter(range(len(ome.images)))
    for series in every:
        pages = {page.index for page in series.pages if page is not None}
        for number in rest:
            image = ome.images[number]
            if image.size == _size(series) and not image.pages.isdisjoint(pages):
                numbers.append(number)
                break
        else:
            raise _contradiction(path, every, ome.images)
    return numbers


def _size(series: tifffile.TiffPageSeries) -> tuple[int, int]:
    return series.keyframe.imagewidth, series.keyframe.imagelength


def _contradiction(
    path: Path, every: Sequence[tifffile.TiffPageSeries], images: Sequence[OmeImage]
) -> SlideError:
    described, there = (
        ", ".join(f"{width}x{height} px" for width, height in sizes)
        for sizes in ([image.size for image in images if image.pages], map(_size, every))
    )
    return SlideError(
        f"the OME-XML of {path} contradicts the file: it describes {described or 'no pixels'}, but "
        f"the file has {there}",
        "export the slide again; its pixel size would be a guess",
    )


def _check_first_is_the_slide(
    path: Path,
    tiff: tifffile.TiffFile,
    series: Sequence[tifffile.TiffPageSeries],
    numbers: Sequence[int],
) -> None:
    """Refuse a file whose first image is the label, or smaller than another one.

    `numbers` are those of OME-XML; without any, the images are numbered in order.
    """
    areas = [s.keyframe.imagewidth * s.keyframe.imagelength for s in series]
    # An overview can be larger than a cropped slide.
    largest = 0 if _stores_slide_first(tiff) else areas.index(max(areas))
    name = series[0].name or ""
    if _stores_slide_first(tiff) and (label := _APERIO_LABEL.search(tiff.pages.first.description)):
        name = label[1]
    is_label = len(series) > 1 and _names_no_slide(name)
    if not largest and not is_label:
        return
    other = largest or 1
    first, second = (
        f"{width}x{height} px" for width, height in (_size(series[0]), _size(series[other]))
    )
    raise SlideError(
        f"{path} has several images, and the first ({first}) is a label, an overview or a part: "
        f"series {numbers[other] if numbers else other} has {second}",
        "import it into QuPath and choose the image there, or save that as a separate file",
    )


def _stores_slide_first(tiff: tifffile.TiffFile) -> bool:
    """Return whether its vendor stores the slide first, then overview and label."""
    return bool(tiff.pages.first.description.startswith("Aperio") or tiff.is_ndpi)


def _names_no_slide(name: str) -> bool:
    return name.strip().lower().removesuffix(" image") in _NOT_THE_SLIDE


def _warn_of_other_images(
    path: Path, tiff: tifffile.TiffFile, used: tifffile.TiffPageSeries
) -> None:
    """Warn of images beside the slide, except labels, overviews, reduced images and masks.

    In OME-TIFF, a project chooses the image.
    """
    if used.kind == "ome" or _stores_slide_first(tiff):
        return
    others = [
        series
        for series in tiff.series
        if series.levels
        and series is not used
        and not _names_no_slide(series.name or "")
        and not series.keyframe.subfiletype & (_REDUCED | _MASK)
    ]
    if others:
        sizes = ", ".join(f"{width} x {height} px" for width, height in map(_size, others))
        warn_once(_log, f"{path}: only its first image is used; it has more: {sizes}")


def _level(path: Path, level: tifffile.TiffPageSeries, described: OmeImage | None) -> TiffLevel:
    """Check that a level is a brightfield image, and choose its conversion to RGB."""
    page = level.keyframe
    pages = [page for page in level.pages if page is not None]
    # Ignore axes of length 1.
    shape = [(axis, size) for axis, size in zip(level.axes, level.shape, strict=True) if size > 1]
    long_axes = "".join(axis for axis, _ in shape)
    axes = "".join(axis for axis in level.axes if axis in "YX" or axis in long_axes)
    if page.dtype != np.uint8 or (page.bitspersample != 8 and page.photometric != _PALETTE):
        raise SlideError(
            f"{path} has {page.dtype} pixels ({page.bitspersample} bit), not 8-bit RGB",
            CONVERT_TO_8_BIT,
        )
    planes = len(pages) if axes == "CYX" else page.samplesperpixel
    whole = int(np.prod([size for _, size in shape])) == len(pages) * int(np.prod(page.shape))
    apart = axes == "SYX" or (axes == "CYX" and len(pages) == 3)
    if axes not in _KNOWN_AXES or not whole or not (apart or len(pages) == 1):
        raise SlideError(
            f"{path} is not an RGB image: {enum_name(tifffile.PHOTOMETRIC, page.photometric)} with "
            f"axes {axes} (shape {tuple(size for _, size in shape)})",
            "qpnuclei reads brightfield images, not fluorescence or stacks",
        )
    named_rgb = axes == "CYX" and _planes_are_red_green_blue(page, described)
    convert = conversion_to_rgb(path, page, planes, apart=apart, named_rgb=named_rgb)
    if planes == 1 and described is not None and described.is_fluorescence:
        raise SlideError(
            f"{path} is a fluorescence image", "qpnuclei reads brightfield images (H&E)"
        )
    if planes == 1 and page.photometric != _PALETTE:
        warn_once(_log, f"{path} is grey: haematoxylin and eosin cannot be distinguished")
    if not _has_decoder(page.compression):
        raise SlideError(
            f"{path} is compressed as {enum_name(tifffile.COMPRESSION, page.compression)}, and the "
            "package imagecodecs, which decodes it, is missing or incomplete",
            "pip install --force-reinstall imagecodecs",
        )
    return TiffLevel(path, pages, planes if apart else 1, convert)


def _has_decoder(compression: int) -> bool:
    """Return whether the decoder is installed; imagecodecs may lack some of its decoders."""
    try:
        tifffile.TIFF.DECOMPRESSORS[compression](b"")
    except ImportError:
        return False
    except KeyError as error:
        return error.__cause__ is None  # otherwise tifffile found no function of imagecodecs
    except Exception:  # noqa: BLE001 - it ran: nothing is no image
        return True
    return True


def _planes_are_red_green_blue(page: Any, described: OmeImage | None) -> bool:
    """Tell whether OME's channel names or ImageJ's slice labels are red, green and blue."""
    names: Sequence[object] = ()
    if described is not None:
        names = described.channel_names
    elif page.parent.is_imagej:
        names = (page.parent.imagej_metadata or {}).get("Labels") or ()
    return [str(name).strip().lower() for name in names] == ["red", "green", "blue"]


def _check_complete(path: Path, levels: Sequence[tifffile.TiffPageSeries]) -> None:
    """Raise for a truncated file at once, rather than in the middle of a run."""
    needed = 0
    for level in levels:
        for page in level.pages:
            if page is not None and len(page.dataoffsets):
                ends = np.asarray(page.dataoffsets, np.int64) + np.asarray(
                    page.databytecounts, np.int64
                )
                needed = max(needed, int(ends.max()))
    size = path.stat().st_size
    if needed > size:
        raise SlideError(
            f"{path} is truncated: it has {size} bytes, but its tiles need {needed}",
            "copy the slide again",
        )


class TiffReader:
    """A tiled or pyramidal TIFF.

    Tiles are decoded by tifffile rather than TiffSlide. ``TiffSlide.read_region`` divides a level-0
    location by the mean downsample and truncates it (a shift of up to a pixel), and fills missing
    tiles with black.
    """

    bounds = None

    def __init__(self, tiff: tifffile.TiffFile, levels: Sequence[TiffLevel]) -> None:
        self._tiff = tiff
        self._levels = levels
        self.sizes = [level.size for level in levels]
        self.vendor: str | None = None
        self.mpp: tuple[float, float] | None = None
        self.magnification: float | None = None
        self.icc_profile: bytes | None = None
        self.series: int | None = None
        self.samples = 3
        self.unused_sizes: Sequence[tuple[int, int]] = ()

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """Return a region of whole level pixels; tiles that the file leaves out are white."""
        return self._levels[level].read(x, y, width, height)

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
