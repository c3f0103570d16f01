"""Pixel size, magnification and vendor of a TIFF; broken values count as unknown."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tifffile

from qpnuclei.errors import SlideError
from qpnuclei.slides.readers.reader import positive, positive_pair, reading, warn_once
from qpnuclei.slides.readers.tiffslide import vendor_properties

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_log = logging.getLogger(__name__)

_MICRO_SIGN, _GREEK_MU = "\u00b5", "\u03bc"
#: µm per unit, by OME's and ImageJ's names in lower case, with the micro sign.
_MICROMETRES = {
    "pm": 1e-6,
    "\u00e5": 1e-4,
    "nm": 1e-3,
    "µm": 1.0,
    "um": 1.0,
    "micron": 1.0,
    "microns": 1.0,
    "micrometer": 1.0,
    "micrometers": 1.0,
    "micrometre": 1.0,
    "micrometres": 1.0,
    "mm": 1e3,
    "millimeter": 1e3,
    "cm": 1e4,
    "dm": 1e5,
    "m": 1e6,
    "thou": 25.4,
    "mil": 25.4,
    "in": 25_400.0,
    "inch": 25_400.0,
    "inches": 25_400.0,
    "ft": 304_800.0,
}
#: How OME-XML begins, also if it is cut off: Bio-Formats begins it with a comment that names it.
_OME_XML = re.compile(
    r"\s*(<\?xml[^>]*>\s*)?(<!--[^>]*\bOME-XML\b|(<!--((?!-->).)*-->\s*)*<(\w+:)?OME\b)", re.S
)
#: µm per ResolutionUnit: inch, cm, and tifffile's mm and µm.
_RESOLUTION_UNITS = {2: 25_400.0, 3: 1e4, 4: 1e3, 5: 1.0}


@dataclass(frozen=True)
class Metadata:
    """Metadata of a file; a value is None if the file does not state it.

    `mpp` is µm/px in x and y.
    """

    vendor: str | None
    mpp: tuple[float, float] | None
    magnification: float | None


class OmeImage:
    """What OME-XML says about one image."""

    def __init__(self, root: Element, image: Element) -> None:
        self._root = root
        self._image = image
        pixels = image.find("{*}Pixels")
        self._pixels: Mapping[str, str] = {} if pixels is None else pixels.attrib
        self._channels = image.findall("{*}Pixels/{*}Channel")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height, px; 0 if they are not stated."""
        width, height = (self._pixels.get(f"Size{axis}", "") for axis in "XY")
        return (int(width), int(height)) if width.isdigit() and height.isdigit() else (0, 0)

    @property
    def pages(self) -> frozenset[int]:
        """Indices of the TIFF pages at which planes of it begin; none if it has no pixels."""
        data = self._image.iterfind("{*}Pixels/{*}TiffData")
        starts = [element.get("IFD", "0") for element in data]
        return frozenset(int(start) for start in starts if start.isdigit())

    @property
    def channel_names(self) -> list[str]:
        """The names of its channels; the name is empty if there is none."""
        return [channel.get("Name", "") for channel in self._channels]

    @property
    def is_fluorescence(self) -> bool:
        """Whether any channel is marked as fluorescence."""
        return any(
            channel.get("EmissionWavelength")
            or channel.get("Fluor")
            or channel.get("ContrastMethod") == "Fluorescence"
            for channel in self._channels
        )

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Pixel size in x and y, µm/px."""
        sizes = []
        for axis in "XY":
            size = positive(self._pixels.get(f"PhysicalSize{axis}"))
            unit = _micrometres(self._pixels.get(f"PhysicalSize{axis}Unit", "µm"))
            sizes.append(None if size is None or unit is None else size * unit)
        return positive_pair(*sizes)

    @property
    def stated_size(self) -> str:
        """The pixel size as stated, usable or not; empty if none is stated."""
        return ", ".join(
            f"{name} = {self._pixels[name]} {self._pixels.get(f'{name}Unit', 'µm')}"
            for name in ("PhysicalSizeX", "PhysicalSizeY")
            if name in self._pixels
        )

    @property
    def magnification(self) -> float | None:
        """Nominal magnification of its objective."""
        settings = self._image.find("{*}ObjectiveSettings")
        for objective in self._root.iterfind(".//{*}Objective"):
            if settings is not None and objective.get("ID") == settings.get("ID"):
                return positive(objective.get("NominalMagnification"))
        return None


class OmeXml:
    """The parts of OME-XML that readers use.

    Attributes
    ----------
    images : list of OmeImage
        In the order of the file, also those without pixels: Bio-Formats counts them.

    Raises
    ------
    SyntaxError
        If the text is not XML.
    """

    def __init__(self, xml: str) -> None:
        from xml.etree import ElementTree

        self._root = ElementTree.fromstring(xml)
        self.images = [OmeImage(self._root, image) for image in self._root.findall("{*}Image")]

    @property
    def has_several_files(self) -> bool:
        """Whether the planes are in more than one file."""
        files = self._root.iterfind(".//{*}TiffData/{*}UUID")
        return len({file.get("FileName", file.text) for file in files}) > 1


def has_ome_xml(tiff: tifffile.TiffFile) -> bool:
    """Return whether the file has OME-XML, even if that is damaged or cut off."""
    page = tiff.pages.first
    return page.is_ome or _OME_XML.match(page.description) is not None


def read_metadata(
    path: Path, tiff: tifffile.TiffFile, page: Any, ome: OmeImage | None, *, is_damaged: bool
) -> Metadata:
    """Read the metadata; if it is broken, log a warning and return none.

    Parameters
    ----------
    path : Path
    tiff : tifffile.TiffFile
    page : tifffile page
        Of the image.
    ome : OmeImage or None
        What OME-XML says about the image.
    is_damaged : bool
        Whether the file has OME-XML that cannot be read.
    """
    try:
        with reading(path, "has damaged metadata"):
            return _read_metadata(path, tiff, page, ome, is_damaged)
    except SlideError as error:
        warn_once(_log, f"{error.what}; it is not used")
        return Metadata(None, None, None)


def _read_metadata(
    path: Path, tiff: tifffile.TiffFile, page: Any, ome: OmeImage | None, is_damaged: bool
) -> Metadata:
    """Prefer the metadata of OME, Aperio and ImageJ to the resolution tags.

    The tags do not replace a pixel size that is stated there but unusable: they may be for print.
    """
    vendor, mpp, magnification = None, None, None
    stated = "its OME-XML is damaged" if is_damaged else ""
    if ome is not None:
        mpp, magnification = ome.mpp, ome.magnification
        stated = ome.stated_size and f"its OME-XML states {ome.stated_size}"
    elif tiff.pages.first.description.startswith("Aperio"):
        vendor = "aperio"
        aperio = _aperio_properties(tiff.pages.first.description)
        mpp = positive_pair(aperio.get("MPP"), aperio.get("MPP"))
        magnification = positive(aperio.get("AppMag"))
        stated = f"its description states MPP = {aperio['MPP']}" if "MPP" in aperio else ""
    elif tiff.is_ndpi:
        properties: Mapping[str, Any] = {}
        try:
            with reading(path, "has damaged metadata"):
                properties = vendor_properties(path)
        except SlideError as error:
            warn_once(_log, f"{error.what}; it is not used")
        vendor = properties.get("tiffslide.vendor")
        mpp = positive_pair(properties.get("tiffslide.mpp-x"), properties.get("tiffslide.mpp-y"))
        magnification = positive(properties.get("tiffslide.objective-power"))
    elif tiff.is_imagej and (name := str((tiff.imagej_metadata or {}).get("unit", ""))):
        unit = _micrometres(name)
        # ImageJ stores pixels per unit in the resolution tags.
        mpp = None if unit is None else _pixel_size(page, unit)
        stated = f"its unit in ImageJ is {name}"
    if mpp is None:
        tagged = _tagged_size(page)
        if not stated:
            return Metadata(vendor, tagged, magnification)
        unused = (
            f"; {tagged[0]:g} x {tagged[1]:g} µm/px of its TIFF resolution are not used"
            if tagged
            else ""
        )
        warn_once(_log, f"{path}: its pixel size is unknown: {stated}{unused}")
    return Metadata(vendor, mpp, magnification)


def _tagged_size(page: Any) -> tuple[float, float] | None:
    """Return µm/px from the resolution tags and their unit."""
    unit_tag = page.tags.get("ResolutionUnit")
    unit = None if unit_tag is None else _RESOLUTION_UNITS.get(unit_tag.value)
    return None if unit is None else _pixel_size(page, unit)


def icc_profile(page: Any) -> bytes | None:
    """Return the colour profile of a page."""
    tag = page.tags.get("InterColorProfile")
    return bytes(tag.value) if tag is not None and isinstance(tag.value, bytes) else None


def _aperio_properties(description: str) -> dict[str, str]:
    """Parse Aperio's description: ``header|AppMag = 20|MPP = 0.4990|...``."""
    pairs = (part.partition("=") for part in description.split("|")[1:])
    return {name.strip(): value.strip() for name, _, value in pairs}


def _micrometres(unit: str) -> float | None:
    """Return µm per unit; None for an unknown unit."""
    unit = unit.replace("\\u00B5", _MICRO_SIGN).replace("\\u00b5", _MICRO_SIGN).strip()
    if unit in ("Mm", "Pm"):  # in OME-XML megametre and petametre, not mm and pm
        return None
    return _MICROMETRES.get(unit.lower().replace(_GREEK_MU, _MICRO_SIGN))


def _pixel_size(page: Any, unit_um: float) -> tuple[float, float] | None:
    """Return µm/px from the resolution tags, which are in px per unit; None for x/0 and 0/x."""
    sizes = []
    for name in ("XResolution", "YResolution"):
        tag = page.tags.get(name)
        value = tag.value if tag is not None else ()
        if not (isinstance(value, tuple) and len(value) == 2 and value[0] > 0 and value[1] > 0):
            return None
        sizes.append(unit_um * value[1] / value[0])
    return positive_pair(*sizes)
