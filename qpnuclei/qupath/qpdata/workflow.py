"""The workflow of an image: the steps that QuPath's command history shows."""

from __future__ import annotations

import struct

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import BlockData, Content, JavaObject, JavaString, Value


def add_step(workflow: JavaObject, catalog: Catalog, name: str, script: str) -> None:
    """Add a step that QuPath can run as a script.

    Raises
    ------
    qpnuclei.errors.FormatError
        If the workflow is not written as QuPath writes it.
    """
    contents, version, count = _steps(workflow)
    contents[0] = BlockData(struct.pack(">ii", version, count + 1))
    values: dict[str, Value] = {"name": JavaString.of(name), "script": JavaString.of(script)}
    contents.append(catalog.make(jc.SCRIPT_STEP, values))


def remove_last_step(workflow: JavaObject) -> None:
    """Remove the last step; raise FormatError as `add_step`."""
    contents, version, count = _steps(workflow)
    contents.pop()
    contents[0] = BlockData(struct.pack(">ii", version, count - 1))


def _steps(workflow: JavaObject) -> tuple[list[Content], int, int]:
    """Return the workflow's contents, its version and its number of steps."""
    contents = jf.contents(workflow)
    block = contents[0] if contents else None
    if not isinstance(block, BlockData) or len(block.data) != 8:
        raise FormatError("the workflow's number of steps is missing")
    version, count = struct.unpack(">ii", block.data)
    return contents, version, count
