"""Recognise similar objects while a stream is parsed, and keep them as bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass, field

import numpy as np

from qpnuclei.qupath.qpdata.java_nodes import OBJECT, Content, JavaObject, Node
from qpnuclei.qupath.qpdata.packed_records import CHUNK, Packed
from qpnuclei.qupath.qpdata.record_columns import IntArray
from qpnuclei.qupath.qpdata.record_shapes import KnownShape, NotUniformError, Shape

#: Number of shapes of a kind to try on the next object, most recently used first.
MAX_CANDIDATES = 32
#: After this many shapes of a kind that never recurred, no more of that kind are learned.
MAX_USELESS = 1_000


@dataclass(eq=False)
class _Shapes:
    """The known shapes of one kind of objects, and how many of them have not recurred."""

    candidates: list[KnownShape] = field(default_factory=list)
    useless: int = 0


class RecordPacker:
    """Keeps runs of similar objects of some classes as bytes while a stream is parsed.

    Parameters
    ----------
    kind_of : callable
        Returns the kind of an object that is likely to be one of many; empty for others. Objects of
        different kinds are not packed together.
    few : int
        Number of such objects to parse before the first shape is learned.
    """

    def __init__(self, kind_of: Callable[[JavaObject], str], few: int = 0) -> None:
        self._kind_of = kind_of
        self._few = few
        self._shapes: defaultdict[str, _Shapes] = defaultdict(_Shapes)
        self._packed: list[Packed] = []
        self._first_handles: list[int] = []
        self._edges: dict[int, IntArray] = {}  # first handles of the records, by index in _packed
        self._parsed = 0
        self._starts = np.empty(CHUNK, np.int64)

    def take(self, data: bytes, start: int, handle: int) -> tuple[Packed, int, int] | None:
        """Pack the objects of one kind and of known shapes at `start`.

        Returns
        -------
        (Packed, int, int) or None
            The objects, the offset after them and the next handle; None if no shape matches.
        """
        shapes: dict[KnownShape, int] = {}
        starts: list[IntArray] = []
        which: list[IntArray] = []
        position, first = start, handle
        kinds = list(self._shapes.values())
        while position < len(data) and data[position] == OBJECT:
            kind, known = _recognise(kinds, data, position)
            if kind is None or known is None:
                break
            kinds = [kind]
            count, position = known.match(data, position, self._starts)
            run_starts = self._starts[:count].copy()
            starts.append(run_starts)
            which.append(np.full(len(run_starts), shapes.setdefault(known, len(shapes))))
            handle += len(run_starts) * known.shape.handle_count
        if not starts:
            return None
        edges = np.append(np.concatenate(starts), position)
        packed = Packed(data, tuple(shapes), np.concatenate(which), edges[:-1], edges[1:])
        self._packed.append(packed)
        self._first_handles.append(first)
        return packed, position, handle

    def learn(self, node: Content, handles: Mapping[Node, int], first_handle: int) -> None:
        """Remember the shape of a parsed object, if later objects may have the same shape."""
        if not isinstance(node, JavaObject) or not (kind := self._kind_of(node)):
            return
        self._parsed += 1
        shapes = self._shapes[kind]
        if self._parsed <= self._few or shapes.useless > MAX_USELESS:
            return
        try:
            shape = Shape(node, _Before(handles, first_handle))
        except NotUniformError:
            return
        shapes.useless += 1
        shapes.candidates.insert(0, KnownShape(shape, handles))
        del shapes.candidates[MAX_CANDIDATES:]

    def unpack(self, handle: int) -> tuple[int, int] | None:
        """Return start and first handle of the packed record with `handle`; None without one."""
        record = self._find(handle)
        if record is None:
            return None
        packed, index, first = record
        return int(packed.starts[index]), first

    def unpacked(self, handle: int, node: JavaObject) -> None:
        """Receive the nodes of the record whose first handle is `handle`."""
        record = self._find(handle)
        if record is not None:
            packed, index, _ = record
            packed.nodes[index] = node

    def _find(self, handle: int) -> tuple[Packed, int, int] | None:
        at = bisect_right(self._first_handles, handle) - 1
        if at < 0:
            return None
        packed = self._packed[at]
        if at not in self._edges:
            counts = np.array([known.shape.handle_count for known in packed.shapes], np.int64)
            self._edges[at] = np.cumsum(np.append(self._first_handles[at], counts[packed.which]))
        edges = self._edges[at]
        index = int(np.searchsorted(edges, handle, side="right")) - 1
        return None if index == len(packed) else (packed, index, int(edges[index]))


def _recognise(
    kinds: list[_Shapes], data: bytes, start: int
) -> tuple[_Shapes, KnownShape] | tuple[None, None]:
    """Return kind and shape of the record at `start`; None if no known shape matches."""
    for shapes in kinds:
        for index, known in enumerate(shapes.candidates):
            if known.is_at(data, start):
                shapes.candidates.insert(0, shapes.candidates.pop(index))
                shapes.useless -= not known.useful
                known.useful = True
                return shapes, known
    return None, None


class _Before(Container[Node]):
    """The nodes with smaller handles than a given one."""

    def __init__(self, handles: Mapping[Node, int], first_handle: int) -> None:
        self._handles = handles
        self._first = first_handle

    def __contains__(self, node: object) -> bool:
        return self._handles.get(node, self._first) < self._first  # type: ignore[call-overload,no-any-return]
