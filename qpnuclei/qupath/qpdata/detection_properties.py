"""The properties of detections: one function each, for a single detection or many alike.

Given the view of an example and a source of N objects, each returns a value for every object, or
the one value that all of them have.
"""

from __future__ import annotations

import uuid
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import JavaObject
from qpnuclei.qupath.qpdata.path_classes import path_class_chain
from qpnuclei.qupath.qpdata.path_objects import PathObject, parse_uuid
from qpnuclei.qupath.qpdata.record_columns import Column
from qpnuclei.qupath.qpdata.rois import read_outlines, read_rois
from qpnuclei.qupath.qpdata.values import ValueSource, text

FloatArray = npt.NDArray[np.float64]


def class_name(view: PathObject, source: ValueSource) -> str | None:
    """Return the name that all of them have in common; None without a class."""
    if view.path_class is None:
        return None
    names = (jf.string_field(part, "name") for part in path_class_chain(view.path_class))
    return ": ".join("" if name is None else text(name, source) for name in names)


def id_texts(view: PathObject, source: ValueSource) -> list[str | None]:
    """Return the UUIDs as text; None for those without."""
    string = view.id_string
    return [None] * source.count if string is None else [*_texts(source.column(string))]


def ids(view: PathObject, source: ValueSource) -> list[uuid.UUID | None]:
    """Return the UUIDs; None for those without."""
    return [None if text is None else parse_uuid(text) for text in id_texts(view, source)]


def geometries(view: PathObject, source: ValueSource) -> npt.NDArray[Any]:
    """Return the (N,) Shapely geometries of the ROIs, level-0 px."""
    return read_rois(_roi(view), source).geometries


def nucleus_geometries(view: PathObject, source: ValueSource) -> npt.NDArray[Any]:
    """Return the same of the nuclei of cells that have one."""
    return read_rois(_nucleus(view), source).geometries


def outlines(view: PathObject, source: ValueSource) -> NucleiTable | None:
    """Return the outlines of the ROIs; None if one is not a polygon, or has a hole."""
    return read_outlines(_roi(view), source)


def nucleus_outlines(view: PathObject, source: ValueSource) -> NucleiTable | None:
    """Return the same of the nuclei of cells that have one."""
    return read_outlines(_nucleus(view), source)


def centroids(view: PathObject, source: ValueSource) -> FloatArray:
    """Return the (N, 2) centroids as QuPath computes them, level-0 px."""
    # QuPath locates a cell by its nucleus, where it has one.
    return read_rois(_nucleus(view), source).centroids()


def planes(view: PathObject, source: ValueSource) -> npt.NDArray[np.int64]:
    """Return the (N, 2) z-slices and time points."""
    roi = _roi(view)
    part = jf.part_with(roi, "z")
    numbers = source.column(part).data
    columns = [jf.primitive_column(part, axis, numbers) for axis in ("z", "t")]
    return np.stack(columns, axis=1).astype(np.int64)


def locked(view: PathObject, source: ValueSource) -> npt.NDArray[np.bool_]:
    """Return which of the N are locked."""
    if view.lock is None:
        return np.zeros(source.count, bool)
    part = jf.part_with(view.lock, "value")
    return jf.primitive_column(part, "value", source.column(part).data).astype(bool)


def _roi(view: PathObject) -> JavaObject:
    if view.roi is None:
        raise FormatError("a detection has no ROI")
    return view.roi


def _nucleus(view: PathObject) -> JavaObject:
    return _roi(view) if view.nucleus is None else view.nucleus


def _texts(column: Column) -> list[str]:
    data, edges = column.data.decode("latin-1"), column.offsets.tolist()
    return [data[a:b] for a, b in pairwise(edges)]
