"""Apply an edit to QuPath's hierarchy of objects, and compare the hierarchy after saving."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from qpnuclei.errors import UsageError, number_of
from qpnuclei.qupath.model import Edit, PathClass, check_ours
from qpnuclei.qupath.paquo import jvm
from qpnuclei.qupath.paquo.jvm import JavaObject, method, pipe
from qpnuclei.qupath.paquo.objects import (
    MEASUREMENT_LIST,
    PATH_CLASS,
    PATH_IO,
    PATH_OBJECT,
    all_objects,
    centroids_of,
    ids_of,
    only,
    to_id,
    to_parent_id,
)
from qpnuclei.qupath.qpdata.annotations import annotation_node
from qpnuclei.qupath.qpdata.java_instances import Catalog
from qpnuclei.qupath.qpdata.java_nodes import Content
from qpnuclei.qupath.qpdata.new_data_file import data_file_of_objects
from qpnuclei.qupath.qpdata.new_detections import Additions, NewPart, plane_of, uniform_parts
from qpnuclei.qupath.qpdata.rois import Plane


def apply_edit(
    additions: Additions, new_ids: Collection[str], hierarchy: JavaObject
) -> HierarchySnapshot:
    """Apply an edit to a hierarchy, with one event at its end; return the state before."""
    edit = additions.edit
    objects = all_objects(hierarchy)
    annotations = only(objects, "isAnnotation")
    root = hierarchy.getRootObject()
    if edit.remove or edit.remove_annotations:
        _remove(edit, objects, hierarchy)
        annotations = only(all_objects(hierarchy), "isAnnotation")
    before = HierarchySnapshot.of(hierarchy)
    if new_ids:
        taken = [own_id for own_id in ids_of(all_objects(hierarchy)) if own_id in new_ids]
        if taken:
            raise UsageError(f"the image already has an object {taken[0]}")
    for path_class in additions.path_classes:
        _define(path_class)
    catalog = Catalog()
    new = _make(catalog, [annotation_node(catalog, new) for new in edit.annotations])
    parents: dict[int | None, JavaObject] = {None: root, **dict(enumerate([*annotations, *new]))}
    for parent in additions.counts:
        if parent not in parents:
            raise UsageError(f"the image has no annotation number {parent}")
        plane = _plane_of(parents[parent])
        for group in additions.groups(parent):
            for part in uniform_parts(group):
                new_part = NewPart(catalog, part, plane_of(part, plane))
                parents[parent].addChildObjects(_make(catalog, [new_part]))
    root.addChildObjects(new)
    hierarchy.fireHierarchyChangedEvent(root)
    return before


def _make(catalog: Catalog, nodes: Sequence[Content]) -> JavaObject:
    """Return the Java list of new objects, decoded by QuPath from their saved form.

    One call suffices for any number of objects; QuPath's methods need dozens per object.
    """
    data = bytearray()
    data_file_of_objects(catalog, nodes).write(data.extend)
    stream = jvm.java_class("java.io.ByteArrayInputStream")(jvm.byte_array(data))
    root = jvm.java_class(PATH_IO).readHierarchy(stream).getRootObject()
    made = jvm.java_class("java.util.ArrayList")(root.getChildObjects())
    root.clearChildObjects()
    return made


def _plane_of(parent: JavaObject) -> Plane:
    """Return the channel, z-slice and time point of an object; the first ones for the root."""
    roi = parent.getROI()
    return Plane() if roi is None else Plane(int(roi.getC()), int(roi.getZ()), int(roi.getT()))


def _remove(edit: Edit, objects: JavaObject, hierarchy: JavaObject) -> None:
    """Remove detections and annotations; their children move up."""
    found = jvm.java_class("java.util.ArrayList")()
    for kind, numbers in (
        ("Detection", edit.remove),
        ("Annotation", edit.remove_annotations),
    ):
        of_kind = only(objects, f"is{kind}")
        if numbers and not 0 <= min(numbers) <= max(numbers) < of_kind.size():
            raise UsageError(f"the image has no {kind.lower()} number {max(numbers)} to remove")
        if numbers:
            found.addAll(jvm.take(of_kind, np.array(sorted(numbers), np.int64)))
    check_ours(map(uuid.UUID, ids_of(found)))
    hierarchy.removeObjects(found, True)


def _define(path_class: PathClass) -> None:
    """Create QuPath's class with this name; a new class gets our colour."""
    color = path_class.color
    jvm.java_class(PATH_CLASS).fromString(
        path_class.name, None if color is None else jvm.box(color)
    )


@dataclass(frozen=True, eq=False)
class HierarchySnapshot:
    """Properties of a hierarchy that must be the same after saving and reading back."""

    count: int
    digests: Mapping[str, bytes]
    measurement_counts: npt.NDArray[np.int64]
    centroids: npt.NDArray[np.float64]

    @classmethod
    def of(cls, hierarchy: JavaObject) -> HierarchySnapshot:
        """Record the objects of a hierarchy."""
        objects = all_objects(hierarchy)
        count = pipe(
            method(PATH_OBJECT, "getMeasurementList", MEASUREMENT_LIST),
            method(MEASUREMENT_LIST, "size", "int"),
        )
        root = str(hierarchy.getRootObject().getID())  # differs at every read
        texts = {
            "ids": jvm.joined_texts(objects, to_id()),
            "parents": jvm.joined_texts(objects, to_parent_id()).replace(root, ""),
            "classes": jvm.joined_texts(objects, method(PATH_OBJECT, "getPathClass", PATH_CLASS)),
        }
        return cls(
            count=int(objects.size()),
            # The texts of a million objects take hundreds of megabytes.
            digests={name: hashlib.sha256(t.encode()).digest() for name, t in texts.items()},
            measurement_counts=jvm.ints(objects, count),
            centroids=centroids_of(objects),
        )

    def difference(self, other: HierarchySnapshot) -> str | None:
        """Return the first difference as text; None if there is none."""
        if self.count != other.count:
            return f"{number_of(other.count, 'object')} instead of {self.count}"
        for what, digest in self.digests.items():
            if digest != other.digests[what]:
                return f"other {what}"
        if not np.array_equal(self.measurement_counts, other.measurement_counts):
            return "other measurements"
        # QuPath 0.6 and newer round some geometries to 0.01 px when they read them.
        if not np.allclose(self.centroids, other.centroids, rtol=0, atol=0.05, equal_nan=True):
            return "other centroids"
        return None
