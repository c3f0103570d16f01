"""Nuclei in whole-slide images without labels: headless detection for QuPath projects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qpnuclei._version import __version__

if TYPE_CHECKING:
    from qpnuclei.segmentation.maps_engine import Segmenter

__all__ = ["Segmenter", "__version__"]


def __getattr__(name: str) -> Any:
    # Importing torch takes seconds, which the command line must not pay for a --help.
    if name == "Segmenter":
        from qpnuclei.segmentation.maps_engine import Segmenter

        return Segmenter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
