"""Annotations and TMA cores of a data file: read them, make new ones, compare after saving."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from qpnuclei.errors import FormatError
from qpnuclei.qupath.model import Annotation, NewAnnotation, TmaCore
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import JavaObject, JavaString
from qpnuclei.qupath.qpdata.measurement_lists import read_measurements
from qpnuclei.qupath.qpdata.path_classes import path_class_names
from qpnuclei.qupath.qpdata.path_objects import OBJECT_ID, PathObject, parse_uuid
from qpnuclei.qupath.qpdata.rois import Plane, make_roi, read_rois
from qpnuclei.qupath.qpdata.values import Single


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
    """Make the metadata of an object: its UUID, then the others."""
    pairs = [(catalog.string(OBJECT_ID), JavaString.of(str(own_id)))]
    pairs += [(catalog.string(k), JavaString.of(v)) for k, v in others.items() if k != OBJECT_ID]
    return catalog.metadata(pairs)


def read_annotation(view: PathObject, handle: int, parent: int | None) -> Annotation:
    """Read an annotation.

    Raises
    ------
    qpnuclei.errors.FormatError
        If it has no ROI.
    """
    if view.roi is None:
        raise FormatError("an annotation has no ROI")
    rois = read_rois(view.roi, Single())
    own_id = view.id_string
    return Annotation(
        handle=handle,
        id=None if own_id is None else parse_uuid(own_id.text),
        name=None if view.name is None else view.name.text,
        class_name=None
        if view.path_class is None
        else ": ".join(path_class_names(view.path_class)),
        roi_type=rois.roi_type,
        geometry=rois.geometries[0],
        locked=view.is_locked,
        color=None if view.color is None else int(jf.primitive(view.color, "value")),
        parent=parent,
        z=int(rois.z[0]),
        t=int(rois.t[0]),
        metadata={key.text: value.text for key, value in view.metadata if key.text != OBJECT_ID},
        measurements=read_measurements(view),
    )


def read_core(view: PathObject, handle: int) -> TmaCore:
    """Read a TMA core."""
    return TmaCore(**vars(read_annotation(view, handle, None)), missing=view.is_missing)


def check_annotation(found: Annotation, new: NewAnnotation) -> None:
    """Raise FormatError unless the annotation found is the one that was added."""
    class_name = None if new.path_class is None else new.path_class.name
    if (found.id, found.name, found.class_name, found.locked, found.z, found.t, found.color) != (
        new.id, new.name, class_name, new.locked, new.z, new.t, new.color
    ):  # fmt: skip
        raise FormatError("a new annotation is missing, or has other values")
    metadata = {name: value for name, value in new.metadata.items() if name != OBJECT_ID}
    if found.metadata != metadata or found.measurements.keys() != new.measurements.keys():
        raise FormatError("a new annotation has other metadata or measurements")
    for name, value in new.measurements.items():
        if not np.isclose(found.measurements[name], value, rtol=1e-6, atol=0, equal_nan=True):
            raise FormatError("a new annotation has other measurements")
