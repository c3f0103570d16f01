"""Millions of similar objects, kept as bytes instead of nodes.

The detections of an image are alike: the same classes, the same references to what is shared (a
PathClass, the names of the measurements), and between them values that differ. A `Shape`, learned
from one example, is their common structure: literal bytes, which include the references, and slots,
the bytes that vary. While a file is parsed, `RecordPacker` recognises consecutive objects of known
shapes and keeps them as byte ranges (`Packed`); written again, only the handle numbers in their
literals are renewed. New objects are written from columns in the same way (`NewRecords`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from qpnuclei.qupath.qpdata.java_nodes import (
    BLOCK_DATA,
    OBJECT,
    PRIMITIVE_SIZE,
    REFERENCE,
    STRING,
    AnyClassDesc,
    BlockData,
    Bulk,
    Content,
    JavaArray,
    JavaObject,
    JavaString,
    Node,
    Part,
    Step,
    run,
)
from qpnuclei.qupath.qpdata.java_parser import parse_object
from qpnuclei.qupath.qpdata.java_writer import StreamWriter, handle_bytes

IntArray = npt.NDArray[np.int64]

#: Records read or written at once.
CHUNK = 20_000
#: Number of shapes to try on the next object, most recently used first.
MAX_CANDIDATES = 32
#: After this many shapes that never recurred, no more are learned from a file.
MAX_USELESS = 1_000

SlotOwner = JavaString | JavaArray | Part | BlockData


class NotUniformError(Exception):
    """An object refers to itself or defines a class, so it has no reusable shape."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Bytes that vary between records of one shape.

    Parameters
    ----------
    prefix : int
        Bytes of the length that precedes the content; 0 where `size` is fixed.
    unit : int
        Bytes that count as one in that length.
    size : int
        Bytes of the content in the example, and in all records if `prefix` is 0.
    """

    prefix: int
    unit: int
    size: int


@dataclass(slots=True)
class _Literal:
    """Bytes that all records of a shape share, but for the numbers of the nodes referred to."""

    data: bytearray = field(default_factory=bytearray)
    targets: list[tuple[int, Node]] = field(default_factory=list)

    def render(self, handles: Mapping[Node, int]) -> bytes:
        data = self.data.copy()
        for offset, node in self.targets:
            data[offset : offset + 4] = handle_bytes(handles[node])
        return bytes(data)


class _Recorder(StreamWriter):
    """Writes an object as literals and slots instead of bytes."""

    def __init__(self, external: Container[Node]) -> None:
        literals = self.literals = [_Literal()]
        self.slots: list[Slot] = []
        self.slot_of: dict[SlotOwner, int] = {}
        self.external = external
        # A free function: a bound method would be a reference cycle that keeps the nodes alive.
        super().__init__(lambda data: literals[-1].data.extend(data))

    def _slot(self, owner: SlotOwner, slot: Slot) -> None:
        self.slot_of[owner] = len(self.slots)
        self.slots.append(slot)
        self.literals.append(_Literal())

    def contents(self, items: Iterable[Content]) -> Step:
        items = list(items)
        if any(isinstance(item, Bulk) for item in items):
            raise NotUniformError
        yield super().contents(items)

    def class_desc(self, desc: AnyClassDesc) -> NoReturn:  # noqa: ARG002
        raise NotUniformError

    def is_defined(self, node: Node) -> bool:
        return node in self.external or node in self.handles

    def reference(self, node: Node) -> None:
        if node in self.handles:
            raise NotUniformError
        literal = self.literals[-1]
        literal.data.append(REFERENCE)
        literal.targets.append((len(literal.data), node))
        literal.data += bytes(4)

    def string(self, node: JavaString) -> None:
        if node.is_long:
            raise NotUniformError
        self.emit(bytes([STRING]))
        self._slot(node, Slot(2, 1, len(node.data)))

    def primitive_array(self, node: JavaArray) -> None:
        self._slot(node, Slot(4, PRIMITIVE_SIZE[node.desc.name[1]], len(node.data or b"")))

    def primitives(self, part: Part) -> None:
        self._slot(part, Slot(0, 1, len(part.primitives)))

    def block_data(self, block: BlockData) -> None:
        if block.is_long:
            raise NotUniformError
        self.emit(bytes([BLOCK_DATA, len(block.data)]))
        self._slot(block, Slot(0, 1, len(block.data)))


class Shape:
    """What similar objects have in common.

    Parameters
    ----------
    example : JavaObject
        One of them.
    external : container of nodes
        The nodes that are defined outside the example.

    Attributes
    ----------
    targets : set of nodes
        Nodes that every record of this shape refers to.
    handle_count : int
        Number of handles that a record uses.

    Raises
    ------
    NotUniformError
        If no other object can have this shape.
    """

    def __init__(self, example: JavaObject, external: Container[Node]) -> None:
        recorder = _Recorder(external)
        run(recorder.value(example))
        self.example = example
        self.slots = recorder.slots
        self.handle_count = recorder.next_handle
        self._literals = recorder.literals
        self._slot_of = recorder.slot_of
        self.targets = {node for literal in self._literals for _, node in literal.targets}

    def has_slot(self, owner: SlotOwner) -> bool:
        """Tell whether `owner` belongs to the example, not to what it refers to."""
        return owner in self._slot_of

    def slot_of(self, owner: SlotOwner) -> int:
        """Return the index of the slot with the value of `owner`."""
        return self._slot_of[owner]

    def example_slots(self) -> list[bytes]:
        """Return the slot contents of the example, each with its length before it."""
        return [
            _with_length((owner.primitives if isinstance(owner, Part) else owner.data) or b"", slot)
            for owner, slot in zip(self._slot_of, self.slots, strict=True)
        ]

    def literals(self, handles: Mapping[Node, int]) -> list[bytes]:
        """Return the bytes before each slot and after the last, with these handle numbers."""
        return [literal.render(handles) for literal in self._literals]


class KnownShape:
    """A shape with the handle numbers of the file that is being parsed."""

    def __init__(self, shape: Shape, handles: Mapping[Node, int]) -> None:
        self.shape = shape
        self.literals = shape.literals(handles)
        self.nodes = {handles[node]: node for node in shape.targets}
        self.useful = False
        slots = shape.slots
        self._literals = np.frombuffer(b"".join(self.literals), np.uint8)
        self._literal_ends = np.cumsum([len(literal) for literal in self.literals])
        self._prefixes = np.array([slot.prefix for slot in slots], np.int64)
        self._units = np.array([s.unit if s.prefix else s.size for s in slots], np.int64)

    def match(self, data: bytes, start: int, starts: IntArray) -> tuple[int, int]:
        """Find the consecutive records of this shape from `start` on.

        Returns
        -------
        (int, int)
            Number of records found (at most as many as `starts` holds; their beginnings are now
            in it), and the end of the last.
        """
        from qpnuclei.qupath.qpdata.kernels import match_records

        octets = np.frombuffer(data, np.uint8)
        return match_records(
            octets, start, self._literals, self._literal_ends, self._prefixes, self._units, starts
        )


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
            pieces: list[_Piece] = [_Spans(octets, chunk.starts[indices], chunk.ends[indices])]
            if literals != known.literals:
                pieces = [literals[0]]
                spans = chunk.spans(known, indices)
                for slot, (a, b), literal in zip(
                    known.shape.slots, spans, literals[1:], strict=True
                ):
                    pieces += [_Spans(octets, a - slot.prefix, b), literal]
            _copy_pieces(out, edges[indices], pieces)
        writer.emit(out.tobytes())


@dataclass(frozen=True, eq=False)
class Column:
    """The contents of one slot in N records: record i has ``data[offsets[i]:offsets[i + 1]]``."""

    data: bytes
    offsets: IntArray


def gather(data: bytes, begins: IntArray, ends: IntArray) -> Column:
    """Return ``data[begins[i]:ends[i]]`` for every i."""
    offsets = np.concatenate([[0], np.cumsum(ends - begins)])
    out = np.empty(offsets[-1], np.uint8)
    _copy_pieces(out, offsets[:-1], [_Spans(np.frombuffer(data, np.uint8), begins, ends)])
    return Column(out.tobytes(), offsets)


@dataclass(eq=False)
class NewRecords(Bulk):
    """N objects of one shape, written from columns at once.

    All nodes that the shape refers to must be defined in the stream before.

    Parameters
    ----------
    shape : Shape
    columns : mapping of slot index to Column
        Slots without a column have the content of the example.
    count : int
        N.
    """

    shape: Shape
    columns: Mapping[int, Column]
    count: int

    def __len__(self) -> int:
        return self.count

    def write(self, writer: StreamWriter) -> Step:
        """Write all records."""
        yield from ()  # makes this a generator, as a step must be
        literals = self.shape.literals(writer.handles)
        pieces: list[_Piece] = [literals[0]]
        for index, (slot, fixed, literal) in enumerate(
            zip(self.shape.slots, self.shape.example_slots(), literals[1:], strict=True)
        ):
            column = self.columns.get(index)
            pieces += [fixed] if column is None else _with_lengths(column, slot)
            pieces.append(literal)
        sizes = np.zeros(self.count, np.int64)
        for piece in pieces:
            sizes += len(piece) if isinstance(piece, bytes) else piece.ends - piece.begins
        edges = np.concatenate([[0], np.cumsum(sizes)])
        out = np.empty(edges[-1], np.uint8)
        _copy_pieces(out, edges[:-1], pieces)
        writer.emit(out.tobytes())
        writer.next_handle += self.count * self.shape.handle_count


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


def _with_length(content: bytes, slot: Slot) -> bytes:
    if slot.prefix == 0:
        return content
    return (len(content) // slot.unit).to_bytes(slot.prefix, "big") + content


def _with_lengths(column: Column, slot: Slot) -> list[_Piece]:
    """Return the slot content of each record, with its length before it."""
    begins, ends = column.offsets[:-1], column.offsets[1:]
    contents = _Spans(np.frombuffer(column.data, np.uint8), begins, ends)
    if slot.prefix == 0:
        return [contents]
    lengths = ((ends - begins) // slot.unit).astype(f">u{slot.prefix}").tobytes()
    at = slot.prefix * np.arange(len(begins))
    return [_Spans(np.frombuffer(lengths, np.uint8), at, at + slot.prefix), contents]


@dataclass(frozen=True, eq=False)
class _Spans:
    """A part of N records: record i has ``data[begins[i]:ends[i]]``."""

    data: npt.NDArray[np.uint8]
    begins: IntArray
    ends: IntArray


#: A part of N records: the same bytes in all of them, or bytes of each.
_Piece = bytes | _Spans


def _copy_pieces(out: npt.NDArray[np.uint8], begins: IntArray, pieces: Iterable[_Piece]) -> None:
    """Write N records, pieces one after the other, to `out` from `begins` on."""
    from qpnuclei.qupath.qpdata.kernels import copy_pieces

    at, zeros = begins.copy(), np.zeros_like(begins)
    for piece in pieces:
        if isinstance(piece, bytes):
            piece = _Spans(np.frombuffer(piece, np.uint8), zeros, zeros + len(piece))
        copy_pieces(out, at, piece.data, piece.begins, piece.ends)
