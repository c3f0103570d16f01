"""The metadata of Hamamatsu NDPI, with TiffSlide."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any


def vendor_properties(path: Path) -> dict[str, Any]:
    """Return TiffSlide's properties: ``tiffslide.vendor``, ``tiffslide.mpp-x`` and so on.

    The values are as the file has them: a number may be a string with a decimal comma.
    """
    import tiffslide  # brings zarr: only for the slides that need it

    with warnings.catch_warnings():
        # NDPI is "only partially implemented": what is missing is not used here.
        warnings.filterwarnings("ignore", "hamamatsu-format", UserWarning)
        with tiffslide.TiffSlide(path) as slide:
            return dict(slide.properties)
