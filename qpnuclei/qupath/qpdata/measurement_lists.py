"""Measurements of an object: QuPath's MeasurementList, in the classes of all QuPath versions."""

from __future__ import annotations

import logging

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import JavaObject, JavaString
from qpnuclei.qupath.qpdata.path_objects import PathObject
from qpnuclei.qupath.qpdata.values import ValueSource, numbers, text

_log = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]


def measurement_names(node: JavaObject | None) -> list[JavaString]:
    """Return the nodes of the names in a list; an unknown class of list has none.

    Raises
    ------
    qpnuclei.errors.FormatError
        If a measurement has no name.
    """
    if node is None:
        return []
    if node.class_name in (jc.FLOAT_LIST, jc.DOUBLE_LIST):
        names = jf.list_items(jf.reference(node, "names"))
    elif node.class_name == jc.DEFAULT_LIST:
        items = jf.list_items(jf.reference(node, "list"))
        names = [jf.string_field(m, "name") for m in items if isinstance(m, JavaObject)]
    else:
        _log.warning("measurements of unknown class %s are not read", node.class_name)
        return []
    if not all(isinstance(name, JavaString) for name in names):
        raise FormatError("a measurement has no name")
    return [name for name in names if isinstance(name, JavaString)]


def measurement_values(view: PathObject, source: ValueSource) -> list[tuple[str, FloatArray]]:
    """Return the name of every measurement, and its value in each object (NaN without a value)."""
    node = view.measurements
    names = [text(name, source) for name in measurement_names(node)]
    if node is None or not names:
        return []
    measured = []
    if node.class_name == jc.DEFAULT_LIST:
        items = jf.list_items(jf.reference(node, "list"))
        for name, item in zip(names, items, strict=True):
            if isinstance(item, JavaObject):
                measured.append((name, numbers(item, "value", source).astype(np.float64)))
        return measured
    class_name = jc.FLOAT_ARRAY if node.class_name == jc.FLOAT_LIST else jc.DOUBLE_ARRAY
    column = source.column(jf.array_field(node, "values", class_name))
    values = np.frombuffer(column.data, ">f4" if class_name == jc.FLOAT_ARRAY else ">f8")
    edges = column.offsets // values.itemsize
    for index, name in enumerate(names):
        # An open list may be longer than its names (spare capacity), but never shorter.
        result = np.full(len(edges) - 1, np.nan)
        present = np.diff(edges) > index
        with np.errstate(invalid="ignore"):  # a signalling NaN of the file
            result[present] = values[edges[:-1][present] + index]
        measured.append((name, result))
    return measured
