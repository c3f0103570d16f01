"""Pixels as they lie in the file: one class per way of reading them.

A source gives whole level pixels, 8-bit RGB, strictly inside of a level; everything else
(working grids, padding, cropping) is done once, in `qpnuclei.slides.slide`.
"""

from __future__ import annotations

import itertools
import logging
import math
import re
import struct
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
import PIL
import tifffile
import tiffslide
from PIL import Image

from qpnuclei.errors import SlideError

RGB = npt.NDArray[np.uint8]

_log = logging.getLogger(__name__)

#: What the file libraries raise on files that are damaged or not what their name says.
_UNREADABLE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RuntimeError,  # imagecodecs' errors, and NotImplementedError
    SyntaxError,  # Pillow on broken PNG; ElementTree.ParseError
    EOFError,
    MemoryError,  # of a damaged size
    struct.error,
    tifffile.TiffFileError,  # no ValueError in older versions
)

#: Formats that only OpenSlide reads, by suffix; some of them begin like an ordinary JPEG.
_OPENSLIDE_SUFFIXES = {
    ".mrxs": "MIRAX",
    ".vms": "Hamamatsu VMS",
    ".vmu": "Hamamatsu VMU",
    ".svslide": "Sakura",
    ".czi": "Zeiss",
    ".dcm": "DICOM",
    ".bif": "Ventana",
}
_APERIO_MPP = re.compile(r"\|\s*MPP\s*=\s*(\d*\.?\d+)")
_TIFF_SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_PLAIN_FORMATS = ("PNG", "JPEG", "BMP")
_CONVERT = "convert it to a tiled, pyramidal 8-bit RGB TIFF (QuPath: Export images > OME TIFF)"
_INSTALL_OPENSLIDE = 'pip install "qpnuclei[openslide]"'

#: Untiled TIFFs up to this size are decoded once and kept: their strips can span the image.
_MAX_WHOLE_PIXELS = 200_000_000
#: Decoded tiles of a page that are kept.
_KEPT_BYTES = 64 * 2**20


class Source(Protocol):
    """A file opened for reading."""

    @property
    def vendor(self) -> str | None:
        """Maker of the scanner, as the library calls it."""

    @property
    def mpp(self) -> tuple[float, float] | None:
        """µm/px in x and y."""

    @property
    def sizes(self) -> Sequence[tuple[int, int]]:
        """(width, height) per level, largest first."""

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """x, y, width, height of the scanned part of level 0, where the file has all four."""

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        """Return a region of whole level pixels that lies inside of the level."""

    def close(self) -> None:
        """Close the file."""


def open_source(path: Path) -> Source:
    """Open a file with the first library that reads its format.

    Raises
    ------
    qpnuclei.errors.SlideError
        If none does; the message says what the file is.
    """
    only_openslide = _OPENSLIDE_SUFFIXES.get(path.suffix.lower())
    if only_openslide is not None:
        return _open_with_openslide(path, f"a {only_openslide} slide")
    with reading(path):
        with path.open("rb") as file:
            head = file.read(16)
        if not head:
            raise SlideError(f"{path} is empty (0 bytes)", "copy the slide again")
    if head.startswith(_TIFF_SIGNATURES):
        return _open_tiff(path)
    with reading(path, "is damaged"):
        plain = _open_plain(path)
    if plain is not None:
        return plain
    return _open_with_openslide(path, f"no image (it begins with {head!r})")


@contextmanager
def reading(path: Path, trouble: str = "cannot be read", hint: str = "") -> Iterator[None]:
    """Turn what the file libraries raise into one line that names the file."""
    try:
        yield
    except SlideError:
        raise
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise SlideError(
            f"{path} {trouble}: {reason[0]}", hint or "copy the slide again, or " + _CONVERT
        ) from error


# --- TIFF --------------------------------------------------------------------------------------


def _open_tiff(path: Path) -> Source:
    try:
        with reading(path, "is a damaged TIFF"):
            source = _tiff_source(path)
    except SlideError as error:
        fallback = _openslide_or_none(path)
        if fallback is None:
            raise
        _log.warning("%s; reading it with OpenSlide", error.what)
        return fallback
    return source


def _tiff_source(path: Path) -> Source:
    slide = tiffslide.TiffSlide(path)
    try:
        tiff = slide.ts_tifffile
        if tiff.is_bif:
            raise SlideError(
                f"{path} is a Ventana slide, which needs OpenSlide", _INSTALL_OPENSLIDE
            )
        if not tiff.series or not tiff.series[0].levels:
            raise SlideError(f"{path} is a TIFF without an image", "copy the slide again")
        series = tiff.series[0]
        _check_complete(path, series.levels)
        page = series.levels[0].keyframe
        _check_colour(path, page, series.axes)
        planar = series.axes == "SYX"
        whole = (
            len(series.levels) == 1
            and not page.is_tiled
            and page.imagewidth * page.imagelength <= _MAX_WHOLE_PIXELS
        )
        if planar and not whole:
            raise SlideError(f"{path} is a TIFF with separate colour planes", _CONVERT)
        if not whole:
            return _TiffSource(slide)
        pixels = series.asarray()
        rgb = _to_rgb(np.moveaxis(pixels, 0, -1) if planar else pixels, page)
        properties = {} if planar else _properties(slide)
        source = ArraySource(rgb, properties.get("tiffslide.vendor"), _tiff_mpp(tiff, properties))
    except BaseException:
        slide.close()
        raise
    slide.close()
    return source


def _check_complete(path: Path, levels: Sequence[tifffile.TiffPageSeries]) -> None:
    """Refuse a truncated file here rather than in the middle of a run."""
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
            f"{path} is truncated: it holds {size} bytes, its tiles need {needed}",
            "copy the slide again",
        )


def _check_colour(path: Path, page: tifffile.TiffPage, axes: str) -> None:
    """Refuse what is not an 8-bit brightfield image, saying what it is."""
    photometric = tifffile.PHOTOMETRIC(page.photometric)
    if page.dtype != np.uint8:
        raise SlideError(
            f"{path} has {page.dtype} pixels ({page.bitspersample} bit), not 8-bit RGB",
            "qpnuclei reads brightfield images; export it as 8-bit RGB",
        )
    grey = axes == "YX" and photometric.name in ("MINISBLACK", "MINISWHITE", "PALETTE")
    colour = axes in ("YXS", "SYX") and photometric.name in ("RGB", "YCBCR")
    if not (grey or (colour and page.samplesperpixel in (3, 4))):
        raise SlideError(
            f"{path} is not an RGB image: {photometric.name} with axes {axes} "
            f"(shape {tuple(page.shape)} per plane)",
            "qpnuclei reads brightfield images, not fluorescence, stacks or CMYK",
        )


def _to_rgb(pixels: npt.NDArray[Any], page: tifffile.TiffPage) -> RGB:
    """Bring decoded pixels to (height, width, 3): grey, palette and alpha over white."""
    if pixels.ndim == 2 or pixels.shape[2] == 1:
        pixels = pixels.reshape(pixels.shape[:2])
        if page.photometric == tifffile.PHOTOMETRIC.PALETTE:
            palette = np.asarray(np.asarray(page.colormap).T >> 8, np.uint8)
            return np.asarray(palette[pixels])
        if page.photometric == tifffile.PHOTOMETRIC.MINISWHITE:
            pixels = 255 - pixels
        return np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[2] == 4:
        if any(sample in (1, 2) for sample in page.extrasamples):
            return over_white(pixels)
        pixels = pixels[:, :, :3]
    return np.ascontiguousarray(pixels)


def over_white(rgba: npt.NDArray[np.uint8]) -> RGB:
    """Lay (height, width, 4) pixels with (not premultiplied) alpha over white."""
    alpha = rgba[:, :, 3:].astype(np.uint16)
    if alpha.min(initial=255) == 255:
        return np.ascontiguousarray(rgba[:, :, :3])
    mixed = rgba[:, :, :3] * alpha + 255 * (255 - alpha)
    return ((mixed + 127) // 255).astype(np.uint8)


def _tiff_mpp(tiff: tifffile.TiffFile, properties: Mapping[str, Any]) -> tuple[float, float] | None:
    return _micrometre_metadata(tiff) or _mpp(properties, "tiffslide")


def _properties(slide: tiffslide.TiffSlide) -> dict[str, Any]:
    with warnings.catch_warnings():
        # NDPI is "only partially implemented": what is missing is not used here.
        warnings.filterwarnings("ignore", "hamamatsu-format", UserWarning)
        return slide.properties


def _mpp(properties: Mapping[str, Any], prefix: str) -> tuple[float, float] | None:
    """µm/px from a property mapping; None unless both are positive numbers."""
    try:
        mpp = float(properties[f"{prefix}.mpp-x"]), float(properties[f"{prefix}.mpp-y"])
    except (KeyError, TypeError, ValueError):
        return None
    return mpp if all(math.isfinite(v) and v > 0 for v in mpp) else None


def _micrometre_metadata(tiff: tifffile.TiffFile) -> tuple[float, float] | None:
    """µm/px of OME-XML, Aperio or ImageJ metadata, which are better than resolution tags."""
    if tiff.is_ome and tiff.ome_metadata:
        pixels = ElementTree.fromstring(tiff.ome_metadata).find(".//{*}Image/{*}Pixels")
        if pixels is not None:
            factors = {"µm": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}
            factor = [factors.get(pixels.get(f"PhysicalSize{a}Unit", "µm"), 0.0) for a in "XY"]
            size = [float(pixels.get(f"PhysicalSize{a}", 0)) for a in "XY"]
            if min(factor) > 0 and min(size) > 0:
                return size[0] * factor[0], size[1] * factor[1]
    description = tiff.pages.first.description
    if description.startswith("Aperio") and (match := _APERIO_MPP.search(description)):
        # Also where tifffile does not take the file for an SVS, because it is not tiled.
        return float(match[1]), float(match[1])
    if tiff.is_imagej and tiff.imagej_metadata:
        unit = str(tiff.imagej_metadata.get("unit", "")).replace("\\u00B5", "µ")
        if unit in ("micron", "um", "µm"):
            # ImageJ keeps pixels per unit in the resolution tags.
            tags = tiff.pages.first.tags
            ratios = [tags[name].value for name in ("XResolution", "YResolution")]
            if all(numerator > 0 for numerator, _ in ratios):
                return ratios[0][1] / ratios[0][0], ratios[1][1] / ratios[1][0]
    return None


class _TiffSource:
    """A tiled or pyramidal TIFF.

    Tiles are decoded by tifffile. ``TiffSlide.read_region`` would divide a level-0 location by
    the mean downsample and truncate (a shift of up to a pixel), and fill with black what the file
    leaves out.
    """

    def __init__(self, slide: tiffslide.TiffSlide) -> None:
        self._slide = slide
        tiff = slide.ts_tifffile
        properties = _properties(slide)
        self.sizes = [(int(w), int(h)) for w, h in slide.level_dimensions]
        self.vendor = properties["tiffslide.vendor"]
        self.mpp = _tiff_mpp(tiff, properties)
        self.bounds = _bounds(properties, "tiffslide")
        # Leica slides consist of several scanned areas, with nothing between them.
        composition = properties.get("tiffslide.series-composition")
        areas = composition["located_series"] if composition else {0: [(0, 0)] * len(self.sizes)}
        #: Per level: (x, y, page) of each area.
        self._areas: list[list[tuple[int, int, _Page]]] = [
            [
                (
                    int(offsets[level][1]),
                    int(offsets[level][0]),
                    _Page(tiff.series[i].levels[level][0]),
                )
                for i, offsets in areas.items()
            ]
            for level in range(len(self.sizes))
        ]

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        region = np.full((height, width, 3), 255, np.uint8)
        for area_x, area_y, page in self._areas[level]:
            page.read_into(region, x - area_x, y - area_y)
        return region

    def close(self) -> None:
        self._slide.close()


class _Page:
    """The tiles (or strips) of a TIFF page.

    Those decoded last are kept: the regions that are read one after the other overlap.
    """

    def __init__(self, page: Any) -> None:
        keyframe = page.keyframe
        self._page = page
        self._size = keyframe.imagewidth, keyframe.imagelength
        self._tile_width = keyframe.tilewidth if keyframe.is_tiled else keyframe.imagewidth
        self._tile_height = keyframe.tilelength if keyframe.is_tiled else keyframe.rowsperstrip
        tables = {"jpegtables": page.jpegtables, "jpegheader": keyframe.jpegheader}
        self._tables = {name: table for name, table in tables.items() if table is not None}
        kept = _KEPT_BYTES // (3 * self._tile_width * self._tile_height)
        self._tile = lru_cache(kept)(self._decoded)

    def read_into(self, region: RGB, x: int, y: int) -> None:
        """Write what lies in the region beginning at (x, y)."""
        right = min(x + region.shape[1], self._size[0])
        bottom = min(y + region.shape[0], self._size[1])
        columns = range(max(x, 0) // self._tile_width, -(-right // self._tile_width))
        rows = range(max(y, 0) // self._tile_height, -(-bottom // self._tile_height))
        for row, column in itertools.product(rows, columns):
            pixels = self._tile(row, column)
            if pixels is None:
                continue
            left, top = column * self._tile_width - x, row * self._tile_height - y
            onto = region[max(top, 0) : top + len(pixels), max(left, 0) : left + pixels.shape[1]]
            from_y, from_x = max(-top, 0), max(-left, 0)
            onto[:] = pixels[from_y : from_y + onto.shape[0], from_x : from_x + onto.shape[1]]

    def _decoded(self, row: int, column: int) -> RGB | None:
        """Return the pixels of a tile; None if it is left out, which means background."""
        width, height = self._size
        index = row * -(-width // self._tile_width) + column
        offset, size = self._page.dataoffsets[index], self._page.databytecounts[index]
        if not (offset and size):
            return None
        file = self._page.parent.filehandle
        file.seek(offset)
        data = file.read(size)
        keyframe = self._page.keyframe
        tile = keyframe.decode(data, index, **self._tables)[0]
        pixels = _to_rgb(tile.reshape(*tile.shape[1:3], -1), keyframe)
        # Tiles at the right and bottom are filled up with anything.
        return pixels[: height - row * self._tile_height, : width - column * self._tile_width]


# --- PNG, JPEG, BMP ----------------------------------------------------------------------------


def _open_plain(path: Path) -> Source | None:
    try:
        with warnings.catch_warnings():
            # Slides are large; only Pillow's hard limit is kept.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=_PLAIN_FORMATS)
    except PIL.UnidentifiedImageError:
        return None
    except Image.DecompressionBombError as error:
        raise SlideError(f"{path} is too large for an untiled image: {error}", _CONVERT) from error
    with image:
        if image.mode in ("I", "F") or image.mode.startswith("I;"):
            raise SlideError(
                f"{path} has {image.mode} pixels (16 or 32 bit), not 8-bit RGB",
                "qpnuclei reads brightfield images; export it as 8-bit RGB",
            )
        if image.mode == "CMYK":
            raise SlideError(f"{path} is a CMYK image, not RGB", "export it as 8-bit RGB")
        transparent = image.has_transparency_data
        pixels = np.asarray(image.convert("RGBA" if transparent else "RGB"))
        # A printing resolution (dpi) in PNG or JPEG says nothing about the tissue.
        return ArraySource(over_white(pixels) if transparent else pixels, None, None)


class ArraySource:
    """An image that is decoded whole and kept in memory."""

    def __init__(self, rgb: RGB, vendor: str | None, mpp: tuple[float, float] | None) -> None:
        self._rgb = rgb
        self.vendor = vendor
        self.mpp = mpp
        self.sizes = [(rgb.shape[1], rgb.shape[0])]
        self.bounds = None

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        del level
        return self._rgb[y : y + height, x : x + width]

    def close(self) -> None:
        """Nothing is open."""


# --- OpenSlide ---------------------------------------------------------------------------------


def _open_with_openslide(path: Path, kind: str) -> Source:
    try:
        import openslide
    except ImportError as error:
        raise SlideError(
            f"{path} is {kind}, which cannot be read without OpenSlide", _INSTALL_OPENSLIDE
        ) from error
    try:
        return _OpenSlideSource(openslide.OpenSlide(path))
    except openslide.OpenSlideError as error:
        raise SlideError(
            f"{path} is {kind}, and OpenSlide cannot read it: {error}",
            "copy the slide again, with the files that belong to it, or " + _CONVERT,
        ) from error


def _openslide_or_none(path: Path) -> Source | None:
    try:
        import openslide
    except ImportError:
        return None
    try:
        return _OpenSlideSource(openslide.OpenSlide(path))
    except openslide.OpenSlideError:
        return None


class _OpenSlideSource:
    """A slide read by OpenSlide."""

    #: Level pixels per side of the blocks in which levels of fractional downsample are read.
    _BLOCK = 1024

    def __init__(self, slide: Any) -> None:
        self._slide = slide
        self.sizes = list(slide.level_dimensions)
        self.vendor = slide.properties.get("openslide.vendor")
        self.mpp = _mpp(slide.properties, "openslide")
        self.bounds = _bounds(slide.properties, "openslide")

    def read(self, level: int, x: int, y: int, width: int, height: int) -> RGB:
        downsample = self._slide.level_downsamples[level]
        if downsample == round(downsample):
            return self._read_at(level, x, y, width, height)
        # OpenSlide takes level-0 integers and would interpolate at the rest; fixed blocks keep
        # what is left of the shift (half a level-0 pixel) from depending on the region.
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
        self._slide.close()


def _bounds(properties: Mapping[str, Any], prefix: str) -> tuple[int, int, int, int] | None:
    try:
        x, y, width, height = (
            int(properties[f"{prefix}.bounds-{part}"]) for part in ("x", "y", "width", "height")
        )
    except (KeyError, TypeError, ValueError):
        return None
    return x, y, width, height
