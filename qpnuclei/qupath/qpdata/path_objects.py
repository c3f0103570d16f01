"""QuPath's PathObjects (annotations, detections, TMA cores) as views of the nodes of a file.

``writeExternal`` of a PathObject writes, in this order:

1. name, colour, metadata (always since 0.4, with the UUID under the key `Object ID`), measurements,
   the number of children, and the children;
2. if it is a PathROIObject: locked, class, ROI, class probability. So children come before their
   parent's ROI;
3. for a cell the ROI of its nucleus, and for a TMA core whether it is missing.
"""

from __future__ import annotations

import struct
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from qpnuclei.errors import FormatError, number_of
from qpnuclei.qupath.qpdata import java_classes as jc
from qpnuclei.qupath.qpdata import java_fields as jf
from qpnuclei.qupath.qpdata.java_nodes import (
    BlockData,
    Bulk,
    Content,
    JavaArray,
    JavaObject,
    JavaString,
)
from qpnuclei.qupath.qpdata.packed_records import Packed

OBJECT_ID = "Object ID"

#: Kind of object by QuPath's class.
KINDS = {
    jc.ROOT: "root",
    jc.ANNOTATION: "annotation",
    jc.DETECTION: "detection",
    jc.CELL: "cell",
    jc.TILE: "tile",
    jc.TMA_CORE: "core",
}
#: Kinds that QuPath counts as detections.
DETECTION_KINDS = ("detection", "cell", "tile")
#: Classes whose instances are kept as packed bytes, annotations apart from detections.
_PACKED_KINDS = {
    jc.ANNOTATION: "annotation",
    jc.DETECTION: "detection",
    jc.CELL: "detection",
    jc.TILE: "detection",
}


@dataclass(eq=False)
class PathObject:
    """A view of one PathObject; its values are the nodes of the file.

    Parameters
    ----------
    node : JavaObject
    kind : str
        A value of `KINDS`.
    metadata : list of (JavaString, JavaString)
        Keys and values, including the UUID.
    is_locked : bool
    lock : JavaObject or None
        The Boolean for `is_locked`; the oldest files have none.
    class_probability : float
        NaN if there is none.
    """

    node: JavaObject
    kind: str
    name: JavaString | None = None
    color: JavaObject | None = None
    metadata: list[tuple[JavaString, JavaString]] = field(default_factory=list)
    measurements: JavaObject | None = None
    is_locked: bool = False
    lock: JavaObject | None = None
    path_class: JavaObject | None = None
    roi: JavaObject | None = None
    class_probability: float = float("nan")
    nucleus: JavaObject | None = None
    is_missing: bool = False
    _children_begin: int = 0
    _children_end: int = 0

    @classmethod
    def of(cls, node: JavaObject) -> PathObject:
        """Make the view of a node.

        Raises
        ------
        qpnuclei.errors.FormatError
            If it is not a PathObject.
        """
        if node.class_name not in KINDS:
            raise FormatError(f"{node.class_name or 'a proxy'!r} is not an object of QuPath")
        _unfold(jf.contents(node))
        view = cls(node, KINDS[node.class_name])
        reader = _ContentsReader(node)
        name = reader.next()
        if name is not None and not isinstance(name, JavaString):
            raise FormatError(f"{node.class_name}: its name is not a string")
        view.name = name
        view.color = reader.object(jc.INTEGER)
        item = reader.object()
        if item is not None and item.class_name == jc.METADATA_MAP:
            view.metadata = _metadata(item)
            item = reader.object()
        view.measurements = item
        count = reader.unpack(">i")
        view._children_begin = reader.index
        reader.skip_objects(count)
        view._children_end = reader.index
        if view.kind == "root":
            return view
        item = reader.object()
        if item is not None and item.class_name == jc.BOOLEAN:  # absent in the oldest files
            view.lock, view.is_locked = item, bool(jf.primitive(item, "value"))
            item = reader.object()
        if item is not None and item.class_name != jc.PATH_CLASS:
            raise FormatError(f"a {item.class_name} is not a class (PathClass)")
        view.path_class = item
        view.roi = reader.object()
        view.class_probability = reader.unpack(">d")
        if view.kind == "cell":
            view.nucleus = reader.object()
        elif view.kind == "core":
            view.is_missing = reader.unpack(">?")
        return view

    @property
    def id_string(self) -> JavaString | None:
        """The UUID's text; None in files of QuPath 0.2 and 0.3."""
        for key, value in self.metadata:
            if key.text == OBJECT_ID:
                return value
        return None

    @property
    def child_count(self) -> BlockData:
        """The block that ends with the number of children; QuPath writes only the number."""
        block = jf.contents(self.node)[self._children_begin - 1]
        if not isinstance(block, BlockData):
            raise FormatError(f"{self.node.class_name}: the number of its children is missing")
        return block

    @property
    def children(self) -> list[Content]:
        """The children; detections and annotations without children are packed."""
        return jf.contents(self.node)[self._children_begin : self._children_end]

    def set_children(self, children: list[Content]) -> None:
        """Replace the children."""
        count = object_count(children)
        block, contents = self.child_count, jf.contents(self.node)
        contents[self._children_begin : self._children_end] = children
        self._children_end = self._children_begin + len(children)
        data = block.data[:-4] + struct.pack(">i", count)
        contents[self._children_begin - 1] = BlockData(data, block.is_long)


def packed_kind(node: JavaObject) -> str:
    """Return with which objects an object should be packed: ``"annotation"`` or ``"detection"``.

    Empty for an object of another class, or with children.
    """
    kind = _PACKED_KINDS.get(node.class_name, "")
    if kind and any(
        isinstance(item, Bulk) or (isinstance(item, JavaObject) and item.class_name in KINDS)
        for part in node.parts
        for item in part.contents or ()
    ):
        return ""
    return kind


def are_annotations(packed: Packed) -> bool:
    """Tell whether packed objects are annotations, rather than detections."""
    return packed.shapes[0].shape.example.class_name == jc.ANNOTATION


def walk(root: JavaObject) -> Iterator[tuple[PathObject | Packed, list[PathObject]]]:
    """Yield all objects of a hierarchy, parents first; packed objects stay packed.

    Yields
    ------
    (PathObject or Packed, list of PathObject)
        The object(s) and their ancestors, outermost first.

    Raises
    ------
    qpnuclei.errors.FormatError
        If an object is not in the form that QuPath writes, or occurs twice.
    """
    seen: set[JavaObject] = set()
    ancestors: list[PathObject] = []
    pending: list[Iterator[Content]] = [iter([root])]
    while pending:
        item = next(pending[-1], pending)
        if item is pending:
            pending.pop()
            if ancestors:
                ancestors.pop()
            continue
        if isinstance(item, Packed):
            yield item, ancestors
            continue
        if not isinstance(item, JavaObject):
            raise FormatError(f"a {type(item).__name__} is not an object of QuPath")
        if item in seen:
            raise FormatError("an object is its own ancestor, or has two parents")
        seen.add(item)
        with located(item.offset):
            view = PathObject.of(item)
        yield view, ancestors
        ancestors.append(view)
        pending.append(iter(view.children))


def count_of(item: PathObject | Packed) -> int:
    """Return the number of objects of an item of `walk`."""
    return len(item) if isinstance(item, Packed) else 1


def object_count(children: Sequence[Content]) -> int:
    """Return the number of children, including packed ones."""
    return sum(len(child) if isinstance(child, Bulk) else 1 for child in children)


def split_children(children: Sequence[Content], at: int) -> tuple[list[Content], list[Content]]:
    """Return the first `at` children, and the others; packed ones are divided.

    Raises
    ------
    qpnuclei.errors.FormatError
        If there are fewer children, or `at` is negative.
    """
    missing = max(-at, at - object_count(children))
    if missing > 0:
        raise FormatError(f"missing: {number_of(missing, 'object')}")
    first: list[Content] = []
    rest: list[Content] = []
    for item in children:
        if at <= 0:
            rest.append(item)
        elif isinstance(item, Packed) and len(item) > at:
            first.append(item.take(slice(at)))
            rest.append(item.take(slice(at, None)))
        else:
            first.append(item)
        at -= object_count([item])
    return first, rest


@contextmanager
def located(offset: int | None) -> Iterator[None]:
    """Add the byte offset of an object to errors about its content."""
    try:
        yield
    except FormatError as error:
        where = "" if offset is None else f"byte {offset}: "
        raise FormatError(f"{where}{error.what}", error.hint) from None


def parse_uuid(text: str) -> uuid.UUID | None:
    """Return the UUID of a text; None if it is not a UUID in QuPath's form."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


class _ContentsReader:
    """Reads contents as Java does: objects, and primitives from blocks."""

    def __init__(self, node: JavaObject) -> None:
        self.name = node.class_name
        self.items = jf.contents(node)
        self.index = 0
        self.offset = 0

    def next(self) -> Content:
        if self.index >= len(self.items):
            raise FormatError(f"{self.name} ends early")
        item = self.items[self.index]
        if isinstance(item, BlockData | Bulk):
            raise FormatError(f"{self.name} has a {type(item).__name__} where an object should be")
        self.index += 1
        return item

    def object(self, class_name: str | None = None) -> JavaObject | None:
        item = self.next()
        if item is None or (isinstance(item, JavaObject) and class_name in (None, item.class_name)):
            return item
        raise FormatError(f"{self.name} has {item!r:.60} where a {class_name} should be")

    def unpack(self, code: str) -> Any:
        size = struct.calcsize(code)
        block = self.items[self.index] if self.index < len(self.items) else None
        if not isinstance(block, BlockData) or len(block.data) < self.offset + size:
            raise FormatError(f"{self.name} lacks {size} bytes of data")
        (value,) = struct.unpack_from(code, block.data, self.offset)
        self.offset += size
        if self.offset == len(block.data):
            self.index, self.offset = self.index + 1, 0
        return value

    def skip_objects(self, count: int) -> None:
        while count > 0 and self.index < len(self.items):
            item = self.items[self.index]
            count -= len(item) if isinstance(item, Bulk) else 1
            self.index += 1
        if count != 0:
            raise FormatError(f"{self.name}: the number of its children is wrong")


def _unfold(contents: list[Content]) -> None:
    """Split packed records at those that became nodes."""
    if any(isinstance(item, Packed) and item.nodes for item in contents):
        contents[:] = [
            part
            for item in contents
            for part in (item.split() if isinstance(item, Packed) else [item])
        ]


def _metadata(node: JavaObject) -> list[tuple[JavaString, JavaString]]:
    contents = jf.contents(node)
    if len(contents) != 3:
        raise FormatError("metadata should be a version, keys and values")
    keys, values = contents[1:]
    if (
        not isinstance(keys, JavaArray)
        or not isinstance(values, JavaArray)
        or len(keys.items or ()) != len(values.items or ())
    ):
        raise FormatError("metadata should have as many values as keys")
    pairs = []
    for key, value in zip(keys.items or (), values.items or (), strict=True):
        if isinstance(key, JavaString) and isinstance(value, JavaString):
            pairs.append((key, value))
        elif not isinstance(key, JavaString) or value is not None:
            raise FormatError("keys and values of metadata should be strings")
    return pairs
