"""New QuPath projects from slides, without QuPath."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from qpnuclei.errors import MppError, QpnucleiError, SaveError, UsageError, standing_alone
from qpnuclei.qupath import project_file
from qpnuclei.qupath.model import Project
from qpnuclei.qupath.native import NativeProject, open_project
from qpnuclei.qupath.qpdata.data_file import DataFile
from qpnuclei.qupath.transaction import Transaction, sync_folder
from qpnuclei.qupath.uris import file_uri
from qpnuclei.slides.calibration import PixelCalibration
from qpnuclei.slides.files import one_per_slide
from qpnuclei.slides.resolution import resolve_mpp
from qpnuclei.slides.slide import open_slide
from qpnuclei.slides.stains import DEFAULT_HE, Stains
from qpnuclei.system.files import remove_leftovers, temporary_prefix

#: QuPath version that the files state; QuPath 0.4 to 0.7 open them.
QUPATH_VERSION = "0.5.1"
#: Largest size of QuPath's thumbnails, width and height in px.
THUMBNAIL_SIZE = (1000, 600)

_OPENSLIDE = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
_BIO_FORMATS = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
#: Formats that QuPath opens with OpenSlide; it uses Bio-Formats for all others.
_OPENSLIDE_SUFFIXES = frozenset(
    {".svs", ".ndpi", ".vms", ".vmu", ".scn", ".mrxs", ".bif", ".svslide"}
)
_TIFF_SUFFIXES = frozenset({".tif", ".tiff"})
_RGB_CHANNELS = (("Red", 255, 0, 0), ("Green", 0, 255, 0), ("Blue", 0, 0, 255))


@dataclass(frozen=True, eq=False)
class NewImage:
    """A brightfield RGB slide to add to a project.

    Parameters
    ----------
    path : Path
    width, height : int
        Level-0 size in QuPath's frame, px.
    thumbnail : (h, w, 3) uint8 ndarray
        Overview of the slide; reduced if larger than QuPath's thumbnails.
    calibration : PixelCalibration
    downsamples : sequence of float
        Of each pyramid level, 1.0 first.
    magnification : float or None
        Objective magnification, where the slide states it.
    tile_width, tile_height : int
        Of the slide's tiles, px.
    name : str, optional
        Name in QuPath's image list; the file name by default.
    """

    path: Path
    width: int
    height: int
    thumbnail: npt.NDArray[np.uint8]
    calibration: PixelCalibration = field(default_factory=PixelCalibration)
    downsamples: Sequence[float] = (1.0,)
    magnification: float | None = None
    tile_width: int = 512
    tile_height: int = 512
    name: str | None = None


def create_from_slides(
    directory: Path,
    slides: Sequence[Path],
    mpp: float | None = None,
    *,
    failed: Callable[[Path, QpnucleiError], object] | None = None,
) -> Project:
    """Create a project of Brightfield (H&E) images in a new folder, for QuPath 0.4 to 0.7.

    A slide without a pixel size is added uncalibrated, as QuPath would. Several files of one slide
    (DICOM) become one image.

    Parameters
    ----------
    directory : Path
        New, or an empty folder.
    slides : sequence of Path
    mpp : float, optional
        Pixel size in µm/px of all slides; by default each slide's own.
    failed : callable, optional
        Called for a slide that is missing or cannot be read, with the reason; the project is made
        of the others. By default the first such error is raised.

    Raises
    ------
    NotFoundError, SlideError
        If a slide is missing or cannot be read, without `failed`; or if that is so of all.
    MppError
        If `mpp` is absurd.
    UsageError
        If the folder holds anything.
    SaveError
        If the project cannot be written; nothing is left behind.
    """
    if mpp is not None:
        resolve_mpp(mpp, None, None, "each slide")  # no slide is to blame for an absurd one
    images: list[NewImage] = []
    errors: list[tuple[Path, QpnucleiError]] = []
    for path in one_per_slide(slides):
        with standing_alone(str(path), partial(_keep, errors, path)):
            images.append(_describe(path, mpp))
    if errors and (failed is None or not images):
        raise errors[0][1]
    if failed is not None:
        for path, error in errors:
            failed(path, error)
    return create_project(directory, images)


def _keep(errors: list[tuple[Path, QpnucleiError]], path: Path, error: QpnucleiError) -> None:
    errors.append((path, error))


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
            magnification=slide.magnification,
        )


def create_project(
    directory: str | Path,
    images: Sequence[NewImage],
    *,
    image_type: str = "BRIGHTFIELD_H_E",
    stains: Stains | None = DEFAULT_HE,
) -> NativeProject:
    """Create a QuPath project of slides, for QuPath 0.4 to 0.7.

    Parameters
    ----------
    directory : path
        A folder that is empty or does not exist yet.
    images : sequence of NewImage
    image_type : str
        Name of QuPath's ``ImageType``.
    stains : Stains or None
        Colour deconvolution stains.

    Raises
    ------
    qpnuclei.errors.UsageError
        If the folder holds anything, or there is no image.
    qpnuclei.errors.SaveError
        If something could not be written; the folder is as it was.
    """
    directory = Path(directory).absolute()
    if not images:
        raise UsageError("a project needs at least one slide")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UsageError(
            f"{directory} exists already and is not an empty folder",
            "name a new folder, or use the existing project",
        )
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Build in a temporary folder and rename it, so that no partial project can exist.
        remove_leftovers(directory.parent)
        temporary = Path(tempfile.mkdtemp(prefix=temporary_prefix(), dir=directory.parent))
    except OSError as error:
        raise SaveError(f"{directory} cannot be created: {error.strerror}") from error
    try:
        temporary.chmod(0o755)
        _write_project(temporary, directory, images, image_type, stains)
        if directory.exists():
            directory.rmdir()
        temporary.replace(directory)
        sync_folder(directory.parent)
    except SaveError as error:
        raise SaveError(
            error.what, "free disk space or choose another folder, and run again"
        ) from error
    except OSError as error:
        raise SaveError(f"{directory} could not be written: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return open_project(directory)


def _write_project(
    folder: Path,
    final: Path,
    images: Sequence[NewImage],
    image_type: str,
    stains: Stains | None,
) -> None:
    """Write the project into `folder`, with the paths that it will have in `final`."""
    project_path = final / "project.qpproj"
    now = int(time.time() * 1000)
    entries = []
    with Transaction(folder) as transaction:
        for number, image in enumerate(images, 1):
            builder = server_builder(image)
            name = image.name or image.path.name
            data_file = DataFile.new(
                builder,
                image_type,
                stains,
                qupath_version=QUPATH_VERSION,
                entry_property=f"{project_path}::{number}",
            )
            entry = folder / "data" / str(number)
            staged, _ = transaction.stage(entry / "data.qpdata", data_file.write)
            summary = {
                "timestamp": staged.stat().st_mtime_ns // 1_000_000,
                "imageType": image_type,
                "server": {
                    "width": image.width,
                    "height": image.height,
                    "sizeC": 3,
                    "sizeZ": 1,
                    "sizeT": 1,
                },
                "hierarchy": data_file.read().summary(),
            }
            server = {"builder": builder, "metadata": builder["metadata"]}
            for file_name, content in (
                ("summary.json", project_file.to_json(summary, pretty=False)),
                ("server.json", project_file.to_json(server, pretty=False)),
                ("thumbnail.jpg", _jpeg(image.thumbnail)),
            ):
                _stage(transaction, entry / file_name, content)
            entries.append(
                {
                    "serverBuilder": builder,
                    "entryID": number,
                    "randomizedName": str(uuid.uuid4()),
                    "imageName": name,
                    "metadata": {},
                }
            )
        project = {
            "version": QUPATH_VERSION,
            "createTimestamp": now,
            "modifyTimestamp": now,
            "uri": file_uri(project_path),
            "lastID": len(entries),
            "images": entries,
        }
        classes = {"pathClasses": [*map(project_file.class_json, project_file.DEFAULT_CLASSES)]}
        _stage(transaction, folder / "classifiers" / "classes.json", project_file.to_json(classes))
        _stage(transaction, folder / project_path.name, project_file.to_json(project))
        transaction.commit()


def server_builder(image: NewImage) -> dict[str, Any]:
    """Return the ``serverBuilder`` JSON of a slide, with the reader that QuPath would choose."""
    suffix = image.path.suffix.lower()
    openslide = suffix in _OPENSLIDE_SUFFIXES or (
        # OpenSlide reads only tiled TIFFs; TIFFs with a pyramid are tiled. QuPath opens OME-TIFF
        # with Bio-Formats.
        suffix in _TIFF_SUFFIXES
        and len(image.downsamples) > 1
        and not image.path.stem.lower().endswith(".ome")
    )
    return {
        "builderType": "uri",
        "providerClassName": _OPENSLIDE if openslide else _BIO_FORMATS,
        "uri": file_uri(image.path),
        "args": [] if openslide else ["--series", "0"],
        "metadata": _metadata(image),
    }


def _metadata(image: NewImage) -> dict[str, Any]:
    calibration = image.calibration
    magnification = {} if image.magnification is None else {"magnification": image.magnification}
    return {
        "name": image.name or image.path.name,
        "width": image.width,
        "height": image.height,
        "sizeZ": 1,
        "sizeT": 1,
        "channelType": "DEFAULT",
        "isRGB": True,
        "pixelType": "UINT8",
        "levels": [
            {
                "downsample": float(downsample),
                "width": int(image.width / downsample),
                "height": int(image.height / downsample),
            }
            for downsample in image.downsamples
        ],
        "channels": [
            {"name": name, "color": (0xFF << 24 | red << 16 | green << 8 | blue) - (1 << 32)}
            for name, red, green, blue in _RGB_CHANNELS
        ],
        "pixelCalibration": {
            "pixelWidth": _size(calibration.width_um),
            "pixelHeight": _size(calibration.height_um),
            "zSpacing": {"value": 1.0, "unit": "z-slice"},
            "timeUnit": "SECONDS",
            "timepoints": [],
        },
        **magnification,
        "preferredTileWidth": image.tile_width,
        "preferredTileHeight": image.tile_height,
    }


def _size(um: float | None) -> Mapping[str, Any]:
    return {"value": 1.0, "unit": "px"} if um is None else {"value": um, "unit": "\u00b5m"}


def _jpeg(rgb: npt.NDArray[np.uint8]) -> bytes:
    picture = Image.fromarray(rgb)
    picture.thumbnail(THUMBNAIL_SIZE)
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def _stage(transaction: Transaction, path: Path, content: bytes) -> None:
    transaction.stage(path, lambda emit: emit(content))
