"""From a project's image entry to the slide on disk, read in the frame that QuPath uses."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qpnuclei.errors import SlideError
from qpnuclei.qupath.model import ImageEntry

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide

_OPENSLIDE = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
_BIOFORMATS = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
_IMAGEJ = "qupath.imagej.images.servers.ImageJServerBuilder"


def open_image(entry: ImageEntry) -> Slide:
    """Open the slide of a project's image so that its coordinates are QuPath's.

    Raises
    ------
    SlideError
        If the image is missing, not readable, fluorescence, a stack in z or time, or its server
        transforms the file (rotated, flipped, cropped, ...) in a way that is not supported.
    """
    from qpnuclei.slides.slide import open_slide

    server = entry.server
    where = f"image {entry.name!r} (entry {entry.id})"
    if server.builder_types != ("uri",):
        kinds = " of ".join(server.builder_types)
        raise SlideError(
            f"{where} is a transformed view of its file ({kinds}), which is not supported",
            "export it from QuPath as a new image, or analyse the original",
        )
    if server.provider not in (_OPENSLIDE, _BIOFORMATS, _IMAGEJ):
        raise SlideError(
            f"{where} comes from the server {server.provider or 'unknown'!r}, "
            "which is not supported",
            "add the image file itself to the project",
        )
    if entry.image_type == "FLUORESCENCE":
        raise SlideError(
            f"{where} is a fluorescence image", "qpnuclei reads brightfield images (H&E)"
        )
    if server.size_z > 1 or server.size_t > 1:
        raise SlideError(
            f"{where} is a stack of {server.size_z} z-slices and {server.size_t} time points, "
            "which is not supported",
            "export the plane of interest as an image of its own",
        )
    if entry.path is None:
        uris = ", ".join(server.uris) or "no URI"
        raise SlideError(
            f"{where} was not found: {uris}",
            "put the slide where the project expects it, or name its folder with --image-root",
        )
    slide = open_slide(
        entry.path,
        crop_to_bounds=server.provider == _OPENSLIDE and "--no-crop" not in server.args,
        series=_series(server.args),
    )
    if (
        server.width
        and server.height
        and (slide.width, slide.height)
        != (
            server.width,
            server.height,
        )
    ):
        found = f"{slide.width}x{slide.height}"
        slide.close()
        raise SlideError(
            f"{where} has {server.width}x{server.height} px in the project, "
            f"but {entry.path} has {found} px",
            "the file was replaced, or is read in another way: add it to the project again",
        )
    return slide


def _series(args: tuple[str, ...]) -> int:
    """Return the Bio-Formats series that the server arguments choose (0 by default)."""
    if "--series" in args[:-1]:
        return int(args[args.index("--series") + 1])
    return 0
