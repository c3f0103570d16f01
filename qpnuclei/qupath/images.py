"""Open the slide of a project's image, in the coordinates that QuPath uses."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from qpnuclei.errors import FormatError, SlideError
from qpnuclei.qupath.model import ImageEntry

if TYPE_CHECKING:
    from qpnuclei.slides.slide import Slide
    from qpnuclei.slides.stains import Stains

#: Supported server arguments that take no value.
_SWITCHES = frozenset({"--no-crop", "--icc-profile"})
_SERIES = ("--series", "-s")

#: Class names of QuPath's server builders.
OPENSLIDE_BUILDER = "qupath.lib.images.servers.openslide.OpenslideServerBuilder"
BIO_FORMATS_BUILDER = "qupath.lib.images.servers.bioformats.BioFormatsServerBuilder"
IMAGEJ_BUILDER = "qupath.imagej.images.servers.ImageJServerBuilder"


class Opening(NamedTuple):
    """How the file of an image is opened; see `qpnuclei.slides.slide.open_slide`."""

    crop_to_bounds: bool
    series: int | None
    apply_icc: bool


def opening_of(entry: ImageEntry) -> Opening:
    """Return how to open the file of a project's image for the same coordinates as in QuPath.

    Raises
    ------
    SlideError
        If the image is fluorescence, or a stack in z or time, or if its server transforms the file
        (rotated, flipped, cropped, ...) or has unknown arguments.
    """
    server = entry.server
    where = _where(entry)
    if server.builder_types != ("uri",):
        kinds = " of ".join(server.builder_types)
        raise SlideError(
            f"{where} is a transformed view of its file ({kinds}), which is not supported",
            "export it from QuPath as a new image, or analyse the original",
        )
    if server.provider not in (OPENSLIDE_BUILDER, BIO_FORMATS_BUILDER, IMAGEJ_BUILDER):
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
            "export the plane of interest as a separate image",
        )
    return Opening(
        crop_to_bounds=server.provider == OPENSLIDE_BUILDER and "--no-crop" not in server.args,
        series=_series(where, server.args),
        apply_icc="--icc-profile" in server.args,
    )


def open_image(entry: ImageEntry) -> Slide:
    """Open the slide of a project's image, with the same coordinates as in QuPath.

    Raises
    ------
    SlideError
        If the image is missing or unreadable, or as `opening_of`.
    """
    from qpnuclei.slides.slide import open_slide

    opening = opening_of(entry)
    server = entry.server
    where = _where(entry)
    if entry.path is None:
        uris = ", ".join(server.uris) or "no URI"
        raise SlideError(
            f"{where} was not found: {uris}",
            "put the slide where the project expects it, or name its folder with --image-root",
        )
    slide = open_slide(entry.path, **opening._asdict())
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
            "the file was replaced or is read differently: add it to the project again",
        )
    return slide


def _where(entry: ImageEntry) -> str:
    return f"image {entry.name!r} (entry {entry.id})"


def stains_of(entry: ImageEntry) -> Stains:
    """Return the stains of a project's image; QuPath's default for H&E if it has none.

    Raises
    ------
    FormatError
        If its data cannot be read, or colours cannot be separated into these stains.
    """
    from qpnuclei.slides.stains import DEFAULT_HE, check_stains

    stains = entry.stains or DEFAULT_HE
    try:
        check_stains(stains)
    except ValueError as error:
        raise FormatError(
            f"image {entry.name}: {error}",
            "in QuPath, correct it in the tab Image, or set the image type there again; then save",
        ) from error
    return stains


def _series(where: str, args: tuple[str, ...]) -> int | None:
    """Return the Bio-Formats series that the server arguments select; None if they do not.

    Raises
    ------
    SlideError
        If an argument is unknown: it may select another picture.
    """
    series: str | None = None
    rest = iter(arg.strip() for arg in args)
    for arg in rest:
        name, _, value = arg.partition("=")
        if name in _SERIES:
            series = value or next(rest, "")
        elif arg not in _SWITCHES:
            raise SlideError(
                f"{where} is opened with the server argument {arg!r}, which is not supported",
                "add the image to the project again without it, or export the picture that it "
                "shows as a separate image",
            )
    if series is None or series == "-1":  # QuPath's "not chosen"
        return None
    if not series.isdecimal():
        raise SlideError(
            f"{where} is opened with --series {series!r}, which is not a number",
            "add the image to the project again",
        )
    return int(series)
