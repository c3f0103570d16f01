"""Read the metadata of Hamamatsu NDPI with TiffSlide."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any


def vendor_properties(path: Path) -> dict[str, Any]:
    """Return TiffSlide's properties: ``tiffslide.vendor``, ``tiffslide.mpp-x`` and so on.

    The values are as in the file: a number may be a string with a decimal comma.
    """
    import tiffslide  # imports zarr, so only for the slides that need it

    with warnings.catch_warnings():
        # TiffSlide implements NDPI "only partially"; the missing parts are not used here.
        warnings.filterwarnings("ignore", "hamamatsu-format", UserWarning)
        with tiffslide.TiffSlide(path) as slide:
            return dict(slide.properties)
