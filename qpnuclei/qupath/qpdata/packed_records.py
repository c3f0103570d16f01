"""Similar objects of a file, kept as byte ranges of it instead of nodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from qpnuclei.qupath.qpdata.java_nodes import Bulk, JavaObject, Step
from qpnuclei.qupath.qpdata.java_parser import parse_object
from qpnuclei.qupath.qpdata.java_writer import StreamWriter
from qpnuclei.qupath.qpdata.record_columns import IntArray, Piece, Spans, write_pieces
from qpnuclei.qupath.qpdata.record_shapes import KnownShape

#: Records read or written at once.
CHUNK = 20_000


@dataclass(eq=False)
class Packed(Bulk):
    """N consecutive objects of a contents list as byte ranges of the file they came from.

    Parameters
    ----------
    data : bytes
        The file.
    shapes : sequence of KnownShape
    which : (N,) int64 ndarray
        Index of each record's shape.
    starts, ends : (N,) int64 ndarray
        Byte range of each record.
    nodes : mapping of int to JavaObject
        Records that became nodes, because something else refers into them.
    """

    data: bytes
    shapes: Sequence[KnownShape]
    which: IntArray
    starts: IntArray
    ends: IntArray
    nodes: dict[int, JavaObject] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.starts)

    def take(self, chosen: npt.NDArray[Any] | slice) -> Packed:
        """Return the records that indices, a mask or a slice (no copy) select; none are nodes."""
        return Packed(
            self.data, self.shapes, self.which[chosen], self.starts[chosen], self.ends[chosen]
        )

    def split(self) -> Iterator[JavaObject | Packed]:
        """Yield the records in order: those that are nodes, and the stretches between them."""
        begin = 0
        for index in sorted(self.nodes):
            if index > begin:
                yield self.take(slice(begin, index))
            yield self.nodes[index]
            begin = index + 1
        if begin < len(self):
            yield self.take(slice(begin, None)) if begin else self

    def groups(self) -> Iterator[tuple[KnownShape, IntArray]]:
        """Yield every shape that occurs, with the indices of its records."""
        for index in np.unique(self.which):
            yield self.shapes[index], np.flatnonzero(self.which == index)

    def spans(self, known: KnownShape, indices: IntArray) -> list[tuple[IntArray, IntArray]]:
        """Return begin and end in `data` of each slot's content, for records of one shape."""
        octets = np.frombuffer(self.data, np.uint8)
        at = self.starts[indices]
        spans = []
        for literal, slot in zip(known.literals, known.shape.slots, strict=False):
            at = at + len(literal)
            size: IntArray | int = slot.size
            if slot.prefix:
                length = np.zeros(len(at), np.int64)
                for _ in range(slot.prefix):
                    length = (length << 8) | octets[at]
                    at = at + 1
                size = length * slot.unit
            spans.append((at, at + size))
            at = at + size
        return spans

    def node(self, index: int) -> JavaObject:
        """Return one record as nodes."""
        known = self.shapes[self.which[index]]
        return parse_object(self.data, int(self.starts[index]), known.nodes)

    def write(self, writer: StreamWriter) -> Step:
        """Write all records, with the handle numbers of `writer`."""
        if self.nodes:
            for item in self.split():
                yield item.write(writer) if isinstance(item, Packed) else writer.value(item)
            return
        done = 0
        while done < len(self):
            # A removed object may have defined a node that a shape refers to. Then the first record
            # that needs the node is written as nodes and defines it.
            ready = np.array([all(map(writer.is_defined, k.shape.targets)) for k in self.shapes])
            unready = np.flatnonzero(~ready[self.which[done:]])
            stop = done + int(unready[0]) if len(unready) else len(self)
            for begin in range(done, stop, CHUNK):
                self._copy(writer, begin, min(begin + CHUNK, stop))
            done = stop
            if done < len(self):
                yield writer.value(self.node(done))
                done += 1

    def _copy(self, writer: StreamWriter, begin: int, end: int) -> None:
        chunk = self.take(slice(begin, end))
        octets = np.frombuffer(self.data, np.uint8)
        # New handle numbers have the same length as the old ones.
        edges = np.concatenate([[0], np.cumsum(chunk.ends - chunk.starts)])
        out = np.empty(edges[-1], np.uint8)
        for known, indices in chunk.groups():
            writer.next_handle += len(indices) * known.shape.handle_count
            literals = known.shape.literals(writer.handles)
            pieces: list[Piece] = [Spans(octets, chunk.starts[indices], chunk.ends[indices])]
            if literals != known.literals:
                pieces = [literals[0]]
                spans = chunk.spans(known, indices)
                for slot, (a, b), literal in zip(
                    known.shape.slots, spans, literals[1:], strict=True
                ):
                    pieces += [Spans(octets, a - slot.prefix, b), literal]
            write_pieces(out, edges[indices], pieces)
        writer.emit(out.tobytes())
