"""The objects of an image: read QuPath's PathObjectHierarchy in a data file, and remove objects."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not

import numpy as np

from qpnuclei.errors import UsageError
from qpnuclei.qupath.model import Annotation, Detections, TmaCore
from qpnuclei.qupath.qpdata.annotations import read_annotations, read_cores
from qpnuclei.qupath.qpdata.detections import FileDetections, packed_ids
from qpnuclei.qupath.qpdata.java_nodes import Content, JavaObject
from qpnuclei.qupath.qpdata.packed_records import Packed
from qpnuclei.qupath.qpdata.path_objects import (
    DETECTION_KINDS,
    PathObject,
    are_annotations,
    count_of,
    walk,
)

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
    """The objects of a file, the number of each kind, and the image's text properties."""

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


def annotations_of(root: JavaObject, handles: Collection[int]) -> dict[int, PathObject]:
    """Return the annotations with these handles, as far as they exist; packed ones become nodes."""
    wanted = np.array(sorted(handles), np.int64)
    among = frozenset(handles)
    found: dict[int, PathObject] = {}
    first = 0
    for item, _ in walk(root):
        if isinstance(item, Packed) and are_annotations(item):
            begin, end = np.searchsorted(wanted, (first, first + len(item)))
            for handle in wanted[begin:end].tolist():
                node = item.nodes[handle - first] = item.node(handle - first)
                found[handle] = PathObject.of(node)
            first += len(item)
        elif isinstance(item, PathObject) and item.kind == "annotation":
            if first in among:
                found[first] = item
            first += 1
    return found


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
        Properties of the image.
    errors : callable
        Returns the context in which a column is read (see `FileDetections`).

    Raises
    ------
    qpnuclei.errors.FormatError
        If objects are not in the form that QuPath writes.
    """
    annotations: list[tuple[PathObject | Packed, int | None]] = []
    cores: list[PathObject] = []
    nearest: dict[PathObject, int] = {}  # handle of the object itself or of its nearest annotation
    detections: list[tuple[PathObject | Packed, int]] = []
    counts: Counter[str] = Counter()
    for item, ancestors in walk(root):
        parent = nearest[ancestors[-1]] if ancestors else -1
        if isinstance(item, Packed):
            kind = "annotation" if are_annotations(item) else "detection"
        else:
            kind = item.kind
            nearest[item] = counts["annotation"] if kind == "annotation" else parent
        if kind in DETECTION_KINDS:
            detections.append((item, parent))
            continue
        counts[kind] += count_of(item)
        if kind == "annotation":
            annotations.append((item, None if parent < 0 else parent))
        elif isinstance(item, PathObject) and kind == "core" and item.roi is not None:
            cores.append(item)
    table = FileDetections(detections, errors)
    counts += table.kind_counts()
    return Objects(
        tuple(read_annotations(annotations)),
        table,
        {_TYPE_COUNTS[kind]: count for kind, count in counts.items()},
        properties,
        tuple(read_cores(cores)),
    )


def check_free(root: JavaObject, ids: Container[str], source: str) -> None:
    """Raise UsageError if an object below the root has one of the new UUIDs."""
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
        If one of the objects does not exist, or is neither an annotation nor a detection.
    """
    left = set(ids)
    parents = [view for view, _ in walk(root) if isinstance(view, PathObject)]
    for view in reversed(parents):  # innermost first, so children that move up are already final
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
                    f"{own_id.text} is a {child.kind}: only annotations and detections can be "
                    "removed"
                )
            else:
                left.discard(own_id.text)
                children += child.children
        if len(children) != len(view.children) or any(map(is_not, children, view.children)):
            view.set_children(children)
    if left:
        raise UsageError(f"{source} has no object {min(left)} to remove")
