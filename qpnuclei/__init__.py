"""Nuclei in whole-slide images without labels: headless detection for QuPath projects.

Examples
--------
>>> import qpnuclei
>>> "maps" in qpnuclei.engines()
True
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from qpnuclei._version import __version__

if TYPE_CHECKING:
    from qpnuclei import errors
    from qpnuclei.api import (
        adapt,
        add_slides,
        commit,
        count,
        create_project,
        evaluate,
        infer,
        plan,
        read_nuclei,
        run,
        train,
        write_nuclei,
        write_report,
    )
    from qpnuclei.nuclei.table import NucleiTable
    from qpnuclei.pipeline.image import segment
    from qpnuclei.pipeline.plan import RunOptions
    from qpnuclei.pipeline.selection import Selection
    from qpnuclei.qupath.project import open_project
    from qpnuclei.segmentation.engine import EngineOptions, engines, load_engine
    from qpnuclei.slides.slide import open_slide

__all__ = [
    "EngineOptions",
    "NucleiTable",
    "RunOptions",
    "Selection",
    "__version__",
    "adapt",
    "add_slides",
    "commit",
    "count",
    "create_project",
    "engines",
    "errors",
    "evaluate",
    "infer",
    "load_engine",
    "open_project",
    "open_slide",
    "plan",
    "read_nuclei",
    "run",
    "segment",
    "train",
    "write_nuclei",
    "write_report",
]

#: Where the public names live: ``module:name``. They are imported when first asked for, because
#: importing torch takes seconds, which the command line must not pay for a --help.
_HOMES = {
    "EngineOptions": "qpnuclei.segmentation.engine:EngineOptions",
    "NucleiTable": "qpnuclei.nuclei.table:NucleiTable",
    "RunOptions": "qpnuclei.pipeline.plan:RunOptions",
    "Selection": "qpnuclei.pipeline.selection:Selection",
    "adapt": "qpnuclei.api:adapt",
    "add_slides": "qpnuclei.api:add_slides",
    "commit": "qpnuclei.api:commit",
    "count": "qpnuclei.api:count",
    "create_project": "qpnuclei.api:create_project",
    "engines": "qpnuclei.segmentation.engine:engines",
    "evaluate": "qpnuclei.api:evaluate",
    "infer": "qpnuclei.api:infer",
    "load_engine": "qpnuclei.segmentation.engine:load_engine",
    "open_project": "qpnuclei.qupath.project:open_project",
    "open_slide": "qpnuclei.slides.slide:open_slide",
    "plan": "qpnuclei.api:plan",
    "read_nuclei": "qpnuclei.api:read_nuclei",
    "run": "qpnuclei.api:run",
    "segment": "qpnuclei.pipeline.image:segment",
    "train": "qpnuclei.api:train",
    "write_nuclei": "qpnuclei.api:write_nuclei",
    "write_report": "qpnuclei.api:write_report",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("qpnuclei.errors")
    if name in _HOMES:
        module, _, attribute = _HOMES[name].partition(":")
        return getattr(importlib.import_module(module), attribute)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
