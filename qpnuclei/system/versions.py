"""Versions of the software that a result depends on."""

from __future__ import annotations

import importlib.metadata
import platform
from functools import cache

from qpnuclei._version import __version__

_LIBRARIES = (
    "numpy",
    "scipy",
    "scikit-image",
    "opencv-python-headless",
    "shapely",
    "onnxruntime",
    "torch",
    "tifffile",
    "tiffslide",
    "imagecodecs",
    "openslide-bin",
    "paquo",
)


def versions() -> dict[str, str]:
    """Return the versions of qpnuclei, Python and the libraries that results depend on."""
    return dict(_installed())


@cache  # a run asks after each image, and looking takes a tenth of a second
def _installed() -> dict[str, str]:
    found = {"qpnuclei": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
