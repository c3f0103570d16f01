"""The objects of an image: read QuPath's PathObjectHierarchy of a data file, and remove from it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not

import numpy as np

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Annotation, Detections, TmaCore
from qpnuclei.qupath.qpdata.annotations import read_annotation, read_core
from qpnuclei.qupath.qpdata.detections import FileDetections, packed_ids
from qpnuclei.qupath.qpdata.java_nodes import Content, JavaObject
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import DETECTION_KINDS, PathObject, located, walk

_TYPE_COUNTS = {
    "root": "Root objects",
    "annotation": "Annotations",
    "core": "TMA cores",
    "detection": "Detections",
    "cell": "Cells",
    "tile": "Tiles",
}


@dataclass(frozen=True, eq=False)
class Objects:
    """The objects of a file, how many there are of each kind, and the image's properties.

    Only text properties are included.
    """

    annotations: tuple[Annotation, ...]
    detections: Detections
    type_counts: Mapping[str, int]
    properties: Mapping[str, str]
    cores: tuple[TmaCore, ...] = ()

    def summary(self) -> dict[str, object]:
        """Return the ``hierarchy`` of QuPath's ``summary.json``."""

        def classes(names: Sequence[str | None]) -> dict[str, int]:
            return dict(Counter("Unclassified" if n is None else n for n in names))

        return {
            "nObjects": sum(self.type_counts.values()),
            "objectTypeCounts": dict(self.type_counts),
            "annotationClassificationCounts": classes([a.class_name for a in self.annotations]),
            "detectionClassificationCounts": classes(self.detections.class_names),
        }


def annotations_of(root: JavaObject) -> list[PathObject]:
    """Return the annotations in the order of their handles."""
    return [
        item for item, _ in walk(root) if isinstance(item, PathObject) and item.kind == "annotation"
    ]


def read_hierarchy(
    root: JavaObject,
    properties: Mapping[str, str],
    errors: Callable[[], contextlib.AbstractContextManager[None]],
) -> Objects:
    """Read annotations, and detections lazily: a column is read on first access.

    Parameters
    ----------
    root : JavaObject
        The root object.
    properties : mapping of str to str
        Of the image.
    errors : callable
        Returns the context in which a column is read (see `FileDetections`).

    Raises
    ------
    qpnuclei.errors.FormatError
        If objects are not written as QuPath writes them.
    """
    annotations: list[Annotation] = []
    cores: list[TmaCore] = []
    nearest: dict[PathObject, int] = {}  # handle of the annotation that an object is or is in
    detections: list[tuple[PathObject | Packed, int]] = []
    counts: Counter[str] = Counter()
    for item, ancestors in walk(root):
        parent = nearest[ancestors[-1]] if ancestors else -1
        if isinstance(item, Packed):
            detections.append((item, parent))
            continue
        nearest[item] = parent
        if item.kind in DETECTION_KINDS:
            detections.append((item, parent))
            continue
        counts[_TYPE_COUNTS[item.kind]] += 1
        if item.kind == "annotation":
            nearest[item] = len(annotations)
            own_parent = None if parent < 0 else parent
            with located(item.node.offset):
                annotations.append(read_annotation(item, len(annotations), own_parent))
        elif item.kind == "core" and item.roi is not None:
            with located(item.node.offset):
                cores.append(read_core(item, -1 - len(cores)))
    table = FileDetections(detections, errors)
    for kind, count in table.kind_counts().items():
        counts[_TYPE_COUNTS[kind]] += count
    return Objects(tuple(annotations), table, counts, properties, tuple(cores))


def check_free(root: JavaObject, ids: Container[str], source: str) -> None:
    """Raise UsageError if an object below the root has one of some new UUIDs."""
    for item, _ in walk(root) if ids else ():
        if isinstance(item, Packed):
            found = [text for _, texts in packed_ids(item) for text in texts if text in ids]
        else:
            own_id = item.id_string
            found = [own_id.text] if own_id is not None and own_id.text in ids else []
        if found:
            raise UsageError(f"{source} already has an object {found[0]}")


def remove_objects(root: JavaObject, ids: set[str], source: str) -> None:
    """Remove annotations and detections below the root; their children move up.

    Raises
    ------
    qpnuclei.errors.UsageError
        If one of them does not exist, or is neither.
    """
    left = set(ids)
    parents = [view for view, _ in walk(root) if isinstance(view, PathObject)]
    for view in reversed(parents):  # innermost first: what moves up is already without ours
        children: list[Content] = []
        for item in view.children:
            if isinstance(item, Packed):
                stays = np.ones(len(item), bool)
                for rows, texts in packed_ids(item):
                    stays[rows] = [text not in ids for text in texts]
                    left.difference_update(texts)
                if stays.any():
                    children.append(item if stays.all() else item.take(stays))
                continue
            child = PathObject.of(item) if isinstance(item, JavaObject) else None
            own_id = None if child is None else child.id_string
            if child is None or own_id is None or own_id.text not in ids:
                children.append(item)
            elif child.kind not in (*DETECTION_KINDS, "annotation"):
                raise UsageError(
                    f"{own_id.text} is a {child.kind}: only annotations and detections can be"
                )
            else:
                left.discard(own_id.text)
                children += child.children
        if len(children) != len(view.children) or any(map(is_not, children, view.children)):
            view.set_children(children)
    if left:
        raise UsageError(f"{source} has no object {min(left)} to remove")
