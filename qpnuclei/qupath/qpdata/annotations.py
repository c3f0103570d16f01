"""Annotations and TMA cores of a data file: read them, make new ones, compare them after saving."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain, repeat
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import FormatError
from qpnuclei.qupath.model import Annotation, NewAnnotation, TmaCore
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata.detection_batches import divide
from qpnuclei.qupath.qpdata.detection_properties import class_name, ids, locked
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import AnyClassDesc, JavaObject, JavaString
from qpnuclei.qupath.qpdata.measurement_lists import measurement_values
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import OBJECT_ID, PathObject, count_of
from qpnuclei.qupath.qpdata.rois import Plane, Rois, make_roi, read_rois
from qpnuclei.qupath.qpdata.values import Nodes, NotConstantError, ValueSource, numbers, texts


def annotation_node(catalog: Catalog, new: NewAnnotation) -> JavaObject:
    """Make the object of a new annotation."""
    path_class = None
    if new.path_class is not None:
        path_class = catalog.path_class(new.path_class.name, new.path_class.color)
    return catalog.path_object(
        jc.ANNOTATION,
        metadata=id_metadata(catalog, new.id, new.metadata),
        name=new.name,
        color=new.color,
        measurements=catalog.measurements(new.measurements) if new.measurements else None,
        is_locked=new.locked,
        path_class=path_class,
        roi=make_roi(catalog, new.geometry, Plane(z=new.z, t=new.t)),
    )


def id_metadata(
    catalog: Catalog, own_id: uuid.UUID, others: Mapping[str, str] = MappingProxyType({})
) -> JavaObject:
    """Make the metadata of an object: first its UUID, then other entries."""
    pairs = [(catalog.string(OBJECT_ID), JavaString.of(str(own_id)))]
    pairs += [(catalog.string(k), JavaString.of(v)) for k, v in others.items() if k != OBJECT_ID]
    return catalog.metadata(pairs)


def read_annotations(items: Sequence[tuple[PathObject | Packed, int | None]]) -> list[Annotation]:
    """Read annotations; their handles count from 0.

    Parameters
    ----------
    items : sequence of (PathObject or Packed, int or None)
        Annotations, single or packed, and the handle of the nearest annotation above them.

    Raises
    ------
    qpnuclei.errors.FormatError
        If one of them has no ROI, or is inconsistent.
    """
    parents = chain.from_iterable(repeat(parent, count_of(item)) for item, parent in items)
    values = _read([item for item, _ in items])
    return [
        Annotation(handle=handle, parent=parent, **own)
        for handle, (parent, own) in enumerate(zip(parents, values, strict=True))
    ]


def read_cores(views: Sequence[PathObject]) -> list[TmaCore]:
    """Read TMA cores; an error is raised as by `read_annotations`."""
    return [
        TmaCore(handle=-1 - index, missing=view.is_missing, **own)
        for index, (view, own) in enumerate(zip(views, _read(views), strict=True))
    ]


def _read(items: Sequence[PathObject | Packed]) -> list[dict[str, Any]]:
    """Return the values of annotations or TMA cores, by their names in `Annotation`."""
    rois = _single_rois([item for item in items if isinstance(item, PathObject)])
    read: list[dict[str, Any]] = []
    for item in items:
        found: npt.NDArray[Any] = np.empty(count_of(item), dtype=object)
        for batch in divide(item):
            found[batch.rows] = batch.read(partial(_values, rois=rois.get(item)))
        read += found.tolist()
    return read


def _values(view: PathObject, source: ValueSource, rois: Rois | None) -> list[dict[str, Any]]:
    """Return the values of all objects of a source; `rois` are theirs, if they were read before."""
    if view.roi is None:
        raise FormatError("an annotation has no ROI")
    if rois is None:
        rois = read_rois(view.roi, source)
    columns = {
        "id": ids(view, source),
        "name": texts(view.name, source),
        "geometry": rois.geometries,
        "locked": locked(view, source).tolist(),
        "color": [None] * source.count
        if view.color is None
        else numbers(view.color, "value", source).tolist(),
        "z": rois.z.tolist(),
        "t": rois.t.tolist(),
    }
    shared = {"class_name": class_name(view, source), "roi_type": rois.roi_type}
    metadata = {k.text: texts(v, source) for k, v in view.metadata if k.text != OBJECT_ID}
    measured = measurement_values(view, source)
    return [
        {
            **dict(zip(columns, values, strict=True)),
            **shared,
            "metadata": {key: column[index] for key, column in metadata.items()},
            "measurements": {key: float(column[index]) for key, column in measured},
        }
        for index, values in enumerate(zip(*columns.values(), strict=True))
    ]


def _single_rois(views: Sequence[PathObject]) -> dict[PathObject | Packed, Rois]:
    """Read the ROIs of objects together, class by class.

    Those that cannot be read together are left out. Reading them one by one names the damaged one.
    """
    of_class: dict[AnyClassDesc, list[tuple[PathObject, JavaObject]]] = {}
    for view in views:
        if view.roi is not None:
            of_class.setdefault(view.roi.desc, []).append((view, view.roi))
    found: dict[PathObject | Packed, Rois] = {}
    for pairs in of_class.values():
        nodes = [roi for _, roi in pairs]
        with contextlib.suppress(NotConstantError, FormatError):
            rois = read_rois(nodes[0], Nodes(nodes))
            found |= {view: rois.one(i) for i, (view, _) in enumerate(pairs)}
    return found


def check_annotation(found: Annotation, new: NewAnnotation) -> None:
    """Raise FormatError unless the found annotation equals the one that was added."""
    class_name = None if new.path_class is None else new.path_class.name
    if (found.id, found.name, found.class_name, found.locked, found.z, found.t, found.color) != (
        new.id, new.name, class_name, new.locked, new.z, new.t, new.color
    ):  # fmt: skip
        raise FormatError("a new annotation is missing, or has other values")
    metadata = {name: value for name, value in new.metadata.items() if name != OBJECT_ID}
    if found.metadata != metadata or found.measurements.keys() != new.measurements.keys():
        raise FormatError("a new annotation has other metadata or measurements")
    for name, value in new.measurements.items():
        if not np.array_equal(found.measurements[name], value, equal_nan=True):
            raise FormatError(f"{name!r} of a new annotation has another value")
