"""Recognise similar objects while a stream is parsed, so that they stay bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Container, Mapping

import numpy as np

from qpnuclei.qupath.qpdata.java_nodes import OBJECT, Content, JavaObject, Node
from qpnuclei.qupath.qpdata.packed_records import CHUNK, Packed
from qpnuclei.qupath.qpdata.record_columns import IntArray
from qpnuclei.qupath.qpdata.record_shapes import KnownShape, NotUniformError, Shape

#: Number of shapes to try on the next object, most recently used first.
MAX_CANDIDATES = 32
#: After this many shapes that never recurred, no more are learned from a file.
MAX_USELESS = 1_000


class RecordPacker:
    """Keeps runs of similar objects of some classes as bytes while a stream is parsed.

    Parameters
    ----------
    is_packable : callable
        Tells whether an object is likely to be one of many.
    few : int
        Number of such objects that are parsed before the first shape is learned.
    """

    def __init__(self, is_packable: Callable[[JavaObject], bool], few: int = 0) -> None:
        self._is_packable = is_packable
        self._few = few
        self._candidates: list[KnownShape] = []
        self._packed: list[Packed] = []
        self._first_handles: list[int] = []
        self._edges: dict[int, IntArray] = {}  # first handles of the records, by index in _packed
        self._useless = 0
        self._parsed = 0
        self._starts = np.empty(CHUNK, np.int64)

    def take(self, data: bytes, start: int, handle: int) -> tuple[Packed, int, int] | None:
        """Pack the objects of known shapes at `start`.

        Returns
        -------
        (Packed, int, int) or None
            The objects, the offset after them and the next handle; None if there is none.
        """
        shapes: dict[KnownShape, int] = {}
        starts: list[IntArray] = []
        which: list[IntArray] = []
        position, first = start, handle
        while position < len(data) and data[position] == OBJECT:
            known, run_starts, position = self._recognise(data, position)
            if known is None:
                break
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

    def _recognise(self, data: bytes, start: int) -> tuple[KnownShape | None, IntArray, int]:
        """Return shape, starts and end of a run of records that are alike."""
        for index, known in enumerate(self._candidates):
            count, end = known.match(data, start, self._starts)
            if count:
                self._candidates.insert(0, self._candidates.pop(index))
                self._useless -= not known.useful
                known.useful = True
                return known, self._starts[:count].copy(), end
        return None, self._starts[:0], start

    def learn(self, node: Content, handles: Mapping[Node, int], first_handle: int) -> None:
        """Remember the shape of an object that was parsed, if a later one may have it too."""
        if (
            not isinstance(node, JavaObject)
            or self._useless > MAX_USELESS
            or not self._is_packable(node)
        ):
            return
        self._parsed += 1
        if self._parsed <= self._few:
            return
        try:
            shape = Shape(node, _Before(handles, first_handle))
        except NotUniformError:
            return
        self._useless += 1
        self._candidates.insert(0, KnownShape(shape, handles))
        del self._candidates[MAX_CANDIDATES:]

    def unpack(self, handle: int) -> tuple[int, int] | None:
        """Return start and first handle of the packed record that owns `handle`, if any."""
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


class _Before(Container[Node]):
    """The nodes defined before a handle."""

    def __init__(self, handles: Mapping[Node, int], first_handle: int) -> None:
        self._handles = handles
        self._first = first_handle

    def __contains__(self, node: object) -> bool:
        return self._handles.get(node, self._first) < self._first  # type: ignore[call-overload,no-any-return]
