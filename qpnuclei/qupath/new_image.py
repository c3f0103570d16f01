"""New images of a project: describe slides in the format of QuPath's files."""

from __future__ import annotations

import io
import uuid
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from qpnuclei.errors import MppError, QpnucleiError, SlideError, standing_alone
from qpnuclei.qupath import project_file
from qpnuclei.qupath.images import BIO_FORMATS_BUILDER, OPENSLIDE_BUILDER
from qpnuclei.qupath.model import packed_rgb
from qpnuclei.qupath.names import is_utf8
from qpnuclei.qupath.pixel_size import AskedMpp
from qpnuclei.qupath.qpdata.new_data_file import new_data_file
from qpnuclei.qupath.transaction import Transaction
from qpnuclei.qupath.uris import file_uri
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.files import one_per_slide
from qpnuclei.slides.hdab_as_he import has_dab
from qpnuclei.slides.resolution import resolve_mpp
from qpnuclei.slides.slide import LEFT_TO_BIO_FORMATS, Level, Slide, open_slide
from qpnuclei.slides.stains import Stains

#: QuPath version in the files; QuPath 0.4 to 0.7 open them.
QUPATH_VERSION = "0.5.1"
#: Largest size of QuPath's thumbnails, width and height in px.
THUMBNAIL_SIZE = (1000, 600)

#: Channels by their number, with the names and colours that QuPath gives them.
_CHANNELS = {
    1: (("Channel 1", (255, 255, 255)),),
    2: (("Channel 1", (255, 0, 0)), ("Channel 2", (0, 255, 0))),
    3: (("Red", (255, 0, 0)), ("Green", (0, 255, 0)), ("Blue", (0, 0, 255))),
}


@dataclass(frozen=True, eq=False)
class NewImage:
    """A brightfield slide to add to a project.

    Parameters
    ----------
    path : Path
    levels : sequence of Level
        The levels that QuPath's reader has, largest first, in QuPath's frame.
    thumbnail : (h, w, 3) uint8 ndarray
        Overview of the slide; reduced if larger than QuPath's thumbnails.
    calibration : PixelCalibration
    magnification : float or None
        Objective magnification; None if the slide does not state it.
    tile_width, tile_height : int
        Size of the slide's tiles, px.
    name : str, optional
        Name in QuPath's image list; the file name by default.
    openslide : bool
        Whether QuPath should open the file with OpenSlide; otherwise with Bio-Formats.
    series : int
        Number of the image in the file, for Bio-Formats.
    channels : int
        Number of channels that QuPath's reader has: 3 for RGB, 1 for grey, 2 for grey with alpha.
        QuPath does not open an image of which the project states another number.
    """

    path: Path
    levels: Sequence[Level]
    thumbnail: npt.NDArray[np.uint8]
    calibration: PixelCalibration = field(default_factory=PixelCalibration)
    magnification: float | None = None
    tile_width: int = 512
    tile_height: int = 512
    name: str | None = None
    openslide: bool = False
    series: int = 0
    channels: int = 3

    @property
    def is_rgb(self) -> bool:
        """Whether QuPath's reader shows it in colour."""
        return self.channels == 3


def describe_slides(
    slides: Sequence[Path],
    mpp: float | AskedMpp | None = None,
    *,
    taken: Collection[str] = (),
) -> tuple[list[NewImage], list[tuple[Path, QpnucleiError]]]:
    """Read the properties of slides that a project stores.

    Several files of one slide (DICOM) become one image.

    Parameters
    ----------
    slides : sequence of Path
    mpp : float or AskedMpp, optional
        Pixel size in µm/px of all slides, or of some by image name; by default each slide's own.
    taken : collection of str
        Names of other images. If two images would have the same name, their folders become part of
        it.

    Returns
    -------
    (list of NewImage, list of (Path, QpnucleiError))
        The images, and the slides that are missing or cannot be read, with the reason.

    Raises
    ------
    MppError
        If a given pixel size is implausible.
    """
    asked = mpp if isinstance(mpp, AskedMpp) else AskedMpp(mpp)
    images: list[NewImage] = []
    errors: list[tuple[Path, QpnucleiError]] = []
    chosen = one_per_slide(slides)
    for path, name in zip(chosen, names_of(chosen, taken), strict=True):
        with standing_alone(str(path), partial(_keep, errors, path)):
            images.append(_describe(path, name, asked))
    return images, errors


def names_of(paths: Sequence[Path], taken: Collection[str] = ()) -> list[str]:
    """Return names for slides: their file names, with as many folders as make them unique.

    Examples
    --------
    >>> names_of([Path("a/1.svs"), Path("b/1.svs"), Path("b/2.svs")])
    ['a/1.svs', 'b/1.svs', '2.svs']
    """
    all_parts = [path.absolute().parts for path in paths]
    ends = cache(lambda length: Counter(parts[-length:] for parts in all_parts))
    names = []
    for parts in all_parts:
        for length in range(1, len(parts)):
            name = "/".join(parts[-length:])
            if ends(length)[parts[-length:]] == 1 and name not in taken:
                break
        names.append(name)
    return names


def _keep(errors: list[tuple[Path, QpnucleiError]], path: Path, error: QpnucleiError) -> None:
    errors.append((path, error))


def _describe(path: Path, name: str, asked: AskedMpp) -> NewImage:
    if not is_utf8(str(path.absolute())):
        where = "its name" if not is_utf8(path.name) else "the name of its folder"
        raise SlideError(f"{path}: {where} is not UTF-8, as QuPath requires", "rename it")
    # QuPath crops a slide to its bounds if OpenSlide knows them; Bio-Formats does not crop.
    crops = path.suffix.lower() not in LEFT_TO_BIO_FORMATS.values()
    with open_slide(path, crop_to_bounds=crops) as slide:
        calibration = PixelCalibration()
        given = asked.of_new.get(name)
        if given is None and (slide.mpp is None or not asked.only_missing):
            given = asked.mpp
        try:
            calibration = PixelCalibration(*resolve_mpp(given, None, slide.mpp, str(path))[0])
        except MppError:
            if given is not None:
                raise
        openslide = _levels_if_openslide(slide)
        return NewImage(
            path=path.absolute(),
            levels=openslide or slide.levels_of_bio_formats(),
            thumbnail=slide.thumbnail(*THUMBNAIL_SIZE),
            calibration=calibration,
            magnification=slide.magnification,
            name=name,
            openslide=bool(openslide),
            series=slide.image_number or 0,
            channels=3 if openslide else slide.channels_of_bio_formats(),
        )


def _levels_if_openslide(slide: Slide) -> Sequence[Level]:
    """Return the levels of OpenSlide if QuPath should open the slide with it; otherwise none.

    QuPath tries OpenSlide first, except for an OME-TIFF. Here, a generic TIFF is also left to
    Bio-Formats if OpenSlide has only one level of it, which may be one of several colour planes.
    """
    if slide.image_number is not None or slide.path.stem.lower().endswith(".ome"):
        return ()
    if slide.vendor in LEFT_TO_BIO_FORMATS:
        return ()
    levels = slide.levels_of_openslide()
    return levels if slide.vendor is not None or len(levels) > 1 else ()


def stage_image(
    transaction: Transaction,
    folder: Path,
    project_path: Path,
    number: int,
    image: NewImage,
    stains: Stains,
    qupath_version: str = QUPATH_VERSION,
) -> None:
    """Stage the files of a new image.

    An image that is grey in QuPath gets neither type nor stains: QuPath 0.6 and newer do not open
    it as a brightfield image.

    Parameters
    ----------
    folder : Path
        Folder in which the project is written.
    project_path : Path
        Final path of the ``.qpproj`` file.
    number : int
        ID of the entry.
    stains : Stains
        Colour deconvolution stains. With DAB the image type is Brightfield (H-DAB), otherwise
        Brightfield (H&E).
    qupath_version : str
        QuPath version to store in the data file.

    Raises
    ------
    qpnuclei.errors.SaveError
        If a file could not be written.
    """
    builder = server_builder(image)
    image_type = "BRIGHTFIELD_H_DAB" if has_dab(stains) else "BRIGHTFIELD_H_E"
    if not image.is_rgb:
        image_type = "UNSET"
    data_file = new_data_file(
        builder,
        image_type,
        stains if image.is_rgb else None,
        qupath_version=qupath_version,
        entry_property=f"{project_path}::{number}",
    )
    path = project_file.data_file(folder, str(number))
    staged, _ = transaction.stage(path, data_file.write)
    size = {**_size_of(image.levels[0]), "sizeC": image.channels, "sizeZ": 1, "sizeT": 1}
    summary = {
        "timestamp": staged.stat().st_mtime_ns // 1_000_000,
        "imageType": image_type,
        "server": size,
        "hierarchy": data_file.read().summary(),
    }
    server = {"builder": builder, "metadata": builder["metadata"]}
    for file_name, content in (
        ("summary.json", project_file.to_json(summary, pretty=False)),
        ("server.json", project_file.to_json(server, pretty=False)),
        ("thumbnail.jpg", _jpeg(image.thumbnail)),
    ):
        stage_bytes(transaction, path.with_name(file_name), content)


def entry_json(number: int, image: NewImage) -> dict[str, Any]:
    """Return the element of a project's list of images for a new image with an ID."""
    return {
        "serverBuilder": server_builder(image),
        "entryID": number,
        "randomizedName": str(uuid.uuid4()),
        "imageName": image.name or image.path.name,
        "metadata": {},
    }


def server_builder(image: NewImage) -> dict[str, Any]:
    """Return the ``serverBuilder`` JSON of a slide."""
    return {
        "builderType": "uri",
        "providerClassName": OPENSLIDE_BUILDER if image.openslide else BIO_FORMATS_BUILDER,
        "uri": file_uri(image.path),
        "args": [] if image.openslide else ["--series", str(image.series)],
        "metadata": _metadata(image),
    }


def _metadata(image: NewImage) -> dict[str, Any]:
    calibration = image.calibration
    magnification = {} if image.magnification is None else {"magnification": image.magnification}
    return {
        "name": image.name or image.path.name,
        **_size_of(image.levels[0]),
        "sizeZ": 1,
        "sizeT": 1,
        "channelType": "DEFAULT",
        "isRGB": image.is_rgb,
        "pixelType": "UINT8",
        "levels": [{"downsample": level.downsample, **_size_of(level)} for level in image.levels],
        "channels": [
            {"name": name, "color": packed_rgb(*rgb)} for name, rgb in _CHANNELS[image.channels]
        ],
        "pixelCalibration": {
            "pixelWidth": _pixel_size(calibration.width_um),
            "pixelHeight": _pixel_size(calibration.height_um),
            "zSpacing": {"value": 1.0, "unit": "z-slice"},
            "timeUnit": "SECONDS",
            "timepoints": [],
        },
        **magnification,
        "preferredTileWidth": image.tile_width,
        "preferredTileHeight": image.tile_height,
    }


def _size_of(level: Level) -> dict[str, int]:
    return {"width": level.width, "height": level.height}


def _pixel_size(um: float | None) -> Mapping[str, Any]:
    return {"value": 1.0, "unit": "px"} if um is None else {"value": um, "unit": "\u00b5m"}


def _jpeg(rgb: npt.NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(rgb)
    picture.thumbnail(THUMBNAIL_SIZE)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def stage_bytes(transaction: Transaction, path: Path, content: bytes) -> None:
    """Stage a file with this content."""
    transaction.stage(path, lambda emit: emit(content))
