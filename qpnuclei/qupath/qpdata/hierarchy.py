"""The objects of an image: read QuPath's PathObjectHierarchy in a data file, and remove objects."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from operator import is_not

import numpy as np
import numpy.typing as npt

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


def remove_objects(root: JavaObject, rows: Collection[int], handles: Collection[int]) -> None:
    """Remove the detections in these rows and the annotations with these handles.

    They are numbered as `read_hierarchy` does. Their children move up.
    """
    numbers = {
        "detection": np.array(sorted(rows), np.int64),
        "annotation": np.array(sorted(handles), np.int64),
    }
    firsts = dict.fromkeys(numbers, 0)
    parents: list[PathObject] = []
    gone: set[JavaObject] = set()
    stays: dict[Packed, npt.NDArray[np.bool_]] = {}
    for item, _ in walk(root):
        if isinstance(item, Packed):
            kind = "annotation" if are_annotations(item) else "detection"
        else:
            parents.append(item)
            kind = "detection" if item.kind in DETECTION_KINDS else item.kind
        if kind not in numbers:
            continue
        first = firsts[kind]
        firsts[kind] += count_of(item)
        begin, end = np.searchsorted(numbers[kind], (first, firsts[kind]))
        if begin == end:
            continue
        if isinstance(item, Packed):
            stays[item] = np.ones(len(item), bool)
            stays[item][numbers[kind][begin:end] - first] = False
        else:
            gone.add(item.node)
    for view in reversed(parents):  # innermost first, so children that move up are already final
        children: list[Content] = []
        for child in view.children:
            if isinstance(child, Packed) and child in stays:
                if stays[child].any():
                    children.append(child.take(stays[child]))
            elif isinstance(child, JavaObject) and child in gone:
                children += PathObject.of(child).children
            else:
                children.append(child)
        if len(children) != len(view.children) or any(map(is_not, children, view.children)):
            view.set_children(children)
