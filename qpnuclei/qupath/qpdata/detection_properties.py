"""The properties of detections: one function each, for a single detection or many similar ones.

Annotations have some of them, too.

Given the view of an example and a source of N objects, each function returns a value for every
object, or the common value of all objects.
"""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.nuclei.ids import UUID_LENGTH, are_ours, is_ours
from qpnuclei.nuclei.table import NucleiTable
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import JavaObject
from qpnuclei.qupath.qpdata.path_classes import path_class_chain
from qpnuclei.qupath.qpdata.path_objects import PathObject, parse_uuid
from qpnuclei.qupath.qpdata.rois import read_outlines, read_rois
from qpnuclei.qupath.qpdata.values import ValueSource, numbers, text, texts

FloatArray = npt.NDArray[np.float64]


def class_name(view: PathObject, source: ValueSource) -> str | None:
    """Return the name of their common class; None without a class."""
    if view.path_class is None:
        return None
    names = (jf.string_field(part, "name") for part in path_class_chain(view.path_class))
    return ": ".join("" if name is None else text(name, source) for name in names)


def id_texts(view: PathObject, source: ValueSource) -> list[str | None]:
    """Return the UUIDs as text; None for objects without a UUID."""
    return texts(view.id_string, source)


def ids(view: PathObject, source: ValueSource) -> list[uuid.UUID | None]:
    """Return the UUIDs; None for objects without a UUID."""
    return [None if text is None else parse_uuid(text) for text in id_texts(view, source)]


def ours(view: PathObject, source: ValueSource) -> npt.NDArray[np.bool_]:
    """Return whether qpnuclei wrote each of the N objects."""
    string = view.id_string
    if string is None:
        return np.zeros(source.count, bool)
    column = source.column(string)
    if np.all(np.diff(column.offsets) == UUID_LENGTH):
        characters = np.frombuffer(column.data, np.uint8).reshape(-1, UUID_LENGTH)
        return are_ours(characters)
    return np.array([is_ours(own_id) for own_id in ids(view, source)], bool)


def geometries(view: PathObject, source: ValueSource) -> npt.NDArray[Any]:
    """Return the (N,) Shapely geometries of the ROIs, level-0 px."""
    return read_rois(_roi(view), source).geometries


def nucleus_geometries(view: PathObject, source: ValueSource) -> npt.NDArray[Any]:
    """Return the geometries of the nuclei of cells, and of the ROIs of all other objects."""
    return read_rois(_nucleus(view), source).geometries


def outlines(view: PathObject, source: ValueSource) -> NucleiTable | None:
    """Return the outlines of the ROIs; None if one is not a polygon, or has a hole."""
    return read_outlines(_roi(view), source)


def nucleus_outlines(view: PathObject, source: ValueSource) -> NucleiTable | None:
    """Return the outlines of the nuclei of cells, and of the ROIs of all other objects."""
    return read_outlines(_nucleus(view), source)


def centroids(view: PathObject, source: ValueSource) -> FloatArray:
    """Return the (N, 2) centroids as QuPath computes them, level-0 px."""
    # QuPath uses the centroid of the nucleus, if a cell has one.
    return read_rois(_nucleus(view), source).centroids()


def planes(view: PathObject, source: ValueSource) -> npt.NDArray[np.int64]:
    """Return the (N, 2) z-slices and time points."""
    roi = _roi(view)
    part = jf.part_with(roi, "z")
    numbers = source.column(part).data
    columns = [jf.primitive_column(part, axis, numbers) for axis in ("z", "t")]
    return np.stack(columns, axis=1).astype(np.int64)


def locked(view: PathObject, source: ValueSource) -> npt.NDArray[np.bool_]:
    """Return whether each of the N objects is locked."""
    if view.lock is None:
        return np.zeros(source.count, bool)
    return numbers(view.lock, "value", source).astype(bool)


def _roi(view: PathObject) -> JavaObject:
    if view.roi is None:
        raise FormatError("a detection has no ROI")
    return view.roi


def _nucleus(view: PathObject) -> JavaObject:
    return _roi(view) if view.nucleus is None else view.nucleus
