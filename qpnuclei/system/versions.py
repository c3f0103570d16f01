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
    """Return the versions of qpnuclei, Python and libraries that results depend on."""
    return dict(_installed())


@cache  # the search takes 0.1 s, and a run calls this for each image
def _installed() -> dict[str, str]:
    found = {"qpnuclei": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
