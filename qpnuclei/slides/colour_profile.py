"""Convert a scanner's colours to sRGB by its ICC profile, as QuPath's ``--icc-profile`` does."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from qpnuclei.errors import SlideError
from qpnuclei.slides.pixels import RGB


def to_srgb(path: Path, profile: bytes | None) -> Callable[[RGB], RGB]:
    """Return a function that converts pixels to sRGB, with the rendering intent of the profile.

    Parameters
    ----------
    path : Path
        Path of the slide, for messages.
    profile : bytes or None
        ICC profile.

    Raises
    ------
    qpnuclei.errors.SlideError
        If there is no profile, or it is not one of RGB colours.
    """
    from PIL import Image, ImageCms

    if profile is None:
        raise SlideError(
            f"{path} has no colour profile, which the project asks to apply (--icc-profile)",
            "add the image to the project again, without a colour profile",
        )
    try:
        scanner = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        intent = ImageCms.Intent(ImageCms.getDefaultIntent(scanner))
        transform = ImageCms.buildTransform(
            scanner, ImageCms.createProfile("sRGB"), "RGB", "RGB", renderingIntent=intent
        )
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise SlideError(
            f"{path} has a colour profile that cannot be used: {error}",
            "add the image to the project again, without a colour profile",
        ) from error

    def convert(rgb: RGB) -> RGB:
        converted = ImageCms.applyTransform(Image.fromarray(rgb), transform)
        assert converted is not None
        return np.asarray(converted)

    return convert
