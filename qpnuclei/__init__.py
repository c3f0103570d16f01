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
    from qpnuclei.api.models import adapt, evaluate, train
    from qpnuclei.api.nuclei import read_nuclei, write_nuclei
    from qpnuclei.api.projects import add_slides, count, create_project, write_report
    from qpnuclei.api.runs import commit, infer, plan, run
    from qpnuclei.nuclei.table import NucleiTable
    from qpnuclei.pipeline.image import segment
    from qpnuclei.pipeline.options import RunOptions
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
    "RunOptions": "qpnuclei.pipeline.options:RunOptions",
    "Selection": "qpnuclei.pipeline.selection:Selection",
    "adapt": "qpnuclei.api.models:adapt",
    "add_slides": "qpnuclei.api.projects:add_slides",
    "commit": "qpnuclei.api.runs:commit",
    "count": "qpnuclei.api.projects:count",
    "create_project": "qpnuclei.api.projects:create_project",
    "engines": "qpnuclei.segmentation.engine:engines",
    "evaluate": "qpnuclei.api.models:evaluate",
    "infer": "qpnuclei.api.runs:infer",
    "load_engine": "qpnuclei.segmentation.engine:load_engine",
    "open_project": "qpnuclei.qupath.project:open_project",
    "open_slide": "qpnuclei.slides.slide:open_slide",
    "plan": "qpnuclei.api.runs:plan",
    "read_nuclei": "qpnuclei.api.nuclei:read_nuclei",
    "run": "qpnuclei.api.runs:run",
    "segment": "qpnuclei.pipeline.image:segment",
    "train": "qpnuclei.api.models:train",
    "write_nuclei": "qpnuclei.api.nuclei:write_nuclei",
    "write_report": "qpnuclei.api.projects:write_report",
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
