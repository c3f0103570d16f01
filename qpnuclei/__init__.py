"""Nuclei in whole-slide images without labels: headless detection for QuPath projects."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qpnuclei._version import __version__

if TYPE_CHECKING:
    from qpnuclei.pipeline.image import segment
    from qpnuclei.segmentation.engine import EngineOptions, load_engine

#: Where the public names live. They are imported when first asked for: importing torch takes
#: seconds, which the command line must not pay for a --help.
_HOMES = {
    "EngineOptions": "qpnuclei.segmentation.engine",
    "load_engine": "qpnuclei.segmentation.engine",
    "segment": "qpnuclei.pipeline.image",
}

__all__ = ["EngineOptions", "__version__", "load_engine", "segment"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
